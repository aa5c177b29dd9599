"""How long something took: a histogram that is exact in its counts, and cheap enough for every request.

Buckets are log-linear: eight of equal width for each power of two, so each is between 6.7 and 12.5 % of what it holds,
from 8 ns to centuries, and the buckets of any two histograms are the same. They are added up, subtracted and read by
pure functions; whoever reads them regularly subtracts what it saw before.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from typing import Final

import msgspec

_STEPS_BITS: Final = 3
_STEPS: Final = 1 << _STEPS_BITS
"""Buckets for each power of two."""
BUCKETS: Final = (64 - _STEPS_BITS) * _STEPS
"""For all times below 2^64 ns; none is longer than 2^63."""
WORDS: Final = 1 + BUCKETS
"""What a histogram takes: the sum, then the buckets."""


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
    """Counts times; nothing is ever taken out. It lies in `WORDS` words, of a list or of a file that others read."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: MutableSequence[int] | memoryview | None = None, at: int = 0) -> None:
        """`words`: where it lies, from `at` on; None: in a list of its own."""
        self._words: MutableSequence[int] = [0] * WORDS if words is None else words  # type: ignore[assignment]
        self._at = at

    def add(self, duration_ns: int) -> None:
        """Count one, of 0 to 2^63 ns."""
        words, at = self._words, self._at
        words[at] += duration_ns
        if duration_ns < _STEPS:  # the shortest that there is a bucket for; no answer takes so little
            duration_ns = _STEPS
        shift = duration_ns.bit_length() - 4  # the leading bit and three behind it stay
        words[at + (shift << 3) + (duration_ns >> shift) - 7] += 1  # the first bucket is 8 >> 0, behind the sum

    def read(self) -> Latencies:
        """What has been counted until now."""
        sum_ns, *counts = self._words[self._at : self._at + WORDS]
        return Latencies(sum_ns, {bucket: count for bucket, count in enumerate(counts) if count})


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
