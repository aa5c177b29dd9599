"""Makes the host what it should be: looks, has `reconcile` decide, acts, and looks again. One at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from host.config.deployment import DeployedModel, Deployment, read_deployment, write_deployment
from host.config.features import Features
from host.config.files import write_atomically
from host.config.run_dir import RunDirectory, group_name
from host.config.watch import replacements
from host.control.compare import HOST_GROUPS, Plans, plans_of
from host.control.groups import Groups, models_of
from host.control.ledger import Ledger
from host.control.reconcile import (
    Action,
    Actual,
    Declare,
    Fail,
    Failure,
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
    with_scale,
)
from host.control.status import Readiness
from host.front.state import FrontState
from host.protocol.errors import ConfigError, HostError
from host.supervisor import AsyncSupervisorClient, ProcessInfo, ProcessState
from host.unix_http import get

logger = logging.getLogger("modelhost.control")

FRONT_ANSWER_S: Final = 0.5
"""A front answers between two turns of its loop."""

LOOK_DRAINING_S: Final = 0.05
"""While a front has calls of a version that leaves: it tells nobody when they are answered."""

LOOK_PENDING_S: Final = 0.5
"""While something is under way: deadlines pass without an event."""

LOOK_SETTLED_S: Final = 10.0
"""With nothing under way: should an event ever be missed."""

_STOPPING: Final = ProcessState.STOPPING

RETRY_S: Final = 1.0
"""After supervisord, a cgroup or a file refused something, or what should run could not be read."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, and what follows from it."""

    desired: Deployment
    routed: Deployment
    actual: Actual
    memory: Memory


