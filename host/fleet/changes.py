"""`modelhost_changes`: what was changed since the inventory was written: a layer above all others. Pure.

modelhost_changes:
  churn: {version: "4", instead_of: "3"}
  digits: {processes: {h1: {to: 4, instead_of: 2}}}
  old: {removed: true}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import yaml

from host.fleet.layers import UNREADABLE, Layer, did_you_mean, read_version, split_key
from host.fleet.merging import HostModels, MergedEntry
from host.planner.inventory import parse_yaml
from host.planner.model import HOSTS_MAX, MODELS_MAX
from host.protocol.errors import ConfigError
from host.protocol.package import PROCESSES_MAX, name_problem
from host.protocol.schema import described

VARIABLE: Final = "modelhost_changes"
TEXT_MAX_BYTES: Final = 16 << 20
_HEADER: Final = """\
# What the playbooks changed since the inventory was written: it goes above everything that groups and hosts say.
# They write this file; commit it. What modelhost_models says by now can be deleted here.
---
"""
_KEYS: Final = ("version", "instead_of", "before", "processes", "removed")
_REQUEST_KEYS: Final = ("model", "version", "processes", "removed", "rollback")


@dataclass(frozen=True, slots=True)
class ProcessesChange:
    """Another number of processes on one host, and the one that the layers below said then."""

    to: int
    instead_of: int | None
    """None: they said none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChange:
    """What was changed of one model."""

    version: str | None = None
    """Of the entry without `@`, on every host that has it."""
    instead_of: str | None = None
    """What the layers below said then."""
    before: str | None = None
    """What ran before, if that was neither of the two: where a rollback goes."""
    processes: Mapping[str, ProcessesChange] = field(default_factory=dict)
    removed: bool = False


Changes = Mapping[str, ModelChange]
"""By model."""


# -- reading ----------------------------------------------------------------------------------------------
def parse_changes(text: str, where: str) -> Changes:
    """Read the file. Raises `ConfigError` with every problem."""
    if len(text) > TEXT_MAX_BYTES:
        raise ConfigError(f"{where}: expected at most {TEXT_MAX_BYTES} characters, received {len(text)}")
    document = parse_yaml(text, where)
    if document is None:
        return {}
    if not isinstance(document, dict) or not set(document) <= {VARIABLE}:
        raise ConfigError(f"{where}: expected the variable {VARIABLE} and nothing else")
    table = document.get(VARIABLE) or {}
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {VARIABLE}: expected models by name, received {described(table)}")
    if len(table) > MODELS_MAX:
        raise ConfigError(f"{where}: {VARIABLE}: expected at most {MODELS_MAX} models, received {len(table)}")
    problems: list[str] = []
    changes = {}
    for name, entry in table.items():
        problem = name_problem("model name", name) if isinstance(name, str) else f"expected a name, received {name!r}"
        if problem:
            problems.append(f"{where}: {VARIABLE}: {problem}")
            continue
        found: list[str] = []
        changes[name] = _read_change(entry, found)
        problems += [f"{where}: {VARIABLE}.{name}{text}" for text in found]
    if problems:
        raise ConfigError(*problems)
    return changes


def _read_change(entry: Any, problems: list[str]) -> ModelChange:
    if not isinstance(entry, dict):
        problems.append(f": expected keys such as version and instead_of, received {described(entry)}")
        return ModelChange()
    problems += [
        f": expected {', '.join(_KEYS)}, received {described(key)}{did_you_mean(key, _KEYS)}"
        for key in entry
        if key not in _KEYS
    ]
    removed = entry.get("removed", False)
    if type(removed) is not bool:
        problems.append(f".removed: expected true or false, received {described(removed)}")
    elif removed and len(entry) > 1:
        problems.append(": expected removed alone, received other keys too")
    versions = {key: _version(entry, key, problems) for key in ("version", "instead_of", "before")}
    if versions["version"] is None and (versions["instead_of"] or versions["before"]):
        problems.append(".version: expected a version beside instead_of, found none")
    return ModelChange(**versions, processes=_read_processes(entry.get("processes"), problems), removed=removed is True)


def _version(entry: Mapping[str, Any], key: str, problems: list[str]) -> str | None:
    try:
        return None if entry.get(key) is None else read_version(entry[key])
    except ConfigError as error:
        problems.append(f".{key}: {error}")
        return None


def _read_processes(table: Any, problems: list[str]) -> dict[str, ProcessesChange]:
    if table is None:
        return {}
    if not isinstance(table, dict) or len(table) > HOSTS_MAX:
        problems.append(f".processes: expected at most {HOSTS_MAX} hosts by name, received {described(table)}")
        return {}
    found = {}
    for host, entry in table.items():
        if not isinstance(entry, dict) or not set(entry) <= {"to", "instead_of"}:
            problems.append(f".processes.{host}: expected to and instead_of, received {described(entry)}")
            continue
        before = entry.get("instead_of")
        for key, value in entry.items():
            if not (is_count(value) or (key == "instead_of" and value is None)):
                problems.append(f".processes.{host}.{key}: {_COUNT}, received {described(value)}")
        if "to" not in entry:
            problems.append(f".processes.{host}.to: {_COUNT}, found none")
        found[str(host)] = ProcessesChange(entry.get("to", 1), before)
    return found


