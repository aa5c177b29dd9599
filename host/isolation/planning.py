"""From what should run to what each slot's launcher is told.

Pure: deployment, grants and the host's abilities in, plans out.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from host.config.deployment import DeployedModel, Deployment
from host.config.run_dir import FEATURES_GROUP, RunDirectory, group_name
from host.config.settings import UIDS, HostSettings
from host.isolation.cgroups import CgroupTree
from host.isolation.plan import CgroupPlan, SlotPlan, ViewPlan, plain_plan
from host.placement import FIRST_WEIGHT, Demand, Grant, cpu_set_text, parse_cpu_set
from host.protocol.counters import WORKER, file_name

PIDS_MAX: Final = 128
"""Processes and threads of one worker: far above what a numerical library starts, far below what hurts a host."""

OPEN_FILES: Final = 4096
WORKER_OOM_SCORE_ADJ: Final = 500
HOST_OOM_SCORE_ADJ: Final = -500
"""When the host itself runs out of memory the kernel ends a worker, not the front (proc(5))."""

FRONT_BYTES: Final = 256 << 20
CONTROL_BYTES: Final = 64 << 20
FEATURES_BYTES: Final = 128 << 20
"""Counted for them (for a feature process beside its cache) when the limits of all are added up, and no limit: killing
a front costs more than it saves."""

CONTROL: Final = "control"


class Abilities(NamedTuple):
    """What this host allows modelhost to do."""

    tree: CgroupTree | None
    namespaces: bool
    """A view of the file system and an empty network."""
    user: bool
    """Users of the models' own."""
    protected: bool
    """A lower oom_score_adj than others have."""
    missing: tuple[str, ...] = ()
    """What is not allowed, and why."""


class Layout(NamedTuple):
    """Where the code and the interpreters are."""

    code_root: Path
    model_python: Path
    """Of models without an environment of their own."""
    prefixes: Mapping[str, tuple[str, ...]]
    """Interpreter -> the directories that it needs."""


def demands(settings: HostSettings, deployment: Deployment) -> list[Demand]:
    """What every process of the host wants of its CPUs and memory, the fronts first."""
    wanted = [
        Demand(name=f"front:{index}", memory_bytes=FRONT_BYTES, weight=FIRST_WEIGHT) for index in range(settings.fronts)
    ]
    wanted.append(Demand(name=CONTROL, memory_bytes=CONTROL_BYTES, light=True))
    features = settings.feature_processes if deployment.features.views else 0
    feature_bytes = FEATURES_BYTES + settings.feature_cache
    wanted += [
        Demand(name=f"{FEATURES_GROUP}:{index}", memory_bytes=feature_bytes, weight=FIRST_WEIGHT)
        for index in range(features)
    ]
    for model in deployment.models:
        cpus = model.resources.cpus
        wanted += [
            Demand(
                name=f"{group_name(model.name, model.version)}:{slot}",
                cpus=cpus if isinstance(cpus, int) else parse_cpu_set(cpus),
                memory_bytes=model.resources.memory_bytes,
            )
            for slot in range(model.processes)
        ]
    return wanted


def user_ids(groups: Iterable[str], first: int) -> dict[str, int]:
    """A user number for each model version: of its name, so the same on every host and after every change.

    Two names that fall on one number get neighbouring ones, in the order of the names.
    """
    taken: set[int] = set()
    users = {}
    for group in sorted(groups):
        offset = zlib.crc32(group.encode()) % UIDS
        while offset in taken:
            offset = (offset + 1) % UIDS
        taken.add(offset)
        users[group] = first + offset
    return users


def slot_plans(
    settings: HostSettings,
    deployment: Deployment,
    grants: Mapping[str, Grant],
    abilities: Abilities,
    layout: Layout,
) -> dict[str, SlotPlan]:
    """What every launcher is told, by program name."""
    required = settings.isolation == "required"
    users = user_ids((group_name(model.name, model.version) for model in deployment.models), settings.first_uid)
    plans = {
        program: _host_plan(program, grant, abilities, required=required)
        for program, grant in grants.items()
        if program.partition(":")[0] in ("front", CONTROL, FEATURES_GROUP)
    }
    run_dir = RunDirectory(settings.run_dir)
    for index in range(settings.feature_processes if deployment.features.views else 0):
        program = f"{FEATURES_GROUP}:{index}"
        plans[program] = plans[program]._replace(socket=str(run_dir.worker_socket(FEATURES_GROUP, index)))
    for model in deployment.models:
        group = group_name(model.name, model.version)
        for slot in range(model.processes):
            program = f"{group}:{slot}"
            plans[program] = SlotPlan(
                program=program,
                required=required,
                cgroup=_cgroup(abilities.tree, group, str(slot), grants[program], PIDS_MAX),
                cpus=tuple(sorted(grants[program].cpus)),
                threads=min(model.resources.threads, len(grants[program].cpus)),
                threads_max=_threads_max(model),
                oom_score_adj=WORKER_OOM_SCORE_ADJ,
                open_files=OPEN_FILES,
                view=_view(settings, model, slot, layout) if abilities.namespaces else None,
                network=model.sandbox.network or not abilities.namespaces,
                user=users[group] if abilities.user else None,
                processes_max=PIDS_MAX * model.processes if abilities.user else 0,
                confined=True,
                socket=str(run_dir.worker_socket(group, slot)),
                counters=str(run_dir.counters / file_name(WORKER.kind, program, group)),
            )
    return plans


def writable_directories(model: DeployedModel) -> list[Path]:
    """`sandbox.writable`, absolute: a relative one lies in the package."""
    return [Path(model.package) / path for path in model.sandbox.writable]


def _host_plan(program: str, grant: Grant, abilities: Abilities, *, required: bool) -> SlotPlan:
    """The front, control, the feature service: CPUs and a cgroup to count in; the host's view, user and network."""
    group, _, slot = program.partition(":")
    return plain_plan(program, required=required)._replace(
        cgroup=_cgroup(abilities.tree, group, slot or "0", dataclasses.replace(grant, memory_bytes=0), 0),
        cpus=tuple(sorted(grant.cpus)),
        oom_score_adj=HOST_OOM_SCORE_ADJ if abilities.protected else None,
    )


def _threads_max(model: DeployedModel) -> int:
    """As many threads as CPUs were asked for are of use, in a pool too."""
    cpus = model.resources.cpus
    return max(model.resources.threads, cpus if isinstance(cpus, int) else len(parse_cpu_set(cpus)))


def _cgroup(tree: CgroupTree | None, group: str, slot: str, grant: Grant, pids_max: int) -> CgroupPlan | None:
    if tree is None:
        return None
    return CgroupPlan(
        version=tree.version,
        directories={name: str(top / group / slot) for name, top in tree.tops.items()},
        memory_bytes=grant.memory_bytes,
        pids_max=pids_max,
        cpu_weight=grant.weight,
        cpus=cpu_set_text(grant.cpus),
    )


def _view(settings: HostSettings, model: DeployedModel, slot: int, layout: Layout) -> ViewPlan:
    run_dir = RunDirectory(settings.run_dir)
    python = model.python or str(layout.model_python)
    code = layout.code_root
    return ViewPlan(
        mount_point=str(run_dir.view),
        read_only=(
            *layout.prefixes[python],
            str(code / "models"),
            str(code / "host" / "__init__.py"),
            str(code / "host" / "protocol"),
            model.package,
        ),
        writable=(
            str(run_dir.worker_socket(group_name(model.name, model.version), slot)),
            *map(str, writable_directories(model)),
        ),
        tmp_bytes=model.resources.memory_bytes,
    )
