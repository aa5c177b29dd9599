"""The life of the control process: watch, answer, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import web

from host.config.run_dir import RunDirectory
from host.control.autoscaler import Autoscaler
from host.control.compare import SlotHistory, compare, plans_of, traffic_of
from host.control.events import DONE, READY, EventDecoder, StateEvent
from host.control.groups import Groups
from host.control.host_record import read_host_record
from host.control.ledger import Ledger
from host.control.probe import WorkerProbe
from host.control.reconcile import Pace, starting_max
from host.control.reconciler import Reconciler
from host.control.referee import Referee
from host.control.status import Backoff, HostStatus
from host.control.usage import usage_of
from host.control.wake import wake_supervisor
from host.isolation.backoff import read_lives
from host.isolation.prepare import read_record
from host.protocol.errors import HostError
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
        self._run_dir = run_dir
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
        self._starts: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def status(self) -> HostStatus:
        """Compare. Raises `HostError` if supervisord does not answer, `ConfigError` without a deployment."""
        reconciler = self.reconciler
        processes = await self._supervisor.processes()
        histories = {process.program: self._history(process) for process in processes}
        plans = plans_of(reconciler.desired(), reconciler.routed(), reconciler.memory)
        traffic = traffic_of(await reconciler.front_states())
        return compare(plans, processes, self.probe.readiness, histories, time.time(), self.probe.unready, traffic)

    def _history(self, process: ProcessInfo) -> SlotHistory:
        program = process.program
        lives = read_lives(self._run_dir.slot_lives(program))
        backoff = None
        if lives is not None and lives.short:
            backoff = Backoff(short_lives=lives.short, since=lives.since_s, until=lives.begins_s)
        return SlotHistory(
            starts=self._starts[program],
            deaths=self._ledger.slots.get(program),
            backoff=backoff,
            usage=usage_of(self._tree, program, process.pid),
        )

    def _something_changed(self) -> None:
        self.reconciler.notice()

    def _gone(self, group: str) -> None:
        self._ledger.forget(group)
        for program in [one for one in self._starts if one.partition(":")[0] == group]:
            del self._starts[program]

    def begin(self) -> None:
        """Write down what died while nobody listened."""
        self._spawn(self._ledger.learn())

    def _worker_died(self, program: str, pid: int) -> None:
        self._spawn(wake_supervisor(self._supervisor, program, pid))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _notice(self, event: StateEvent) -> None:
        logger.debug("%s: %s to %s", event.program, event.from_state, event.to_state)
        self.reconciler.notice()
        if event.to_state == "STARTING":
            self._starts[event.program] += 1
        if event.to_state in _ENDED:
            self._spawn(self._ledger.learn())
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
    )
    tasks = [asyncio.create_task(stop.wait()), *(asyncio.create_task(one) for one in watches)]
    control.begin()
    if options.events:
        tasks.append(asyncio.create_task(control.listen_to_events()))
    runner = web.AppRunner(application(control), access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    await listen_on_unix(runner, run_dir.control_socket)
    logger.info("answering on %s", run_dir.control_socket)

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


def application(control: Control) -> web.Application:
    """Control's HTTP."""

    async def status(request: web.Request) -> web.Response:
        try:
            body = msgspec.json.encode(await control.status())
        except HostError as error:
            return web.json_response({"error": str(error), "code": "SUPERVISOR_UNREACHABLE"}, status=503)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/status", status)
    return app


def _say(data: bytes) -> None:
    # A few bytes into a pipe that supervisord empties: this does not block.
    os.write(sys.stdout.fileno(), data)
