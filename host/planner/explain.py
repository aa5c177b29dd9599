"""What a plan says to people and to scripts: what changes, where and why, and why something does not fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from host.planner.demand import Need
from host.planner.model import MOST, TARGET, Fleet, Placement, Survive
from host.planner.occupancy import Kind, Obstacle
from host.planner.pack import Plan, Unplaced

_MIB: Final = 1 << 20


class Change(NamedTuple):
    """Another number of processes of a model on a host."""

    model: str
    host: str
    before: int
    after: int


class Effort(NamedTuple):
    """What a plan takes to carry out."""

    started: int
    stopped: int
    moved: int
    """Of both: as many of a model as start on one host and stop on another."""


def changes_of(fleet: Fleet, before: Placement, after: Placement) -> list[Change]:
    """What is different, by models and hosts in the fleet's order."""
    return [
        Change(model.name, host.name, was, becomes)
        for model in fleet.models
        for host in fleet.hosts
        if (was := before.get(model.name, {}).get(host.name, 0))
        != (becomes := after.get(model.name, {}).get(host.name, 0))
    ]


def effort_of(changes: Sequence[Change]) -> Effort:
    """How many processes start, stop and move."""
    started: dict[str, int] = {}
    stopped: dict[str, int] = {}
    for change in changes:
        side = started if change.after > change.before else stopped
        side[change.model] = side.get(change.model, 0) + abs(change.after - change.before)
    moved = sum(min(count, stopped.get(model, 0)) for model, count in started.items())
    return Effort(sum(started.values()), sum(stopped.values()), moved)


def summary_lines(fleet: Fleet, plan: Plan, changes: Sequence[Change]) -> list[str]:
    """The plan in a few lines."""
    processes = sum(sum(counts.values()) for counts in plan.placement.values())
    effort = effort_of(changes)
    hosts = len({change.host for change in changes})
    least = f"at {TARGET.busy:.0%} busy it takes at least {plan.bound.hosts} ({plan.bound.why})"
    return [
        f"{_count(len(fleet.models), 'model')}, {_count(processes, 'process', 'es')} on {plan.hosts_used} of "
        f"{_count(len(fleet.hosts), 'host')}; {least}",
        _survival(fleet.survive, fits=not plan.unplaced),
        f"{_count(effort.started, 'process', 'es')} to start, {effort.stopped} to stop, of these {effort.moved} move; "
        f"{_count(hosts, 'host')} to change",
    ]


def _survival(survive: Survive, *, fits: bool) -> str:
    if not fits:
        return "not everything fits"
    match survive:
        case Survive.NONE:
            return "a host that is lost may take models along"
        case Survive.HOST:
            lost = "any one host"
        case Survive.ZONE:
            lost = "any one zone"
    return f"{lost} may be lost: what is left stays below {MOST.after_loss:.0%}"


def unplaced_lines(fleet: Fleet, one: Unplaced) -> list[str]:
    """Why processes of a model fit nowhere: what keeps the next one from the hosts, the most frequent first."""
    need = one.need
    lines = [
        f"model {need.model.name}: {one.processes} of {need.processes} processes fit nowhere "
        f"({need.load_cores:.3f} cores and {_mib(need.model.memory_bytes)} each; {need.why})"
    ]
    kinds: dict[Kind, list[tuple[Obstacle, str]]] = {}
    for host, obstacle in zip(fleet.hosts, one.obstacles, strict=True):
        if obstacle is not None:
            kinds.setdefault(obstacle.kind, []).append((obstacle, host.name))
    for kind, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        nearest, host_name = min(found, key=lambda pair: pair[0].missing)
        detail = _missing_text(kind, nearest)
        lines.append(
            f"  {_count(len(found), 'host')}: {kind.value}" + (f"; least on {host_name}: {detail}" if detail else "")
        )
    return lines


def _missing_text(kind: Kind, obstacle: Obstacle) -> str:
    match kind:
        case Kind.NOT_ALLOWED:
            return ""
        case Kind.MEMORY:
            return f"{_mib(obstacle.missing)} missing"
        case Kind.CORES | Kind.CPUS:
            return f"{obstacle.missing:.3f} cores missing"
        case Kind.CORES_AFTER_LOSS:
            return f"{obstacle.missing:.3f} cores missing ({obstacle.lost})"
        case Kind.SPREAD:
            return f"{obstacle.missing:.0f} too many ({obstacle.lost})"
        case Kind.HOSTS_MIN | Kind.ZONES_MIN | Kind.PROCESSES:
            return f"{obstacle.missing:.0f} too many or too few"


class ModelRow(NamedTuple):
    """Where a model goes, and why."""

    model: str
    busy_cores: float
    processes: int
    hosts: int
    zones: int
    busy_share: float
    """Of each process."""
    lost_share: float
    """Of each process, when the host or zone is lost that has most of them."""
    why: str


def model_rows(fleet: Fleet, plan: Plan) -> list[ModelRow]:
    """Every model, in the fleet's order."""
    zones = {host.name: host.zone for host in fleet.hosts}
    return [_model_row(fleet, need, plan.placement[need.model.name], zones) for need in plan.needs]


def _model_row(fleet: Fleet, need: Need, counts: dict[str, int], zones: dict[str, str]) -> ModelRow:
    processes = sum(counts.values())
    in_zones: dict[str, int] = {}
    for host, count in counts.items():
        in_zones[zones[host]] = in_zones.get(zones[host], 0) + count
    fullest = {Survive.NONE: [0], Survive.HOST: [*counts.values()], Survive.ZONE: [*in_zones.values()]}[fleet.survive]
    left = processes - max(fullest, default=0)
    return ModelRow(
        model=need.model.name,
        busy_cores=need.work_cores,
        processes=processes,
        hosts=len(counts),
        zones=len(in_zones),
        busy_share=need.work_cores / (processes * need.model.cpus) if processes else 0.0,
        lost_share=need.work_cores / (left * need.model.cpus) if left else 0.0,
        why=need.why,
    )


def plan_document(fleet: Fleet, plan: Plan, changes: Sequence[Change]) -> dict[str, Any]:
    """The whole plan as plain values."""
    effort = effort_of(changes)
    hosts = {host.name: host for host in fleet.hosts}
    return {
        "fits": not plan.unplaced,
        "survives": fleet.survive.value,
        "hosts_used": plan.hosts_used,
        "hosts_bound": plan.bound.hosts,
        "hosts_bound_by": plan.bound.why,
        "processes_started": effort.started,
        "processes_stopped": effort.stopped,
        "processes_moved": effort.moved,
        "placement": plan.placement,
        "changes": [change._asdict() for change in changes],
        "models": [row._asdict() for row in model_rows(fleet, plan)],
        "hosts": [
            {
                "host": name,
                "zone": hosts[name].zone,
                "processes": load.processes,
                "cores": hosts[name].cores,
                "busy_cores": load.busy_cores,
                "lost_busy_cores": load.busy_cores + load.extra_cores,
                "lost": load.lost,
                "memory_bytes": load.memory_bytes,
                "memory_max_bytes": hosts[name].memory_bytes,
            }
            for name, load in plan.loads.items()
        ],
        "unplaced": [
            {
                "model": one.need.model.name,
                "processes": one.processes,
                "why": [line.strip() for line in unplaced_lines(fleet, one)[1:]],
            }
            for one in plan.unplaced
        ],
    }


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / _MIB:,.1f} MiB"


def _count(count: int, noun: str, plural: str = "s") -> str:
    return f"{count:,} {noun}{'' if count == 1 else plural}"
