"""The access log: a line for some requests and every failure, written after their answers went out.

Both lanes count down to the next request that is drawn, which is all that the others cost. Lines are gathered and
written together a moment later, without ever waiting for whoever reads them: what does not fit is left out and counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import select
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from host.front.sampling import requests_skipped
from host.protocol.logs import JSON, subject_of, utc_time
from host.protocol.trace_context import trace_id_of

FAILED_MIN_STATUS: Final = 500

FAILURES_PER_S: Final = 100
"""Lines of failures that were not drawn, in each second of one front."""

WAITING_MAX: Final = 256
"""Lines that wait to be written: with `WRITE_AFTER_S` some 5,000 a second."""

WRITE_AFTER_S: Final = 0.05
"""From the first line that waits to the write of all."""

TOLD_AFTER_S: Final = 1.0
"""From one word on how many lines were left out to the next."""

_NS_PER_S: Final = 1_000_000_000
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"})
_OTHER: Final = "_OTHER"
"""A method that is none, as OpenTelemetry's conventions write it: its text is the client's."""


class Access(NamedTuple):
    """One request and its answer. No path, query, header or body: those are the client's."""

    received_ns: int
    """CLOCK_MONOTONIC."""
    method: str
    route: str
    """The pattern that the path fitted; empty: none."""
    status: int
    in_bytes: int
    out_bytes: int
    """Of the bodies, as they were sent."""
    model: str = ""
    version: str = ""
    slot: int | None = None
    """Whose answer it is; None: the front's own."""
    code: str = ""
    """Of an error."""
    request_id: str = ""
    traceparent: str = ""


class AccessLog:
    """Of one front."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: str,
        log_format: str,
        share: float,
        write: Callable[[bytes], bool],
        draw: Callable[[], float] = random.random,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`write`: writes whole lines and does not wait, False if there is no room; `draw`: from 0 to below 1."""
        self._clock_ns = clock_ns
        self._loop = loop
        self._process = process
        self._line = _json_line if log_format == JSON else _text_line
        self._told = _json_told if log_format == JSON else _text_told
        self._share = share
        self._write = write
        self._draw = draw
        self.countdown = self._skipped()
        """Requests before the next one that is drawn. Both lanes take one off for each answer; below zero, or if
        the answer is a failure, they call `note`."""
        self._waiting: list[tuple[Access, float, int]] = []
        """With the time of the answer, and what it took."""
        self._lines: list[bytes] = []
        """Written out, and not taken yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._second = -1
        self._failures = 0
        self._left_out = 0
        self._told_ns = -_NS_PER_S

    def note(self, access: Access) -> None:
        """Have a line written for a request that was drawn, or failed."""
        now_ns = self._clock_ns()
        if self.countdown < 0:
            self.countdown = self._skipped()
        elif not self._may_tell_of_failure(now_ns):
            self._leave_out()
            return
        if len(self._waiting) + len(self._lines) >= WAITING_MAX:
            self._leave_out()
            return
        self._waiting.append((access, time.time(), now_ns - access.received_ns))
        self._write_soon(WRITE_AFTER_S)

    def close(self) -> None:
        """Write what waits, as far as there is room."""
        if self._timer is not None:
            self._timer.cancel()
        self._told_ns = -_NS_PER_S  # whatever was left out is told of now
        self._write_waiting()
        if self._timer is not None:
            self._timer.cancel()

    def _skipped(self) -> int:
        return requests_skipped(self._share, self._draw)

    def _may_tell_of_failure(self, now_ns: int) -> bool:
        second = now_ns // _NS_PER_S
        if second != self._second:
            self._second, self._failures = second, 0
        self._failures += 1
        return self._failures <= FAILURES_PER_S

    def _leave_out(self) -> None:
        self._left_out += 1
        self._write_soon(TOLD_AFTER_S)

    def _write_soon(self, after_s: float) -> None:
        if self._timer is None or self._timer.when() > self._loop.time() + after_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(after_s, self._write_waiting)

    def _write_waiting(self) -> None:
        self._timer = None
        now_ns = self._clock_ns()
        self._lines += [self._line(self._process, *waiting) for waiting in self._waiting]
        self._waiting.clear()
        if self._left_out and now_ns - self._told_ns >= TOLD_AFTER_S * _NS_PER_S and len(self._lines) <= WAITING_MAX:
            self._lines.append(self._told(self._process, self._left_out, time.time()))
            self._left_out, self._told_ns = 0, now_ns
        written = 0
        for lines in _pieces(self._lines):
            if not self._write(b"".join(lines)):
                break
            written += len(lines)
        del self._lines[:written]
        if self._lines:
            self._write_soon(WRITE_AFTER_S)
        elif self._left_out:
            self._write_soon(TOLD_AFTER_S)


def known_method(method: str) -> str:
    """A method of HTTP."""
    return method if method in _METHODS else _OTHER


def error_code(status: int, body: bytes | memoryview) -> str:
    """The code in an error's document; empty if there is none, as in an answer that is no error."""
    if status < 400:
        return ""
    try:
        decode = msgspec.json.decode if bytes(body[:1]) == b"{" else msgspec.msgpack.decode
        return decode(body, type=_ErrorDocument).code
    except msgspec.MsgspecError:
        return ""


