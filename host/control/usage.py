"""What one process takes of memory and CPU, from its cgroup and /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from host.control.ledger import leaf_of
from host.control.status import Usage
from host.isolation.cgroups import CgroupTree

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_USER_TIME: Final = 11
"""Of the fields behind the command's name in /proc/PID/stat; the system's follows."""
_RESIDENT: Final = 21


def usage_of(tree: CgroupTree | None, program: str, pid: int, proc: Path = Path("/proc")) -> Usage | None:
    """Look at a process; None if there is none."""
    try:
        # The command may hold spaces and parentheses: the fields after its last one are plain.
        fields = (proc / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    leaf = leaf_of(tree, program)
    return Usage(
        memory_bytes=(leaf.memory_bytes() if leaf is not None else 0) or int(fields[_RESIDENT]) * _PAGE_BYTES,
        memory_limit_bytes=leaf.limits().memory_bytes if leaf is not None else 0,
        cpu_s=(int(fields[_USER_TIME]) + int(fields[_USER_TIME + 1])) / _TICKS_PER_S,
    )
