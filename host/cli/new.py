"""`modelhost new`: a model package to start from, which works before it is changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import click

from host.cli.options import load, settings_options
from host.cli.templates import TRAINED_RUNTIMES, package_files
from host.protocol.errors import ConfigError, HostError
from host.protocol.package import RUNTIMES, name_problem, read_package

FIRST_VERSION: Final = "1"
_TRAIN_S: Final = 120.0


@click.command("new")
@click.argument("name")
@click.option("--runtime", type=click.Choice(RUNTIMES), required=True, help="what runs the model")
@click.option("--directory", metavar="DIR", help="repository to write to (default: the host's)")
@settings_options("repository", "model_python")
def command(name: str, runtime: str, directory: str | None, config_file: str | None, **flags: str | None) -> None:
    """Write DIR/NAME/1: a small working model with its contract, golden cases and README, to change into yours."""
    settings = load(config_file, flags).settings
    problem = name_problem("model name", name)
    if problem:
        raise ConfigError(problem)
    repository = Path(directory).absolute() if directory else settings.repository
    package = repository / name / FIRST_VERSION
    python = settings.model_python or Path(sys.executable)
    write_package(package, name, runtime)
    if runtime in TRAINED_RUNTIMES:
        train(package, python, TRAINED_RUNTIMES[runtime])
    read_package(package)
    click.echo(f"{package}: {', '.join(sorted(path.name for path in package.iterdir()))}")
    click.echo(f"next: modelhost try {package}")


def write_package(package: Path, name: str, runtime: str) -> None:
    """Write the files. Raises `ConfigError` if there is something already, or no place."""
    try:
        package.parent.mkdir(parents=True, exist_ok=True)
        package.mkdir()
        for file, text in package_files(name, runtime, str(package)).items():
            (package / file).write_text(text, "utf-8")
    except FileExistsError:
        raise ConfigError(f"{package}: expected nothing there yet; remove it or choose another name") from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from error


def train(package: Path, python: Path, libraries: tuple[str, ...]) -> None:
    """Make the artifact in the interpreter that runs models. Raises `HostError` that says what is missing."""
    try:
        done = subprocess.run(
            [python, "-I", package / "train.py"],
            capture_output=True,
            text=True,
            timeout=_TRAIN_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{package} is written, but {python} train.py cannot be run: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HostError(
            f"{package} is written, its artifact is not: {python} train.py failed: {last}\n"
            f"it needs {', '.join(libraries)}: install them there, then: {python} {package / 'train.py'}"
        )
