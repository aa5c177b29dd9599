"""Placement: cores while they last, then a pool; nothing twice, nothing lost, nobody moved by a neighbour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.placement import (
    LIGHT_WEIGHT,
    POOL_PRESSURE,
    Cpu,
    Demand,
    Grant,
    Topology,
    cpu_set_text,
    parse_cpu_set,
    place,
)
from host.protocol.errors import ConfigError

MIB = 1 << 20


def topology(cores: int = 4, smt: int = 1, nodes: int = 1, memory_bytes: int = 1 << 40) -> Topology:
    """A host as Linux numbers it: the second thread of every core behind the first ones of all."""
    return Topology(
        cpus=tuple(
            Cpu(number=thread * cores + core, core=core, node=core * nodes // cores)
            for thread in range(smt)
            for core in range(cores)
        ),
        memory_bytes=memory_bytes,
    )


def slots(name: str, count: int, cpus: int | frozenset[int] = 1, memory_bytes: int = 0) -> list[Demand]:
    return [Demand(name=f"{name}:{slot}", cpus=cpus, memory_bytes=memory_bytes) for slot in range(count)]


def shown(grants: dict[str, Grant]) -> dict[str, str]:
    """`!` marks what is exclusive."""
    return {name: cpu_set_text(grant.cpus) + ("!" if grant.exclusive else "") for name, grant in grants.items()}


# -- cases ----------------------------------------------------------------------------------------------------
def test_cores_are_exclusive_while_they_last() -> None:
    grants = place(topology(4), [*slots("front", 1), *slots("a", 2), *slots("b", 1)])
    assert shown(grants) == {"front:0": "0!", "a:0": "1!", "a:1": "2!", "b:0": "3!"}


def test_those_that_came_last_share_the_smallest_pool_that_is_not_too_full() -> None:
    grants = place(topology(4), [*slots("front", 1), *slots("a", 4)])
    assert shown(grants) == {"front:0": "0!", "a:0": "1!", "a:1": "2!", "a:2": "3", "a:3": "3"}


def test_where_any_pool_is_too_full_all_share_everything() -> None:
    grants = place(topology(2), [*slots("front", 1), *slots("a", 9)])
    assert set(shown(grants).values()) == {"0-1"}


def test_smt_siblings_stay_together() -> None:
    grants = place(topology(4, smt=2), [*slots("a", 1), *slots("b", 1, cpus=3)])
    assert shown(grants) == {"a:0": "0,4!", "b:0": "1-2,5-6!"}


def test_a_process_stays_on_one_node_and_nodes_are_filled() -> None:
    host = topology(8, nodes=2)
    grants = place(host, [*slots("a", 1, cpus=3), *slots("b", 1, cpus=2), *slots("c", 1, cpus=1)])
    assert shown(grants) == {"a:0": "0-2!", "b:0": "4-5!", "c:0": "3!"}


def test_a_process_larger_than_any_node_spans_nodes() -> None:
    assert shown(place(topology(8, nodes=2), slots("a", 1, cpus=5))) == {"a:0": "0-4!"}


def test_named_cpus_are_kept_from_others() -> None:
    grants = place(topology(4), [*slots("a", 2), *slots("b", 1, cpus=frozenset({0, 3}))])
    assert shown(grants) == {"a:0": "1!", "a:1": "2!", "b:0": "0,3!"}


def test_cpus_named_twice_are_shared_by_those_who_named_them() -> None:
    grants = place(topology(4), [*slots("a", 2, cpus=frozenset({2, 3})), *slots("b", 1)])
    assert shown(grants) == {"a:0": "2-3", "a:1": "2-3", "b:0": "0!"}


def test_if_all_cpus_are_named_the_others_run_there_too() -> None:
    grants = place(topology(2), [*slots("a", 1, cpus=frozenset({0, 1})), *slots("b", 1)])
    assert shown(grants) == {"a:0": "0-1", "b:0": "0-1"}


def test_a_light_process_is_in_the_pool_or_anywhere_with_little_weight() -> None:
    light = Demand(name="control", light=True)
    grants = place(topology(2), [*slots("a", 1), light])
    assert (shown(grants)["control"], grants["control"].weight) == ("1", LIGHT_WEIGHT)
    assert shown(place(topology(2), [*slots("a", 2), light])) == {"a:0": "0!", "a:1": "1!", "control": "0-1"}


def test_weight_follows_the_cpus_that_are_wanted() -> None:
    grants = place(topology(2), [*slots("a", 3), *slots("b", 1, cpus=2)])
    assert (grants["a:0"].weight, grants["b:0"].weight) == (100, 200)


@pytest.mark.parametrize(
    ("host", "demands"),
    [
        (topology(4, smt=2, nodes=2), [*slots("a", 2, cpus=3), *slots("b", 1, cpus=2), *slots("c", 2, cpus=2)]),
        (topology(6, smt=2, nodes=2), [*slots("a", 3, cpus=3), *slots("b", 3, cpus=2)]),
    ],
)
def test_what_there_is_room_for_is_given_at_once(host: Topology, demands: list[Demand]) -> None:
    """Not when it is placed again, with those first that have their cores by then."""
    grants = place(host, demands)
    assert place(host, demands, grants) == grants


def test_grants_are_kept_when_a_model_in_front_goes() -> None:
    before = place(topology(4), [*slots("a", 1), *slots("b", 1), *slots("c", 1)])
    after = place(topology(4), [*slots("c", 1), *slots("d", 2)], before)
    assert shown(after) == {"c:0": "2!", "d:0": "0!", "d:1": "1!"}


# -- refusals ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cpus", [0, 5, frozenset({4}), frozenset({0, 9}), frozenset[int]()])
def test_cpus_that_the_host_has_not_are_refused(cpus: int | frozenset[int]) -> None:
    with pytest.raises(ConfigError, match=r"a:0: cpus: expected .*, received"):
        place(topology(4), slots("a", 1, cpus=cpus))


@pytest.mark.parametrize("over_bytes", [0, 1])
def test_memory_limits_must_fit_into_the_host(over_bytes: int) -> None:
    demands = [*slots("a", 2, memory_bytes=100 * MIB), *slots("b", 1, memory_bytes=50 * MIB + over_bytes)]
    host = topology(4, memory_bytes=250 * MIB)
    if not over_bytes:
        assert place(host, demands)["a:1"].memory_bytes == 100 * MIB
        return
    with pytest.raises(ConfigError, match=r"at most 250 MiB in all, received a 2 x 100 MiB \+ b 1 x 50 MiB = 250 MiB"):
        place(host, demands)


# -- properties -------------------------------------------------------------------------------------------------
@st.composite
def hosts(draw: st.DrawFn) -> Topology:
    nodes = draw(st.integers(1, 2))
    return topology(cores=nodes * draw(st.integers(1, 6)), smt=draw(st.integers(1, 2)), nodes=nodes)


@st.composite
def demanded(draw: st.DrawFn, host: Topology, names: str) -> list[Demand]:
    cpus = st.integers(1, min(4, len(host.cpus))) | st.frozensets(st.sampled_from(sorted(host.numbers)), min_size=1)
    made: list[Demand] = []
    for name in names:
        wanted = draw(cpus)
        made += [
            Demand(name=f"{name}:{slot}", cpus=wanted, light=isinstance(wanted, int) and draw(st.booleans()))
            for slot in range(draw(st.integers(0, 4)))
        ]
    return made


@given(st.data())
def test_nothing_is_lost_or_given_twice_and_no_pool_is_too_full_for_nothing(data: st.DataObject) -> None:
    host = data.draw(hosts())
    demands = data.draw(demanded(host, "abc"))
    grants = place(host, demands)
    assert list(grants) == [demand.name for demand in demands]
    owners: dict[int, str] = {}
    for demand in demands:
        grant = grants[demand.name]
        assert grant.cpus
        assert grant.cpus <= host.numbers
        if isinstance(demand.cpus, frozenset):
            assert grant.cpus == demand.cpus
        elif grant.exclusive:
            assert len(grant.cpus) >= demand.cpus
        if grant.exclusive:
            for cpu in grant.cpus:
                assert owners.setdefault(cpu, demand.name) == demand.name
    lights = {demand.name for demand in demands if demand.light}
    for name, grant in grants.items():
        if not grant.exclusive and name not in lights:
            assert not grant.cpus & owners.keys()
    pooled = [d for d in demands if isinstance(d.cpus, int) and not d.light and not grants[d.name].exclusive]
    alone = [d for d in demands if isinstance(d.cpus, int) and not d.light and grants[d.name].exclusive]
    if pooled and alone:
        pool = grants[pooled[0].name].cpus
        assert sum(d.cpus for d in pooled if isinstance(d.cpus, int)) <= POOL_PRESSURE * len(pool)


@given(st.data())
def test_a_change_of_one_model_moves_no_other_that_stays_exclusive(data: st.DataObject) -> None:
    host = data.draw(hosts())
    demands = data.draw(demanded(host, "abc"))
    before = place(host, demands)
    changed = data.draw(st.sampled_from("abc"))
    others = [demand for demand in demands if not demand.name.startswith(changed)]
    position = data.draw(st.integers(0, len(others)))
    now = [*others[:position], *data.draw(demanded(host, changed)), *others[position:]]
    after = place(host, now, before)
    named = frozenset().union(*(d.cpus for d in now if isinstance(d.cpus, frozenset)))
    for demand in others:
        was, is_now = before[demand.name], after[demand.name]
        # Cores that the changed model names go to it.
        if was.exclusive and is_now.exclusive and not was.cpus & named:
            assert is_now.cpus == was.cpus


@given(st.data())
def test_placing_again_changes_nothing(data: st.DataObject) -> None:
    host = data.draw(hosts())
    demands = data.draw(demanded(host, "abc"))
    grants = place(host, demands)
    assert place(host, demands, grants) == grants


# -- sets of CPUs as text ---------------------------------------------------------------------------------------
@given(st.frozensets(st.integers(0, 300)))
def test_cpu_sets_there_and_back(cpus: frozenset[int]) -> None:
    assert parse_cpu_set(cpu_set_text(cpus)) == cpus


@pytest.mark.parametrize("text", ["3-1", "a", "1,,2", "1-", "-"])
def test_wrong_cpu_sets_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpu_set(text)
