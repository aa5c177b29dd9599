"""Runs between supervisord and a process of the host: `launch.py PLAN -- COMMAND ...`.

Puts itself into the slot's cgroup, takes the CPUs, limits, view, user and so on that the plan says, then becomes the
command, with the same pid. A step that fails ends the process (isolation = "required") or is logged and left out.
Standard library only, and started with `-I -S`: it costs some twenty milliseconds.
"""

from __future__ import annotations

import _socket
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

if __name__ == "__main__":  # -I leaves the script's directory out, so that nothing beside it can be imported instead
    sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from host.isolation import kernel
from host.isolation.backoff import LastEnd, next_life, read_lives, write_lives
from host.isolation.cgroups import Leaf, Limits
from host.isolation.plan import CgroupPlan, SlotPlan, read_plan
from host.isolation.sandbox import enter_view, leave_namespaces
from host.protocol.given import COUNTERS_VARIABLE, create_counters
from host.protocol.process import EXIT_NOT_ISOLATED
from host.protocol.sockets import BACKLOG, SOCKET_DRAINED, SOCKET_NOT_READY, SOCKET_READY, SOCKET_VARIABLE

EXIT_NO_PROGRAM: Final = 127
"""The command cannot be executed: the shell's number for it."""

_BUILD_UMASK: Final = 0o022
"""While the view is built: its directories must be readable by the process' own user."""

_UMASK: Final = 0o077
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class NotIsolated(Exception):
    """A step failed that the plan requires."""


class Launcher:
    """Takes the steps of one plan, in their order."""

    def __init__(self, plan: SlotPlan) -> None:
        self._plan = plan
        self._socket: _socket.socket | None = None
        self._counters: int | None = None
        self.failures: list[str] = []

    def empty(self) -> None:
        """End what the slot's last process left. Raises `NotIsolated` if that fails and is required."""
        if self._plan.cgroup is not None:
            cgroup = self._plan.cgroup
            self._step("cgroup", lambda: empty_cgroup(cgroup))

    def isolate(self) -> None:
        """Take every step. Raises `NotIsolated` if one fails that is required."""
        plan = self._plan
        if plan.socket:
            self._socket = make_socket(Path(plan.socket), plan.user)
        if plan.counters:
            self._open_counters(Path(plan.counters))
        os.umask(_BUILD_UMASK)
        if plan.cgroup is not None:
            cgroup = plan.cgroup
            self._step("cgroup", lambda: enter_cgroup(cgroup))
        if plan.cpus:
            self._step("CPU affinity", lambda: os.sched_setaffinity(0, plan.cpus))
        if plan.oom_score_adj is not None:
            self._step("oom_score_adj", lambda: kernel.write("/proc/self/oom_score_adj", str(plan.oom_score_adj)))
        if plan.open_files:
            self._step("open files", lambda: _limit(resource.RLIMIT_NOFILE, plan.open_files))
        if plan.view is not None or not plan.network:
            self._step("namespaces", self._enter_namespaces)
        if plan.user is not None:
            user = plan.user
            self._step("user", lambda: self._change_user(user))
        if plan.confined:
            self._step("confinement", self._confine)
        os.umask(_UMASK)

    def environment(self, environ: dict[str, str]) -> dict[str, str]:
        """What the command sees: thread caps before anything can be imported, and a home that is its own."""
        plan = self._plan
        added: dict[str, str] = {}
        if plan.threads:
            added.update(dict.fromkeys(_THREAD_VARIABLES, str(plan.threads)))
            # What code asks for later is bounded too (OpenMP 5.2, 21.1).
            added["OMP_THREAD_LIMIT"] = str(plan.threads_max)
            added["OMP_WAIT_POLICY"] = "PASSIVE"
            added["ORT_DISABLE_TELEMETRY"] = "1"
        if self._socket is not None:
            added[SOCKET_VARIABLE] = str(self._socket.fileno())
        if self._counters is not None:
            added[COUNTERS_VARIABLE] = str(self._counters)
        if plan.view is not None:
            added.update(dict.fromkeys(("HOME", "TMPDIR"), "/tmp"))  # noqa: S108 - its own, of the view
        return {**environ, **added}

    # -- steps --------------------------------------------------------------------------------------------
    def _step(self, name: str, take: Callable[[], None]) -> None:
        try:
            take()
        except (OSError, ValueError) as error:
            text = f"{name}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
            if self._plan.required:
                raise NotIsolated(text) from error
            self.failures.append(text)

    def _open_counters(self, path: Path) -> None:
        """Open the slot's file of counters for the worker. Without it a worker serves as well, so it may fail."""
        try:
            self._counters = create_counters(path)
            os.set_inheritable(self._counters, True)
        except OSError as error:
            _say(f"what {self._plan.program} does is not counted: {path}: {error.strerror}")

    def _enter_namespaces(self) -> None:
        plan = self._plan
        leave_namespaces(view=plan.view is not None, network=plan.network)
        if plan.view is not None:
            enter_view(plan.view, network=plan.network)

    def _change_user(self, user: int) -> None:
        if self._plan.processes_max:
            _limit(resource.RLIMIT_NPROC, self._plan.processes_max)
        if self._plan.confined:
            kernel.drop_bounding_set()
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)

    def _confine(self) -> None:
        _limit(resource.RLIMIT_CORE, 0)
        kernel.drop_capabilities()
        kernel.no_new_privileges()
        kernel.die_with_parent(signal.SIGKILL)  # a change of user forgets it
        os.chdir("/")


