"""Canaries and shadows in one front: which version is asked, who answers when it cannot, and what becomes of copies."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.config.deployment import DeployedModel, Deployment
from host.front.access_log import AccessLog
from host.front.bodies import BodyBudget
from host.front.catalog import Catalog
from host.front.fast_lane import FastConnection, FastLane
from host.front.gateway import Call, Gateway
from host.front.handler import Handler
from host.front.headers import RequestIds
from host.front.outcomes import CopyCounts
from host.front.routes import match_route
from host.front.shadow import (
    BUSY_MAX,
    COMPARED_BYTES_PER_S,
    COMPARED_MAX_BYTES,
    COMPARISONS_PER_S,
    COPIES_PER_TURN,
    OUTSTANDING_MAX,
    Pace,
    Shadows,
)
from host.front.sharing import Sharing
from host.front.traffic import SLOTS
from host.protocol.errors import RequestError
from host.protocol.messages import Hello, Limits, Operation, RequestHead, ResponseHead
from host.protocol.types import Signature, TensorSpec

TENSOR = TensorSpec("x", "FP64", (-1, 1))
SIGNATURE = Signature((TENSOR,), (TENSOR,))
STICKY = "x-user"


def version(number: int, *, timeout_ms: int = 1000, max_batch_rows: int = 256, **more: Any) -> DeployedModel:
    return DeployedModel(
        name="m",
        version=str(number),
        processes=1,
        package=f"/m/{number}",
        platform="python",
        signature=SIGNATURE,
        limits=Limits(timeout_ms=timeout_ms, max_batch_rows=max_batch_rows),
        **{"default": number == 1} | more,
    )


def answer_of(value: float, number: str = "1") -> bytes:
    one = {"name": "y", "datatype": "FP64", "shape": [1, 1], "data": [value]}
    return json.dumps({"model_version": number, "outputs": [one]}).encode()


class Link:
    """A connection in the hand: it keeps what is sent."""

    def __init__(self, identity: int, program: str) -> None:
        self.identity = identity
        self.program = program
        self.sent: list[RequestHead] = []

    def send(self, request: RequestHead) -> None:
        self.sent.append(request)

    def close(self) -> None: ...


class Transport:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None: ...


class Client:
    """The client of a call of the other lane."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def answered(self, call: Call, head: ResponseHead, body: bytes) -> None:
        self.told.append((head.status, body))

    def refused(self, call: Call, error: RequestError) -> None:
        self.told.append(type(error).__name__)


class Bench:
    """A front without sockets: the fast lane before a real gateway, a link for each version."""

    def __init__(
        self,
        *models: DeployedModel,
        draw: Callable[[], float] = lambda: 0.0,
        ready: str = "12",
        busy: float = 0.0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.catalog = Catalog(Deployment(models))
        self.gateway = Gateway(loop, self.catalog)
        self.shadows = Shadows(loop, self.gateway, lambda now_ns: busy)
        self.sharing = Sharing(self.gateway, self.shadows, draw)
        self.budget = BodyBudget(1 << 20)
        access = AccessLog(loop, "front:0", "text", 0.0, lambda line: True)
        self.lane = FastLane(
            self.catalog,
            self.gateway,
            self.sharing,
            self.budget,
            RequestIds(),
            access,
            max_body_bytes=200_000,
            keepalive_s=75,
            other_lane=asyncio.Protocol,
        )
        self.handler = Handler(self.catalog, self.gateway, self.sharing, self.budget, RequestIds(), access, 200_000)
        self.transport: Any = Transport()
        self.connection = FastConnection(self.lane)
        self.connection.connection_made(self.transport)
        self.links: dict[str, Any] = {}
        for number in ready:
            self.join(number)

    def join(self, number: str) -> None:
        self.links[number] = link = Link(int(number), f"m.v{number}:0")
        joined: Any = link
        self.gateway.joined(joined, Hello("m", number, 0, 1, "python", SIGNATURE, Limits()))

    def leave(self, number: str) -> None:
        self.gateway.lost(self.links.pop(number))

    def ask(self, *lines: str, path: str = "/v2/models/m/infer", body: bytes = b"{}", cut: int = 0) -> bytes:
        """Send a request but for its last bytes, which are given back."""
        head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
        whole = "\r\n".join(head).encode() + body
        self.connection.data_received(whole[: len(whole) - cut])
        return whole[len(whole) - cut :]

    def answer(self, number: str, body: bytes = b"{}", status: int = 200, position: int = -1) -> None:
        head = self.links[number].sent.pop(position)
        self.gateway.answered(self.links[number], ResponseHead(head.sequence, status), body)

    @property
    def asked(self) -> Counter[str]:
        """Requests that each version has."""
        return Counter({number: len(link.sent) for number, link in self.links.items() if link.sent})

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.transport.written.split(b"HTTP/1.1 ")[1:]]

    def counts(self, number: str = "2") -> CopyCounts:
        return self.gateway.outcomes["m", number].copies

    def outcomes(self, number: str) -> tuple[int, int]:
        read = self.gateway.outcomes["m", number].read()
        return read.answered, read.failed

    def close(self) -> None:
        """End the connection: nothing may be held after that."""
        self.connection.connection_lost(None)
        assert self.budget.held_bytes == 0


