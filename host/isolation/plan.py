"""What the launcher is told about one process: one file for each slot, written by `modelhost up`.

Standard library only: the launcher reads it before any environment is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class CgroupPlan(NamedTuple):
    """The slot's cgroup and its limits. 0: no limit."""

    version: int
    directories: dict[str, str]
    """Controller -> the slot's own directory, in version 2 the same for all."""
    memory_bytes: int
    pids_max: int
    cpu_weight: int
    cpus: str
    """As the kernel writes a set: `0-1`."""


class ViewPlan(NamedTuple):
    """The file system as the process sees it: these paths and the system's own, everything else is not there."""

    mount_point: str
    """An empty directory to build it on."""
    read_only: tuple[str, ...]
    writable: tuple[str, ...]
    tmp_bytes: int
    """Size of its own /tmp."""


class SlotPlan(NamedTuple):
    """Everything about one process but its command. None: not wanted, or not possible on this host."""

    program: str
    required: bool
    """Whether a step that fails keeps the process from starting."""
    cgroup: CgroupPlan | None
    cpus: tuple[int, ...]
    """CPU affinity; empty: any."""
    threads: int
    """Of the numerical libraries; 0: left as it is."""
    threads_max: int
    """More than that OpenMP does not start, whatever code asks for."""
    oom_score_adj: int | None
    open_files: int
    """RLIMIT_NOFILE; 0: left as it is."""
    view: ViewPlan | None
    network: bool
    """Whether it keeps the host's network."""
    user: int | None
    """User and group, by number."""
    processes_max: int
    """RLIMIT_NPROC of that user; 0: left as it is."""
    confined: bool
    """No capabilities, no new privileges, no core dumps; the working directory is /."""
    socket: str
    """The socket that it makes when it can serve; with one, a start waits when those before it ended soon."""
    counters: str = ""
    """Its file of counters, if the launcher is to open it; plans of earlier releases have none."""


def plain_plan(program: str, *, required: bool) -> SlotPlan:
    """A plan without any step, to add to."""
    return SlotPlan(
        program=program,
        required=required,
        cgroup=None,
        cpus=(),
        threads=0,
        threads_max=0,
        oom_score_adj=None,
        open_files=0,
        view=None,
        network=True,
        user=None,
        processes_max=0,
        confined=False,
        socket="",
    )


def write_plan(path: Path, plan: SlotPlan) -> None:
    """Write a slot's file, atomically, its owner's alone."""
    values = plan._asdict()
    for name in ("cgroup", "view"):
        values[name] = None if values[name] is None else values[name]._asdict()
    part = path.with_name(f".{path.name}.new")
    part.unlink(missing_ok=True)
    part.touch(0o600)
    part.write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    part.replace(path)


def read_plan(path: Path) -> SlotPlan:
    """Read what `write_plan` wrote. Raises `ValueError` that names the file, and `OSError`."""
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        cgroup, view = values["cgroup"], values["view"]
        values["cgroup"] = None if cgroup is None else CgroupPlan(**cgroup)
        values["view"] = None if view is None else ViewPlan(**{key: _immutable(value) for key, value in view.items()})
        return SlotPlan(**{key: _immutable(value) for key, value in values.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a slot's plan: {error!r}") from error


def _immutable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
