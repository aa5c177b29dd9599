"""Lines of the processes' logs, in either format, back into what they say. Pure, but for the local time zone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from host.protocol.logs import json_line, subject_of, utc_time

LEVELS: Final = ("debug", "info", "warning", "error", "critical")

_TEXT: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (?:([A-Z]+) )?(.*)", re.DOTALL)
"""How every process of the host begins a message, and supervisord too."""

_REQUEST: Final = re.compile(r"\S+ requests? (\S+?(?:, \S+?)*)(?: \(trace [0-9a-f]+\))?: ")
"""What stands behind the level of a text about requests."""

_BY_LETTER: Final = {
    "D": "debug",
    "I": "info",
    "W": "warning",
    "E": "error",
    "C": "critical",
    "T": "debug",
    "B": "debug",
}
"""supervisord's names of levels have four letters, ours are whole words."""

_TOLD: Final = frozenset(
    {"time", "level", "process", "logger", "message", "exception", "model", "version", "slot", "request_id"}
    | {"request_ids", "trace_id", "method", "route", "status"}
)
"""Fields that a readable line has said already, in its head or its message."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of one process's log, and what is known of the message that it belongs to."""

    at_s: float
    """Seconds since the epoch; 0 before the first message."""
    program: str
    text: str
    """As it stands in the file."""
    level: str = "info"
    request_ids: tuple[str, ...] = ()
    fields: Mapping[str, Any] | None = None
    """Of a line of JSON."""

    def is_at_least(self, level: str) -> bool:
        """Whether the message is of this level or a more severe one."""
        return LEVELS.index(self.level) >= LEVELS.index(level)


class LineReader:
    """Reads one process's log, line after line."""

    def __init__(self, program: str) -> None:
        self._last = LogLine(0.0, program, "")

    def read(self, lines: Iterable[str]) -> Iterator[LogLine]:
        """What each line says. One without a time, as in a traceback, belongs to the message before it."""
        for text in lines:
            read = self._json(text) if text.startswith("{") else self._text(text)
            self._last = read
            yield read

    def _text(self, text: str) -> LogLine:
        match = _TEXT.fullmatch(text)
        if match is None:
            if self._last.fields is None:
                return replace(self._last, text=text)
            # Messages in JSON have one line: this is something that the model, or a library, has printed.
            return LogLine(self._last.at_s, self._last.program, text)
        moment, milliseconds, level, rest = match.groups()
        request = _REQUEST.match(rest)
        return LogLine(
            _local(moment) + int(milliseconds) / 1000,
            self._last.program,
            text,
            _BY_LETTER.get((level or "I")[0], "info"),
            tuple(request[1].split(", ")) if request else (),
        )

    def _json(self, text: str) -> LogLine:
        try:
            fields = json.loads(text)
            at_s = datetime.fromisoformat(fields["time"]).timestamp()
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._text(text)
        ids = fields.get("request_ids") or [fields.get("request_id")]
        level = fields.get("level")
        return LogLine(
            at_s,
            self._last.program,
            text,
            level if level in LEVELS else "info",
            tuple(str(one) for one in ids if one) if isinstance(ids, list) else (),
            fields,
        )


def merge_lines(logs: Iterable[Sequence[LogLine]], count: int) -> list[LogLine]:
    """The last lines of several logs together, by time; lines of one log keep their order."""
    if count <= 0:
        return []
    return sorted((line for lines in logs for line in lines), key=lambda line: line.at_s)[-count:]


def readable(line: LogLine) -> str:
    """A line for people: text as it is, JSON as text would have been, with what else it says behind it."""
    fields = line.fields
    if fields is None:
        return line.text
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(line.at_s)))
    milliseconds = round(1000 * line.at_s) % 1000
    more = "".join(f" {name}={value}" for name, value in fields.items() if name not in _TOLD)
    exception = f"\n{fields['exception']}" if fields.get("exception") else ""
    return (
        f"{at},{milliseconds:03d} {line.level.upper()} {fields.get('process', line.program)} "
        f"{subject_of(fields)}{fields.get('message', '')}{more}{exception}"
    )


def as_json(line: LogLine) -> str:
    """A line for machines: JSON as it is, anything else as the message of an object."""
    if line.fields is not None:
        return line.text
    fields = {"time": utc_time(line.at_s), "level": line.level, "process": line.program, "message": line.text}
    return json_line(fields)


@lru_cache(maxsize=64)
def _local(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
