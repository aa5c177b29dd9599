"""The ends of log files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 256 * 1024
"""Read from the end of a file; enough for thousands of lines."""

ROTATED_MAX: Final = 9
"""Rotated files that are looked for: `churn.v3:0.log.1` is the last one."""


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


def recent_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, those of the file before its last rotation included."""
    lines = last_lines(path, count)
    if len(lines) < count and path.is_file():
        lines = [*last_lines(path.with_name(f"{path.name}.1"), count - len(lines)), *lines]
    return lines


def all_lines(path: Path) -> Iterator[str]:
    """Every line of a log that is still there, without line ends, the oldest first."""
    rotated = [path.with_name(f"{path.name}.{number}") for number in range(ROTATED_MAX, 0, -1)]
    for one in [*rotated, path]:
        try:
            with one.open("r", encoding="utf-8", errors="replace", newline="\n") as file:
                for line in file:
                    yield line.rstrip("\r\n")
        except OSError:
            continue


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
