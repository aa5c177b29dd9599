"""From two looks at the workers' counters to a model's load."""

from __future__ import annotations

import msgspec
import pytest

from host.control.observe import Observation, Reading, StageCounter, StageCounters, WorkerCounters, observe, unserved
from host.dispatch import Demand

S = 1_000_000_000


def reading(at_s: float, busy_s: float, pid: int = 1, requests: int = 0, waited_s: float = 0.0) -> Reading:
    return Reading(
        pid=pid,
        counters=WorkerCounters(
            busy_ns=int(busy_s * S),
            at_ns=int(at_s * S),
            inference_stats=StageCounters(
                success=StageCounter(requests, 0), queue=StageCounter(requests, int(waited_s * S))
            ),
        ),
    )


def test_two_workers_since_the_last_look() -> None:
    before = {
        "a.v1:0": reading(10.0, 3.0, requests=10, waited_s=1.0),
        "a.v1:1": reading(10.0, 0.0),
    }
    now = {
        "a.v1:0": reading(11.0, 3.5, requests=35, waited_s=3.0),
        "a.v1:1": reading(11.5, 0.15, requests=15, waited_s=0.0),
    }
    seen, kept = observe(before, now, wanted=3, unserved=2)
    assert seen.ready == 2
    assert seen.busy == pytest.approx((0.5 + 0.1) / 2)
    assert seen.queue_wait_s == pytest.approx(2.0 / 40)
    assert seen.request_s == pytest.approx(0.65 / 40)
    assert (seen.requests, seen.unserved, seen.wanted) == (40, 2, 3)
    assert kept == now


def test_nobody_is_there() -> None:
    assert observe({}, {}, wanted=1) == (Observation(wanted=1), {})


def test_a_worker_is_measured_from_its_second_look_on() -> None:
    seen, kept = observe({}, {"a.v1:0": reading(10.0, 3.0, requests=9)}, wanted=1)
    assert (seen.ready, seen.requests) == (0, 0)
    seen, _ = observe(kept, {"a.v1:0": reading(11.0, 4.0, requests=10)}, wanted=1)
    assert (seen.ready, seen.busy, seen.requests) == (1, 1.0, 1)


@pytest.mark.parametrize(
    "other",
    [reading(11.0, 3.1, pid=2), reading(11.0, 0.1), reading(10.0, 3.0), reading(9.0, 3.5)],
    ids=["another pid", "counters that went down", "no time between", "a clock that went back"],
)
def test_a_process_that_is_another_one_is_measured_anew(other: Reading) -> None:
    seen, kept = observe({"a.v1:0": reading(10.0, 3.0)}, {"a.v1:0": other}, wanted=1)
    assert seen.ready == 0
    assert kept == {"a.v1:0": other}


def test_a_worker_that_does_not_answer_is_busy_and_later_measured_over_the_whole_time() -> None:
    first = {"a.v1:0": reading(10.0, 3.0, requests=1)}
    seen, kept = observe(first, {"a.v1:0": Reading(pid=1)}, wanted=1)
    assert (seen.ready, seen.busy) == (1, 1.0)
    seen, _ = observe(kept, {"a.v1:0": reading(12.0, 4.5, requests=2)}, wanted=1)
    assert (seen.ready, seen.busy, seen.request_s) == (1, 0.75, 1.5)
    # Another process in its place has nothing to do with it.
    _, kept = observe(first, {"a.v1:0": Reading(pid=2)}, wanted=1)
    assert kept == {}


def test_a_worker_cannot_be_busier_than_always() -> None:
    seen, _ = observe({"a.v1:0": reading(10.0, 0.0)}, {"a.v1:0": reading(11.0, 500.0)}, wanted=1)
    assert seen.busy == 1.0


def test_counters_below_zero_are_none() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"busy_ns": -1, "at_ns": 5}', type=WorkerCounters)
    read = msgspec.json.decode(b'{"busy_ns": 1, "at_ns": 5, "name": "a", "last_inference": 0}', type=WorkerCounters)
    assert read == WorkerCounters(busy_ns=1, at_ns=5)


def test_requests_that_no_worker_was_there_for() -> None:
    before = {7: {"a.v1": Demand(waiting=1, so_far=4)}, 8: {}}
    now = {
        7: {"a.v1": Demand(waiting=0, so_far=6), "b.v1": Demand(waiting=9, so_far=9)},
        8: {"a.v1": Demand(waiting=1, so_far=1)},
    }
    assert unserved("a.v1", before, now) == 3
    assert unserved("c.v1", before, now) == 0
    # What is held counts at every look, and is all that counts of a front that is new.
    assert unserved("a.v1", now, now) == 1
    assert unserved("a.v1", {}, {7: {"a.v1": Demand(waiting=2, so_far=90)}}) == 2