class Reconciler:
    """Has the one right to start, stop and route."""

    def __init__(
        self,
        run_dir: RunDirectory,
        groups: Groups,
        supervisor: AsyncSupervisorClient,
        readiness: Mapping[str, Readiness],
        ledger: Ledger,
        pace: Pace,
        gone: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`readiness`: of every worker, by program; `gone` is called with a version that was removed."""
        self._run_dir = run_dir
        self._groups = groups
        self._supervisor = supervisor
        self._readiness = readiness
        self._ledger = ledger
        self._pace = pace
        self._gone = gone
        self._clock = clock
        self._changed = asyncio.Event()
        self._routed = self.routed()
        self._seen: tuple[Look, list[ProcessInfo]] | None = None
        self._looked = asyncio.Event()
        self.memory = _read_memory(run_dir, self._routed)

    def desired(self) -> Deployment:
        """What should run, by the load of scaled models. Raises `ConfigError`."""
        return with_scale(read_deployment(self._run_dir.deployment), self.routed(), self.memory.scaled)

    def routed(self) -> Deployment:
        """What the fronts serve. Raises `ConfigError`."""
        return read_deployment(self._run_dir.routing)

    @property
    def served(self) -> tuple[DeployedModel, ...]:
        """What the fronts serve, as of the last look."""
        return self._routed.models

    @property
    def scaled(self) -> list[DeployedModel]:
        """Those served whose number follows their load, each with the number that `scale` was told last."""
        models = with_scale(self._routed, self._routed, self.memory.scaled).models
        return [model for model in models if model.autoscaled]

    @property
    def features(self) -> Features:
        """The host's features."""
        return self._routed.features

    @property
    def known(self) -> list[DeployedModel]:
        """Every version that has processes or should have."""
        return models_of(self.memory.known)

    async def last_seen(self) -> tuple[Plans, list[ProcessInfo]]:
        """Where every version stands, and what supervisord said when it was asked last: whenever something happened.

        Waits for the first look.
        """
        look, processes = await self._last_look()
        return plans_of(look.desired, look.routed, self.memory), processes

    async def _last_look(self) -> tuple[Look, list[ProcessInfo]]:
        await self._looked.wait()
        assert self._seen is not None  # noqa: S101 - set before the event
        return self._seen

    def scale(self, numbers: Mapping[str, int]) -> None:
        """Have so many processes of scaled models run, by group."""
        self._remember(msgspec.structs.replace(self.memory, scaled=self.memory.scaled | dict(numbers)))
        self.notice()

    async def front_states(self, processes: Iterable[ProcessInfo] | None = None) -> list[FrontState]:
        """What each front that runs and answers says. `processes`: supervisord's, if newer than the last look's.

        Supervisord itself is not asked: somebody wants this twice a second.
        """
        if processes is None:
            _, processes = await self._last_look()
        running = [one for one in processes if one.group == "front" and one.pid]
        states = await asyncio.gather(*(self._front_state(int(one.name)) for one in running))
        return [state for state in states if state is not None]

    def notice(self) -> None:
        """Something happened: look soon."""
        self._changed.set()

    async def follow_desired(self) -> None:
        """Look whenever there is another desired state, until cancelled."""
        async for _ in replacements(self._run_dir.deployment):
            self.notice()

    async def run(self, known: Awaitable[None]) -> None:
        """Look and act until cancelled. `known`: what is ready is known; until then all would look as if it hung."""
        await known
        while True:
            self._changed.clear()
            pause_s = RETRY_S
            try:
                pause_s = await self._step()
            except (HostError, ConfigError, OSError) as error:
                logger.error("%s", error)
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _step(self) -> float:
        """Look and act once; how long to wait for something to happen before the next look."""
        look = await self._look()
        actions = decide(look.desired, look.routed, look.actual, look.memory, self._clock(), self._pace)
        for action in actions:
            await self._act(action, look)
        if actions:
            return 0.0
        if look.memory.unrouted:
            return LOOK_DRAINING_S
        settled = plans_of(look.desired, look.routed, look.memory).settled
        return LOOK_SETTLED_S if settled else LOOK_PENDING_S

    async def _look(self) -> Look:
        desired = self.desired()
        routed = self._routed = self.routed()
        processes = await self._supervisor.processes()
        await self._ledger.learn()
        slots: dict[str, dict[int, SlotActual]] = {}
        for process in processes:
            if process.group not in HOST_GROUPS:
                slots.setdefault(process.group, {})[int(process.name)] = self._slot(process)
        fronts: list[FrontActual] = []
        if self.memory.unrouted:
            fronts = await self._fronts(processes)
        exits = {name: slot.last for name, slot in self._ledger.slots.items() if slot.last is not None}
        actual = Actual(slots=slots, fronts=fronts, exits=exits)
        self._remember(begin(self.memory, desired, routed, actual))
        look = Look(desired, routed, actual, self.memory)
        self._seen = look, processes
        self._looked.set()
        return look

    def _slot(self, process: ProcessInfo) -> SlotActual:
        seen = self._readiness.get(process.program)
        return SlotActual(
            state=process.state,
            ready=seen is not None and seen.ready and seen.pid == process.pid and process.state is not _STOPPING,
            pid=process.pid,
            started_at=float(process.start_s),
            spawn_error=process.spawn_error,
        )

    async def _fronts(self, processes: list[ProcessInfo]) -> list[FrontActual]:
        running = [one for one in processes if one.group == "front" and one.pid]
        return list(await asyncio.gather(*(self._front(int(one.name)) for one in running)))

    async def _front(self, index: int) -> FrontActual:
        state = await self._front_state(index)
        if state is None:
            return FrontActual(generation=None)
        return FrontActual(generation=state.generation, calls=state.calls)

    async def _front_state(self, index: int) -> FrontState | None:
        """None: it does not answer."""
        try:
            answer = await get(self._run_dir.front_socket(index), "/state", FRONT_ANSWER_S)
            return msgspec.json.decode(answer, type=FrontState)
        except (HostError, msgspec.DecodeError) as error:
            logger.warning("front:%d does not say what it serves: %s", index, error)
            return None

    # -- acting -------------------------------------------------------------------------------------------
    async def _act(self, action: Action, look: Look) -> None:
        """Carry one action out. What is remembered is written first where forgetting it would lose something."""
        logger.info("%s", _words(action))
        match action:
            case Declare(model):
                self._note(action, look)
                await self._declare(model.group, look)
            case Start(program):
                await self._groups.start(program)
                self._note(action, look)
            case Stop(program):
                self._note(action, look)
                await self._groups.stop(program)
            case Route(routing):
                self._note(action, look)
                write_deployment(self._run_dir.routing, routing)
            case Fail(_, _):
                self._note(action, look)
            case Remove(group):
                left = models_of(self.memory.known, without=[group])
                await self._groups.remove(group, left, look.routed.features)
                self._gone(group)
                self._note(action, look)

    async def _declare(self, group: str, look: Look) -> None:
        """A version that cannot be prepared is given up, unless it is served."""
        try:
            await self._groups.declare(group, models_of(self.memory.known), look.routed.features)
        except (ConfigError, OSError) as error:
            if any(model.group == group for model in look.routed.models):
                raise
            failure = Failure(at=self._clock(), reason=str(error))
            self._note(Fail(group, failure), look)

    def _note(self, action: Action, look: Look) -> None:
        self._remember(noted(self.memory, action, look.routed, self._clock()))

    def _remember(self, memory: Memory) -> None:
        if memory != self.memory:
            self.memory = memory
            write_atomically(self._run_dir.reconciliation, msgspec.json.encode(memory))


def _words(action: Action) -> str:
    match action:
        case Declare(model):
            return f"{model.group}: declared, {model.processes} of {model.declared} slots wanted"
        case Start(program):
            return f"{program}: starting"
        case Stop(program):
            return f"{program}: stopping"
        case Remove(group):
            return f"{group}: removed"
        case Route(routing):
            groups = ", ".join(group_name(model.name, model.version) for model in routing.models)
            return f"routing generation {routing.generation}: {groups or 'nothing'}"
        case Fail(group, failure):
            return f"{group}: given up: {failure.reason}"


def _read_memory(run_dir: RunDirectory, routed: Deployment) -> Memory:
    """What an earlier control remembered; at the first start what `up` has declared is known."""
    try:
        return msgspec.json.decode(run_dir.reconciliation.read_bytes(), type=Memory)
    except (OSError, msgspec.DecodeError):
        return Memory(known={model.group: model for model in routed.models})
