"""Who changed what of a host's desired state: the last changes, one line each, oldest first."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from host.config.deployment import Deployment
from host.config.files import write_atomically
from host.protocol.errors import ConfigError

KEPT: Final = 50


class Version(msgspec.Struct, frozen=True):
    """A model version as it should run from then on."""

    name: str
    version: str
    processes: int
    default: bool


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One change."""

    at: float
    """Seconds since the epoch."""
    who: str
    what: str
    """The command."""
    generation: int
    differences: tuple[str, ...]
    models: tuple[Version, ...]


def change_of(what: str, deployment: Deployment, differences: Sequence[str], who: str | None = None) -> Change:
    """A change that is made now, by whoever runs this unless `who` says otherwise."""
    versions = (Version(one.name, one.version, one.processes, one.default) for one in deployment.models)
    return Change(
        at=time.time(),
        who=who or _who(),
        what=what,
        generation=deployment.generation,
        differences=tuple(differences),
        models=tuple(versions),
    )


def read_history(path: Path) -> list[Change]:
    """What was written. Raises `ConfigError` if it cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
        return [msgspec.json.decode(line, type=Change) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: not a history of changes: {error}") from error


def add_to_history(path: Path, change: Change) -> None:
    """Add a change; of more than `KEPT` the oldest are forgotten."""
    changes = [*read_history(path), change][-KEPT:]
    write_atomically(path, b"".join(msgspec.json.encode(one) + b"\n" for one in changes))


def note_start(path: Path, deployment: Deployment) -> None:
    """The host starts: a change if it is to run something else than what the last one says."""
    start = change_of("up", deployment, [f"{one.name}: version {one.version}" for one in deployment.models])
    try:
        history = read_history(path)
    except ConfigError:  # no reason not to serve
        path.replace(path.with_name(f"{path.name}.damaged"))
        history = []
    if not history or history[-1].models != start.models:
        add_to_history(path, start)


def version_before(history: Sequence[Change], name: str, version: str) -> str | None:
    """The default version that a model had before it got this one; None if no change tells of one."""
    seen = [one.version for change in history for one in change.models if one.name == name and one.default]
    while seen and seen[-1] != version:
        seen.pop()
    return next((one for one in reversed(seen) if one != version), None)


def _who() -> str:
    """The user, behind sudo too."""
    sudo = os.environ.get("SUDO_USER")
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    return f"{sudo} (as {user})" if sudo and sudo != user else user
