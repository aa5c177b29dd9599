"""Gathers what can be known whether a host runs or not. Changes nothing; `examination` has the limits."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from host.cli.children import child_pids
from host.cli.listeners import listening_processes
from host.cli.preflight import check_port, make_plan
from host.config.run_dir import group_name
from host.config.settings import UIDS
from host.deployment_checks import environment_problems
from host.doctor.facts import (
    ConfigurationFacts,
    DiskFacts,
    EnvironmentFacts,
    IsolationFacts,
    LimitFacts,
    MemoryFacts,
    PathFacts,
    PortFacts,
    Seen,
    SocketFacts,
    SpaceFacts,
)
from host.doctor.kernel import memory_numbers, number, open_files_limit, rooms
from host.doctor.target import Target
from host.isolation.inspection import inspect
from host.isolation.prepare import probe, read_record
from host.isolation.topology import read_memory_bytes
from host.protocol.errors import ConfigError, HostError
from supervisor_conf.render import open_files

INTERPRETER_S: Final = 20.0
WATCHERS: Final = 2
"""inotify instances of each front, each feature process and control: of sockets, and of what is routed."""

LOG_FILES: Final = 4
LOG_FILE_BYTES: Final = 10 << 20
"""Of each process, the one that is written and those that were rotated (supervisor_conf/render.py)."""

_IMPORTS: Final = "import sys, numpy, msgpack, msgspec; assert sys.version_info >= (3, 11), sys.version"
_PROC_SYS_VM: Final = Path("/proc/sys/vm")
_STRICT: Final = 2


def gather_configuration(target: Target) -> ConfigurationFacts:
    """What `modelhost check` finds, but for environments, which have a check of their own."""
    problems = list(target.problems)
    try:
        make_plan(target.loaded)
    except ConfigError as error:
        unbuilt = set(environment_problems(target.desired))
        problems += [problem for problem in error.problems if problem not in unbuilt]
    file = target.deployment_file
    return ConfigurationFacts(
        source=str(file if file.exists() else target.settings.repository),
        problems=tuple(dict.fromkeys(problems)),
        versions=len(target.desired.models),
        processes=sum(model.processes for model in target.desired.models),
    )


def gather_environments(target: Target) -> list[EnvironmentFacts]:
    """Start every interpreter that workers run in, one after the other."""
    users: dict[str, list[str]] = {}
    for model in target.desired.models:
        names = users.setdefault(model.python or str(target.programs.model_python), [])
        if model.python is not None and model.name not in names:
            names.append(model.name)
    return [_environment(python, names) for python, names in users.items()]


def _environment(python: str, models: list[str]) -> EnvironmentFacts:
    begun_s = time.monotonic()
    built = Path(python).exists()
    problem = _interpreter_problem(python) if built else ""
    took_s = time.monotonic() - begun_s
    return EnvironmentFacts(python=python, models=tuple(models), built=built, problem=problem, took_s=took_s)


def _interpreter_problem(python: str) -> str:
    try:
        done = subprocess.run(
            [python, "-I", "-c", _IMPORTS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INTERPRETER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not start within {INTERPRETER_S:.0f} s"
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return last if done.returncode else ""


def gather_ports(target: Target, processes: tuple[Seen, ...]) -> PortFacts:
    """Who has the port: of a host that runs, its fronts; else whoever it is."""
    settings = target.settings
    if not target.running:
        problem = ""
        try:
            check_port(settings.address, settings.port)
        except HostError as error:
            problem = str(error).partition(": ")[2].partition("; another one")[0]
        return PortFacts(address=settings.address, port=settings.port, running=False, bind_problem=problem)
    listeners = listening_processes(settings.port)
    fronts = {one.process.pid: one.process.program for one in processes if one.process.group == "front"}
    fronts.pop(0, None)
    listening = {one.pid for one in listeners}
    # Not by what supervisord says, which may be frozen.
    ours = set(child_pids(target.supervisor_pid)) if target.supervisor_pid else set()
    return PortFacts(
        address=settings.address,
        port=settings.port,
        running=True,
        bind_problem="",
        fronts=tuple(fronts.values()),
        deaf=tuple(program for pid, program in fronts.items() if pid not in listening),
        others=tuple(one for one in listeners if one.pid not in ours),
    )


def gather_isolation(target: Target, processes: tuple[Seen, ...]) -> IsolationFacts:
    """What the host that runs wrote down, and where its processes are; without one, try."""
    settings = target.settings
    record = read_record(target.run_dir) if target.running else None
    if record is None:
        abilities = probe(settings, target.programs.code_root, target.programs.model_python)
        tree, missing = abilities.tree, abilities.missing
    else:
        tree, missing = record.tree, tuple(record.missing)
    outside = []
    for one in processes if tree is not None and record is not None else ():
        process = one.process
        found = inspect(process.program, process.pid, tree) if process.pid else None
        if found is not None and found.cgroup is not None and not found.cgroup.joined:
            outside.append(process.program)
    return IsolationFacts(
        setting=settings.isolation,
        cgroup_version=tree.version if tree is not None else 0,
        cgroup=str(tree.path if record is not None else tree.path.parent) if tree is not None else "",
        missing=missing,
        outside=tuple(outside),
    )


def gather_limits(target: Target, processes: tuple[Seen, ...]) -> LimitFacts:
    """Files, threads, and what watches directories."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_free = hard == resource.RLIM_INFINITY or os.geteuid() == 0
    in_force = {}
    for one in processes:
        limit = open_files_limit(one.process.pid) if one.process.group == "front" and one.process.pid else None
        if limit is not None:
            in_force[one.process.program] = limit
    wanted = target.programs_wanted
    services = sum(1 for program in wanted if program.partition(":")[0] in ("front", "control", "features"))
    return LimitFacts(
        open_files_needed=open_files(target.settings, target.desired),
        open_files_allowed=None if is_free else hard,
        open_files_in_force=in_force,
        rooms=tuple(rooms(0 if target.running else len(wanted), 0 if target.running else WATCHERS * services)),
    )


