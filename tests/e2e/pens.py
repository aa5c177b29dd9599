"""A pen: cgroups of its own, one in every hierarchy, so that what was started in it can be counted and ended whole.

A process leaves its parent, its session and its terminal as it likes, but not the cgroup it was born into; a killed
run's processes are found by it, whatever has become of their pids.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

REMOVE_LIMIT_S: Final = 20.0
_ENTER: Final = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit 125; shift; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class Pen:
    """The same path in each hierarchy: those of cgroup v1, and cgroup2 beside them, which nspawn goes by."""

    directories: tuple[Path, ...]

    @classmethod
    def make(cls, name: str) -> Self:
        """Make one below the caller's own cgroups."""
        pen = cls(tuple(own / name for own in own_cgroups()))
        for directory in pen.directories:
            _make_cgroup(directory)
        return pen

    def below(self, name: str) -> Pen:
        """Make one inside this one."""
        pen = Pen(tuple(directory / name for directory in self.directories))
        for directory in pen.directories:
            _make_cgroup(directory)
        return pen

    def entered(self, argv: Sequence[str | Path]) -> list[str]:
        """Give the command that does what `argv` does, in the pen."""
        doors = [str(directory / "cgroup.procs") for directory in self.directories]
        return ["/bin/sh", "-c", _ENTER, "sh", *doors, "--", *map(str, argv)]

    def pids(self) -> list[int]:
        """List who is in it, and in what they made below it."""
        found: set[int] = set()
        for directory in self.directories:
            for each in _tree(directory):
                try:
                    found.update(map(int, (each / "cgroup.procs").read_text().split()))
                except OSError:  # gone meanwhile
                    pass
        return sorted(found)

    def remove_if_empty(self) -> None:
        """Take it away unless somebody is in it."""
        for directory in self.directories:
            _removed(directory)

    def remove(self) -> None:
        """Kill who is in it until nobody is, and take it away. Fails with who is left after REMOVE_LIMIT_S."""
        deadline = time.monotonic() + REMOVE_LIMIT_S
        while True:
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not [directory for directory in self.directories if not _removed(directory)]:
                return
            assert time.monotonic() < deadline, f"still in {self.directories[0].name}: {described(self.pids())}"
            time.sleep(0.01)


def own_cgroups(proc: Path = Path("/proc/self")) -> list[Path]:
    """List the caller's own cgroup of each hierarchy that is mounted."""
    mounted: dict[str, tuple[str, Path]] = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        fields, _, filesystem = line.partition(" - ")
        kind, _source, options = filesystem.split(" ", 2)
        root, point = fields.split(" ")[3:5]
        for name in {"cgroup": options.split(","), "cgroup2": [""]}.get(kind, []):
            mounted[name] = (root, Path(point))
    cgroups = []
    for line in (proc / "cgroup").read_text().splitlines():
        _number, names, path = line.split(":", 2)
        if (name := names.split(",")[0]) in mounted:
            top, directory = mounted[name]
            cgroups.append(directory / path.removeprefix(top.rstrip("/")).lstrip("/"))
    return cgroups


def described(pids: Sequence[int]) -> list[str]:
    """Say what processes are, for a message."""
    lines = []
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
            lines.append(f"{pid} ({state}) {b' '.join(words).decode(errors='replace')[:120]}")
        except (FileNotFoundError, ProcessLookupError):
            pass
    return lines


def start_time(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; with its pid it names the process. None: no such."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _make_cgroup(directory: Path) -> None:
    directory.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # empty in a new one, and then nobody may enter
        setting = directory / name
        if setting.exists() and (directory / "cgroup.clone_children").exists():  # only v1 has that
            setting.write_text((directory.parent / name).read_text())


def _tree(directory: Path) -> Iterator[Path]:
    """Walk a cgroup and those below it, the deepest first."""
    for path, _directories, _files in os.walk(directory, topdown=False):
        yield Path(path)


def _removed(directory: Path) -> bool:
    """Take away a cgroup and those below it, as far as they are empty; say whether all is gone."""
    for each in _tree(directory):
        try:
            each.rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # somebody is in it
            return False
    return True
