"""Desired against actual: a pure function of what is wanted, what supervisord says and which workers answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from host.config.deployment import DeployedModel, Deployment, Restart
from host.config.run_dir import FEATURES_GROUP
from host.control.deaths import SlotDeaths
from host.control.reconcile import Failure, Memory
from host.control.status import Backoff, HostStatus, ModelStatus, Readiness, SlotStatus, Traffic, Usage, VersionState
from host.front.state import FrontState
from host.front.state import VersionState as FrontVersion
from host.protocol.latency import merged
from host.supervisor import ProcessInfo, ProcessState


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHistory:
    """What happened to one slot."""

    starts: int = 0
    """Since control runs."""
    deaths: SlotDeaths | None = None
    backoff: Backoff | None = None
    usage: Usage | None = None


HOST_GROUPS: Final = ("front", "control", FEATURES_GROUP)

_MISSING: Final = "MISSING"
_NO_HISTORY: Final = SlotHistory()
_NEVER: Final = Readiness(ready=False, pid=0, since=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model version, and where it stands."""

    model: DeployedModel
    state: VersionState
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """Everything that is there or should be."""

    versions: tuple[Planned, ...]
    generation: int = 0
    told: bool = True
    """The routing says of draining what it should."""
    restarts: Mapping[str, Restart] = field(default_factory=dict)
    """Processes that are to be started again, by group."""

    @property
    def settled(self) -> bool:
        """Whether nothing is under way."""
        failed = {one.model.name for one in self.versions if one.state is VersionState.FAILED}
        return self.told and all(
            one.state in (VersionState.SERVING, VersionState.FAILED)
            or (one.state is VersionState.REPLACED and one.model.name in failed)
            for one in self.versions
        )


def served(deployment: Deployment) -> Plans:
    """What a host that starts is to become: everything is served from the beginning."""
    return Plans(versions=tuple(Planned(model=model, state=VersionState.SERVING) for model in deployment.models))


def plans_of(desired: Deployment, routed: Deployment, memory: Memory) -> Plans:
    """Say where every version stands, those that should run first."""
    routes = {model.group for model in routed.models}
    wanted = {model.group for model in desired.models}
    failed = {model.name: model for model in desired.models if model.group in memory.failed}
    versions = []
    for model in desired.models:
        state, failure = VersionState.SERVING, None
        if model.group not in routes:
            state = VersionState.STARTING
            culprit = failed.get(model.name)
            if culprit is not None:
                state, failure = VersionState.FAILED, memory.failed.get(model.group)
                failure = failure or Failure(
                    at=0.0, reason=f"version {culprit.version} was given up, and this one with it"
                )
        versions.append(Planned(model=model, state=state, failure=failure))
    replaced = [model for model in routed.models if model.group not in wanted]
    leaving = [model for group, model in memory.known.items() if group not in wanted | routes]
    versions += [Planned(model=model, state=VersionState.REPLACED) for model in replaced]
    versions += [Planned(model=model, state=VersionState.LEAVING) for model in leaving]
    return Plans(
        versions=tuple(versions),
        generation=memory.generation,
        told=desired.draining == routed.draining,
        restarts={group: restart for group, restart in desired.restarts.items() if group in wanted},
    )