_COUNT: Final = f"expected a whole number >= 1 and <= {PROCESSES_MAX}"


def is_count(value: Any) -> bool:
    """Whether it is a number of processes."""
    return type(value) is int and 1 <= value <= PROCESSES_MAX


# -- writing ----------------------------------------------------------------------------------------------
def changes_text(changes: Changes) -> str:
    """The file; the same for equal changes."""
    table = {name: _plain(change) for name, change in sorted(changes.items())}
    body: str = yaml.safe_dump({VARIABLE: table}, sort_keys=False, width=1000, allow_unicode=True)
    return _HEADER + body


def _plain(change: ModelChange) -> dict[str, Any]:
    if change.removed:
        return {"removed": True}
    entry: dict[str, Any] = {}
    if change.version is not None:
        entry |= {"version": change.version, "instead_of": change.instead_of}
    if change.before is not None:
        entry["before"] = change.before
    if change.processes:
        entry["processes"] = {
            host: {"to": one.to, "instead_of": one.instead_of} for host, one in sorted(change.processes.items())
        }
    return entry


# -- one change more --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a playbook is asked to change: exactly one of these, of one model."""

    model: str
    version: str | None = None
    processes: Mapping[str, int] = field(default_factory=dict)
    removed: bool = False
    rollback: bool = False


def parse_request(table: Any) -> Request:
    """Read the argument `change` of the playbooks. Raises `ConfigError` with every problem."""
    if not isinstance(table, dict):
        raise ConfigError(
            f"change: expected model and one of {', '.join(_REQUEST_KEYS[1:])}, received {described(table)}"
        )
    problems = [
        f"change: expected {', '.join(_REQUEST_KEYS)}, received {described(key)}{did_you_mean(key, _REQUEST_KEYS)}"
        for key in table
        if key not in _REQUEST_KEYS
    ]
    said = {key: value for key, value in table.items() if value is not None and value is not False}
    model = said.get("model", "")
    if not isinstance(model, str) or name_problem("model name", model):
        problems.append(f"change.model: expected the name of a model, received {described(model)}")
    if len(said.keys() & set(_REQUEST_KEYS[1:])) != 1:
        problems.append(
            f"change: expected one of {', '.join(_REQUEST_KEYS[1:])} beside model, received {described(table)}"
        )
    version = None
    try:
        version = None if "version" not in said else read_version(said["version"])
    except ConfigError as error:
        problems.append(f"change.version: {error}")
    processes = said.get("processes", {})
    if not isinstance(processes, dict) or len(processes) > HOSTS_MAX or ("processes" in said and not processes):
        problems.append(f"change.processes: expected a number for each host, received {described(processes)}")
        processes = {}
    problems += [
        f"change.processes.{host}: {_COUNT}, received {described(count)}"
        for host, count in processes.items()
        if not is_count(count)
    ]
    problems += [
        f"change.{key}: expected true, received {described(said[key])}"
        for key in ("removed", "rollback")
        if key in said and said[key] is not True
    ]
    if problems:
        raise ConfigError(*problems)
    return Request(
        model=model, version=version, processes=processes, removed="removed" in said, rollback="rollback" in said
    )


def with_request(changes: Changes, request: Request, below: Mapping[str, HostModels], where: str) -> Changes:
    """The changes after one more. `below`: what each host runs by the layers below them. Raises `ConfigError`."""
    name = request.model
    having = {host: models[name] for host, models in below.items() if name in models}
    change = changes.get(name, ModelChange())
    known = {split_key(key)[0] for models in below.values() for key in models}
    if name not in known:
        near = did_you_mean(name, known)
        raise ConfigError(f"change.model: expected a model that a host runs, received {name}{near}")
    if request.removed:
        return _with(changes, name, ModelChange(removed=True))
    if not having:
        raise ConfigError(f"change.model: expected a model that a host runs as its default version, received {name}")
    if request.processes:
        if change.removed:  # a number for one host would bring it back on all of them
            raise ConfigError(
                f"change.model: expected a model that a host runs, received {name}, which was removed: "
                "deploy_model.yml brings it back"
            )
        return _with(changes, name, _scaled(change, request.processes, having, name))
    versions = sorted({str(entry.values.get("version")) for entry in having.values()})
    if len(versions) > 1:
        raise ConfigError(
            f"change.model: expected one version of {name} on all hosts, received {' and '.join(versions)}: "
            "say in modelhost_models what is to run"
        )
    return _with(changes, name, _versioned(replace(change, removed=False), request, versions[0], where))


