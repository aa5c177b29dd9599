"""What to do next, so that the host becomes what it should be. Pure: desired, routed and actual state in, actions out.

Nothing here knows how far a rollout has come: that follows, each time anew, from what should run, what the fronts
serve, and what supervisord has. So whoever dies at any point, the next look goes on from what is there.

| a model version is                        | and                             | then                                   |
|-------------------------------------------|---------------------------------|----------------------------------------|
| desired, not known to supervisord         |                                 | declare it                             |
| desired or routed, a slot of it stopped   | nobody else stopped it          | start it, a few at a time              |
| desired, not routed                       | a process of it died            | failed, and with it the model's change |
| desired, not routed                       | all versions desired are ready  | route the model as desired             |
| routed, not desired                       | its successors are not ready    | leave it as it is                      |
| desired, a process of it to be restarted  | it serves, and all others do    | one process more, then stop it         |
| desired, a process of it to be restarted  | it does not serve               | stop it                                |
| running with more slots than it should    | as many as it should are ready  | stop those beyond                      |
| neither desired (or failed) nor routed    | a front has calls of it         | wait, for the drain at most            |
| neither desired (or failed) nor routed    | no front has                    | stop its slots, then remove it         |
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from host.config.deployment import DeployedModel, Deployment, Restart
from host.control.status import ExitStatus
from host.placement import Topology
from host.supervisor import ProcessState

T = TypeVar("T")

START_MARGIN_S: Final = 15.0
"""Beyond a process' `startup_s`, which it keeps itself: launcher and interpreter, on a busy machine."""


_DOWN: Final = (ProcessState.STOPPED, ProcessState.FATAL)
"""supervisord does not start it again by itself."""


# -- what there is --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class SlotActual:
    """One slot as supervisord has it."""

    state: ProcessState
    ready: bool = False
    pid: int = 0
    """0: there is none."""
    started_at: float = 0.0
    """Seconds since the epoch; 0: never by this supervisord."""
    spawn_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontActual:
    """One front that runs."""

    generation: int | None
    """Of the routing that it serves; None: it does not say."""
    calls: Mapping[str, int] = field(default_factory=dict)
    """Calls that wait for their answer, by model version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actual:
    """What there is now."""

    slots: Mapping[str, Mapping[int, SlotActual]]
    """Model version, as `churn.v3`, to its slots."""
    fronts: Sequence[FrontActual] = ()
    exits: Mapping[str, ExitStatus] = field(default_factory=dict)
    """The last death of every slot, by program."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a version did not become part of what is served."""

    at: float
    reason: str
    program: str = ""
    log: tuple[str, ...] = ()


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What cannot be seen anew after control's death, and so is kept in a file."""

    generation: int = 0
    """Of the desired state that the rest belongs to."""
    known: dict[str, DeployedModel] = {}
    """What supervisord's configuration holds, by group."""
    begun: dict[str, float] = {}
    """When a version that is not routed yet was declared."""
    unrouted: dict[str, float] = {}
    """When a version ceased to be routed."""
    started: frozenset[str] = frozenset()
    """Programs that control started and has not stopped: one that is stopped all the same is an operator's."""
    failed: dict[str, Failure] = {}
    """By group; forgotten with the next change of the desired state."""
    scaled: dict[str, int] = {}
    """How many processes the load asks for, by group of a scaled model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Limits of the host."""

    starting_max: int
    """Processes that may load at a time."""
    drain_s: float


def starting_max(topology: Topology) -> int:
    """Loading takes a CPU each, and memory of its own."""
    return max(2, len(topology.cpus))


# -- what to do -----------------------------------------------------------------------------------------------
class Declare(msgspec.Struct, frozen=True):
    """Make a version known to supervisord, or one that it knows with more slots; nothing starts."""

    model: DeployedModel


class Start(msgspec.Struct, frozen=True):
    """Start a slot."""

    program: str


class Stop(msgspec.Struct, frozen=True):
    """Stop a slot: its worker finishes what it has."""

    program: str


class Remove(msgspec.Struct, frozen=True):
    """Forget a version, with its cgroups, sockets and plans. Its slots are stopped."""

    group: str


class Route(msgspec.Struct, frozen=True):
    """Have the fronts serve this."""

    routing: Deployment


class Fail(msgspec.Struct, frozen=True):
    """Give a version up."""

    group: str
    failure: Failure


Action = Declare | Start | Stop | Remove | Route | Fail