def compare(
    plans: Plans,
    processes: Sequence[ProcessInfo],
    readiness: Mapping[str, Readiness],
    histories: Mapping[str, SlotHistory],
    now: float,
    unready: Mapping[str, str] | None = None,
    traffic: Mapping[str, Traffic] | None = None,
) -> HostStatus:
    """Say what is wanted and what is there. Mappings are by program name; `now` is seconds since the epoch.

    `unready`: what the feature service says of models whose features cannot be read; `traffic`: what the fronts say of
    requests; both by group.

    A worker counts as ready when its socket answers, whatever supervisord says: RUNNING is not readiness, and
    a worker may be ready before supervisord calls it RUNNING.
    """
    unready = unready or {}
    by_program = {process.program: process for process in processes}

    def slot(program: str, ready: bool, since: float) -> SlotStatus:
        process = by_program.get(program)
        history = histories.get(program, _NO_HISTORY)
        alive = process is not None and process.pid > 0
        return SlotStatus(
            name=program,
            state=process.state.name if process is not None else _MISSING,
            pid=process.pid if process is not None else 0,
            ready=ready,
            since=since,
            uptime_s=max(0.0, now - process.start_s) if process is not None and alive else 0.0,
            restarts=max(0, history.starts - 1),
            last_exit=history.deaths.last if history.deaths is not None else None,
            deaths=history.deaths.counts if history.deaths is not None else {},
            backoff=history.backoff,
            usage=history.usage if alive else None,
        )

    models: list[ModelStatus] = []
    wanted_programs: set[str] = set()
    idle_programs: set[str] = set()
    """Slots that are declared for more processes than should run now."""
    for planned in plans.versions:
        model, failure = planned.model, planned.failure
        group = model.group
        programs = model.programs()
        if planned.state in (VersionState.FAILED, VersionState.LEAVING):
            programs = [program for program in programs if program in by_program]
        wanted_programs.update(programs)
        idle_programs.update(f"{group}:{number}" for number in range(model.processes, model.declared))
        seen = [readiness.get(program, _NEVER) for program in programs]
        slots = tuple(slot(program, one.ready, one.since) for program, one in zip(programs, seen, strict=True))
        models.append(
            ModelStatus(
                name=model.name,
                version=model.version,
                default=model.default,
                wanted=model.processes,
                ready=sum(one.ready for one in slots),
                slots=slots,
                state=planned.state,
                traffic=(traffic or {}).get(group),
                reason=failure.reason if failure is not None else unready.get(group, ""),
                log=failure.log if failure is not None else (),
            )
        )
    ours = [process for process in processes if process.group in HOST_GROUPS]
    others = [
        p
        for p in processes
        if p.group not in HOST_GROUPS
        and p.program not in wanted_programs
        and not (p.program in idle_programs and not p.state.alive)
    ]
    host = tuple(slot(p.program, *_host_readiness(p, readiness)) for p in ours)
    fronts = [one.ready for one in host if one.name.startswith("front:")]
    features = [one.ready for one in host if one.name.startswith(f"{FEATURES_GROUP}:")]
    return HostStatus(
        ready=all(model.ready >= model.wanted and not model.reason for model in models if _is_wanted(model))
        and bool(fronts)
        and all(fronts)
        and all(features),
        wanted=sum(model.wanted for model in models if _is_wanted(model)),
        ready_processes=sum(model.ready for model in models if _is_wanted(model)),
        models=tuple(models),
        host=host,
        unwanted=tuple(slot(p.program, readiness.get(p.program, _NEVER).ready, 0.0) for p in others),
        generation=plans.generation,
        settled=plans.settled and not any(_is_to_be_replaced(process, plans.restarts) for process in processes),
    )


def _is_to_be_replaced(process: ProcessInfo, restarts: Mapping[str, Restart]) -> bool:
    restart = restarts.get(process.group)
    return restart is not None and process.pid > 0 and restart.pids.get(int(process.name)) == process.pid


def _is_wanted(model: ModelStatus) -> bool:
    return model.state in (VersionState.SERVING, VersionState.STARTING, VersionState.FAILED)


def _host_readiness(process: ProcessInfo, readiness: Mapping[str, Readiness]) -> tuple[bool, float]:
    """A feature process is ready when its socket answers, the others when they run."""
    if process.group == FEATURES_GROUP:
        seen = readiness.get(process.program, _NEVER)
        return seen.ready, seen.since
    return process.state is ProcessState.RUNNING, float(process.start_s)


def traffic_of(states: Iterable[FrontState]) -> dict[str, Traffic]:
    """What all fronts say together, by group."""
    found: dict[str, list[tuple[FrontVersion, int]]] = {}
    for state in states:
        for group, version in state.versions.items():
            found.setdefault(group, []).append((version, state.calls.get(group, 0)))
    return {
        group: Traffic(
            answered=sum(version.answered for version, _ in parts),
            failed=sum(version.failed for version, _ in parts),
            waiting=sum(waiting for _, waiting in parts),
            latency=merged(version.latency for version, _ in parts),
        )
        for group, parts in found.items()
    }


def not_ready(status: HostStatus) -> Iterable[SlotStatus]:
    """Every process that is wanted and not ready."""
    for model in status.models:
        if _is_wanted(model):
            yield from (slot for slot in model.slots if not slot.ready)
    yield from (slot for slot in status.host if not slot.ready)
