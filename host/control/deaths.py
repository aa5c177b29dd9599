"""Why a process ended, in words: pure functions of what supervisord, the kernel and the worker say."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Final

import msgspec

from host.control.status import DeathKind, ExitStatus
from host.protocol.messages import Limits
from host.protocol.process import EXIT_CONFIG, EXIT_GOLDEN, EXIT_NOT_ISOLATED

_MIB: Final = 1 << 20


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a process as supervisord saw it."""

    serial: int
    """Counts the deaths of one supervisord."""
    supervisord: int
    """Its pid."""
    program: str
    pid: int
    status: int
    """Of waitpid(2)."""
    started: float
    at: float
    """When it ended; both are seconds since the epoch."""
    asked: bool
    """supervisord was told to stop it."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the slot's cgroup says; zeros without one."""

    oom_kills: int = 0
    """Since the cgroup was made."""
    limit_bytes: int = 0
    peak_bytes: int = 0


class SlotDeaths(msgspec.Struct, kw_only=True):
    """What control remembers of one slot."""

    counts: dict[str, int] = msgspec.field(default_factory=dict)
    """By kind."""
    last: ExitStatus | None = None
    oom_kills_seen: int = 0

    def record(
        self, death: Death, limits: Limits | None, memory: Memory, *, was_ready: bool, log: Sequence[str]
    ) -> ExitStatus | None:
        """Find the cause and count it; None for an end that was asked for. `limits`: of a worker's model."""
        oom = memory.oom_kills > self.oom_kills_seen
        self.oom_kills_seen = memory.oom_kills
        if death.asked:
            return None
        code = os.waitstatus_to_exitcode(death.status)
        # The watchdog of a start rings after startup_s: an earlier alarm is a request's, whatever control has seen.
        served = was_ready or limits is None or death.at - death.started < limits.startup_s
        kind = _kind(code, oom=oom, was_ready=was_ready, served=served)
        count = self.counts[kind.value] = self.counts.get(kind.value, 0) + 1
        reason = _reason(kind, code, limits, memory, count)
        self.last = ExitStatus(at=death.at, pid=death.pid, kind=kind, reason=reason, log=tuple(log))
        return self.last


def _kind(code: int, *, oom: bool, was_ready: bool, served: bool) -> DeathKind:
    match code:
        case _ if code == -signal.SIGKILL and oom:
            return DeathKind.OOM
        case _ if code == -signal.SIGALRM:
            return DeathKind.HANG if served else DeathKind.STARTUP
        case _ if code < 0:
            return DeathKind.SIGNAL
        case _ if was_ready:
            return DeathKind.EXIT  # with whatever code: those below are of a start
        case _ if code == EXIT_GOLDEN:
            return DeathKind.GOLDEN
        case _ if code == EXIT_CONFIG:
            return DeathKind.PACKAGE
        case _ if code == EXIT_NOT_ISOLATED:
            return DeathKind.ISOLATION
        case _:
            return DeathKind.EXIT


def _reason(kind: DeathKind, code: int, limits: Limits | None, memory: Memory, count: int) -> str:
    match kind:
        case DeathKind.OOM:
            return (
                f"out of memory: killed at its limit of {_mib(memory.limit_bytes)} "
                f"(peak {_mib(memory.peak_bytes)}, {count} times by now)"
            )
        case DeathKind.HANG:
            return f"hung: predict did not return within hang_s = {limits.hang_s if limits else '?'} s"
        case DeathKind.STARTUP:
            return f"not ready within startup_s = {limits.startup_s if limits else '?'} s"
        case DeathKind.SIGNAL:
            return f"killed by {signal_name(-code)}"
        case DeathKind.GOLDEN:
            return "a golden case failed"
        case DeathKind.PACKAGE:
            return "the package cannot be served"
        case DeathKind.ISOLATION:
            return 'isolation = "required", and a step of it failed'
        case DeathKind.EXIT:
            return "ended by itself (exit code 0)" if code == 0 else f"exit code {code}"


def signal_name(number: int) -> str:
    """`SIGSEGV`; real-time signals by number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:,.0f} MiB" if size_bytes else "unknown size"
