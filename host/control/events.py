"""supervisord's event listener protocol, sans-I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
