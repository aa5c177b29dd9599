"""The ends of log files."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BufferedReader
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
    """Reads what is added to a file, over rotations: the rest of the old file first, then the new one."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._rest = b""
        self._file = self._open()
        if self._file is not None and not from_start:
            self._file.seek(0, os.SEEK_END)

    def new_lines(self) -> list[str]:
        """Whole lines since the last call."""
        data = self._file.read() if self._file is not None else b""
        if self._was_replaced():
            if self._file is not None:
                self._file.close()
            self._file = self._open()
            data += self._file.read() if self._file is not None else b""
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BufferedReader | None:
        try:
            return self._path.open("rb")
        except OSError:
            return None

    def _was_replaced(self) -> bool:
        """Whether the name means another file by now; not while there is none, in the middle of a rotation."""
        try:
            state = self._path.stat()
        except OSError:
            return False
        if self._file is None:
            return True
        ours = os.fstat(self._file.fileno())
        return (state.st_dev, state.st_ino) != (ours.st_dev, ours.st_ino)