def begin(memory: Memory, desired: Deployment, routed: Deployment, actual: Actual) -> Memory:
    """What is remembered, brought up to the desired state, to what is served and to what runs.

    With a new desired state what failed is tried again, and what an operator stopped is started again.
    """
    alive = frozenset(
        f"{group}:{number}"
        for group, slots in actual.slots.items()
        for number, slot in slots.items()
        if slot.state.alive and slot.state is not ProcessState.STOPPING
    )
    unrouted = _without(memory.unrouted, (model.group for model in routed.models))
    if memory.generation != desired.generation:
        return Memory(
            generation=desired.generation,
            known=memory.known,
            unrouted=unrouted,
            started=alive,
            scaled=memory.scaled,
        )
    return msgspec.structs.replace(memory, unrouted=unrouted, started=memory.started | alive)


def with_scale(desired: Deployment, routed: Deployment, scaled: Mapping[str, int]) -> Deployment:
    """What should run, with as many processes of scaled models as their load asks for.

    A new version begins with as many as the one that it replaces has, and with one at least, to prove itself.
    """
    groups = {model.group for model in routed.models}
    most: dict[str, int] = {}
    for model in routed.models:
        most[model.name] = max(most.get(model.name, 0), scaled.get(model.group, 0))

    def processes(model: DeployedModel) -> int:
        if not model.autoscaled:
            return model.processes
        number = scaled.get(model.group)
        if number is None:
            number = max(model.processes, most.get(model.name, 0))
        return min(max(number, model.min_processes, 0 if model.group in groups else 1), model.max_processes)

    models = (msgspec.structs.replace(model, processes=processes(model)) for model in desired.models)
    return msgspec.structs.replace(desired, models=tuple(models))


def decide(
    desired: Deployment, routed: Deployment, actual: Actual, memory: Memory, now: float, pace: Pace
) -> list[Action]:
    """What can be done now; what has to wait for something comes with a later look. `now`: seconds since the epoch."""
    wanted = _by_model(desired)
    served = _by_model(routed)
    actions: list[Action] = []
    failed = dict(memory.failed)
    for group, failure in _failures(desired, routed, actual, memory, now):
        failed[group] = failure
        actions.append(Fail(group, failure))
    running: dict[str, DeployedModel] = {model.group: model for model in routed.models}
    routing: list[DeployedModel] = []
    for name in dict.fromkeys([*wanted, *served]):
        versions = wanted.get(name, [])
        given_up = any(model.group in failed for model in versions)
        before = served.get(name, [])
        is_due = not given_up and _can_be_routed(versions, before, actual, memory)
        routing += versions if is_due else before
        if not given_up:
            for model in versions:
                running[model.group] = model if is_due else _at_least(model, running.get(model.group))
    if tuple(routing) != routed.models or desired.draining != routed.draining:
        generation = routed.generation + 1
        actions.append(Route(msgspec.structs.replace(desired, models=tuple(routing), generation=generation)))
    for group, restart in desired.restarts.items():
        if group in running:
            running[group], stops = _restarted(running[group], restart, actual, memory)
            actions += stops
    actions += _declarations(running.values(), {model.group for model in routed.models}, memory, actual)
    actions += _starts(running.values(), actual, memory, pace.starting_max, now)
    actions += _surplus(running.values(), actual, memory)
    leaving = [group for group in dict.fromkeys([*memory.known, *actual.slots]) if group not in running]
    actions += _departures(leaving, routed.generation, actual, memory, now, pace)
    return actions


def noted(memory: Memory, action: Action, routed: Deployment, now: float) -> Memory:
    """What is remembered once an action is done. `routed`: what was, before it."""
    replace = msgspec.structs.replace
    match action:
        case Declare(model):
            is_routed = any(one.group == model.group for one in routed.models)
            begun = memory.begun if is_routed else {model.group: now} | memory.begun
            scaled = {model.group: model.processes} | memory.scaled if model.autoscaled else memory.scaled
            return replace(memory, known=memory.known | {model.group: model}, begun=begun, scaled=scaled)
        case Start(program):
            return replace(memory, started=memory.started | {program})
        case Stop(program):
            return replace(memory, started=memory.started - {program})
        case Fail(group, failure):
            return replace(memory, failed=memory.failed | {group: failure})
        case Route(routing):
            groups = {model.group for model in routing.models}
            gone = {model.group: now for model in routed.models if model.group not in groups}
            return replace(
                memory,
                unrouted=_without(memory.unrouted, groups) | gone,
                begun=_without(memory.begun, groups),
            )
        case Remove(group):
            return replace(
                memory,
                known=_without(memory.known, {group}),
                begun=_without(memory.begun, {group}),
                unrouted=_without(memory.unrouted, {group}),
                scaled=_without(memory.scaled, {group}),
                started=frozenset(one for one in memory.started if one.partition(":")[0] != group),
            )


