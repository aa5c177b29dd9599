"""An Ansible inventory's `host_vars`: what runs at present by them, and what is to. One file for each host.

Of a file only the variable `modelhost_models` is read and replaced, the rest stays byte for byte.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

from host.config.entry_checks import natural_key
from host.config.files import write_atomically
from host.planner.model import HOST_PROCESSES_MAX, Fleet, Placement, PlannedModel
from host.protocol.errors import ConfigError
from host.protocol.schema import described, parse_bytes

VARIABLE: Final = "modelhost_models"
FILE_MAX_BYTES: Final = 64 << 20
_SUFFIXES: Final = (".yml", ".yaml")
_JSON: Final = ".json"
_WORDS: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_TEXTS: Final = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}

Entries = Mapping[str, Mapping[str, Any] | None]
"""Key (`churn`, `churn@4`) to what a host's `modelhost_models` says of it. None: it does not run there."""


@dataclass(frozen=True, slots=True)
class _Tagged:
    """What only Ansible understands (`!vault`, `!unsafe`): the same if its text is."""

    text: str


_LOADER: Final = type("_Loader", (yaml.SafeLoader,), {})
"""Plain values only."""
yaml.add_multi_constructor("!", lambda loader, suffix, node: _Tagged(yaml.serialize(node)), Loader=_LOADER)


@dataclass(frozen=True, slots=True)
class Present:
    """What the inventory says."""

    entries: Mapping[str, Entries]
    """Host to its entries; hosts without the variable are left out."""
    placement: Placement
    beside_bytes: Mapping[str, int] = field(default_factory=dict)
    """Host to the memory of second versions beside the default one (`churn@4`). They stay where they are."""
    merged: bool = False
    """Whether groups may have said them, too: then a host's own are not all of them."""


