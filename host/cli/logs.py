"""`modelhost logs`: the ends of the processes' logs, together in the order of time, and what follows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from host.cli.options import load, settings_options
from host.config.settings import nearest
from host.protocol.errors import HostError

if TYPE_CHECKING:
    from host.log_lines import LineReader, LogLine
    from host.tail import Follower

_LEVELS = ("debug", "info", "warning", "error")


@click.command("logs")
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="go on with what is written from now on, until Ctrl-C")
@click.option("-n", "--lines", default=50, type=click.IntRange(0), help="lines from the end (default 50)")
@click.option("--slot", type=click.IntRange(0), metavar="N", help="only the processes of this number")
@click.option("--level", type=click.Choice(_LEVELS), help="only messages of this level and more severe ones")
@click.option("--request-id", metavar="ID", help="only messages about this request")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@settings_options("run_dir")
def command(
    name: str | None,
    follow: bool,
    lines: int,
    slot: int | None,
    level: str | None,
    request_id: str | None,
    as_json: bool,
    config_file: str | None,
    **flags: str | None,
) -> None:
    """Show the logs: of all processes, or of NAME: a process (churn.v3:0), a model version (churn.v3), a model
    (churn), front, features, control, supervisord or up.

    With --level or --request-id, everything that is still there is searched, rotated files too.
    """
    from host.config.run_dir import RunDirectory
    from host.log_lines import LineReader, merge_lines
    from host.tail import Follower

    directory = RunDirectory(load(config_file, flags).settings.run_dir).logs
    choice = Choice(directory, name, slot, level, request_id)
    found = choice.files()
    if not found and not (follow and directory.is_dir()):
        raise HostError(_nothing_found(choice))
    show = Show(as_json, max((len(program_of(path)) for path in found), default=0) if len(found) != 1 else 0)
    readers = {path: LineReader(program_of(path)) for path in found}
    followers = {path: Follower(path) for path in found} if follow else {}
    show(merge_lines([choice.recent(path, readers[path], lines) for path in found], lines))
    if follow:
        asyncio.run(_follow(choice, followers, readers, show))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which lines of which logs."""

    directory: Path
    name: str | None = None
    slot: int | None = None
    level: str | None = None
    request_id: str | None = None

    def files(self) -> list[Path]:
        """The logs of a process, of all processes of a model version or of a model, or all."""
        paths = log_files(self.directory, self.name)
        return [path for path in paths if self.slot is None or program_of(path).endswith(f":{self.slot}")]

    def matches(self, line: LogLine) -> bool:
        """Whether a line is to be shown."""
        if self.level is not None and not line.is_at_least(self.level):
            return False
        return self.request_id is None or self.request_id in line.request_ids

    def recent(self, path: Path, reader: LineReader, count: int) -> list[LogLine]:
        """The last lines of one log that match."""
        from host.tail import all_lines, recent_lines

        if self.level is None and self.request_id is None:
            return list(reader.read(recent_lines(path, count)))
        return list(deque(filter(self.matches, reader.read(all_lines(path))), maxlen=count))


@dataclass(slots=True)
class Show:
    """Writes lines to standard output, each with its process if there are several."""

    as_json: bool
    width: int
    """Of the longest process' name; 0: there is one."""

    def __call__(self, lines: Iterable[LogLine]) -> None:
        """Write them."""
        from host.log_lines import as_json, readable

        for line in lines:
            if self.as_json:
                click.echo(as_json(line))
                continue
            for text in readable(line).split("\n"):
                click.echo(f"{line.program:{self.width}} | {text}" if self.width else text)


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


def _nothing_found(choice: Choice) -> str:
    programs = [program_of(path) for path in log_files(choice.directory, None)]
    groups = {program.partition(":")[0] for program in programs}
    names = sorted({*programs, *groups, *(group.rpartition(".v")[0] for group in groups)} - {""})
    of = [program_of(path) for path in log_files(choice.directory, choice.name)]
    if choice.slot is not None and of:
        return f"no log of slot {choice.slot} of {choice.name or 'anything'}; there are: {', '.join(of)}"
    guess = nearest(choice.name, names) if choice.name else ""
    there = ", ".join(programs) or "none"
    return f"no log of {choice.name or 'anything'} in {choice.directory}{guess}; there are: {there}"


async def _follow(choice: Choice, followers: dict[Path, Follower], readers: dict[Path, LineReader], show: Show) -> None:
    from asyncinotify import Inotify, Mask

    from host.log_lines import LineReader, merge_lines
    from host.tail import Follower

    with Inotify() as inotify:
        inotify.add_watch(choice.directory, Mask.MODIFY | Mask.CREATE | Mask.MOVED_TO)
        while True:
            fresh = []
            for path in choice.files():
                follower = followers.setdefault(path, Follower(path, from_start=True))
                reader = readers.setdefault(path, LineReader(program_of(path)))
                fresh.append(list(filter(choice.matches, reader.read(follower.new_lines()))))
            show(merge_lines(fresh, sum(map(len, fresh))))
            await inotify.get()
