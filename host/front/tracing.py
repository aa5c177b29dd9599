"""What is noted of a traced request, and when: no span is made here, and nothing is sent (`spans`, `otlp`)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from host.front.gateway import Call
from host.front.sampling import requests_skipped
from host.protocol.messages import Operation, ResponseHead
from host.protocol.trace_context import TraceParent, read_traceparent, read_tracestate

QUEUE_MAX: Final = 2048
"""Ended traces that wait to be sent."""

TRACES_PER_S: Final = 200
"""Traces that one front begins in a second. To write and encode the spans of one takes 100 to 150 us of the front's
core, so this is 2 to 3 % of it (docs/adr/0031); a caller cannot make it more by its flag."""

TRACE_ID_BITS: Final = 128
SPAN_ID_BITS: Final = 64
_ROWS_MAX: Final = 1 << 32
_NS_PER_S: Final = 1_000_000_000


class TraceEvent(NamedTuple):
    """Something that happened to a request at one moment (CLOCK_MONOTONIC)."""

    name: str
    at_ns: int
    process: str


class Trace:
    """One traced request. Times are CLOCK_MONOTONIC; 0: it did not come to that."""

    __slots__ = (
        "batch_ns",
        "batch_rows",
        "code",
        "ended_ns",
        "events",
        "features_end_ns",
        "features_ns",
        "features_process",
        "inference_ns",
        "model",
        "operation",
        "parent",
        "process",
        "received_ns",
        "request_id",
        "rows",
        "span_id",
        "state",
        "status",
        "submitted_ns",
        "trace_id",
        "version",
    )

    def __init__(self, call: Call, parent: TraceParent | None, trace_id: str, span_id: str) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        """Of the front's span."""
        self.parent = parent
        self.state = read_tracestate(call.tracestate) if parent is not None and call.tracestate else ""
        self.operation: Operation = call.operation
        self.request_id = call.request_id
        self.received_ns = call.received_ns
        self.submitted_ns = 0
        """To the workers of a version: the last time, if another one had to take over."""
        self.features_ns = 0
        self.features_end_ns = 0
        self.features_process = ""
        self.events: list[TraceEvent] = []
        self.process = ""
        """Whom it was sent to last."""
        self.batch_ns = 0
        """The beginning of its batch. On one worker no two batches begin at once: with `process` it names the batch."""
        self.inference_ns = 0
        """A duration."""
        self.rows = 0
        self.batch_rows = 0
        self.ended_ns = 0
        self.status = 0
        """Of HTTP; 0: the client went away."""
        self.code = ""
        self.model, self.version = call.pool

    def sent(self, process: str, at_ns: int) -> None:
        """It is on its way to a worker, maybe not for the first time."""
        again = bool(self.process)
        self.process = process
        self.events.append(TraceEvent("sent again" if again else "sent", at_ns, process))

    def lost(self, process: str, at_ns: int) -> None:
        """The worker that had it is gone."""
        if not self.ended_ns:
            self.events.append(TraceEvent("worker lost", at_ns, process))

    def answered(self, call: Call, head: ResponseHead, now_ns: int) -> None:
        """A worker answered, and said how long it took. That is its own word: nothing lasts longer than the whole."""
        self.model, self.version = call.pool
        self.status = head.status
        if head.batch_rows:
            self.batch_ns = min(max(self.received_ns, self.received_ns + head.queue_ns), now_ns)
            self.inference_ns = min(max(0, head.inference_ns), now_ns - self.batch_ns)
            self.rows, self.batch_rows = min(max(0, head.rows), _ROWS_MAX), min(max(0, head.batch_rows), _ROWS_MAX)


class Tracer:
    """Says which requests are traced, and holds what is known of those that have ended until it is taken."""

    def __init__(
        self,
        share: float,
        draw: Callable[[], float] = random.random,
        bits: Callable[[int], int] = random.getrandbits,
    ) -> None:
        """`draw`: from 0 to below 1; `bits`: so many random bits."""
        self._share = share
        self._draw = draw
        self._bits = bits
        self._countdown = requests_skipped(share, draw)
        self._ended: deque[Trace] = deque()
        self.dropped = 0
        """Requests that were to be traced and were not: too many in their second, or no room for what ended."""
        self._second = -1
        self._begun = 0

    def draws(self, traceparent: str) -> bool:
        """Whether a request may be traced: its caller says something of it, or it is drawn. Once for each request."""
        if traceparent:
            return True
        self._countdown -= 1
        return self._countdown < 0

    def begin(self, call: Call) -> Trace | None:
        """The trace of a request that `draws` is true for; None if its caller wants none, or there are too many."""
        parent = read_traceparent(call.traceparent) if call.traceparent else None
        if parent is None:
            self._countdown = requests_skipped(self._share, self._draw)
        elif not parent.sampled:
            return None
        if not self._may_begin(call.received_ns):
            self.dropped += 1
            return None
        trace_id = parent.trace_id if parent is not None else self.new_id(TRACE_ID_BITS)
        return Trace(call, parent, trace_id, self.new_id(SPAN_ID_BITS))

    def _may_begin(self, now_ns: int) -> bool:
        second = now_ns // _NS_PER_S
        if second != self._second:
            self._second, self._begun = second, 0
        self._begun += 1
        return self._begun <= TRACES_PER_S

    def new_id(self, size_bits: int) -> str:
        """A random number that is not zero, in hexadecimal digits."""
        return f"{self._bits(size_bits) or 1:0{size_bits // 4}x}"

    def end(self, trace: Trace, at_ns: int) -> None:
        """Keep a trace until it is taken, if there is room."""
        if trace.ended_ns:
            return
        trace.ended_ns = at_ns
        if len(self._ended) >= QUEUE_MAX:
            self.dropped += 1
        else:
            self._ended.append(trace)

    def take(self, most: int) -> list[Trace]:
        """The oldest ended traces. Any one thread may call this."""
        return [self._ended.popleft() for _ in range(min(most, len(self._ended)))]


def written(trace: Trace) -> str:
    """The `traceparent` for whoever is asked next."""
    return str(TraceParent(trace.trace_id, trace.span_id, sampled=True))
