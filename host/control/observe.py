"""What the workers' counters and the fronts say of a model's load. Pure: two looks in, an observation out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec

from host.dispatch import Demand

_NS_PER_S: Final = 1_000_000_000

Count = Annotated[int, msgspec.Meta(ge=0)]


class StageCounter(msgspec.Struct, frozen=True):
    """How often a stage was passed, and how long that took in all."""

    count: Count = 0
    ns: Count = 0


class StageCounters(msgspec.Struct, frozen=True):
    """The stages that matter here."""

    success: StageCounter = StageCounter()
    fail: StageCounter = StageCounter()
    queue: StageCounter = StageCounter()
    """From the front's receipt to the start of the batch."""


class WorkerCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What control reads of a worker's answer to `Operation.STATISTICS`."""

    busy_ns: Count
    """Of its life, so far."""
    at_ns: Count
    """CLOCK_MONOTONIC, when it was asked."""
    inference_stats: StageCounters = StageCounters()

    @property
    def requests(self) -> int:
        """Answered, with a result or without."""
        return self.inference_stats.success.count + self.inference_stats.fail.count


class ViewCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What control reads of a feature process's counters of one view: keys, by where they were found."""

    present: Count = 0
    """In the store."""
    cached: Count = 0
    stale: Count = 0
    missing: Count = 0
    unavailable: Count = 0

    @property
    def hits(self) -> int:
        """Found in the cache."""
        return self.cached + self.stale

    @property
    def keys(self) -> int:
        """All that were asked for."""
        return self.hits + self.present + self.missing + self.unavailable

    def __add__(self, other: ViewCounts) -> ViewCounts:
        """Those of two processes together."""
        return ViewCounts(
            present=self.present + other.present,
            cached=self.cached + other.cached,
            stale=self.stale + other.stale,
            missing=self.missing + other.missing,
            unavailable=self.unavailable + other.unavailable,
        )


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """What a feature process says of a store."""

    open: bool
    """The store does not answer, and is left alone (the circuit is open)."""
    openings: Count = 0


class FeatureCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What control reads of a feature process's answer to `Operation.STATISTICS`."""

    stores: dict[str, StoreState] = {}
    views: dict[str, ViewCounts] = {}


def together(parts: Iterable[FeatureCounters]) -> FeatureCounters:
    """What several feature processes say: a store is open when it is for one of them."""
    stores: dict[str, StoreState] = {}
    views: dict[str, ViewCounts] = {}
    for part in parts:
        for name, store in part.stores.items():
            earlier = stores.get(name, StoreState(open=False))
            stores[name] = StoreState(open=store.open or earlier.open, openings=store.openings + earlier.openings)
        for name, counts in part.views.items():
            views[name] = views.get(name, ViewCounts()) + counts
    return FeatureCounters(stores=stores, views=views)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at one worker."""

    pid: int
    counters: WorkerCounters | None = None
    """None: it did not answer in time."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """The load of one model version since the last look."""

    wanted: int
    """Processes that should run, those that still load included."""
    ready: int = 0
    """Workers whose load is known."""
    busy: float = 0.0
    """Mean share of the time in which they were not idle, from 0 to 1."""
    queue_wait_s: float = 0.0
    """Mean time from the front's receipt of a request to the start of its batch."""
    request_s: float = 0.0
    """Mean time for which a request keeps a worker busy, its share of a batch; 0: none was answered."""
    requests: int = 0
    """Answered by workers."""
    unserved: int = 0
    """Requests that no worker was there for."""


def observe(
    before: Mapping[str, Reading], now: Mapping[str, Reading], *, wanted: int, unserved: int = 0
) -> tuple[Observation, dict[str, Reading]]:
    """Compare two looks at a model version's ready workers, by program; also return what to give as `before` next time.

    A worker that does not answer is in the middle of a batch: busy all the time. One that is seen for the first
    time, or whose process is another than before, is left out until the next look.
    """
    shares: list[float] = []
    busy_ns = requests = waits = waited_ns = 0
    kept: dict[str, Reading] = {}
    for program, reading in now.items():
        earlier = before.get(program)
        if earlier is not None and earlier.pid != reading.pid:
            earlier = None
        if reading.counters is None:
            shares.append(1.0)
            if earlier is not None:
                kept[program] = earlier
            continue
        kept[program] = reading
        if earlier is None or earlier.counters is None:
            continue
        new, old = reading.counters, earlier.counters
        wall_ns, worked_ns = new.at_ns - old.at_ns, new.busy_ns - old.busy_ns
        # Counters that went down are those of another process, whatever its pid.
        if wall_ns <= 0 or worked_ns < 0:
            continue
        shares.append(min(1.0, worked_ns / wall_ns))
        busy_ns += worked_ns
        requests += max(0, new.requests - old.requests)
        waits += max(0, new.inference_stats.queue.count - old.inference_stats.queue.count)
        waited_ns += max(0, new.inference_stats.queue.ns - old.inference_stats.queue.ns)
    observation = Observation(
        wanted=wanted,
        ready=len(shares),
        busy=sum(shares) / len(shares) if shares else 0.0,
        queue_wait_s=waited_ns / waits / _NS_PER_S if waits else 0.0,
        request_s=busy_ns / requests / _NS_PER_S if requests else 0.0,
        requests=requests,
        unserved=unserved,
    )
    return observation, kept


FrontDemands = Mapping[int, Mapping[str, Demand]]
"""What each front says, by its pid and by model version, as `churn.v3`; versions without such requests are left out."""


def unserved(group: str, before: FrontDemands, now: FrontDemands) -> int:
    """Requests of a model version that no worker was there for: held now, or come since the last look.

    Of a front that is seen for the first time only what it holds counts: the rest may be long ago.
    """
    total = 0
    for pid, demands in now.items():
        demand = demands.get(group, _NO_DEMAND)
        earlier = before[pid].get(group, _NO_DEMAND) if pid in before else demand
        total += max(demand.waiting, demand.so_far - earlier.so_far)
    return total


_NO_DEMAND: Final = Demand(waiting=0, so_far=0)