def gather_sockets(target: Target) -> SocketFacts:
    """Modes and owners of the run directory, of the directories in it, and of its sockets."""
    root = target.run_dir.root
    first = target.settings.first_uid
    return SocketFacts(
        run_dir=str(root),
        paths=tuple(_paths(root)) if root.is_dir() else (),
        owner=_user_of(target.up_pid or target.supervisor_pid),
        model_users=range(first, first + UIDS),
    )


def _paths(root: Path) -> Iterator[PathFacts]:
    for path in (root, *sorted(root.glob("*")), *sorted(root.glob("*/*")), *sorted(root.glob("sockets/*/*"))):
        try:
            state = path.lstat()
        except OSError:
            continue  # gone meanwhile
        if (path.is_dir() and not path.is_symlink()) or path.is_socket():
            yield PathFacts(path=str(path), mode=state.st_mode & 0o7777, uid=state.st_uid)


def _user_of(pid: int | None) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid if pid else os.geteuid()
    except OSError:
        return os.geteuid()


def gather_disk(target: Target) -> DiskFacts:
    """Room where something is written, and what the logs take."""
    settings = target.settings
    places = (
        ("run_dir", settings.run_dir),
        ("repository", settings.repository),
        ("environments", settings.environments),
    )
    logs = target.run_dir.logs
    return DiskFacts(
        spaces=tuple(_space(purpose, path) for purpose, path in places),
        logs=str(logs),
        logs_bytes=sum(map(_size, logs.glob("*"))),
        logs_max_bytes=len(target.programs_wanted) * LOG_FILES * LOG_FILE_BYTES,
    )


def _size(path: Path) -> int:
    """Of a file; 0 of one that was rotated away meanwhile."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _space(purpose: str, path: Path) -> SpaceFacts:
    there = next(one for one in (path, *path.parents) if one.exists())
    found = os.statvfs(there)
    return SpaceFacts(
        purpose=purpose,
        path=str(path),
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize,
        free_inodes=found.f_favail,
        total_inodes=found.f_files,
    )


def gather_memory(target: Target) -> MemoryFacts:
    """What the host has, and what models may take of it."""
    numbers = memory_numbers()
    swap_total = numbers.get("SwapTotal", 0)
    strict = number(_PROC_SYS_VM / "overcommit_memory") == _STRICT
    left = max(0, numbers.get("CommitLimit", 0) - numbers.get("Committed_AS", 0))
    return MemoryFacts(
        total_bytes=read_memory_bytes(Path("/")),
        available_bytes=numbers.get("MemAvailable", 0),
        swap_total_bytes=swap_total,
        swap_used_bytes=swap_total - numbers.get("SwapFree", 0),
        granted_bytes=sum(model.processes * model.resources.memory_bytes for model in target.desired.models),
        running=target.running,
        commit_left_bytes=left if strict else None,
    )


def known_groups(target: Target) -> frozenset[str]:
    """supervisord's groups that belong to the host."""
    models = (*target.desired.models, *target.routed.models)
    own = {program.partition(":")[0] for program in target.programs_wanted}
    return frozenset(own | {group_name(model.name, model.version) for model in models})