class _ErrorDocument(msgspec.Struct):
    code: str


# -- lines --------------------------------------------------------------------------------------------------
def _json_line(process: str, access: Access, now_s: float, duration_ns: int) -> bytes:
    fields: dict[str, object] = {
        "time": utc_time(now_s),
        "level": "info",
        "process": process,
        "logger": "modelhost.access",
        "message": f"{access.method} {access.route or '-'} {access.status}",
    }
    for name in ("model", "version", "slot", "request_id"):
        value = getattr(access, name)
        if value not in ("", None):
            fields[name] = value
    trace_id = trace_id_of(access.traceparent)
    if trace_id:
        fields["trace_id"] = trace_id
    fields |= {
        "method": access.method,
        "route": access.route,
        "status": access.status,
        "duration_s": duration_ns / _NS_PER_S,
        "in_bytes": access.in_bytes,
        "out_bytes": access.out_bytes,
    }
    if access.code:
        fields["code"] = access.code
    return msgspec.json.encode(fields) + b"\n"


def _text_line(process: str, access: Access, now_s: float, duration_ns: int) -> bytes:
    subject = subject_of({"request_id": access.request_id, "trace_id": trace_id_of(access.traceparent)})
    whom = f" {access.model}.v{access.version}" if access.version else ""
    slot = f":{access.slot}" if access.slot is not None else ""
    code = f" {access.code}" if access.code else ""
    line = (
        f"{_local_time(now_s)} INFO {process} {subject}{access.method} {access.route or '-'}{whom}{slot} "
        f"{access.status}{code} {duration_ns / 1e6:.3f} ms, {access.in_bytes} bytes in, {access.out_bytes} out\n"
    )
    return line.encode()


def _json_told(process: str, left_out: int, now_s: float) -> bytes:
    fields = {
        "time": utc_time(now_s),
        "level": "warning",
        "process": process,
        "logger": "modelhost.access",
        "message": _told_text(left_out),
        "left_out": left_out,
    }
    return msgspec.json.encode(fields) + b"\n"


def _text_told(process: str, left_out: int, now_s: float) -> bytes:
    return f"{_local_time(now_s)} WARNING {process} {_told_text(left_out)}\n".encode()


def _told_text(left_out: int) -> str:
    return f"{left_out} lines of the access log were left out"


def _local_time(now_s: float) -> str:
    """As `logging` writes it."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now_s))},{int(now_s * 1000) % 1000:03d}"


def _pieces(lines: Sequence[bytes]) -> list[list[bytes]]:
    """Cut lines into what a pipe takes whole or not at all (pipe(7), PIPE_BUF)."""
    pieces: list[list[bytes]] = []
    size = select.PIPE_BUF
    for line in lines:
        if size + len(line) > select.PIPE_BUF:
            pieces.append([])
            size = 0
        pieces[-1].append(line)
        size += len(line)
    return pieces


# -- where they go -----------------------------------------------------------------------------------------
class StandardError:
    """This process' standard error, written to without ever waiting.

    It is opened once more for that: not to wait is a property of the open file, and the one that is there already
    belongs to `logging`, and to whoever else has it.
    """

    def __init__(self, path: str = "/proc/self/fd/2") -> None:
        self._file: int | None
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:  # a socket cannot be opened so
            logging.getLogger("modelhost.front").warning("no access log: standard error: %s", error.strerror)
            self._file = None

    def write(self, lines: bytes) -> bool:
        """Write whole lines, of which a pipe takes all or none; False: there is no room now."""
        if self._file is None:
            return True
        try:
            os.write(self._file, lines)
        except BlockingIOError:
            return False
        except OSError:  # whoever reads it is gone
            return True
        return True

    def close(self) -> None:
        """Close it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
