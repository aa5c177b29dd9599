"""Inventories for tests: layers and packages in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from host.fleet.changes import Changes
from host.fleet.evaluation import Inventory, evaluate, merged_below
from host.fleet.hosts import FleetHost
from host.fleet.layers import Layer
from host.fleet.merging import HostModels
from host.fleet.packages import FoundPackage
from host.protocol.errors import ConfigError
from host.protocol.package import Package, parse_package


def package(name: str, version: str, **tables: Mapping[str, Any]) -> Package:
    """What a `model.toml` says."""
    tensor = {"datatype": "FP64", "shape": [-1, 1]}
    table = {"runtime": "python", "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]}
    return parse_package(name, version, {**table, **tables})


class Shelf:
    """Packages, without files: `Shelf(churn=("2", "3"))`."""

    where = "/packages"

    def __init__(self, **versions: Sequence[str]) -> None:
        self.contents: dict[tuple[str, str], Package | None] = {
            (name, version): package(name, version) for name, found in versions.items() for version in found
        }

    def versions(self) -> Mapping[str, tuple[str, ...]]:
        """By model."""
        found: dict[str, tuple[str, ...]] = {}
        for name, version in self.contents:
            found[name] = (*found.get(name, ()), version)
        return found

    def find(self, name: str, version: str) -> FoundPackage | None:
        """As a file, or as a URI if nobody has looked into it."""
        if (name, version) not in self.contents:
            return None
        content = self.contents[name, version]
        place = "uri" if content is None else "file"
        shown = f"/packages/{name}-{version}.tar"
        return FoundPackage(name=name, version=version, sha256="0" * 64, content=content, **{place: shown})


def layer(origin: str, hosts: str, **models: Any) -> Layer:
    """What one group or host says; keys with an @ as `churn__4`. Every model stands in a line of its own."""
    named = {key.replace("__", "@"): value for key, value in models.items()}
    file = f"{origin.replace(' ', '/')}.yml"
    places = {(key,): f"{file}:{line}" for line, key in enumerate(named, 2)}
    return Layer(origin=origin, hosts=tuple(hosts.split()), models=named, places={(): file, **places})


def inventory(*layers: Layer, **hosts: Mapping[str, Any]) -> Inventory:
    """An inventory with the hosts that its layers name, and more of some."""
    names = dict.fromkeys([name for one in layers for name in one.hosts] + list(hosts))
    return Inventory(
        hosts={name: FleetHost(name=name, address=name, **hosts.get(name, {})) for name in names}, layers=layers
    )


def below(*layers: Layer) -> dict[str, HostModels]:
    """What the hosts run by these layers."""
    problems: list[str] = []
    _, merged = merged_below(inventory(*layers), problems)
    assert not problems
    return merged


def fleet_of(read: Inventory, source: Any = None, changes: Changes | None = None) -> dict[str, Any]:
    """The whole fleet."""
    return evaluate(read, changes or {}, "changes.yml", source or Shelf(churn=("2", "3", "4"), digits=("1",)))


def problems_of(read: Inventory, source: Any = None, changes: Changes | None = None) -> list[str]:
    """What is wrong with a fleet; nothing if nothing is."""
    try:
        fleet_of(read, source, changes)
    except ConfigError as error:
        return list(error.problems)
    return []
