"""From a fleet and what runs in it to a plan that moves as little as possible. Pure and deterministic."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import Final

from host.planner.demand import Need, needs_of
from host.planner.model import Fleet, Placement
from host.planner.occupancy import Kind
from host.planner.pack import ROOM, Plan, pack

FEW_SHARE: Final = 1.05
"""Of the lower bound on hosts: few enough to look no further."""

OTHER_WEIGHTS: Final = (0.25, 0.5, 0.75)
"""Of cores beside memory in what a host is worth, if that of the lower bound is not good enough."""

CLEARED_HOSTS: Final = (1, 4, 16, 64)
"""Hosts that are placed anew, first these few, before everything is."""


def make_plan(fleet: Fleet, present: Placement | None = None, *, repack: bool = False) -> Plan:
    """Plan a fleet. Of the present placement, models and hosts that the fleet has not are ignored.

    What does not fit is tried again without the processes that models only keep, then with a few hosts placed anew
    where least is missing, then more, then all; if nothing helps the plan that leaves the fewest processes out is
    given. `repack`: place everything anew at once, in some ways, until one takes few hosts.
    """
    present = {} if present is None or repack else {model: counts for model, counts in present.items() if counts}
    plans: list[Plan] = []
    for spare, start, weight in _ways(fleet, present, plans):
        plan = pack(fleet, needs_of(fleet, spare), start, weight=weight)
        plans.append(plan)
        if not plan.unplaced and (present or plan.hosts_used <= FEW_SHARE * plan.bound.hosts):
            return plan
    unplaced = [sum(one.processes for one in plan.unplaced) for plan in plans]
    hosts = [0 if present else plan.hosts_used for plan in plans]
    return plans[min(range(len(plans)), key=lambda number: (unplaced[number], hosts[number]))]


def _ways(
    fleet: Fleet, present: Placement, tried: Sequence[Plan]
) -> Iterator[tuple[dict[str, int], Placement, float | None]]:
    """What models keep beyond their need, what stays where it is, and what hosts are worth. `tried`: plans so far."""
    if present:
        yield {model: sum(counts.values()) for model, counts in present.items()}, present, None
        yield {}, present, None
        for hosts in CLEARED_HOSTS:
            if hosts < len(fleet.hosts):
                yield {}, _cleared(fleet, present, tried[-1], hosts), None
    for weight in (None, *OTHER_WEIGHTS):
        yield {}, {}, weight


def _share_of(need: Need, kind: Kind) -> float:
    """What one process takes of what is missing, so that shares of it compare."""
    return (need.model.memory_bytes if kind is Kind.MEMORY else need.load_cores) or 1.0


def _cleared(fleet: Fleet, present: Placement, plan: Plan, hosts: int) -> Placement:
    """The placement without that on the hosts where least is missing, and without models that no room helps."""
    missing: dict[str, float] = {}
    homeless = set()
    for one in plan.unplaced:
        in_the_way = [
            (number if obstacle.host is None else obstacle.host, obstacle.missing / _share_of(one.need, obstacle.kind))
            for number, obstacle in enumerate(one.obstacles)
            if obstacle is not None and obstacle.kind in ROOM
        ]
        if not in_the_way:
            homeless.add(one.need.model.name)
        for number, share in in_the_way:
            name = fleet.hosts[number].name
            missing[name] = min(missing.get(name, math.inf), share)
    cleared = set(heapq.nsmallest(hosts, missing, key=lambda name: (missing[name], name)))
    return {
        model: {host: count for host, count in counts.items() if host not in cleared}
        for model, counts in present.items()
        if model not in homeless
    }
