"""A client of supervisord: XML-RPC over its Unix socket, blocking for commands and asynchronous for control.

One call is one connection: supervisord answers in half a millisecond and closes.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from host.protocol.errors import HostError

CALL_TIMEOUT_S: Final = 5.0
"""supervisord answers between two turns of its loop, which last up to a second."""

FAULT_SHUTDOWN_STATE: Final = 6
FAULT_BAD_NAME: Final = 10
FAULT_ALREADY_STARTED: Final = 60
FAULT_NOT_RUNNING: Final = 70
_READ_BYTES: Final = 65536


class SupervisorUnreachable(HostError):
    """Nobody answers on the socket, not in time, or not as supervisord does."""


class SupervisorFault(HostError):
    """supervisord refused the call; `code` is its number for the reason."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ProcessState(enum.IntEnum):
    """supervisord's states of a process."""

    STOPPED = 0
    STARTING = 10
    RUNNING = 20
    BACKOFF = 30
    STOPPING = 40
    EXITED = 100
    FATAL = 200
    UNKNOWN = 1000

    @property
    def alive(self) -> bool:
        """Whether there is a process, or supervisord is about to start one."""
        return self in (self.STARTING, self.RUNNING, self.BACKOFF, self.STOPPING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """One process as supervisord sees it. Times are seconds since the epoch, 0 for never."""

    group: str
    name: str
    state: ProcessState
    pid: int
    """0 when there is none."""
    start_s: int
    stop_s: int
    exit_status: int
    """Of the last exit; -1 for a signal, 0 also while it runs."""
    spawn_error: str

    @property
    def program(self) -> str:
        """The name that `supervisorctl status` shows: `churn.v3:0`, or the group's when both are the same."""
        return self.group if self.group == self.name else f"{self.group}:{self.name}"


class SupervisorClient:
    """Calls supervisord and waits. Every call raises `SupervisorUnreachable` or `SupervisorFault`."""

    def __init__(self, path: Path, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def call(self, method: str, *parameters: Any) -> Any:
        """Call `supervisor.<method>`."""
        deadline = time.monotonic() + self._timeout_s
        received = bytearray()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(self._timeout_s)
                sock.connect(str(self._path))
                sock.sendall(request_bytes(method, parameters))
                while part := sock.recv(_READ_BYTES):
                    received += part
                    sock.settimeout(max(0.001, deadline - time.monotonic()))
        except OSError as error:
            raise _unreachable(self._path, error) from error
        return answer_value(bytes(received), method)

    def processes(self) -> list[ProcessInfo]:
        """Every process, by group and name."""
        return [process_info(fields) for fields in self.call("getAllProcessInfo")]

    def pid(self) -> int:
        """supervisord's own pid."""
        return int(self.call("getPID"))


class AsyncSupervisorClient:
    """The same on an event loop."""

    def __init__(self, path: Path, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def call(self, method: str, *parameters: Any) -> Any:
        """Call `supervisor.<method>`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_unix_connection(str(self._path))
                try:
                    writer.write(request_bytes(method, parameters))
                    received = await reader.read(-1)
                finally:
                    writer.close()
        except OSError as error:  # TimeoutError is one
            raise _unreachable(self._path, error) from error
        return answer_value(received, method)

    async def processes(self) -> list[ProcessInfo]:
        """Every process, by group and name."""
        return [process_info(fields) for fields in await self.call("getAllProcessInfo")]

    async def stop_all(self, programs: Sequence[str]) -> None:
        """Send every one its stop signal without waiting for its end; one that does not run is left alone."""
        for program in programs:
            try:
                await self.call("stopProcess", program, False)
            except SupervisorFault as fault:
                if fault.code not in (FAULT_NOT_RUNNING, FAULT_BAD_NAME):
                    raise


def request_bytes(method: str, parameters: Sequence[Any]) -> bytes:
    """Write a call as one HTTP request: of `supervisor.<method>`, or of another interface's if the name has a dot."""
    name = method if "." in method else f"supervisor.{method}"
    body = xmlrpc.client.dumps(tuple(parameters), name).encode()
    head = f"POST /RPC2 HTTP/1.0\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answer_value(received: bytes, method: str) -> Any:
    """Read the whole answer of a call. Raises `SupervisorUnreachable` and `SupervisorFault`."""
    head, separator, body = received.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if not separator or len(status) < 2 or status[1] != b"200":
        first = head[:100].decode("latin-1")
        raise SupervisorUnreachable(f"supervisord: {method}: expected an HTTP 200 answer, received {first!r}")
    try:
        values, _ = xmlrpc.client.loads(body)
    except xmlrpc.client.Fault as fault:
        raise SupervisorFault(f"supervisord: {method}: {fault.faultString}", int(fault.faultCode)) from fault
    except Exception as error:  # the XML parser's errors have no common base below Exception
        raise SupervisorUnreachable(f"supervisord: {method}: the answer cannot be read: {error}") from error
    return values[0]


def process_info(fields: Mapping[str, Any]) -> ProcessInfo:
    """Read one element of `getAllProcessInfo`."""
    return ProcessInfo(
        group=fields["group"],
        name=fields["name"],
        state=ProcessState(fields["state"]),
        pid=fields["pid"],
        start_s=fields["start"],
        stop_s=fields["stop"],
        exit_status=fields["exitstatus"],
        spawn_error=fields["spawnerr"],
    )


def _unreachable(path: Path, error: OSError) -> SupervisorUnreachable:
    reason = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return SupervisorUnreachable(f"supervisord does not answer on {path}: {reason}")
