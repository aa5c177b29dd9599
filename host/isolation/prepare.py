"""What `modelhost up` does about isolation before anything runs, and after everything has ended.

Finds out by trying what this host allows: the launcher itself runs a harmless command with the steps of a worker.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from host.config.deployment import Deployment
from host.config.files import write_atomically
from host.config.run_dir import FEATURES_GROUP, RunDirectory, group_name
from host.config.settings import HostSettings
from host.isolation.cgroups import CgroupError, CgroupTree, Limits, hierarchy_for
from host.isolation.plan import SlotPlan, ViewPlan, plain_plan, read_plan, write_plan
from host.isolation.planning import Abilities, Layout, slot_plans, user_ids, writable_directories
from host.placement import Grant
from host.protocol.errors import ConfigError, HostError

TRY_LIMIT_S: Final = 30.0
_PROBE: Final = ".probe"
_PROBE_PIDS: Final = 16
_PROBE_WEIGHT: Final = 100
_PREFIXES: Final = "import sys; print(*{sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}, sep='\\n')"


class Record(NamedTuple):
    """What `isolation.json` holds: for control, `modelhost status`, and whoever cleans up after a killed run."""

    isolation: str
    cgroup_version: int
    """0: no cgroups."""
    tops: dict[str, str]
    missing: list[str]
    namespaces: bool = False
    user: bool = False
    protected: bool = False

    @property
    def tree(self) -> CgroupTree | None:
        """The host's cgroups."""
        if not self.cgroup_version:
            return None
        return CgroupTree(self.cgroup_version, {name: Path(path) for name, path in self.tops.items()})

    @property
    def abilities(self) -> Abilities:
        """What the host allows."""
        return Abilities(
            tree=self.tree,
            namespaces=self.namespaces,
            user=self.user,
            protected=self.protected,
            missing=tuple(self.missing),
        )


