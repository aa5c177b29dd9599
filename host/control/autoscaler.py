"""Looks at the load of scaled models twice a second, has `autoscale` decide, and tells the reconciler. A thin shell."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from host.config.deployment import DeployedModel
from host.control.autoscale import LOOK_S, READ_TIMEOUT_S, State, decide, policy_of
from host.control.capacity import Cut, Host, fit
from host.control.host_record import HostRecord
from host.control.observe import Reading, observe, unserved
from host.control.probe import WorkerProbe
from host.control.reconciler import Reconciler
from host.dispatch import Demand
from host.protocol.errors import HostError

logger = logging.getLogger("modelhost.control")

LOOK_AT_ZERO_S: Final = 0.1
"""While a model has no process, the first request waits for this look."""


class Autoscaler:
    """What is remembered between two looks is a few averages: who forgets them loses nothing but a step down."""

    def __init__(
        self,
        reconciler: Reconciler,
        probe: WorkerProbe,
        record: HostRecord,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reconciler = reconciler
        self._probe = probe
        self._record = record
        self._clock = clock
        self._readings: dict[str, dict[str, Reading]] = {}
        self._demands: dict[int, Mapping[str, Demand]] = {}
        self._states: dict[str, State] = {}
        self._cuts: dict[str, Cut] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        every_s, begun_s = LOOK_S, self._clock()
        while True:
            # A look that waits for workers does not put off the next one.
            await asyncio.sleep(max(0.0, begun_s + every_s - self._clock()))
            begun_s = self._clock()
            models = self._reconciler.scaled
            every_s = LOOK_S if all(model.processes for model in models) else LOOK_AT_ZERO_S
            if models:
                try:
                    await self._look(models)
                except HostError as error:
                    logger.error("scaling: %s", error)

    async def _look(self, models: list[DeployedModel]) -> None:
        programs = [program for model in models for program in model.programs()]
        readings, states = await asyncio.gather(
            self._probe.read(programs, READ_TIMEOUT_S), self._reconciler.front_states()
        )
        demands: dict[int, Mapping[str, Demand]] = {state.pid: state.demand for state in states}
        now_s = self._clock()
        asked: dict[str, int] = {}
        reasons: dict[str, str] = {}
        for model in models:
            group = model.group
            own = {program: readings[program] for program in model.programs() if program in readings}
            seen, self._readings[group] = observe(
                self._readings.get(group, {}),
                own,
                wanted=model.processes,
                unserved=unserved(group, self._demands, demands),
            )
            decision = decide(policy_of(model), self._states.get(group, State()), seen, now_s)
            self._states[group] = decision.state
            asked[group], reasons[group] = decision.wanted, decision.why
        self._demands = demands
        self._tell(models, asked, reasons)

    def _tell(self, models: list[DeployedModel], asked: Mapping[str, int], reasons: Mapping[str, str]) -> None:
        """Cut what the host cannot hold, say so once, and have the rest brought about."""
        reconciler, record = self._reconciler, self._record
        host = Host(
            settings=record.settings,
            topology=record.topology,
            known=reconciler.known,
            features=reconciler.features,
        )
        given, cuts = fit(host, asked, {model.group: model.processes for model in models})
        for cut in cuts:
            if self._cuts.get(cut.group) != cut:
                logger.warning("%s: %d processes instead of %d: %s", cut.group, cut.given, cut.asked, cut.reason)
        self._cuts = {cut.group: cut for cut in cuts}
        changes = {model.group: given[model.group] for model in models if given[model.group] != model.processes}
        for model in models:
            if model.group in changes:
                logger.info(
                    "%s: %d -> %d processes: %s",
                    model.group,
                    model.processes,
                    changes[model.group],
                    reasons[model.group] or "the host has room",
                )
        if changes:
            reconciler.scale(changes)
