"""One connection of the fast lane, with a transport and a gateway that only write down what they are told."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from typing import Any, cast

import pytest

from host.dispatch import PoolKey
from host.front.access_log import AccessLog
from host.front.bodies import BodyBudget
from host.front.catalog import Catalog
from host.front.fast_lane import (
    HEAD_TIMEOUT_S,
    PIPELINE_MAX,
    WRITE_TIMEOUT_S,
    FastConnection,
    FastLane,
    LaneCall,
)
from host.front.gateway import Gateway
from host.front.headers import RequestIds
from host.front.outcomes import Outcomes
from host.front.shadow import Shadows
from host.front.sharing import Sharing
from host.protocol.counters import FRONT
from host.protocol.errors import QueueFull
from host.protocol.messages import ResponseHead

NS_PER_S = 1_000_000_000
KEEPALIVE_S = 75


def request(body: bytes = b"{}", *lines: str, path: str = "/v2/models/churn/infer") -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


class FakeTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self._wrote = asyncio.Event()
        self.reading = True
        self.closed = False
        self.protocol: object = None

    def write(self, data: bytes) -> None:
        self.written += data
        self._wrote.set()

    async def until_written(self, end: bytes) -> None:
        async with asyncio.timeout(30):
            while not self.written.endswith(end):
                self._wrote.clear()
                await self._wrote.wait()

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def close(self) -> None:
        self.closed = True

    abort = close

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol


class FakeGateway:
    """Keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[LaneCall] = []
        self.cancelled: list[LaneCall] = []
        self.outcomes = Outcomes()

    def outcomes_of(self, key: PoolKey) -> Outcomes:
        assert key == ("churn", "3")
        return self.outcomes

    def slot_of(self, call: LaneCall) -> int | None:
        return None

    def submit(self, call: LaneCall, now_ns: int) -> None:
        self.calls.append(call)

    def cancel(self, call: LaneCall) -> None:
        self.cancelled.append(call)


class OtherLane(asyncio.Protocol):
    """Where a connection is handed to."""

    def __init__(self) -> None:
        self.received = b""
        self.transport: object = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data


