"""The life of the control process: watch, answer, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from host.config.deployment import DeployedModel
from host.config.entry_checks import natural_key
from host.config.features import Features
from host.config.run_dir import RunDirectory
from host.control.admin import application, listen_on_tcp
from host.control.autoscaler import Autoscaler
from host.control.compare import Plans, SlotHistory, compare, plans_of, traffic_of
from host.control.deaths import SlotDeaths
from host.control.events import DONE, READY, EventDecoder, StateEvent
from host.control.groups import Groups
from host.control.host_record import read_host_record
from host.control.ledger import Ledger
from host.control.metrics.facts import Known
from host.control.metrics.scrape import Metrics
from host.control.page import add_page
from host.control.probe import WorkerProbe
from host.control.reconcile import Pace, starting_max
from host.control.reconciler import Reconciler
from host.control.referee import Referee
from host.control.starts import Starts
from host.control.status import Backoff, HostStatus, VersionState
from host.control.usage import usage_of
from host.control.wake import wake_supervisor
from host.control.watching import Watcher
from host.isolation.backoff import read_lives
from host.isolation.prepare import read_record
from host.protocol.errors import ConfigError
from host.supervisor import AsyncSupervisorClient, ProcessInfo
from host.unix_http import listen_on_unix

logger = logging.getLogger("modelhost.control")

_ENDED: Final = frozenset({"EXITED", "BACKOFF", "STOPPED"})
_STAYS_DOWN: Final = frozenset({"STOPPED", "FATAL"})
"""Where no launcher comes to empty the slot's cgroup."""

_READ_BYTES: Final = 65536
FIRST_JOINED_S: Final = 2.0
"""A worker says hello between two batches: one that takes longer counts as not ready yet."""

_SHUTDOWN_S: Final = 1.0
"""Answers are made in milliseconds; nobody waits longer for one when control stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """What the control process is told."""

    run_dir: Path
    events: bool
    """Whether it runs as supervisord's event listener, with events on its standard input."""


