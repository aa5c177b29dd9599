"""How every process of a host logs: one line for each event, as JSON or as text, on standard error.

What an event is about (a request, its trace) is given as `extra`, never written into the message; both formats know
what to do with it. Bodies, headers and queries of requests are never logged.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final

from host.protocol.trace_context import trace_id_of

JSON: Final = "json"
TEXT: Final = "text"
FORMATS: Final = (TEXT, JSON)

TEXT_MAX_CHARS: Final = 32 * 1024
"""Of a message, and of a traceback: what is beyond it in the middle is left out."""

VALUE_MAX_CHARS: Final = 1024
"""Of anything else."""

IDS_MAX: Final = 16
"""Requests that a line of a batch names."""

_ORDER: Final = ("time", "level", "process", "logger", "message", "model", "version", "slot", "request_id", "trace_id")
"""What lines begin with; the rest follows as it was given."""

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes of every record: any other one was given as `extra`."""

Fields = Mapping[str, object]


def about(request_id: str, traceparent: str = "") -> dict[str, object]:
    """`extra` of an event of one request."""
    fields: dict[str, object] = {"request_id": request_id}
    trace_id = trace_id_of(traceparent)
    if trace_id:
        fields["trace_id"] = trace_id
    return fields


def configure(process: str, level: str, log_format: str, **fields: object) -> Lines:
    """Send everything that is logged in this process to standard error: warnings and uncaught exceptions as well.

    `fields`: what every line says of the process beside its name; None is left out. The formatter is returned for
    whoever can say more later (`Lines.context`).
    """
    known = {name: value for name, value in fields.items() if value is not None}
    formatter: Lines = JsonLines(process, known) if log_format == JSON else TextLines(process, known)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda ended: _log_uncaught(ended.exc_type, ended.exc_value, ended.exc_traceback)
    return formatter


def _log_uncaught(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is None or issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger().critical("uncaught exception", exc_info=(kind, error, traceback))


class Lines(logging.Formatter):
    """What both formats have in common."""

    def __init__(self, process: str, fields: Fields) -> None:
        super().__init__()
        self._process = process
        self._fields = fields
        self.context: Callable[[], Fields] = dict
        """What is being worked on as a line is written, where the line itself does not say it."""

    def about(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a record is about, beside its message: later ones win."""
        given = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return {**self._fields, **self.context(), **given}

    def exception(self, record: logging.LogRecord) -> str:
        """The record's traceback, and stack; empty if it has none."""
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        return _shortened("\n".join(parts), TEXT_MAX_CHARS)


class TextLines(Lines):
    """For people: time (local), level, process, message; a traceback follows on lines of its own."""

    default_msec_format = "%s,%03d"

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        fields = self.about(record)
        message = _shortened(record.getMessage(), TEXT_MAX_CHARS)
        exception = self.exception(record)
        subject = subject_of(fields)
        line = f"{self.formatTime(record)} {record.levelname} {self._process} {subject}{message}"
        return f"{line}\n{exception}" if exception else line


def subject_of(fields: Fields) -> str:
    """What a text begins with that is about a request: `request abc: `; empty if it is about none."""
    request_id, several, trace_id = fields.get("request_id"), fields.get("request_ids"), fields.get("trace_id")
    trace = f" (trace {trace_id})" if trace_id else ""
    if request_id:
        return f"request {request_id}{trace}: "
    return f"requests {', '.join(map(str, several))}: " if isinstance(several, list | tuple) else ""


class JsonLines(Lines):
    """For machines: one JSON object in one line, its time in UTC, a traceback in the field `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = {
            "time": utc_time(int(record.created) + int(record.msecs) / 1000),  # the milliseconds that text has, too
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": _shortened(record.getMessage(), TEXT_MAX_CHARS),
            **{name: _value(value) for name, value in self.about(record).items()},
        }
        exception = self.exception(record)
        if exception:
            line["exception"] = exception
        return json_line(line)


def json_line(fields: Fields) -> str:
    """Write a line, what every line has first."""
    ordered = {name: fields[name] for name in _ORDER if name in fields}
    text = json.dumps({**ordered, **fields}, ensure_ascii=False, separators=(",", ":"))
    # An unpaired surrogate is no text.
    return text.encode("utf-8", "backslashreplace").decode()


def utc_time(at_s: float) -> str:
    """Seconds since the epoch as RFC 3339 with milliseconds, cut as `logging` cuts them."""
    milliseconds = int(1000 * at_s + 0.01)  # a whole one that a float cannot hold stays one
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{whole}.{milliseconds % 1000:03d}Z"


def _value(value: object) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [_value(one) for one in value[:IDS_MAX]]
    return _shortened(str(value), VALUE_MAX_CHARS)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = limit // 2
    return f"{text[:kept]} ... ({len(text) - 2 * kept} characters left out) ... {text[-kept:]}"