def _by_model(deployment: Deployment) -> dict[str, list[DeployedModel]]:
    models: dict[str, list[DeployedModel]] = {}
    for model in deployment.models:
        models.setdefault(model.name, []).append(model)
    return models


def _without(mapping: Mapping[str, T], keys: Iterable[str]) -> dict[str, T]:
    gone = set(keys)
    return {key: value for key, value in mapping.items() if key not in gone}


def _can_be_routed(
    versions: Sequence[DeployedModel], before: Sequence[DeployedModel], actual: Actual, memory: Memory
) -> bool:
    """Whether every version has all its processes ready. One that is served already need not, unless others leave.

    Of one that is served, what somebody else has stopped is not waited for, were it all of it: stopped a moment later
    it would not be served either.
    """
    groups = {model.group for model in before}
    others_leave = not groups <= {model.group for model in versions}

    def is_due(model: DeployedModel) -> bool:
        if model.group not in groups:
            return _ready(model, actual) >= model.processes
        if not others_leave or _ready(model, actual) >= _expected(model, actual, memory):
            return True
        return _stopped_by_hand(model, actual, memory)

    return all(is_due(model) for model in versions)


def _at_least(model: DeployedModel, served: DeployedModel | None) -> DeployedModel:
    """A version as it should run once all of its model's are ready: until then it keeps the processes that it has."""
    if served is None or served.processes <= model.processes:
        return model
    return msgspec.structs.replace(model, processes=served.processes)


def _ready(model: DeployedModel, actual: Actual) -> int:
    slots = actual.slots.get(model.group, {})
    return sum(slots[number].ready for number in range(model.processes) if number in slots)


# -- a version that does not start ----------------------------------------------------------------------------
def _failures(
    desired: Deployment, routed: Deployment, actual: Actual, memory: Memory, now: float
) -> Iterator[tuple[str, Failure]]:
    """New versions that cannot be served: a process of theirs died, or was not ready in time."""
    served = {model.group for model in routed.models}
    given_up = {model.name for model in desired.models if model.group in memory.failed}
    for model in desired.models:
        group = model.group
        if group in served or model.name in given_up or group not in memory.begun:
            continue
        failure = _failure(model, actual, memory, now)
        if failure is not None:
            yield group, failure


def _failure(model: DeployedModel, actual: Actual, memory: Memory, now: float) -> Failure | None:
    begun = memory.begun[model.group]
    slots = actual.slots.get(model.group, {})
    limit_s = model.limits.startup_s + START_MARGIN_S
    for number, program in enumerate(model.programs()):
        died = actual.exits.get(program)
        if died is not None and died.at >= begun:
            return Failure(at=now, program=program, reason=died.reason, log=died.log)
        slot = slots.get(number)
        if slot is None:
            continue
        # supervisord counts in whole seconds.
        if slot.state is ProcessState.FATAL and slot.started_at >= math.floor(begun):
            return Failure(at=now, program=program, reason=slot.spawn_error or "supervisord has given it up")
        if slot.state is ProcessState.STOPPED and slot.started_at and program in memory.started:
            return Failure(at=now, program=program, reason="somebody has stopped it")
        if _can_be_stopped(slot) and not slot.ready and now - slot.started_at > limit_s:
            return Failure(at=now, program=program, reason=f"not ready {limit_s:.0f} s after its start")
    return None


# -- a version whose processes are started again --------------------------------------------------------------
def _restarted(
    model: DeployedModel, restart: Restart, actual: Actual, memory: Memory
) -> tuple[DeployedModel, list[Stop]]:
    """How a version runs until its old processes are gone, and which of them can go now."""
    slots = actual.slots.get(model.group, {})
    old = {
        number: slots[number]
        for number, pid in sorted(restart.pids.items())
        if number in slots and slots[number].pid == pid and slots[number].state.alive
    }
    if not old:
        return model, []
    if not restart.in_place:
        more = model.processes + 1
        model = msgspec.structs.replace(model, processes=more, slots=max(model.slots, more))
    leaving = [number for number, slot in old.items() if _can_be_stopped(slot)]
    idle = [number for number in leaving if not old[number].ready]
    all_serve = not idle and _ready(model, actual) >= _expected(model, actual, memory)
    return model, [Stop(f"{model.group}:{number}") for number in (leaving[:1] if all_serve else idle)]


