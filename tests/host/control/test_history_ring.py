"""Fifteen minutes of numbers: rates between two looks, and memory that is bounded."""

from __future__ import annotations

import math

import msgspec
import pytest
from statuses import model, slot, traffic, usage

from host.control.history_ring import (
    KEPT_S,
    POINTS_MAX,
    SERIES,
    VERSIONS_MAX,
    History,
    Numbers,
    Reading,
    Ring,
    cpu_seconds,
    numbers,
)
from host.control.observe import ViewCounts


def test_the_first_reading_knows_only_what_needs_no_other() -> None:
    now = Reading(at=1.0, model=model(slots=(slot(usage=usage(30, 100)),), traffic=traffic(answered=7, waiting=2)))
    point = numbers(None, now)
    assert (point.waiting, point.memory_share, point.memory_bytes) == (2, 0.3, 30)
    assert all(math.isnan(value) for value in (point.requests_per_s, point.p99_s, point.cpus, point.cache_hit_share))


def test_rates_are_those_since_the_reading_before() -> None:
    before = Reading(
        at=10.0,
        model=model(slots=(slot(usage=usage(cpu_s=1.0)),), traffic=traffic(100, 10, times_ms=(500.0,))),
        views={"users": ViewCounts(cached=10, present=10)},
    )
    now = Reading(
        at=12.0,
        model=model(slots=(slot(usage=usage(cpu_s=2.0)),), traffic=traffic(140, 14, times_ms=(500.0, 1.0, 1.0, 9.0))),
        busy_share=0.25,
        views={"users": ViewCounts(cached=25, stale=1, present=13, missing=1)},
    )
    point = numbers(before, now)
    assert (point.requests_per_s, point.failed_per_s, point.cpus, point.busy_share) == (22.0, 2.0, 0.5, 0.25)
    assert point.p50_s == pytest.approx(0.001, rel=0.15)
    assert point.p99_s == pytest.approx(0.009, rel=0.15)
    assert point.cache_hit_share == 16 / 20


def test_a_version_that_no_front_has_heard_of_has_no_requests() -> None:
    quiet = Reading(at=1.0, model=model())
    point = numbers(quiet, msgspec.structs.replace(quiet, at=2.0))
    assert (point.requests_per_s, point.failed_per_s, point.waiting) == (0.0, 0.0, 0.0)
    assert math.isnan(point.p50_s)


def test_a_front_that_began_anew_makes_no_negative_rate() -> None:
    before = Reading(at=1.0, model=model(traffic=traffic(1000, 100, times_ms=(1.0, 2.0))))
    point = numbers(before, Reading(at=2.0, model=model(traffic=traffic(5, 1, times_ms=(3.0,)))))
    assert (point.requests_per_s, point.failed_per_s) == (0.0, 0.0)


def test_two_readings_at_one_time_divide_by_nothing() -> None:
    reading = Reading(at=1.0, model=model(traffic=traffic(5)))
    assert math.isnan(numbers(reading, reading).requests_per_s)


def test_the_process_nearest_to_its_limit_counts_and_none_without_a_limit() -> None:
    slots = (slot("m:0", usage=usage(10, 100)), slot("m:1", usage=usage(90, 100)), slot("m:2", usage=usage(500, 0)))
    assert numbers(None, Reading(at=0.0, model=model(slots=slots))).memory_share == 0.9
    assert math.isnan(numbers(None, Reading(at=0.0, model=model(slots=slots[2:]))).memory_share)


def test_a_new_process_has_taken_all_of_its_time_since() -> None:
    before = [slot("m:0", 1, usage=usage(cpu_s=9.0))]
    assert cpu_seconds(before, [slot("m:0", 1, usage=usage(cpu_s=9.5))]) == 0.5
    assert cpu_seconds(before, [slot("m:0", 2, usage=usage(cpu_s=0.25))]) == 0.25


@pytest.mark.parametrize(
    ("points", "kept"), [(0, 0), (1, 1), (POINTS_MAX, POINTS_MAX), (POINTS_MAX + 1, POINTS_MAX), (3000, POINTS_MAX)]
)
def test_a_ring_holds_so_many_points_and_no_more(points: int, kept: int) -> None:
    ring = Ring()
    for number in range(points):
        ring.add(float(number), Numbers(waiting=float(number)))
    document = ring.document()
    assert len(ring) == kept
    assert document["waiting"] == [float(f"{number:.4g}") for number in range(points - kept, points)]
    assert {len(column) for column in document.values()} == {kept}
    assert ring.size_bytes == kept * (8 + 4 * len(SERIES))


def test_what_is_older_than_the_window_goes() -> None:
    ring = Ring()
    for at in (0.0, 5.0, 10.0):
        ring.add(at, Numbers())
    ring.add(5.0 + KEPT_S, Numbers())
    assert ring.document()["at"] == [5.0, 10.0, 5.0 + KEPT_S]


def test_unknown_is_null_in_json() -> None:
    ring = Ring()
    ring.add(1.0, Numbers(waiting=0.5))
    found = msgspec.json.decode(msgspec.json.encode(ring.document()))
    assert (found["p99_s"], found["waiting"]) == ([None], [0.5])


def test_versions_that_are_gone_are_forgotten() -> None:
    history = History()
    history.add(1.0, {"a.v1": Numbers(), "b.v1": Numbers()})
    history.add(2.0, {"b.v1": Numbers()})
    assert ("a.v1" in history, "b.v1" in history, len(history)) == (False, True, 1)
    assert history.document(["a.v1", "b.v1", "c.v1"]).keys() == {"b.v1"}


def test_a_thousand_rollouts_leave_nothing_behind() -> None:
    history = History()
    for version in range(1000):
        history.add(float(version), {f"m.v{version}": Numbers(), "n.v1": Numbers()})
    assert len(history) == 2
    assert history.size_bytes <= (POINTS_MAX + 1) * (8 + 4 * len(SERIES))


@pytest.mark.parametrize("versions", [0, 1, VERSIONS_MAX, VERSIONS_MAX + 1])
def test_more_versions_than_the_limit_have_no_history(versions: int) -> None:
    history = History()
    history.add(1.0, {f"m.v{number}": Numbers() for number in range(versions)})
    assert len(history) == min(versions, VERSIONS_MAX)


def test_two_hundred_slots_take_what_is_documented() -> None:
    history = History()
    for second in range(POINTS_MAX):
        history.add(float(second), {f"m.v{number}": Numbers() for number in range(200)})
    assert history.size_bytes == 200 * POINTS_MAX * (8 + 4 * len(SERIES)) < 8.4 * (1 << 20)
