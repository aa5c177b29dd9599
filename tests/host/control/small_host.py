"""A host without processes, on which it is done what `host.control.reconcile` decides, and checked what may be."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from msgspec.structs import replace
from reconciling import NOTHING, NOW, died

from host.config.deployment import DeployedModel, Deployment, Restart
from host.control.reconcile import (
    Action,
    Actual,
    Declare,
    Fail,
    FrontActual,
    Memory,
    Pace,
    Remove,
    Route,
    SlotActual,
    Start,
    Stop,
    begin,
    decide,
    noted,
)
from host.control.status import ExitStatus
from host.supervisor import ProcessState


@dataclass
class Slot:
    """A process, or the place for one."""

    state: ProcessState = ProcessState.STOPPED
    ready: bool = False
    pid: int = 0
    started_at: float = 0.0
    wait: int = 0
    """Looks until it goes on: to ready, to its end, to its next start."""


@dataclass
class Front:
    """Serves a routing, for some looks longer than it should."""

    routing: Deployment
    lag: int = 0
    silent: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    """By group: looks until the last of them is answered."""


class Host:
    """Does what `decide` says as `host.control.reconciler` does it, and checks each time what may be done."""

    def __init__(
        self,
        chance: random.Random,
        pace: Pace,
        doomed: frozenset[str] = frozenset(),
        loading: tuple[int, int] = (1, 3),
    ) -> None:
        """`doomed`: versions that die while they load; `loading`: how many looks the others take."""
        self.chance = chance
        self.pace = pace
        self.doomed = doomed
        self.loading = loading
        self.now = NOW + 0.7
        self.last_pid = 0
        self.desired = self.routed = NOTHING
        self.memory = Memory()
        self.config: dict[str, DeployedModel] = {}
        self.slots: dict[str, dict[int, Slot]] = {}
        self.exits: dict[str, ExitStatus] = {}
        self.fronts = [Front(self.routed), Front(self.routed)]
        self.unrouted_at: dict[str, float] = {}
        self.unrest: set[str] = set()
        """Models that were changed or disturbed, and are not yet what they should be."""
        self.hurt: set[str] = set()
        """Those of them whose processes somebody else ended."""
        self.stopped_by_operator: set[str] = set()
        self.may_fail: set[str] = set(doomed)
        self.looked: set[str] = set()
        """Programs that control has seen alive in this generation."""

    # -- what happens to it -------------------------------------------------------------------------------
    def edit(self, models: Sequence[DeployedModel], *, draining: bool | None = None) -> None:
        before = self.desired
        draining = before.draining if draining is None else draining
        self.desired = Deployment(tuple(models), generation=before.generation + 1, draining=draining)
        for name in names(before) | names(self.desired):
            if of(before, name) != of(self.desired, name):
                self.unrest.add(name)
        self.stopped_by_operator.clear()
        self.looked.clear()

    def restart(self, program: str, *, in_place: bool) -> None:
        """Have a process replaced, and with it every other one of its version."""
        group = group_of(program)
        if group in groups(self.desired):
            self.edit(self.desired.models)
            pids = {number: slot.pid for number, slot in self.slots[group].items() if slot.pid}
            restart = Restart(pids=pids, in_place=in_place)
            self.desired = replace(self.desired, restarts={group: restart})
            self.unrest.add(model_of(group))
            self.may_fail.add(group)
            if in_place:
                self.hurt.add(model_of(group))

    def supervisord_dies(self) -> None:
        self.slots = {
            group: {number: Slot() for number in range(model.declared)} for group, model in self.config.items()
        }
        self.unrest |= {model.name for model in self.config.values()}
        self.hurt |= self.unrest
        self.stopped_by_operator.clear()

    def kill(self, program: str) -> None:
        self._die(program)
        self._hurt(program)

    def stop_by_hand(self, program: str) -> None:
        if program in self.looked:
            self._stop(program)
            self._hurt(program)
            self.stopped_by_operator.add(program)

    def _hurt(self, program: str) -> None:
        group = group_of(program)
        self.may_fail.add(group)
        self.unrest.add(model_of(group))
        self.hurt.add(model_of(group))

    def alive(self) -> list[str]:
        found = ((f"{group}:{number}", slot) for group, its in self.slots.items() for number, slot in its.items())
        return sorted(name for name, slot in found if slot.state.alive and slot.state is not ProcessState.STOPPING)

    # -- how it goes on by itself -------------------------------------------------------------------------
    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        for group, its in self.slots.items():
            for number, slot in its.items():
                if slot.wait:
                    slot.wait -= 1
                    if not slot.wait:
                        self._go_on(f"{group}:{number}", slot)
        for front in self.fronts:
            self._serve(front)

    def _go_on(self, program: str, slot: Slot) -> None:
        match slot.state:
            case ProcessState.STOPPING:
                slot.state, slot.pid = ProcessState.STOPPED, 0
            case ProcessState.BACKOFF:
                self._start(slot)
            case _ if group_of(program) in self.doomed:
                self._die(program)
            case _:
                slot.state, slot.ready = ProcessState.RUNNING, True

    def _serve(self, front: Front) -> None:
        front.calls = {group: looks - 1 for group, looks in front.calls.items() if looks > 1}
        front.silent = max(0, front.silent - 1)
        if front.routing.generation != self.routed.generation:
            front.lag -= 1
            if front.lag <= 0:
                front.routing, front.lag = self.routed, self.chance.randint(1, 4)
        for model in front.routing.models:
            if self.chance.random() < 0.3:
                front.calls[model.group] = self.chance.randint(1, 8)
        if self.chance.random() < 0.05:
            front.silent = self.chance.randint(1, 6)

    def _start(self, slot: Slot) -> None:
        # supervisord's times are whole seconds.
        slot.state, slot.ready, slot.started_at = ProcessState.STARTING, False, float(int(self.now))
        slot.wait = self.chance.randint(*self.loading)
        self.last_pid += 1
        slot.pid = self.last_pid

    def _die(self, program: str) -> None:
        slot = self._slot(program)
        slot.state, slot.ready, slot.wait = ProcessState.BACKOFF, False, self.chance.randint(1, 2)
        slot.pid = 0
        self.exits[program] = died(self.now)

    def _stop(self, program: str) -> None:
        slot = self._slot(program)
        slot.ready = False
        if slot.state is ProcessState.BACKOFF:
            slot.state, slot.wait = ProcessState.STOPPED, 0
        elif slot.state.alive and slot.state is not ProcessState.STOPPING:
            slot.state, slot.wait = ProcessState.STOPPING, self.chance.randint(1, 3)

    def _slot(self, program: str) -> Slot:
        group, _, number = program.partition(":")
        return self.slots[group][int(number)]

    # -- control ------------------------------------------------------------------------------------------
    def actual(self) -> Actual:
        fronts = [
            FrontActual(generation=None)
            if front.silent
            else FrontActual(generation=front.routing.generation, calls=dict(front.calls))
            for front in self.fronts
        ]
        return Actual(
            slots={
                group: {
                    number: SlotActual(state=slot.state, ready=slot.ready, pid=slot.pid, started_at=slot.started_at)
                    for number, slot in its.items()
                }
                for group, its in self.slots.items()
            },
            fronts=fronts if self.memory.unrouted else [],
            exits=dict(self.exits),
        )

    def next_actions(self) -> list[Action]:
        actual = self.actual()
        memory = begin(self.memory, self.desired, self.routed, actual)
        return decide(self.desired, self.routed, actual, memory, self.now, self.pace)

    def look(self, dies_at: int | None = None) -> list[Action]:
        """Look and act once; with `dies_at`, control dies in the middle of that action."""
        actions = self.next_actions()
        self.memory = begin(self.memory, self.desired, self.routed, self.actual())
        self.looked.update(self.alive())
        self.check(actions)
        routed = self.routed
        had_ready = {name for name in names(routed) if self._has_ready(name)}
        for number, action in enumerate(actions):
            memory = noted(self.memory, action, routed, self.now)
            performed_first = isinstance(action, Start | Remove)
            if performed_first:
                self._perform(action)
            if number == dies_at and performed_first:
                break
            self.memory = memory
            if number == dies_at:
                break
            if not performed_first:
                self._perform(action)
        self._check_after(actions, had_ready)
        self._calm_down()
        return actions

    def _perform(self, action: Action) -> None:
        match action:
            case Declare(model):
                self.config = dict(self.memory.known)
                for number in range(model.declared):
                    self.slots.setdefault(model.group, {}).setdefault(number, Slot())
                for number, slot in list(self.slots[model.group].items()):
                    if number >= model.declared and not slot.state.alive:
                        del self.slots[model.group][number]
            case Start(program):
                if not self._slot(program).state.alive:
                    self._start(self._slot(program))
            case Stop(program):
                self._stop(program)
            case Remove(group):
                assert not any(slot.state.alive for slot in self.slots.pop(group, {}).values())
                self.config.pop(group, None)
                self.exits = {program: end for program, end in self.exits.items() if group_of(program) != group}
            case Route(routing):
                gone = groups(self.routed) - groups(routing)
                self.unrouted_at |= dict.fromkeys(gone, self.now)
                self.routed = routing
            case Fail(_, _):
                pass
            case _:
                assert_never(action)

    # -- what has to be true ------------------------------------------------------------------------------
    def given_up(self, actions: Iterable[Action] = ()) -> set[str]:
        """Models of which a desired version has failed."""
        failed = {action.group for action in actions if isinstance(action, Fail)} | self.memory.failed.keys()
        return {model.name for model in self.desired.models if model.group in failed}

    def running(self, actions: Iterable[Action] = ()) -> dict[str, DeployedModel]:
        """What should run now, by group."""
        given_up = self.given_up(actions)
        wanted = {model.group: model for model in self.desired.models if model.name not in given_up}
        return {model.group: model for model in self.routed.models} | wanted

    def check(self, actions: Sequence[Action]) -> None:
        running = self.running(actions)
        for action in actions:
            match action:
                case Stop(program):
                    self._check_stop(program, running)
                case Start(program):
                    assert program not in self.stopped_by_operator, "an operator's stop is respected"
                case Route(routing):
                    for name in names(self.routed) | names(routing):
                        is_as_before = of(routing, name) == of(self.routed, name)
                        assert is_as_before or name in self.unrest, "only changed models are routed differently"
                        assert is_as_before or name not in self.given_up(actions), "a failure changes no routing"
                    for model in routing.models:
                        slots = self.slots[model.group]
                        assert model.group in groups(self.routed) or all(
                            slots[number].ready for number in range(model.processes)
                        ), "what is routed is ready"
                    continue
                case Fail(group, _):
                    assert group in self.may_fail
                    assert group not in groups(self.routed)
                case Remove(group):
                    assert group not in running
                case Declare(model):
                    served = {one.group: one.processes for one in self.routed.models}
                    slots = model.slots if model.slots == model.processes else 0
                    assert replace(model, processes=0, slots=slots) == replace(
                        running[model.group], processes=0, slots=slots
                    )
                    # It keeps the processes that it has until all that should be served with it are ready; and has one
                    # more as long as some are restarted.
                    more = model.processes - (model.group in self.desired.restarts)
                    numbers = (running[model.group].processes, served.get(model.group))
                    assert model.processes in numbers or more in numbers
                case _:
                    assert_never(action)
            assert model_of(target(action)) in self.unrest, "only changed models are touched"

    def _check_stop(self, program: str, running: Mapping[str, DeployedModel]) -> None:
        group, _, number = program.partition(":")
        if group in running:
            restart = self.desired.restarts.get(group)
            if restart is not None and restart.pids.get(int(number)) == self._slot(program).pid:
                return
            assert int(number) >= running[group].processes, "what should run is not stopped"
            return
        assert group not in groups(self.routed)
        for front in self.fronts:
            if group in groups(front.routing) or group in front.calls:
                assert self.now - self.unrouted_at[group] >= self.pace.drain_s, "calls are answered"

    def _check_after(self, actions: Sequence[Action], had_ready: set[str]) -> None:
        for name in (had_ready & names(self.routed)) - self.hurt:
            assert self._has_ready(name), "a model that could answer still can"
        if any(isinstance(action, Start) for action in actions):
            slots = [
                slot
                for group, model in self.running().items()
                for number, slot in self.slots.get(group, {}).items()
                if number < model.processes and f"{group}:{number}" not in self.exits
            ]
            loading = (ProcessState.STARTING, ProcessState.RUNNING, ProcessState.BACKOFF)
            assert sum(slot.state in loading and not slot.ready for slot in slots) <= self.pace.starting_max

    def _has_ready(self, name: str) -> bool:
        return any(slot.ready for model in of(self.routed, name) for slot in self.slots.get(model.group, {}).values())

    def to_be_replaced(self) -> set[str]:
        """Versions that still have a process of those that are to be started again."""
        return {
            group
            for group, restart in self.desired.restarts.items()
            if group in self.running()
            and any(
                slot.pid and restart.pids.get(number) == slot.pid for number, slot in self.slots.get(group, {}).items()
            )
        }

    def _calm_down(self) -> None:
        for name in list(self.unrest - {model_of(group) for group in self.to_be_replaced()}):
            wanted = of(self.desired, name)
            known = [model for model in self.memory.known.values() if model.name == name]
            if of(self.routed, name) == wanted and sorted(known, key=repr) == sorted(wanted, key=repr):
                slots = [
                    (slot, number < model.processes)
                    for model in wanted
                    for number, slot in self.slots[model.group].items()
                ]
                if len(slots) == sum(model.declared for model in wanted) and all(
                    slot.ready if is_wanted else not slot.state.alive for slot, is_wanted in slots
                ):
                    self.unrest.discard(name)
                    self.hurt.discard(name)

    def settle(self) -> None:
        """Let it go on, first by seconds and then past every deadline, until there is nothing left to do."""
        quiet = 0
        for number in range(300):
            self.tick(1.0 if number < 100 else 60.0)
            quiet = 0 if self.look() else quiet + 1
            if number > 120 and quiet > 10:
                return
        raise AssertionError("it does not come to rest")

    def check_converged(self) -> None:
        given_up = self.given_up()
        for name in names(self.desired) | names(self.routed):
            if name not in given_up:
                assert of(self.routed, name) == of(self.desired, name)
        assert self.routed.draining == self.desired.draining
        running = self.running()
        assert self.memory.known == self.config == running
        assert self.slots.keys() == running.keys()
        for group, model in running.items():
            assert all(
                number < model.declared or slot.state.alive for number, slot in self.slots.get(group, {}).items()
            )
        assert not self.to_be_replaced()
        for group, model in running.items():
            ready = [slot.ready for number, slot in self.slots[group].items() if number < model.processes]
            by_hand = [name for name in self.stopped_by_operator if group_of(name) == group]
            assert ready.count(False) <= len(by_hand)
            if any(ready):
                assert not any(slot.state.alive for number, slot in self.slots[group].items() if number >= len(ready))


def names(deployment: Deployment) -> set[str]:
    return {model.name for model in deployment.models}


def groups(deployment: Deployment) -> set[str]:
    return {model.group for model in deployment.models}


def of(deployment: Deployment, name: str) -> list[DeployedModel]:
    return [model for model in deployment.models if model.name == name]


def group_of(program: str) -> str:
    return program.partition(":")[0]


def model_of(group: str) -> str:
    return group.partition(".")[0]


def target(action: Declare | Start | Stop | Remove | Fail) -> str:
    """Give the group that an action is about."""
    match action:
        case Declare(model):
            return model.group
        case Start(program) | Stop(program):
            return group_of(program)
        case Remove(group) | Fail(group, _):
            return group
