"""What the entries of one host mean together: which version is the default, how many processes run, what contradicts.

Pure. Every entry says its version here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from host.config.deployment_file import CANARIES_MAX_PERCENT, Entry
from host.config.run_dir import group_name
from host.protocol.package import Scale

_DIGITS: Final = re.compile(r"(\d+)")


def natural_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key of a version: runs of digits compare as numbers, and above other text."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in _DIGITS.split(version) if part)


class ProcessCounts(NamedTuple):
    """How many processes of a version run: a fixed number, or to begin with."""

    processes: int
    min_processes: int = 0
    max_processes: int = 0
    slots: int = 0


def scale_of(entry: Entry, own: Scale, problems: list[str]) -> ProcessCounts:
    """A fixed number, or bounds: what the entry says of either, else the package's `own`."""
    if entry.processes or (entry.min_processes is None and own.min_processes == own.max_processes):
        return ProcessCounts(processes=entry.processes or own.min_processes, slots=entry.max_processes or 0)
    least = own.min_processes if entry.min_processes is None else entry.min_processes
    most = entry.max_processes or own.max_processes
    if least > most:
        least_key = "min_processes" if entry.min_processes is not None else "the package's min"
        most_key = "max_processes" if entry.max_processes else "the package's max"
        problems.append(f"{entry.where}: expected {least_key} of at most {most_key} ({most}), received {least}")
    return ProcessCounts(processes=least, min_processes=least, max_processes=most)


def duplicate_problems(entries: Sequence[Entry]) -> Iterable[str]:
    """Versions that come twice, and those whose processes would have the same name."""
    groups: dict[str, Entry] = {}
    for entry in entries:
        group = group_name(entry.name, entry.version or "")
        other = groups.setdefault(group, entry)
        if other is entry:
            continue
        if (other.name, other.version) == (entry.name, entry.version):
            yield f"models: {entry.name} version {entry.version}: expected once, received twice"
        else:
            yield (
                f"models: {other.name} version {other.version} and {entry.name} version {entry.version} "
                f"would both be called {group}: rename one"
            )


def defaults_of(entries: Sequence[Entry], problems: list[str]) -> list[bool]:
    """Which entries serve the paths without a version: the one that says so, else a model's highest version.

    A canary and a shadow are never the default.
    """
    by_model: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        by_model.setdefault(entry.name, []).append(index)
    defaults = [False] * len(entries)
    for name, indices in by_model.items():
        said = [index for index in indices if entries[index].default]
        open_ = [index for index in indices if entries[index].default is None and not _is_beside(entries[index])]
        if len(said) > 1:
            versions = ", ".join(entries[index].version or "" for index in said)
            problems.append(f"models: {name}: expected default = true for one version, received it for {versions}")
        elif not said and not open_:
            problems.append(
                f"models: {name}: expected one version that is the default, received only versions with "
                "default = false, canary_percent or shadow_percent"
            )
        else:
            highest = max(said or open_, key=lambda index: natural_key(entries[index].version or ""))
            defaults[highest] = True
    return defaults


def _is_beside(entry: Entry) -> bool:
    """Whether a version serves beside the default."""
    return bool(entry.canary_percent or entry.shadow_percent)


def traffic_problems(entries: Sequence[Entry], defaults: Sequence[bool]) -> Iterable[str]:
    """What contradicts itself among the versions of one model."""
    by_model: dict[str, list[Entry]] = {}
    for entry, default in zip(entries, defaults, strict=True):
        by_model.setdefault(entry.name, []).append(entry)
        if entry.sticky_header and not default and not _is_beside(entry):
            yield (
                f"{entry.where}.sticky_header: expected it on the default version of {entry.name}, "
                f"received it on version {entry.version}"
            )
    for name, of_model in by_model.items():
        shares = [entry.canary_percent for entry in of_model if entry.canary_percent]
        if sum(shares) > CANARIES_MAX_PERCENT:
            yield (
                f"models: {name}: expected canary_percent of at most {CANARIES_MAX_PERCENT} for all versions "
                f"together, received {' + '.join(map(str, shares))}"
            )
        shadows = sum(entry.shadow_percent > 0 for entry in of_model)
        if shadows > 1:
            yield f"models: {name}: expected shadow_percent for one version at most, received it for {shadows}"