def draws(*values: float) -> Callable[[], float]:
    waiting = list(values)
    return lambda: waiting.pop(0)


CANARY = (version(1), version(2, canary_percent=5, timeout_ms=200))
SHADOW = (version(1), version(2, shadow_percent=100))


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have copies made in the next turn."""
    monkeypatch.setattr("host.front.shadow.COPY_DELAY_S", 0)


class Clock:
    """Stands until a test has it go on. The loop has another one."""

    def __init__(self) -> None:
        self.now_ns = time.monotonic_ns()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the front a clock in the hand: however long a test takes, no deadline and no second passes by itself."""
    made = Clock()
    monkeypatch.setattr(time, "monotonic_ns", lambda: made.now_ns)
    return made


# -- canaries -------------------------------------------------------------------------------------------------
async def test_each_request_draws_although_its_head_is_remembered() -> None:
    bench = Bench(*CANARY, draw=draws(0.0, 0.0499, 0.05, 0.99))
    for expected in ({"2": 1}, {"2": 2}, {"2": 2, "1": 1}, {"2": 2, "1": 2}):
        bench.ask()
        assert bench.asked == expected
    bench.close()


async def test_the_limits_are_those_of_the_version_that_was_chosen() -> None:
    bench = Bench(*CANARY, draw=draws(0.0, 0.5))
    bench.ask()
    bench.ask()
    [canary], [default] = bench.links["2"].sent, bench.links["1"].sent
    assert canary.deadline_ns - canary.received_ns == 200_000_000
    assert default.deadline_ns - default.received_ns == 1_000_000_000
    bench.close()


async def test_a_path_with_a_version_means_that_one() -> None:
    bench = Bench(*CANARY, draw=draws())
    for number in "121":
        bench.ask(path=f"/v2/models/m/versions/{number}/infer")
        bench.ask(path=f"/v1/models/m/versions/{number}:predict")
    assert bench.asked == {"1": 4, "2": 2}
    bench.close()


async def test_a_version_without_a_share_is_asked_by_its_path_alone() -> None:
    bench = Bench(version(1), version(2), version(3, shadow_percent=1), draw=draws(0.5), ready="123")
    bench.ask()
    await asyncio.sleep(0)
    bench.ask(path="/v2/models/m/versions/3/infer")
    assert bench.asked == {"1": 1, "3": 1}
    bench.close()


async def test_a_key_keeps_its_version_and_draws_nothing() -> None:
    bench = Bench(version(1, sticky_header=STICKY), version(2, canary_percent=50), draw=draws())
    for _ in range(3):
        for user in range(8):
            bench.ask(f"X-User: {user}")
    asked = bench.asked
    assert sum(asked.values()) == 24
    assert {count % 3 for count in asked.values()} == {0}
    assert len(asked) == 2
    bench.close()


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(user=st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True) | st.just(""), drawn=st.floats(0, 0.999))
def test_both_lanes_choose_the_same(user: str, drawn: float) -> None:
    async def choose() -> None:
        models = (version(1, sticky_header=STICKY), version(2, canary_percent=30), version(3, canary_percent=30))
        bench = Bench(*models, draw=lambda: drawn, ready="123")
        bench.ask(f"X-User: {user}")
        [fast] = bench.asked
        request: Any = type("Request", (), {"headers": {STICKY: user} if user else {}})
        model, traffic = bench.handler._chosen(request, match_route("POST", "/v2/models/m/infer"))
        assert model.version == fast
        assert traffic is bench.catalog.traffic("m")
        bench.close()

    asyncio.run(choose())


