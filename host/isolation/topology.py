"""What CPUs and memory this host has and may use, from /sys, /proc and its own cgroup."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from host.isolation.cgroups import own_hierarchy
from host.placement import Cpu, Topology, parse_cpu_set

_KIB: Final = 1024


def read_topology(root: Path = Path("/")) -> Topology:
    """CPUs that this process may run on, and the host's memory or what the cgroups above leave of it."""
    allowed = os.sched_getaffinity(0)
    return Topology(cpus=read_cpus(root, frozenset(allowed)), memory_bytes=read_memory_bytes(root))


def read_cpus(root: Path, allowed: frozenset[int]) -> tuple[Cpu, ...]:
    """The allowed CPUs with their core and NUMA node; on a kernel that does not say, each is a core of node 0."""
    nodes: dict[int, int] = {}
    for directory in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
        for number in parse_cpu_set(_text(directory / "cpulist")):
            nodes[number] = int(directory.name.removeprefix("node"))
    return tuple(Cpu(number=number, core=_core(root, number), node=nodes.get(number, 0)) for number in sorted(allowed))


def _core(root: Path, number: int) -> int:
    """The lowest sibling: `core_id` is unique within a socket only."""
    directory = root / f"sys/devices/system/cpu/cpu{number}/topology"
    siblings = parse_cpu_set(_text(directory / "thread_siblings_list"))
    return min(siblings, default=number)


def read_memory_bytes(root: Path) -> int:
    """MemTotal, or less if this process' cgroup or one above it has a limit."""
    total = 0
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            total = int(value.split()[0]) * _KIB
    hierarchy = own_hierarchy() if root == Path("/") else None
    if hierarchy is None:
        return total
    directory, mount = hierarchy.directories["memory"], hierarchy.mounts["memory"]
    name = "memory.max" if hierarchy.version == 2 else "memory.limit_in_bytes"
    while True:
        text = _text(directory / name)
        if text.isdigit():
            total = min(total, int(text))
        if directory in (mount, directory.parent):
            return total
        directory = directory.parent


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""
