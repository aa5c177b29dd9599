"""The last fifteen minutes of every model version, in rings of numbers. Pure: readings in, rows out.

**Memory.** A ring holds at most `POINTS_MAX` points, each of `len(SERIES)` floats of 4 bytes and a time of 8: 42 KiB.
A host has a ring for each model version, at most `VERSIONS_MAX`: 200 slots of 200 versions take 8.3 MiB, 200 slots of
one version 42 KiB. What is not deployed any more is forgotten with its ring.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from host.control.observe import ViewCounts
from host.control.status import ModelStatus, SlotStatus, Traffic
from host.protocol.latency import Latencies, quantile_ns, since

KEPT_S: Final = 900.0
POINT_S: Final = 1.0
POINTS_MAX: Final = 900
VERSIONS_MAX: Final = 256
"""Of more than so many versions the rest has no history: their numbers of now are shown all the same."""

_NS_PER_S: Final = 1e9
_UNKNOWN: Final = math.nan
"""JSON has null for it."""


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """One model version at one time; NaN where a number is not known."""

    requests_per_s: float = _UNKNOWN
    failed_per_s: float = _UNKNOWN
    p50_s: float = _UNKNOWN
    p99_s: float = _UNKNOWN
    waiting: float = _UNKNOWN
    """Requests that wait for their answer, queued or running."""
    busy_share: float = _UNKNOWN
    """Of the time since the last point, on average over its workers."""
    memory_share: float = _UNKNOWN
    """Of its limit; of the process that is nearest to it."""
    memory_bytes: float = _UNKNOWN
    """Of all of its processes."""
    cpus: float = _UNKNOWN
    """CPU seconds in a second, of all of its processes."""
    cache_hit_share: float = _UNKNOWN
    """Of the keys of the views that it reads: found in the cache."""


SERIES: Final = Numbers.__struct_fields__


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted of one version until `at`, which is seconds of a clock that never goes back."""

    at: float
    model: ModelStatus
    busy_share: float = _UNKNOWN
    views: Mapping[str, ViewCounts] = {}
    """Of the views that it reads."""


def numbers(before: Reading | None, now: Reading) -> Numbers:
    """What happened between two readings, per second; without an earlier one only what does not need any."""
    slots = now.model.slots
    usages = [slot.usage for slot in slots if slot.usage is not None]
    shares = [usage.memory_bytes / usage.memory_limit_bytes for usage in usages if usage.memory_limit_bytes]
    traffic = now.model.traffic
    fields: dict[str, float] = {
        "waiting": float(traffic.waiting) if traffic is not None else 0.0,
        "busy_share": now.busy_share,
        "memory_share": max(shares, default=_UNKNOWN),
        "memory_bytes": float(sum(usage.memory_bytes for usage in usages)) if usages else _UNKNOWN,
    }
    elapsed_s = now.at - before.at if before is not None else 0.0
    if before is not None and elapsed_s > 0:
        fields |= _rates(before.model.traffic, traffic, elapsed_s)
        fields["cpus"] = cpu_seconds(before.model.slots, slots) / elapsed_s
        fields["cache_hit_share"] = _hit_share(before.views, now.views)
    return Numbers(**fields)


def _rates(before: Traffic | None, now: Traffic | None, elapsed_s: float) -> dict[str, float]:
    if now is None:
        return {"requests_per_s": 0.0, "failed_per_s": 0.0}
    answered, failed, earlier = 0, 0, Latencies()
    if before is not None:
        answered, failed, earlier = before.answered, before.failed, before.latency
    latency = since(earlier, now.latency)
    p50_ns, p99_ns = quantile_ns(latency, 0.5), quantile_ns(latency, 0.99)
    more_failed = max(0, now.failed - failed)
    return {
        # A front that died has taken its counts with it: less than nothing is nothing.
        "requests_per_s": (max(0, now.answered - answered) + more_failed) / elapsed_s,
        "failed_per_s": more_failed / elapsed_s,
        "p50_s": _UNKNOWN if p50_ns is None else p50_ns / _NS_PER_S,
        "p99_s": _UNKNOWN if p99_ns is None else p99_ns / _NS_PER_S,
    }


def cpu_seconds(before: Iterable[SlotStatus], now: Iterable[SlotStatus]) -> float:
    """What processes took between two looks; a process that began meanwhile has taken all of its own since."""
    earlier = {(slot.name, slot.pid): slot.usage.cpu_s for slot in before if slot.usage is not None}
    return sum(
        max(0.0, slot.usage.cpu_s - earlier.get((slot.name, slot.pid), 0.0)) for slot in now if slot.usage is not None
    )


def _hit_share(before: Mapping[str, ViewCounts], now: Mapping[str, ViewCounts]) -> float:
    hits = keys = 0
    for name, counts in now.items():
        earlier = before.get(name, ViewCounts())
        hits += max(0, counts.hits - earlier.hits)
        keys += max(0, counts.keys - earlier.keys)
    return hits / keys if keys else _UNKNOWN


class Ring:
    """The points of one version, oldest first."""

    __slots__ = ("_series", "_times")

    def __init__(self) -> None:
        self._times = array("d")
        self._series = [array("f") for _ in SERIES]

    def __len__(self) -> int:
        return len(self._times)

    def add(self, at: float, point: Numbers) -> None:
        """Add a point; `at` is seconds since the epoch. What is older than `KEPT_S`, or too much, goes."""
        self._times.append(at)
        for series, value in zip(self._series, msgspec.structs.astuple(point), strict=True):
            series.append(value)
        oldest = at - KEPT_S
        gone = max(0, len(self._times) - POINTS_MAX)
        while self._times[gone] < oldest:
            gone += 1
        if gone:
            del self._times[:gone]
            for series in self._series:
                del series[:gone]

    @property
    def size_bytes(self) -> int:
        """Of its numbers."""
        arrays = [self._times, *self._series]
        return sum(one.itemsize * len(one) for one in arrays)

    def document(self) -> dict[str, Any]:
        """Times and every series, as lists of one length."""
        # The digits of a float of 4 bytes, not those of its neighbour of 8.
        columns = {
            name: [float(f"{value:.4g}") for value in series] for name, series in zip(SERIES, self._series, strict=True)
        }
        return {"at": [round(at, 1) for at in self._times], **columns}


class History:
    """Rings by group, of what is there now."""

    def __init__(self) -> None:
        self._rings: dict[str, Ring] = {}

    def __contains__(self, group: str) -> bool:
        return group in self._rings

    def __len__(self) -> int:
        return len(self._rings)

    def add(self, at: float, points: Mapping[str, Numbers]) -> None:
        """Add a point to each; versions without one are forgotten."""
        for group in [group for group in self._rings if group not in points]:
            del self._rings[group]
        for group, point in points.items():
            ring = self._rings.get(group)
            if ring is None:
                if len(self._rings) >= VERSIONS_MAX:
                    continue
                ring = self._rings[group] = Ring()
            ring.add(at, point)

    @property
    def size_bytes(self) -> int:
        """Of all numbers."""
        return sum(ring.size_bytes for ring in self._rings.values())

    def document(self, groups: Iterable[str]) -> dict[str, Any]:
        """What is known of these versions; those without history are left out."""
        return {group: self._rings[group].document() for group in groups if group in self._rings}