async def test_shares_over_many_requests() -> None:
    bench = Bench(version(1), version(2, canary_percent=5))
    bench.sharing = bench.lane.sharing = Sharing(bench.gateway, bench.shadows, random.Random(1).random)  # noqa: S311
    for _ in range(10_000):
        bench.ask()
        for number in bench.asked:
            bench.answer(number)
    assert bench.outcomes("2")[0] / 10_000 == pytest.approx(0.05, abs=0.01)
    assert sum(bench.outcomes(number)[0] for number in "12") == 10_000
    bench.close()


async def test_a_canary_that_is_not_ready_leaves_its_share_to_the_default() -> None:
    bench = Bench(version(1, sticky_header=STICKY), version(2, canary_percent=99), ready="1")
    bench.ask()
    bench.ask("X-User: 1")
    assert bench.asked == {"1": 2}
    assert bench.outcomes("2") == (0, 0)
    bench.join("2")
    bench.ask()
    assert bench.asked == {"1": 2, "2": 1}
    bench.close()


@pytest.mark.parametrize("share", [{"canary_percent": 99}, {"shadow_percent": 100}])
async def test_a_version_scaled_to_none_is_wanted_and_nobody_waits_for_it(share: dict[str, int]) -> None:
    bench = Bench(version(1), version(2, min_processes=0, max_processes=2, **share), ready="1")
    assert bench.gateway.dispatcher.pools["m", "2"].holds
    bench.ask()
    bench.answer("1")
    await settled()
    assert bench.statuses == [200]
    assert bench.gateway.queued(("m", "2")) == 0
    assert bench.gateway.dispatcher.demand()["m", "2"].so_far == 1
    bench.close()


async def test_what_a_dead_canary_had_is_answered_by_the_default() -> None:
    bench = Bench(*CANARY)
    for _ in range(3):
        bench.ask()
    assert bench.asked == {"2": 3}
    bench.leave("2")
    assert bench.asked == {"1": 3}
    assert all(head.alone for head in bench.links["1"].sent)  # they may have killed it
    for _ in range(3):
        bench.answer("1")
    assert bench.statuses == [200] * 3
    assert (bench.outcomes("1"), bench.outcomes("2")) == ((3, 0), (0, 3))
    bench.close()


async def test_without_the_default_too_it_is_an_error() -> None:
    bench = Bench(*CANARY)
    bench.ask()
    bench.leave("1")
    bench.leave("2")
    assert bench.statuses == [503]
    bench.close()


async def test_an_error_of_the_canary_is_an_answer() -> None:
    bench = Bench(*CANARY)
    bench.ask()
    bench.answer("2", status=500)
    assert bench.statuses == [500]
    assert (bench.outcomes("1"), bench.outcomes("2")) == ((0, 0), (0, 1))
    bench.close()


async def test_a_canary_that_goes_while_a_body_arrives_is_not_asked() -> None:
    bench = Bench(*CANARY, draw=lambda: 0.0)
    rest = bench.ask(cut=1)
    without = Catalog(Deployment((version(1),)))
    bench.gateway.serve(without)
    bench.handler.catalog = bench.lane.catalog = without
    bench.connection.data_received(rest)
    assert bench.asked == {"1": 1}
    bench.close()


async def test_a_canary_that_comes_while_a_body_arrives_may_be_asked() -> None:
    bench = Bench(version(1), ready="1")
    rest = bench.ask(cut=1)
    together = Catalog(Deployment(CANARY))
    bench.gateway.serve(together)
    bench.lane.catalog = together
    bench.join("2")
    bench.connection.data_received(rest)
    assert bench.asked == {"2": 1}
    bench.answer("2")
    assert bench.statuses == [200]
    bench.close()


