"""Who listens on a TCP port, from /proc. `proc` is a parameter, so tests use a recorded tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"
_INODE_FIELD: Final = 9
PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class ListeningProcess:
    """A process and its command, as far as we may look."""

    pid: int
    command: str


def listening_inodes(port: int, proc: Path = PROC) -> set[str]:
    """The inodes of the sockets that listen on a port, on whatever address."""
    inodes: set[str] = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[_INODE_FIELD])
    return inodes


def listening_process(port: int, proc: Path = PROC) -> ListeningProcess | None:
    """The process that listens on a port, or None if nobody does or we may not see it."""
    return next(_listening(port, proc), None)


def listening_processes(port: int, proc: Path = PROC) -> list[ListeningProcess]:
    """Every process that listens on a port, on whatever address, as far as we may see them."""
    return list(_listening(port, proc))


def _target(link: Path) -> str:
    """What a descriptor leads to; empty if it was closed meanwhile."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


def _listening(port: int, proc: Path) -> Iterator[ListeningProcess]:
    targets = {f"socket:[{inode}]" for inode in listening_inodes(port, proc)}
    if not targets:
        return
    for directory in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            if any(_target(link) in targets for link in (directory / "fd").iterdir()):
                words = (directory / "cmdline").read_bytes().split(b"\0")
                yield ListeningProcess(int(directory.name), b" ".join(words).decode("utf-8", "replace").strip()[:100])
        except OSError:
            continue  # gone, or somebody else's
