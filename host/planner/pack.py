"""Where the processes go. Pure and deterministic: a fleet, what it needs and what is there in, a plan out.

1. What runs stays where it is, as far as rules and room allow.
2. As many hosts are opened as the rest could fit on by its sums (beside those that run something already): those that
   are worth most, in all zones more or less alike; more only when something fits on none.
3. Models that may run on fewer hosts come first, then those whose processes are larger. A model goes to some
   `SPREAD_HOSTS` hosts, or as many as it needs: each time to a zone that has little of it, and there to the host where
   what is left has most nearly the mix of cores and memory that it takes (a heuristic of vector bin packing: Panigrahy
   et al., Heuristics for Vector Bin Packing, 2011, with the angle rather than the product).
4. What fits nowhere takes the place of processes that fit elsewhere.
5. Without a present placement: hosts that hold little are emptied, if their processes fit on others, also by 4.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from host.control.autoscale import TARGET_SHARE, UP_SHARE
from host.planner.demand import Bound, Need, host_values, hosts_bound
from host.planner.model import HOST_PROCESSES_MAX, MOST, TARGET, Fleet, Placement, Shares, Survive
from host.planner.occupancy import Kind, Obstacle, Occupancy

SPREAD_HOSTS: Final = math.ceil(1 / (1 - TARGET_SHARE / UP_SHARE) - 1e-9)
"""When one of so many hosts is lost, the others go from `TARGET_SHARE` to no more than `UP_SHARE`. More hosts would be
more copies of the model, more servers for the load balancer, and longer rollouts."""

CHUNK_SHARE: Final = 1 / 16
"""Of a host, that is placed at once: larger pieces leave gaps."""

ZONE_LEAD: Final = 1.25
"""A zone may have so many times what another one has of opened hosts that could be larger: fewer hosts are worth some
imbalance, not a zone that carries nearly everything."""

EVICTION_HOSTS: Final = 16
EVICTIONS_MAX: Final = 64
"""Hosts that are tried, and pieces moved on each, to make room for one process."""
MOVES_TRIED_MAX: Final = 2_000
MOVES_TRIED_A_HOST: Final = 20
"""In one plan: some seconds with 1,000 hosts. A fleet that is much too small is told so soon."""

MOST_WEIGHT: Final = 15 / 16
"""Of cores beside memory, or the other way round, in what a host is worth: neither is worth nothing."""

NEAR_SHARE: Final = 1.02
"""Of the lower bound on hosts: so few that emptying more of them is not tried, which takes longer than all the rest."""

FAILED_MAX: Final = 3
"""Hosts that could not be emptied, before fewer hosts are given up."""

ROOM: Final = {Kind.MEMORY, Kind.CORES, Kind.CORES_AFTER_LOSS}
"""What other processes take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaced:
    """Processes of a model that fit nowhere."""

    need: Need
    processes: int
    obstacles: tuple[Obstacle | None, ...]
    """For one more process, of each host of the fleet, in its order. None: it would, but not all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    """What one host carries."""

    processes: int
    busy_cores: float
    memory_bytes: int
    extra_cores: float
    """At most so much more when something is lost."""
    lost: str
    """What that is; empty if nothing makes it carry more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where everything goes."""

    needs: tuple[Need, ...]
    placement: dict[str, dict[str, int]]
    """Models and hosts in the fleet's order; hosts without the model are left out."""
    unplaced: tuple[Unplaced, ...]
    loads: dict[str, HostLoad]
    """Of every host of the fleet."""
    bound: Bound

    @property
    def hosts_used(self) -> int:
        """Hosts with any process."""
        return len({host for counts in self.placement.values() for host in counts})


def pack(fleet: Fleet, needs: tuple[Need, ...], start: Placement, *, weight: float | None = None) -> Plan:
    """Place what is needed. Of what is there at the start, models and hosts that the fleet has not are ignored.

    `weight`: of cores beside memory, in what a host is worth; None: that of the lower bound on hosts.
    """
    return _Packer(fleet, needs, start, weight).plan()


