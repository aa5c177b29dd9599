"""The front's side of fetched features: a call waits for its completion, and ends once whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from host.config.deployment import DeployedModel
from host.front.gateway import FEATURES_POOL, Call, Gateway
from host.protocol.errors import DeadlineExceeded, ModelNotReady, RequestError
from host.protocol.messages import (
    Encoding,
    Hello,
    Limits,
    Notice,
    Operation,
    RequestHead,
    ResponseHead,
)
from host.protocol.types import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP64", (-1, 1), ("users.x",)),), (TensorSpec("y", "FP64", (-1, 1)),))
MODEL = DeployedModel(
    name="m", version="1", processes=1, package="/m/1", platform="python", signature=SIGNATURE, limits=Limits()
)


class Link:
    """A connection in the hand: it keeps what is sent."""

    def __init__(self, identity: int, program: str) -> None:
        self.identity = identity
        self.program = program
        self.sent: list[tuple[RequestHead, bytes]] = []

    def send(self, request: RequestHead) -> None:
        self.sent.append((request, request.body))

    def close(self) -> None: ...


class Client:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def answered(self, call: Call, head: ResponseHead, body: bytes) -> None:
        self.told.append((head.status, body))

    def refused(self, call: Call, error: RequestError) -> None:
        self.told.append(type(error))


def hello(name: str, version: str) -> Hello:
    return Hello(name, version, 0, 1, "python", SIGNATURE, Limits())


class Bench:
    def __init__(self, *, features: bool = True, worker: bool = True) -> None:
        self.gateway = Gateway(asyncio.get_running_loop(), [MODEL])
        self.features: Any = Link(1, "features:0")
        self.worker: Any = Link(2, "m.v1:0")
        self.client = Client()
        if features:
            self.gateway.joined(self.features, hello(*FEATURES_POOL))
        if worker:
            self.gateway.joined(self.worker, hello("m", "1"))

    def submit(self, left_s: float = 60.0) -> Call:
        now_ns = time.monotonic_ns()
        call = Call(
            sequence=0,
            client=self.client,
            pool=("m", "1"),
            deadline_ns=now_ns + int(left_s * 1e9),
            size_bytes=4,
            operation=Operation.INFER,
            body=b"body",
            received_ns=now_ns,
            request_id="id",
        )
        self.gateway.submit(call, now_ns)
        return call

    def completed(self, body: bytes, status: int = 200) -> None:
        [(head, _)] = self.features.sent
        self.gateway.answered(self.features, ResponseHead(head.sequence, status), body)

    def assert_nothing_pending(self) -> None:
        assert not self.gateway.in_flight
        assert all(not pool.queue for pool in self.gateway.dispatcher.pools.values())


async def test_the_completed_body_goes_to_the_worker_and_errors_stay_in_the_clients_encoding() -> None:
    bench = Bench()
    bench.submit()
    [(asked, body)] = bench.features.sent
    assert (asked.model, body, asked.operation) == ("m.v1", b"body", Operation.INFER)
    assert not bench.worker.sent
    bench.completed(b"completed")
    [(head, body)] = bench.worker.sent
    assert (head.completed, head.encoding, body) == (True, Encoding.JSON, b"completed")
    bench.gateway.answered(bench.worker, ResponseHead(head.sequence, 200), b"answer")
    assert bench.client.told == [(200, b"answer")]
    bench.assert_nothing_pending()


async def test_a_request_that_was_complete_goes_as_it_came() -> None:
    bench = Bench()
    bench.submit()
    bench.completed(b"")
    [(head, body)] = bench.worker.sent
    assert (head.completed, body) == (False, b"body")


async def test_what_the_service_refuses_is_the_answer() -> None:
    bench = Bench()
    bench.submit()
    bench.completed(b"why", 422)
    assert bench.client.told == [(422, b"why")]
    assert not bench.worker.sent
    bench.assert_nothing_pending()


@pytest.mark.parametrize("when", ["reading", "running"])
async def test_a_client_that_goes_away_is_told_nothing(when: str) -> None:
    bench = Bench()
    call = bench.submit()
    if when == "running":
        bench.completed(b"completed")
    bench.gateway.cancel(call)
    if when == "reading":
        bench.completed(b"completed")
        assert not bench.worker.sent
    assert not bench.client.told
    bench.assert_nothing_pending()


async def test_a_deadline_that_passes_meanwhile_is_named() -> None:
    bench = Bench()
    bench.submit(left_s=0.001)
    async with asyncio.timeout(5):
        while not bench.client.told:  # noqa: ASYNC110 - the gateway's timer tells the client
            await asyncio.sleep(0.001)
    assert bench.client.told == [DeadlineExceeded]
    bench.completed(b"completed")
    assert bench.client.told == [DeadlineExceeded]
    bench.assert_nothing_pending()


@pytest.mark.parametrize(("features", "worker"), [(False, True), (True, False), (False, False)])
async def test_without_one_of_the_two_it_is_not_ready(features: bool, worker: bool) -> None:
    bench = Bench(features=features, worker=worker)
    assert bench.gateway.not_ready(("m", "1")) is not None
    bench.submit()
    assert bench.client.told == [ModelNotReady]
    assert not bench.features.sent


async def test_a_notice_makes_a_model_unready_and_ready_again() -> None:
    bench = Bench()
    bench.gateway.noticed(bench.features, Notice({"m.v1": "view users: no such table"}))
    assert bench.gateway.not_ready(("m", "1")) == "view users: no such table"
    bench.submit()
    assert bench.client.told == [ModelNotReady]
    bench.gateway.noticed(bench.features, Notice({}))
    assert bench.gateway.not_ready(("m", "1")) is None


async def test_a_dead_service_sends_its_requests_to_another_or_refuses_them() -> None:
    bench = Bench()
    bench.submit()
    other: Any = Link(3, "features:1")
    bench.gateway.joined(other, hello(*FEATURES_POOL))
    bench.gateway.lost(bench.features)
    assert len(other.sent) == 1
    bench.gateway.lost(other)
    assert len(bench.client.told) == 1
    assert issubclass(bench.client.told[0], RequestError)
    bench.assert_nothing_pending()
