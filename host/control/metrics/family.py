"""prometheus-client's families of metrics, held as rows: hundreds of histograms make a hundred thousand objects less.

Its own `Metric` has an object with a dictionary of labels for each number, and its writer some 15 us for each of
them: 200 histograms are 8,400 numbers. These families hold a row for each set of labels; `samples` makes of them what
the library expects, for whoever wants it (docs/adr/0028).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import add
from typing import Final, NamedTuple

from prometheus_client import Metric
from prometheus_client.samples import Sample

from host.protocol.counters import BATCH_ROWS, Histograms
from host.protocol.latency import BUCKETS, bounds_ns

_NS_PER_S: Final = 1_000_000_000
Labels = tuple[str, ...]
"""Values, in the order of the family's names."""


class Buckets(NamedTuple):
    """A histogram as Prometheus has it."""

    counts: Sequence[int]
    """Cumulative, one for each bound; the last one counts all."""
    total: float


class Family(Metric):
    """Counters or gauges: one number for each set of labels."""

    def __init__(self, name: str, documentation: str, kind: str, label_names: Sequence[str] = ()) -> None:
        """`name`: without `_total`; `label_names` in alphabetical order."""
        super().__init__(name, documentation, kind)
        self.label_names = tuple(label_names)
        self.rows: list[tuple[Labels, float]] = []

    def add(self, number: float, *labels: str) -> None:
        """Add a number."""
        self.rows.append((labels, number))

    @property
    def sample_name(self) -> str:
        """What stands before the labels."""
        return f"{self.name}_total" if self.type == "counter" else self.name

    @property
    def samples(self) -> list[Sample]:
        """As prometheus-client has them."""
        names = self.label_names
        return [Sample(self.sample_name, dict(zip(names, row, strict=True)), number) for row, number in self.rows]

    @samples.setter
    def samples(self, _: list[Sample]) -> None:
        """There is nothing to set: the library's constructor does it."""


class HistogramFamily(Metric):
    """Histograms with the same bounds."""

    def __init__(self, name: str, documentation: str, label_names: Sequence[str], bounds: Sequence[str]) -> None:
        """`bounds`: as they are written, the last one `+Inf`; `label_names` in alphabetical order, behind `le`."""
        super().__init__(name, documentation, "histogram")
        self.label_names = tuple(label_names)
        self.bounds = tuple(bounds)
        self.rows: list[tuple[Labels, Buckets]] = []

    def add(self, buckets: Buckets, *labels: str) -> None:
        """Add a histogram."""
        self.rows.append((labels, buckets))

    @property
    def samples(self) -> list[Sample]:
        """As prometheus-client has them."""
        found = []
        for row, buckets in self.rows:
            labels = dict(zip(self.label_names, row, strict=True))
            found += [
                Sample(f"{self.name}_bucket", {"le": bound, **labels}, count)
                for bound, count in zip(self.bounds, buckets.counts, strict=True)
            ]
            found.append(Sample(f"{self.name}_count", labels, buckets.counts[-1]))
            found.append(Sample(f"{self.name}_sum", labels, buckets.total))
        return found

    @samples.setter
    def samples(self, _: list[Sample]) -> None:
        """There is nothing to set: the library's constructor does it."""


# -- folding --------------------------------------------------------------------------------------------------
_FIRST_POWER: Final = 15
_LAST_POWER: Final = 34
BOUNDS_NS: Final = (
    *(half << (power - 1) for power in range(_FIRST_POWER, _LAST_POWER) for half in (2, 3)),
    1 << _LAST_POWER,
)
"""33 us to 17 s, in powers of two and 1.5 times those: each is the end of one of our buckets, so that folding those is
exact. Two bounds are 33 to 50 % apart."""
SECONDS: Final = (*(repr(bound / _NS_PER_S) for bound in BOUNDS_NS), "+Inf")
_STARTS: Final = [bounds_ns(bucket)[0] for bucket in range(BUCKETS)]
_FIRST: Final = _STARTS.index(BOUNDS_NS[0])
_END: Final = _STARTS.index(BOUNDS_NS[-1])
_STEP: Final = (_END - _FIRST) // (len(BOUNDS_NS) - 1)
"""The buckets that begin at the first and the last bound; between two bounds lie as many as between any other two."""

ROWS: Final = (*(repr(float(rows)) for rows in BATCH_ROWS[:-1]), "+Inf")


def folded(parts: Iterable[Histograms], name: str) -> Buckets:
    """Add histograms of a name up, as of several fronts, in seconds between `BOUNDS_NS`."""
    counts = [0] * len(SECONDS)
    sum_ns = 0
    for part in parts:
        if part.is_empty(name):
            continue
        part_ns, held = part.dense(name)
        sum_ns += part_ns
        below = list(accumulate(held[_FIRST:_END], initial=sum(held[:_FIRST])))[::_STEP]
        below.append(below[-1] + sum(held[_END:]))
        counts = list(map(add, counts, below))
    return Buckets(counts, sum_ns / _NS_PER_S)


_BATCHES_OF: Final = tuple(f"batches_of_{rows}_rows" for rows in BATCH_ROWS)


def folded_rows(total: Mapping[str, int]) -> Buckets:
    """How many batches of how many rows a version's workers ran together, between `BATCH_ROWS`."""
    return Buckets(list(accumulate([total[name] for name in _BATCHES_OF])), total["rows"])