class Control:
    """Knows what should run and what does."""

    def __init__(self, run_dir: RunDirectory) -> None:
        self.run_dir = run_dir
        self._supervisor = AsyncSupervisorClient(run_dir.supervisor_socket)
        self.probe = WorkerProbe(run_dir.sockets, changed=self._something_changed, died=self._worker_died)
        record = read_record(run_dir)
        self._tree = record.tree if record is not None else None
        self._ledger = Ledger(
            run_dir,
            self._supervisor,
            self._tree,
            lambda: self.reconciler.memory.known,
            self.probe.last_ready_pid,
        )
        host_record = read_host_record(run_dir)
        self.settings = host_record.settings
        self.reconciler = Reconciler(
            run_dir,
            Groups(run_dir, host_record, self._supervisor),
            self._supervisor,
            self.probe.readiness,
            self._ledger,
            Pace(starting_max=starting_max(host_record.topology), drain_s=host_record.settings.drain_s),
            self._gone,
        )
        self.autoscaler = Autoscaler(self.reconciler, self.probe, host_record)
        self.referee = Referee(run_dir, self.reconciler)
        self._starts = Starts(run_dir.starts)
        self.metrics = Metrics(self.known, run_dir.counters, self._tree)
        self.watcher = Watcher(run_dir, self.last_status, self.probe, lambda: self.reconciler.served)
        self._tasks: set[asyncio.Task[None]] = set()

    async def status(self) -> HostStatus:
        """Compare. Raises `HostError` if supervisord does not answer, `ConfigError` without a deployment."""
        reconciler = self.reconciler
        processes = await self._supervisor.processes()
        plans = plans_of(reconciler.desired(), reconciler.routed(), reconciler.memory)
        return await self._compare(plans, processes)

    async def last_status(self) -> HostStatus:
        """Compare what the reconciler saw last, for who looks all the time: supervisord is not asked."""
        return await self._compare(*await self.reconciler.last_seen())

    async def _compare(self, plans: Plans, processes: Sequence[ProcessInfo]) -> HostStatus:
        histories = {process.program: self._history(process) for process in processes}
        traffic = traffic_of(await self.reconciler.front_states(processes))
        return compare(plans, processes, self.probe.readiness, histories, time.time(), self.probe.unready, traffic)

    async def known(self) -> Known:
        """What is known without asking anybody, for metrics."""
        plans, processes = await self.reconciler.last_seen()
        readiness, unready = self.probe.readiness, self.probe.unready
        routed = [one for one in plans.versions if one.state in (VersionState.SERVING, VersionState.REPLACED)]
        return Known(
            status=compare(plans, processes, readiness, {}, time.time(), unready),
            starts={process.program: self._starts.of(process.program) for process in processes},
            deaths={program: dict(slot.counts) for program, slot in self._ledger.slots.items()},
            beside={
                "canary": {one.model.group: one.model.canary_percent for one in routed if one.model.canary_percent},
                "shadow": {one.model.group: one.model.shadow_percent for one in routed if one.model.shadow_percent},
            },
            unreadable=frozenset(unready),
        )

    def _history(self, process: ProcessInfo) -> SlotHistory:
        program = process.program
        lives = read_lives(self.run_dir.slot_lives(program))
        backoff = None
        if lives is not None and lives.short:
            backoff = Backoff(short_lives=lives.short, since=lives.since_s, until=lives.begins_s)
        return SlotHistory(
            starts=self._starts.of(program),
            deaths=self._ledger.slots.get(program),
            backoff=backoff,
            usage=usage_of(self._tree, program, process.pid),
        )

    def versions(self) -> list[DeployedModel]:
        """Every model version that has processes or should have, the highest first."""
        found = {model.group: model for model in self.reconciler.known}
        try:
            found |= {model.group: model for model in self.reconciler.desired().models}
        except ConfigError as error:
            logger.warning("%s", error)
        return sorted(found.values(), key=lambda model: natural_key(model.version), reverse=True)

    @property
    def features(self) -> Features:
        """The host's features."""
        return self.reconciler.features

    @property
    def deaths(self) -> Mapping[str, SlotDeaths]:
        """What every slot's processes died of, by program."""
        return self._ledger.slots

    def _something_changed(self) -> None:
        self.reconciler.notice()
        self.watcher.notice()

    def _gone(self, group: str) -> None:
        self._ledger.forget(group)
        self._starts.forget(group)

    def begin(self) -> None:
        """Write down what died while nobody listened."""
        self._spawn(self._ledger.learn())

    async def _learn(self) -> None:
        await self._ledger.learn()
        self.watcher.notice()

    def _worker_died(self, program: str, pid: int) -> None:
        self._spawn(wake_supervisor(self._supervisor, program, pid))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notice(self, event: StateEvent) -> None:
        logger.debug("%s: %s to %s", event.program, event.from_state, event.to_state)
        self.reconciler.notice()
        self.watcher.notice()
        if event.to_state == "STARTING":
            self._starts.count(event.program)
        if event.to_state in _ENDED:
            self._spawn(self._learn())
        if event.to_state in _STAYS_DOWN:
            self._spawn(self._ledger.empty(event.program))

    async def listen_to_events(self) -> None:
        """Take supervisord's events from standard input, until it closes it. Raises `EventProtocolError`."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        decoder = EventDecoder()
        _say(READY)
        while data := await reader.read(_READ_BYTES):
            for event in decoder.feed(data):
                if event is not None:
                    self._notice(event)
                _say(DONE + READY)


async def serve_control(options: ControlOptions) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    run_dir = RunDirectory(options.run_dir)

    # 1. start
    control = Control(run_dir)
    known = control.probe.first_joined(FIRST_JOINED_S)
    watches = (
        control.probe.run(),
        control.reconciler.follow_desired(),
        control.reconciler.run(known),
        control.autoscaler.run(),
        control.referee.run(),
        control.watcher.run(),
    )
    tasks = [asyncio.create_task(stop.wait()), *(asyncio.create_task(one) for one in watches)]
    control.begin()
    if options.events:
        tasks.append(asyncio.create_task(control.listen_to_events()))
    app = application(control, control.settings)
    add_page(app, control)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    await listen_on_unix(runner, run_dir.control_socket)
    logger.info("answering on %s", run_dir.control_socket)
    if control.settings.admin_port:
        tasks.append(asyncio.create_task(listen_on_tcp(runner, control.settings)))

    # 2. serve; a watcher that ends is a defect, and ends the process with its reason
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    # 3. stop
    await runner.cleanup()
    run_dir.control_socket.unlink(missing_ok=True)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
    logger.info("stopped")


def _say(data: bytes) -> None:
    # A few bytes into a pipe that supervisord empties: this does not block.
    os.write(sys.stdout.fileno(), data)
