"""Control groups, version 2 and 1 with the same meaning: one tree for a host, a group for each model version in it,
a leaf for each slot. Standard library only: the launcher, `modelhost up`, control and `modelhost status` all use it.

Names of files from docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

KILL_LIMIT_S: Final = 5.0
"""A killed process that waits for a disk takes a while to end."""

CONTROLLERS: Final = ("memory", "cpuset", "cpu", "pids")
_V1_ONLY: Final = ("freezer",)
_LOOK_S: Final = 0.002
TREE_WEIGHT: Final = 1000
"""Of a whole tree among its neighbours, which have 100 unless somebody says otherwise; supervisord, and a worker until
its launcher joins its cgroup, are among them."""

_SHORT_BYTES: Final = 4096

_SHARES_PER_WEIGHT: Final = 1024 / 100
"""`cpu.shares` is 1024 by default, `cpu.weight` 100."""

_V1_NO_LIMIT_BYTES: Final = 1 << 62
"""v1 writes "no limit" as the largest number of whole pages."""


class CgroupError(OSError):
    """A cgroup cannot be made, filled or emptied; the message names the file."""


class Limits(NamedTuple):
    """What a leaf holds its processes to. 0 or "": no limit."""

    memory_bytes: int
    pids_max: int
    cpu_weight: int
    cpus: str


class Counters(NamedTuple):
    """What the kernel counted in a leaf since it was made."""

    oom_kills: int
    memory_peak_bytes: int
    """0 where the kernel does not say (v2 before Linux 5.19)."""


class LeafUsage(NamedTuple):
    """What a leaf's processes take now, and have taken since it was made, whichever of them are gone."""

    memory_bytes: int
    cpu_s: float | None
    """None: the kernel counts it elsewhere (v1 with `cpuacct` mounted apart from `cpu`)."""
    throttled: int
    """Periods in which a quota kept them from running."""
    throttled_s: float


class Hierarchy(NamedTuple):
    """Where a process stands: for each controller the directory of its cgroup."""

    version: int
    directories: dict[str, Path]
    mounts: dict[str, Path]
    """Where each controller's hierarchy begins."""

    def at(self, path: str) -> Hierarchy:
        """The same for a cgroup by its path from the top, as /proc/self/cgroup writes it."""
        return self._replace(directories={name: mount / path.strip("/") for name, mount in self.mounts.items()})


def find_hierarchy(mountinfo: str, own_cgroups: str) -> Hierarchy | None:
    """Read `/proc/self/mountinfo` and `/proc/self/cgroup`; None where no memory controller can be reached.

    Version 2 if its mount has the memory controller, else version 1.
    """
    own = {}
    for line in own_cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    v1_mounts: dict[str, Path] = {}
    v1: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(" "), after.split(" ")[:3]
        root, mount = fields[3], Path(_unescaped(fields[4]))
        if kind == "cgroup2" and "" in own:
            available = _words(mount / "cgroup.controllers")
            if "memory" in available:
                directory = _below(mount, root, own[""])
                return Hierarchy(2, dict.fromkeys(available, directory), dict.fromkeys(available, mount))
        elif kind == "cgroup":
            for controller in set(options.split(",")) & {*CONTROLLERS, *_V1_ONLY}:
                v1[controller], v1_mounts[controller] = _below(mount, root, own.get(controller, "/")), mount
    return Hierarchy(1, v1, v1_mounts) if "memory" in v1 else None


def hierarchy_for(wanted: str | None, *, is_root: bool) -> tuple[Hierarchy | None, str]:
    """Below which cgroup a host's own are made, and the reason if there is none.

    `wanted`: as /proc/self/cgroup writes it. Else this process' own; in version 2, where a cgroup with processes cannot
    have limited children, only if they are ours alone, which then move to `supervisor` below it, as in a systemd unit
    with `Delegate=yes`. If they are not, root's tree begins at the top.
    """
    own = own_hierarchy()
    if own is None:
        return None, "no memory controller is mounted"
    if wanted is not None:
        return own.at(wanted), ""
    directory, mount = own.directories["memory"], own.mounts["memory"]
    if own.version == 1 or directory == mount:
        return own, ""
    others = [pid for pid in _pids(directory) if pid != os.getpid()]
    ours = os.access(directory / "cgroup.subtree_control", os.W_OK)
    if ours and not others:
        below = directory / "supervisor"
        _make_directory(below)
        _write(below / "cgroup.procs", str(os.getpid()))
        return own, ""
    if is_root:
        return own.at("/"), ""
    reason = f"other processes are in {directory}" if ours else f"{directory} is not this user's"
    return None, f"{reason}; start the host in a systemd unit with Delegate=yes"


