"""Plans hold, move little, and say why not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fleets import MIB, fitting_fleets, fleets, make_fleet, make_host, make_model, placements
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from host.planner.check import violations
from host.planner.demand import needs_of
from host.planner.explain import changes_of, effort_of, unplaced_lines
from host.planner.model import MOST, TARGET, Fleet, Survive
from host.planner.occupancy import Kind, Occupancy
from host.planner.pack import Plan
from host.planner.plan import make_plan

PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


def counts(plan: Plan) -> dict[str, int]:
    return {model: sum(hosts.values()) for model, hosts in plan.placement.items()}


def within_target(fleet: Fleet, plan: Plan) -> bool:
    """Whether no host is busier than what is placed anew is placed for: the bound is about that."""
    return all(
        load.busy_cores <= TARGET.busy * host.cores + 1e-9
        and load.busy_cores + load.extra_cores <= TARGET.after_loss * host.cores + 1e-9
        for host, load in zip(fleet.hosts, plan.loads.values(), strict=True)
    )


# -- whatever the fleet -----------------------------------------------------------------------------------------
@PROPERTY
@given(fleets())
def test_what_is_placed_holds_and_what_is_not_has_a_reason(fleet: Fleet) -> None:
    plan = make_plan(fleet)
    if not plan.unplaced:
        assert violations(fleet, plan.placement) == []
        if within_target(fleet, plan):
            assert plan.bound.hosts <= plan.hosts_used
    for one in plan.unplaced:
        assert one.processes > 0
        assert len(one.obstacles) == len(fleet.hosts)
        assert any(one.obstacles)
        assert len(unplaced_lines(fleet, one)) > 1


@PROPERTY
@given(fitting_fleets())
def test_the_same_input_gives_the_same_plan_and_a_plan_that_holds_moves_nothing(fleet: Fleet) -> None:
    plan = make_plan(fleet)
    assert make_plan(fleet) == plan
    assume(not plan.unplaced)
    again = make_plan(fleet, plan.placement)
    assert changes_of(fleet, plan.placement, again.placement) == []


@PROPERTY
@given(st.data(), fleets())
def test_from_any_placement_a_plan_that_holds(data: st.DataObject, fleet: Fleet) -> None:
    present = data.draw(placements(fleet))
    plan = make_plan(fleet, present)
    if not plan.unplaced:
        assert violations(fleet, plan.placement) == []
    else:
        # Whatever ran, it is no obstacle to a plan that there is without it.
        assert make_plan(fleet).unplaced


@PROPERTY
@given(st.data(), fleets())
def test_rules_hold_even_of_what_is_only_placed_in_part(data: st.DataObject, fleet: Fleet) -> None:
    """Told without the checker: memory, hosts that are closed or forbidden, zones, and every host's loss."""
    plan = make_plan(fleet, data.draw(placements(fleet)))
    hosts = {host.name: host for host in fleet.hosts}
    short = {one.need.model.name for one in plan.unplaced}
    used = dict.fromkeys(hosts, 0)
    for need in plan.needs:
        model, placed = need.model, plan.placement[need.model.name]
        for name, count in placed.items():
            used[name] += count * model.memory_bytes
            assert not hosts[name].closed
            assert model.allows(hosts[name])
        if model.name in short:
            continue
        zones = {host.zone for host in fleet.hosts if model.allows(host)}
        wanted = model.zones_min or (2 if len(zones) > 1 and sum(placed.values()) > 1 else 1)
        assert len({hosts[name].zone for name in placed}) >= wanted
        assert len(placed) >= model.hosts_min
        if fleet.survive is not Survive.NONE:
            left = sum(placed.values()) - max(placed.values())
            assert model.work_cores <= MOST.after_loss * model.cpus * left + 1e-6
    assert all(used[name] <= host.memory_bytes for name, host in hosts.items())


