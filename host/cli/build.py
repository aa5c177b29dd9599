"""`modelhost build`: the environments that models ask for, made before anything runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from host.cli.options import load, settings_options
from host.protocol.errors import ConfigError

if TYPE_CHECKING:
    from host.config.environments import EnvironmentNeed
    from host.config.settings import HostSettings
    from host.environments import EnvironmentStore

Labelled = tuple[str, "EnvironmentNeed | None"]
"""A model version in words, and what it needs."""


@click.command("build")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--prune", is_flag=True, help="remove environments that no package of the repository asks for")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@settings_options("repository", "deployment", "environments", "wheelhouse")
def command(models: Sequence[str], prune: bool, as_json: bool, config_file: str | None, **flags: str | None) -> int:
    """Make the virtual environments that models ask for in [environment].

    MODEL is the name of a deployed model or the directory of a package (NAME/VERSION); without one: everything that up
    would run. Models with equal needs share an environment. One that is there is left as it is, whoever uses it; one
    whose build is interrupted is not there. Needs uv.
    """
    from host.cli.printing import make_table, print_json, print_table
    from host.config.deployment import package_directories
    from host.environments import EnvironmentStore

    settings = load(config_file, flags).settings
    store = EnvironmentStore(settings.environments)
    needs = _needs(settings, models)
    built_s = _build(store, needs, settings.wheelhouse)
    removed = store.prune(repository_keys(package_directories(settings.repository))) if prune else []
    if as_json:
        print_json({"environments": [_entry(store, one, built_s) for one in needs], "removed": removed})
        return 0
    table = make_table("model", "environment", "Python", "")
    for label, need in needs:
        if need is None:
            table.add_row(label, "none of its own", "", "runs in model_python")
        else:
            took = f"built in {built_s[need.key]:.1f} s" if need.key in built_s else "was there"
            table.add_row(label, need.key, need.python, took)
    print_table(table)
    for key in removed:
        click.echo(f"removed: {key}")
    return 0


def _build(store: EnvironmentStore, needs: Sequence[Labelled], wheelhouse: Path | None) -> dict[str, float]:
    """Make what is missing; the seconds that each took, by key. Raises `ConfigError`."""
    built_s: dict[str, float] = {}
    for label, need in needs:
        if need is None or store.is_built(need):
            continue
        click.echo(f"{label}: building environment {need.key} (Python {need.python}) ...", err=True)
        began_s = time.monotonic()
        try:
            store.build(need, wheelhouse, lambda line: click.echo(f"  {line}", err=True))
        except ConfigError as error:
            raise ConfigError(f"{label}: its environment cannot be built", *error.problems) from error
        built_s[need.key] = time.monotonic() - began_s
    return built_s


def _entry(store: EnvironmentStore, labelled: Labelled, built_s: dict[str, float]) -> dict[str, object]:
    label, need = labelled
    if need is None:
        return {"model": label, "environment": None}
    return {
        "model": label,
        "environment": need.key,
        "python": need.python,
        "path": str(store.path(need)),
        "built_s": round(built_s[need.key], 1) if need.key in built_s else None,
    }


def _needs(settings: HostSettings, models: Sequence[str]) -> list[Labelled]:
    """What is to be built. Raises `ConfigError`."""
    from host.config.deployment import load_deployment

    named = [model for model in models if "/" not in model]
    directories = [Path(model).absolute() for model in models if "/" in model]
    if named or not models:
        deployed = load_deployment(
            settings.repository, settings.deployment, settings.environments, settings.features
        ).models
        known = list(dict.fromkeys(model.name for model in deployed))
        unknown = [name for name in named if name not in known]
        if unknown:
            raise ConfigError(*(f"{name}: expected a deployed model: {', '.join(known)}" for name in unknown))
        directories += [Path(model.package) for model in deployed if not models or model.name in named]
    return [_need(directory) for directory in directories]


def _need(directory: Path) -> Labelled:
    from host.config.environments import need_of
    from host.protocol.package import read_package

    package = read_package(directory)
    return f"{package.name} version {package.version}", need_of(package, directory)


def repository_keys(packages: Iterable[Path]) -> set[str]:
    """The environments of some packages, deployed or not: a rollback must find its own."""
    return {need.key for _, need in map(_need, packages) if need is not None}
