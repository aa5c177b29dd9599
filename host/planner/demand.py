"""How many processes a model needs, and how few hosts could hold them all. Pure.

**What a loss does.** HAProxy shares a model's requests among its hosts in proportion to their processes. When `k` of
`n` processes are gone, each of the others is as busy as `work / (n - k)`, and a host with `j` of them carries
`j * work / (n - k)`. A fleet survives if all processes and hosts that are left stay within `after_loss`, whichever host
(zone) is lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from host.planner.model import SPARE_SHARE, TARGET, Fleet, PlannedModel, Survive

ROUNDING: Final = 1e-9
"""Of sums of shares: what is larger by less is not larger."""

WEIGHTS: Final = 16
"""Steps from memory alone to cores alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one model is to get."""

    model: PlannedModel
    processes: int
    work_cores: float
    hosts: tuple[int, ...]
    """Where it may run: positions in the fleet, ascending."""
    zones_min: int
    why: str
    """What asks for so many."""

    @property
    def load_cores(self) -> float:
        """What one process keeps busy."""
        return self.work_cores / self.processes


def left_at_least(model: PlannedModel, after_loss: float) -> int:
    """Processes that have to be left to carry everything: at least one."""
    return max(1, math.ceil(model.work_cores / (after_loss * model.cpus) - ROUNDING))


def needs_of(fleet: Fleet, present: Mapping[str, int]) -> tuple[Need, ...]:
    """What every model needs, in the fleet's order. `present`: how many processes each has.

    A model keeps of these what it would need for the demand at which its processes are `SPARE_SHARE` busy now and
    `TARGET.busy` then: demand that goes down by less stops nothing, and when it comes back it starts nothing.
    """
    allowed: dict[tuple[frozenset[str], frozenset[str]], tuple[int, ...]] = {}
    needs = []
    for model in fleet.models:
        rule = model.only, model.never
        if rule not in allowed:
            allowed[rule] = tuple(number for number, host in enumerate(fleet.hosts) if model.allows(host))
        hosts = allowed[rule]
        zones = len({fleet.hosts[number].zone for number in hosts})
        processes, why = _processes(model, fleet.survive, len(hosts), zones)
        has = present.get(model.name, 0)
        if has > processes:
            grown = replace(model, requests_per_s=model.requests_per_s * TARGET.busy / SPARE_SHARE)
            most, _ = _processes(grown, fleet.survive, len(hosts), zones)
            if most > processes:
                processes, why = (
                    min(has, most),
                    f"has them, and {TARGET.busy / SPARE_SHARE - 1:.0%} more demand would ask for so many",
                )
        zones_min = min(2, max(1, zones), processes) if model.zones_min is None else model.zones_min
        needs.append(
            Need(
                model=model,
                processes=processes,
                work_cores=model.work_cores,
                hosts=hosts,
                zones_min=zones_min,
                why=why,
            )
        )
    return tuple(needs)


def _processes(model: PlannedModel, survive: Survive, hosts: int, zones: int) -> tuple[int, str]:
    """The fewest processes, and what asks for so many."""
    reasons = [
        (math.ceil(model.work_cores / (TARGET.busy * model.cpus) - ROUNDING), f"busy {TARGET.busy:.0%} of the time"),
        (model.hosts_min, f"on {model.hosts_min} hosts at least"),
        (model.zones_min or 1, f"in {model.zones_min or 1} zones at least"),
    ]
    left = left_at_least(model, TARGET.after_loss)
    if survive is not Survive.NONE:
        reasons.append((_with_one_lost(left, hosts), f"{left} have to be left when a host is lost"))
    if survive is Survive.ZONE:
        reasons.append((_with_one_lost(left, zones), f"{left} have to be left when a zone is lost"))
    return max(reasons, key=lambda reason: reason[0])


def _with_one_lost(left: int, domains: int) -> int:
    """The fewest processes of which `left` remain when the fullest of so many domains is lost, evenly filled.

    With one domain none remains, whatever their number; so many more than `left` that the obstacle can be told.
    """
    if domains < 2:
        return left + 1
    processes = math.ceil(left * domains / (domains - 1))
    while processes - math.ceil(processes / domains) < left:
        processes += 1
    return processes


@dataclass(frozen=True, slots=True)
class Bound:
    """No plan has fewer hosts."""

    hosts: int
    why: str
    weight: float = 0.5
    """Of cores beside memory, in what hosts are worth."""


def hosts_bound(fleet: Fleet, needs: Sequence[Need]) -> Bound:
    """The fewest hosts that could hold everything at `TARGET`, by what all of them together must have.

    The largest of: what each group of models with the same allowed hosts needs of cores, of memory, and of both in
    weighted sums (each sum over the chosen hosts must reach the models' sum, so the hosts that have most of it are
    counted until they do); the same of cores with the largest host gone, or a zone; and the hosts that one model asks
    for.
    """
    bounds = [Bound(need.model.hosts_min, f"model {need.model.name}") for need in needs]
    groups: dict[tuple[int, ...], list[Need]] = {}
    for need in needs:
        groups.setdefault(need.hosts, []).append(need)
    everywhere = tuple(range(len(fleet.hosts)))
    for hosts in {everywhere: None, **dict.fromkeys(groups)}:
        inside = set(hosts)
        members = [need for group, some in groups.items() if inside.issuperset(group) for need in some]
        bounds += _bounds_of_group(fleet, hosts, members)
    return max(bounds, key=lambda bound: bound.hosts, default=Bound(0, "nothing"))


def _bounds_of_group(fleet: Fleet, hosts: Sequence[int], needs: Sequence[Need]) -> Iterable[Bound]:
    cores = [fleet.hosts[number].cores for number in hosts]
    memory = [fleet.hosts[number].memory_bytes for number in hosts]
    work = sum(need.work_cores for need in needs)
    memory_bytes = sum(need.processes * need.model.memory_bytes for need in needs)
    if work > 0 and fleet.survive is not Survive.NONE:
        largest_first = sorted(cores, reverse=True)
        yield Bound(1 + _fewest(largest_first[1:], work / TARGET.after_loss), "cores, with a host lost", 1.0)
    if work > 0 and fleet.survive is Survive.ZONE:
        yield Bound(_fewest_with_zone_lost(fleet, hosts, work / TARGET.after_loss), "cores, with a zone lost", 1.0)
    for step in range(WEIGHTS + 1):
        weight = step / WEIGHTS
        what = {0: "memory", WEIGHTS: "cores"}.get(step, "cores and memory")
        wanted = (weight if work else 0) + (1 - weight if memory_bytes else 0)
        values = host_values(cores, memory, work / TARGET.busy, memory_bytes, weight)
        yield Bound(_fewest(values, wanted), what, weight)


def host_values(
    cores: Iterable[float], memory_bytes: Iterable[int], all_cores: float, all_bytes: int, weight: float
) -> list[float]:
    """What each host is worth: a weighted sum of its shares of what everything needs of cores and of memory."""
    core_value = weight / all_cores if all_cores else 0.0
    byte_value = (1 - weight) / all_bytes if all_bytes else 0.0
    return [core_value * core + byte_value * size for core, size in zip(cores, memory_bytes, strict=True)]


def _fewest_with_zone_lost(fleet: Fleet, hosts: Sequence[int], cores: float) -> int:
    """How many hosts it takes that so many cores are left whichever zone is lost.

    Outside of each zone there are at least so many hosts as reach it; added up over the zones, every host counts once
    for each zone but its own.
    """
    zones = {fleet.hosts[number].zone for number in hosts}
    outside = [
        _fewest((fleet.hosts[number].cores for number in hosts if fleet.hosts[number].zone != zone), cores)
        for zone in zones
    ]
    return max(0, *outside, math.ceil(sum(outside) / max(1, len(zones) - 1)))


def _fewest(values: Iterable[float], wanted: float) -> int:
    """How many of the largest values reach what is wanted; one more than there are if all of them do not."""
    count, total = 0, 0.0
    for value in sorted(values, reverse=True):
        if total >= wanted - ROUNDING * max(1.0, wanted):
            return count
        total += value
        count += 1
    return count if total >= wanted - ROUNDING * max(1.0, wanted) else count + 1