@settings(PROPERTY, max_examples=60)
@given(fitting_fleets(), st.floats(6 / 7, 1))
def test_a_small_decrease_changes_nothing(fleet: Fleet, factor: float) -> None:
    plan = make_plan(fleet)
    assume(not plan.unplaced)
    less = with_demand(fleet, factor)
    assert make_plan(less, plan.placement).placement == plan.placement


@settings(PROPERTY, max_examples=60)
@given(fitting_fleets(hosts_max=4), st.integers(0, 6))
def test_a_host_that_closes_is_emptied_and_nothing_else_moves_without_need(fleet: Fleet, closing: int) -> None:
    plan = make_plan(fleet)
    assume(not plan.unplaced)
    name = fleet.hosts[min(closing, len(fleet.hosts) - 1)].name
    closed = replace(fleet, hosts=tuple(replace(host, closed=host.closed or host.name == name) for host in fleet.hosts))
    after = make_plan(closed, plan.placement)
    assert not any(name in placed for placed in after.placement.values())
    if not any(name in placed for placed in plan.placement.values()):
        assume(not after.unplaced)
        moved = changes_of(fleet, plan.placement, after.placement)
        # Rules count the zones of open hosts: fewer of them never ask for a move.
        assert moved == [] or [need.processes for need in after.needs] != [need.processes for need in plan.needs]


def with_demand(fleet: Fleet, factor: float) -> Fleet:
    models = [replace(model, requests_per_s=model.requests_per_s * factor) for model in fleet.models]
    return replace(fleet, models=tuple(models))


@PROPERTY
@given(st.data(), fleets(models_max=5, hosts_max=5))
def test_occupancy_is_what_a_simulation_of_every_loss_gives(data: st.DataObject, fleet: Fleet) -> None:
    needs = needs_of(fleet, {})
    at = Occupancy(fleet, needs)
    steps = st.tuples(st.integers(0, len(needs) - 1), st.integers(0, len(fleet.hosts) - 1), st.integers(-2, 3))
    for model, number, more in data.draw(st.lists(steps, max_size=25)):
        has = at.counts[model].get(number, 0)
        more = max(-has, min(more, needs[model].processes - 1 - at.placed[model]))
        if more:
            at.add(model, number, more)
    assert at.load == pytest.approx(loads(fleet, at, frozenset()))
    worst = [0.0] * len(fleet.hosts)
    for gone in losses(fleet):
        for number, load in enumerate(loads(fleet, at, gone)):
            if number not in gone:
                worst[number] = max(worst[number], load - at.load[number])
    assert at.worst == pytest.approx(worst, abs=1e-6)


def losses(fleet: Fleet) -> Iterator[frozenset[int]]:
    if fleet.survive is not Survive.NONE:
        yield from (frozenset({number}) for number in range(len(fleet.hosts)))
    if fleet.survive is Survive.ZONE:
        for zone in {host.zone for host in fleet.hosts}:
            yield frozenset(number for number, host in enumerate(fleet.hosts) if host.zone == zone)


def loads(fleet: Fleet, at: Occupancy, gone: frozenset[int]) -> list[float]:
    """Cores kept busy when hosts are gone, as if all processes that are wanted and not yet placed were elsewhere."""
    total = [0.0] * len(fleet.hosts)
    for need, placed in zip(at.needs, at.counts, strict=True):
        left = need.processes - sum(count for number, count in placed.items() if number in gone)
        for number, count in placed.items():
            total[number] += need.work_cores / left * count
    return total


# -- against all that is possible ---------------------------------------------------------------------------------
def every_way(processes: int, hosts: int) -> Iterator[tuple[int, ...]]:
    if hosts == 1:
        yield (processes,)
        return
    for here in range(processes + 1):
        for rest in every_way(processes - here, hosts - 1):
            yield (here, *rest)


