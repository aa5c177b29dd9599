"""What a host's merged entries mean: each read as the `[[models]]` that it becomes, and all of them together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from host.config.deployment_file import Entry, entries_text, read_entry
from host.config.entry_checks import (
    ProcessCounts,
    defaults_of,
    duplicate_problems,
    natural_key,
    scale_of,
    traffic_problems,
)
from host.fleet.layers import KEYS, UNREADABLE, VARIABLE, split_key
from host.fleet.merging import HostModels, MergedEntry
from host.fleet.packages import FoundPackage
from host.protocol.package import Resources, Scale
from host.protocol.schema import TableReader

Packages = Mapping[tuple[str, str], FoundPackage]
"""By name and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """One version of a model on one host."""

    key: str
    table: Mapping[str, Any]
    """Its `[[models]]`: name, version and what else is said."""
    package: FoundPackage | None
    counts: ProcessCounts
    memory_bytes: int | None
    """Of one process; None: nobody says, and nobody has looked into the package."""
    default: bool

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.table["name"])

    @property
    def version(self) -> str:
        """Its version."""
        return str(self.table["version"])


class _EntryReader(TableReader):
    """Names for every problem the layer that said the key."""

    def __init__(self, key: str, entry: MergedEntry, table: Mapping[str, Any], problems: list[str]) -> None:
        super().__init__("", table, problems)
        self._key = key
        self._entry = entry

    def problem(self, key: str, expected: str, *received: Any) -> None:
        """Note that a key is wrong, and who said it."""
        self._at(key, f"{VARIABLE}.{self._key}.", {}).problem(key, expected, *received)

    def table(self, key: str) -> TableReader:
        """A table within."""
        value = self.take(key)
        if not isinstance(value, dict):
            self.problem(key, "a table", value)
            value = {}
        return self._at(key, f"{VARIABLE}.{self._key}.{key}.", value)

    def _at(self, key: str, prefix: str, table: Mapping[str, Any]) -> TableReader:
        """A reader for what stands where a key was said; by whoever spoke last if nobody said it."""
        layer = self._entry.sources.get(key) or self._entry.layers[-1]
        return TableReader(layer.where(self._key, key), table, self.problems, prefix)


def version_of(key: str, entry: MergedEntry) -> str | None:
    """The version that an entry means, or None if nobody says it."""
    said = _version_said(key, entry)
    return said if isinstance(said, str) else None


def _version_said(key: str, entry: MergedEntry) -> Any:
    return split_key(key)[1] or entry.values.get("version")


def read_host(host: str, models: HostModels, packages: Packages, problems: list[str]) -> list[FleetModel]:
    """Read everything that a host is to run; what is wrong is added to `problems` and left out. In the file's order."""
    entries: list[Entry] = []
    tables: list[tuple[str, dict[str, Any]]] = []
    for key in sorted(models, key=_order):
        found: list[str] = []
        table = _table(key, models[key])
        unreadable = [one for one, value in table.items() if value is UNREADABLE]
        for one in unreadable:
            del table[one]
        if table.get("version", "") is None:
            said_by = models[key].layers[-1].where(key)
            found.append(
                f'host {host}: {VARIABLE}.{key}.version: expected a version such as "3", found none; '
                f"the model is said by {said_by}"
            )
            del table["version"]
        entry = read_entry(f"host {host}: {VARIABLE}.{key}", _EntryReader(key, models[key], table, found))
        problems += found
        if not found and not unreadable:
            entries.append(entry)
            tables.append((key, table))
    found = []
    counts = [scale_of(entry, _scale(entry, packages), found) for entry in entries]
    defaults = [False] * len(entries)
    if len(entries) == len(models):  # what is left out would be missed
        found += [*duplicate_problems(entries), *_alone(models)]
        defaults = defaults_of(entries, found)
        found += traffic_problems(entries, defaults)
    problems += [text if text.startswith(f"host {host}: ") else f"host {host}: {text}" for text in found]
    return [
        FleetModel(
            key=key,
            table=table,
            package=packages.get((table["name"], table["version"])),
            counts=count,
            memory_bytes=entry.memory_bytes or _memory_bytes(entry, packages),
            default=default,
        )
        for (key, table), entry, count, default in zip(tables, entries, counts, defaults, strict=True)
    ]


def deployment_text(models: Sequence[FleetModel]) -> str:
    """A host's `deployment.toml`."""
    return entries_text([model.table for model in models])


def _table(key: str, entry: MergedEntry) -> dict[str, Any]:
    """The `[[models]]` of an entry, with its keys in the order of the documentation."""
    name, second = split_key(key)
    table: dict[str, Any] = {"name": name, "version": _version_said(key, entry)}
    table |= {one: entry.values[one] for one in KEYS if one != "version" and one in entry.values}
    beside = table.get("canary_percent") or table.get("shadow_percent")
    if second is not None and not beside and "default" not in table:
        # Of versions that say nothing a host takes the highest; here the one without @ is meant.
        table["default"] = False
    return table


def _alone(models: HostModels) -> Iterable[str]:
    """Second versions without the one that they are beside."""
    for key, entry in models.items():
        name, second = split_key(key)
        if second is not None and name not in models and entry.values.get("default") is not True:
            yield (
                f"{VARIABLE}.{key}: expected {name} there too, beside which it runs, found none: "
                f"it is said by {entry.layers[-1].where(key)}"
            )


def _order(key: str) -> tuple[Any, ...]:
    name, second = split_key(key)
    return (name, second is not None, natural_key(second or ""))


def _scale(entry: Entry, packages: Packages) -> Scale:
    found = packages.get((entry.name, entry.version or ""))
    return found.content.scale if found is not None and found.content is not None else Scale(1, 1)


def _memory_bytes(entry: Entry, packages: Packages) -> int | None:
    found = packages.get((entry.name, entry.version or ""))
    if found is None or found.content is None:
        return None
    resources: Resources = found.content.resources
    return resources.memory_bytes
