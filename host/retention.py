"""Which versions of models a repository can do without. Pure: names in, names out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from host.config.deployment import Deployment
from host.config.entry_checks import natural_key

Version = tuple[str, str]
"""A model's name, and one of its versions."""


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version in the repository, and whether it came through `modelhost add`: then it can be added again."""

    name: str
    version: str
    added: bool


def unneeded_versions(
    stored: Iterable[StoredVersion], kept: Collection[Version], newest: int, *, by_hand: bool
) -> list[StoredVersion]:
    """The versions to remove, by model and age: not `kept`, nor among the `newest` of their model.

    All versions count among the newest, the kept ones and those made by hand too. Of the latter none is removed without
    `by_hand`: nothing says that they are anywhere else.
    """
    models: dict[str, list[StoredVersion]] = {}
    for one in stored:
        models.setdefault(one.name, []).append(one)
    return [
        one
        for _, versions in sorted(models.items())
        for one in _all_but_newest(versions, newest)
        if (one.name, one.version) not in kept and (one.added or by_hand)
    ]


def _all_but_newest(versions: Iterable[StoredVersion], newest: int) -> list[StoredVersion]:
    ordered = sorted(versions, key=lambda one: natural_key(one.version))
    return ordered[: max(0, len(ordered) - newest)]


def deployed_versions(*deployments: Deployment) -> set[Version]:
    """What some deployments run."""
    return {(model.name, model.version) for deployment in deployments for model in deployment.models}
