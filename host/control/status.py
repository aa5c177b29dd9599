"""What control knows and answers: the document of `GET /status`. Times in seconds, `*_at` since the epoch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from host.protocol.latency import Latencies


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a worker answers. `since`: seconds since the epoch of the last change, 0 if it never did."""

    ready: bool
    pid: int
    since: float


class DeathKind(enum.Enum):
    """Why a process ended that nobody had stopped."""

    OOM = "oom"
    """Killed by the kernel at its memory limit."""
    SIGNAL = "signal"
    HANG = "hang"
    """`predict` took longer than `hang_s`."""
    STARTUP = "startup"
    """Not ready within `startup_s`."""
    GOLDEN = "golden"
    PACKAGE = "package"
    """The package cannot be served as it is."""
    ISOLATION = "isolation"
    EXIT = "exit"


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The last time that a process ended and nobody had stopped it."""

    at: float
    pid: int
    kind: DeathKind
    reason: str
    """In words, with the signal, code or limit."""
    log: tuple[str, ...] = ()
    """The last lines of its log then."""


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Several lives of a slot were short: the next one waits."""

    short_lives: int
    since: float
    """When the first of them began."""
    until: float
    """When the next one begins, or began."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one process takes."""

    memory_bytes: int
    """Of its cgroup, the page cache that is its own included; without one, resident."""
    memory_limit_bytes: int
    """0: none."""
    cpu_s: float
    """User and system time since it started."""


class SlotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process: a worker's slot, a front, or control."""

    name: str
    """As supervisord shows it: `churn.v3:0`."""
    state: str
    """supervisord's state; `MISSING` when it knows no such process."""
    pid: int
    """0 when there is none."""
    ready: bool
    """A worker: its socket accepts and it has said hello. Others: RUNNING."""
    since: float
    """When it became ready, or stopped being so; 0 if it never was."""
    uptime_s: float
    """Since this process started; 0 when there is none."""
    restarts: int
    """Starts after the first one that control has seen."""
    last_exit: ExitStatus | None
    deaths: dict[str, int] = {}
    """How often it died, by kind, since the host started."""
    backoff: Backoff | None = None
    """None unless its last lives were short."""
    usage: Usage | None = None
    """None when there is no process."""


class VersionState(enum.Enum):
    """Where a model version stands."""

    SERVING = "serving"
    """The fronts route it, whether all of its processes are ready or not."""
    STARTING = "starting"
    """It should run, and is routed when all of its processes are ready."""
    FAILED = "failed"
    """It should run, and was given up: what was served before is served on."""
    REPLACED = "replaced"
    """It is served until what should run instead is ready."""
    LEAVING = "leaving"
    """It finishes what it has, and stops."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the fronts say of a version's requests, since each of them started."""

    answered: int
    """With a status below 500."""
    failed: int
    waiting: int
    """Calls that wait for their answer now, queued or running."""
    latency: Latencies
    """From the receipt of a request to its answer."""


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model version: wanted against ready."""

    name: str
    version: str
    default: bool
    wanted: int
    ready: int
    slots: tuple[SlotStatus, ...]
    state: VersionState = VersionState.SERVING
    reason: str = ""
    """Why it was given up; or why it cannot serve although its processes are ready: its features cannot be read."""
    traffic: Traffic | None = None
    """None: no front says anything of it."""
    log: tuple[str, ...] = ()
    """Of a version that was given up: the last lines of the process that died."""


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole host."""

    ready: bool
    """Everything wanted is ready."""
    wanted: int
    """Model processes."""
    ready_processes: int
    """Model processes that are ready."""
    models: tuple[ModelStatus, ...]
    host: tuple[SlotStatus, ...]
    """The fronts, control and the feature processes."""
    unwanted: tuple[SlotStatus, ...]
    """Processes that supervisord has and the deployment has not."""
    generation: int = 0
    """Of the desired state that control goes by."""
    settled: bool = True
    """Nothing is under way: what should run is served, or was given up, and nothing else is left."""
