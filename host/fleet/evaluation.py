"""A whole fleet: its layers merged, changed, checked and made into what each host gets. All problems at once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from host.config.entry_checks import natural_key
from host.fleet.changes import Changes, overlay
from host.fleet.entries import FleetModel, deployment_text, read_host, version_of
from host.fleet.hosts import FleetHost
from host.fleet.layers import LAYERS_MAX, VARIABLE, Layer, ReadLayer, did_you_mean, read_layer, split_key
from host.fleet.merging import HostModels, MergedEntry, merge_layers, nowhere_problems
from host.fleet.packages import FoundPackage, PackageSource
from host.isolation.planning import CONTROL_BYTES, FRONT_BYTES
from host.planner.model import HOSTS_MAX
from host.protocol.errors import ConfigError
from host.protocol.schema import described

PROBLEMS_MAX: Final = 200
_HOSTS_SHOWN: Final = 5
_MIB: Final = 1 << 20
_OF_HOST: Final = re.compile(r"host (\S+): ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What an inventory says of a fleet."""

    hosts: Mapping[str, FleetHost]
    layers: Sequence[Layer]
    """In the order in which later ones win."""


def merged_below(inventory: Inventory, problems: list[str]) -> tuple[list[ReadLayer], dict[str, HostModels]]:
    """What groups and hosts say, without the changes; what is wrong is added to `problems`."""
    if len(inventory.hosts) > HOSTS_MAX or len(inventory.layers) > LAYERS_MAX:
        raise ConfigError(
            f"expected at most {HOSTS_MAX} hosts and {LAYERS_MAX} layers of {VARIABLE}, "
            f"received {len(inventory.hosts)} and {len(inventory.layers)}"
        )
    read = [read_layer(layer, problems) for layer in inventory.layers]
    return read, merge_layers(inventory.hosts, read)


def evaluate(
    inventory: Inventory,
    changes: Changes,
    changes_file: str,
    source: PackageSource | None,
    known_problems: Iterable[str] = (),
) -> dict[str, Any]:
    """Read and check everything; the fleet in plain values, for playbooks.

    `source` is None if it cannot be used, which is one of the known problems. Raises `ConfigError` with all of them.
    """
    problems = list(known_problems)
    read, below = merged_below(inventory, problems)
    problems += nowhere_problems(below, read)
    overlaid = overlay(below, changes, changes_file)
    problems += overlaid.problems
    packages = {} if source is None else _find_packages(overlaid.hosts, source, problems)
    fleet = {host: read_host(host, models, packages, problems) for host, models in overlaid.hosts.items()}
    for host, models in fleet.items():
        problems += memory_problems(inventory.hosts[host], models)
    if problems:
        raise ConfigError(*grouped(problems))
    return {
        "hosts": {name: _host_document(host, fleet[name]) for name, host in inventory.hosts.items()},
        "models": _models_document(fleet),
        "notes": grouped([*overlaid.notes, *_notes(fleet)]),
    }


def grouped(problems: Iterable[str]) -> list[str]:
    """Every problem once; those that hosts share in one line. At most `PROBLEMS_MAX`, and how many more there are."""
    by_text: dict[str, list[str]] = {}
    for problem in dict.fromkeys(problems):
        match = _OF_HOST.match(problem)
        by_text.setdefault(problem[match.end() :] if match else problem, []).extend([match[1]] if match else [])
    lines = [f"{_hosts(hosts)}{text}" for text, hosts in by_text.items()]
    more = len(lines) - PROBLEMS_MAX
    return lines if more <= 0 else [*lines[:PROBLEMS_MAX], f"and {more} more"]


def _hosts(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _HOSTS_SHOWN} more" if len(names) > _HOSTS_SHOWN else ""
    return f"{'host' if len(names) == 1 else 'hosts'} {', '.join(names[:_HOSTS_SHOWN])}{more}: "


def _find_packages(
    hosts: Mapping[str, HostModels], source: PackageSource, problems: list[str]
) -> dict[tuple[str, str], FoundPackage]:
    """Every package that some host needs. One problem for a version, however many hosts want it."""
    wanted: dict[tuple[str, str], tuple[str, MergedEntry]] = {}
    for models in hosts.values():
        for key, entry in models.items():
            version = version_of(key, entry)
            if version is not None:
                wanted.setdefault((split_key(key)[0], version), (key, entry))
    found: dict[tuple[str, str], FoundPackage] = {}
    for (name, version), (key, entry) in sorted(wanted.items()):
        try:
            package = source.find(name, version)
        except ConfigError as error:
            problems += error.problems
            continue
        if package is None:
            problems.append(_missing_package(name, version, key, entry, source))
        else:
            found[name, version] = package
    return found


