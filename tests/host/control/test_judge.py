"""A canary's verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config.judgement import Judge
from host.control.judge import Tally, Verdict, judge
from host.control.referee import tally
from host.front.state import VersionState
from host.protocol.latency import Latencies, LatencyHistogram

TERMS = Judge(window_s=60, min_requests=100, max_failed_percent=2.0, max_slowdown=2.0)
MS = 1_000_000


def latency(*durations_ms: float) -> Latencies:
    histogram = LatencyHistogram()
    for duration_ms in durations_ms:
        histogram.add(int(duration_ms * MS))
    return histogram.read()


GOOD = Tally(1000, 0, latency(*[10.0] * 1000))


@pytest.mark.parametrize("requests", [0, 1, 99])
def test_fewer_requests_than_it_takes_say_nothing_however_long_that_is(requests: int) -> None:
    assert judge(TERMS, Tally(0, requests), GOOD, 1e6)[0] is Verdict.WAIT


@pytest.mark.parametrize(
    ("failed", "elsewhere", "verdict"),
    [
        (0, 0, Verdict.WAIT),
        (2, 0, Verdict.WAIT),
        (3, 0, Verdict.ROLL_BACK),
        (12, 10, Verdict.WAIT),
        (13, 10, Verdict.ROLL_BACK),
    ],
)
def test_too_many_failures_end_it_before_its_window(failed: int, elsewhere: int, verdict: Verdict) -> None:
    canary = Tally(100 - failed, failed, GOOD.latency)
    default = Tally(100 - elsewhere, elsewhere, GOOD.latency)
    found, why = judge(TERMS, canary, default, 1.0)
    assert found is verdict
    assert f"{failed}.0 % of 100 requests failed" in why


@pytest.mark.parametrize(
    ("canary_ms", "default_ms", "verdict"),
    [(10, 10, Verdict.PASSED), (18, 10, Verdict.PASSED), (30, 10, Verdict.ROLL_BACK), (0.9, 0.1, Verdict.PASSED)],
)
def test_slowness_counts_at_the_end_of_the_window(canary_ms: float, default_ms: float, verdict: Verdict) -> None:
    canary = Tally(100, 0, latency(*[canary_ms] * 100))
    default = Tally(100, 0, latency(*[default_ms] * 100))
    assert judge(TERMS, canary, default, 59.9)[0] is Verdict.WAIT
    assert judge(TERMS, canary, default, 60.0)[0] is verdict


def test_a_default_that_was_not_asked_is_nothing_to_compare_times_with() -> None:
    assert judge(TERMS, GOOD, Tally(), 60.0)[0] is Verdict.PASSED


@given(answered=st.integers(0, 10_000), failed=st.integers(0, 10_000), watched_s=st.floats(0, 1e6))
def test_one_that_fails_no_more_than_it_may_is_never_rolled_back_for_it(
    answered: int, failed: int, watched_s: float
) -> None:
    found, why = judge(TERMS, Tally(answered, failed), Tally(answered, failed), watched_s)
    assert found is not Verdict.ROLL_BACK
    assert why


def counted(answered: int, failed: int, *durations_ms: float) -> VersionState:
    return VersionState(answered=answered, failed=failed, latency=latency(*durations_ms))


def test_a_tally_is_what_all_fronts_counted_since() -> None:
    before = {1: {"churn.v2": counted(10, 1, 5.0)}, 2: {}}
    now = {
        1: {"churn.v2": counted(14, 3, 5.0, 7.0)},
        2: {"churn.v2": counted(5, 0, 7.0)},
        3: {"churn.v2": counted(2, 2, 7.0)},
        4: {"other.v1": counted(9, 9)},
    }
    found = tally("churn.v2", before, now)
    assert (found.answered, found.failed, found.latency) == (11, 4, latency(7.0, 7.0, 7.0))
    assert tally("nobody.v1", before, now) == Tally()
