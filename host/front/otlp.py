"""Sends traces to a collector, by OTLP over HTTP, from a thread: requests never wait for it.

The only module that knows OpenTelemetry's SDK, an optional extra; it is imported when the setting `otlp_endpoint` is
set, and not before.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

import host
from host.front.spans import Kind, Span, SpanId, spans_of
from host.front.tracing import TRACES_PER_S, Trace, Tracer

logger = logging.getLogger("modelhost.front")

SEND_EVERY_S: Final = 1.0
"""A trace is seen a second after its request."""

TRACES_AT_ONCE: Final = 64
"""In one message to the collector. Encoding that many takes some 10 ms of this thread, a little at a time."""

SEND_TIMEOUT_S: Final = 5.0
"""For one message, with all tries."""

TOLD_EVERY_S: Final = 60.0
"""From one word on what did not arrive to the next."""

SWITCH_S: Final = 0.0005
"""How long this thread may keep the interpreter from the loop; Python's own is 5 ms, which requests would feel."""

_KINDS: Final = {Kind.SERVER: SpanKind.SERVER, Kind.INTERNAL: SpanKind.INTERNAL}


class TraceSender:
    """The thread, and what it could not send."""

    def __init__(self, endpoint: str, tracer: Tracer, process: str) -> None:
        """`endpoint`: the collector's base URL; traces go to `/v1/traces` below it, as the protocol says."""
        self._endpoint = endpoint
        self._tracer = tracer
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_TIMEOUT_S)
        self._resource = Resource(
            {
                "service.name": "modelhost",
                "service.version": host.__version__,
                "service.instance.id": f"{socket.gethostname()}/{process}",
                "host.name": socket.gethostname(),
            }
        )
        self._scope = InstrumentationScope("modelhost.front", host.__version__)
        self._first = _FirstMessage()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._lost = 0
        self._dropped_told = 0
        self._told_s = -TOLD_EVERY_S

    def start(self) -> None:
        """Begin to send. OpenTelemetry's own words on every message that fails are kept, and told once a minute."""
        sys.setswitchinterval(SWITCH_S)
        theirs = logging.getLogger("opentelemetry")
        theirs.addHandler(self._first)
        theirs.propagate = False
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Send what is there, within the limit; what is not sent by then is lost."""
        self._stop.set()
        self._thread.join(limit_s)

    def _run(self) -> None:
        while True:
            stopping = self._stop.wait(SEND_EVERY_S)
            while traces := self._tracer.take(TRACES_AT_ONCE):
                if not self._send(traces):
                    self._lost += len(traces)
                    break
            self._tell()
            if stopping:
                self._exporter.shutdown()  # type: ignore[no-untyped-call]
                return

    def _send(self, traces: Sequence[Trace]) -> bool:
        self._first.text = ""
        try:
            spans = spans_of(traces, wall_offset_ns(), self._tracer.new_id)
            return self._exporter.export(self._sdk_spans(spans)) is SpanExportResult.SUCCESS
        except Exception as error:  # a defect costs these traces, and not all that come
            self._first.text = repr(error)[:300]
            return False

    def _tell(self) -> None:
        dropped = self._tracer.dropped
        not_sent = self._lost + dropped - self._dropped_told
        if not_sent and time.monotonic() - self._told_s >= TOLD_EVERY_S:
            self._told_s = time.monotonic()
            self._lost, self._dropped_told = 0, dropped
            reason = self._first.text or f"only {TRACES_PER_S} a second are made"
            logger.warning("%d traces did not get to %s: %s", not_sent, self._endpoint, reason)

    # -- as the SDK has it ----------------------------------------------------------------------------------
    def _sdk_spans(self, spans: Sequence[Span]) -> list[ReadableSpan]:
        return [
            ReadableSpan(
                name=span.name,
                context=_context(span.identity, span.state),
                parent=_context(SpanId(span.identity.trace_id, span.parent_id), span.state, remote=span.remote_parent)
                if span.parent_id
                else None,
                resource=self._resource,
                attributes=span.attributes,
                events=[SdkEvent(event.name, event.attributes, event.at_ns) for event in span.events],
                links=[Link(_context(identity)) for identity in span.links],
                kind=_KINDS[span.kind],
                status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error),
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=self._scope,
            )
            for span in spans
        ]


def _context(identity: SpanId, state: str = "", *, remote: bool = False) -> SpanContext:
    return SpanContext(
        int(identity.trace_id, 16),
        int(identity.span_id, 16),
        is_remote=remote,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState.from_header([state]) if state else TraceState(),
    )


class _FirstMessage(logging.Handler):
    """Keeps what is logged first of a message that fails: the cause. What follows is about tries."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.text = self.text or " ".join(record.getMessage().split())[:300]


def wall_offset_ns() -> int:
    """What is added to a monotonic time for that of the day: of three looks at both clocks the one least held up."""
    looks = []
    for _ in range(3):
        before_ns, wall_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        looks.append((after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2))
    return min(looks)[1]