def _missing_package(name: str, version: str, key: str, entry: MergedEntry, source: PackageSource) -> str:
    layer = entry.sources.get("version") or entry.layers[-1]
    known = source.versions()
    if name in known:
        versions = ", ".join(sorted(known[name], key=natural_key)[-10:])
        return (
            f"{layer.where(key, 'version')}: {VARIABLE}.{key}.version: expected a version of which there is an archive "
            f"in {source.where}: {versions}, received {described(version)}"
        )
    return (
        f"{entry.layers[0].where(key)}: {VARIABLE}.{key}: expected a model of which there is an archive in "
        f"{source.where}, received {described(name)}{did_you_mean(name, known)}"
    )


def memory_problems(host: FleetHost, models: Sequence[FleetModel]) -> Iterable[str]:
    """More memory than the host has, as the host itself adds it up; what is not known counts as nothing."""
    counted = [(f"{model.name} {model.version}", model.counts.processes, model.memory_bytes or 0) for model in models]
    counted += [("front", host.fronts, FRONT_BYTES), ("control", 1, CONTROL_BYTES)]
    total = sum(count * size for _, count, size in counted)
    if host.memory_bytes is None or total <= host.memory_bytes:
        return
    parts = " + ".join(f"{what} {count} x {size / _MIB:,.0f} MiB" for what, count, size in counted if size)
    yield (
        f"host {host.name}: memory: expected limits of at most {host.memory_bytes / _MIB:,.0f} MiB in all "
        f"({host.memory_source}), received {parts} = {total / _MIB:,.0f} MiB"
    )


def _notes(fleet: Mapping[str, Sequence[FleetModel]]) -> Iterable[str]:
    """What is no problem, and worth to know."""
    for host, models in fleet.items():
        if not models:
            yield f"host {host}: runs no model"
    unknown = {(m.name, m.version) for models in fleet.values() for m in models if m.memory_bytes is None}
    for name, version in sorted(unknown):
        yield (
            f"{name} version {version}: its package is not here, so the memory of a process is not known and not "
            "counted; say memory in modelhost_models"
        )


# -- for playbooks ----------------------------------------------------------------------------------------
def _host_document(host: FleetHost, models: Sequence[FleetModel]) -> dict[str, Any]:
    return {
        "address": host.address,
        "port": host.port,
        "zone": host.zone,
        "models": {model.key: _entry_document(model) for model in models},
        "packages": [_package_document(model.package) for model in models if model.package is not None],
        "deployment": deployment_text(models),
    }


def _entry_document(model: FleetModel) -> dict[str, Any]:
    """What is said of it and what follows: whether it is the default and, where that is known, how many run."""
    counts, said = model.counts, {"default": model.default}
    bounds = {"min_processes": counts.min_processes, "max_processes": counts.max_processes}
    looked_into = model.package is not None and model.package.content is not None
    if looked_into or "processes" in model.table or bounds.keys() <= model.table.keys():
        return {**model.table, **said, **(bounds if counts.max_processes else {"processes": counts.processes})}
    return {**model.table, **said}


def _package_document(package: FoundPackage) -> dict[str, Any]:
    place = {"file": package.file} if package.file is not None else {"uri": package.uri}
    return {
        **place,
        "name": package.name,
        "version": package.version,
        "sha256": package.sha256,
        "directory": f"{package.name}/{package.version}",
    }


def _models_document(fleet: Mapping[str, Sequence[FleetModel]]) -> dict[str, Any]:
    by_name: dict[str, list[tuple[str, FleetModel]]] = {}
    for host, models in fleet.items():
        for model in models:
            by_name.setdefault(model.name, []).append((host, model))
    return {name: _model_document(by_name[name]) for name in sorted(by_name)}


def _model_document(runs: Sequence[tuple[str, FleetModel]]) -> dict[str, Any]:
    defaults = Counter(model.version for _, model in runs if model.default)
    contents = [model.package.content for _, model in runs if model.package is not None]
    known = [content.limits for content in contents if content is not None]
    return {
        "versions": sorted({model.version for _, model in runs}, key=natural_key),
        "default": max(defaults, key=lambda version: (defaults[version], natural_key(version))),
        "hosts": {
            host: {"processes": model.counts.processes, "version": model.version}
            for host, model in runs
            if model.default
        },
        # Of a package that nobody has looked into nobody knows whether it may be: so it is not.
        "retry": len(known) == len(contents) and all(limits.retry for limits in known),
        "timeout_ms": max((limits.timeout_ms for limits in known), default=None),
    }