def empty_cgroup(plan: CgroupPlan) -> None:
    """Kill what a dead process of this slot left. Raises `CgroupError`."""
    killed = _leaf(plan).kill()
    if killed:
        _say(f"killed {killed} processes that the slot's last one left")


def enter_cgroup(plan: CgroupPlan) -> None:
    """Set the limits, go in. Raises `CgroupError`."""
    leaf = _leaf(plan)
    leaf.make(Limits(plan.memory_bytes, plan.pids_max, plan.cpu_weight, plan.cpus))
    leaf.join(os.getpid())


def make_socket(path: Path, user: int | None) -> _socket.socket:
    """Listen at a path for the worker, which only has to say when it can serve: by the socket's mode. Raises `OSError`.

    So it needs no directory that it may write to, and all that fronts ever look at is this one socket.
    """
    path.unlink(missing_ok=True)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    previous = os.umask(0o777 & ~SOCKET_NOT_READY)
    try:
        sock.bind(str(path))
    finally:
        os.umask(previous)
    if user is not None:
        os.chown(path, user, user)
    sock.listen(BACKLOG)
    os.set_inheritable(sock.fileno(), True)
    return sock


def wait_for_turn(path: Path, socket: Path, now_s: float) -> None:
    """Sleep while the slot backs off, and note that a life begins. `now_s`: since the epoch."""
    lives = next_life(read_lives(path), _last_end(socket), now_s)
    write_lives(path, lives)
    pause_s = lives.begins_s - now_s
    if pause_s > 0:
        _say(f"{lives.short} short lives since {_clock(lives.since_s)}: waiting {pause_s:.1f} s")
        time.sleep(pause_s)


def main(arguments: list[str]) -> int:
    """Become the command; the exit code if that cannot be."""
    if len(arguments) < 3 or arguments[1] != "--":
        _say("usage: launch.py PLAN -- COMMAND ...")
        return 2
    path = Path(arguments[0])
    try:
        plan = read_plan(path)
    except (OSError, ValueError) as error:
        _say(str(error))
        return 2
    parent = os.getppid()
    try:
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            return 1
        launcher = Launcher(plan)
        launcher.empty()
        if plan.socket:
            wait_for_turn(path.with_suffix(".lives"), Path(plan.socket), time.time())
        launcher.isolate()
    except NotIsolated as error:
        _say(f'{plan.program} is not started: isolation = "required", and this step failed: {error}')
        return EXIT_NOT_ISOLATED
    except OSError as error:
        _say(f"{plan.program} is not started: {error}")
        return 1
    for text in launcher.failures:
        _say(f"not in force: {text}")
    command = arguments[2:]
    try:
        os.execvpe(command[0], command, launcher.environment(dict(os.environ)))
    except OSError as error:
        _say(f"{command[0]} cannot be executed: {error.strerror}")
    return EXIT_NO_PROGRAM


def _last_end(socket: Path) -> LastEnd:
    """How far the slot's last process came, by the socket that it left."""
    try:
        state = socket.lstat()
    except OSError:
        return LastEnd(ready_s=None)
    mode = stat.S_IMODE(state.st_mode)
    # The change of the mode is the last thing that happened to it.
    return LastEnd(ready_s=state.st_ctime if mode == SOCKET_READY else None, drained=mode == SOCKET_DRAINED)


def _leaf(plan: CgroupPlan) -> Leaf:
    return Leaf(plan.version, {name: Path(path) for name, path in plan.directories.items()})


def _limit(which: int, value: int) -> None:
    """Soft and hard alike; never more than the hard limit there is."""
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _clock(since_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(since_s))


def _say(text: str) -> None:
    os.write(2, f"launcher: {text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
