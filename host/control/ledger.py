"""What control remembers of every slot's deaths: learnt from supervisord, kept in a file, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from host.config.deployment import DeployedModel
from host.config.files import write_atomically
from host.config.run_dir import RunDirectory
from host.control.deaths import Death, Memory, SlotDeaths
from host.isolation.cgroups import CgroupError, CgroupTree, Leaf
from host.protocol.errors import HostError
from host.protocol.messages import Limits
from host.supervisor import AsyncSupervisorClient, process_info
from host.tail import last_lines

logger = logging.getLogger("modelhost.control")

LOG_LINES: Final = 8


class _Kept(msgspec.Struct):
    """`deaths.json`."""

    supervisord: int = 0
    serial: int = 0
    slots: dict[str, SlotDeaths] = msgspec.field(default_factory=dict)


class Ledger:
    """Learns of deaths whenever it is told that there may be some."""

    def __init__(
        self,
        run_dir: RunDirectory,
        supervisor: AsyncSupervisorClient,
        tree: CgroupTree | None,
        known: Callable[[], Mapping[str, DeployedModel]],
        last_ready_pid: Mapping[str, int],
    ) -> None:
        """`known`: model versions by group; `last_ready_pid`: by program name."""
        self._run_dir = run_dir
        self._supervisor = supervisor
        self._tree = tree
        self._known = known
        self._last_ready_pid = last_ready_pid
        self._kept = _read(run_dir.deaths)
        self._lock = asyncio.Lock()

    @property
    def slots(self) -> Mapping[str, SlotDeaths]:
        """By program name."""
        return self._kept.slots

    async def learn(self) -> None:
        """Ask supervisord what died since the last time, and write down why."""
        async with self._lock:
            try:
                found = msgspec.convert(await self._supervisor.call("modelhost.deaths", 0), list[Death])
            except (HostError, msgspec.ValidationError) as error:
                logger.error("deaths: %s", error)
                return
            new = [death for death in found if self._is_new(death)]
            if not new:
                return
            limits = self._limits()
            for death in new:
                self._record(death, limits)
            self._kept.supervisord, self._kept.serial = new[-1].supervisord, new[-1].serial
            _write(self._run_dir.deaths, self._kept)

    def _is_new(self, death: Death) -> bool:
        return death.supervisord != self._kept.supervisord or death.serial > self._kept.serial

    def _limits(self) -> dict[str, Limits]:
        return {group: model.limits for group, model in self._known().items()}

    def _record(self, death: Death, limits: Mapping[str, Limits]) -> None:
        program = death.program
        group = program.partition(":")[0]
        slot = self._kept.slots.setdefault(program, SlotDeaths())
        lines = last_lines(self._run_dir.log(program), LOG_LINES)
        was_ready = self._last_ready_pid.get(program) == death.pid
        exit_status = slot.record(
            death, limits.get(group), memory_of(self._tree, program), was_ready=was_ready, log=lines
        )
        if exit_status is None:
            # Stopped because somebody wanted it: nothing to back off from.
            self._run_dir.slot_lives(program).unlink(missing_ok=True)
        else:
            logger.error("%s (pid %d): %s", program, death.pid, exit_status.reason)

    def forget(self, group: str) -> None:
        """A model version is gone, and what its slots died of."""
        for program in [one for one in self._kept.slots if one.partition(":")[0] == group]:
            del self._kept.slots[program]
        _write(self._run_dir.deaths, self._kept)

    async def empty(self, program: str) -> None:
        """Kill what a stopped process left in its cgroup, unless the slot has started again."""
        leaf = leaf_of(self._tree, program)
        if leaf is None or not leaf.pids():
            return
        try:
            if process_info(await self._supervisor.call("getProcessInfo", program)).state.alive:
                return
            killed = await asyncio.to_thread(leaf.kill)
            logger.warning("%s: killed %d processes that it left", program, killed)
        except (HostError, CgroupError) as error:
            logger.error("%s: %s", program, error)


def leaf_of(tree: CgroupTree | None, program: str) -> Leaf | None:
    """A slot's cgroup, there or not; None on a host without cgroups."""
    group, _, slot = program.partition(":")
    return None if tree is None else tree.leaf(group, slot or "0")


def memory_of(tree: CgroupTree | None, program: str) -> Memory:
    """What a slot's cgroup says about its memory."""
    leaf = leaf_of(tree, program)
    if leaf is None:
        return Memory()
    counters = leaf.counters()
    return Memory(
        oom_kills=counters.oom_kills,
        limit_bytes=leaf.limits().memory_bytes,
        peak_bytes=counters.memory_peak_bytes,
    )


async def why_it_ended(
    supervisor: AsyncSupervisorClient, tree: CgroupTree | None, program: str, limits: Limits | None
) -> str:
    """The cause of a slot's last death, for a process that never was ready; empty if nothing is known of one."""
    try:
        found = msgspec.convert(await supervisor.call("modelhost.deaths", 0), list[Death])
    except (HostError, msgspec.ValidationError):
        return ""
    last = next((death for death in reversed(found) if death.program == program), None)
    if last is None:
        return ""
    exit_status = SlotDeaths().record(last, limits, memory_of(tree, program), was_ready=False, log=())
    return exit_status.reason if exit_status is not None else ""


def _read(path: Path) -> _Kept:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return _Kept()


def _write(path: Path, kept: _Kept) -> None:
    write_atomically(path, msgspec.json.encode(kept))