def fewest_hosts(fleet: Fleet) -> int | None:
    """The fewest hosts that any placement with as many processes takes; None if there is none."""
    needs = needs_of(fleet, {})
    ways = [list(every_way(need.processes, len(fleet.hosts))) for need in needs]
    best: int | None = None
    for chosen in itertools.product(*ways):
        used = sum(any(column) for column in zip(*chosen, strict=True))
        if best is not None and used >= best:
            continue
        placement = {
            need.model.name: {host.name: count for host, count in zip(fleet.hosts, row, strict=True) if count}
            for need, row in zip(needs, chosen, strict=True)
        }
        if not violations(fleet, placement):
            best = used
    return best


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(fleets(models_max=2, hosts_max=3, busy_max=2.0))
def test_tiny_fleets_take_at_most_one_host_more_than_the_best(fleet: Fleet) -> None:
    needs = needs_of(fleet, {})
    assume(sum(need.processes for need in needs) <= 8)
    best = fewest_hosts(fleet)
    plan = make_plan(fleet)
    if best is None:
        assert plan.unplaced
    elif not plan.unplaced:
        assert best <= plan.hosts_used <= best + 1


# -- cases ------------------------------------------------------------------------------------------------------------
def test_a_model_is_in_two_zones_and_on_two_hosts() -> None:
    hosts = [make_host(f"h{number}", zone="ab"[number % 2]) for number in range(4)]
    plan = make_plan(make_fleet([make_model("churn")], hosts))
    assert counts(plan) == {"churn": 2}
    assert len({name[-1] in "02" for name in plan.placement["churn"]}) == 2


def test_a_zone_may_be_lost() -> None:
    hosts = [make_host(f"h{number}", zone="abc"[number % 3]) for number in range(6)]
    fleet = make_fleet([make_model("churn", 5.0), make_model("digits", 2.0)], hosts, Survive.ZONE)
    plan = make_plan(fleet)
    assert not plan.unplaced
    assert violations(fleet, plan.placement) == []


def test_one_host_survives_no_loss() -> None:
    plan = make_plan(make_fleet([make_model("churn", hosts_min=1)], [make_host("h1")]))
    (one,) = plan.unplaced
    assert one.processes == 1
    assert one.obstacles[0] is not None
    assert one.obstacles[0].kind is Kind.SPREAD


def test_without_survival_one_process_on_one_host_will_do() -> None:
    fleet = make_fleet([make_model("churn", hosts_min=1)], [make_host("h1")], Survive.NONE)
    assert make_plan(fleet).placement == {"churn": {"h1": 1}}


@pytest.mark.parametrize(("memory_mib", "fits"), [(1023, False), (1024, True), (1025, True)])
def test_memory_is_counted_to_the_byte(memory_mib: int, fits: bool) -> None:
    fleet = make_fleet(
        [make_model("churn"), make_model("digits")], [make_host("h1", memory_mib=memory_mib), make_host("h2")]
    )
    plan = make_plan(fleet)
    assert (not plan.unplaced) is fits
    if not fits:
        (one,) = plan.unplaced
        lines = "\n".join(unplaced_lines(fleet, one))
        assert "memory" in lines
        assert "1.0 MiB missing" in lines


def test_says_which_rule_keeps_a_model_out() -> None:
    fleet = make_fleet(
        [make_model("churn", only=frozenset({"large"}))],
        [make_host("h1", tags=frozenset({"large"}), memory_mib=100), make_host("h2")],
    )
    (one,) = make_plan(fleet).unplaced
    assert [obstacle and obstacle.kind for obstacle in one.obstacles] == [Kind.MEMORY, Kind.NOT_ALLOWED]
    lines = unplaced_lines(fleet, one)
    assert lines[0].startswith("model churn: 2 of 2 processes fit nowhere")
    assert any("412.0 MiB missing" in line for line in lines)


def test_a_closed_host_is_emptied() -> None:
    hosts = [make_host(f"h{number}") for number in range(3)]
    fleet = make_fleet([make_model("churn")], hosts)
    present = {"churn": {"h0": 1, "h1": 1}}
    closed = replace(fleet, hosts=(replace(hosts[0], closed=True), *hosts[1:]))
    assert make_plan(closed, present).placement == {"churn": {"h1": 1, "h2": 1}}


