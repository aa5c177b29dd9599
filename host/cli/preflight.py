"""Everything that can be known before anything starts: each finding is a clear message, not a failure later."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import host
from host.cli.listeners import listening_process
from host.config.deployment import Deployment, load_deployment
from host.config.run_dir import RunDirectory
from host.config.settings import OTLP_MISSING, HostSettings, LoadedSettings
from host.control.host_record import HostRecord
from host.deployment_checks import deployment_problems
from host.isolation.planning import demands
from host.isolation.prepare import clear
from host.isolation.topology import read_topology
from host.placement import Grant, Topology, place
from host.protocol.errors import ConfigError, HostError
from host.supervisor import SupervisorClient, SupervisorFault, SupervisorUnreachable
from supervisor_conf.render import Programs

OLD_SUPERVISOR_S: Final = 30.0
"""How long the supervisord of a killed run may take to stop."""

OLD_SUPERVISOR_NOTICE_S: Final = 2.0
"""How long it may take to begin: it looks at signals once a second."""

LOCK_S: Final = 0.2
_LOOK_S: Final = 0.05
_INTERPRETER_S: Final = 30.0
_WORKER_NEEDS: Final = ("numpy", "msgpack", "msgspec")
_SUPERVISOR_RUNNING: Final = 1
_KEPT_VARIABLES: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `up` is going to run; all of it was checked."""

    settings: HostSettings
    deployment_file: Path
    deployment: Deployment
    programs: Programs
    topology: Topology
    grants: Mapping[str, Grant]
    """CPUs and memory of every process, by program name."""

    @property
    def record(self) -> HostRecord:
        """What control has to know of it."""
        return HostRecord(
            settings=self.settings,
            programs=self.programs,
            deployment_file=self.deployment_file,
            topology=self.topology,
        )

    @property
    def run_dir(self) -> RunDirectory:
        """The run directory's paths."""
        return RunDirectory(self.settings.run_dir)


def make_plan(loaded: LoadedSettings) -> Plan:
    """Read and check everything that needs no running process. Raises `ConfigError` with every problem."""
    settings = loaded.settings
    problems: list[str] = []
    programs = find_programs(settings)
    try:
        deployment = load_deployment(settings.repository, settings.deployment, settings.environments, settings.features)
    except ConfigError as error:
        problems.extend(error.problems)
        deployment = Deployment()
    problems += _interpreter_problems(settings)
    problems += _tracing_problems(settings)
    problems += deployment_problems(settings, deployment)
    topology = read_topology()
    grants: Mapping[str, Grant] = {}
    try:
        grants = place(topology, demands(settings, deployment))
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return Plan(
        settings=settings,
        deployment_file=loaded.deployment_file,
        deployment=deployment,
        programs=programs,
        topology=topology,
        grants=grants,
    )


def find_programs(settings: HostSettings) -> Programs:
    """The interpreters and the code."""
    return Programs(
        host_python=Path(sys.executable),
        model_python=settings.model_python or Path(sys.executable),
        code_root=Path(host.__file__).resolve().parent.parent,
    )


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the host's processes see of the caller's environment: nothing that could change Python or a model."""
    return {name: value for name, value in environ.items() if name in _KEPT_VARIABLES or name.startswith("LC_")}


def prepare_run_dir(run_dir: RunDirectory) -> None:
    """Make the run directory, its owner's alone. Raises `ConfigError` if that cannot be."""
    try:
        inner = (run_dir.sockets, run_dir.fronts, run_dir.logs, run_dir.slots, run_dir.view)
        for path in (run_dir.root, *inner, run_dir.counters, run_dir.starts):
            path.mkdir(parents=path == run_dir.root, exist_ok=True, mode=0o700)
            state = path.stat()
            if state.st_uid != os.geteuid():
                raise ConfigError(
                    f"run_dir: {path}: expected a directory of ours (uid {os.geteuid()}), "
                    f"received one of uid {state.st_uid}"
                )
            if state.st_mode & 0o077:
                path.chmod(0o700)
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
                raise ConfigError(f"run_dir: {path}: expected a directory that we can write to; it cannot be written")
    except OSError as error:
        raise ConfigError(
            f"run_dir: {error.filename}: expected a directory that we can write to: {error.strerror}"
        ) from error


