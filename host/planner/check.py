"""Whether a placement holds: every rule, and every loss, simulated from the placement alone. Pure.

It shares nothing with the packing but the fleet's own words, so that an error there is found here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from host.planner.model import HOST_PROCESSES_MAX, MOST, Fleet, Placement, PlannedHost, PlannedModel, Survive

_ROUNDING: Final = 1e-6
"""Of cores and shares: sums in another order differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One rule that is broken."""

    what: str
    model: str = ""
    host: str = ""
    lost: str = ""
    """`host h3` or `zone a`: only when that is lost."""
    expected: str = ""
    received: str = ""

    def __str__(self) -> str:
        where = ", ".join(f"{kind} {name}" for kind, name in (("model", self.model), ("host", self.host)) if name)
        when = f" when {self.lost} is lost" if self.lost else ""
        return f"{where}{when}: {self.what}: expected {self.expected}, received {self.received}"


def violations(fleet: Fleet, placement: Placement) -> list[Violation]:
    """Everything that is wrong with a placement; empty if it holds and survives what it should."""
    hosts = {host.name: host for host in fleet.hosts}
    models = {model.name: model for model in fleet.models}
    found = list(_unknown(placement, models, hosts))
    if found:
        return found
    for model in fleet.models:
        found += _rules(model, placement.get(model.name, {}), hosts)
    found += _memory(placement, models, fleet.hosts)
    found += _busy(placement, models, hosts, frozenset(), "", MOST.busy)
    for lost, gone in _losses(fleet):
        found += _busy(placement, models, hosts, gone, lost, MOST.after_loss)
    return found


def _losses(fleet: Fleet) -> Iterator[tuple[str, frozenset[str]]]:
    """What may be lost, each with its hosts."""
    if fleet.survive is not Survive.NONE:
        for host in fleet.hosts:
            yield f"host {host.name}", frozenset({host.name})
    if fleet.survive is Survive.ZONE:
        for zone in dict.fromkeys(host.zone for host in fleet.hosts):
            yield f"zone {zone}", frozenset(host.name for host in fleet.hosts if host.zone == zone)


def _unknown(placement: Placement, models: Mapping[str, object], hosts: Mapping[str, object]) -> Iterator[Violation]:
    for model, counts in placement.items():
        if model not in models:
            yield Violation(what="model", model=model, expected="one of the fleet", received="another")
        for host, count in counts.items():
            if host not in hosts:
                yield Violation(what="host", model=model, host=host, expected="one of the fleet", received="another")
            if not 1 <= count <= HOST_PROCESSES_MAX:
                expected = f"1 to {HOST_PROCESSES_MAX}"
                yield Violation(what="processes", model=model, host=host, expected=expected, received=str(count))


def _rules(model: PlannedModel, counts: Mapping[str, int], hosts: Mapping[str, PlannedHost]) -> Iterator[Violation]:
    for name in counts:
        if not model.allows(hosts[name]):
            yield Violation(
                what="host", model=model.name, host=name, expected="one that `only` and `never` allow", received=name
            )
        if model.cpus > hosts[name].cores:
            yield Violation(
                what="cpus",
                model=model.name,
                host=name,
                expected=f"at most {hosts[name].cores:g}",
                received=str(model.cpus),
            )
    for what, least, received in (
        ("hosts", model.hosts_min, len(counts)),
        ("zones", _zones_min(model, counts, hosts), len({hosts[name].zone for name in counts})),
    ):
        if received < least:
            yield Violation(what=what, model=model.name, expected=f"at least {least}", received=str(received))


def _zones_min(model: PlannedModel, counts: Mapping[str, int], hosts: Mapping[str, PlannedHost]) -> int:
    if model.zones_min is not None:
        return model.zones_min
    zones = {host.zone for host in hosts.values() if model.allows(host)}
    return 2 if len(zones) > 1 and sum(counts.values()) > 1 else 1


def _memory(
    placement: Placement, models: Mapping[str, PlannedModel], hosts: Iterable[PlannedHost]
) -> Iterator[Violation]:
    used: Counter[str] = Counter()
    for name, counts in placement.items():
        for host, count in counts.items():
            used[host] += count * models[name].memory_bytes
    for one in hosts:
        if used[one.name] > one.memory_bytes:
            expected = f"at most {one.memory_bytes} bytes"
            yield Violation(what="memory", host=one.name, expected=expected, received=f"{used[one.name]} bytes")


def _busy(
    placement: Placement,
    models: Mapping[str, PlannedModel],
    hosts: Mapping[str, PlannedHost],
    gone: frozenset[str],
    lost: str,
    share: float,
) -> Iterator[Violation]:
    """Share every model's work among the processes that are left, and look how busy they and their hosts are."""
    busy: dict[str, float] = {}
    for name, model in models.items():
        left = {host: count for host, count in placement.get(name, {}).items() if host not in gone}
        processes = sum(left.values())
        if not processes:
            yield Violation(what="processes", model=name, lost=lost, expected="at least 1", received="0")
            continue
        each = model.requests_per_s * model.rows_per_request * model.cpu_us_per_row / 1e6 / processes
        if each > share * model.cpus + _ROUNDING:
            expected, received = f"at most {share:.0%}", f"{each / model.cpus:.1%}"
            yield Violation(what="processes busy", model=name, lost=lost, expected=expected, received=received)
        for host, count in left.items():
            busy[host] = busy.get(host, 0.0) + each * count
    for host, cores in busy.items():
        if cores > share * hosts[host].cores + _ROUNDING:
            yield Violation(
                what="cores busy",
                host=host,
                lost=lost,
                expected=f"at most {share * hosts[host].cores:.3f}",
                received=f"{cores:.3f}",
            )
