"""What is noted of traced calls by the gateway, and the spans that are made of it."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import Any

import pytest

from host.config.deployment import DeployedModel
from host.front.gateway import FEATURES_POOL, Call, Fallback, Gateway
from host.front.outcomes import private_words
from host.front.sampling import requests_skipped
from host.front.spans import Kind, Span, spans_of
from host.front.traced_gateway import TracedGateway
from host.front.tracing import QUEUE_MAX, TRACES_PER_S, Trace, Tracer
from host.protocol.errors import RequestError
from host.protocol.messages import Encoding, Hello, Limits, Operation, RequestHead, ResponseHead
from host.protocol.types import Signature, TensorSpec

PLAIN = Signature((TensorSpec("x", "FP64", (-1, 1)),), (TensorSpec("y", "FP64", (-1, 1)),))
FEATURED = Signature((TensorSpec("x", "FP64", (-1, 1), ("users.x",)),), (TensorSpec("y", "FP64", (-1, 1)),))
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EPOCH_NS = 10**18


def model(version: str, signature: Signature = PLAIN) -> DeployedModel:
    return DeployedModel(
        name="m",
        version=version,
        processes=1,
        package=f"/m/{version}",
        platform="python",
        signature=signature,
        limits=Limits(),
        default=version == "1",
    )


class Link:
    def __init__(self, identity: int, program: str) -> None:
        self.identity = identity
        self.program = program
        self.sent: list[RequestHead] = []

    def send(self, request: RequestHead) -> None:
        self.sent.append(request)

    def close(self) -> None: ...


class Client:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def answered(self, call: Call, head: ResponseHead, body: bytes) -> None:
        self.told.append(head.status)

    def refused(self, call: Call, error: RequestError) -> None:
        self.told.append(error.code)


class Rig:
    def __init__(self, *models: DeployedModel, share: float = 0.0) -> None:
        numbers = itertools.count(1)
        self.tracer = Tracer(share, lambda: 0.5, lambda bits: next(numbers))
        self.gateway = TracedGateway(asyncio.get_running_loop(), models or [model("1")], private_words, self.tracer)
        self.client = Client()
        self.links: dict[str, Any] = {}

    def join(self, program: str, key: tuple[str, str] = ("m", "1")) -> Any:
        link: Any = Link(len(self.links) + 1, program)
        self.links[program] = link
        self.gateway.joined(link, Hello(*key, 0, 1, "python", PLAIN, Limits()))
        return link

    def submit(self, traceparent: str = f"00-{TRACE_ID}-{PARENT_ID}-01", version: str = "1", **named: Any) -> Call:
        now_ns = time.monotonic_ns()
        call = Call(
            sequence=0,
            client=self.client,
            pool=("m", version),
            deadline_ns=now_ns + 10**10,
            operation=Operation.INFER,
            body=b"body",
            encoding=Encoding.JSON,
            request_id="r",
            traceparent=traceparent,
            **{"received_ns": now_ns, **named},
        )
        self.gateway.submit(call, now_ns)
        return call

    def answer(self, link: Any, position: int = -1, status: int = 200, batch_rows: int = 1) -> None:
        asked = link.sent[position]
        queue_ns = time.monotonic_ns() - asked.received_ns
        head = ResponseHead(asked.sequence, status, rows=1, batch_rows=batch_rows, queue_ns=queue_ns, inference_ns=1)
        self.gateway.answered(link, head, b"answer")

    def spans(self) -> list[Span]:
        return spans_of(self.tracer.take(100), EPOCH_NS, self.tracer.new_id)


def events(span: Span) -> list[tuple[str, object]]:
    return [(event.name, event.attributes.get("modelhost.process")) for event in span.events]


async def test_a_callers_trace_goes_on() -> None:
    rig = Rig()
    worker = rig.join("m.v1:0")
    rig.submit(tracestate="a=1")
    rig.answer(worker)
    assert rig.client.told == [200]
    server, queue, inference = rig.spans()
    assert (server.identity.trace_id, server.parent_id, server.remote_parent) == (TRACE_ID, PARENT_ID, True)
    assert (server.kind, server.state, server.error) == (Kind.SERVER, "a=1", None)
    assert worker.sent[0].traceparent == f"00-{TRACE_ID}-{server.identity.span_id}-01"
    assert {queue.parent_id, inference.parent_id} == {server.identity.span_id}
    assert (queue.name, inference.name) == ("queue", "inference")
    assert queue.end_ns == inference.start_ns
    assert inference.end_ns - inference.start_ns == 1
    assert server.start_ns > EPOCH_NS
    assert events(server) == [("sent", "m.v1:0")]


@pytest.mark.parametrize(("share", "traced"), [(0.0, False), (1.0, True)])
async def test_one_without_a_traceparent_is_drawn(share: float, traced: bool) -> None:
    rig = Rig(share=share)
    worker = rig.join("m.v1:0")
    rig.submit("", tracestate="a=1")
    rig.answer(worker)
    spans = rig.spans()
    assert len(spans) == (3 if traced else 0)
    assert (worker.sent[0].traceparent != "") == traced
    if traced:
        assert (spans[0].parent_id, spans[0].remote_parent, spans[0].state) == ("", False, "")


async def test_a_caller_that_wants_no_trace_gets_none_and_its_header_goes_on() -> None:
    rig = Rig(share=1.0)
    worker = rig.join("m.v1:0")
    traceparent = f"00-{TRACE_ID}-{PARENT_ID}-00"
    rig.submit(traceparent)
    rig.answer(worker)
    assert rig.spans() == []
    assert worker.sent[0].traceparent == traceparent


async def test_the_plain_gateway_passes_it_on_as_it_is() -> None:
    rig = Rig()
    plain = rig.gateway = Gateway(asyncio.get_running_loop(), [model("1")])  # type: ignore[assignment]
    worker = rig.join("m.v1:0")
    call = rig.submit()
    assert worker.sent[0].traceparent == f"00-{TRACE_ID}-{PARENT_ID}-01"
    assert (call.trace, plain.in_flight) == (None, 1)


@pytest.mark.parametrize("said_ns", [-(1 << 63), -1, 0, (1 << 63) - 1])
async def test_a_worker_cannot_say_that_a_part_took_longer_than_the_whole(said_ns: int) -> None:
    rig = Rig()
    worker = rig.join("m.v1:0")
    rig.submit()
    head = ResponseHead(
        worker.sent[0].sequence, 200, rows=1, batch_rows=1 << 62, queue_ns=said_ns, inference_ns=said_ns
    )
    rig.gateway.answered(worker, head, b"answer")
    server, queue, inference, *_ = rig.spans()
    assert server.start_ns <= queue.start_ns <= queue.end_ns
    assert server.start_ns <= inference.start_ns <= inference.end_ns <= server.end_ns


async def test_features_have_a_span_of_their_own() -> None:
    rig = Rig(model("1", FEATURED))
    worker, features = rig.join("m.v1:0"), rig.join("features:0", FEATURES_POOL)
    rig.submit()
    rig.answer(features)
    rig.answer(worker)
    server, read, queue, inference = rig.spans()
    assert [read.name, queue.name, inference.name] == ["features", "queue", "inference"]
    assert read.attributes == {"modelhost.process": "features:0"}
    assert server.start_ns <= read.start_ns <= read.end_ns <= queue.start_ns <= queue.end_ns == inference.start_ns
    assert features.sent[0].traceparent == worker.sent[0].traceparent
    assert events(server) == [("sent", "m.v1:0")]


async def test_features_that_fail_end_the_trace() -> None:
    rig = Rig(model("1", FEATURED))
    rig.join("m.v1:0")
    features = rig.join("features:0", FEATURES_POOL)
    rig.submit()
    rig.answer(features, status=503, batch_rows=0)
    server, read = rig.spans()
    assert (server.error, read.name) == ("503", "features")
    rig.submit()
    rig.gateway.lost(features)
    server, read = rig.spans()
    assert (server.error, read.name) == ("MODEL_NOT_READY", "features")
    assert events(server) == [("worker lost", "features:0")]


async def test_a_retry_is_two_attempts() -> None:
    rig = Rig()
    first = rig.join("m.v1:0")
    rig.submit()
    second = rig.join("m.v1:1")
    rig.gateway.lost(first)
    rig.answer(second)
    server, _, inference = rig.spans()
    assert events(server) == [("sent", "m.v1:0"), ("worker lost", "m.v1:0"), ("sent again", "m.v1:1")]
    assert inference.attributes["modelhost.process"] == "m.v1:1"
    assert server.error is None


async def test_a_canary_that_is_gone_leaves_an_event() -> None:
    rig = Rig(model("1"), model("2"))
    worker = rig.join("m.v1:0")
    rig.submit(version="2", fallback=Fallback(("m", "1"), 10**9))
    rig.answer(worker)
    server, *_ = rig.spans()
    assert events(server) == [("fallback", None), ("sent", "m.v1:0")]
    assert server.attributes["modelhost.version"] == "1"


async def test_refused_and_cancelled() -> None:
    rig = Rig()
    rig.submit()
    server, queue = rig.spans()
    assert (server.error, server.attributes["http.response.status_code"]) == ("MODEL_NOT_READY", 503)
    assert queue.end_ns == server.end_ns
    rig.join("m.v1:0")
    call = rig.submit()
    rig.gateway.cancel(call)
    rig.answer(rig.links["m.v1:0"])  # too late for anybody
    server, _ = rig.spans()
    assert (server.error, "http.response.status_code" in server.attributes) == ("CANCELLED", False)


async def test_an_error_of_the_callers_is_none_of_ours() -> None:
    rig = Rig()
    worker = rig.join("m.v1:0")
    rig.submit()
    rig.answer(worker, status=422, batch_rows=0)
    server, queue = rig.spans()
    assert (server.error, server.attributes["http.response.status_code"]) == (None, 422)
    assert queue.end_ns == server.end_ns


async def test_requests_of_one_batch_are_linked_and_one_alone_is_not() -> None:
    rig = Rig()
    worker = rig.join("m.v1:0")
    for _ in range(3):
        rig.submit()
    traces: list[Trace] = []
    for position, rows in ((0, 2), (1, 2), (2, 1)):
        rig.answer(worker, position, batch_rows=rows)
        traces += rig.tracer.take(10)
    traces[1].batch_ns = traces[0].batch_ns  # as a worker says it of one batch
    spans = spans_of(traces, EPOCH_NS, rig.tracer.new_id)
    first, second, alone = [span for span in spans if span.name == "inference"]
    [batch] = [span for span in spans if span.name == "batch m"]
    assert batch.links == (first.identity, second.identity)
    assert first.links == second.links == (batch.identity,)
    assert alone.links == ()
    assert batch.parent_id == ""
    assert batch.attributes["modelhost.batch.id"] == first.attributes["modelhost.batch.id"]
    assert batch.attributes["modelhost.batch.id"] != alone.attributes["modelhost.batch.id"]


@pytest.mark.parametrize("ended", [0, 1, QUEUE_MAX, QUEUE_MAX + 1])
async def test_what_waits_to_be_sent_has_a_limit(ended: int) -> None:
    rig = Rig()
    for number in range(ended):
        call = rig.submit("", received_ns=number * 10**7)
        trace = Trace(call, None, "1", "1")
        rig.tracer.end(trace, 1)
        rig.tracer.end(trace, 1)  # it has ended already
    assert rig.tracer.dropped == max(0, ended - QUEUE_MAX)
    assert len(rig.tracer.take(2 * QUEUE_MAX)) == min(ended, QUEUE_MAX)
    assert rig.tracer.take(1) == []


@pytest.mark.parametrize("asked", [0, 1, TRACES_PER_S, TRACES_PER_S + 1])
@pytest.mark.parametrize("traceparent", ["", f"00-{TRACE_ID}-{PARENT_ID}-01"])
async def test_no_caller_can_have_more_than_so_many_in_a_second(asked: int, traceparent: str) -> None:
    rig = Rig(share=1.0)
    for second in (5, 6):
        for _ in range(asked):
            rig.submit(traceparent, received_ns=second * 10**9)
        assert len(rig.tracer.take(2 * asked)) == min(asked, TRACES_PER_S)
    assert rig.tracer.dropped == 2 * max(0, asked - TRACES_PER_S)


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.001, 0.3, 0.999, 1.0])
def test_how_many_requests_are_skipped(share: float) -> None:
    draw = random.Random(1).random  # noqa: S311 - a sequence that is the same each time
    skipped = [requests_skipped(share, draw) for _ in range(5000)]
    assert min(skipped) >= 0
    if share >= 0.001:
        expected = (1 - share) / share
        assert abs(sum(skipped) / len(skipped) - expected) <= 0.06 * expected + 0.001
    assert requests_skipped(share, lambda: 0.0) == (1 << 62 if share == 0 else 0)
