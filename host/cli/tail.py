"""The ends of log files."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 256 * 1024
"""Read from the end of a file; enough for thousands of lines."""

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
"""How every process of the host begins a message, and supervisord too."""


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file, without line ends; none if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return list(deque(text.splitlines(), maxlen=count))


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of one process's log, and the time of the message that it belongs to."""

    time: str
    program: str
    text: str


def timed_lines(program: str, lines: Iterable[str]) -> list[LogLine]:
    """Give every line a time; one without, as in a traceback, has that of the line before."""
    found: list[LogLine] = []
    time = ""
    for text in lines:
        match = _TIME.match(text)
        time = match[0] if match else time
        found.append(LogLine(time, program, text))
    return found


def merge_lines(logs: Iterable[Sequence[LogLine]], count: int) -> list[LogLine]:
    """The last lines of several logs together, by time; lines of one log keep their order."""
    if count <= 0:
        return []
    return sorted((line for lines in logs for line in lines), key=lambda line: line.time)[-count:]


class Follower:
    """Reads what is added to a file, over rotations: when its name means another file, that is read from its start."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self._rest = b""
        if not from_start:
            try:
                state = path.stat()
                self._offset, self._inode = state.st_size, state.st_ino
            except OSError:
                pass

    def new_lines(self) -> list[str]:
        """Whole lines since the last call."""
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._inode or state.st_size < self._offset:
                    self._inode, self._offset, self._rest = state.st_ino, 0, b""
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]
