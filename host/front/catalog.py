"""Which model a path means: what the front serves, indexed. Immutable; another routing is another catalog."""

from __future__ import annotations

from collections.abc import Iterator

from host.config.deployment import DeployedModel, Deployment
from host.front.traffic import Traffic, traffic_of
from host.protocol.errors import UnknownModel, UnknownVersion


class Catalog:
    """The deployed models by name and version."""

    def __init__(self, deployment: Deployment) -> None:
        self.features = deployment.features
        self.generation = deployment.generation
        self.draining = deployment.draining
        self._versions: dict[str, dict[str, DeployedModel]] = {}
        self._defaults: dict[str, DeployedModel] = {}
        for model in deployment.models:
            self._versions.setdefault(model.name, {})[model.version] = model
            if model.default:
                self._defaults[model.name] = model
        self._traffic = {
            name: traffic
            for name, versions in self._versions.items()
            if (traffic := traffic_of(versions.values())) is not None
        }

    def __iter__(self) -> Iterator[DeployedModel]:
        return (model for versions in self._versions.values() for model in versions.values())

    def names(self) -> list[str]:
        """The models' names, in the deployment's order."""
        return list(self._versions)

    def find(self, name: str, version: str = "") -> DeployedModel:
        """The version that a path means; without one the model's default. Raises `UnknownModel`, `UnknownVersion`."""
        if not version:
            default = self._defaults.get(name)
            if default is not None:
                return default
        versions = self.versions(name)
        if version not in versions:
            known = ", ".join(versions)
            raise UnknownVersion(f"model '{name}' has no version '{version}' here: expected one of {known}")
        return versions[version]

    def traffic(self, name: str, version: str = "") -> Traffic | None:
        """How the requests of a path are shared over versions; None: `find` says which one answers them all.

        A path with a version always means that one.
        """
        return None if version else self._traffic.get(name)

    def versions(self, name: str) -> dict[str, DeployedModel]:
        """All deployed versions of a model. Raises `UnknownModel`."""
        versions = self._versions.get(name)
        if versions is None:
            known = ", ".join(self._versions) or "none"
            raise UnknownModel(f"unknown model '{name}': deployed here: {known}")
        return versions
