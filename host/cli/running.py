"""The life of `modelhost up`: start, wait until ready, watch, stop. Signal handlers only set events."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from host.cli.children import adopt_orphans, kill_children, terminated_with_parent
from host.cli.listeners import listening_inodes
from host.cli.preflight import Plan, child_environment
from host.config.deployment import read_deployment, write_deployment
from host.config.history import note_start
from host.config.run_dir import group_name
from host.control.compare import HOST_GROUPS, compare, not_ready, served
from host.control.groups import write_config, write_grants
from host.control.host_record import write_host_record
from host.control.ledger import why_it_ended
from host.control.probe import WorkerProbe
from host.control.reconcile import starting_max
from host.isolation.prepare import read_record
from host.protocol.errors import HostError
from host.supervisor import AsyncSupervisorClient, ProcessInfo, ProcessState, SupervisorUnreachable
from host.tail import last_lines
from supervisor_conf.render import render, stop_wait_s

SUPERVISOR_START_S: Final = 15.0
START_MARGIN_S: Final = 15.0
"""Beyond the longest `startup_s` of a package: several load at once."""

FRONT_READY_S: Final = 10.0
SHUTDOWN_S: Final = 5.0
LOG_LINES: Final = 15
RESTARTS_MAX: Final = 5
RESTART_WINDOW_S: Final = 10.0
"""A supervisord that dies more often than so many times within this is not started again (systemd's numbers for
services: StartLimitBurst and StartLimitIntervalSec, systemd-system.conf(5))."""

READY_PATH: Final = "/v2/health/ready"
LIVE_PATH: Final = "/v2/health/live"

_LOOK_S: Final = 0.1
"""While starting and stopping, supervisord is asked so often; in between it is not asked at all."""

_AS_WANTED: Final = (ProcessState.RUNNING, ProcessState.STOPPED)
"""Of a process once everything wanted is ready: what is stopped is a slot for later."""

_FAILED_STATES: Final = (ProcessState.BACKOFF, ProcessState.EXITED, ProcessState.FATAL, ProcessState.UNKNOWN)


class StartWatch:
    """Notices a process that did not survive its start, however soon supervisord started it again."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}

    def failed(self, processes: Iterable[ProcessInfo]) -> list[str]:
        """The programs that failed. Called with every look at supervisord, in order."""
        failed = []
        for process in processes:
            first = self._pids.setdefault(process.program, process.pid) or process.pid
            self._pids[process.program] = first
            if process.state in _FAILED_STATES or (process.pid and process.pid != first):
                failed.append(process.program)
        return failed


