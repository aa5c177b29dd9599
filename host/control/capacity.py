"""How many of the processes that scaled models ask for the host can hold. Pure: numbers in, numbers out.

Memory: the limits of all processes fit into the host's memory, as `host.placement` demands it. CPUs: processes beyond
a model's first ones exist because those were busy, so each of them keeps its CPUs busy as well: all of them together
have no more CPUs than the host, and those of a model that names its CPUs no more than it names.

Who is first? Whoever has the fewest processes, one process at a time (max-min fairness): one model's flood takes
nothing that another needs more. What a model has to give up is given to another once its processes are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from host.config.deployment import DeployedModel, Deployment
from host.config.features import Features
from host.config.settings import HostSettings
from host.isolation.planning import demands
from host.placement import Topology, limits_bytes, parse_cpu_set

_MIB: Final = 1 << 20


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """A model that gets fewer processes than it asked for."""

    group: str
    asked: int
    given: int
    reason: str


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What there is, and what all of it is for."""

    settings: HostSettings
    topology: Topology
    known: Sequence[DeployedModel]
    """Every version that has processes or should have: those that leave hold their memory still."""
    features: Features = Features()


def fit(host: Host, asked: Mapping[str, int], running: Mapping[str, int]) -> tuple[dict[str, int], list[Cut]]:
    """Cut what scaled models ask for, by group, to what the host holds; say which were cut, and why.

    `running`: processes that are there, also those that are about to stop. A model's `min_processes` are never cut:
    the deployment was checked with them.
    """
    models = {model.group: model for model in host.known}
    least = {group: min(number, models[group].min_processes) for group, number in asked.items()}
    fair, reasons = _filled(host, models, least, asked)
    # What is to stop holds its place until it is gone.
    held = {group: max(least[group], running.get(group, 0)) for group in asked}
    now, waiting = _filled(host, models, held, {group: max(fair[group], held[group]) for group in asked})
    given = {group: min(fair[group], now[group]) for group in asked}
    cuts = [
        Cut(group=group, asked=asked[group], given=given[group], reason=reasons.get(group) or waiting[group])
        for group in asked
        if given[group] < asked[group]
    ]
    return given, cuts


def _filled(
    host: Host, models: Mapping[str, DeployedModel], begin: Mapping[str, int], end: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, str]]:
    """From one number of processes to another, whoever has the fewest first; and why some stop on the way."""
    given = dict(begin)
    reasons: dict[str, str] = {}
    while rising := [group for group in given if given[group] < end[group] and group not in reasons]:
        group = min(rising, key=lambda one: given[one])
        tried = given | {group: given[group] + 1}
        shortage = _cpu_shortage(host, models, tried, models[group]) or _memory_shortage(host, tried, models[group])
        if shortage:
            reasons[group] = shortage
        else:
            given = tried
    return given, reasons


def _memory_shortage(host: Host, given: Mapping[str, int], model: DeployedModel) -> str:
    known = tuple(
        msgspec.structs.replace(one, processes=given[one.group]) if one.group in given else one for one in host.known
    )
    needed = limits_bytes(demands(host.settings, Deployment(known, host.features)))
    if needed <= host.topology.memory_bytes:
        return ""
    return (
        f"memory: expected limits of at most {host.topology.memory_bytes / _MIB:,.0f} MiB in all, "
        f"one process more of {model.resources.memory_bytes / _MIB:,.0f} MiB makes {needed / _MIB:,.0f} MiB"
    )


def _cpu_shortage(
    host: Host, models: Mapping[str, DeployedModel], given: Mapping[str, int], model: DeployedModel
) -> str:
    if given[model.group] <= max(1, model.min_processes):
        return ""
    if isinstance(model.resources.cpus, str):
        named = len(parse_cpu_set(model.resources.cpus))
        if _more_cpus(model, given[model.group]) > named:
            return f"CPUs: expected processes beyond the first ones to keep at most {named} busy, which the model names"
    total = sum(_more_cpus(models[group], number) for group, number in given.items())
    have = len(host.topology.cpus)
    if total > have:
        return f"CPUs: expected processes beyond the first ones of each model to keep at most {have} busy, not {total}"
    return ""


def _more_cpus(model: DeployedModel, processes: int) -> int:
    """CPUs that the processes beyond a model's first ones keep busy."""
    cpus = model.resources.cpus
    each = cpus if isinstance(cpus, int) else min(model.resources.threads, len(parse_cpu_set(cpus)))
    return each * max(0, processes - max(1, model.min_processes))
