"""Desired against actual: a pure function of what is wanted, what supervisord says and which workers answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from host.config.deployment import Deployment
from host.config.run_dir import FEATURES_GROUP, group_name
from host.control.deaths import SlotDeaths
from host.control.status import Backoff, HostStatus, ModelStatus, Readiness, SlotStatus
from host.supervisor import ProcessInfo, ProcessState


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHistory:
    """What happened to one slot."""

    starts: int = 0
    """Since control runs."""
    deaths: SlotDeaths | None = None
    backoff: Backoff | None = None


HOST_GROUPS: Final = ("front", "control", FEATURES_GROUP)

_MISSING: Final = "MISSING"
_NO_HISTORY: Final = SlotHistory()
_NEVER: Final = Readiness(ready=False, pid=0, since=0.0)


def compare(
    deployment: Deployment,
    processes: Sequence[ProcessInfo],
    readiness: Mapping[str, Readiness],
    histories: Mapping[str, SlotHistory],
    now: float,
    unready: Mapping[str, str] | None = None,
) -> HostStatus:
    """Say what is wanted and what is there. Mappings are by program name; `now` is seconds since the epoch.

    `unready`: what the feature service says of models whose features cannot be read, by group.

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
        )

    models: list[ModelStatus] = []
    wanted_programs: set[str] = set()
    for model in deployment.models:
        group = group_name(model.name, model.version)
        programs = [f"{group}:{number}" for number in range(model.processes)]
        wanted_programs.update(programs)
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
                reason=unready.get(group, ""),
            )
        )
    ours = [process for process in processes if process.group in HOST_GROUPS]
    others = [p for p in processes if p.group not in HOST_GROUPS and p.program not in wanted_programs]
    host = tuple(slot(p.program, *_host_readiness(p, readiness)) for p in ours)
    fronts = [one.ready for one in host if one.name.startswith("front:")]
    features = [one.ready for one in host if one.name.startswith(f"{FEATURES_GROUP}:")]
    return HostStatus(
        ready=all(model.ready >= model.wanted and not model.reason for model in models)
        and bool(fronts)
        and all(fronts)
        and all(features),
        wanted=sum(model.wanted for model in models),
        ready_processes=sum(model.ready for model in models),
        models=tuple(models),
        host=host,
        unwanted=tuple(slot(p.program, readiness.get(p.program, _NEVER).ready, 0.0) for p in others),
    )


def _host_readiness(process: ProcessInfo, readiness: Mapping[str, Readiness]) -> tuple[bool, float]:
    """A feature process is ready when its socket answers, the others when they run."""
    if process.group == FEATURES_GROUP:
        seen = readiness.get(process.program, _NEVER)
        return seen.ready, seen.since
    return process.state is ProcessState.RUNNING, float(process.start_s)


def not_ready(status: HostStatus) -> Iterable[SlotStatus]:
    """Every process that is wanted and not ready."""
    for model in status.models:
        yield from (slot for slot in model.slots if not slot.ready)
    yield from (slot for slot in status.host if not slot.ready)
