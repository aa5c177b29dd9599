"""Small fleets for tests: made by hand, and drawn by hypothesis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from host.planner.model import Fleet, PlannedHost, PlannedModel, Survive

MIB = 1 << 20


def make_model(name: str, busy_cores: float = 0.1, **changes: Any) -> PlannedModel:
    """A model whose requests cost 1 ms each."""
    given: dict[str, Any] = {
        "version": "1",
        "rows_per_request": 1.0,
        "cpu_us_per_row": 1000.0,
        "memory_bytes": 512 * MIB,
        "cpus": 1,
        "hosts_min": 2,
        "zones_min": None,
        "only": frozenset(),
        "never": frozenset(),
    }
    return PlannedModel(name=name, requests_per_s=busy_cores * 1000, **{**given, **changes})


def make_host(name: str, cores: float = 8, memory_mib: int = 16384, zone: str = "a", **changes: Any) -> PlannedHost:
    return PlannedHost(
        name=name, cores=cores, memory_bytes=memory_mib * MIB, zone=zone, **{"tags": frozenset(), **changes}
    )


def make_fleet(models: list[PlannedModel], hosts: list[PlannedHost], survive: Survive = Survive.HOST) -> Fleet:
    return Fleet(models=tuple(models), hosts=tuple(hosts), survive=survive)


@st.composite
def fleets(draw: st.DrawFn, *, models_max: int = 8, hosts_max: int = 7, busy_max: float = 6.0) -> Fleet:
    """Any small fleet, most of which fit."""
    survive = draw(st.sampled_from(Survive))
    hosts = [
        make_host(
            f"h{number}",
            cores=draw(st.sampled_from([2.0, 4.0, 7.5, 16.0])),
            memory_mib=draw(st.sampled_from([1024, 4096, 16384])),
            zone=draw(st.sampled_from("abc")),
            tags=draw(st.sampled_from([frozenset(), frozenset({"large"})])),
            closed=draw(st.sampled_from([False, False, False, True])),
        )
        for number in range(draw(st.integers(1, hosts_max)))
    ]
    models = [
        make_model(
            f"m{number}",
            draw(st.sampled_from([0.0, 0.01, 0.3, 0.7, 0.85, 1.0]) | st.floats(0, busy_max)),
            memory_bytes=draw(st.sampled_from([64, 300, 512, 2048])) * MIB,
            cpus=draw(st.sampled_from([1, 1, 1, 2])),
            hosts_min=draw(st.integers(1, 3)),
            zones_min=draw(st.sampled_from([None, None, 1, 2])),
            only=draw(st.sampled_from([frozenset(), frozenset(), frozenset({"large"})])),
            never=draw(st.sampled_from([frozenset(), frozenset(), frozenset({"h0"})])),
        )
        for number in range(draw(st.integers(1, models_max)))
    ]
    return make_fleet(models, hosts, survive)


def fitting_fleets(**sizes: Any) -> st.SearchStrategy[Fleet]:
    """Any small fleet with a host more in each zone that has room for nearly everything."""
    more = [make_host(f"more-{zone}", 24, 32768, zone, tags=frozenset({"large"})) for zone in "abc"]
    return fleets(**sizes).map(lambda fleet: replace(fleet, hosts=(*fleet.hosts, *more)))


@st.composite
def placements(draw: st.DrawFn, fleet: Fleet) -> dict[str, dict[str, int]]:
    """Any placement of a fleet, which need not hold."""
    placement: dict[str, dict[str, int]] = {}
    for model in fleet.models:
        counts = {host.name: draw(st.integers(0, 4)) for host in fleet.hosts}
        placement[model.name] = {host: count for host, count in counts.items() if count}
    return placement
