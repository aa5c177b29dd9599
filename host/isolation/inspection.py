"""What is in force for a process, as the kernel says: /proc and the files of its cgroup, never the configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from host.isolation.cgroups import CgroupTree

_CAPABILITIES: Final = {
    **{0: "chown", 1: "dac_override", 2: "dac_read_search", 5: "kill", 6: "setgid", 7: "setuid", 8: "setpcap"},
    **{10: "net_bind_service", 12: "net_admin", 13: "net_raw", 18: "sys_chroot", 19: "sys_ptrace", 21: "sys_admin"},
}
"""Those that are named when there are few; the number stands for another."""

_FEW: Final = 6


class EnforcedCgroup(msgspec.Struct, frozen=True, kw_only=True):
    """A slot's cgroup, read back. 0 and "": no limit."""

    version: int
    path: str
    """Of the memory controller."""
    joined: bool
    """Whether the process is in it."""
    memory_limit_bytes: int
    memory_peak_bytes: int
    oom_kills: int
    pids_limit: int
    cpu_weight: int
    cpus: str


class Enforced(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for one process."""

    program: str
    pid: int
    user: int
    """Its effective user's number."""
    threads: int
    cpus: str
    """It may run on these, as the kernel writes a set."""
    capabilities: str
    """`none`, a few names, or `all but N`."""
    no_new_privileges: bool
    own_network: bool | None
    """Whether its network is another one than this command's; None: not ours to see."""
    own_view: bool | None
    """The same of the file system."""
    oom_score_adj: int
    core_dumps: bool
    open_files: int
    cgroup: EnforcedCgroup | None


def inspect(program: str, pid: int, tree: CgroupTree | None, proc: Path = Path("/proc")) -> Enforced | None:
    """Read everything about a process; None if it is gone."""
    try:
        lines = (proc / str(pid) / "status").read_text().splitlines()
        fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        limits = {
            line[:26].strip(): line[26:].split() for line in (proc / str(pid) / "limits").read_text().splitlines()[1:]
        }
        oom_score_adj = int((proc / str(pid) / "oom_score_adj").read_text())
    except OSError:
        return None
    return Enforced(
        program=program,
        pid=pid,
        user=int(fields["Uid"].split()[1]),
        threads=int(fields["Threads"]),
        cpus=fields["Cpus_allowed_list"],
        capabilities=capability_text(int(fields["CapEff"], 16) | int(fields["CapPrm"], 16)),
        no_new_privileges=fields.get("NoNewPrivs") == "1",
        own_network=_differs(proc, pid, "net"),
        own_view=_differs(proc, pid, "mnt"),
        oom_score_adj=oom_score_adj,
        core_dumps=limits["Max core file size"][0] != "0",
        open_files=int(limits["Max open files"][0]),
        cgroup=_cgroup(program, pid, tree),
    )


def capability_text(mask: int) -> str:
    """A set of capabilities in words (capability.h numbers them)."""
    if not mask:
        return "none"
    numbers = [number for number in range(mask.bit_length()) if mask >> number & 1]
    if len(numbers) <= _FEW:
        return ", ".join(_CAPABILITIES.get(number, f"capability {number}") for number in numbers)
    return f"{len(numbers)} capabilities"


def _differs(proc: Path, pid: int, kind: str) -> bool | None:
    try:
        return os.readlink(proc / str(pid) / "ns" / kind) != os.readlink(proc / "self" / "ns" / kind)  # noqa: PTH115
    except OSError:
        return None


def _cgroup(program: str, pid: int, tree: CgroupTree | None) -> EnforcedCgroup | None:
    if tree is None:
        return None
    group, _, slot = program.partition(":")
    leaf = tree.leaf(group, slot or "0")
    limits, counters = leaf.limits(), leaf.counters()
    return EnforcedCgroup(
        version=leaf.version,
        path=str(leaf.path),
        joined=pid in leaf.pids(),
        memory_limit_bytes=limits.memory_bytes,
        memory_peak_bytes=counters.memory_peak_bytes,
        oom_kills=counters.oom_kills,
        pids_limit=limits.pids_max,
        cpu_weight=limits.cpu_weight,
        cpus=limits.cpus,
    )
