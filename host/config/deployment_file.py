"""`deployment.toml`: what should run, as operators write it. Read into entries; changed in place, comments kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomlkit
from tomlkit import TOMLDocument
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AbstractTable, AoT, Array

from host.config.files import write_atomically
from host.config.judgement import Judge, read_judge
from host.protocol.errors import ConfigError
from host.protocol.package import PROCESSES_MAX, THREADS_MAX, read_cpus, read_toml
from host.protocol.schema import TableReader

CANARIES_MAX_PERCENT: Final = 99
"""All canaries of a model together: the default always gets some."""

ENTRY_KEYS: Final = (
    "name",
    "version",
    "processes",
    "min_processes",
    "max_processes",
    "default",
    "memory",
    "cpus",
    "threads",
    "canary_percent",
    "shadow_percent",
    "shadow_tolerance",
    "judge",
    "sticky_header",
)
"""Every key of a `[[models]]`."""

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
"""RFC 9110's token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One `[[models]]` of a deployment file, or a model found in the repository. None: as its package says."""

    where: str
    name: str
    version: str | None = None
    processes: int | None = None
    min_processes: int | None = None
    max_processes: int | None = None
    default: bool | None = None
    memory_bytes: int | None = None
    cpus: int | str | None = None
    threads: int | None = None
    canary_percent: int = 0
    shadow_percent: int = 0
    shadow_tolerance: float | None = None
    judge: Judge | None = None
    sticky_header: str = ""


def read_entries(path: Path, problems: list[str]) -> list[Entry]:
    """Every `[[models]]` of a file; what is wrong is added to `problems`. Raises `ConfigError` if it is no TOML.

    A file that says nothing of models is a mistake; nothing runs where it says `models = []`.
    """
    document = read_toml(path)
    reader = TableReader(str(path), document, problems)
    entries: list[Entry] = []
    for position, table in enumerate(reader.tables("models")):
        entry = read_entry(f"{path}: models[{position}]", table)
        table.finish()
        if entry.name:
            entries.append(entry)
    reader.finish()
    if not entries and not problems and document.get("models") != []:
        reader.problem("models", "at least one [[models]] with a name, or models = [] for none")
    return entries


def read_entry(where: str, table: TableReader) -> Entry:
    """Read one `[[models]]`; what is wrong is added to the table's problems. `where` is for later problems."""

    def integer(key: str, maximum: int, minimum: int = 1) -> int | None:
        return table.integer(key, minimum=minimum, maximum=maximum) if table.has(key) else table.take(key)

    entry = Entry(
        where=where,
        name=table.text("name"),
        version=table.optional_text("version"),
        processes=integer("processes", PROCESSES_MAX),
        min_processes=integer("min_processes", PROCESSES_MAX, minimum=0),
        max_processes=integer("max_processes", PROCESSES_MAX),
        default=table.boolean("default", default=False) if table.has("default") else table.take("default"),
        memory_bytes=table.size_bytes("memory", default="") if table.has("memory") else table.take("memory"),
        cpus=read_cpus(table),
        threads=integer("threads", THREADS_MAX),
        canary_percent=integer("canary_percent", CANARIES_MAX_PERCENT) or 0,
        shadow_percent=integer("shadow_percent", 100) or 0,
        shadow_tolerance=_tolerance(table),
        judge=read_judge(table.table("judge")) if table.has("judge") else table.take("judge"),
        sticky_header=_header_name(table, "sticky_header"),
    )
    if entry.processes is not None and entry.min_processes is not None:
        table.problem("processes", "either processes, or min_processes and max_processes")
    if entry.processes and entry.max_processes and entry.processes > entry.max_processes:
        table.problem("processes", f"at most max_processes ({entry.max_processes})", entry.processes)
    _check_traffic(entry, table)
    return entry


def _check_traffic(entry: Entry, table: TableReader) -> None:
    """Name what contradicts itself within one entry."""
    share = "canary_percent" if entry.canary_percent else "shadow_percent" if entry.shadow_percent else ""
    if entry.canary_percent and entry.shadow_percent:
        table.problem("shadow_percent", "either canary_percent or shadow_percent, received both")
    if share and entry.default:
        table.problem(share, "it on a version that is not the default, received it with default = true")
    if share and entry.sticky_header:
        table.problem("sticky_header", f"it on the model's default version, received it with {share}")
    if entry.judge is not None and not entry.canary_percent:
        table.problem("judge", "it with canary_percent, received it alone")
    if entry.shadow_tolerance is not None and not entry.shadow_percent:
        table.problem("shadow_tolerance", "it with shadow_percent, received it alone")


