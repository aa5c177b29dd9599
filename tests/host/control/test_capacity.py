"""What the host can hold of what its models ask for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config.deployment import DeployedModel, Deployment
from host.config.settings import resolve_settings
from host.control.capacity import Cut, Host, fit
from host.isolation.planning import CONTROL_BYTES, FRONT_BYTES, demands
from host.placement import Cpu, Topology, limits_bytes, place
from host.protocol.errors import ConfigError
from host.protocol.messages import Limits
from host.protocol.package import Resources
from host.protocol.types import Signature

MIB = 1 << 20
SETTINGS, _ = resolve_settings({}, None, {}, {"fronts": "1"}, Path("/"))
BASE_BYTES = FRONT_BYTES + CONTROL_BYTES


def model(
    name: str, least: int = 1, most: int = 8, memory_mib: int = 100, cpus: int | str = 1, threads: int = 1
) -> DeployedModel:
    return DeployedModel(
        name=name,
        version="1",
        processes=least,
        min_processes=least,
        max_processes=most,
        package="/p",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(),
        resources=Resources(memory_bytes=memory_mib * MIB, cpus=cpus, threads=threads),
    )


def fixed(name: str, processes: int, memory_mib: int = 100) -> DeployedModel:
    return DeployedModel(
        name=name,
        version="1",
        processes=processes,
        package="/p",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(),
        resources=Resources(memory_bytes=memory_mib * MIB),
    )


def host(*known: DeployedModel, free_mib: int = 100_000, cpus: int = 16) -> Host:
    numbers = tuple(Cpu(number=number, core=number, node=0) for number in range(cpus))
    topology = Topology(cpus=numbers, memory_bytes=BASE_BYTES + free_mib * MIB)
    return Host(settings=SETTINGS, topology=topology, known=known)


def given_(made: Host, running: dict[str, int] | None = None, **asked: int) -> dict[str, int]:
    numbers, _ = fit(made, {f"{name}.v1": number for name, number in asked.items()}, running or {})
    return {group.partition(".")[0]: number for group, number in numbers.items()}


def test_what_fits_is_given() -> None:
    made = host(model("a"), model("b"))
    assert fit(made, {"a.v1": 3, "b.v1": 2}, {}) == ({"a.v1": 3, "b.v1": 2}, [])
    assert fit(made, {}, {}) == ({}, [])


def test_memory_of_everything_counts_to_the_byte() -> None:
    assert given_(host(model("a"), fixed("f", 3), free_mib=600), a=9) == {"a": 3}
    assert given_(host(model("a"), fixed("f", 3), free_mib=599), a=9) == {"a": 2}


def test_who_is_cut_is_told_why() -> None:
    _, cuts = fit(host(model("a"), free_mib=250), {"a.v1": 4}, {"a.v1": 2})
    assert cuts == [
        Cut(
            group="a.v1",
            asked=4,
            given=2,
            reason="memory: expected limits of at most 570 MiB in all, one process more of 100 MiB makes 620 MiB",
        )
    ]


def test_whoever_has_the_fewest_is_first() -> None:
    made = host(model("a"), model("b"), model("c"), free_mib=700)
    assert given_(made, a=8, b=2, c=8) == {"a": 3, "b": 2, "c": 2}
    assert given_(made, a=1, b=8, c=8) == {"a": 1, "b": 3, "c": 3}


def test_a_large_process_does_not_keep_small_ones_out() -> None:
    assert given_(host(model("a", memory_mib=500), model("b"), free_mib=900), a=2, b=8) == {"a": 1, "b": 4}


def test_lower_bounds_are_never_cut() -> None:
    assert given_(host(model("a", least=3), model("b", least=0), free_mib=300), a=5, b=1) == {"a": 3, "b": 0}
    assert given_(host(model("a", least=3), free_mib=10), a=5) == {"a": 3}


def test_the_first_process_of_a_model_goes_before_the_second_of_another() -> None:
    assert given_(host(model("a"), model("b", least=0), free_mib=200), a=4, b=1) == {"a": 1, "b": 1}


def test_what_is_to_stop_holds_its_place_until_it_is_gone() -> None:
    made = host(model("a"), model("b"), free_mib=400)
    running = {"a.v1": 3, "b.v1": 1}
    numbers, cuts = fit(made, {"a.v1": 3, "b.v1": 2}, running)
    assert numbers == {"a.v1": 2, "b.v1": 1}
    assert [(cut.group, cut.given) for cut in cuts] == [("a.v1", 2), ("b.v1", 1)]
    numbers, _ = fit(made, {"a.v1": 3, "b.v1": 3}, running)
    assert numbers == {"a.v1": 2, "b.v1": 1}
    numbers, _ = fit(made, {"a.v1": 3, "b.v1": 3}, {"a.v1": 2, "b.v1": 1})
    assert numbers == {"a.v1": 2, "b.v1": 2}


def test_processes_beyond_the_first_ones_have_a_cpu_each() -> None:
    made = host(
        model("a", least=2), model("b", cpus=2), model("c", least=0), *(fixed(f"f{n}", 9) for n in range(9)), cpus=4
    )
    assert given_(made, a=8, b=1, c=1) == {"a": 6, "b": 1, "c": 1}
    assert given_(made, a=4, b=8, c=1) == {"a": 4, "b": 2, "c": 1}
    _, cuts = fit(made, {"a.v1": 7}, {})
    assert cuts[0].reason == (
        "CPUs: expected processes beyond the first ones of each model to keep at most 4 busy, not 5"
    )


@pytest.mark.parametrize(("threads", "number"), [(1, 3), (2, 2), (4, 2)])
def test_a_model_that_names_its_cpus_has_no_more_than_these(threads: int, number: int) -> None:
    made = host(model("a", cpus="2-3", threads=threads))
    numbers, cuts = fit(made, {"a.v1": 8}, {})
    assert numbers == {"a.v1": number}
    assert cuts[0].reason == (
        "CPUs: expected processes beyond the first ones to keep at most 2 busy, which the model names"
    )


@given(
    asked=st.lists(st.integers(0, 8), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 300), min_size=5, max_size=5),
    least=st.lists(st.integers(0, 2), min_size=5, max_size=5),
    running=st.lists(st.integers(0, 8), min_size=5, max_size=5),
    free_mib=st.integers(0, 3000),
    cpus=st.integers(1, 8),
)
def test_what_is_given_can_be_placed(
    asked: list[int], sizes: list[int], least: list[int], running: list[int], free_mib: int, cpus: int
) -> None:
    known = [model(f"m{n}", least=least[n], memory_mib=sizes[n]) for n in range(len(asked))]
    made = host(*known, free_mib=free_mib, cpus=cpus)
    wanted = {one.group: number for one, number in zip(known, asked, strict=True)}
    runs = {one.group: number for one, number in zip(known, running, strict=False)}
    numbers, cuts = fit(made, wanted, runs)
    again, _ = fit(made, wanted, numbers)
    assert all(min(wanted[one.group], one.min_processes) <= numbers[one.group] <= wanted[one.group] for one in known)
    assert {cut.group for cut in cuts} == {group for group in wanted if numbers[group] < wanted[group]}
    assert all(cut.reason for cut in cuts)
    # Nobody has less once what was to stop is gone.
    assert all(again[group] >= numbers[group] for group in numbers)
    lowest = Deployment(tuple(at(one, min(wanted[one.group], one.min_processes)) for one in known))
    if limits_bytes(demands(made.settings, lowest)) <= made.topology.memory_bytes:
        place(made.topology, demands(made.settings, Deployment(tuple(at(one, again[one.group]) for one in known))))


def at(one: DeployedModel, processes: int) -> DeployedModel:
    return msgspec.structs.replace(one, processes=processes)


def test_limits_are_added_up_as_placement_does() -> None:
    made = host(fixed("f", 3), free_mib=300)
    wanted = demands(made.settings, Deployment(tuple(made.known)))
    assert limits_bytes(wanted) == made.topology.memory_bytes
    place(made.topology, wanted)
    with pytest.raises(ConfigError, match="memory"):
        place(made.topology, [*wanted, *wanted[-1:]])