async def test_a_body_that_is_too_much_is_refused_and_not_copied() -> None:
    bench = Bench(*SHADOW)
    bench.ask(body=bytes(150_000))
    bench.ask(body=bytes(150_000))
    bench.answer("1")
    await settled()
    assert bench.statuses == [200, 503]
    assert bench.asked == {"2": 1}
    assert bench.counts() == CopyCounts(sent=1)
    bench.close()


async def test_a_front_is_ready_without_its_canaries_and_shadows() -> None:
    bench = Bench(version(1), version(2, canary_percent=5), version(3, shadow_percent=5), ready="1")
    assert bench.handler.ready()
    plain = Bench(version(1), version(2), ready="1")
    assert not plain.handler.ready()


# -- shadows --------------------------------------------------------------------------------------------------
async def copied(bench: Bench, ours: bytes = answer_of(1.0), status: int = 200, *lines: str) -> None:
    """Ask, have the default answer, and wait until the copy is sent, if it is."""
    bench.ask(*lines)
    bench.answer("1", ours, status)
    await settled()


async def test_a_copy_follows_the_answer_and_its_own_is_compared() -> None:
    bench = Bench(*SHADOW)
    bench.ask("X-Request-Id: mine")
    await settled()
    assert bench.asked == {"1": 1}  # the original first, alone
    bench.answer("1", answer_of(1.0))
    assert bench.statuses == [200]
    assert bench.asked == {}
    await settled()
    [copy] = bench.links["2"].sent
    assert (copy.request_id, copy.operation) == ("mine", Operation.INFER)
    bench.answer("2", answer_of(1.0 + 1e-9, "2"))
    assert bench.counts() == CopyCounts(sent=1)
    await settled()
    assert bench.counts() == CopyCounts(sent=1, equal=1)
    assert bench.shadows.outstanding == 0
    bench.close()


async def test_a_copy_has_the_time_of_its_own_version() -> None:
    bench = Bench(version(1), version(2, shadow_percent=100, timeout_ms=7))
    await copied(bench)
    [copy] = bench.links["2"].sent
    assert copy.deadline_ns - copy.received_ns == 7_000_000
    bench.close()


