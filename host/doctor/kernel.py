"""What the kernel says: processes, limits, memory, the clock. `root` is a parameter, so tests use a recorded tree."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from host.doctor.facts import ClockFacts, Room
from host.isolation.cgroups import own_hierarchy

ROOT: Final = Path("/")
_KIB: Final = 1024
_STA_UNSYNC: Final = 0x40
_TIME_ERROR: Final = 5
_US_PER_S: Final = 1_000_000
_INOTIFY_LINK: Final = "anon_inode:inotify"


class _Timex(ctypes.Structure):
    """The beginning of `struct timex` (<sys/timex.h>), and room for the rest of it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def read_clock() -> ClockFacts:
    """Ask adjtimex(2), which changes nothing while `modes` is 0."""
    told = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(told))
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return ClockFacts(synchronised=None, max_error_s=0.0)
    synchronised = state != _TIME_ERROR and not told.status & _STA_UNSYNC
    return ClockFacts(synchronised=synchronised, max_error_s=told.maxerror / _US_PER_S)


def process_state(pid: int, root: Path = ROOT) -> str:
    """The letter of a process' state (proc(5)), `T` for a stopped one; empty if there is no such process."""
    try:
        text = (root / "proc" / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    # The command before it may hold spaces and parentheses.
    return text.rpartition(")")[2].split()[0]


def open_files_limit(pid: int, root: Path = ROOT) -> int | None:
    """How many files a process may have open; None if it is gone, or somebody else's."""
    try:
        lines = (root / "proc" / str(pid) / "limits").read_text().splitlines()
    except OSError:
        return None
    number = next((line.split()[3] for line in lines if line.startswith("Max open files")), "")
    return int(number) if number.isdigit() else None


def memory_numbers(root: Path = ROOT) -> dict[str, int]:
    """/proc/meminfo, in bytes."""
    fields = (line.partition(":") for line in (root / "proc/meminfo").read_text().splitlines())
    return {name: int(value.split()[0]) * _KIB for name, _, value in fields}


def number(path: Path) -> int | None:
    """The number in a file of the kernel's; None if there is none, or it says `max`."""
    try:
        text = path.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def rooms(processes: int, watchers: int, root: Path = ROOT) -> list[Room]:
    """Limits on threads, processes and inotify instances. Arguments: how many of them a host is about to need."""
    found = []
    loads = (root / "proc/loadavg").read_text().split()
    threads = int(loads[3].partition("/")[2])
    for name in ("kernel.threads-max", "kernel.pid_max"):
        limit = number(root / "proc/sys" / name.replace(".", "/"))
        if limit is not None:
            found.append(Room(name=name, counted="threads", limit=limit, used=threads, needed=processes))
    found += _cgroup_rooms(processes) if root == ROOT else []
    limit = number(root / "proc/sys/fs/inotify/max_user_instances")
    if limit is not None:
        name, counted = "fs.inotify.max_user_instances", "inotify instances of this user"
        found.append(Room(name=name, counted=counted, limit=limit, used=_inotify_instances(root), needed=watchers))
    return found


def _cgroup_rooms(processes: int) -> list[Room]:
    """The nearest limit of processes in the cgroups that this process is in."""
    hierarchy = own_hierarchy()
    directory = hierarchy.directories.get("pids") if hierarchy is not None else None
    while directory is not None and hierarchy is not None:
        limit, used = number(directory / "pids.max"), number(directory / "pids.current")
        if limit is not None and used is not None:
            name = f"pids.max of {directory}"
            return [Room(name=name, counted="processes and threads", limit=limit, used=used, needed=processes)]
        at_top = directory in (hierarchy.mounts["pids"], directory.parent)
        directory = None if at_top else directory.parent
    return []


def _inotify_instances(root: Path) -> int:
    """How many this user has, as far as we may see."""
    count, user = 0, os.geteuid()
    for directory in (root / "proc").glob("[0-9]*"):
        try:
            if directory.stat().st_uid == user:
                links = [os.readlink(link) for link in (directory / "fd").iterdir()]  # noqa: PTH115 - no path
                count += links.count(_INOTIFY_LINK)
        except OSError:
            continue
    return count