class _Packer:
    def __init__(self, fleet: Fleet, needs: tuple[Need, ...], start: Placement, weight: float | None) -> None:
        self._fleet = fleet
        self._needs = needs
        self._at = Occupancy(fleet, needs)
        self._opened = [False] * len(fleet.hosts)
        self._log: list[tuple[int, int, int]] = []
        self._moves_left = min(MOVES_TRIED_MAX, MOVES_TRIED_A_HOST * len(fleet.hosts))
        self._start = start
        self._zone_lead = 1.0 if fleet.survive is Survive.ZONE else ZONE_LEAD
        self._cores_mean = _mean(host.cores for host in fleet.hosts)
        self._memory_mean = _mean(host.memory_bytes for host in fleet.hosts)
        hosts = fleet.hosts
        self._bound = hosts_bound(fleet, needs)
        self._values = host_values(
            [host.cores for host in hosts],
            [host.memory_bytes for host in hosts],
            sum(need.work_cores for need in needs) / TARGET.busy,
            sum(need.processes * need.model.memory_bytes for need in needs),
            min(MOST_WEIGHT, max(1 - MOST_WEIGHT, self._bound.weight if weight is None else weight)),
        )
        """What each host is worth: more of what is scarce."""

    def plan(self) -> Plan:
        self._keep()
        short = []
        groups = self._groups()
        for allowed in groups:
            inside = set(allowed)
            members = [model for some, group in groups.items() if inside.issuperset(some) for model in group]
            self._open_for(allowed, members)
        for group in groups.values():
            short += [model for model in group if not self._place(model)]
        for model in short:
            self._make_room(model, MOST)
        if not self._start and not any(map(self._missing, range(len(self._needs)))):
            self._empty_hosts(int(NEAR_SHARE * self._bound.hosts))
        hosts = self._fleet.hosts
        placement = {
            need.model.name: {hosts[number].name: count for number, count in sorted(counts.items())}
            for need, counts in zip(self._needs, self._at.counts, strict=True)
        }
        unplaced = [self._unplaced(model) for model in range(len(self._needs)) if self._missing(model)]
        return Plan(
            needs=self._needs,
            placement=placement,
            unplaced=tuple(unplaced),
            loads={host.name: self._load(number) for number, host in enumerate(hosts)},
            bound=self._bound,
        )

    def _unplaced(self, model: int) -> Unplaced:
        return Unplaced(
            need=self._needs[model],
            processes=self._missing(model),
            obstacles=tuple(self._at.obstacle(model, number, 1, MOST) for number in range(len(self._fleet.hosts))),
        )

    def _load(self, number: int) -> HostLoad:
        at = self._at
        return HostLoad(
            processes=sum(at.models[number].values()),
            busy_cores=at.load[number],
            memory_bytes=at.memory[number],
            extra_cores=at.worst[number],
            lost=at.worst_loss(number),
        )

    def _missing(self, model: int) -> int:
        return self._needs[model].processes - self._at.placed[model]

    def _add(self, model: int, number: int, more: int) -> None:
        self._at.add(model, number, more)
        self._log.append((model, number, more))

    def _size(self, model: int) -> float:
        """A process's share of an average host, of what it takes most of."""
        need = self._needs[model]
        return max(need.load_cores / (TARGET.busy * self._cores_mean), need.model.memory_bytes / self._memory_mean)

    # -- 1. what runs stays ---------------------------------------------------------------------------------
    def _keep(self) -> None:
        numbers = {host.name: number for number, host in enumerate(self._fleet.hosts)}
        for model in self._order(range(len(self._needs))):
            need = self._needs[model]
            known = self._start.get(need.model.name, {})
            counts = {numbers[name]: count for name, count in known.items() if name in numbers}
            for number, count in sorted(_trimmed(counts, need.processes, self._at.zone_of).items()):
                while count and self._at.obstacle(model, number, count, MOST):
                    count -= 1
                if count:
                    self._add(model, number, count)
                    self._opened[number] = True

    # -- 2. which models next, on which hosts ---------------------------------------------------------------
    def _order(self, models: Iterable[int]) -> list[int]:
        return sorted(models, key=lambda model: (-self._size(model), model))

    def _groups(self) -> dict[tuple[int, ...], list[int]]:
        """Models by their allowed hosts, those with few hosts first."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for model, need in enumerate(self._needs):
            groups.setdefault(need.hosts, []).append(model)
        return {hosts: self._order(models) for hosts, models in sorted(groups.items(), key=lambda item: len(item[0]))}

    def _open_for(self, hosts: Sequence[int], models: Sequence[int]) -> None:
        """Open some of these hosts until what is missing of models, which run nowhere else, would fit by its sums."""
        needs, at = self._needs, self._at
        cores = sum(self._missing(model) * needs[model].load_cores for model in models)
        memory = sum(self._missing(model) * needs[model].model.memory_bytes for model in models)
        survives = bool(at.domains) and bool(at.domains[0])
        opened = [number for number in hosts if self._opened[number]]
        closed = self._by_zones([number for number in hosts if not self._opened[number]], opened)
        all_cores = sum(at.hosts[number].cores for number in opened)
        room = sum(at.hosts[number].memory_bytes - at.memory[number] for number in opened)
        load = sum(at.load[number] for number in opened)
        domains: dict[int, float] = {}
        for number in opened:
            for domain in at.domains[number]:
                domains[domain] = domains.get(domain, 0.0) + at.hosts[number].cores
        for number in closed:
            left = all_cores - max(domains.values(), default=0.0)
            most = min(TARGET.busy * all_cores, TARGET.after_loss * left if survives else math.inf)
            if cores <= most - load and memory <= room:
                return
            host = at.hosts[number]
            self._opened[number] = True
            all_cores += host.cores
            room += host.memory_bytes
            for domain in at.domains[number]:
                domains[domain] = domains.get(domain, 0.0) + host.cores

    def _by_zones(self, closed: Iterable[int], opened: Iterable[int]) -> Iterator[int]:
        """Hosts in the order of opening: the one that is worth most, of the zones that are not far ahead of another."""
        at = self._at
        worth: dict[int, float] = {}
        queues: dict[int, list[int]] = {}
        for number in sorted(closed, key=lambda number: (self._values[number], -number)):
            queues.setdefault(at.zone_of[number], []).append(number)
            worth[at.zone_of[number]] = 0.0
        for number in opened:
            if at.zone_of[number] in worth:
                worth[at.zone_of[number]] += self._values[number]
        while queues:
            most = self._zone_lead * min(worth[zone] for zone in queues)
            zone = min(
                (zone for zone in queues if worth[zone] <= most),
                key=lambda zone: (-self._values[queues[zone][-1]], worth[zone], zone),
            )
            number = queues[zone].pop()
            worth[zone] += self._values[number]
            if not queues[zone]:
                del queues[zone]
            yield number

    # -- 3. where a model goes ------------------------------------------------------------------------------
    def _place(self, model: int) -> bool:
        """Place what is missing of a model; false if some of it fits nowhere."""
        need = self._needs[model]
        spread = math.ceil(need.processes / max(SPREAD_HOSTS, need.model.hosts_min))
        chunk = max(1, min(spread, int(CHUNK_SHARE / max(self._size(model), 1e-12))))
        for shares, most_here, may_open in (
            (TARGET, spread, False),
            (TARGET, HOST_PROCESSES_MAX, True),
            (MOST, HOST_PROCESSES_MAX, True),
        ):
            size = chunk
            while self._missing(model):
                self._fill(model, size, shares, most_here=most_here)
                if size > 1:
                    size = -(-size // 2)
                elif not self._missing(model) or not (may_open and self._open_one(model, shares)):
                    break
                else:
                    size = chunk
        return not self._missing(model)

    def _open_one(self, model: int, shares: Shares) -> bool:
        """Open the next host that takes one more process."""
        hosts = self._needs[model].hosts
        opened = [number for number in hosts if self._opened[number]]
        for number in self._by_zones([number for number in hosts if not self._opened[number]], opened):
            if self._at.obstacle(model, number, 1, shares) is None:
                self._opened[number] = True
                return True
        return False

    def _fill(
        self,
        model: int,
        size: int,
        shares: Shares,
        *,
        most_here: int = HOST_PROCESSES_MAX,
        without: Collection[int] = (),
    ) -> None:
        """Place pieces of a model on open hosts while any of them takes one.

        `most_here`: the most that any host may have of it then. `without`: not on these hosts.
        """
        at = self._at
        queues: dict[int, list[tuple[float, int]]] = {}
        worth: dict[int, float] = {}
        for number in self._needs[model].hosts:
            if self._opened[number] and number not in without:
                zone = at.zone_of[number]
                queues.setdefault(zone, []).append((self._score(model, number, size), number))
                worth[zone] = worth.get(zone, 0.0) + (self._values[number] or 1.0)
        for queue in queues.values():
            heapq.heapify(queue)
        while queues and (missing := self._missing(model)):
            size = min(size, missing)
            has = at.zone_counts[model]
            parts = {zone: has.get(zone, 0) / worth[zone] for zone in queues}
            most = self._zone_lead * min(parts.values())
            zone = min((zone for zone in queues if parts[zone] <= most), key=lambda zone: queues[zone][0])
            queue = queues[zone]
            number = queue[0][1]
            full = at.counts[model].get(number, 0) + size > most_here
            if not full and at.obstacle(model, number, size, shares) is None:
                self._add(model, number, size)
                heapq.heapreplace(queue, (self._score(model, number, size), number))
            else:  # it will not take one later, when everything is fuller
                heapq.heappop(queue)
                if not queue:
                    del queues[zone]

    def _score(self, model: int, number: int, size: int) -> float:
        """How unlike what so many processes take is to what a host has left with them there: -1 is the same mix.

        Of cores and memory, as shares of an average host. What is left on all hosts stays useful that way: a host does
        not run out of one while the other lies idle.
        """
        need, host, at = self._needs[model], self._fleet.hosts[number], self._at
        cores = need.load_cores / self._cores_mean / TARGET.busy
        memory = need.model.memory_bytes / self._memory_mean
        free_cores = host.cores / self._cores_mean - (at.load[number] / self._cores_mean / TARGET.busy + size * cores)
        free_memory = (host.memory_bytes - at.memory[number]) / self._memory_mean - size * memory
        return -(cores * free_cores + memory * free_memory) / (math.hypot(free_cores, free_memory) or 1.0)

    # -- 4. room for what fits nowhere ----------------------------------------------------------------------
    def _make_room(self, model: int, shares: Shares) -> bool:
        """Place what is missing, one process after the other, where others can be moved away; false if it cannot be."""
        while self._missing(model):
            obstacles = [
                (obstacle.missing, number)
                for number in self._needs[model].hosts
                if (obstacle := self._at.obstacle(model, number, 1, shares)) and obstacle.kind in ROOM
                if shares is MOST or self._opened[number]
            ]
            nearest = heapq.nsmallest(EVICTION_HOSTS, obstacles)
            if not any(self._swap(model, number, shares) for _, number in nearest):
                return False
        return True

    def _swap(self, model: int, number: int, shares: Shares) -> bool:
        """Place one process on a host, in the place of some that fit elsewhere; all or nothing."""
        began = len(self._log)
        for _ in range(EVICTIONS_MAX):
            obstacle = self._at.obstacle(model, number, 1, shares)
            if obstacle is None:
                self._add(model, number, 1)
                self._opened[number] = True
                return True
            if obstacle.kind not in ROOM:
                break
            crowded = number if obstacle.host is None else obstacle.host
            others = [other for other in self._at.models[crowded] if other != model and not self._missing(other)]
            if not any(self._move(other, crowded, number, shares) for other in self._order(others)):
                break
        self._undo(began)
        return False

    def _move(self, model: int, number: int, without: int, shares: Shares) -> bool:
        """Move one process of a model from a host to another open one."""
        if not self._moves_left:
            return False
        self._moves_left -= 1
        began = len(self._log)
        self._add(model, number, -1)
        for some in (TARGET, MOST) if shares is MOST else (TARGET,):
            self._fill(model, 1, some, without={number, without})
            if not self._missing(model):
                return True
        self._undo(began)
        return False

    def _undo(self, began: int) -> None:
        """Take back what was done since the log was so long."""
        while len(self._log) > began:
            model, number, more = self._log.pop()
            self._at.add(model, number, -more)

    # -- 5. fewer hosts -------------------------------------------------------------------------------------
    def _empty_hosts(self, fewest: int) -> None:
        """Move everything away from the hosts that hold least."""
        at = self._at
        failed: set[int] = set()
        while len(failed) < FAILED_MAX:
            used = [number for number in range(len(at.hosts)) if at.models[number]]
            left = [number for number in used if number not in failed]
            if len(used) <= fewest or not left:
                return
            number = min(left, key=lambda number: (self._fullness(number), number))
            began = len(self._log)
            self._opened[number] = False
            if not self._others_have_room(used, number) or not all(
                self._move_all(model, number) for model in self._order(at.models[number])
            ):
                self._undo(began)
                self._opened[number] = True
                failed.add(number)

    def _others_have_room(self, used: Iterable[int], number: int) -> bool:
        """Whether by the sums of what the other hosts have left there could be room for all of a host."""
        at = self._at
        others = [other for other in used if other != number]
        cores = sum(max(0.0, at.room_cores(other, TARGET)) for other in others)
        memory = sum(at.hosts[other].memory_bytes - at.memory[other] for other in others)
        return at.load[number] <= cores and at.memory[number] <= memory

    def _move_all(self, model: int, number: int) -> bool:
        count = self._at.counts[model][number]
        self._add(model, number, -count)
        size = count
        while self._missing(model):
            self._fill(model, size, TARGET, without={number})
            if size == 1:
                break
            size = -(-size // 2)
        return self._make_room(model, TARGET)

    def _fullness(self, number: int) -> float:
        host = self._fleet.hosts[number]
        busy = self._at.load[number] / (host.cores or 1.0) / TARGET.busy
        return busy + self._at.memory[number] / (host.memory_bytes or 1)


def _trimmed(counts: dict[int, int], most: int, zone_of: Sequence[int]) -> dict[int, int]:
    """Fewer processes, if there are too many: from the fullest zone, there from the host with most, of these last."""
    surplus = sum(counts.values()) - most
    if surplus <= 0:
        return counts
    zones: dict[int, int] = {}
    heaps: dict[int, list[tuple[int, int]]] = {}
    for number, count in counts.items():
        zones[zone_of[number]] = zones.get(zone_of[number], 0) + count
        heaps.setdefault(zone_of[number], []).append((-count, -number))
    for heap in heaps.values():
        heapq.heapify(heap)
    for _ in range(surplus):
        zone = max(zones, key=lambda zone: (zones[zone], zone))
        count, number = heaps[zone][0]
        heapq.heapreplace(heaps[zone], (count + 1, number))
        zones[zone] -= 1
    return {-number: -count for heap in heaps.values() for count, number in heap if count}


def _mean(values: Iterable[float]) -> float:
    some = list(values)
    return sum(some) / len(some) or 1.0