def _tolerance(table: TableReader) -> float | None:
    value = table.take("shadow_tolerance")
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < 1:
        table.problem("shadow_tolerance", "a number >= 0 and < 1", value)
        return None
    return float(value)


def _header_name(table: TableReader, key: str) -> str:
    """The name of a header, in lower case; empty if there is none."""
    name = table.optional_text(key)
    if name is None:
        return ""
    if _HEADER_NAME.fullmatch(name) is None:
        table.problem(key, 'the name of a header, such as "X-User-Id"', name)
        return ""
    return name.lower()


# -- changes --------------------------------------------------------------------------------------------------
def with_changes(text: str, name: str, changes: Mapping[str, Any], versions: Sequence[str | None]) -> str:
    """Set keys of a model's entry with the first of the versions that has one (None: an entry without a version).

    Everything else stays as it was written. Raises `ConfigError` if there is no such entry.
    """
    document = _parsed(text)
    entries = _entries(document)
    for version in versions:
        for entry in entries:
            if entry.get("name") == name and entry.get("version") == version:
                _change(entry, changes)
                return tomlkit.dumps(document)
    raise ConfigError(f"expected a [[models]] with the name {name} in the deployment file, found none")


def without_version(text: str, name: str, version: str) -> str:
    """The file without the entry of a version that it names. Raises `ConfigError` if there is none."""
    document = _parsed(text)
    entries = _entries(document)
    for position, entry in enumerate(entries):
        if entry.get("name") == name and entry.get("version") == version:
            del entries[position]
            return tomlkit.dumps(document)
    raise ConfigError(f"expected a [[models]] of {name} with the version {version} in the deployment file, found none")


def with_promoted(text: str, name: str, version: str) -> str:
    """A canary becomes the default: its entry goes, and the default's gets its version. Raises `ConfigError`."""
    document = _parsed(without_version(text, name, version))
    for entry in _entries(document):
        beside = entry.get("canary_percent") or entry.get("shadow_percent") or entry.get("default") is False
        if entry.get("name") == name and not beside:
            _change(entry, {"version": version})
            return tomlkit.dumps(document)
    raise ConfigError(f"expected a [[models]] of {name} that is its default in the deployment file, found none")


def _parsed(text: str) -> TOMLDocument:
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"the deployment file cannot be changed: {error}") from error


def _entries(document: TOMLDocument) -> AoT | Array:
    entries = document.get("models", [])
    if not isinstance(entries, AoT | Array) or not all(isinstance(entry, AbstractTable) for entry in entries):
        raise ConfigError("expected [[models]] in the deployment file, found models that is something else")
    return entries


def _change(entry: AbstractTable, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if key in entry:
            entry[key] = value
        else:
            # Behind its last key: at its end the table may hold a comment that belongs to the next one.
            entry.value._insert_after(list(entry)[-1], key, tomlkit.item(value))


def entries_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """A deployment file of these `[[models]]`; of none it says so."""
    document = tomlkit.document()
    document.add(tomlkit.comment("What runs on this host. Change it, then: modelhost apply"))
    models = tomlkit.aot()
    for entry in entries:
        table = tomlkit.table()
        # What stands behind a sub-table would be part of it.
        for key, value in sorted(entry.items(), key=lambda item: isinstance(item[1], dict)):
            table.add(key, value)
        models.append(table)
    document.add("models", models if entries else tomlkit.array())
    return tomlkit.dumps(document)


@contextmanager
def draft_of(path: Path, text: str) -> Iterator[Path]:
    """Write a text beside a deployment file, to be read as if it stood in its place; it is gone afterwards.

    Problems of a `ConfigError` name the file itself. Raises `ConfigError` if it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_atomically(draft, text.encode())
        yield draft
    except ConfigError as error:
        raise ConfigError(*(one.replace(str(draft), str(path)) for one in error.problems)) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def write_deployment_file(path: Path, text: str) -> None:
    """Replace the file, atomically, with the mode and the owner that it had. Raises `ConfigError`."""
    mode, owner = 0o644, None
    try:
        if path.exists():
            state = path.stat()
            mode, owner = state.st_mode & 0o777, (state.st_uid, state.st_gid)
        write_atomically(path.resolve(), text.encode(), mode, owner)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
