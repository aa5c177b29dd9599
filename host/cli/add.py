"""`modelhost add`: archives into the repository, verified and in one step each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from host.cli.options import load, settings_options
from host.protocol.errors import ConfigError, HostError

if TYPE_CHECKING:
    from host.fetch import Progress, Source
    from host.repository import Added, ModelRepository

_SHA256: Final = re.compile("[0-9a-fA-F]{64}")


@click.command("add")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--sha256", metavar="HEX", help="what the whole archive's SHA-256 must be; with one SOURCE")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@settings_options("repository", "max_package_bytes")
def command(
    sources: Sequence[str], sha256: str | None, as_json: bool, config_file: str | None, **flags: str | None
) -> int:
    """Fetch archives of `modelhost pack`, verify every file, and put them into the repository as NAME/VERSION.

    SOURCE is a path, or a URI with http://, https:// or s3:// (which needs s3fs: pip install 'modelhost[s3]', and takes
    credentials from where the AWS tools do). Credentials in a URI are never shown.

    A version never changes: one that is there with the same content is left as it is, and one with other content is
    refused. A version appears when it is whole, or not at all; it runs after `modelhost build` and `modelhost up`.

    Ends with 2 if an archive is refused, with 1 if it cannot be fetched or written; the others are added all the same.
    """
    from host.cli.printing import print_json, size_text
    from host.fetch import parse_source
    from host.repository import ModelRepository

    if sha256 is not None and (len(sources) > 1 or _SHA256.fullmatch(sha256) is None):
        raise click.UsageError("--sha256: expected 64 hexadecimal digits, and one SOURCE")
    settings = load(config_file, flags).settings
    repository = ModelRepository(settings.repository)
    parsed = [parse_source(source) for source in sources]
    results: list[dict[str, Any]] = []
    errors: list[ConfigError | HostError] = []
    for source in parsed:
        try:
            added = _add(repository, source, settings.max_package_bytes, sha256)
        except (ConfigError, HostError) as error:
            errors.append(_naming(source, error))
            results.append({"source": source.shown, "problems": str(errors[-1]).splitlines()})
            continue
        results.append(_entry(source, added))
        if not as_json:
            what = "was there already" if added.was_there else f"added, {size_text(added.size_bytes)}"
            click.echo(f"{added.name} version {added.version}: {what}: {added.directory}")
    refused = [problem for error in errors if isinstance(error, ConfigError) for problem in error.problems]
    failed = [str(error) for error in errors if isinstance(error, HostError)]
    if as_json:
        print_json({"ok": not errors, "sources": results})
        return 2 if refused else 1 if failed else 0
    if refused:
        raise ConfigError(*refused, *failed)
    if failed:
        raise HostError("\n".join(failed))
    return 0


def _add(repository: ModelRepository, source: Source, limit_bytes: int, sha256: str | None) -> Added:
    from host.fetch import fetch

    def fetching(target: BinaryIO) -> str:
        with _shown(source) as progress:
            return fetch(source, target, limit_bytes, progress)

    return repository.add(fetching, limit_bytes, sha256.lower() if sha256 else None)


def _naming(source: Source, error: ConfigError | HostError) -> ConfigError | HostError:
    """The same error, with the source in each line."""
    if isinstance(error, ConfigError):
        return ConfigError(*(_with(source, problem) for problem in error.problems))
    return HostError(_with(source, str(error)))


def _with(source: Source, problem: str) -> str:
    return problem if problem.startswith(source.shown) else f"{source.shown}: {problem}"


def _entry(source: Source, added: Added) -> dict[str, Any]:
    return {
        "source": source.shown,
        "model": added.name,
        "version": added.version,
        "path": str(added.directory),
        "size_bytes": added.size_bytes,
        "was_there": added.was_there,
        "problems": [],
    }


@contextmanager
def _shown(source: Source) -> Iterator[Progress]:
    """Show on a terminal how far a transfer is; what is written to a file or a pipe stays quiet."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda received_bytes, size_bytes: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(source.shown, total=None)
        update: Callable[[int, int | None], None] = lambda received_bytes, size_bytes: progress.update(  # noqa: E731
            task, completed=received_bytes, total=size_bytes
        )
        yield update
