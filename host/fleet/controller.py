"""What is done on the controller, around the pure parts: the file of changes, the packages, and everything together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from host.config.files import write_atomically
from host.config.setting_values import is_plain_text
from host.fleet.changes import TEXT_MAX_BYTES, Changes, changes_text, parse_changes, parse_request, with_request
from host.fleet.evaluation import Inventory, evaluate, merged_below
from host.fleet.hosts import read_fleet_host
from host.fleet.layers import Layer
from host.fleet.packages import PackageSource, open_packages
from host.protocol.errors import ConfigError
from host.protocol.schema import described

CHANGES_FILE: Final = "group_vars/all/modelhost_changes.yml"
"""Below the inventory's directory."""
_BESIDE: Final = ("all", "all.yml", "all.yaml", "all.json")
"""What Ansible does not read any more once there is a directory `group_vars/all`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostVariables:
    """What is known of one host of the group."""

    variables: Mapping[str, Any]
    facts: Mapping[str, Any]
    packages: Any
    """`modelhost_packages`, as it is said; None: it is not."""
    checksums: Any
    """`modelhost_packages_checksums`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadInventory:
    """What was read from Ansible, in plain values."""

    hosts: Mapping[str, HostVariables]
    layers: list[Layer]
    directory: Path | None
    """The inventory's; None: it has none, such as a list of hosts."""
    changes_file: Any
    """`modelhost_changes_file`: where the changes stand, if not in `CHANGES_FILE`; relative to the directory."""

    @property
    def base(self) -> Path:
        """Where relative paths begin."""
        return self.directory or Path.cwd()


@dataclass(frozen=True, slots=True)
class Recorded:
    """A change of the file of changes: its texts."""

    path: Path
    before: str
    after: str


def read_fleet(read: ReadInventory, change: Any, problems: Collection[str] = ()) -> dict[str, Any]:
    """The whole fleet, with one change more if there is one. Raises `ConfigError` with all problems, these too."""
    found = [*problems]
    inventory = _inventory(read, found)
    path = _changes_path(read, found)
    changes, _ = _changes(path, inventory, change, found)
    source = _packages(read, found)
    return evaluate(inventory, changes, str(path), source, found)


def recorded(read: ReadInventory, change: Any, problems: Collection[str] = ()) -> Recorded:
    """The file of changes before and after one change more. Nothing is written.

    Raises `ConfigError` with every problem, these too: what the layers say has to be known to be remembered.
    """
    problems = [*problems]
    inventory = _inventory(read, problems)
    merged_below(inventory, problems)
    path = _changes_path(read, problems)
    changes, before = _changes(path, inventory, change, problems)
    if path is None and not problems:
        problems.append("modelhost_changes_file: expected a path, because the inventory has no directory, found none")
    if problems or path is None:
        raise ConfigError(*problems)
    return Recorded(path, before, changes_text(changes) if changes or before else "")


def write_recorded(change: Recorded) -> None:
    """Write the file. Raises `ConfigError`."""
    try:
        change.path.parent.mkdir(parents=True, exist_ok=True)
        mode = change.path.stat().st_mode & 0o777 if change.path.exists() else 0o644
        write_atomically(change.path.resolve(), change.after.encode(), mode)
    except OSError as error:
        raise ConfigError(f"{change.path}: cannot be written: {error.strerror}") from error


def _inventory(read: ReadInventory, problems: list[str]) -> Inventory:
    hosts = {name: read_fleet_host(name, known.variables, known.facts, problems) for name, known in read.hosts.items()}
    if not hosts:
        problems.append("group modelhost: expected hosts that run models, found none")
    return Inventory(hosts=hosts, layers=read.layers)


def _changes_path(read: ReadInventory, problems: list[str]) -> Path | None:
    """The file of changes, whether it is there or not; None if there is no place for it."""
    said = _path_said("modelhost_changes_file", read.changes_file, problems)
    if said is not None:
        return read.base / said
    return None if read.directory is None else read.directory / CHANGES_FILE


def _changes(path: Path | None, inventory: Inventory, change: Any, problems: list[str]) -> tuple[Changes, str]:
    """The changes, with one more if there is one; and the text of the file."""
    problems += _ignored_files(path, writing=change is not None)
    try:
        text = "" if path is None else _text(path)
        changes = parse_changes(text, str(path))
    except ConfigError as error:
        problems += error.problems
        return {}, ""
    if change is None:
        return changes, text
    try:
        _, below = merged_below(inventory, [])
        return with_request(changes, parse_request(change), below, str(path)), text
    except ConfigError as error:
        problems += error.problems
        return changes, text


def _ignored_files(path: Path | None, *, writing: bool) -> list[str]:
    """Files that Ansible stops to read when the directory of the changes is there, or would be."""
    if path is None or path.parent.parts[-2:] != ("group_vars", "all") or not (writing or path.parent.is_dir()):
        return []
    return [
        f"{beside}: expected no such file beside the directory {path.parent}, which is all that Ansible reads then: "
        f"move it to {path.parent / beside.name}"
        for beside in (path.parent.with_name(name) for name in _BESIDE)
        if beside.is_file()
    ]


def _packages(read: ReadInventory, problems: list[str]) -> PackageSource | None:
    problems_before = len(problems)
    places = {
        (
            _path_said(f"host {name}: modelhost_packages", known.packages, problems),
            _path_said(f"host {name}: modelhost_packages_checksums", known.checksums, problems),
        ): name
        for name, known in read.hosts.items()
    }
    if len(problems) > problems_before or not places:
        return None
    if len(places) > 1:
        hosts = " and ".join(list(places.values())[:2])
        problems.append(f"modelhost_packages: expected the same for all hosts, received different ones for {hosts}")
        return None
    ((location, checksums),) = places
    if location is None:
        problems.append(
            "modelhost_packages: expected a directory of archives that modelhost pack wrote, or a URI, found none"
        )
        return None
    try:
        return open_packages(location, checksums, read.base)
    except ConfigError as error:
        problems += error.problems
        return None


def _path_said(where: str, value: Any, problems: list[str]) -> str | None:
    """A path or URI that a variable says; None if it says none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not is_plain_text(value):
        problems.append(f"{where}: expected a path or a URI, received {described(value)}")
        return None
    return value


def _text(path: Path) -> str:
    """The text of a file; empty if there is none. Raises `ConfigError`."""
    try:
        if path.stat().st_size > TEXT_MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {TEXT_MAX_BYTES} bytes, received {path.stat().st_size}")
        return path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
