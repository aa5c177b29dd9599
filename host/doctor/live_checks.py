"""Judges a host that runs: facts in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from host.control.status import HostStatus, ModelStatus, SlotStatus, VersionState
from host.doctor.facts import (
    Asked,
    ControlFacts,
    HealthFacts,
    ModelFacts,
    Seen,
    StoreFacts,
    SupervisorFacts,
    ViewFacts,
    WorkerFacts,
)
from host.doctor.findings import Finding, Group, fail, ok, warn
from host.supervisor import ProcessState

SUPERVISOR_MIN: Final = (4, 3)
_OK_STATUS: Final = 200
_CALLER_STATUS: Final = range(400, 500)
_DOWN: Final = (ProcessState.STOPPED, ProcessState.EXITED, ProcessState.FATAL, ProcessState.UNKNOWN)
_ON_ITS_WAY: Final = (ProcessState.STARTING, ProcessState.STOPPING)


def thaw(pid: int) -> str:
    """What to do with a process that somebody stopped."""
    return f"let it go on: kill -CONT {pid}; if that does not help, kill -KILL {pid}: it is started again"


# -- supervisord --------------------------------------------------------------------------------------------------
def check_supervisord(facts: SupervisorFacts) -> list[Finding]:
    """Whether supervisord answers, and has the processes that it should."""
    found = list(_up(facts))
    where = "supervisord" if facts.pid is None else f"supervisord (pid {facts.pid})"
    if facts.pid is None:
        what = "does not run, although modelhost up does"
        does = "wait some seconds: up starts it again; if it does not, stop up and start it"
        return [*found, fail(Group.SUPERVISORD, where, what, does)]
    if facts.problem:
        stopped = facts.state in ("T", "t")
        what = "is stopped (by SIGSTOP or a debugger)" if stopped else facts.problem
        does = thaw(facts.pid) if stopped else f"see its log; kill -KILL {facts.pid} has modelhost up start all anew"
        return [*found, fail(Group.SUPERVISORD, where, what, does)]
    what = f"version {facts.version} answers in {facts.took_s * 1000:.0f} ms"
    if _version(facts.version) < SUPERVISOR_MIN:
        expected = ".".join(map(str, SUPERVISOR_MIN))
        found.append(warn(Group.SUPERVISORD, where, f"{what}: expected {expected} or newer", "install a newer one"))
    else:
        found.append(ok(Group.SUPERVISORD, where, what))
    return [*found, *_processes(facts)]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _up(facts: SupervisorFacts) -> Iterable[Finding]:
    if facts.up_pid is None:
        what = "does not run any more, and left a supervisord behind"
        yield fail(Group.SUPERVISORD, "modelhost up", what, f"kill -TERM {facts.pid}, then start the host again")
    elif facts.up_state and facts.up_state in "Tt":
        what = "is stopped: it would not start a dead supervisord again"
        yield fail(Group.SUPERVISORD, f"modelhost up (pid {facts.up_pid})", what, f"kill -CONT {facts.up_pid}")


def _processes(facts: SupervisorFacts) -> list[Finding]:
    seen = {one.process.program: one for one in facts.processes}
    found = [
        fail(
            Group.SUPERVISORD, program, "supervisord knows no such process", "modelhost apply, or start the host again"
        )
        for program in facts.wanted
        if program not in seen
    ]
    for program, one in seen.items():
        finding = _process(program, one, facts)
        if finding is not None:
            found.append(finding)
    if not found:
        found.append(ok(Group.SUPERVISORD, "processes", f"{len(facts.wanted)} run that should, and no others"))
    return found


def _process(program: str, one: Seen, facts: SupervisorFacts) -> Finding | None:
    """What is wrong with one, or None."""
    state = one.process.state
    group = program.partition(":")[0]
    if group not in facts.known:
        what = f"is {state.name} and belongs to no version that should run"
        does = "an operator added it: supervisorctl stop and remove take it away"
        return warn(Group.SUPERVISORD, program, what, does)
    if program not in facts.wanted:
        if state.alive and group not in facts.is_scaled:
            what = f"is {state.name}, and should not run"
            does = "if it stays, an operator started it; modelhost apply makes the host as its deployment says"
            return warn(Group.SUPERVISORD, program, what, does)
        return None
    if state in _ON_ITS_WAY:
        return warn(Group.SUPERVISORD, program, f"is {state.name}", "look again in a moment")
    if state is ProcessState.BACKOFF or state in _DOWN:
        why = f": {one.process.spawn_error}" if one.process.spawn_error else ""
        by_hand = ": an operator stopped it" if state is ProcessState.STOPPED else why
        does = f"see modelhost logs {program}, then start it: modelhost restart {program}"
        return fail(Group.SUPERVISORD, program, f"is {state.name}{by_hand}", does)
    return None


# -- control ------------------------------------------------------------------------------------------------------
def check_control(facts: ControlFacts) -> list[Finding]:
    """Whether control answers, and what it says is as it should be."""
    where = "control"
    if facts.frozen_pid:
        where = f"control (pid {facts.frozen_pid})"
        return [fail(Group.CONTROL, where, "is stopped (by SIGSTOP or a debugger)", thaw(facts.frozen_pid))]
    if facts.status is None:
        does = "see its log (modelhost logs control); without it the host serves, and nothing is changed or repaired"
        return [fail(Group.CONTROL, where, facts.problem, does)]
    found = [finding for model in facts.status.models for finding in _version_findings(model)]
    found += _slots(facts.status.host)
    if facts.draining:
        what = "the host says that it is not ready, because of modelhost drain"
        found.append(warn(Group.CONTROL, where, what, "modelhost drain --off, when it shall take new requests"))
    if not facts.status.settled and not found:
        found.append(warn(Group.CONTROL, where, "a change is under way", "look again in a moment (modelhost status)"))
    if not found:
        found.append(ok(Group.CONTROL, where, _all_ready(facts.status)))
    return found


def _all_ready(status: HostStatus) -> str:
    return f"{status.ready_processes} of {status.wanted} model processes are ready, nothing is under way"


def _version_findings(model: ModelStatus) -> Iterable[Finding]:
    subject = f"{model.name} version {model.version}"
    match model.state:
        case VersionState.FAILED:
            does = f"see modelhost status and logs; then apply another version, or: modelhost restart {model.name}"
            yield fail(Group.CONTROL, subject, f"was given up: {model.reason or 'no reason is known'}", does)
        case VersionState.STARTING:
            what = f"is starting: {model.ready} of {model.wanted} ready"
            yield warn(Group.CONTROL, subject, what, "look again in a moment (modelhost status)")
        case VersionState.REPLACED | VersionState.LEAVING:
            what = f"is {model.state.value}, {model.ready} processes ready"
            yield warn(Group.CONTROL, subject, what, "look again in a moment (modelhost status)")
        case VersionState.SERVING:
            if model.reason:
                what = f"cannot serve although its processes are ready: {model.reason}"
                does = "make views and tables fit (modelhost features check), then modelhost restart features"
                yield fail(Group.CONTROL, subject, what, does)
            yield from _slots(model.slots)


def _slots(slots: Iterable[SlotStatus]) -> Iterable[Finding]:
    for slot in slots:
        if not slot.ready:
            last = f"; it ended last because: {slot.last_exit.reason}" if slot.last_exit is not None else ""
            does = f"see modelhost logs {slot.name}; start it anew: modelhost restart {slot.name}"
            yield fail(Group.CONTROL, slot.name, f"is not ready ({slot.state}){last}", does)


# -- fronts -------------------------------------------------------------------------------------------------------
def check_fronts(facts: HealthFacts) -> list[Finding]:
    """Whether the fronts answer, each by itself and all through their port."""
    found = []
    for front in facts.fronts:
        where = f"{front.program} (pid {front.pid})" if front.pid else front.program
        if front.is_frozen:
            found.append(fail(Group.FRONTS, where, "is stopped (by SIGSTOP or a debugger)", thaw(front.pid)))
        elif front.problem:
            does = f"see modelhost logs {front.program}; start it anew: modelhost restart front"
            found.append(fail(Group.FRONTS, where, front.problem, does))
        elif front.generation != facts.generation:
            what = f"serves state {front.generation} of the deployment, expected {facts.generation}"
            found.append(
                warn(Group.FRONTS, where, what, "look again in a moment; if it stays: modelhost restart front")
            )
        else:
            found.append(ok(Group.FRONTS, where, "answers, and serves what it should"))
    if facts.live:
        does = "see the findings about ports and fronts, and modelhost logs front:0"
        return [*found, fail(Group.FRONTS, facts.url, f"is not live: {facts.live}", does)]
    if not facts.ready:
        return [*found, ok(Group.FRONTS, facts.url, f"live and ready, in {facts.took_s * 1000:.1f} ms")]
    if facts.draining:
        what = "live, and not ready because of modelhost drain"
        return [*found, warn(Group.FRONTS, facts.url, what, "modelhost drain --off, when it shall take new requests")]
    what = f"live, and not ready: {facts.ready}"
    return [*found, fail(Group.FRONTS, facts.url, what, "see modelhost status: a model has no process that is ready")]


# -- stores -------------------------------------------------------------------------------------------------------
def check_stores(facts: StoreFacts) -> list[Finding]:
    """Whether every view can be read, from here and through the host."""
    found = []
    for one in facts.frozen:
        where = f"{one.process.program} (pid {one.process.pid})"
        found.append(fail(Group.STORES, where, "is stopped (by SIGSTOP or a debugger)", thaw(one.process.pid)))
    found += [_view(view) for view in facts.views]
    return found or [ok(Group.STORES, "features", "there are no views")]


def _view(view: ViewFacts) -> Finding:
    subject = f"view {view.view} in store {view.store}"
    if view.direct:
        does = f"bring the store back, or correct [stores.{view.store}]; then: modelhost features check {view.view}"
        return fail(Group.STORES, subject, view.direct, does)
    if view.live:
        does = "if it stays so: see modelhost logs features:0, then modelhost restart features"
        return fail(Group.STORES, subject, f"can be read, and the host does not read it: {view.live}", does)
    through = "" if view.live is None else ", and through the host"
    return ok(Group.STORES, subject, f"read in {view.direct_s * 1000:.0f} ms{through}")


# -- models -------------------------------------------------------------------------------------------------------
def check_models(facts: ModelFacts) -> list[Finding]:
    """Whether every version answers what it should, and every worker answers at all."""
    found = []
    for worker in facts.workers:
        finding = _worker(worker, facts.patience_s)
        if finding is not None:
            found.append(finding)
    found += [_asked(one) for one in facts.asked]
    does = "see modelhost status; what should run is in the deployment file: modelhost apply"
    found += [fail(Group.MODELS, name, "is not served by this host", does) for name in facts.missing]
    return found or [ok(Group.MODELS, "models", "none should run")]


def _worker(worker: WorkerFacts, patience_s: float) -> Finding | None:
    where = f"{worker.program} (pid {worker.pid})"
    if worker.is_frozen:
        return fail(Group.MODELS, where, "is stopped (by SIGSTOP or a debugger)", thaw(worker.pid))
    if not worker.answers:
        what = f"does not answer within {patience_s:g} s: it runs a long batch, or hangs"
        does = f"see modelhost logs {worker.program}; if it stays so: modelhost restart {worker.program}"
        return warn(Group.MODELS, where, what, does)
    return None


def _asked(one: Asked) -> Finding:
    took = f"{one.took_s * 1000:.1f} ms"
    logs = f"see {one.log}" if one.log else "see the model's log"
    if one.asleep:
        return ok(Group.MODELS, one.subject, "has no process while nobody asks for it: not asked")
    if not one.status:
        does = f"{logs} and modelhost status; start it anew: modelhost restart {one.name}"
        return fail(Group.MODELS, one.subject, f"does not answer: {one.message} ({took})", does)
    if one.status == _OK_STATUS and one.difference:
        what = f"answers otherwise than its golden case '{one.case}': {one.difference} ({took})"
        does = "see what changed (modelhost check); serve the last good version: modelhost rollback"
        return fail(Group.MODELS, one.subject, what, f"{does} {one.name}")
    if one.status == _OK_STATUS:
        how = f"its golden case '{one.case}'" if one.case else "zeros (it has no golden case to compare with)"
        return ok(Group.MODELS, one.subject, f"answers {how} in {took}")
    what = f"answers {one.status} {one.message} ({took})"
    if one.status in _CALLER_STATUS and not one.case:
        does = "record golden cases in the package: then there is a request that it takes"
        return warn(Group.MODELS, one.subject, f"has no golden case, and refuses zeros: {what}", does)
    does = f"{logs} and modelhost status; start it anew: modelhost restart {one.name}"
    return fail(Group.MODELS, one.subject, what, does)
