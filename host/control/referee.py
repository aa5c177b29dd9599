"""Watches canaries that have a judge, and has them rolled back or promoted by a change of the deployment file."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from host.config.deployment import DeployedModel
from host.config.deployment_file import with_promoted, without_version
from host.config.run_dir import RunDirectory
from host.control.desired import DesiredState
from host.control.judge import Tally, Verdict, judge
from host.control.reconciler import Reconciler
from host.front.state import VersionState
from host.protocol.errors import ConfigError, HostError
from host.protocol.latency import merged, since

logger = logging.getLogger("modelhost.control")

LOOK_S: Final = 1.0

Counts = dict[int, Mapping[str, VersionState]]
"""What each front has counted, by its pid and by version."""


class Referee:
    """Forgets what it has seen when control dies: then a canary's window begins anew."""

    def __init__(
        self, run_dir: RunDirectory, reconciler: Reconciler, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run_dir = run_dir
        self._reconciler = reconciler
        self._clock = clock
        self._begun: dict[str, tuple[float, Counts]] = {}
        """By canary: when its window began, and what had been counted by then."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            canaries = [model for model in self._reconciler.served if model.canary_percent and model.judge is not None]
            self._begun = {group: seen for group, seen in self._begun.items() if group in {m.group for m in canaries}}
            if not canaries:
                continue
            try:
                states = await self._reconciler.front_states()
                for canary in canaries:
                    await self._watch(canary, {state.pid: state.versions for state in states})
            except (HostError, ConfigError, OSError) as error:  # also of a deployment file that does not hold
                logger.error("judging canaries: %s", error)

    async def _watch(self, canary: DeployedModel, now: Counts) -> None:
        assert canary.judge is not None  # noqa: S101 - they were chosen by it
        if canary.group not in self._begun:
            self._begun[canary.group] = (self._clock(), now)
            return
        begun_s, before = self._begun[canary.group]
        default = next(one for one in self._reconciler.served if one.name == canary.name and one.default)
        watched_s = self._clock() - begun_s
        verdict, why = judge(
            canary.judge, tally(canary.group, before, now), tally(default.group, before, now), watched_s
        )
        if verdict is Verdict.WAIT:
            return
        logger.info("%s: %s after %.0f s: %s", canary.group, verdict.value, watched_s, why)
        del self._begun[canary.group]
        if verdict is Verdict.ROLL_BACK:
            await asyncio.to_thread(self._change, canary, f"canary {canary.group} rolled back: {why}", promote=False)
        elif canary.judge.promote:
            await asyncio.to_thread(self._change, canary, f"canary {canary.group} promoted: {why}", promote=True)

    def _change(self, canary: DeployedModel, what: str, *, promote: bool) -> None:
        state = DesiredState(self._run_dir)
        edit = with_promoted if promote else without_version
        with state.lock():
            text = edit(state.text(), canary.name, canary.version)
            state.change(text, what, who="control", dry_run=False, retry=False)


def tally(group: str, before: Counts, now: Counts) -> Tally:
    """What all fronts have counted of a version in between; a front that is new has counted all of it since."""
    answered = failed = 0
    parts = []
    for pid, versions in now.items():
        seen = versions.get(group)
        if seen is None:
            continue
        earlier = before.get(pid, {}).get(group)
        answered += seen.answered - (earlier.answered if earlier is not None else 0)
        failed += seen.failed - (earlier.failed if earlier is not None else 0)
        parts.append(since(earlier.latency, seen.latency) if earlier is not None else seen.latency)
    return Tally(answered, failed, merged(parts))