def read_record(run_dir: RunDirectory) -> Record | None:
    """What the host that runs, or last ran here, wrote; None if there is none."""
    try:
        return Record(**json.loads(run_dir.isolation.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def launcher_path(code_root: Path) -> Path:
    """The program that supervisord runs for every slot."""
    return code_root / "host" / "isolation" / "launch.py"


def prepare(
    settings: HostSettings, deployment: Deployment, grants: Mapping[str, Grant], code_root: Path, model_python: Path
) -> tuple[str, ...]:
    """Find out what this host allows, and make cgroups and plans.

    Return what is missing, which is nothing if isolation is required. Raises `ConfigError` with everything that is
    missing if it is.
    """
    run_dir = RunDirectory(settings.run_dir)
    tree, reason = _find_tree(settings)
    # Before anything is made, so that it is found again whatever happens.
    _write_record(run_dir, settings, Abilities(tree=tree, namespaces=False, user=False, protected=False))
    layout = Layout(
        code_root=code_root,
        model_python=model_python,
        prefixes={python: interpreter_directories(python) for python in pythons(deployment, model_python)},
    )
    abilities = _abilities(run_dir, settings, tree, reason, layout)
    _write_record(run_dir, settings, abilities)
    if abilities.missing and settings.isolation == "required":
        raise ConfigError(*(f'isolation = "required", and this host does not allow {one}' for one in abilities.missing))
    prepare_processes(settings, deployment, grants, abilities, layout)
    return abilities.missing


def prepare_processes(
    settings: HostSettings,
    deployment: Deployment,
    grants: Mapping[str, Grant],
    abilities: Abilities,
    layout: Layout,
) -> None:
    """Make what every process needs before it starts, and give what runs already its grants of now.

    Raises `CgroupError` and `OSError`.
    """
    run_dir = RunDirectory(settings.run_dir)
    plans = slot_plans(settings, deployment, grants, abilities, layout)
    tree = abilities.tree
    if tree is not None:
        weights: Counter[str] = Counter()
        for program in plans:
            weights[program.partition(":")[0]] += grants[program].weight
        for group, weight in weights.items():
            tree.make_group(group, weight)
    for program, plan in plans.items():
        path = run_dir.slot_plan(program)
        if plan == _plan_in_force(path):
            continue
        if tree is not None and plan.cgroup is not None:
            group, _, slot = program.partition(":")
            leaf = tree.leaf(group, slot or "0")
            if leaf.path.is_dir():
                cgroup = plan.cgroup
                leaf.make(Limits(cgroup.memory_bytes, cgroup.pids_max, cgroup.cpu_weight, cgroup.cpus))
        write_plan(path, plan)
    _make_directories(run_dir, settings, deployment, own_users=abilities.user)


def probe(settings: HostSettings, code_root: Path, model_python: Path) -> Abilities:
    """Find out what this host allows, in cgroups and a directory of their own, which are gone afterwards.

    The tree of what comes back is gone too. Raises `ConfigError`, and `HostError` if the interpreter cannot be run.
    """
    python = str(model_python)
    layout = Layout(code_root=code_root, model_python=model_python, prefixes={python: interpreter_directories(python)})
    with tempfile.TemporaryDirectory(prefix="modelhost-") as directory:
        own = dataclasses.replace(settings, run_dir=Path(directory))
        run_dir = RunDirectory(own.run_dir)
        for path in (run_dir.slots, run_dir.view):
            path.mkdir(mode=0o700)
        tree, reason = _find_tree(own)
        try:
            return _abilities(run_dir, own, tree, reason, layout)
        finally:
            if tree is not None:
                with suppress(CgroupError):  # what could not be made cannot be removed
                    tree.remove()


def _plan_in_force(path: Path) -> SlotPlan | None:
    try:
        return read_plan(path)
    except (OSError, ValueError):
        return None


def clear(run_dir: RunDirectory) -> None:
    """Kill what is left in the host's cgroups, remove them, and forget the slots and counters. Raises `HostError`."""
    record = read_record(run_dir)
    if record is not None and record.tree is not None:
        try:
            record.tree.remove()
        except CgroupError as error:
            raise HostError(f"cgroups: {error.strerror}") from error
    run_dir.isolation.unlink(missing_ok=True)
    for directory in (run_dir.slots, run_dir.counters, run_dir.starts):
        for path in directory.glob("*"):
            path.unlink(missing_ok=True)


# -- what this host allows ------------------------------------------------------------------------------------
def _find_tree(settings: HostSettings) -> tuple[CgroupTree | None, str]:
    """The tree's place; its name is of the run directory, so that two hosts on one machine have one each."""
    wanted = None if settings.cgroup is None else str(settings.cgroup)
    if settings.cgroup is not None and ".." in settings.cgroup.parts:
        raise ConfigError(f'cgroup: expected a path without "..", received {wanted}')
    try:
        hierarchy, reason = hierarchy_for(wanted, is_root=os.geteuid() == 0)
    except CgroupError as error:
        return None, str(error.strerror)
    if hierarchy is None:
        return None, reason
    name = f"modelhost-{zlib.crc32(os.fsencode(settings.run_dir)):08x}"
    return CgroupTree.below(hierarchy, name), ""


def _abilities(
    run_dir: RunDirectory, settings: HostSettings, tree: CgroupTree | None, reason: str, layout: Layout
) -> Abilities:
    missing = [] if tree is not None else [f"cgroups: {reason}"]
    if tree is not None:
        problem = _cgroup_problem(tree)
        absent = [name for name in ("memory", "cpuset", "cpu", "pids") if name not in tree.controllers]
        if problem is not None:
            missing.append(f"cgroups: {problem}")
            tree = None
        elif absent:
            missing.append(f"cgroups: the controllers {', '.join(absent)}")
    python = str(layout.model_python)
    view = ViewPlan(str(run_dir.view), layout.prefixes[python], (), 1 << 20)
    plan = plain_plan(_PROBE, required=True)

    def allowed(what: str, tried: SlotPlan) -> bool:
        problem = _try(run_dir, layout, python, tried)
        if problem is not None:
            missing.append(f"{what}: {problem}")
        return problem is None

    namespaces = allowed("a view of the file system and a network of its own", plan._replace(view=view, network=False))
    user = False
    if os.geteuid() != 0:
        missing.append("a user of each model's own: modelhost does not run as root")
    elif namespaces:
        # Without a view of its own another user could not reach what it needs, wherever that is.
        own = plan._replace(view=view, network=False, user=settings.first_uid, confined=True)
        user = allowed("a user of each model's own", own)
    else:
        missing.append("a user of each model's own: it needs the view of the file system")
    protected = os.geteuid() == 0 and _try(run_dir, layout, python, plan._replace(oom_score_adj=-1)) is None
    return Abilities(tree=tree, namespaces=namespaces, user=user, protected=protected, missing=tuple(missing))


def _cgroup_problem(tree: CgroupTree) -> str | None:
    """Make a leaf with every limit and put a process in."""
    try:
        tree.make()
        tree.make_group(_PROBE, _PROBE_WEIGHT)
        leaf = tree.leaf(_PROBE, "0")
        leaf.make(Limits(1 << 26, _PROBE_PIDS, _PROBE_WEIGHT, ""))
        with subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE) as process:
            try:
                leaf.join(process.pid)
            finally:
                process.communicate(b"\n", TRY_LIMIT_S)
        tree.remove(_PROBE)
    except CgroupError as error:
        return str(error.strerror)
    return None


def _try(run_dir: RunDirectory, layout: Layout, python: str, plan: SlotPlan) -> str | None:
    """Run an interpreter that does nothing with the steps of a plan; what went wrong, or None."""
    path = run_dir.slot_plan(_PROBE)
    write_plan(path, plan)
    command = [sys.executable, "-I", "-S", str(launcher_path(layout.code_root)), str(path), "--"]
    try:
        done = subprocess.run(
            [*command, python, "-I", "-S", "-c", ""],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TRY_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        path.unlink()
    if done.returncode == 0:
        return None
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return last.rpartition("this step failed: ")[2]


def pythons(deployment: Deployment, model_python: Path) -> Iterable[str]:
    """Every interpreter that runs a worker."""
    return dict.fromkeys([str(model_python), *(model.python for model in deployment.models if model.python)])


def interpreter_directories(python: str) -> tuple[str, ...]:
    """What an interpreter needs beside the system's own: its directories, and the links that lead to it."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PREFIXES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TRY_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{python} cannot be run: {error}") from error
    found = set(done.stdout.split("\n")) - {""}
    found |= {str(Path(path).resolve()) for path in found}
    program = Path(python)
    while program.is_symlink():
        found.add(str(program))  # as a link: an interpreter finds what is its own by following it
        program = program.parent / program.readlink()
    found.add(str(program))
    return tuple(sorted(path for path in found if not path.startswith("/usr/") and path not in ("/", "/usr")))


# -- directories and the record -------------------------------------------------------------------------------
def _make_directories(
    run_dir: RunDirectory, settings: HostSettings, deployment: Deployment, *, own_users: bool
) -> None:
    """A directory of sockets for each model version, and what it may write: its user's."""
    groups = {group_name(model.name, model.version): model for model in deployment.models}
    users = user_ids(groups, settings.first_uid)
    if deployment.features.views:
        run_dir.group_sockets(FEATURES_GROUP).mkdir(mode=0o700, exist_ok=True)
    for group, model in groups.items():
        run_dir.group_sockets(group).mkdir(mode=0o700, exist_ok=True)
        for path in writable_directories(model) if own_users else ():
            os.chown(path, users[group], users[group], follow_symlinks=False)


def _write_record(run_dir: RunDirectory, settings: HostSettings, abilities: Abilities) -> None:
    tree = abilities.tree
    record = Record(
        isolation=settings.isolation,
        cgroup_version=tree.version if tree is not None else 0,
        tops={name: str(path) for name, path in tree.tops.items()} if tree is not None else {},
        missing=list(abilities.missing),
        namespaces=abilities.namespaces,
        user=abilities.user,
        protected=abilities.protected,
    )
    write_atomically(run_dir.isolation, json.dumps(record._asdict(), indent=1).encode() + b"\n")
