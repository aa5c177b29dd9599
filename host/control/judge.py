"""Whether a canary is as good as the version that it may replace. Pure: counts in, a verdict out."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from host.config.judgement import Judge
from host.protocol.latency import Latencies, quantile_ns

QUANTILE: Final = 0.9
"""Of a hundred requests the tenth slowest says something, the slowest does not."""

SLOWER_MIN_NS: Final = 1_000_000
"""Less than a millisecond of difference is nobody's concern, whatever the ratio."""


class Tally(NamedTuple):
    """What became of a version's requests since it has been watched."""

    answered: int = 0
    failed: int = 0
    latency: Latencies = Latencies()

    @property
    def requests(self) -> int:
        """All of them."""
        return self.answered + self.failed

    @property
    def failed_percent(self) -> float:
        """The share that failed."""
        return 100.0 * self.failed / self.requests if self.requests else 0.0


class Verdict(enum.Enum):
    """What is to be done with a canary."""

    WAIT = "wait"
    ROLL_BACK = "roll back"
    PASSED = "passed"
    """It was watched for its window, and is as good."""


def judge(terms: Judge, canary: Tally, default: Tally, watched_s: float) -> tuple[Verdict, str]:
    """The verdict, and why."""
    if canary.requests < terms.min_requests:
        return Verdict.WAIT, f"{canary.requests} requests, of {terms.min_requests} that it takes"
    more = canary.failed_percent - default.failed_percent
    failed = (
        f"{canary.failed_percent:.1f} % of {canary.requests} requests failed, {default.failed_percent:.1f} % elsewhere"
    )
    if more > terms.max_failed_percent:
        return Verdict.ROLL_BACK, failed
    if watched_s < terms.window_s:
        return Verdict.WAIT, failed
    slow_ns, base_ns = quantile_ns(canary.latency, QUANTILE), quantile_ns(default.latency, QUANTILE)
    if slow_ns is not None and base_ns is not None:
        times = f"p90 {slow_ns / 1e6:.1f} ms, elsewhere {base_ns / 1e6:.1f} ms"
        if slow_ns > terms.max_slowdown * base_ns and slow_ns - base_ns > SLOWER_MIN_NS:
            return Verdict.ROLL_BACK, times
        return Verdict.PASSED, f"{failed}; {times}"
    return Verdict.PASSED, failed