class RunningHost:
    """One host, from the start of its supervisord to the end of its last process."""

    def __init__(
        self, plan: Plan, environ: Mapping[str, str], report: Callable[[str], None], *, keep_going: bool = False
    ) -> None:
        """`keep_going`: a model that does not start keeps nobody else from being served."""
        self._plan = plan
        self._keep_going = keep_going
        self._run_dir = plan.run_dir
        self._environ = environ
        self._report = report
        self._client = AsyncSupervisorClient(plan.run_dir.supervisor_socket)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()
        self._supervisord: subprocess.Popen[bytes] | None = None

    async def run(self, when_ready: Callable[[], None]) -> None:
        """Run until told to stop. Raises `HostError` if it does not start or does not go on running."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGCHLD, self._reap_orphans)
        try:
            self._start()
            await self._unless_stopped(self._until_ready())
            if not self._stop.is_set():
                when_ready()
                await self._watch()
        finally:
            await self._shut_down()

    def _signalled(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()

    def _reap_orphans(self) -> None:
        """Take the end of what the host's processes left behind, which comes to this process (`adopt_orphans`)."""
        supervisord = self._supervisord.pid if self._supervisord is not None else 0
        look = os.WEXITED | os.WNOHANG
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, look | os.WNOWAIT)
                if ended is None or ended.si_pid == supervisord:  # its end is for whoever waits for it
                    return
                os.waitid(os.P_PID, ended.si_pid, look)
            except ChildProcessError:
                return

    # -- 1. start -----------------------------------------------------------------------------------------
    def _start(self) -> None:
        plan, run_dir = self._plan, self._run_dir
        write_deployment(run_dir.deployment, plan.deployment)
        write_deployment(run_dir.routing, plan.deployment)
        write_host_record(run_dir, plan.record)
        write_grants(run_dir, plan.grants)
        note_start(run_dir.history, plan.deployment)
        write_config(run_dir, render(plan.settings, plan.deployment, plan.programs))
        adopt_orphans()
        self._launch()
        models = plan.deployment.models
        wanted = sum(model.processes for model in models)
        self._report(f"starting {wanted} processes of {len(models)} model versions ...")

    def _launch(self) -> None:
        plan, run_dir = self._plan, self._run_dir
        python = str(plan.programs.host_python)
        with self._supervisor_errors().open("wb") as errors:
            # In a session of its own, so that the terminal's Ctrl-C comes to this process alone.
            self._supervisord = subprocess.Popen(
                [python, "-X", "utf8", "-m", "supervisor.supervisord", "-n", "-c", str(run_dir.supervisor_config)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=plan.programs.code_root,
                env=child_environment(self._environ),
                start_new_session=True,
                preexec_fn=terminated_with_parent(),  # noqa: PLW1509 - this process has no threads
            )
        descriptor = os.pidfd_open(self._supervisord.pid)
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._ended.set()

        loop.add_reader(descriptor, ended)

    # -- 2. ready -----------------------------------------------------------------------------------------
    async def _until_ready(self) -> None:
        changed = asyncio.Event()
        probe = WorkerProbe(self._run_dir.sockets, changed.set)
        watching = asyncio.create_task(probe.run())
        try:
            await self._until_supervised()
            failed = await self._until_workers_ready(probe, changed)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        for group, reason in probe.unready.items():
            self._report(f"{group} cannot be served: {reason}")
        await self._until_front_ready(LIVE_PATH if probe.unready or failed else READY_PATH)

    async def _until_supervised(self) -> None:
        deadline = time.monotonic() + SUPERVISOR_START_S
        while True:
            try:
                await self._client.call("getState")
                return
            except SupervisorUnreachable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK_S / 2)

    async def _until_workers_ready(self, probe: WorkerProbe, changed: asyncio.Event) -> set[str]:
        """Wait for every worker's hello, and for the fronts and control to be RUNNING.

        Returns the groups of models that did not start, of which there are none unless told to keep going.
        """
        models = self._plan.deployment.models
        plans = served(self._plan.deployment)
        # Control starts a few at a time.
        turns = math.ceil(sum(model.processes for model in models) / starting_max(self._plan.topology))
        limit_s = max((model.limits.startup_s for model in models), default=0.0) * turns + START_MARGIN_S
        deadline = time.monotonic() + limit_s
        watch = StartWatch()
        told: set[tuple[str, str]] = set()
        without: set[str] = set()
        while True:
            changed.clear()
            processes = await self._client.processes()
            for program in watch.failed(processes):
                if _group(program) not in without:
                    self._go_on_without(program, await self._why(program), without)
            status = compare(plans, processes, probe.readiness, {}, time.time())
            for model in status.models:
                if model.ready == model.wanted and (model.name, model.version) not in told:
                    told.add((model.name, model.version))
                    self._report(f"{model.name} version {model.version}: {model.ready} of {model.wanted} ready")
            missing = [slot.name for slot in not_ready(status) if _group(slot.name) not in without]
            # RUNNING follows soon; with it, `supervisorctl status` shows what this command says.
            if not missing and all(one.state in _AS_WANTED for one in processes if _group(one.program) not in without):
                return without
            if missing and time.monotonic() > deadline:
                for program in missing:
                    self._go_on_without(program, f"is not ready after {limit_s:.0f} s", without)
            try:
                async with asyncio.timeout(_LOOK_S):
                    await changed.wait()
            except TimeoutError:
                pass

    def _go_on_without(self, program: str, why: str, without: set[str]) -> None:
        """Do without a model that does not start, if told to. Raises `HostError` if not, or if it is no model."""
        failure, group = self._failure(program, why), _group(program)
        if not self._keep_going or group in HOST_GROUPS:
            raise HostError(failure)
        without.add(group)
        self._report(f"{failure}\n{group} is tried again and again; the others are served")

    async def _until_front_ready(self, path: str) -> None:
        """Wait until every front listens, and whichever answers says that all models are ready.

        Or only that it lives: a model whose features cannot be read does not keep the others from being served.
        """
        settings = self._plan.settings
        deadline = time.monotonic() + FRONT_READY_S
        answers = 0
        while answers < 2 * settings.fronts:
            listening = len(listening_inodes(settings.port)) >= settings.fronts
            if listening and await is_front_ready(settings.address, settings.port, path=path):
                answers += 1
                continue
            answers = 0
            if time.monotonic() > deadline:
                raise HostError(self._failure("front:0", f"is not ready after {FRONT_READY_S:.0f} s"))
            await asyncio.sleep(_LOOK_S / 4)

    async def _why(self, program: str) -> str:
        """What ended a process while it started."""
        groups = {group_name(model.name, model.version): model.limits for model in self._plan.deployment.models}
        record = read_record(self._run_dir)
        tree = record.tree if record is not None else None
        reason = await why_it_ended(self._client, tree, program, groups.get(_group(program)))
        return f"ended while it started ({reason})" if reason else "ended while it started"

    def _failure(self, program: str, what: str) -> str:
        log = self._run_dir.log(program)
        lines = "".join(f"\n  {line}" for line in last_lines(log, LOG_LINES))
        return f"{program} {what}; the end of {log}:{lines or ' nothing'}"

    # -- 3. watch -----------------------------------------------------------------------------------------
    async def _unless_stopped(self, waiting: Coroutine[Any, Any, object]) -> None:
        """Wait for something, or until told to stop. Raises `HostError` if supervisord ends meanwhile."""
        task = asyncio.create_task(waiting)
        others = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self._ended.wait())]
        try:
            await asyncio.wait([task, *others], return_when=asyncio.FIRST_COMPLETED)
            if self._ended.is_set():
                raise HostError(self._supervisor_failure())
            if task.done():
                await task
        finally:
            for one in (task, *others):
                one.cancel()
            await asyncio.gather(task, *others, return_exceptions=True)

    async def _watch(self) -> None:
        """Until told to stop. A supervisord that dies is started again, and control goes on where it was."""
        restarts: list[float] = []
        while not self._stop.is_set():
            waits = [asyncio.create_task(event.wait()) for event in (self._stop, self._ended)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if not self._ended.is_set() or self._stop.is_set():
                continue
            failure = self._supervisor_failure()
            now = time.monotonic()
            restarts = [*(at for at in restarts if now - at < RESTART_WINDOW_S), now]
            if len(restarts) > RESTARTS_MAX:
                raise HostError(f"{failure}\n{RESTARTS_MAX + 1} times within {RESTART_WINDOW_S:.0f} s")
            self._report(f"{failure}\nstarting it again")
            kill_children()
            self._ended.clear()
            self._launch()

    def _supervisor_failure(self) -> str:
        code = self._supervisord.wait() if self._supervisord is not None else 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        errors = last_lines(self._supervisor_errors(), LOG_LINES) or last_lines(self._run_dir.log("supervisord"), 5)
        return f"supervisord {how}:" + "".join(f"\n  {line}" for line in errors)

    def _supervisor_errors(self) -> Path:
        return self._run_dir.log("supervisord.stderr")

    # -- 4. stop ------------------------------------------------------------------------------------------
    async def _shut_down(self) -> None:
        """Stop in order, or at once when hurried; in the end nothing is left, whatever happened."""
        if self._supervisord is None:
            return
        if not self._ended.is_set():
            self._report("draining ... (again to stop at once)")
            waits = [asyncio.create_task(one) for one in (self._wind_down(), self._hurry.wait(), self._ended.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if not self._ended.is_set():
            self._report("stopping at once")
            self._supervisord.kill()
        self._supervisord.wait()
        kill_children()
        self._report("stopped")

    async def _wind_down(self) -> None:
        """Not ready first, so that nobody sends anything more; the end comes when that is known."""
        grace_s = self._plan.settings.grace_s
        if grace_s:
            desired = read_deployment(self._run_dir.deployment)
            draining = msgspec.structs.replace(desired, draining=True, generation=desired.generation + 1)
            write_deployment(self._run_dir.deployment, draining)
            await asyncio.sleep(grace_s)
        await self._stop_in_order()

    async def _stop_in_order(self) -> None:
        """Fronts first: they finish what they have while the workers still answer. Then everything else at once."""
        limit_s = stop_wait_s(self._plan.settings.drain_s) + SHUTDOWN_S
        try:
            programs = [process.program for process in await self._client.processes()]
            fronts = [name for name in programs if name.startswith("front:")]
            for some in (fronts, [name for name in programs if name not in fronts]):
                await self._client.stop_all(some)
                await self._until_dead(some, limit_s)
            await self._client.call("shutdown")
            async with asyncio.timeout(SHUTDOWN_S):
                await self._until_shut_down()
        except TimeoutError:
            self._report("supervisord has stopped everything but does not end")
        except HostError as error:
            self._report(f"cannot stop in order: {error}")

    async def _until_shut_down(self) -> None:
        """Wait for supervisord's end. Questions wake its loop, which else looks up once a second."""
        while not self._ended.is_set():
            try:
                await self._client.call("getState")
            except HostError:
                pass  # it says that it is stopping, or is gone
            await asyncio.sleep(_LOOK_S / 4)

    async def _until_dead(self, programs: list[str], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        names = set(programs)
        while any(one.program in names and one.state.alive for one in await self._client.processes()):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(_LOOK_S / 2)


def _group(program: str) -> str:
    return program.partition(":")[0]


async def is_front_ready(address: str, port: int, timeout_s: float = 1.0, path: str = READY_PATH) -> bool:
    """Ask `GET /v2/health/ready` on a connection of its own."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(local_address(address), port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
    except OSError:
        return False


def local_address(address: str) -> str:
    """Where a client on this machine finds an address that the front listens on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - compared, not bound
