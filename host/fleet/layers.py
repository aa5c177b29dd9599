"""One layer of an inventory: what a group or a host itself says in `modelhost_models`. Read here, then trusted."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from host.config.deployment_file import ENTRY_KEYS
from host.planner.model import HOSTS_MAX, MODELS_MAX
from host.protocol.errors import ConfigError
from host.protocol.package import name_problem
from host.protocol.schema import described

VARIABLE: Final = "modelhost_models"
KEYS: Final = tuple(key for key in ENTRY_KEYS if key != "name")
LAYERS_MAX: Final = 32 * HOSTS_MAX
"""Groups and hosts, each with what stands in the inventory itself and in files beside it; with templates one a host."""

UNREADABLE: Final = object()
"""In place of a value about which there is a problem already: what it would have been nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one place says, as it was written; layers come in the order in which later ones win."""

    origin: str
    """Who says it: `group models_churn`, `host h1`."""
    hosts: tuple[str, ...]
    """To which of the hosts it applies."""
    models: Any
    """The variable's value: plain values."""
    places: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    """Where a key stands, as far as that is known: `("churn", "version")` -> `group_vars/all.yml:7`."""

    def where(self, *path: str) -> str:
        """Who says a key, and where it is written."""
        for length in range(len(path), -1, -1):
            place = self.places.get(path[:length])
            if place:
                return f"{self.origin} ({place})"
        return self.origin


Entries = Mapping[str, Mapping[str, Any] | None]
"""Key (`churn`, `churn@4`) to what is said of it. None: it does not run there."""


@dataclass(frozen=True, slots=True)
class ReadLayer:
    """A layer, and what it says."""

    layer: Layer
    entries: Entries


def read_layer(layer: Layer, problems: list[str]) -> ReadLayer:
    """Read what a layer says; what is wrong is added to `problems` and left out."""
    if layer.models is None:
        return ReadLayer(layer, {})
    if not isinstance(layer.models, Mapping):
        problems.append(f"{layer.where()}: {VARIABLE}: expected models by name, received {described(layer.models)}")
        return ReadLayer(layer, {})
    if len(layer.models) > MODELS_MAX:
        problems.append(
            f"{layer.where()}: {VARIABLE}: expected at most {MODELS_MAX} models, received {len(layer.models)}"
        )
        return ReadLayer(layer, {})
    entries: dict[str, Mapping[str, Any] | None] = {}
    for key, value in layer.models.items():
        problem = key_problem(key)
        if problem:
            problems.append(f"{layer.where(str(key))}: {VARIABLE}: {problem}")
        elif value is None:
            entries[key] = None
        elif not isinstance(value, Mapping):
            expected = 'keys such as {version: "3", processes: 2}, or null'
            problems.append(f"{layer.where(key)}: {VARIABLE}.{key}: expected {expected}, received {described(value)}")
        else:
            entries[key] = _read_entry(layer, key, value, problems)
    return ReadLayer(layer, entries)


def _read_entry(layer: Layer, key: str, value: Mapping[Any, Any], problems: list[str]) -> Mapping[str, Any]:
    entry: dict[str, Any] = {}
    for name, content in value.items():
        where = f"{layer.where(key, str(name))}: {VARIABLE}.{key}"
        if name not in KEYS:
            problems.append(
                f"{where}: expected keys of [[models]] but name, received {described(name)}{did_you_mean(name, KEYS)}"
            )
        elif name == "version":
            try:
                entry[name] = content if content in (None, UNREADABLE) else read_version(content)
            except ConfigError as error:
                problems.append(f"{where}.version: {error}")
                entry[name] = UNREADABLE
            else:
                said = split_key(key)[1]
                if said is not None and entry.pop(name) not in (said, None):
                    problems.append(
                        f"{where}.version: expected none, because its key says {said}, received {described(content)}"
                    )
        else:
            entry[name] = content
    return entry


def read_version(value: Any) -> str:
    """A version: a text, or a whole number that somebody did not quote. Raises `ConfigError`."""
    if type(value) is int:
        value = str(value)
    if type(value) is float:
        raise ConfigError(
            f'expected a version in quotes, such as "{value}" (without them YAML makes 1.10 the number 1.1), '
            f"received the number {value}"
        )
    if not isinstance(value, str):
        raise ConfigError(f'expected a version such as "3", received {described(value)}')
    problem = name_problem("a version", value)
    if problem:
        raise ConfigError(problem)
    return value


def key_problem(key: Any) -> str | None:
    """What is wrong with the key of an entry, or None."""
    if not isinstance(key, str):
        return f"expected the name of a model, received {described(key)}"
    name, version = split_key(key)
    problem = name_problem("model name", name)
    if problem is None and version is not None:
        problem = name_problem("model version", version)
    return problem and f"{key}: {problem}"


def split_key(key: str) -> tuple[str, str | None]:
    """The model's name, and the version of a second version beside the default: `churn@4`."""
    name, at, version = key.partition("@")
    return name, version if at else None


def did_you_mean(word: object, known: Collection[str]) -> str:
    """The nearest word that is known, as the end of a message; nothing if none is near."""
    near = difflib.get_close_matches(str(word)[:100], known, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
