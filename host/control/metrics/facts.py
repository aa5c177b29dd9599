"""What the metrics are made of: what control knows, what every process has counted, and what the kernel says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from host.config.run_dir import group_name, split_group
from host.control.ledger import leaf_of
from host.control.status import HostStatus, ModelStatus
from host.control.usage import usage_of
from host.isolation.cgroups import CgroupTree, Leaf
from host.protocol.counters import CounterSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What control knows, at one moment."""

    status: HostStatus
    deaths: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Program to how often it died, by kind."""
    starts: Mapping[str, int] = field(default_factory=dict)
    """Program to how often it was started."""
    beside: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """`canary` and `shadow` to percent of the requests, by the group of each version that is one."""
    unreadable: frozenset[str] = frozenset()
    """Model versions, as `churn.v3`, whose features cannot be read."""

    def names(self) -> Callable[[str], tuple[str, str]]:
        """A function from a group, one that is gone included, to model and version."""
        known = {group_name(model.name, model.version): (model.name, model.version) for model in self.status.models}
        return lambda group: known.get(group) or split_group(group)

    def is_unreadable(self, model: ModelStatus) -> bool:
        """Whether a version's features cannot be read."""
        return group_name(model.name, model.version) in self.unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that is exposed."""

    known: Known
    counters: Sequence[CounterSet] = ()
    usage: Mapping[str, SlotUsage] = field(default_factory=dict)
    """By program."""
    complaints: int = 0
    """Files in the directory of counters that cannot be read."""
    release: str = ""
    python: str = ""


class SlotUsage(NamedTuple):
    """What a slot takes now, and has taken."""

    memory_bytes: int
    memory_limit_bytes: int
    """0: none."""
    cpu_s: float
    """Of all its lives; where the kernel does not add them up, of those that this control has seen."""
    throttled: int
    throttled_s: float


class _Slot:
    """What is remembered of a slot between two scrapes."""

    def __init__(self, leaf: Leaf | None) -> None:
        self.leaf = leaf
        self.pid = 0
        self.limit_bytes = 0
        self.cpu_s = 0.0
        """Of its process."""
        self.cpu_before_s = 0.0
        """Of the processes before."""


class UsageReader:
    """Reads what the slots take. For each of them two or three short files: those that do not change are kept."""

    def __init__(self, tree: CgroupTree | None, proc: Path = Path("/proc")) -> None:
        self._tree = tree
        self._proc = proc
        self._slots: dict[str, _Slot] = {}

    def read(self, pids: Mapping[str, int]) -> dict[str, SlotUsage]:
        """Of every program that has a process or a cgroup. `pids`: of all there are, 0 for none now."""
        self._slots = {program: self._slots.get(program) or _Slot(leaf_of(self._tree, program)) for program in pids}
        found = {program: self._usage(program, slot, pids[program]) for program, slot in self._slots.items()}
        return {program: usage for program, usage in found.items() if usage is not None}

    def _usage(self, program: str, slot: _Slot, pid: int) -> SlotUsage | None:
        kept = slot.leaf.usage() if slot.leaf is not None else None
        if pid != slot.pid:
            # The launcher sets the limit before it becomes the process.
            slot.limit_bytes = slot.leaf.limits().memory_bytes if slot.leaf is not None else 0
            slot.cpu_before_s += slot.cpu_s
            slot.pid, slot.cpu_s = pid, 0.0
        if kept is not None and kept.cpu_s is not None and kept.memory_bytes:
            return SlotUsage(kept.memory_bytes, slot.limit_bytes, kept.cpu_s, kept.throttled, kept.throttled_s)
        seen = usage_of(None, program, pid, self._proc) if pid else None
        if seen is not None:
            slot.cpu_s = seen.cpu_s
        elif kept is None and not slot.cpu_before_s:
            return None
        memory_bytes = kept.memory_bytes if kept is not None else 0
        return SlotUsage(
            memory_bytes=memory_bytes or (seen.memory_bytes if seen is not None else 0),
            memory_limit_bytes=slot.limit_bytes,
            cpu_s=slot.cpu_before_s + slot.cpu_s,
            throttled=kept.throttled if kept is not None else 0,
            throttled_s=kept.throttled_s if kept is not None else 0.0,
        )


def pids_of(status: HostStatus) -> dict[str, int]:
    """Program to pid, 0 for none, of every process that is there or should be."""
    slots = chain(*(model.slots for model in status.models), status.host, status.unwanted)
    return {slot.name: slot.pid for slot in slots}