def read_yaml(path: Path) -> Any:
    """Read a file of plain values (JSON is YAML, too). Raises `ConfigError`."""
    return parse_yaml(_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Read a text. Raises `ConfigError` that says `where`."""
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


def read_host_vars(inventory: Path, fleet: Fleet) -> Present:
    """Read every host's file. Raises `ConfigError` with every problem."""
    return _present(_host_documents(inventory, fleet), fleet, merged=False)


def read_own_entries(inventory: Path, fleet: Fleet) -> dict[str, Entries]:
    """Read what the hosts' own files say, which groups may complete. Raises `ConfigError` with every problem."""
    problems: list[str] = []
    entries = {host: table for host, _, table in _tables(_host_documents(inventory, fleet), fleet, problems)}
    if problems:
        raise ConfigError(*problems)
    return entries


def read_listing(path: Path, fleet: Fleet) -> Present:
    """Read `modelhost_fleet`, where all layers are merged, or what `ansible-inventory --list` printed: for every host
    what the last layer says, because Ansible itself merges none. Raises `ConfigError`.
    """
    try:
        document = json.loads(_text(path))
        if "_meta" in document:
            variables = document["_meta"]["hostvars"]
        else:
            variables = {host: {VARIABLE: found["models"]} for host, found in document["hosts"].items()}
        documents = {str(name): (f"{path}: {name}", found) for name, found in variables.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        expected = "what `ansible-inventory --list` prints, with _meta.hostvars, or modelhost_fleet, with hosts"
        raise ConfigError(f"{path}: expected {expected}") from error
    return _present(documents, fleet, merged=True)


def _host_documents(inventory: Path, fleet: Fleet) -> dict[str, tuple[str, Any]]:
    """Host to the name of its file and what that says."""
    directory = inventory / "host_vars"
    names = {host.name for host in fleet.hosts}
    if directory.is_dir():
        names |= {host for path in directory.iterdir() if (host := _host_of(path))}
    documents = {}
    for name in sorted(names):
        path = _file(inventory, name)
        if path.exists():
            documents[name] = (str(path), read_yaml(path))
    return documents


def _host_of(path: Path) -> str:
    """The host whose variables these are, also one that the fleet does not have; empty: nobody's, such as a backup."""
    if path.name.startswith("."):
        return ""
    if path.is_dir() or not path.suffix:
        return path.name
    written = path.suffix in _SUFFIXES or (path.suffix == _JSON and _says_variable(path))
    return path.stem if written else ""


def _tables(
    documents: Mapping[str, tuple[str, Any]], fleet: Fleet, problems: list[str]
) -> Iterator[tuple[str, str, Entries]]:
    """Each host with where its variable stands and what it says; entries are tables, or nothing."""
    hosts = {host.name for host in fleet.hosts}
    for host, (where, document) in documents.items():
        if document is None:
            continue
        if not isinstance(document, dict):
            problems.append(f"{where}: expected variables, received {described(document)}")
            continue
        where = f"{where}: {VARIABLE}"
        table = document.get(VARIABLE) or {}
        if not isinstance(table, dict):
            problems.append(f"{where}: expected models, received {described(table)}")
        elif table and host not in hosts:
            problems.append(f"{where}: expected a host of the fleet, received {host}")
        elif wrong := [key for key, entry in table.items() if not isinstance(entry, dict | None)]:
            problems += [f"{where}.{key}: expected a table, received {described(table[key])}" for key in wrong]
        else:
            yield host, where, table


def _present(documents: Mapping[str, tuple[str, Any]], fleet: Fleet, *, merged: bool) -> Present:
    problems: list[str] = []
    models = {model.name: model for model in fleet.models}
    entries: dict[str, Entries] = {}
    placement: dict[str, dict[str, int]] = {}
    beside_bytes: Counter[str] = Counter()
    for host, where, table in _tables(documents, fleet, problems):
        entries[host] = table
        for key, entry in table.items():
            model = models.get(str(key).partition("@")[0])
            if entry is None:
                continue
            if model is None:
                problems.append(f"{where}.{key}: expected a model of the fleet, whose demand is known")
                continue
            count = entry.get("processes")
            if type(count) is not int or not 1 <= count <= HOST_PROCESSES_MAX:
                expected = f"a whole number >= 1 and <= {HOST_PROCESSES_MAX}"
                if count is None and not merged:
                    expected += " (if a group says it: --present)"
                problems.append(f"{where}.{key}.processes: expected {expected}, received {described(count)}")
            elif model.name == key:
                placement.setdefault(key, {})[host] = count
            else:
                beside_bytes[host] += count * _memory_bytes(entry, model)
    if problems:
        raise ConfigError(*problems)
    return Present(entries, placement, beside_bytes, merged)


def _memory_bytes(entry: Mapping[str, Any], model: PlannedModel) -> int:
    """What an entry says of a process's memory, or else the fleet's file."""
    said = entry.get("memory")
    size = said if type(said) is int else parse_bytes(said) if isinstance(said, str) else None
    return model.memory_bytes if size is None else size


def without_beside(fleet: Fleet, present: Present) -> Fleet:
    """The fleet without the memory that second versions have."""
    hosts = [
        replace(host, memory_bytes=max(0, host.memory_bytes - present.beside_bytes.get(host.name, 0)))
        for host in fleet.hosts
    ]
    return replace(fleet, hosts=tuple(hosts))


def planned_entries(
    fleet: Fleet, present: Present, placement: Placement, own: Mapping[str, Entries] | None = None
) -> dict[str, dict[str, Mapping[str, Any] | None]]:
    """What the file of every host of the fleet is to say. What an entry says beside the number of processes stays.

    On a host that is new to it a model gets the version that most of its hosts have, or else that of the fleet's file.
    `own`: what the files say, if what is present is merged from groups; then only what differs from that is said.
    Raises `ConfigError` if a second version would be left without the model's entry, which no playbook takes.
    """
    own = present.entries if own is None else own
    fresh = {model.name: _fresh_entry(model, present) for model in fleet.models}
    planned: dict[str, dict[str, Mapping[str, Any] | None]] = {}
    for host in fleet.hosts:
        said, merged = own.get(host.name, {}), present.entries.get(host.name, {})
        entries: dict[str, Mapping[str, Any] | None] = {}
        planned[host.name] = entries
        for model in fleet.models:
            count = placement.get(model.name, {}).get(host.name)
            runs = merged.get(model.name)
            if count is not None and (said.get(model.name) or not runs or runs.get("processes") != count):
                inherited = {} if present.merged and runs else fresh[model.name]
                entries[model.name] = {**(said.get(model.name) or inherited), "processes": count}
            elif count is None and present.merged and runs:
                entries[model.name] = None  # or a group would bring it back
        entries |= {
            key: entry for key, entry in said.items() if key not in entries and (entry is None or "@" in str(key))
        }
    if problems := list(_alone(planned, present)):
        raise ConfigError(*problems)
    return planned


def _alone(planned: Mapping[str, Entries], present: Present) -> Iterator[str]:
    """Second versions whose model no longer runs on their host."""
    for host, entries in planned.items():
        groups: Entries = present.entries.get(host, {}) if present.merged else {}
        runs = {**groups, **entries}
        for key, entry in runs.items():
            name, at, _ = str(key).partition("@")
            default = {**(groups.get(key) or {}), **(entry or {})}.get("default")
            if at and entry is not None and runs.get(name) is None and default is not True:
                yield (
                    f"host {host}: {VARIABLE}.{key}: expected {name} there too, beside which it runs, and the plan has "
                    f"none there: take {key} out first, or keep the host open"
                )


def _fresh_entry(model: PlannedModel, present: Present) -> dict[str, Any]:
    found = [(entries.get(model.name) or {}).get("version") for entries in present.entries.values()]
    versions = Counter(str(version) for version in found if isinstance(version, str | int))
    version = max(versions, key=lambda one: (versions[one], natural_key(one))) if versions else model.version
    return {} if version is None else {"version": version}


def notes(fleet: Fleet, present: Present, placement: Placement) -> list[str]:
    """What a plan takes for granted, and what an entry says otherwise, a line for each model."""
    lines = []
    for model in fleet.models:
        runs = {host: entry for host, said in present.entries.items() if (entry := said.get(model.name))}
        new = sorted(placement.get(model.name, {}).keys() - runs.keys())
        if new and "version" not in _fresh_entry(model, present):
            hosts = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
            lines.append(f"{model.name}: no version is known; a group must say it for {hosts}, or the fleet's file")
        other = [host for host, entry in runs.items() if _memory_bytes(entry, model) > model.memory_bytes]
        if other:
            said = described(runs[other[0]]["memory"])
            planned = f"planned with {model.memory_bytes / (1 << 20):,.0f} MiB"
            lines.append(f"{model.name}: {planned} of memory a process; host {other[0]} says {said}")
    return lines


def write_host_vars(inventory: Path, own: Mapping[str, Entries], planned: Mapping[str, Entries]) -> list[Path]:
    """Write the files of hosts that change; first all of them are made and read back. Raises `ConfigError`."""
    texts: dict[Path, str] = {}
    for host, entries in planned.items():
        if entries == own.get(host, {}):
            continue
        path = _file(inventory, host)
        before = _text(path) if path.exists() else "---\n"
        texts[path] = with_models(before, entries, str(path))
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
            write_atomically(path.resolve(), text.encode(), mode)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return list(texts)


def with_models(text: str, entries: Entries, where: str) -> str:
    """A file with other models; everything else stays as it is. Raises `ConfigError` if that cannot be done."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    first = next((number for number, line in enumerate(lines) if re.match(rf"{VARIABLE}\s*:", line)), len(lines))
    last = first + 1
    # What is indented belongs to it, and blank lines within.
    while last < len(lines) and (lines[last][0] in " \t" or not lines[last].strip()):
        last += 1
    while last > first + 1 and not lines[last - 1].strip():
        last -= 1
    changed = "".join([*lines[:first], models_text(entries), *lines[last:]])
    before, after = parse_yaml(text, where) or {}, parse_yaml(changed, where)
    if not isinstance(before, dict) or after != {**before, VARIABLE: entries}:
        raise ConfigError(f"{where}: expected {VARIABLE} as a block of its own lines, found what cannot be replaced")
    return changed


def models_text(entries: Entries) -> str:
    """The variable as YAML: an entry a line, in flow style."""
    if not entries:
        return f"{VARIABLE}: {{}}\n"
    lines = [f"  {_scalar(name)}: {_flow(entry)}\n" for name, entry in entries.items()]
    return "".join([f"{VARIABLE}:\n", *lines])


def _flow(value: Any) -> str:
    """A plain value: JSON, which is YAML, with spaces and bare keys as people write them."""
    match value:
        case dict():
            return "{" + ", ".join(f"{_scalar(key)}: {_flow(part)}" for key, part in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_flow, value)) + "]"
        case _:
            return json.dumps(
                value, default=str, ensure_ascii=False
            )  # what is no plain value is not read back as it was


def _scalar(key: Any) -> str:
    plain = isinstance(key, str) and _WORDS.fullmatch(key) is not None and key.lower() not in _NO_TEXTS
    return key if plain else json.dumps(key, ensure_ascii=False)


def _file(inventory: Path, host: str) -> Path:
    """Where the variable of a host stands, or would. Raises `ConfigError` if Ansible would find it elsewhere too.

    Ansible takes the first of these that exists: the plain name, a file or a directory, then .yml, .yaml, .json. Of a
    directory it reads everything, in the order of the names, and what comes last wins.
    """
    directory = inventory / "host_vars"
    found = [path for suffix in ("", *_SUFFIXES, _JSON) if (path := directory / f"{host}{suffix}").exists()]
    if not found:
        return directory / f"{host}.yml"
    first, *others = found
    if others:
        expected = "one file or directory for a host, because Ansible reads only the first"
        raise ConfigError(f"{first}: expected {expected}, found {', '.join(path.name for path in others)} too")
    if first.is_dir():
        return _file_within(first)
    if first.name != host and first.suffix == _JSON:
        raise ConfigError(f"{first}: expected a file that ends in .yml or .yaml, received JSON, which is not written")
    return first


def _file_within(directory: Path) -> Path:
    saying = [path for path in _variable_files(directory) if _says_variable(path)]
    if len(saying) > 1:
        names = ", ".join(str(path.relative_to(directory)) for path in saying)
        expected = f"{VARIABLE} in one file, because the last one wins"
        raise ConfigError(f"{directory}: expected {expected}, found it in {names}")
    if saying and saying[0].suffix == _JSON:
        raise ConfigError(f"{saying[0]}: expected {VARIABLE} in a file that ends in .yml or .yaml, found it in JSON")
    return saying[0] if saying else directory / f"{VARIABLE}.yml"


def _says_variable(path: Path) -> bool:
    text = _text(path)
    if VARIABLE not in text:  # most files, and not all of them need be read
        return False
    document = parse_yaml(text, str(path))
    return isinstance(document, dict) and VARIABLE in document


def _variable_files(directory: Path) -> Iterator[Path]:
    """The files that Ansible reads of a directory, and of those in it."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.name.endswith("~"):
            continue
        if path.is_dir() and not path.suffix:
            yield from _variable_files(path)
        elif path.is_file() and path.suffix in ("", *_SUFFIXES, _JSON):
            yield path


def _text(path: Path) -> str:
    """A file's text. Raises `ConfigError`."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ConfigError(f"{path}: expected at most {FILE_MAX_BYTES} bytes, received {path.stat().st_size}")
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a file, found none") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