def _with(changes: Changes, name: str, change: ModelChange) -> Changes:
    """With another change of one model; without any if nothing is left of it."""
    return {one: said for one, said in {**changes, name: change}.items() if said != ModelChange()}


def _versioned(change: ModelChange, request: Request, said: str, where: str) -> ModelChange:
    """With another version. What ran before it is remembered, unless that is what the layers below say."""
    now = change.version or said
    target = _before(change, request.model, now, where) if request.rollback else str(request.version)
    if target == said:
        return ModelChange(processes=change.processes)
    if target == now:
        return change
    before = None if request.rollback or now == said else now
    return ModelChange(version=target, instead_of=said, before=before, processes=change.processes)


def _before(change: ModelChange, name: str, now: str, where: str) -> str:
    """Where a rollback goes."""
    target = change.before or change.instead_of
    if target is None or target == now:
        raise ConfigError(
            f"change.rollback: expected a version of {name} that ran before {now}, {where} names none: "
            "say which one with version"
        )
    return target


def _scaled(
    change: ModelChange, processes: Mapping[str, int], having: Mapping[str, MergedEntry], name: str
) -> ModelChange:
    problems = [
        f"change.processes: expected a host that runs {name}, received {host}{did_you_mean(host, having)}"
        for host in processes
        if host not in having
    ]
    if problems:
        raise ConfigError(*problems)
    after = dict(change.processes)
    for host, count in processes.items():
        said = having[host].values.get("processes")
        if count == said:
            after.pop(host, None)
        else:
            after[host] = ProcessesChange(count, said)
    return replace(change, processes=after)


# -- the layer --------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Overlaid:
    """What the hosts run with the changes, and what is to be said about these."""

    hosts: dict[str, HostModels]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def overlay(below: Mapping[str, HostModels], changes: Changes, where: str) -> Overlaid:
    """Put the changes above what the layers say."""
    result = Overlaid({host: dict(models) for host, models in below.items()})
    layer = Layer(origin=VARIABLE, hosts=tuple(below), models=None, places={(): where})
    for name, change in changes.items():
        here = f"{where}: {VARIABLE}.{name}"
        having = [host for host, models in below.items() if any(split_key(key)[0] == name for key in models)]
        if not having:
            if change.removed:
                result.notes.append(f"{here}: nothing else says {name} any more: this can be deleted")
            else:
                known = {split_key(key)[0] for models in below.values() for key in models}
                result.problems.append(f"{here}: expected a model that a host runs{did_you_mean(name, known) or GONE}")
        elif change.removed:
            for host in having:
                models = result.hosts[host]
                result.hosts[host] = {key: entry for key, entry in models.items() if split_key(key)[0] != name}
        else:
            _overlay_version(result, name, change, layer, here)
            _overlay_processes(result, name, change, layer, here)
    result.problems[:] = dict.fromkeys(result.problems)
    return result


GONE: Final = ", found none: delete this if there is none any more"


def _overlay_version(result: Overlaid, name: str, change: ModelChange, layer: Layer, here: str) -> None:
    if change.version is None:
        return
    found = 0
    redundant = 0
    for models in result.hosts.values():
        entry = models.get(name)
        if entry is None:
            continue
        found += 1
        said = entry.values.get("version")
        if said not in (change.version, change.instead_of, UNREADABLE):
            who = (entry.sources.get("version") or entry.layers[-1]).where(name, "version")
            result.problems.append(
                f'{here}.version: expected {who} to say the version "{change.instead_of}", instead of which this says '
                f'"{change.version}", or this one, received {described(said)}: remove the one that is out of date'
            )
        redundant += said == change.version
        models[name] = entry.with_value("version", change.version, layer)
        models.pop(f"{name}@{change.version}", None)  # it was beside the default, and is the default now
    if not found:
        result.problems.append(f"{here}.version: expected a host that runs {name} as its default version, found none")
    elif redundant == found:
        result.notes.append(f"{here}.version: modelhost_models says {change.version} too: this can be deleted")


def _overlay_processes(result: Overlaid, name: str, change: ModelChange, layer: Layer, here: str) -> None:
    for host, processes in change.processes.items():
        key = f"{here}.processes.{host}"
        models = result.hosts.get(host)
        if models is None or name not in models:
            known: Iterable[str] = [one for one, has in result.hosts.items() if name in has]
            result.problems.append(f"{key}: expected a host that runs {name}{did_you_mean(host, list(known)) or GONE}")
            continue
        entry = models[name]
        said = entry.values.get("processes")
        if said == processes.to:
            result.notes.append(f"{key}: modelhost_models says {processes.to} too: this can be deleted")
        elif said not in (processes.instead_of, UNREADABLE):
            who = (entry.sources.get("processes") or entry.layers[-1]).where(name, "processes")
            result.problems.append(
                f"{key}: expected {who} to say {described(processes.instead_of)}, instead of which this says "
                f"{processes.to}, or this one, received {described(said)}: remove the one that is out of date"
            )
        models[name] = entry.with_value("processes", processes.to, layer)