# -- what runs ------------------------------------------------------------------------------------------------
def _declarations(
    running: Iterable[DeployedModel], routed: Container[str], memory: Memory, actual: Actual
) -> Iterator[Action]:
    for model in running:
        group = model.group
        slots = actual.slots.get(group, {})
        has_its_slots = len(slots) >= model.declared and all(
            number < model.declared or slot.state.alive for number, slot in slots.items()
        )
        if not has_its_slots or memory.known.get(group) != model or not (group in routed or group in memory.begun):
            yield Declare(model)


def _starts(
    running: Iterable[DeployedModel], actual: Actual, memory: Memory, starting_max: int, now: float
) -> Iterator[Action]:
    starting = 0
    stopped: list[str] = []
    for model in running:
        slots = actual.slots.get(model.group, {})
        for number, slot in sorted(slots.items()):
            program = f"{model.group}:{number}"
            if slot.state in _DOWN:
                if number < model.processes and not _stays_down(program, slot, memory):
                    stopped.append(program)
            elif _loads(slot, actual.exits.get(program), model.limits.startup_s, now):
                starting += 1
    for program in stopped[: max(0, starting_max - starting)]:
        yield Start(program)


def _expected(model: DeployedModel, actual: Actual, memory: Memory) -> int:
    """How many processes of a version can become ready: all but those that stay down; one at least, if it has any."""
    slots = actual.slots.get(model.group, {})
    down = sum(
        _stays_down(f"{model.group}:{number}", slot, memory)
        for number, slot in slots.items()
        if number < model.processes
    )
    return min(model.processes, max(1, model.processes - down))


def _stopped_by_hand(model: DeployedModel, actual: Actual, memory: Memory) -> bool:
    """Whether somebody else stopped all of its processes. What supervisord gave up is another matter."""
    slots = actual.slots.get(model.group, {})
    return all(
        number in slots
        and slots[number].state is ProcessState.STOPPED
        and _stays_down(f"{model.group}:{number}", slots[number], memory)
        for number in range(model.processes)
    )


def _stays_down(program: str, slot: SlotActual, memory: Memory) -> bool:
    """Whether somebody else stopped it, or supervisord gave it up: until the next generation."""
    return slot.state in _DOWN and bool(slot.started_at) and program in memory.started


def _loads(slot: SlotActual, died: ExitStatus | None, startup_s: float, now: float) -> bool:
    """Whether a process is on its way; one that supervisord starts again and again keeps nobody else from starting."""
    since = now - startup_s
    is_coming = slot.state is not ProcessState.BACKOFF and not slot.ready and slot.started_at > since
    return is_coming and (died is None or died.at <= since)


def _surplus(running: Iterable[DeployedModel], actual: Actual, memory: Memory) -> Iterator[Action]:
    """Slots beyond those that should run, once so many are ready as should be, but for those that stay down."""
    for model in running:
        slots = actual.slots.get(model.group, {})
        spare = sum(slot.ready for slot in slots.values()) - _expected(model, actual, memory)
        for number, slot in sorted(slots.items(), reverse=True):
            if number < model.processes or not _can_be_stopped(slot):
                continue
            if not slot.ready or spare > 0:
                spare -= slot.ready
                yield Stop(f"{model.group}:{number}")


def _departures(
    leaving: Iterable[str], routed_generation: int, actual: Actual, memory: Memory, now: float, pace: Pace
) -> Iterator[Action]:
    for group in leaving:
        unrouted_at = memory.unrouted.get(group)
        if unrouted_at is not None and now - unrouted_at < pace.drain_s:
            serving = [front for front in actual.fronts if _may_have(front, group, routed_generation)]
            if serving:
                continue
        slots = actual.slots.get(group, {})
        if not any(slot.state.alive for slot in slots.values()):
            yield Remove(group)
            continue
        for number, slot in slots.items():
            if _can_be_stopped(slot):
                yield Stop(f"{group}:{number}")


def _may_have(front: FrontActual, group: str, routed_generation: int) -> bool:
    """Whether a front has calls of a version, or may still get some."""
    return front.generation is None or front.generation < routed_generation or bool(front.calls.get(group))


def _can_be_stopped(slot: SlotActual) -> bool:
    return slot.state.alive and slot.state is not ProcessState.STOPPING