def own_hierarchy() -> Hierarchy | None:
    """Where this process stands now."""
    try:
        return find_hierarchy(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return None


def _below(mount: Path, root: str, path: str) -> Path:
    """A cgroup's directory: `root` is the cgroup that the mount shows as its top."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return mount / path.strip("/")


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")


class Leaf:
    """One slot's cgroup."""

    def __init__(self, version: int, directories: dict[str, Path]) -> None:
        self.version = version
        self._directories = directories

    # -- the launcher -------------------------------------------------------------------------------------
    def make(self, limits: Limits) -> None:
        """Make it if it is not there, and set its limits. Raises `CgroupError`."""
        for name, directory in self._directories.items():
            _make_directory(directory)
            if self.version == 1 and name == "cpuset":
                _inherit_cpuset(directory)
        writes = self._v2_writes(limits) if self.version == 2 else self._v1_writes(limits)
        for controller, name, value in writes:
            if controller in self._directories:
                _write(self._directories[controller] / name, value)

    def join(self, pid: int) -> None:
        """Put a process into it; what it starts later is in it too. Raises `CgroupError`."""
        for directory in dict.fromkeys(self._directories.values()):
            _write(directory / "cgroup.procs", str(pid))

    def kill(self, limit_s: float = KILL_LIMIT_S) -> int:
        """Kill everything in it but the caller, and wait for the end of it. Return how many there were.

        Raises `CgroupError` if something is still there after `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        me, seen = os.getpid(), set()
        frozen = self._freeze(True) if self.pids() else False
        try:
            while left := [pid for pid in self.pids() if pid != me]:
                for pid in left:
                    seen.add(pid)
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                if frozen and self.version == 1:
                    frozen = self._freeze(False)  # in v1 a frozen process does not die
                if time.monotonic() > deadline:
                    raise CgroupError(errno.ETIMEDOUT, f"{self.path}: {left} do not end within {limit_s:g} s")
                time.sleep(_LOOK_S)
        finally:
            if frozen:
                self._freeze(False)
        return len(seen)

    def _freeze(self, freeze: bool) -> bool:
        """So that nothing forks faster than it is killed. Whether it is frozen now."""
        try:
            if self.version == 2:
                _write(self.path / "cgroup.freeze", "1" if freeze else "0")
            elif "freezer" in self._directories:
                _write(self._directories["freezer"] / "freezer.state", "FROZEN" if freeze else "THAWED")
            else:
                return False
        except CgroupError:
            return False
        return freeze

    # -- whoever looks ------------------------------------------------------------------------------------
    @property
    def path(self) -> Path:
        """Its directory, in v1 that of the memory controller."""
        return self._directories["memory"]

    def pids(self) -> list[int]:
        """The processes in it; none if it is not there."""
        found: dict[int, None] = {}
        for directory in dict.fromkeys(self._directories.values()):
            found.update(dict.fromkeys(_pids(directory)))
        return list(found)

    def counters(self) -> Counters:
        """What the kernel counted; zeros if the leaf is not there."""
        if self.version == 2:
            return Counters(_entry(self.path / "memory.events", "oom_kill"), _number(self.path / "memory.peak"))
        peak = _number(self.path / "memory.max_usage_in_bytes")
        return Counters(_entry(self.path / "memory.oom_control", "oom_kill"), peak)

    def usage(self) -> LeafUsage | None:
        """What its processes take; None if it is not there. Two or three short files."""
        memory, cpu_directory = f"{self.path}/", self._directories.get("cpu")
        cpu = _entries(f"{cpu_directory}/cpu.stat") if cpu_directory is not None else {}
        cpu_s: float | None = None
        if self.version == 2:
            current = _read(memory + "memory.current")
            cpu_s = cpu["usage_usec"] / 1e6 if "usage_usec" in cpu else None
            throttled_s = cpu.get("throttled_usec", 0) / 1e6
        else:
            current = _read(memory + "memory.usage_in_bytes")
            total = _read(f"{cpu_directory}/cpuacct.usage") if cpu_directory is not None else None
            cpu_s = int(total) / 1e9 if total is not None else None
            throttled_s = cpu.get("throttled_time", 0) / 1e9
        if current is None:
            return None
        return LeafUsage(int(current), cpu_s, cpu.get("nr_throttled", 0), throttled_s)

    def memory_bytes(self) -> int:
        """What its processes hold now, the page cache that is theirs included; 0 if it is not there."""
        return _number(self.path / ("memory.current" if self.version == 2 else "memory.usage_in_bytes"))

    def limits(self) -> Limits:
        """What is in force, read back."""
        if self.version == 2:
            return Limits(
                memory_bytes=_number(self.path / "memory.max"),
                pids_max=_number(self.path / "pids.max"),
                cpu_weight=_number(self.path / "cpu.weight"),
                cpus=" ".join(_words(self.path / "cpuset.cpus.effective")),
            )
        directories = self._directories
        memory = _number(self.path / "memory.limit_in_bytes")
        shares = _number(directories["cpu"] / "cpu.shares") if "cpu" in directories else 0
        return Limits(
            memory_bytes=memory if memory < _V1_NO_LIMIT_BYTES else 0,
            pids_max=_number(directories["pids"] / "pids.max") if "pids" in directories else 0,
            cpu_weight=round(shares / _SHARES_PER_WEIGHT),
            cpus=" ".join(_words(directories["cpuset"] / "cpuset.cpus")) if "cpuset" in directories else "",
        )

    # -- the two versions ---------------------------------------------------------------------------------
    @staticmethod
    def _v2_writes(limits: Limits) -> Iterator[tuple[str, str, str]]:
        yield "memory", "memory.max", str(limits.memory_bytes or "max")
        yield "memory", "memory.swap.max", "0"
        yield "memory", "memory.oom.group", "1"
        yield "pids", "pids.max", str(limits.pids_max or "max")
        yield "cpu", "cpu.weight", str(_in_units(2, limits.cpu_weight))
        yield "cpuset", "cpuset.cpus", limits.cpus

    def _v1_writes(self, limits: Limits) -> Iterator[tuple[str, str, str]]:
        # Memory with swap can never be less than memory alone, so which one is written first depends on the old values.
        new, swap = str(limits.memory_bytes or -1), "memory.memsw.limit_in_bytes"
        names = [name for name in ("memory.limit_in_bytes", swap) if (self.path / name).exists()]
        grows = swap in names and (not limits.memory_bytes or limits.memory_bytes > _number(self.path / swap))
        for name in reversed(names) if grows else names:
            yield "memory", name, new
        yield "memory", "memory.swappiness", "0"
        yield "pids", "pids.max", str(limits.pids_max or "max")
        yield "cpu", "cpu.shares", str(_in_units(1, limits.cpu_weight))
        if limits.cpus:
            yield "cpuset", "cpuset.cpus", limits.cpus


class CgroupTree:
    """The cgroups of one host's processes."""

    def __init__(self, version: int, tops: dict[str, Path]) -> None:
        """`tops`: for each controller the directory that the tree begins with."""
        self.version = version
        self.tops = tops

    @classmethod
    def below(cls, hierarchy: Hierarchy, name: str) -> CgroupTree:
        """The tree of this name in a cgroup, there or not."""
        wanted = (*CONTROLLERS, *(_V1_ONLY if hierarchy.version == 1 else ()))
        found = hierarchy.directories
        return cls(hierarchy.version, {key: found[key] / name for key in wanted if key in found})

    @property
    def controllers(self) -> tuple[str, ...]:
        """Those of `CONTROLLERS` that this host has."""
        return tuple(name for name in CONTROLLERS if name in self.tops)

    @property
    def path(self) -> Path:
        """The tree's top, in v1 that of the memory controller."""
        return self.tops["memory"]

    def make(self) -> None:
        """Make the top and have its children limited. Raises `CgroupError`."""
        if self.version == 2:
            self._enable(self.path.parent)
        for name, top in self.tops.items():
            _make_directory(top)
            if self.version == 1 and name == "cpuset":
                _inherit_cpuset(top)
        if self.version == 2:
            self._enable(self.path)
        if "cpu" in self.tops:
            self._weigh(self.tops["cpu"], TREE_WEIGHT)

    def make_group(self, group: str, cpu_weight: int) -> None:
        """Make a model version's cgroup, with the weight of all its slots together. Raises `CgroupError`."""
        for name, top in self.tops.items():
            _make_directory(top / group)
            if self.version == 1 and name == "cpuset":
                _inherit_cpuset(top / group)
        if self.version == 2:
            self._enable(self.path / group)
        if "cpu" in self.tops:
            self._weigh(self.tops["cpu"] / group, cpu_weight)

    def leaf(self, group: str, slot: str) -> Leaf:
        """A slot's cgroup, there or not."""
        return Leaf(self.version, {name: top / group / slot for name, top in self.tops.items()})

    def remove(self, group: str | None = None) -> None:
        """Kill what is in the tree, or in one group of it, and remove it. Raises `CgroupError`."""
        tops = {name: top if group is None else top / group for name, top in self.tops.items()}
        for parts in _leaves(tops["memory"]):
            Leaf(self.version, {name: top.joinpath(*parts) for name, top in tops.items()}).kill()
        deadline = time.monotonic() + KILL_LIMIT_S
        for top in dict.fromkeys(tops.values()):
            for directory in [*_below_first(top), top]:
                _remove_directory(directory, deadline)

    def _weigh(self, directory: Path, cpu_weight: int) -> None:
        name = "cpu.weight" if self.version == 2 else "cpu.shares"
        _write(directory / name, str(_in_units(self.version, cpu_weight)))

    def _enable(self, directory: Path) -> None:
        words = " ".join(f"+{name}" for name in self.controllers)
        _write(directory / "cgroup.subtree_control", words)


def _in_units(version: int, cpu_weight: int) -> int:
    """A weight as its file takes it: 1 to 10,000 in v2, at least 2 shares in v1."""
    return min(10_000, max(1, cpu_weight)) if version == 2 else max(2, round(cpu_weight * _SHARES_PER_WEIGHT))


def _leaves(top: Path) -> list[tuple[str, ...]]:
    """Every cgroup of a tree, by its path from the top."""
    return [path.relative_to(top).parts for path in _below_first(top)] if top.is_dir() else []


def _below_first(top: Path) -> list[Path]:
    if not top.is_dir():
        return []
    found: list[Path] = []
    for child in top.iterdir():
        if child.is_dir():
            found += [*_below_first(child), child]
    return found


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise CgroupError(error.errno, f"{directory}: cannot be made: {error.strerror}") from error


def _remove_directory(directory: Path, deadline: float) -> None:
    """A cgroup can be removed a moment after its last process ended."""
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise CgroupError(error.errno, f"{directory}: cannot be removed: {error.strerror}") from error
            time.sleep(_LOOK_S)
        else:
            return


def _inherit_cpuset(directory: Path) -> None:
    """v1: a cpuset takes no process before it has CPUs and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _words(directory / name):
            _write(directory / name, " ".join(_words(directory.parent / name)))


def _write(path: Path, value: str) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, value.encode())
        finally:
            os.close(file)
    except OSError as error:
        raise CgroupError(error.errno, f"{path}: cannot be set to {value!r}: {error.strerror}") from error


def _read(path: str) -> bytes | None:
    """A short file as it is, None if there is none; hundreds of them are read for each scrape."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(file, _SHORT_BYTES)
    except OSError:
        return None
    finally:
        os.close(file)


def _entries(path: str) -> dict[str, int]:
    """The lines `name number` of a file; none if there is none."""
    words = (_read(path) or b"").decode().split()
    return {name: int(number) for name, number in zip(words[::2], words[1::2], strict=False) if number.isdigit()}


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _pids(directory: Path) -> list[int]:
    """The processes of a cgroup; those of another pid namespace are written as 0."""
    return [int(word) for word in _words(directory / "cgroup.procs") if word != "0"]


def _number(path: Path) -> int:
    """The number in a file; 0 for "max", and if there is none."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdigit() else 0


def _entry(path: Path, name: str) -> int:
    """A line `name number` of a file; 0 if there is none."""
    words = _words(path)
    pairs: Iterable[tuple[str, str]] = zip(words[::2], words[1::2], strict=False)
    return int(dict(pairs).get(name, "0"))
