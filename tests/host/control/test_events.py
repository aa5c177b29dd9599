"""supervisord's event stream, cut anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.control.events import EventDecoder, EventProtocolError, StateEvent


def written(name: str, payload: str) -> bytes:
    """An event as supervisord writes it."""
    header = f"ver:3.0 server:modelhost serial:1 pool:control poolserial:1 eventname:{name} len:{len(payload)}\n"
    return (header + payload).encode()


EXITED = written("PROCESS_STATE_EXITED", "processname:0 groupname:churn.v3 from_state:RUNNING expected:0 pid:7")
STARTING = written("PROCESS_STATE_STARTING", "processname:control groupname:control from_state:STOPPED tries:0")
TICK = written("TICK_5", "when:1")
EVENTS = [
    StateEvent(program="churn.v3:0", to_state="EXITED", from_state="RUNNING", pid=7, expected=False),
    StateEvent(program="control", to_state="STARTING", from_state="STOPPED", pid=0, expected=True),
    None,
]


@given(st.lists(st.integers(0, len(EXITED + STARTING + TICK))))
def test_events_are_whole_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    stream = EXITED + STARTING + TICK
    decoder = EventDecoder()
    places = [0, *sorted(cuts), len(stream)]
    found = [event for start, end in itertools.pairwise(places) for event in decoder.feed(stream[start:end])]
    assert found == EVENTS


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b"len:-1\n", b"len:x\n", b"x" * 5000])
def test_what_is_no_header_is_named(line: bytes) -> None:
    with pytest.raises(EventProtocolError, match="expected a header"):
        EventDecoder().feed(line)
