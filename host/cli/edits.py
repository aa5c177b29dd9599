"""What `scale` and `rollback` make of a deployment file. Pure: texts in, texts out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from host.config.deployment import DeployedModel, Deployment
from host.config.deployment_file import with_changes, with_promoted, without_version
from host.config.history import Change, version_before
from host.protocol.errors import ConfigError
from host.protocol.package import PROCESSES_MAX

_NUMBER: Final = re.compile(r"[0-9]{1,9}")


def parse_scale(words: Sequence[str]) -> dict[str, int]:
    """Read `churn=4` and `churn.v3=4`. Raises `ConfigError`."""
    numbers: dict[str, int] = {}
    problems = []
    for word in words:
        name, separator, number = word.rpartition("=")
        if not (separator and name and _NUMBER.fullmatch(number) and 1 <= int(number) <= PROCESSES_MAX):
            problems.append(f'expected MODEL=N with N from 1 to {PROCESSES_MAX}, such as churn=4, received "{word}"')
        elif name in numbers:
            problems.append(f'expected every model once, received "{name}" twice')
        else:
            numbers[name] = int(number)
    if problems:
        raise ConfigError(*problems)
    return numbers


def scaled(text: str, desired: Deployment, numbers: Mapping[str, int]) -> str:
    """Another number of processes for some models. Raises `ConfigError`."""
    seen: dict[str, str] = {}
    for name, processes in numbers.items():
        model = _find(desired, name)
        if seen.setdefault(model.group, name) != name:
            raise ConfigError(f"{seen[model.group]} and {name} are the same version: expected every one once")
        text = with_changes(text, model.name, {"processes": processes}, _written(model))
    return text


def rolled_back(text: str, desired: Deployment, history: Sequence[Change], name: str, version: str | None) -> str:
    """Without its canary; without one, the version before this one, or the one that is named. Raises `ConfigError`."""
    model = _find(desired, name)
    canaries = [one for one in desired.models if one.name == model.name and one.canary_percent]
    if canaries and version is None:
        for canary in canaries:
            text = without_version(text, canary.name, canary.version)
        return text
    target = version or version_before(history, model.name, model.version)
    if target is None:
        raise ConfigError(
            f"{model.name}: expected a version that it had before {model.version}; this host's history has none: "
            "name one with --to"
        )
    return with_changes(text, model.name, {"version": target}, _written(model))


def promoted(text: str, desired: Deployment, name: str) -> str:
    """The canary of a model as its default. Raises `ConfigError`."""
    model = _find(desired, name)
    canaries = [one for one in desired.models if one.name == model.name and one.canary_percent]
    if len(canaries) != 1:
        found = ", ".join(one.version for one in canaries) or "none"
        raise ConfigError(f"{model.name}: expected one canary, found {found}")
    return with_promoted(text, model.name, canaries[0].version)


def _find(desired: Deployment, name: str) -> DeployedModel:
    """A model's default version by its name, or any version by its group."""
    for model in desired.models:
        if (model.default and model.name == name) or model.group == name:
            return model
    known = ", ".join(dict.fromkeys(model.name for model in desired.models))
    raise ConfigError(f'expected a model of this host ({known}), received "{name}"')


def _written(model: DeployedModel) -> tuple[str | None, ...]:
    """How the file may name the version: as it is, or not at all, which means the highest."""
    return (model.version, None)
