"""Reads tables of plain values (TOML, JSON) and collects everything that is wrong, not just the first thing.

Every problem is one line: file, key, expected, received.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final

_MISSING: Final = object()
_BYTES_PATTERN: Final = re.compile(r"([0-9]{1,18})\s*(B|KiB|MiB|GiB)?")
_BYTES_UNITS: Final = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def described(value: Any) -> str:
    """A plain value for a message: its TOML or JSON text, cut when long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def parse_bytes(text: str) -> int | None:
    """`"512MiB"` as bytes, or None if it is not a size."""
    match = _BYTES_PATTERN.fullmatch(text.strip())
    return int(match[1]) * _BYTES_UNITS[match[2]] if match else None


class TableReader:
    """Takes keys out of one table. What was not taken by `finish` is an unknown key."""

    def __init__(self, where: str, table: Mapping[str, Any], problems: list[str], prefix: str = "") -> None:
        self.where = where
        self.problems = problems
        self._table = table
        self._prefix = prefix
        self._taken: list[str] = []

    def problem(self, key: str, expected: str, received: Any = _MISSING) -> None:
        """Note that a key is wrong."""
        got = "" if received is _MISSING else f", received {described(received)}"
        self.problems.append(f"{self.where}: {self._prefix}{key}: expected {expected}{got}")

    def has(self, key: str) -> bool:
        """Whether the table holds the key."""
        return key in self._table

    def take(self, key: str) -> Any:
        """The raw value, or None; the key counts as known."""
        self._taken.append(key)
        return self._table.get(key)

    def text(self, key: str, *, default: str | None = None, choices: Sequence[str] = ()) -> str:
        """A string; required unless it has a default."""
        value = self._value(key, str, "a string" if not choices else _one_of(choices), default)
        if choices and value not in choices and value != default:
            if value != "":
                self.problem(key, _one_of(choices), value)
            return choices[0]
        return str(value)

    def optional_text(self, key: str) -> str | None:
        """A string or None."""
        if not self.has(key):
            self._taken.append(key)
            return None
        return self.text(key) or None

    def integer(self, key: str, *, default: int | None = None, minimum: int = 0, maximum: int | None = None) -> int:
        """A whole number within bounds; required unless it has a default."""
        expected = f"a whole number >= {minimum}" + (f" and <= {maximum}" if maximum is not None else "")
        if default is None and not self.has(key):
            self.take(key)
            self.problem(key, expected, None)
            return minimum
        value = self._value(key, int, expected, default)
        if value == "" or value is None:
            return minimum
        if value < minimum or (maximum is not None and value > maximum):
            self.problem(key, expected, value)
            return default if default is not None else minimum
        return int(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """True or false."""
        return bool(self._value(key, bool, "true or false", default))

    def size_bytes(self, key: str, *, default: str) -> int:
        """A size such as `"512MiB"`, or a number of bytes."""
        value = self.take(key)
        if value is None:
            value = default
        size = value if type(value) is int else parse_bytes(value) if isinstance(value, str) else None
        if size is None or size <= 0:
            self.problem(key, 'a size such as "512MiB"', value)
            size = parse_bytes(default) or 0
        return size

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; absent is empty."""
        value = self.take(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            self.problem(key, "a list of strings", value)
            return ()
        return tuple(value)

    def relative_path(self, key: str) -> str | None:
        """A path inside the package; absent is None."""
        text = self.optional_text(key)
        if text is None:
            return None
        path = PurePosixPath(text)
        if path.is_absolute() or ".." in path.parts or text in ("", "."):
            self.problem(key, "a path inside the package (relative, without '..')", text)
            return None
        return text

    def table(self, key: str) -> TableReader:
        """A table within; absent is empty."""
        value = self.take(key)
        if value is not None and not isinstance(value, dict):
            self.problem(key, "a table", value)
        return TableReader(self.where, value if isinstance(value, dict) else {}, self.problems, f"{self._prefix}{key}.")

    def tables(self, key: str) -> list[TableReader]:
        """A list of tables (`[[key]]`); absent is empty."""
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
            self.problem(key, f"tables: [[{key}]]", value)
            return []
        return [
            TableReader(self.where, part, self.problems, f"{self._prefix}{key}[{position}].")
            for position, part in enumerate(value)
        ]

    def finish(self) -> None:
        """Note every key that nothing asked for."""
        for key in self._table:
            if key not in self._taken:
                known = ", ".join(self._taken)
                self.problems.append(f"{self.where}: {self._prefix}{key}: unknown key; expected one of {known}")

    def _value(self, key: str, kind: type, expected: str, default: Any) -> Any:
        value = self.take(key)
        if value is None:
            if default is None:
                self.problem(key, expected, None)
                return kind()
            return default
        if type(value) is not kind:
            self.problem(key, expected, value)
            return default if default is not None else ""
        return value


def _one_of(choices: Sequence[str]) -> str:
    return "one of " + ", ".join(f'"{choice}"' for choice in choices)
