"""`modelhost logs`: the ends of the processes' logs, together in the order of time, and what follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from host.cli.options import load, settings_options
from host.protocol.errors import HostError

if TYPE_CHECKING:
    from host.tail import Follower, LogLine


@click.command("logs")
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="go on with what is written from now on, until Ctrl-C")
@click.option("-n", "--lines", default=50, type=click.IntRange(0), help="lines from the end (default 50)")
@settings_options("run_dir")
def command(name: str | None, follow: bool, lines: int, config_file: str | None, **flags: str | None) -> None:
    """Show the logs: of all processes, or of NAME: a process (churn.v3:0), a model version (churn.v3), a model
    (churn), front, control, supervisord or up.
    """
    from host.config.run_dir import RunDirectory
    from host.tail import Follower, last_lines, merge_lines, timed_lines

    run_dir = RunDirectory(load(config_file, flags).settings.run_dir)
    found = log_files(run_dir.logs, name)
    if not found and not (follow and run_dir.logs.is_dir()):
        known = ", ".join(program_of(path) for path in log_files(run_dir.logs, None)) or "none"
        raise HostError(f"no log of {name or 'anything'} in {run_dir.logs}; there are: {known}")
    followers = {path: Follower(path) for path in found} if follow else {}
    width = max((len(program_of(path)) for path in found), default=0) if len(found) != 1 else 0
    logs = [timed_lines(program_of(path), last_lines(path, lines)) for path in found]
    _show(merge_lines(logs, lines), width)
    if follow:
        asyncio.run(_follow(run_dir.logs, name, followers, width))


def log_files(directory: Path, name: str | None) -> list[Path]:
    """The logs of a process, of all processes of a model version or of a model, or all."""
    paths = sorted(path for path in directory.glob("*.log") if path.is_file())
    if name is None:
        return paths
    choices: tuple[Callable[[str], bool], ...] = (
        lambda program: program == name,
        lambda program: program.startswith(f"{name}:"),
        lambda program: program.startswith(f"{name}.v"),
    )
    for matches in choices:
        chosen = [path for path in paths if matches(program_of(path))]
        if chosen:
            return chosen
    return []


def program_of(path: Path) -> str:
    """The program that a log belongs to."""
    return path.name.removesuffix(".log")


def _show(lines: Iterable[LogLine], width: int) -> None:
    for line in lines:
        click.echo(f"{line.program:{width}} | {line.text}" if width else line.text)


async def _follow(directory: Path, name: str | None, followers: dict[Path, Follower], width: int) -> None:
    from asyncinotify import Inotify, Mask

    from host.tail import Follower, merge_lines, timed_lines

    with Inotify() as inotify:
        inotify.add_watch(directory, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO)
        while True:
            fresh = []
            for path in log_files(directory, name):
                follower = followers.setdefault(path, Follower(path, from_start=True))
                fresh.append(timed_lines(program_of(path), follower.new_lines()))
            _show(merge_lines(fresh, sum(map(len, fresh))), width)
            await inotify.get()
