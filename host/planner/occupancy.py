"""What every host carries, now and after each loss, kept exact while processes are placed. Pure.

For each host and each thing that may be lost (a *domain*: a host, or a zone) it is known how much more the host would
carry. Placing processes of a model touches only the hosts that have the model, and the domains that these are in.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from host.planner.demand import ROUNDING, Need, left_at_least
from host.planner.model import HOST_PROCESSES_MAX, MOST, Fleet, Shares, Survive


class Kind(enum.Enum):
    """What keeps a process from a host."""

    NOT_ALLOWED = "the model may not run there"
    CPUS = "cores fewer than one process has"
    MEMORY = "memory"
    CORES = "cores"
    CORES_AFTER_LOSS = "cores, when another host or zone is lost"
    SPREAD = "too few would be left when this host or zone is lost"
    HOSTS_MIN = "it would be on too few hosts"
    ZONES_MIN = "it would be in too few zones"
    PROCESSES = "processes of one model on one host"


class Obstacle(NamedTuple):
    """Why processes do not fit on a host."""

    kind: Kind
    missing: float = 0.0
    """Bytes, cores or processes: that much more, and they would."""
    lost: str = ""
    """Of `CORES_AFTER_LOSS` and `SPREAD`: what is lost then."""
    host: int | None = None
    """The position of the host where there are too few; None: the one that was asked about."""


class Occupancy:
    """All placed processes, by positions of models and hosts."""

    def __init__(self, fleet: Fleet, needs: Sequence[Need]) -> None:
        self.hosts = fleet.hosts
        self.needs = needs
        self.placed = [0] * len(needs)
        """Processes of each model."""
        self.counts: list[dict[int, int]] = [{} for _ in needs]
        """Of each model: host to processes."""
        self.models: list[dict[int, int]] = [{} for _ in fleet.hosts]
        """Of each host: model to processes."""
        self.load = [0.0] * len(fleet.hosts)
        """Cores kept busy."""
        self.memory = [0] * len(fleet.hosts)
        zones = list(dict.fromkeys(host.zone for host in fleet.hosts))
        self.zone_of = [zones.index(host.zone) for host in fleet.hosts]
        self.zones = zones
        self.zone_counts: list[dict[int, int]] = [{} for _ in needs]
        """Of each model: zone to processes."""
        self.domains = [self._domains(fleet.survive, number) for number in range(len(fleet.hosts))]
        self._names = [*(f"host {host.name}" for host in fleet.hosts), *(f"zone {zone}" for zone in zones)]
        self._lost: list[dict[int, int]] = [{} for _ in needs]
        """Of each model: domain to processes in it."""
        self._extra: list[list[float]] = [[] for _ in fleet.hosts]
        """Of each host: domain to the cores kept busy beside `load` when that is lost. Made when first needed."""
        self.worst = [0.0] * len(fleet.hosts)
        """The largest of `_extra`."""
        self._worst_domain = [0] * len(fleet.hosts)
        """Where that is."""
        self._least: list[dict[float, int]] = [{} for _ in needs]

    def _domains(self, survive: Survive, number: int) -> tuple[int, ...]:
        match survive:
            case Survive.NONE:
                return ()
            case Survive.HOST:
                return (number,)
            case Survive.ZONE:
                return (number, len(self.hosts) + self.zone_of[number])

    def _least_left(self, model: int, after_loss: float) -> int:
        known = self._least[model]
        if after_loss not in known:
            known[after_loss] = left_at_least(self.needs[model].model, after_loss)
        return known[after_loss]

    # -- may they be placed? --------------------------------------------------------------------------------
    def obstacle(self, model: int, number: int, more: int, shares: Shares) -> Obstacle | None:
        """What keeps `more` processes from a host, at most so busy there; None if nothing does."""
        return (
            self._rule(model, number, more)
            or self._room(model, number, more, shares)
            or self._spread(model, number, more, shares)
            or self._loss_here(model, number, more, shares)
            or self._loss_elsewhere(model, number, more)
        )

    def room_cores(self, number: int, shares: Shares) -> float:
        """What a host can carry more, at most; less than nothing if it carries too much."""
        cores, load = self.hosts[number].cores, self.load[number]
        return min(shares.busy * cores - load, shares.after_loss * cores - load - self.worst[number])

    def _rule(self, model: int, number: int, more: int) -> Obstacle | None:
        need, host, counts = self.needs[model], self.hosts[number], self.counts[model]
        if not need.model.allows(host):
            return Obstacle(Kind.NOT_ALLOWED)
        if need.model.cpus > host.cores:
            return Obstacle(Kind.CPUS, need.model.cpus - host.cores)
        has = counts.get(number, 0)
        if has + more > HOST_PROCESSES_MAX:
            return Obstacle(Kind.PROCESSES, has + more - HOST_PROCESSES_MAX)
        rest = need.processes - self.placed[model] - more
        hosts = need.model.hosts_min - len(counts) - (not has)
        if rest < hosts:
            return Obstacle(Kind.HOSTS_MIN, hosts - rest)
        zones = self.zone_counts[model]
        missing = need.zones_min - len(zones) - (self.zone_of[number] not in zones)
        if rest < missing:
            return Obstacle(Kind.ZONES_MIN, missing - rest)
        return None

    def _room(self, model: int, number: int, more: int, shares: Shares) -> Obstacle | None:
        need, host = self.needs[model], self.hosts[number]
        missing = self.memory[number] + more * need.model.memory_bytes - host.memory_bytes
        if missing > 0:
            return Obstacle(Kind.MEMORY, missing)
        over = self.load[number] + more * need.load_cores - shares.busy * host.cores
        return Obstacle(Kind.CORES, over) if over > ROUNDING else None

    def _spread(self, model: int, number: int, more: int, shares: Shares) -> Obstacle | None:
        most = self.needs[model].processes - self._least_left(model, shares.after_loss)
        lost = self._lost[model]
        for domain in self.domains[number]:
            over = lost.get(domain, 0) + more - most
            if over > 0:
                return Obstacle(Kind.SPREAD, over, self._names[domain])
        return None

    def _loss_here(self, model: int, number: int, more: int, shares: Shares) -> Obstacle | None:
        """When something else is lost, the host carries more."""
        own = self.domains[number]
        if not own:
            return None
        need = self.needs[model]
        limit = shares.after_loss * self.hosts[number].cores + ROUNDING - self.load[number] - more * need.load_cores
        if self.worst[number] > limit:
            return Obstacle(Kind.CORES_AFTER_LOSS, self.worst[number] - limit, self.worst_loss(number))
        lost = self._lost[model]
        if not lost or self.worst[number] + more * _rise(need, 0, max(lost.values())) <= limit:
            return None
        extra = self._extra[number]
        for domain, gone in lost.items():
            if domain not in own:
                over = (extra[domain] if extra else 0.0) + more * _rise(need, 0, gone) - limit
                if over > 0:
                    return Obstacle(Kind.CORES_AFTER_LOSS, over, self._names[domain])
        return None

    def _loss_elsewhere(self, model: int, number: int, more: int) -> Obstacle | None:
        """When the host is lost, the model's others carry more: no more than what is there may."""
        need, lost = self.needs[model], self._lost[model]
        for domain in self.domains[number]:
            gone = lost.get(domain, 0)
            rise = _rise(need, gone, gone + more)
            for other, count in self.counts[model].items():
                if domain in self.domains[other]:
                    continue
                extra = self._extra[other]
                load = self.load[other] + (extra[domain] if extra else 0.0) + rise * count
                over = load - MOST.after_loss * self.hosts[other].cores
                if over > ROUNDING:
                    return Obstacle(Kind.CORES_AFTER_LOSS, over, self._names[domain], other)
        return None

    def worst_loss(self, number: int) -> str:
        """What has to be lost for the host to carry most; empty if it carries nothing more then."""
        return self._names[self._worst_domain[number]] if self.worst[number] > ROUNDING else ""

    # -- they are placed ------------------------------------------------------------------------------------
    def add(self, model: int, number: int, more: int) -> None:
        """Place processes, or with a negative number take them away. Checks nothing."""
        need, counts, lost = self.needs[model], self.counts[model], self._lost[model]
        own = self.domains[number]
        for domain, gone in lost.items():
            if domain not in own:
                self._add_extra(number, domain, more * _rise(need, 0, gone))
        for domain in own:
            gone = lost.get(domain, 0)
            rise = _rise(need, gone, gone + more)
            for other, count in counts.items():
                if domain not in self.domains[other]:
                    self._add_extra(other, domain, rise * count)
            _count(lost, domain, more)
        _count(counts, number, more)
        _count(self.models[number], model, more)
        _count(self.zone_counts[model], self.zone_of[number], more)
        self.placed[model] += more
        self.load[number] += more * need.load_cores
        self.memory[number] += more * need.model.memory_bytes

    def _add_extra(self, number: int, domain: int, cores: float) -> None:
        extra = self._extra[number]
        if not extra:
            extra = self._extra[number] = [0.0] * len(self._names)
        was = extra[domain]
        extra[domain] = now = was + cores
        if now > self.worst[number]:
            self.worst[number] = now
            self._worst_domain[number] = domain
        elif domain == self._worst_domain[number] and now < was:
            self.worst[number] = worst = max(extra)
            self._worst_domain[number] = extra.index(worst)


def _rise(need: Need, before: int, after: int) -> float:
    """How much busier each process that is left becomes when `after` are gone rather than `before`."""
    left = need.processes
    if left <= after or left <= before:  # then nobody is left to be busier; `_spread` allows it to nobody
        return 0.0
    return need.work_cores / (left - after) - need.work_cores / (left - before)


def _count(counts: dict[int, int], key: int, more: int) -> None:
    total = counts.get(key, 0) + more
    if total:
        counts[key] = total
    else:
        del counts[key]
