"""How many processes a model needs, and how few hosts could do."""

from __future__ import annotations

import pytest
from fleets import MIB, make_fleet, make_host, make_model

from host.planner.demand import hosts_bound, left_at_least, needs_of
from host.planner.model import Survive

ZONED = [make_host(f"h{number}", zone="abc"[number % 3]) for number in range(9)]


@pytest.mark.parametrize(
    ("busy_cores", "survive", "processes"),
    [
        (0.0, Survive.NONE, 1),
        (0.0, Survive.HOST, 2),
        (0.7, Survive.NONE, 1),
        (0.71, Survive.NONE, 2),
        (0.85, Survive.HOST, 2),
        (0.86, Survive.HOST, 3),
        (7.0, Survive.NONE, 10),
        (7.0, Survive.HOST, 11),
        (0.85, Survive.ZONE, 2),
        (7.0, Survive.ZONE, 14),
    ],
)
def test_processes_for_the_target_and_for_a_loss(busy_cores: float, survive: Survive, processes: int) -> None:
    model = make_model("churn", busy_cores, hosts_min=1)
    (need,) = needs_of(make_fleet([model], ZONED, survive), {})
    assert need.processes == processes
    assert need.load_cores == pytest.approx(busy_cores / processes)


def test_a_process_of_several_cores_carries_more() -> None:
    (need,) = needs_of(make_fleet([make_model("churn", 7.0, cpus=4)], ZONED, Survive.NONE), {})
    assert need.processes == 3
    assert left_at_least(need.model, 0.9) == 2


def test_hosts_and_zones_ask_for_processes() -> None:
    (need,) = needs_of(make_fleet([make_model("churn", hosts_min=5)], ZONED), {})
    assert (need.processes, need.why) == (5, "on 5 hosts at least")
    (need,) = needs_of(make_fleet([make_model("churn", zones_min=3)], ZONED), {})
    assert (need.processes, need.zones_min) == (3, 3)


def test_two_zones_unless_there_is_only_one() -> None:
    assert needs_of(make_fleet([make_model("churn")], ZONED), {})[0].zones_min == 2
    assert needs_of(make_fleet([make_model("churn")], [make_host("h1"), make_host("h2")]), {})[0].zones_min == 1


def test_bound_by_cores_memory_and_one_model() -> None:
    hosts = [make_host(f"h{number}", cores=10, memory_mib=1024) for number in range(10)]
    cores = make_fleet([make_model("churn", 21.0, memory_bytes=MIB)], hosts, Survive.NONE)
    assert hosts_bound(cores, needs_of(cores, {})).hosts == 3
    more = make_fleet([make_model("churn", 21.1, memory_bytes=MIB)], hosts, Survive.NONE)
    assert hosts_bound(more, needs_of(more, {})).hosts == 4
    memory = make_fleet([make_model(f"m{number}") for number in range(3)], hosts)
    assert (hosts_bound(memory, needs_of(memory, {})).hosts, hosts_bound(memory, needs_of(memory, {})).why) == (
        3,
        "memory",
    )
    one = make_fleet([make_model("churn", hosts_min=7, memory_bytes=MIB)], hosts)
    assert hosts_bound(one, needs_of(one, {})).hosts == 7


def test_bound_counts_the_hosts_that_a_group_may_use() -> None:
    hosts = [make_host("big", memory_mib=65536), *(make_host(f"h{number}", memory_mib=1024) for number in range(8))]
    model = make_model("churn", 5.5, never=frozenset({"big"}))
    fleet = make_fleet([model], hosts)
    (need,) = needs_of(fleet, {})
    assert hosts_bound(fleet, [need]).hosts == -(-need.processes // 2)


def test_bound_counts_what_is_left_when_a_zone_is_lost() -> None:
    """30 cores at 85 % take five hosts of 8 outside of each of three zones: fifteen, every host counted twice."""
    fleet = make_fleet([make_model("churn", 30.0, memory_bytes=MIB)], ZONED, Survive.ZONE)
    bound = hosts_bound(fleet, needs_of(fleet, {}))
    assert (bound.hosts, bound.why) == (8, "cores, with a zone lost")