def test_large_processes_get_the_room_of_small_ones() -> None:
    """The small ones run spread over both hosts; the large one fits on each only when some of them have moved."""
    hosts = [make_host(f"h{number}", memory_mib=1000) for number in range(4)]
    small = [make_model(f"s{number}", memory_bytes=300 * MIB) for number in range(4)]
    present = {f"s{number}": {f"h{number}": 1, f"h{(number + 1) % 4}": 1} for number in range(4)}
    fleet = make_fleet([*small, make_model("large", memory_bytes=600 * MIB)], hosts)
    plan = make_plan(fleet, present)
    assert not plan.unplaced
    assert violations(fleet, plan.placement) == []
    assert effort_of(changes_of(fleet, present, plan.placement)).moved <= 3


def test_a_model_keeps_processes_until_it_could_do_with_clearly_less() -> None:
    hosts = [make_host(f"h{number}") for number in range(8)]
    fleet = make_fleet([make_model("churn", 5.0)], hosts)
    present = make_plan(fleet).placement
    assert counts(make_plan(fleet)) == {"churn": 8}
    assert counts(make_plan(make_fleet([make_model("churn", 4.3)], hosts), present)) == {"churn": 8}
    less = make_fleet([make_model("churn", 4.2)], hosts)
    assert counts(make_plan(less)) == {"churn": 6}
    assert counts(make_plan(less, present)) == {"churn": 7}


def test_what_stays_is_placed_anew_only_on_demand() -> None:
    hosts = [make_host(f"h{number}") for number in range(6)]
    fleet = make_fleet([make_model("churn"), make_model("digits")], hosts)
    present = {"churn": {"h0": 1, "h1": 1}, "digits": {"h2": 1, "h3": 1}}
    assert make_plan(fleet, present).placement == present
    assert make_plan(fleet, present, repack=True).hosts_used == 2


@pytest.mark.parametrize("demand", [1.0, 0.5, 0.25])
def test_fifty_models_on_a_hundred_hosts(demand: float) -> None:
    models = [
        make_model(f"m{number}", 200 * demand / (number + 1), memory_bytes=(256 << (number % 5)) * MIB)
        for number in range(50)
    ]
    hosts = [make_host(f"h{number}", cores=15, memory_mib=65536, zone="abc"[number % 3]) for number in range(100)]
    fleet = make_fleet(models, hosts)
    plan = make_plan(fleet)
    assert violations(fleet, plan.placement) == []
    assert plan.hosts_used <= plan.bound.hosts * 1.05
    grown = with_demand(fleet, 1.01)
    after = make_plan(grown, plan.placement)
    assert violations(grown, after.placement) == []
    assert effort_of(changes_of(grown, plan.placement, after.placement)).moved < 0.02 * sum(counts(plan).values())


def test_hosts_with_much_memory_get_the_processes_that_take_much() -> None:
    """Cores and memory of all hosts suffice only if neither lies idle where the other is used up."""
    hosts = [
        make_host(f"{kind}{number}", cores=16, memory_mib=memory_mib, zone="ab"[number % 2])
        for kind, memory_mib in (("lean", 16 * 1024), ("rich", 160 * 1024))
        for number in range(6)
    ]
    models = [
        *(make_model(f"large{number}", 10.0, memory_bytes=9 * 1024 * MIB) for number in range(3)),
        *(make_model(f"small{number}", 10.0, memory_bytes=512 * MIB) for number in range(8)),
    ]
    fleet = make_fleet(models, hosts)
    plan = make_plan(fleet)
    assert violations(fleet, plan.placement) == []
    assert plan.hosts_used <= plan.bound.hosts + 1


def test_a_fleet_that_is_much_too_small_is_told_soon() -> None:
    """What is tried to make room is limited, or it would take minutes."""
    models = [make_model(f"m{number}", 5.0, memory_bytes=4096 * MIB) for number in range(60)]
    fleet = make_fleet(models, [make_host(f"h{number}", zone="abc"[number % 3]) for number in range(30)])
    plan = make_plan(fleet)
    assert sum(one.processes for one in plan.unplaced) > 100
    assert plan.bound.hosts == 31