class Rig:
    """A connection between fakes."""

    def __init__(self, catalog: Catalog, budget_bytes: int = 1 << 20, access_log: float = 0.0) -> None:
        self.lines = b""
        self.gateway = FakeGateway()
        self.other = OtherLane()
        self.budget = BodyBudget(budget_bytes)
        self.lane = FastLane(
            catalog,
            cast("Gateway", self.gateway),
            Sharing(cast("Gateway", self.gateway), cast("Shadows", None)),
            self.budget,
            RequestIds(),
            AccessLog(asyncio.get_running_loop(), "front:0", "json", access_log, self.write_line),
            max_body_bytes=200_000,
            keepalive_s=KEEPALIVE_S,
            other_lane=lambda: self.other,
        )
        self.transport = FakeTransport()
        self.connection = FastConnection(self.lane)
        self.connection.connection_made(cast("Any", self.transport))

    def write_line(self, data: bytes) -> bool:
        self.lines += data
        return True

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)

    def answer(self, number: int, body: bytes = b"") -> None:
        call = self.gateway.calls[number]
        self.connection.answered(call, ResponseHead(sequence=0, status=200), body or b"answer %d" % number)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the answers so far."""
        parts = self.transport.written.split(b"HTTP/1.1 ")[1:]
        return [part.partition(b"\r\n\r\n")[2] for part in parts]


@pytest.fixture
async def rig(catalog: Catalog) -> Iterator[Rig]:  # type: ignore[misc]
    """Give a rig; nothing may be held at the end."""
    made = Rig(catalog)
    yield made
    made.connection.connection_lost(None)
    assert made.budget.held_bytes == 0
    assert made.lane.connections == set()


async def test_a_request_and_its_answer(rig: Rig) -> None:
    rig.send(request(b'{"a": 1}', "X-Request-Id: mine"))
    (call,) = rig.gateway.calls
    assert (call.body, call.pool, call.request_id) == (b'{"a": 1}', ("churn", "3"), "mine")
    assert rig.budget.held_bytes == 8
    rig.answer(0)
    head, _, body = rig.transport.written.partition(b"\r\n\r\n")
    assert body == b"answer 0"
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert {b"Content-Type: application/json", b"X-Request-Id: mine", b"Content-Length: 8"} <= set(lines)


async def test_answers_go_out_in_the_order_of_the_requests(rig: Rig) -> None:
    rig.send(request() * 3)
    rig.answer(2)
    rig.answer(1)
    assert rig.bodies == []
    rig.answer(0)
    assert rig.bodies == [b"answer 0", b"answer 1", b"answer 2"]


@pytest.mark.parametrize("count", [1, PIPELINE_MAX - 1, PIPELINE_MAX, PIPELINE_MAX + 1, 3 * PIPELINE_MAX])
async def test_pipeline_is_read_as_far_as_its_limit(rig: Rig, count: int) -> None:
    rig.send(request() * count)
    assert len(rig.gateway.calls) == min(count, PIPELINE_MAX)
    assert rig.transport.reading == (count <= PIPELINE_MAX)
    for number in range(count):
        rig.answer(number)
        await asyncio.sleep(0)
    assert rig.bodies == [b"answer %d" % number for number in range(count)]
    assert rig.transport.reading


async def test_a_long_pipeline_goes_on_only_for_a_client_that_takes_its_answers(rig: Rig) -> None:
    rig.send(request() * (PIPELINE_MAX + 10))
    rig.connection.pause_writing()
    for number in range(PIPELINE_MAX):
        rig.answer(number)
    await asyncio.sleep(0)
    assert len(rig.gateway.calls) == PIPELINE_MAX
    assert not rig.transport.reading
    rig.connection.resume_writing()
    await asyncio.sleep(0)
    assert len(rig.gateway.calls) == PIPELINE_MAX + 10
    assert rig.transport.reading


async def test_a_request_that_cannot_be_read_is_not_read_inside_another_clients_answer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.send(request() * PIPELINE_MAX + request(b'{"last": 1}'))
    monkeypatch.setattr(rig.lane, "read_head", lambda head: 1 / 0)
    for number in range(PIPELINE_MAX):
        rig.answer(number)  # raises nothing: what comes next is read in a turn of its own
    assert len(rig.bodies) == PIPELINE_MAX
    monkeypatch.undo()
    await asyncio.sleep(0)
    assert rig.gateway.calls[-1].body == b'{"last": 1}'


async def test_split_at_every_offset(catalog: Catalog) -> None:
    whole = request(b'{"a": 1}') + request(b'{"b": 2}')
    for offset in range(1, len(whole)):
        rig = Rig(catalog)
        rig.send(whole[:offset])
        rig.send(whole[offset:])
        assert [call.body for call in rig.gateway.calls] == [b'{"a": 1}', b'{"b": 2}'], offset
        rig.connection.connection_lost(None)
        assert rig.budget.held_bytes == 0


async def test_what_is_not_plain_is_handed_over_untouched(rig: Rig) -> None:
    rest = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nmore"
    rig.send(rest)
    assert rig.other.received == rest
    assert rig.other.transport is rig.transport
    assert rig.transport.protocol is rig.other
    assert rig.lane.connections == set()


async def test_hand_over_waits_for_the_answers_before_it(rig: Rig) -> None:
    rest = b"GET / HTTP/1.1\r\n\r\n"
    rig.send(request() * 2 + rest)
    assert rig.other.received == b""
    assert not rig.transport.reading
    rig.answer(1)
    rig.answer(0)
    assert rig.bodies == [b"answer 0", b"answer 1"]
    assert rig.other.received == rest
    assert rig.transport.reading


async def test_hand_over_waits_for_a_client_that_takes_its_answers(rig: Rig) -> None:
    rest = b"GET / HTTP/1.1\r\n\r\n"
    rig.send(request() + rest)
    rig.connection.pause_writing()
    rig.answer(0)
    assert rig.other.received == b""
    rig.connection.resume_writing()
    assert rig.other.received == rest
    assert rig.transport.reading


@pytest.mark.parametrize("tail", [b'"data": ' + b"[" * 5000, b'"data": ' + b'{"a":' * 5000])
@pytest.mark.parametrize("cut", [0, 1])
async def test_a_body_nested_too_deep_is_the_workers_to_refuse(rig: Rig, tail: bytes, cut: int) -> None:
    whole = request(b'{"timeout": 1, ' + tail)
    rig.send(whole[: len(whole) - cut])
    rig.send(whole[len(whole) - cut :])
    assert len(rig.gateway.calls) == 1


async def test_client_that_does_not_read_is_not_read(rig: Rig) -> None:
    rig.connection.pause_writing()
    assert not rig.transport.reading
    rig.connection.resume_writing()
    assert rig.transport.reading


async def test_client_that_goes_cancels_what_it_asked(rig: Rig) -> None:
    rig.send(request() * 3)
    rig.answer(1)
    rig.connection.connection_lost(None)
    assert rig.gateway.cancelled == [rig.gateway.calls[0], rig.gateway.calls[2]]
    assert rig.budget.held_bytes == 0


async def test_refusal_is_an_answer_in_its_turn(rig: Rig) -> None:
    rig.send(request() * 2)
    rig.connection.refused(rig.gateway.calls[1], QueueFull("full"))
    assert rig.bodies == []
    rig.answer(0)
    assert rig.bodies == [b"answer 0", b'{"error":"full","code":"QUEUE_FULL"}']
    assert b"HTTP/1.1 503 Service Unavailable\r\n" in rig.transport.written
    assert b"Retry-After: 1\r\n" in rig.transport.written


async def test_budget_refuses_a_whole_body_and_goes_on(catalog: Catalog) -> None:
    rig = Rig(catalog, budget_bytes=16)
    rig.send(request(b"12345") + request(b"1234"))
    assert [call.body for call in rig.gateway.calls] == [b"1234"]
    assert b'"OVERLOADED"' in rig.bodies[0]
    assert rig.gateway.outcomes.words[FRONT.at("refused_OVERLOADED")] == 1
    rig.answer(0)
    assert rig.bodies[1] == b"answer 0"
    assert not rig.transport.closed


async def test_budget_refuses_a_part_and_reads_no_further(catalog: Catalog) -> None:
    rig = Rig(catalog, budget_bytes=16)
    rig.send(request(b"1234567890")[:-7])
    rig.send(b"4567")
    assert b'"OVERLOADED"' in rig.bodies[0]
    assert rig.gateway.outcomes.words[FRONT.at("refused_OVERLOADED")] == 1
    assert b"Connection: close\r\n" in rig.transport.written
    rig.send(b"890" + request(b"1"))
    assert rig.gateway.calls == []
    assert rig.budget.held_bytes == 0


async def test_body_that_does_not_come_in_time(rig: Rig) -> None:
    rig.send(request(b"1234567890", "Request-Timeout-Ms: 1")[:-7])
    await rig.transport.until_written(b"}")
    assert b"receiving the body (3 bytes so far)" in rig.bodies[0]
    assert rig.transport.written.startswith(b"HTTP/1.1 504 ")
    assert rig.budget.held_bytes == 0


async def test_deadline_in_the_body_counts(rig: Rig) -> None:
    rig.send(request(b'{"parameters": {"timeout": 5000}}'))
    (call,) = rig.gateway.calls
    assert call.deadline_ns - call.received_ns == 5_000_000


@pytest.mark.parametrize("size", [2_000, 100_000])
async def test_answers_are_compressed_for_those_who_take_it(rig: Rig, size: int) -> None:
    rig.send(request(b"{}", "Accept-Encoding: gzip") + request())
    rig.answer(1)
    rig.answer(0, b"a" * size)
    await rig.transport.until_written(b"answer 1")
    body = rig.transport.written.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 ")[0]
    assert gzip.decompress(body) == b"a" * size
    assert b"Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n" in rig.transport.written


def swept(rig: Rig, after_s: float) -> bool:
    """Whether the connection is closed by a look at it so much later."""
    now_ns = rig.connection._active_ns + int(after_s * NS_PER_S)
    rig.connection.sweep(now_ns, KEEPALIVE_S * NS_PER_S)
    return rig.transport.closed


async def test_idle_connection_is_closed(rig: Rig) -> None:
    assert not swept(rig, KEEPALIVE_S)
    assert swept(rig, KEEPALIVE_S + 0.001)


async def test_slow_head_is_closed(rig: Rig) -> None:
    rig.send(b"POST /v2/mod")
    rig.connection._active_ns = rig.connection._head_ns
    assert not swept(rig, HEAD_TIMEOUT_S)
    rig.send(b"els")
    assert swept(rig, HEAD_TIMEOUT_S + 0.001)


async def test_client_that_never_reads_is_cut_off(rig: Rig) -> None:
    rig.send(request())
    rig.connection.pause_writing()
    rig.connection._active_ns = rig.connection._blocked_ns
    assert not swept(rig, WRITE_TIMEOUT_S)
    rig.connection._active_ns = rig.connection._blocked_ns
    assert swept(rig, WRITE_TIMEOUT_S + 0.001)


async def test_client_that_never_takes_its_last_answers_is_cut_off_after_the_close(rig: Rig) -> None:
    assert swept(rig, KEEPALIVE_S + 0.001)
    rig.transport.closed = False  # it was told to close, and waits for the client
    now_ns = rig.connection._closed_ns
    rig.connection.sweep(now_ns + int(WRITE_TIMEOUT_S * NS_PER_S), KEEPALIVE_S * NS_PER_S * 1000)
    assert not rig.transport.closed
    rig.connection.sweep(now_ns + int(WRITE_TIMEOUT_S * NS_PER_S) + 1, KEEPALIVE_S * NS_PER_S * 1000)
    assert rig.transport.closed


async def test_connection_that_waits_for_an_answer_is_not_idle(rig: Rig) -> None:
    rig.send(request())
    assert not swept(rig, 10 * KEEPALIVE_S)


async def test_stopping_answers_what_was_asked_and_closes(rig: Rig) -> None:
    rig.send(request() * 2)
    stopping = asyncio.create_task(rig.lane.stop(5))
    await asyncio.sleep(0)
    rig.answer(0)
    assert not rig.transport.closed
    rig.answer(1)
    assert rig.transport.closed
    assert rig.transport.written.count(b"Connection: close") == 1
    rig.connection.connection_lost(None)
    await stopping


async def test_stopping_closes_idle_connections_and_gives_up_at_its_limit(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.front.fast_lane.FAREWELL_S", 0.01)
    rig.send(request())
    idle, transport = FastConnection(rig.lane), FakeTransport()
    idle.connection_made(cast("Any", transport))
    stopping = asyncio.create_task(rig.lane.stop(0.3))
    await asyncio.sleep(0)
    assert not transport.closed
    while not transport.closed and not stopping.done():  # noqa: ASYNC110 - a fake transport tells nobody
        await asyncio.sleep(0.001)
    assert transport.closed
    idle.connection_lost(None)
    await stopping
    assert rig.transport.closed


async def test_what_is_asked_while_the_front_says_farewell_is_answered_as_the_last(rig: Rig) -> None:
    stopping = asyncio.create_task(rig.lane.stop(5))
    await asyncio.sleep(0)
    rig.send(request())
    rig.answer(0)
    assert b"Connection: close" in rig.transport.written
    assert rig.transport.closed
    rig.connection.connection_lost(None)
    await stopping


async def test_the_access_log_has_a_line_for_an_answer_and_nothing_of_the_client_s(catalog: Catalog) -> None:
    rig = Rig(catalog, access_log=1.0)
    rig.send(request(b"marker", "Authorization: marker", "X-Request-Id: abc", path="/v2/models/churn/infer?marker=1"))
    rig.answer(0, b"seen")
    rig.send(request(b"", path="/v2/models/churn:predict".replace("v2", "v1")))
    rig.connection.refused(rig.gateway.calls[1], QueueFull("full"))
    rig.lane.access.close()
    assert b"marker" not in rig.lines
    first, second = map(json.loads, rig.lines.splitlines())
    assert (first["route"], first["status"], first["request_id"]) == ("/v2/models/{model}/infer", 200, "abc")
    assert (first["model"], first["version"], first["in_bytes"], first["out_bytes"]) == ("churn", "3", 6, 4)
    assert (second["route"], second["status"], second["code"]) == ("/v1/models/{model}:predict", 503, "QUEUE_FULL")
