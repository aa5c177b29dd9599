"""How long answers took: a histogram that is exact in its counts, and cheap enough for every answer.

Buckets are log-linear: eight of equal width for each power of two, so each is between 6.7 and 12.5 % of what it holds,
from 8 ns to centuries, and the buckets of any two histograms are the same. They are added up, subtracted and read by
pure functions; whoever reads them regularly subtracts what it saw before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

_STEPS_BITS: Final = 3
_STEPS: Final = 1 << _STEPS_BITS
"""Buckets for each power of two."""
_BUCKETS: Final = (64 - _STEPS_BITS) * _STEPS
"""Times are below 2^63 ns."""


class Latencies(msgspec.Struct, frozen=True):
    """What a histogram held at one time."""

    sum_ns: int = 0
    counts: dict[int, int] = {}
    """Bucket to answers; the empty ones are left out."""

    @property
    def count(self) -> int:
        """How many answers it holds."""
        return sum(self.counts.values())


class LatencyHistogram:
    """Counts times. One per model version and front; nothing is ever taken out."""

    __slots__ = ("_counts", "_sum_ns")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._sum_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one."""
        self._sum_ns += duration_ns
        if duration_ns < _STEPS:  # the shortest that there is a bucket for; no answer takes so little
            duration_ns = _STEPS
        shift = duration_ns.bit_length() - 4  # the leading bit and three behind it stay
        self._counts[(shift << 3) + (duration_ns >> shift) - 8] += 1

    def read(self) -> Latencies:
        """What has been counted until now."""
        return Latencies(self._sum_ns, {bucket: count for bucket, count in enumerate(self._counts) if count})


def bounds_ns(bucket: int) -> tuple[int, int]:
    """What a bucket holds: times from the first to below the second."""
    shift, step = divmod(bucket, _STEPS)
    return (step + _STEPS) << shift, (step + _STEPS + 1) << shift


def merged(parts: Iterable[Latencies]) -> Latencies:
    """All of them together, as of several fronts."""
    sum_ns = 0
    counts: dict[int, int] = {}
    for part in parts:
        sum_ns += part.sum_ns
        for bucket, count in part.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
    return Latencies(sum_ns, counts)


def since(before: Latencies, now: Latencies) -> Latencies:
    """What came between two readings of one histogram; all of it, if it began anew in between."""
    counts = {bucket: count - before.counts.get(bucket, 0) for bucket, count in now.counts.items()}
    if min(counts.values(), default=0) < 0 or not before.counts.keys() <= now.counts.keys():
        return now
    return Latencies(now.sum_ns - before.sum_ns, {bucket: count for bucket, count in counts.items() if count})


def quantile_ns(latencies: Latencies, quantile: float) -> float | None:
    """The time that this share of the answers (0 to 1) took at most; None if there are none.

    Within a bucket, times are taken to be spread evenly: it is wrong by a bucket's width at most.
    """
    rank = quantile * latencies.count
    below = 0
    bounds: tuple[int, int] | None = None
    for bucket in sorted(latencies.counts):
        count = latencies.counts[bucket]
        bounds = bounds_ns(bucket)
        if below + count >= rank:
            return bounds[0] + (bounds[1] - bounds[0]) * max(0.0, rank - below) / count
        below += count
    return None if bounds is None else float(bounds[1])
