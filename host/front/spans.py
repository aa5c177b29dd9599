"""Ended traces to spans, by OpenTelemetry's conventions. Pure; what is made of spans on the wire is `otlp`'s."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from host.front.routes import Endpoint
from host.front.tracing import SPAN_ID_BITS, TRACE_ID_BITS, Trace
from host.protocol.messages import Operation

FAILED_MIN_STATUS = 500
NewId = Callable[[int], str]
"""A random id of so many bits in hexadecimal digits."""


class Kind(enum.Enum):
    """As OpenTelemetry calls it."""

    SERVER = "server"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class SpanId:
    """One span of one trace, both in hexadecimal digits."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """A moment of a span, in nanoseconds since the epoch."""

    name: str
    at_ns: int
    attributes: Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Nanoseconds since the epoch."""

    name: str
    identity: SpanId
    parent_id: str = ""
    """Of the same trace; empty: it is the first."""
    remote_parent: bool = False
    state: str = ""
    """`tracestate`."""
    kind: Kind = Kind.INTERNAL
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str | int]
    events: tuple[Event, ...] = ()
    links: tuple[SpanId, ...] = ()
    error: str | None = None
    """What went wrong; None: nothing."""


@dataclass(slots=True)
class _Batch:
    """A batch, and the traced requests in it."""

    identity: SpanId
    first: Trace
    members: list[SpanId] = field(default_factory=list)


def spans_of(traces: Sequence[Trace], epoch_ns: int, new_id: NewId) -> list[Span]:
    """Write spans of traces. `epoch_ns`: what CLOCK_MONOTONIC is behind the time since the epoch.

    A request's spans: the front's (of kind server), and below it `features`, `queue` and `inference`, as far as it
    came. A batch that holds others' rows as well has a span, in a trace of its own: it has no one parent. That and the
    `inference` of each traced request in it are linked both ways.
    """
    spans: list[Span] = []
    batches: dict[tuple[str, int], _Batch] = {}
    for trace in traces:
        spans.append(_server(trace, epoch_ns))
        if trace.features_ns:
            spans.append(_features(trace, epoch_ns, new_id))
        if trace.submitted_ns:
            spans.append(_queue(trace, epoch_ns, new_id))
        if trace.batch_ns:
            batch = None
            if trace.batch_rows > trace.rows:
                key = (trace.process, trace.batch_ns)
                if key not in batches:
                    batches[key] = _Batch(SpanId(new_id(TRACE_ID_BITS), new_id(SPAN_ID_BITS)), trace)
                batch = batches[key]
            spans.append(_inference(trace, batch, epoch_ns, new_id))
    spans += [_batch(batch, epoch_ns) for batch in batches.values()]
    return spans


def _server(trace: Trace, epoch_ns: int) -> Span:
    attributes: dict[str, str | int] = {"url.scheme": "http", "modelhost.request_id": trace.request_id}
    if trace.operation is Operation.READ_FEATURES:
        name = "read features"
    else:
        route = (Endpoint.INFER if trace.operation is Operation.INFER else Endpoint.V1_PREDICT).route
        name = f"POST {route}"
        attributes |= {
            "http.request.method": "POST",
            "http.route": route,
            "modelhost.model": trace.model,
            "modelhost.version": trace.version,
        }
    if trace.status:
        attributes["http.response.status_code"] = trace.status
    error = trace.code or str(trace.status) if not trace.status or trace.status >= FAILED_MIN_STATUS else None
    if error is not None:
        attributes["error.type"] = error
    return Span(
        name=name,
        identity=SpanId(trace.trace_id, trace.span_id),
        parent_id=trace.parent.span_id if trace.parent is not None else "",
        remote_parent=trace.parent is not None,
        state=trace.state,
        kind=Kind.SERVER,
        start_ns=trace.received_ns + epoch_ns,
        end_ns=trace.ended_ns + epoch_ns,
        attributes=attributes,
        events=tuple(
            Event(event.name, event.at_ns + epoch_ns, {"modelhost.process": event.process} if event.process else {})
            for event in trace.events
        ),
        error=error,
    )


def _below(
    trace: Trace,
    name: str,
    start_ns: int,
    end_ns: int,
    new_id: NewId,
    attributes: Mapping[str, str | int],
    links: tuple[SpanId, ...] = (),
) -> Span:
    return Span(
        name=name,
        identity=SpanId(trace.trace_id, new_id(SPAN_ID_BITS)),
        parent_id=trace.span_id,
        state=trace.state,
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=attributes,
        links=links,
    )


def _features(trace: Trace, epoch_ns: int, new_id: NewId) -> Span:
    end_ns = trace.features_end_ns or trace.ended_ns
    attributes = {"modelhost.process": trace.features_process} if trace.features_process else {}
    return _below(trace, "features", trace.features_ns + epoch_ns, end_ns + epoch_ns, new_id, attributes)


def _queue(trace: Trace, epoch_ns: int, new_id: NewId) -> Span:
    """In the front and in the worker: from its submission to the beginning of its batch."""
    end_ns = max(trace.submitted_ns, trace.batch_ns) if trace.batch_ns else trace.ended_ns
    name = "features" if trace.operation is Operation.READ_FEATURES else "queue"
    return _below(trace, name, trace.submitted_ns + epoch_ns, end_ns + epoch_ns, new_id, {})


def _inference(trace: Trace, batch: _Batch | None, epoch_ns: int, new_id: NewId) -> Span:
    start_ns = trace.batch_ns + epoch_ns
    attributes = {**_batch_attributes(trace), "modelhost.rows": trace.rows}
    links = () if batch is None else (batch.identity,)
    span = _below(trace, "inference", start_ns, start_ns + trace.inference_ns, new_id, attributes, links)
    if batch is not None:
        batch.members.append(span.identity)
    return span


def _batch(batch: _Batch, epoch_ns: int) -> Span:
    first = batch.first
    start_ns = first.batch_ns + epoch_ns
    return Span(
        name=f"batch {first.model}",
        identity=batch.identity,
        start_ns=start_ns,
        end_ns=start_ns + first.inference_ns,
        attributes={
            **_batch_attributes(first),
            "modelhost.model": first.model,
            "modelhost.version": first.version,
        },
        links=tuple(batch.members),
    )


def _batch_attributes(trace: Trace) -> dict[str, str | int]:
    """What is the same in every front: where traces of two fronts were in one batch, this says so."""
    return {
        "modelhost.process": trace.process,
        "modelhost.batch.id": f"{trace.process}/{trace.batch_ns:x}",
        "modelhost.batch.rows": trace.batch_rows,
    }
