"""The run directory: where the processes of one host meet. One owner of every name in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOCKET_PATH_MAX_BYTES: Final = 107
"""`sun_path` holds 108 bytes with its final NUL (unix(7))."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths in a run directory; making and checking them is the caller's."""

    root: Path

    @property
    def sockets(self) -> Path:
        """Directory of the workers' sockets: one appears when its worker can serve."""
        return self.root / "sockets"

    @property
    def logs(self) -> Path:
        """Directory of every process's log."""
        return self.root / "logs"

    @property
    def deployment(self) -> Path:
        """The deployment in force (JSON): what the front routes and control compares with."""
        return self.root / "deployment.json"

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
    def lock(self) -> Path:
        """Held by `modelhost up` for as long as it runs."""
        return self.root / "lock"

    def log(self, program: str) -> Path:
        """The log of one process, by the name that supervisord gives it."""
        return self.logs / f"{program}.log"

    def worker_socket(self, group: str, slot: int) -> Path:
        """The socket of one slot of a model version."""
        return self.sockets / f"{group}:{slot}.sock"


def group_name(model_name: str, model_version: str) -> str:
    """supervisord's group of a model version: `churn.v3`."""
    return f"{model_name}.v{model_version}"
