"""supervisord's event listener protocol, sans-I/O, and what control keeps of the events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from host.control.status import ExitStatus

READY: Final = b"READY\n"
DONE: Final = b"RESULT 2\nOK"
"""Taken; supervisord sends the next event after this and `READY`."""

_STATE_PREFIX: Final = "PROCESS_STATE_"
_HEADER_MAX_BYTES: Final = 4096


class EventProtocolError(ValueError):
    """The bytes are not events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateEvent:
    """A process changed its state."""

    program: str
    to_state: str
    from_state: str
    pid: int
    expected: bool


class EventDecoder:
    """Cuts supervisord's stream into events: a header line with `len:N`, then N bytes."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[StateEvent | None]:
        """Take what arrived; one element for each whole event, None for one that is no change of state."""
        self._pending += data
        events: list[StateEvent | None] = []
        while True:
            line, newline, rest = self._pending.partition(b"\n")
            if not newline:
                if len(line) > _HEADER_MAX_BYTES:
                    raise EventProtocolError(f"expected a header line of at most {_HEADER_MAX_BYTES} bytes")
                return events
            header = _fields(line)
            length = header.get("len", "")
            if not length.isdigit():
                raise EventProtocolError(f"expected a header with len:N, received {line[:100]!r}")
            if len(rest) < int(length):
                return events
            events.append(_state_event(header.get("eventname", ""), rest[: int(length)]))
            self._pending = rest[int(length) :]


def _fields(line: bytes) -> dict[str, str]:
    pairs = (word.partition(":") for word in line.decode("utf-8", "replace").split())
    return {name: value for name, _, value in pairs}


def _state_event(name: str, payload: bytes) -> StateEvent | None:
    if not name.startswith(_STATE_PREFIX):
        return None
    fields = _fields(payload)
    group, process = fields.get("groupname", ""), fields.get("processname", "")
    return StateEvent(
        program=group if group == process else f"{group}:{process}",
        to_state=name.removeprefix(_STATE_PREFIX),
        from_state=fields.get("from_state", ""),
        pid=int(fields.get("pid", "0")),
        expected=fields.get("expected", "1") == "1",
    )


@dataclass(slots=True)
class History:
    """What happened to one process since control runs."""

    starts: int = 0
    last_exit: ExitStatus | None = None

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, self.starts - 1)


@dataclass(slots=True)
class Histories:
    """The history of every process, by program name."""

    by_program: dict[str, History] = field(default_factory=dict)

    def record(self, event: StateEvent, now: float) -> None:
        """Count a start, remember an end that nobody asked for. `now`: seconds since the epoch."""
        history = self.by_program.setdefault(event.program, History())
        match event.to_state:
            case "STARTING":
                history.starts += 1
            case "EXITED":
                reason = "ended by itself" if event.expected else "exited with an error or was killed"
                history.last_exit = ExitStatus(at=now, pid=event.pid, reason=reason)
            case "BACKOFF":
                history.last_exit = ExitStatus(at=now, pid=0, reason="exited too soon after its start")
            case "FATAL":
                history.last_exit = ExitStatus(at=now, pid=0, reason="exited too soon too often; not started again")

    def of(self, program: str) -> History:
        """The history of a process; empty if nothing happened."""
        return self.by_program.get(program, _NOTHING_HAPPENED)

    def view(self) -> Mapping[str, History]:
        """All of them."""
        return self.by_program


_NOTHING_HAPPENED: Final = History()
