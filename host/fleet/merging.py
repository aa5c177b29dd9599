"""Layers become what each host is to run: model by model and key by key, later layers win. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from host.fleet.layers import VARIABLE, Layer, ReadLayer


@dataclass(frozen=True, slots=True)
class MergedEntry:
    """An entry of one host, and who said what of it."""

    values: Mapping[str, Any]
    sources: Mapping[str, Layer]
    """Key to the layer whose value it is."""
    layers: tuple[Layer, ...]
    """All that say something of it; the last one last."""

    def with_value(self, key: str, value: Any, layer: Layer) -> MergedEntry:
        """With another value of one key, said by a layer above. None: without the key."""
        return self.merged({key: value}, layer)

    def merged(self, values: Mapping[str, Any], layer: Layer) -> MergedEntry:
        """With what a layer above says."""
        said = {key: value for key, value in {**self.values, **values}.items() if value is not None}
        sources = {key: layer if key in values else self.sources[key] for key in said}
        return MergedEntry(said, sources, (*self.layers, layer))


HostModels = dict[str, MergedEntry]
"""What one host runs, by key: `churn`, `churn@4`."""

_NOTHING = MergedEntry({}, {}, ())


def merge_layers(hosts: Iterable[str], layers: Iterable[ReadLayer]) -> dict[str, HostModels]:
    """What every host runs by all layers, which come in the order in which later ones win."""
    fleet: dict[str, HostModels] = {host: {} for host in hosts}
    for read in layers:
        for host in read.layer.hosts:
            models = fleet[host]
            for key, values in read.entries.items():
                if values is None:
                    models.pop(key, None)
                else:
                    models[key] = models.get(key, _NOTHING).merged(values, read.layer)
    return fleet


def nowhere_problems(fleet: Mapping[str, HostModels], layers: Iterable[ReadLayer]) -> Iterable[str]:
    """Models that some layer wants to run, and no host does."""
    somewhere = {key for models in fleet.values() for key in models}
    wanted: dict[str, list[Layer]] = {}
    taken_away: dict[str, list[Layer]] = {}
    for read in layers:
        for key, values in read.entries.items():
            if key not in somewhere:
                (taken_away if values is None else wanted).setdefault(key, []).append(read.layer)
    for key, by in wanted.items():
        where = f"{by[-1].where(key)}: {VARIABLE}.{key}"
        if not any(layer.hosts for layer in by):
            yield f"{where}: expected a host of the group modelhost that runs it, found none"
        else:
            away = _some(dict.fromkeys(layer.where(key) for layer in taken_away.get(key, ())))
            yield f"{where}: expected a host that runs it, found none: it is taken away (null) by {away}"


def _some(words: Iterable[str], most: int = 3) -> str:
    """A few words, and how many more there are."""
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
