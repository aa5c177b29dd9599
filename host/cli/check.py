"""`modelhost check`: everything that is wrong, at once, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from host.cli.options import load, settings_options
from host.config.settings import CONFIG_FILE, DEPLOYMENT_FILE, FEATURES_FILE, load_settings
from host.manifest import checksum_problems, verify_package
from host.protocol.errors import ConfigError
from host.protocol.package import MODEL_FILE, read_package, read_toml


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One path, what it was taken for, and what is wrong with it."""

    path: str
    kind: str
    problems: tuple[str, ...]


@click.command("check")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@settings_options()
def command(paths: Sequence[str], as_json: bool, config_file: str | None, **flags: str | None) -> int:
    """Check model packages and configuration; say everything that is wrong, with file, key and what was expected.

    PATH is a package (NAME/VERSION), a model or a repository of packages, a modelhost.toml, a deployment.toml or a
    features.toml; without one: everything that up would use. Ends with 2 if something is wrong.
    """
    from host.cli.printing import print_json

    results = [check_path(Path(path)) for path in paths] if paths else [_check_host(config_file, flags)]
    problems = list(dict.fromkeys(problem for result in results for problem in result.problems))
    if as_json:
        print_json(document(results))
        return 2 if problems else 0
    if problems:
        raise ConfigError(*problems)
    for result in results:
        click.echo(f"{result.path}: {result.kind}: nothing wrong")
    return 0


def document(results: Sequence[Checked]) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "ok": not any(result.problems for result in results),
        "checked": [
            {"path": result.path, "kind": result.kind, "problems": list(result.problems)} for result in results
        ],
    }


def check_path(path: Path) -> Checked:
    """Check one path, as whatever it is."""
    kind, problems = "unknown", []
    try:
        if not path.exists():
            raise ConfigError(f"{path}: expected a package, a repository or a configuration file, found nothing")
        if path.is_file():
            if path.name == MODEL_FILE:
                kind = "package"
                problems = check_package(path.absolute().parent)
            elif _has(path, FEATURES_FILE, "views"):
                kind = "features"
                _read_features(path)
            elif _has(path, DEPLOYMENT_FILE, "models"):
                kind = "deployment"
                problems = _check_deployment(path)
            else:
                kind = "settings"
                # The file alone: the caller's environment is not what was asked about.
                load_settings(path.absolute(), {}, {}, Path.cwd())
        elif (path / MODEL_FILE).exists() or _is_package(path):
            kind = "package"
            problems = check_package(path.absolute())
        else:
            kind = "repository"
            problems = check_packages(path.absolute())
    except ConfigError as error:
        problems = list(error.problems)
    return Checked(path=str(path), kind=kind, problems=tuple(problems))


def check_packages(directory: Path) -> list[str]:
    """Check every version of every model below a repository, or of one model."""
    from host.config.deployment import model_directories, version_directories

    children = model_directories(directory)
    packages = [child for child in children if (child / MODEL_FILE).exists()]
    problems: list[str] = []
    if not packages:
        for model in children:
            try:
                packages += version_directories(model)
            except ConfigError as error:
                problems += error.problems
    for package in packages:
        try:
            problems += check_package(package)
        except ConfigError as error:
            problems += error.problems
    return problems


def check_package(directory: Path) -> list[str]:
    """Check one package, and its files against its manifest. Raises `ConfigError` for what it says of itself."""
    read_package(directory)
    return verify_package(directory)


def _is_package(path: Path) -> bool:
    """Whether a directory without model.toml looks like a package all the same: it holds files and no directory."""
    return path.is_dir() and any(path.iterdir()) and not any(child.is_dir() for child in path.iterdir())


def _has(path: Path, name: str, key: str) -> bool:
    """Whether a file has the name of its kind, or what every file of that kind holds."""
    if path.name == CONFIG_FILE:
        return False
    try:
        return path.name == name or key in read_toml(path)
    except ConfigError:
        return False


def _read_features(path: Path) -> None:
    from host.config.features import read_features

    read_features(path.absolute())


def _check_deployment(path: Path) -> list[str]:
    """Check a deployment file with the packages that it names, in the repository of the settings beside it."""
    from host.config.deployment import load_deployment

    beside = path.absolute().parent / CONFIG_FILE
    settings = load_settings(beside if beside.is_file() else None, {}, _without_settings(), path.absolute().parent)
    values = settings.settings
    deployment = load_deployment(values.repository, path.absolute(), values.environments, values.features)
    return checksum_problems(deployment)


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MODELHOST_")}


def _check_host(config_file: str | None, flags: Mapping[str, str | None]) -> Checked:
    from host.cli.preflight import make_plan

    loaded = load(config_file, dict(flags))
    what = str(loaded.file or loaded.settings.repository)
    try:
        make_plan(loaded)
    except ConfigError as error:
        return Checked(path=what, kind="host", problems=error.problems)
    return Checked(path=what, kind="host", problems=())
