"""Histograms: exact in their counts, narrow in their buckets, and read by pure functions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.protocol.latency import Latencies, LatencyHistogram, bounds_ns, merged, quantile_ns, since

TIMES_NS = st.integers(8, 2**56)
"""Two years at most: the sum of some hundred is a word of 64 bits."""


def counted(times_ns: list[int]) -> Latencies:
    histogram = LatencyHistogram()
    for time_ns in times_ns:
        histogram.add(time_ns)
    return histogram.read()


@given(TIMES_NS)
def test_a_time_is_in_the_bounds_of_its_bucket_and_that_is_narrow(time_ns: int) -> None:
    [bucket] = counted([time_ns]).counts
    low, high = bounds_ns(bucket)
    assert low <= time_ns < high
    assert high - low <= max(1, low / 8)
    assert bounds_ns(bucket + 1)[0] == high


@pytest.mark.parametrize("time_ns", [0, 1, 7, 2**63 - 1])
def test_no_time_is_too_short_or_too_long(time_ns: int) -> None:
    assert counted([time_ns]).count == 1


@given(st.lists(TIMES_NS), st.lists(TIMES_NS))
def test_two_merged_are_one_of_both_and_what_came_since_is_the_second(first: list[int], second: list[int]) -> None:
    both = counted(first + second)
    assert merged([counted(first), counted(second)]) == both
    assert both.count == len(first) + len(second)
    assert both.sum_ns == sum(first) + sum(second)
    assert since(counted(first), both) == counted(second)


def test_a_front_that_started_again_has_nothing_from_before() -> None:
    assert since(counted([100, 100, 5000]), counted([100])) == counted([100])
    assert since(counted([100]), counted([5000])) == counted([5000])


@given(st.lists(TIMES_NS, min_size=1), st.floats(0, 1))
def test_a_quantile_is_off_by_a_bucket_at_most(times_ns: list[int], quantile: float) -> None:
    found = quantile_ns(counted(times_ns), quantile)
    assert found is not None
    rank = max(1, -(-len(times_ns) * quantile // 1))
    exact = sorted(times_ns)[int(rank) - 1]
    assert found == pytest.approx(exact, rel=0.126)


def test_quantiles_of_nothing_and_of_a_spread() -> None:
    assert quantile_ns(counted([]), 0.5) is None
    spread = counted([1000 * number for number in range(1, 10_001)])
    for quantile in (0.5, 0.9, 0.99, 1.0):
        assert quantile_ns(spread, quantile) == pytest.approx(1e7 * quantile, rel=0.05)


def test_it_travels_as_json() -> None:
    read = counted([100, 200, 10**9])
    assert msgspec.json.decode(msgspec.json.encode(read), type=Latencies) == read
