"""What the doctor's checks judge: plain values, each gathered at one place. Sizes in bytes, times in seconds. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from host.cli.listeners import ListeningProcess
from host.control.status import HostStatus
from host.supervisor import ProcessInfo

STOPPED_STATES: Final = "Tt"
"""Letters of a stopped process, and of one that a debugger holds (proc(5), field 3 of `stat`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationFacts:
    """What would run, and everything that is wrong with it."""

    source: str
    """The deployment file, or the repository that stands in for one."""
    problems: tuple[str, ...]
    versions: int
    processes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentFacts:
    """One interpreter that workers run in."""

    python: str
    models: tuple[str, ...]
    """Names of the models that ask for it; none: of all that have no environment of their own."""
    built: bool
    problem: str
    """Why it does not start, or does not import what a worker needs; empty if it does."""
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PortFacts:
    """Who listens on the fronts' port."""

    address: str
    port: int
    running: bool
    """Whether a host runs here."""
    bind_problem: str
    """Without a host: why the port cannot be had; empty if it can."""
    fronts: tuple[str, ...] = ()
    """With a host: its fronts."""
    deaf: tuple[str, ...] = ()
    """Those of them that do not listen on the port."""
    others: tuple[ListeningProcess, ...] = ()
    """Others that listen on that port, on whatever address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationFacts:
    """What this host allows."""

    setting: str
    cgroup_version: int
    """0: no cgroups."""
    cgroup: str
    missing: tuple[str, ...]
    outside: tuple[str, ...] = ()
    """Processes that should be in a cgroup of their own and are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A limit of the kernel or of a cgroup, and what it is used for."""

    name: str
    counted: str
    """What it counts, in words."""
    limit: int
    used: int
    needed: int
    """By the host, beyond what is used now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFacts:
    """Limits that a host runs into."""

    open_files_needed: int
    open_files_allowed: int | None
    """None: as many as there are."""
    open_files_in_force: dict[str, int]
    """By front that runs."""
    rooms: tuple[Room, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFacts:
    """A directory or socket of the run directory."""

    path: str
    mode: int
    """Permission bits."""
    uid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFacts:
    """The run directory, and whose it should be."""

    run_dir: str
    paths: tuple[PathFacts, ...]
    owner: int
    model_users: range
    """Users that models' sockets may belong to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """What the kernel says of CLOCK_REALTIME (adjtimex(2))."""

    synchronised: bool | None
    """None: it does not say."""
    max_error_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceFacts:
    """The file system that something lies on."""

    purpose: str
    """The setting that names it."""
    path: str
    free_bytes: int
    """For whoever asks."""
    total_bytes: int
    free_inodes: int
    total_inodes: int
    """0: the file system does not count them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """Space, and what the logs take of it."""

    spaces: tuple[SpaceFacts, ...]
    logs: str
    logs_bytes: int
    logs_max_bytes: int
    """What the logs of all processes may become before they are rotated away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """The host's memory, and what is promised of it."""

    total_bytes: int
    """Of the host, or what the cgroups above leave of it."""
    available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int
    granted_bytes: int
    """Sum of the limits of all model processes."""
    running: bool
    commit_left_bytes: int | None
    """What may still be allocated; None unless the kernel counts strictly (vm.overcommit_memory = 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A process, as supervisord and the kernel see it."""

    process: ProcessInfo
    kernel_state: str
    """Its letter in /proc; empty if there is no process."""

    @property
    def is_frozen(self) -> bool:
        """Whether it is there and is kept from running."""
        return self.kernel_state != "" and self.kernel_state in STOPPED_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorFacts:
    """`modelhost up`, supervisord, and the processes."""

    up_pid: int | None
    """None: nobody holds the run directory's lock; 0: it is just coming or going."""
    up_state: str
    pid: int | None
    """None: no supervisord of this run directory lives."""
    state: str
    problem: str
    """Why it does not answer; empty if it does."""
    version: str
    took_s: float
    processes: tuple[Seen, ...]
    wanted: tuple[str, ...]
    """Programs that should run."""
    known: frozenset[str]
    """Groups that supervisord should have."""
    is_scaled: frozenset[str] = frozenset()
    """Groups of which control may run more processes than are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFacts:
    """What control says."""

    problem: str
    status: HostStatus | None
    draining: bool
    frozen_pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontFacts:
    """One front."""

    program: str
    pid: int
    """0: supervisord does not say."""
    is_frozen: bool
    problem: str
    """Why it does not answer on its own socket; empty if it does."""
    generation: int
    """Of the routing that it serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthFacts:
    """All fronts, through their port."""

    fronts: tuple[FrontFacts, ...]
    generation: int
    """Of the routing that they should serve."""
    url: str
    live: str
    """Empty if they are live; else what came instead."""
    ready: str
    took_s: float
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewFacts:
    """One feature view."""

    view: str
    store: str
    direct: str
    """Why the store cannot be read; empty if it can."""
    direct_s: float
    live: str | None
    """The same through front and feature process; None: no host runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """Every view, and the feature processes."""

    views: tuple[ViewFacts, ...]
    frozen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One model version, asked through the front."""

    name: str
    version: str
    case: str
    """The golden case; empty: zeros were sent, and nothing can be compared."""
    status: int
    """0: no answer."""
    message: str
    """Of an error, or why there is no answer."""
    difference: str
    """How the answer differs from the golden one."""
    took_s: float
    log: str = ""
    """Where its processes write."""
    asleep: bool = False
    """It has no process because nobody needs one, and was not asked: that would begin one."""

    @property
    def subject(self) -> str:
        """The version in words."""
        return f"{self.name} version {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker that should be ready, asked on its own socket."""

    program: str
    pid: int
    is_frozen: bool
    answers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Every version that is served."""

    asked: tuple[Asked, ...]
    workers: tuple[WorkerFacts, ...]
    patience_s: float
    """How long each worker was waited for."""
    missing: tuple[str, ...] = ()
    """Of the models that were asked for by name: those that are not served."""