class RunLock:
    """Held by `up` for as long as it runs. The kernel lets go of it when the process dies, however that is."""

    def __init__(self, run_dir: RunDirectory) -> None:
        self._run_dir = run_dir
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        """Take it. Raises `HostError` if another host has it."""
        file = os.open(self._run_dir.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock_within(file, LOCK_S):
            os.close(file)
            pid = holder_pid(self._run_dir)
            who = f" (pid {pid})" if pid else ""
            raise HostError(
                f"a host already runs in {self._run_dir.root}{who}: "
                "stop it with modelhost down, or choose another run_dir"
            )
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of it."""
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)


def holder_pid(run_dir: RunDirectory) -> int | None:
    """The pid of the `up` that holds the lock; 0 if it is just coming or going, None if nobody holds it."""
    try:
        file = os.open(run_dir.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(file, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(file)
    return None


def _lock_within(file: int, limit_s: float) -> bool:
    """Lock a file, even if `holder_pid` of another process is just looking at the lock."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(_LOOK_S)


def clear_leftovers(run_dir: RunDirectory) -> None:
    """Wait for the supervisord of a killed run to finish, and remove what such a run left. The lock must be held.

    Raises `HostError` if a supervisord runs there that is not about to stop.
    """
    wait_for_old_supervisor(run_dir, OLD_SUPERVISOR_NOTICE_S)
    clear(run_dir)
    for path in (run_dir.deaths, run_dir.reconciliation, run_dir.grants):
        path.unlink(missing_ok=True)
    remove_sockets(run_dir)


def wait_for_old_supervisor(run_dir: RunDirectory, notice_s: float) -> None:
    """Return when no supervisord answers. Raises `HostError` if one goes on running."""
    client = SupervisorClient(run_dir.supervisor_socket, timeout_s=2.0)
    begun = time.monotonic()
    while True:
        running = False
        try:
            running = client.call("getState")["statecode"] == _SUPERVISOR_RUNNING
        except SupervisorFault:
            pass  # it refuses every call once it is stopping
        except SupervisorUnreachable:
            if supervisor_pid(run_dir) is None:
                return
        waited_s = time.monotonic() - begun
        if (running and waited_s > notice_s) or waited_s > OLD_SUPERVISOR_S:
            raise HostError(
                f"a supervisord (pid {supervisor_pid(run_dir) or 'unknown'}) runs in {run_dir.root}: "
                f"stop it with supervisorctl -c {run_dir.supervisor_config} shutdown"
            )
        time.sleep(_LOOK_S)


def supervisor_pid(run_dir: RunDirectory) -> int | None:
    """The living supervisord of a run directory, by its pid file; None if that is of a dead one."""
    try:
        pid = int((run_dir.root / "supervisord.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(run_dir.supervisor_config) in words else None


def remove_sockets(run_dir: RunDirectory) -> None:
    """Remove sockets and pid files; nobody may use them any more."""
    root = run_dir.root
    names = (run_dir.supervisor_socket.name, run_dir.control_socket.name)
    leftovers = [path for name in names for path in (*root.glob(f"{name}*"), *root.glob(f".{name}*"))]
    for path in [*leftovers, root / "supervisord.pid"]:
        path.unlink(missing_ok=True)
    for path in run_dir.fronts.glob("*.sock"):
        path.unlink(missing_ok=True)
    if run_dir.sockets.is_dir():
        for group in run_dir.sockets.iterdir():
            shutil.rmtree(group) if group.is_dir() and not group.is_symlink() else group.unlink()


def check_ports(settings: HostSettings) -> None:
    """Make sure that the host will get its ports. Raises `HostError` with whoever has one."""
    check_port(settings.address, settings.port, "--port")
    if settings.admin_port:
        check_port(settings.admin_address, settings.admin_port, "--admin-port (0: none)")


def check_port(address: str, port: int, flag: str = "--port") -> None:
    """Make sure that a port is free. Raises `HostError` with whoever has it. `flag`: what asks for another one.

    The fronts share the port among them (SO_REUSEPORT); this asks without, so that any other listener is seen.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError as error:
            owner = listening_process(port)
            who = f" by pid {owner.pid} ({owner.command})" if owner else ""
            reason = f"{(error.strerror or str(error)).lower()}{who}"
            raise HostError(f"cannot listen on {address} port {port}: {reason}; another one: {flag}") from error


def _tracing_problems(settings: HostSettings) -> list[str]:
    """The extra is looked for, not imported: only the fronts need it."""
    if settings.otlp_endpoint is None:
        return []
    for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            return [f"{OTLP_MISSING}; {name} is missing"]
    return []


def _interpreter_problems(settings: HostSettings) -> list[str]:
    python = settings.model_python
    if python is None:
        return []
    if shutil.which(python) is None:
        return [f"model_python: expected a Python interpreter, received {python}, which is no program"]
    code = f"import sys, {', '.join(_WORKER_NEEDS)}; assert sys.version_info >= (3, 11), sys.version"
    try:
        done = subprocess.run(
            [python, "-I", "-c", code],
            capture_output=True,
            text=True,
            timeout=_INTERPRETER_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"model_python: {python} cannot be run: {error}"]
    if done.returncode == 0:
        return []
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return [f"model_python: {python}: expected Python >= 3.11 with {', '.join(_WORKER_NEEDS)}, received: {last}"]
