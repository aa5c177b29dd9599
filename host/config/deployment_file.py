"""`deployment.toml`: what should run, as operators write it. Read into entries; changed in place, comments kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AbstractTable, AoT, Array

from host.config.files import write_atomically
from host.protocol.errors import ConfigError
from host.protocol.package import PROCESSES_MAX, THREADS_MAX, read_cpus, read_toml
from host.protocol.schema import TableReader


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


def read_entries(path: Path, problems: list[str]) -> list[Entry]:
    """Every `[[models]]` of a file; what is wrong is added to `problems`. Raises `ConfigError` if it is no TOML."""
    reader = TableReader(str(path), read_toml(path), problems)
    entries: list[Entry] = []
    for position, table in enumerate(reader.tables("models")):
        entry = _entry(f"{path}: models[{position}]", table)
        table.finish()
        if entry.name:
            entries.append(entry)
    reader.finish()
    if not entries and not problems:
        reader.problem("models", "at least one [[models]] with a name")
    return entries


def _entry(where: str, table: TableReader) -> Entry:
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
    )
    if entry.processes is not None and entry.min_processes is not None:
        table.problem("processes", "either processes, or min_processes and max_processes")
    if entry.processes and entry.max_processes and entry.processes > entry.max_processes:
        table.problem("processes", f"at most max_processes ({entry.max_processes})", entry.processes)
    return entry


# -- changes --------------------------------------------------------------------------------------------------
def with_changes(text: str, name: str, changes: Mapping[str, Any], versions: Sequence[str | None]) -> str:
    """Set keys of a model's entry with the first of the versions that has one (None: an entry without a version).

    Everything else stays as it was written. Raises `ConfigError` if there is no such entry.
    """
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"the deployment file cannot be changed: {error}") from error
    entries = document.get("models", [])
    if not isinstance(entries, AoT | Array) or not all(isinstance(entry, AbstractTable) for entry in entries):
        raise ConfigError("expected [[models]] in the deployment file, found models that is something else")
    for version in versions:
        for entry in entries:
            if entry.get("name") == name and entry.get("version") == version:
                _change(entry, changes)
                return tomlkit.dumps(document)
    raise ConfigError(f"expected a [[models]] with the name {name} in the deployment file, found none")


def _change(entry: AbstractTable, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if key in entry:
            entry[key] = value
        else:
            # Behind its last key: at its end the table may hold a comment that belongs to the next one.
            entry.value._insert_after(list(entry)[-1], key, tomlkit.item(value))


def entries_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """A deployment file of these `[[models]]`."""
    document = tomlkit.document()
    document.add(tomlkit.comment("What runs on this host. Change it, then: modelhost apply"))
    models = tomlkit.aot()
    for entry in entries:
        table = tomlkit.table()
        for key, value in entry.items():
            table.add(key, value)
        models.append(table)
    document.add("models", models)
    return tomlkit.dumps(document)


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
