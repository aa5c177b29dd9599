"""The run directory: where the processes of one host meet. One owner of every name in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

FEATURES_GROUP: Final = "features"
"""supervisord's group of the feature service, and its directory of sockets. No model's: theirs have a ".v"."""

SOCKET_PATH_MAX_BYTES: Final = 107
"""`sun_path` holds 108 bytes with its final NUL (unix(7))."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths in a run directory; making and checking them is the caller's."""

    root: Path

    @property
    def sockets(self) -> Path:
        """Directory of the workers' sockets, in one directory for each model version."""
        return self.root / "sockets"

    @property
    def logs(self) -> Path:
        """Directory of every process's log."""
        return self.root / "logs"

    @property
    def slots(self) -> Path:
        """Directory of what the launcher is told about each process, and of what it notes."""
        return self.root / "slots"

    @property
    def view(self) -> Path:
        """An empty directory, on which each worker builds its view of the file system."""
        return self.root / "view"

    @property
    def isolation(self) -> Path:
        """What this host allows and where its cgroups are (JSON)."""
        return self.root / "isolation.json"

    @property
    def deaths(self) -> Path:
        """The last deaths of every slot (JSON), kept by control."""
        return self.root / "deaths.json"

    @property
    def deployment(self) -> Path:
        """What should run (JSON): written by commands, brought about by control."""
        return self.root / "deployment.json"

    @property
    def routing(self) -> Path:
        """What the fronts serve (JSON), a deployment too: written by control, which follows the other one with it."""
        return self.root / "routing.json"

    @property
    def reconciliation(self) -> Path:
        """What control remembers of what it began (JSON)."""
        return self.root / "reconciliation.json"

    @property
    def grants(self) -> Path:
        """CPUs and memory of every process (JSON)."""
        return self.root / "grants.json"

    @property
    def host(self) -> Path:
        """Settings and programs of the host that runs (JSON)."""
        return self.root / "host.json"

    @property
    def fronts(self) -> Path:
        """Directory of the fronts' sockets for control."""
        return self.root / "fronts"

    @property
    def counters(self) -> Path:
        """Directory of what every process has counted, one file for each slot (`host.protocol.counters`)."""
        return self.root / "counters"

    @property
    def starts(self) -> Path:
        """Directory of how often every process was started, which control counts."""
        return self.root / "starts"

    @property
    def supervisor_config(self) -> Path:
        """supervisord's configuration, for `supervisorctl -c`."""
        return self.root / "supervisord.conf"

    @property
    def supervisor_socket(self) -> Path:
        """supervisord's XML-RPC."""
        return self.root / "supervisor.sock"

    @property
    def control_socket(self) -> Path:
        """Control's HTTP."""
        return self.root / "control.sock"

    @property
    def history(self) -> Path:
        """The last changes of what should run, one JSON document a line; it outlives the host."""
        return self.root / "history.jsonl"

    @property
    def change_lock(self) -> Path:
        """Held by whoever changes what should run."""
        return self.root / "change.lock"

    @property
    def lock(self) -> Path:
        """Held by `modelhost up` for as long as it runs."""
        return self.root / "lock"

    def front_socket(self, index: int) -> Path:
        """Where a front tells control what it serves."""
        return self.fronts / f"{index}.sock"

    def slot_plan(self, program: str) -> Path:
        """What the launcher is told about one process, by the name that supervisord gives it."""
        return self.slots / f"{program}.json"

    def slot_lives(self, program: str) -> Path:
        """When the launcher started the slot's processes."""
        return self.slots / f"{program}.lives"

    def log(self, program: str) -> Path:
        """The log of one process, by the name that supervisord gives it."""
        return self.logs / f"{program}.log"

    def group_sockets(self, group: str) -> Path:
        """The directory of one model version's sockets, which is its workers' own."""
        return self.sockets / group

    def worker_socket(self, group: str, slot: int) -> Path:
        """The socket of one slot of a model version: it appears when its worker can serve."""
        return self.group_sockets(group) / f"{slot}.sock"


def group_name(model_name: str, model_version: str) -> str:
    """supervisord's group of a model version: `churn.v3`. A service of the host has no version: just its name."""
    return f"{model_name}.v{model_version}" if model_version else model_name


def split_group(group: str) -> tuple[str, str]:
    """Name and version of a group; of one that is no model version's, its name and nothing.

    A version never holds ".v" but where somebody named it so: then it is cut at the last one, and the two are still
    what nobody else's are.
    """
    name, separator, version = group.rpartition(".v")
    return (name, version) if separator else (group, "")