async def test_a_difference_is_counted_and_one_a_second_is_logged(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    bench = Bench(*SHADOW)
    with caplog.at_level(logging.WARNING, "modelhost.front"):
        for number in range(3):
            await copied(bench, answer_of(0.25), 200, f"X-Request-Id: r{number}")
            bench.answer("2", answer_of(0.5, "2"))
            await settled()
    assert bench.statuses == [200] * 3
    assert bench.counts() == CopyCounts(sent=3, different=3)
    assert caplog.messages == ["shadow m.v2 answers otherwise than m.v1: output 'y'[0]: 0.25, the shadow's 0.5"]
    assert vars(caplog.records[0])["request_id"] == "r0"
    bench.close()


async def test_a_share_of_the_requests_is_copied() -> None:
    bench = Bench(version(1), version(2, shadow_percent=30), draw=draws(0.2999, 0.3))
    await copied(bench)
    await copied(bench)
    assert bench.asked == {"2": 1}
    assert bench.counts() == CopyCounts(sent=1)  # the other one is not shed: it was not to be copied
    bench.close()


async def test_what_a_canary_answers_is_not_copied() -> None:
    models = (version(1), version(2, canary_percent=50), version(3, shadow_percent=100))
    bench = Bench(*models, draw=draws(0.0, 0.7, 0.0), ready="123")
    bench.ask()
    bench.answer("2")
    await settled()
    assert bench.asked == {}
    await copied(bench)
    assert bench.asked == {"3": 1}
    bench.close()


async def test_a_shadow_that_hangs_gets_no_more_than_its_bound_and_nobody_waits(clock: Clock) -> None:
    bench = Bench(version(1), version(2, shadow_percent=100, timeout_ms=50))
    asked = 3 * OUTSTANDING_MAX
    for _ in range(asked):
        await copied(bench)
    assert bench.statuses == [200] * asked
    assert bench.asked == {"2": OUTSTANDING_MAX}
    assert bench.counts() == CopyCounts(sent=OUTSTANDING_MAX, shed=2 * OUTSTANDING_MAX)
    clock.now_ns += 50_000_000
    async with asyncio.timeout(30):
        while bench.shadows.outstanding:  # noqa: ASYNC110 - the gateway's timer ends them
            await asyncio.sleep(0.005)
    assert bench.counts().failed == OUTSTANDING_MAX
    assert bench.outcomes("1") == (asked, 0)
    assert bench.shadows._held_bytes == 0
    bench.close()


async def test_copies_hold_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host.front.shadow.HELD_MAX_BYTES", 250)
    bench = Bench(*SHADOW)
    for _ in range(3):
        bench.ask(body=bytes(100))
        bench.answer("1")
        await settled()
    assert bench.counts() == CopyCounts(sent=2, shed=1)
    bench.answer("2")
    bench.ask(body=bytes(100))
    bench.answer("1")
    await settled()
    assert bench.counts().sent == 3
    bench.close()


async def test_copies_of_many_requests_at_once_go_out_a_few_a_turn() -> None:
    bench = Bench(*SHADOW)
    for _ in range(COPIES_PER_TURN + 1):
        bench.ask()
    for _ in range(COPIES_PER_TURN + 1):
        bench.answer("1")
    async with asyncio.timeout(30):
        while not bench.asked:  # noqa: ASYNC110 - the loop itself is what is waited for
            await asyncio.sleep(0)
    assert bench.asked == {"2": COPIES_PER_TURN}
    await asyncio.sleep(0)
    assert bench.asked == {"2": COPIES_PER_TURN + 1}
    bench.close()


@pytest.mark.parametrize(("busy", "counts"), [(BUSY_MAX, CopyCounts(sent=1)), (BUSY_MAX + 0.01, CopyCounts(shed=1))])
async def test_a_busy_front_makes_no_copies(busy: float, counts: CopyCounts) -> None:
    bench = Bench(*SHADOW, busy=busy)
    await copied(bench)
    assert bench.statuses == [200]
    assert bench.counts() == counts
    bench.close()


@pytest.mark.parametrize("queued", ["1", "2"])
async def test_copies_are_shed_when_anything_is_queued(queued: str) -> None:
    bench = Bench(version(1, max_batch_rows=1), version(2, shadow_percent=100, max_batch_rows=1))
    bench.ask()
    for _ in range(4):  # two batches of one row may be with the worker
        bench.ask(path=f"/v2/models/m/versions/{queued}/infer")
    bench.answer("1", position=0)
    await settled()
    assert bench.gateway.queued(("m", queued)) >= 1
    assert bench.counts() == CopyCounts(shed=1)
    bench.close()


async def test_copies_are_shed_when_no_worker_is_ready() -> None:
    bench = Bench(*SHADOW, ready="1")
    await copied(bench)
    assert bench.statuses == [200]
    assert bench.counts() == CopyCounts(shed=1)
    bench.close()


async def test_a_shadow_that_dies_before_the_copy_is_sent_sheds_it() -> None:
    bench = Bench(*SHADOW)
    bench.ask()
    bench.answer("1")
    bench.leave("2")
    await settled()
    assert bench.counts() == CopyCounts(shed=1)
    assert bench.shadows.outstanding == 0
    bench.close()


async def test_a_shadow_that_dies_with_copies_fails_them_alone() -> None:
    bench = Bench(*SHADOW)
    await copied(bench)
    bench.leave("2")
    assert bench.statuses == [200]
    assert bench.counts() == CopyCounts(sent=1, failed=1)
    assert bench.shadows.outstanding == 0
    bench.close()


async def test_a_shadow_that_is_withdrawn_is_followed_no_more() -> None:
    bench = Bench(*SHADOW)
    bench.ask()
    bench.gateway.serve([version(1)])
    bench.leave("2")
    bench.answer("1")
    await settled()
    bench.ask()  # by a head that is remembered
    bench.answer("1")
    await settled()
    assert bench.statuses == [200, 200]
    assert bench.shadows.outstanding == 0
    bench.close()


async def test_a_failed_copy_is_no_difference_and_a_refused_one_is() -> None:
    bench = Bench(*SHADOW)
    for status in (500, 422):
        await copied(bench)
        bench.answer("2", status=status)
        await settled()
    assert bench.counts() == CopyCounts(sent=2, failed=1, different=1)
    bench.close()


async def test_answers_that_are_too_large_are_not_compared() -> None:
    bench = Bench(*SHADOW)
    large = answer_of(1.0) + b" " * COMPARED_MAX_BYTES
    for ours, theirs in ((large, b"{}"), (answer_of(1.0), large)):
        await copied(bench, ours)
        bench.answer("2", theirs)
        await settled()
    assert bench.counts() == CopyCounts(sent=2, skipped=2)
    bench.close()


async def test_an_original_that_fails_or_is_refused_is_not_copied() -> None:
    bench = Bench(*SHADOW)
    await copied(bench, b"{}", 500)
    bench.ask()
    bench.leave("1")
    await settled()
    assert bench.statuses == [500, 503]
    assert bench.counts() == CopyCounts()
    assert bench.shadows.outstanding == 0
    bench.close()


async def test_an_original_whose_client_has_gone_is_not_copied() -> None:
    bench = Bench(*SHADOW)
    bench.ask()
    bench.close()
    bench.answer("1", answer_of(1.0))
    await settled()
    assert bench.asked == {}
    assert bench.counts() == CopyCounts()


async def test_copies_are_no_calls_of_the_original() -> None:
    bench = Bench(*SHADOW)
    await copied(bench)
    assert bench.gateway.busy() == {("m", "2"): 1}
    bench.close()


async def test_calls_of_the_other_lane_are_copied_too() -> None:
    bench = Bench(*SHADOW)
    client, now_ns = Client(), time.monotonic_ns()
    call = Call(
        sequence=0,
        client=client,
        pool=("m", "1"),
        deadline_ns=now_ns + 10**9,
        size_bytes=2,
        operation=Operation.PREDICT,
        body=b"{}",
        received_ns=now_ns,
    )
    traffic = bench.catalog.traffic("m")
    assert traffic is not None
    bench.sharing.prepare(call, traffic)
    bench.gateway.submit(call, now_ns)
    for number in "12":
        bench.answer(number, b'{"predictions": [1]}')
        await settled()
    assert client.told == [(200, b'{"predictions": [1]}')]
    assert bench.counts() == CopyCounts(sent=1, equal=1)


# -- pace -----------------------------------------------------------------------------------------------------
def test_so_many_comparisons_a_second() -> None:
    pace = Pace()
    assert [pace.allows(10, 0) for _ in range(COMPARISONS_PER_S + 1)].count(True) == COMPARISONS_PER_S
    assert not pace.allows(10, 999_999_999)
    assert pace.allows(10, 1_000_000_000)


def test_so_many_bytes_a_second() -> None:
    pace = Pace()
    assert pace.allows(COMPARED_BYTES_PER_S - 10, 0)
    assert not pace.allows(11, 0)
    assert pace.allows(10, 0)
    assert not pace.allows(1, 0)
    assert pace.allows(COMPARED_BYTES_PER_S, 1_000_000_000)


# -- what is counted ------------------------------------------------------------------------------------------
async def test_every_answer_has_its_latency_and_what_is_gone_is_forgotten(clock: Clock) -> None:
    bench = Bench(version(1), version(2), ready="12")
    for status in (200, 422, 500):
        bench.ask()
        clock.now_ns += 2_000_000
        bench.answer("1", status=status)
    read = bench.gateway.outcomes["m", "1"].read()
    assert (read.answered, read.failed, read.latency.count, read.shadow) == (2, 1, 2, None)
    assert read.latency.sum_ns == 4_000_000
    bench.ask(path="/v2/models/m/versions/2/infer")
    bench.gateway.serve([version(1)])
    bench.answer("2")
    assert bench.outcomes("2") == (1, 0)  # its last answers count
    bench.leave("2")
    assert list(bench.gateway.outcomes) == [("m", "1")]
    assert bench.outcomes("1") == (2, 1)
    bench.close()


def test_slots_are_drawn_evenly_from_what_random_gives() -> None:
    assert int(0.9999999999999999 * SLOTS) == SLOTS - 1
