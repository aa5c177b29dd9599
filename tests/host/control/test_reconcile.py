"""What to do next: every row of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import pytest
from msgspec.structs import replace
from reconciling import NOTHING, NOW, PACE, STARTUP_S, V1, V2, died, version

from host.config.deployment import DeployedModel, Deployment, Restart
from host.control.compare import plans_of
from host.control.reconcile import (
    START_MARGIN_S,
    Action,
    Actual,
    Declare,
    Fail,
    Failure,
    FrontActual,
    Memory,
    Remove,
    Route,
    SlotActual,
    Start,
    Stop,
    begin,
    decide,
    noted,
    starting_max,
    with_scale,
)
from host.control.status import ExitStatus
from host.placement import Cpu, Topology
from host.supervisor import ProcessState

READY = SlotActual(state=ProcessState.RUNNING, ready=True, started_at=900.0)
LOADING = SlotActual(state=ProcessState.STARTING, started_at=NOW - 1)
FRESH = SlotActual(state=ProcessState.STOPPED)
STOPPED = SlotActual(state=ProcessState.STOPPED, started_at=900.0)
STOPPING = SlotActual(state=ProcessState.STOPPING, started_at=900.0)
FATAL = SlotActual(state=ProcessState.FATAL, started_at=900.0, spawn_error="no such file")
BACKOFF = SlotActual(state=ProcessState.BACKOFF, started_at=NOW - 1)


OTHER = version("1", name="other")


def there(
    slots: Mapping[str, Sequence[SlotActual]], *fronts: FrontActual, exits: Mapping[str, ExitStatus] | None = None
) -> Actual:
    numbered = {group: dict(enumerate(its)) for group, its in slots.items()}
    return Actual(slots=numbered, fronts=fronts, exits=exits or {})


def remembered(
    *known: DeployedModel,
    begun: Mapping[str, float] | None = None,
    unrouted: Mapping[str, float] | None = None,
    failed: Mapping[str, Failure] | None = None,
    started: Iterable[str] = (),
) -> Memory:
    return Memory(
        known={model.group: model for model in known},
        begun=dict(begun or {}),
        unrouted=dict(unrouted or {}),
        failed=dict(failed or {}),
        started=frozenset(started),
    )


def decided(
    desired: Sequence[DeployedModel], routed: Sequence[DeployedModel], actual: Actual, memory: Memory, now: float = NOW
) -> list[Action]:
    return decide(Deployment(tuple(desired)), Deployment(tuple(routed), generation=7), actual, memory, now, PACE)


def routes(actions: Iterable[Action]) -> list[tuple[DeployedModel, ...]]:
    return [action.routing.models for action in actions if isinstance(action, Route)]


FAILURE = Failure(at=NOW, program="churn.v2:0", reason="exit code 1", log=("no such weights",))
BEGUN = {"churn.v2": NOW - 5}


def late(now: float, program: str = "churn.v2:0") -> Failure:
    return Failure(at=now, program=program, reason="not ready 75 s after its start")


# -- it is declared -------------------------------------------------------------------------------------------
def test_a_version_that_supervisord_does_not_know_is_declared() -> None:
    assert decided([V2], [], there({}), remembered()) == [Declare(V2)]


def test_what_is_as_it_should_be_is_left_alone() -> None:
    assert decided([V1], [V1], there({"churn.v1": [READY]}), remembered(V1)) == []


def test_a_version_that_lost_its_slots_is_declared_again() -> None:
    assert decided([V1], [V1], there({}), remembered(V1)) == [Declare(V1)]


def test_a_version_with_more_slots_than_it_has_is_declared_with_them() -> None:
    more = version("1", 1, slots=3)
    actions = decided([more], [V1], there({"churn.v1": [READY]}), remembered(V1))
    assert actions[1:] == [Declare(more)]
    assert decided([more], [more], there({"churn.v1": [READY, FRESH, FRESH]}), remembered(more)) == []


def test_a_new_generation_begins_anew_with_a_version_that_is_not_routed() -> None:
    actual, memory = there({"churn.v2": [LOADING]}), remembered(V2)
    assert decided([V2], [], actual, memory) == [Declare(V2)]
    assert noted(memory, Declare(V2), NOTHING, NOW).begun == {"churn.v2": NOW}


def test_a_version_begins_once_and_one_that_is_served_does_not() -> None:
    memory = remembered(begun=BEGUN)
    assert noted(memory, Declare(V2), NOTHING, NOW).begun == BEGUN
    assert noted(remembered(), Declare(V1), Deployment((V1,)), NOW).begun == {}
    assert noted(remembered(), Declare(V1), Deployment((V1,)), NOW).known == {"churn.v1": V1}


# -- it is started --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("starting", "started"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_starts_are_staggered(starting: int, started: int) -> None:
    model = version("2", 6)
    slots = [LOADING] * starting + [FRESH] * (6 - starting)
    actions = decided([model], [], there({"churn.v2": slots}), remembered(model, begun=BEGUN))
    assert actions == [Start(f"churn.v2:{starting + number}") for number in range(started)]


def test_all_models_together_start_a_few_at_a_time_and_what_is_served_comes_first() -> None:
    served, fresh = version("1", 2, name="other"), version("2", 2)
    actual = there({"churn.v2": [FRESH, FRESH], "other.v1": [READY, FRESH]})
    actions = decided([fresh, served], [served], actual, remembered(fresh, served, begun=BEGUN))
    assert [action for action in actions if isinstance(action, Start)] == [Start("other.v1:1"), Start("churn.v2:0")]


def test_one_that_takes_too_long_keeps_nobody_from_starting() -> None:
    late = SlotActual(state=ProcessState.RUNNING, started_at=NOW - STARTUP_S)
    in_time = SlotActual(state=ProcessState.RUNNING, started_at=NOW - STARTUP_S + 1)
    model = version("2", 4)
    memory = remembered(model, begun=BEGUN)
    assert decided([model], [], there({"churn.v2": [late, late, FRESH, FRESH]}), memory) == [
        Start("churn.v2:2"),
        Start("churn.v2:3"),
    ]
    assert decided([model], [], there({"churn.v2": [in_time, in_time, FRESH, FRESH]}), memory) == []


def test_what_an_operator_stopped_stays_so() -> None:
    model = version("1", 2)
    actual = there({"churn.v1": [READY, STOPPED]})
    assert decided([model], [model], actual, remembered(model, started=["churn.v1:1"])) == []
    assert decided([model], [model], actual, remembered(model)) == [Start("churn.v1:1")]


@pytest.mark.parametrize(
    ("slots", "is_routed"),
    [
        ([STOPPED, STOPPED], True),
        ([READY, STOPPED], True),
        ([STOPPED, BACKOFF], False),  # it may still come
        ([FATAL, FATAL], False),  # nobody meant that: what leaves goes on meanwhile
        ([STOPPED, FATAL], False),
    ],
)
def test_a_change_does_not_wait_for_a_served_version_that_an_operator_stopped(
    slots: Sequence[SlotActual], is_routed: bool
) -> None:
    stays, leaves, comes = version("2", 2), version("3"), version("1")
    actual = there({"churn.v1": [READY], "churn.v2": slots, "churn.v3": [READY]})
    memory = remembered(stays, leaves, comes, begun={"churn.v1": NOW - 5}, started=stays.programs())
    actions = decided([comes, stays], [stays, leaves], actual, memory)
    assert routes(actions) == ([(comes, stays)] if is_routed else [])


def test_a_new_supervisord_starts_what_the_old_one_had() -> None:
    model = version("1", 2)
    memory = remembered(model, started=["churn.v1:0", "churn.v1:1"])
    assert decided([model], [model], there({"churn.v1": [FRESH, FRESH]}), memory) == [
        Start("churn.v1:0"),
        Start("churn.v1:1"),
    ]


@pytest.mark.parametrize("state", [ProcessState.EXITED, ProcessState.BACKOFF, ProcessState.FATAL, ProcessState.UNKNOWN])
def test_what_supervisord_restarts_or_gave_up_is_not_started(state: ProcessState) -> None:
    actual = there({"churn.v1": [SlotActual(state=state, started_at=900.0)]})
    assert decided([V1], [V1], actual, remembered(V1, started=["churn.v1:0"])) == []


def test_a_new_generation_starts_again_what_supervisord_gave_up() -> None:
    actual, memory = there({"churn.v1": [FATAL]}), remembered(V1, started=["churn.v1:0"])
    memory = begin(memory, Deployment((V1,), generation=1), Deployment((V1,)), actual)
    assert decided([V1], [V1], actual, memory) == [Start("churn.v1:0")]


def test_slots_beyond_the_processes_are_not_started() -> None:
    model = version("1", 1, slots=3)
    assert decided([model], [model], there({"churn.v1": [FRESH] * 3}), remembered(model)) == [Start("churn.v1:0")]


def test_as_many_load_at_a_time_as_there_are_cpus_and_always_two() -> None:
    def cpus(count: int) -> Topology:
        found = tuple(Cpu(number=number, core=number, node=0) for number in range(count))
        return Topology(cpus=found, memory_bytes=1)

    assert [starting_max(cpus(count)) for count in (1, 2, 3, 64)] == [2, 2, 3, 64]


# -- it fails -------------------------------------------------------------------------------------------------
def test_a_version_whose_process_died_is_given_up_and_stopped_and_the_old_one_stays_routed() -> None:
    model = version("2", 2)
    actual = there({"churn.v1": [READY], "churn.v2": [BACKOFF, READY]}, exits={"churn.v2:0": died()})
    assert decided([model], [V1], actual, remembered(V1, model, begun=BEGUN)) == [
        Fail("churn.v2", FAILURE),
        Stop("churn.v2:0"),
        Stop("churn.v2:1"),
    ]


def test_a_version_that_died_is_not_routed_although_it_is_ready_again() -> None:
    actual = there({"churn.v1": [READY], "churn.v2": [READY]}, exits={"churn.v2:0": died()})
    assert decided([V2], [V1], actual, remembered(V1, V2, begun=BEGUN)) == [
        Fail("churn.v2", FAILURE),
        Stop("churn.v2:0"),
    ]


def test_a_version_that_was_given_up_is_removed() -> None:
    actual = there({"churn.v1": [READY], "churn.v2": [STOPPED]}, exits={"churn.v2:0": died()})
    memory = remembered(V1, V2, begun=BEGUN, failed={"churn.v2": FAILURE})
    assert decided([V2], [V1], actual, memory) == [Remove("churn.v2")]
    left = noted(memory, Remove("churn.v2"), NOTHING, NOW)
    assert (left.known, left.begun, left.failed) == ({"churn.v1": V1}, {}, {"churn.v2": FAILURE})
    assert decided([V2], [V1], there({"churn.v1": [READY]}), left) == []


def test_what_died_before_a_version_began_is_not_held_against_it() -> None:
    memory = remembered(V2, begun=BEGUN)
    for at, is_failure in ((NOW - 5.1, False), (NOW - 5, True)):
        actual = there({"churn.v2": [LOADING]}, exits={"churn.v2:0": died(at)})
        assert bool(decided([V2], [], actual, memory)) is is_failure


def test_a_slot_that_supervisord_gave_up_fails_the_version() -> None:
    fatal = SlotActual(state=ProcessState.FATAL, started_at=NOW - 1, spawn_error="no such file")
    memory = remembered(V2, begun=BEGUN, started=["churn.v2:0"])
    assert decided([V2], [], there({"churn.v2": [fatal]}), memory) == [
        Fail("churn.v2", Failure(at=NOW, program="churn.v2:0", reason="no such file")),
        Remove("churn.v2"),
    ]


@pytest.mark.parametrize(("past_s", "is_late"), [(-1.0, False), (0.0, False), (0.1, True)])
def test_a_process_has_startup_s_and_a_margin_from_its_start(past_s: float, is_late: bool) -> None:
    slow = SlotActual(state=ProcessState.RUNNING, started_at=NOW)
    now = NOW + STARTUP_S + START_MARGIN_S + past_s
    actions = decided([V2], [], there({"churn.v2": [slow]}), remembered(V2, begun=BEGUN), now)
    assert actions[:1] == ([Fail("churn.v2", late(now))] if is_late else [])


def test_a_process_that_loads_on_through_a_change_has_its_limit_too() -> None:
    """With a new generation its version begins anew."""
    slow = SlotActual(state=ProcessState.RUNNING, started_at=NOW - 10)
    now = NOW + STARTUP_S + START_MARGIN_S + 1
    actions = decided([V2], [], there({"churn.v2": [slow]}), remembered(V2, begun={"churn.v2": NOW}), now)
    assert Fail("churn.v2", late(now)) in actions


def test_a_process_that_starts_in_the_second_of_its_declaration_has_its_limit_too() -> None:
    """supervisord knows its start to the second, and control the declaration to the microsecond."""
    slow = SlotActual(state=ProcessState.RUNNING, started_at=NOW)
    now = NOW + STARTUP_S + START_MARGIN_S + 1
    actions = decided([V2], [], there({"churn.v2": [slow]}), remembered(V2, begun={"churn.v2": NOW + 0.9}), now)
    assert Fail("churn.v2", late(now)) in actions


def test_a_version_that_is_ready_waits_for_another_that_takes_longer() -> None:
    third = version("3", 3)
    now = NOW + STARTUP_S + START_MARGIN_S + 1
    loading = SlotActual(state=ProcessState.RUNNING, started_at=now - 1)
    actual = there({"churn.v2": [READY], "churn.v3": [READY, READY, loading]})
    memory = remembered(V2, third, begun={"churn.v2": NOW, "churn.v3": NOW})
    assert decided([V2, third], [], actual, memory, now) == []


def test_a_version_of_which_an_operator_stopped_a_process_does_not_wait_for_ever() -> None:
    """It would be called starting, and `apply --wait` would wait, until somebody makes another change."""
    model = version("2", 2)
    actual = there({"churn.v2": [READY, STOPPED]})
    memory = remembered(model, begun=BEGUN, started=["churn.v2:0", "churn.v2:1"])
    actions = decided([model], [], actual, memory, NOW + 3600)
    assert any(isinstance(action, Fail) for action in actions)


def test_a_served_version_does_not_fail() -> None:
    actual = there({"churn.v1": [FATAL]}, exits={"churn.v1:0": died()})
    memory = remembered(V1, begun={"churn.v1": 0.0}, started=["churn.v1:0"])
    assert decided([V1], [V1], actual, memory) == []


def test_a_failure_fails_the_change_of_its_model_and_of_no_other() -> None:
    third = version("3")
    actual = there(
        {"churn.v1": [READY], "churn.v2": [BACKOFF], "churn.v3": [READY], "other.v1": [READY]},
        exits={"churn.v2:0": died()},
    )
    memory = remembered(V1, V2, third, OTHER, begun=BEGUN | {"churn.v3": NOW - 5, "other.v1": NOW - 5})
    actions = decided([V2, third, OTHER], [V1], actual, memory)
    assert routes(actions) == [(V1, OTHER)]
    assert actions[2:] == [Stop("churn.v2:0"), Stop("churn.v3:0")]


def test_a_version_that_stops_because_another_one_failed_has_not_failed_itself() -> None:
    third = version("3")
    memory = remembered(V1, third, begun={"churn.v3": NOW - 101}, failed={"churn.v2": FAILURE})
    stopping = SlotActual(state=ProcessState.STOPPING, started_at=NOW - 100)
    assert decided([V2, third], [V1], there({"churn.v1": [READY], "churn.v3": [stopping]}), memory) == []


def test_with_a_failure_what_was_served_gets_back_the_processes_it_had() -> None:
    before, after = version("1", 1), version("1", 2)
    actual = there({"churn.v1": [READY, READY], "churn.v2": [BACKOFF]}, exits={"churn.v2:0": died()})
    actions = decided([after, V2], [before], actual, remembered(after, V2, begun=BEGUN))
    assert actions[1:] == [Declare(before), Stop("churn.v1:1"), Stop("churn.v2:0")]


def test_a_new_generation_tries_again_what_failed() -> None:
    memory = remembered(V1, V2, begun=BEGUN, failed={"churn.v2": FAILURE})
    actual = there({"churn.v1": [READY]})
    assert decided([V2], [V1], actual, memory) == [Remove("churn.v2")]
    again = begin(memory, Deployment((V2,), generation=1), Deployment((V1,)), actual)
    assert (again.generation, again.failed, again.begun) == (1, {}, {})
    assert decided([V2], [V1], actual, again) == [Declare(V2)]


# -- it is routed ---------------------------------------------------------------------------------------------
def test_a_version_is_routed_when_all_of_its_processes_are_ready() -> None:
    model = version("2", 2)
    memory = remembered(V1, model, begun=BEGUN)
    some = there({"churn.v1": [READY], "churn.v2": [READY, LOADING]})
    assert decided([model], [V1], some, memory) == []
    every = there({"churn.v1": [READY], "churn.v2": [READY, READY]})
    assert decided([model], [V1], every, memory) == [Route(Deployment((model,), generation=8))]


def test_what_is_routed_has_no_beginning_and_what_was_has_an_end() -> None:
    memory = remembered(V1, V2, begun=BEGUN, unrouted={"churn.v2": 1.0, "other.v1": 2.0})
    after = noted(memory, Route(Deployment((V2,))), Deployment((V1,)), NOW)
    assert (after.begun, after.unrouted) == ({}, {"churn.v1": NOW, "other.v1": 2.0})


def test_all_versions_of_a_model_are_routed_together() -> None:
    third = version("3")
    memory = remembered(V1, V2, third, begun=BEGUN | {"churn.v3": NOW - 5})
    one = there({"churn.v1": [READY], "churn.v2": [READY], "churn.v3": [LOADING]})
    assert decided([V2, third], [V1], one, memory) == []
    both = there({"churn.v1": [READY], "churn.v2": [READY], "churn.v3": [READY]})
    assert routes(decided([V2, third], [V1], both, memory)) == [(V2, third)]


def test_models_are_routed_each_for_itself() -> None:
    actual = there({"churn.v1": [READY], "churn.v2": [LOADING], "other.v1": [READY]})
    memory = remembered(V1, V2, OTHER, begun=BEGUN | {"other.v1": NOW - 5})
    assert routes(decided([V2, OTHER], [V1], actual, memory)) == [(V1, OTHER)]


def test_a_served_version_with_other_numbers_is_routed_at_once() -> None:
    more = version("1", 2)
    actions = decided([more], [V1], there({"churn.v1": [READY]}), remembered(V1))
    assert actions == [Route(Deployment((more,), generation=8)), Declare(more)]


def test_draining_is_told_to_the_fronts() -> None:
    desired, routed = Deployment((V1,), generation=3, draining=True), Deployment((V1,), generation=7)
    actual = there({"churn.v1": [READY]})
    assert decide(desired, routed, actual, remembered(V1), NOW, PACE) == [
        Route(Deployment((V1,), generation=8, draining=True))
    ]
    told = replace(routed, draining=True)
    assert decide(desired, told, actual, remembered(V1), NOW, PACE) == []
    assert decide(replace(desired, draining=False), told, actual, remembered(V1), NOW, PACE) == [
        Route(Deployment((V1,), generation=8))
    ]


# -- it waits for its successors, and leaves ------------------------------------------------------------------
def test_what_is_served_is_kept_as_it_is_until_its_successor_is_ready() -> None:
    old = version("1", 2)
    actual = there({"churn.v1": [READY, FRESH], "churn.v2": [LOADING]})
    assert decided([V2], [old], actual, remembered(old, V2, begun=BEGUN)) == [Start("churn.v1:1")]


def test_a_removed_model_leaves_the_routing_at_once() -> None:
    actual = there({"churn.v1": [READY], "other.v1": [READY]})
    memory = remembered(V1, OTHER)
    assert decided([V1], [V1, OTHER], actual, memory) == [Route(Deployment((V1,), generation=8))]
    assert noted(memory, Route(Deployment((V1,))), Deployment((V1, OTHER)), NOW).unrouted == {"other.v1": NOW}


@pytest.mark.parametrize(
    ("front", "waits"),
    [
        (FrontActual(generation=7), False),
        (FrontActual(generation=8), False),
        (FrontActual(generation=7, calls={"churn.v2": 5}), False),
        (FrontActual(generation=7, calls={"churn.v1": 0}), False),
        (FrontActual(generation=7, calls={"churn.v1": 1}), True),
        (FrontActual(generation=6), True),
        (FrontActual(generation=None), True),
    ],
)
def test_a_version_leaves_when_no_front_has_calls_of_it_or_gets_more(front: FrontActual, waits: bool) -> None:
    actual = there({"churn.v1": [READY], "churn.v2": [READY]}, FrontActual(generation=7), front)
    actions = decided([V2], [V2], actual, remembered(V1, V2, unrouted={"churn.v1": NOW - 1}))
    assert actions == ([] if waits else [Stop("churn.v1:0")])


@pytest.mark.parametrize(("unrouted_s", "waits"), [(0.0, True), (29.9, True), (30.0, False), (31.0, False)])
def test_nobody_waits_longer_than_the_drain(unrouted_s: float, waits: bool) -> None:
    busy = FrontActual(generation=7, calls={"churn.v1": 1})
    actual = there({"churn.v1": [READY], "churn.v2": [READY]}, busy)
    actions = decided([V2], [V2], actual, remembered(V1, V2, unrouted={"churn.v1": NOW - unrouted_s}))
    assert actions == ([] if waits else [Stop("churn.v1:0")])


def test_a_version_that_never_was_routed_leaves_at_once() -> None:
    actual = there({"churn.v1": [READY], "churn.v2": [LOADING]}, FrontActual(generation=None))
    assert decided([V1], [V1], actual, remembered(V1, V2, begun=BEGUN)) == [Stop("churn.v2:0")]


def test_a_version_is_removed_when_the_last_of_its_slots_has_stopped() -> None:
    memory = remembered(V1, V2, unrouted={"churn.v1": NOW - 1}, started=["churn.v1:0", "churn.v2:0"])
    one_left = there({"churn.v1": [STOPPED, STOPPING], "churn.v2": [READY]})
    assert decided([V2], [V2], one_left, memory) == []
    none = there({"churn.v1": [STOPPED, FATAL], "churn.v2": [READY]})
    assert decided([V2], [V2], none, memory) == [Remove("churn.v1")]
    assert noted(memory, Remove("churn.v1"), Deployment((V2,)), NOW) == remembered(V2, started=["churn.v2:0"])


def test_what_only_supervisord_or_only_the_memory_knows_is_removed() -> None:
    assert decided([], [], there({"churn.v1": [STOPPED]}), remembered()) == [Remove("churn.v1")]
    assert decided([], [], there({}), remembered(V1)) == [Remove("churn.v1")]


def test_a_version_that_is_wanted_again_while_its_calls_end_is_routed_again() -> None:
    actual = there({"churn.v1": [READY], "churn.v2": [READY]}, FrontActual(generation=7, calls={"churn.v1": 1}))
    memory = remembered(V1, V2, unrouted={"churn.v1": NOW - 1})
    actions = decided([V1], [V2], actual, memory)
    assert routes(actions) == [(V1,)]
    assert not any(isinstance(action, Stop | Remove) for action in actions)
    assert noted(memory, actions[0], Deployment((V2,)), NOW).unrouted == {"churn.v2": NOW}


def test_a_version_that_is_wanted_again_while_it_stops_is_started_again() -> None:
    memory = begin(
        remembered(V1, V2, unrouted={"churn.v1": NOW - 1}, started=["churn.v2:0"]),
        Deployment((V1,), generation=1),
        Deployment((V2,)),
        there({"churn.v1": [STOPPING], "churn.v2": [READY]}),
    )
    assert memory.started == {"churn.v2:0"}
    stopping = there({"churn.v1": [STOPPING], "churn.v2": [READY]})
    assert decided([V1], [V2], stopping, memory) == [Declare(V1)]
    memory = noted(memory, Declare(V1), Deployment((V2,)), NOW)
    assert decided([V1], [V2], stopping, memory) == []
    stopped = there({"churn.v1": [STOPPED], "churn.v2": [READY]})
    assert decided([V1], [V2], stopped, memory) == [Start("churn.v1:0")]


# -- its number changes ---------------------------------------------------------------------------------------
def test_scaling_up_starts_only_the_slots_that_are_new() -> None:
    more = version("1", 4)
    actual = there({"churn.v1": [READY, READY, FRESH, FRESH], "other.v1": [READY]})
    assert decided([more, OTHER], [more, OTHER], actual, remembered(more, OTHER)) == [
        Start("churn.v1:2"),
        Start("churn.v1:3"),
    ]


def test_scaling_down_stops_only_the_slots_beyond() -> None:
    actual = there({"churn.v1": [READY, READY, STOPPING, STOPPING], "other.v1": [READY]})
    assert decided([V1, OTHER], [V1, OTHER], actual, remembered(V1, OTHER)) == [Stop("churn.v1:1")]


@pytest.mark.parametrize("slot", [STOPPED, FATAL, FRESH])
def test_slots_beyond_leave_supervisord_when_they_have_stopped(slot: SlotActual) -> None:
    assert decided([V1], [V1], there({"churn.v1": [READY, slot]}), remembered(V1)) == [Declare(V1)]
    more = version("1", 1, slots=2)
    assert decided([more], [more], there({"churn.v1": [READY, slot]}), remembered(more)) == []


@pytest.mark.parametrize("first", [LOADING, BACKOFF, STOPPING, FRESH])
def test_surplus_serves_until_as_many_as_are_wanted_are_ready(first: SlotActual) -> None:
    fewer = version("1", 2)
    memory = remembered(fewer, started=["churn.v1:0", "churn.v1:1"])

    def stops(*slots: SlotActual) -> list[Action]:
        actions = decided([fewer], [fewer], there({"churn.v1": slots}), memory)
        return [action for action in actions if isinstance(action, Stop)]

    assert stops(first, first, READY) == []
    assert stops(first, READY, READY) == []
    assert stops(first, READY, READY, READY) == [Stop("churn.v1:3")]
    assert stops(READY, READY, READY, READY) == [Stop("churn.v1:3"), Stop("churn.v1:2")]
    assert stops(first, READY, LOADING) == [Stop("churn.v1:2")]


@pytest.mark.parametrize("down", [STOPPED, FATAL])
def test_surplus_does_not_stand_in_for_what_stays_down_unless_nothing_else_serves(down: SlotActual) -> None:
    fewer = version("1", 2)
    memory = remembered(fewer, started=["churn.v1:0", "churn.v1:1"])
    assert decided([fewer], [fewer], there({"churn.v1": [down, READY, READY]}), memory) == [Stop("churn.v1:2")]
    assert decided([fewer], [fewer], there({"churn.v1": [down, down, READY]}), memory) == []


# -- its processes are started again --------------------------------------------------------------------------
def running(pid: int) -> SlotActual:
    return replace_slot(READY, pid)


def replace_slot(slot: SlotActual, pid: int) -> SlotActual:
    return dataclasses.replace(slot, pid=pid)


def restarted(
    model: DeployedModel, slots: Sequence[SlotActual], *, in_place: bool = False, known: DeployedModel | None = None
) -> list[Action]:
    """What is done next when processes 10, 11, ... in slots 0, 1, ... are to be replaced."""
    pids = {number: 10 + number for number in range(model.processes)}
    desired = Deployment((model,), restarts={model.group: Restart(pids=pids, in_place=in_place)})
    memory = remembered(known or model)
    return decide(desired, Deployment((model,)), there({model.group: slots}), memory, NOW, PACE)


def test_a_restart_begins_with_one_process_more_and_ends_without_it() -> None:
    more = version("1", 2, slots=2)
    assert restarted(V1, [running(10)]) == [Declare(more)]
    assert restarted(V1, [running(10), FRESH], known=more) == [Start("churn.v1:1")]
    assert restarted(V1, [running(10), LOADING], known=more) == []
    assert restarted(V1, [running(10), running(20)], known=more) == [Stop("churn.v1:0")]
    assert restarted(V1, [replace_slot(STOPPING, 10), running(20)], known=more) == []
    assert restarted(V1, [STOPPED, running(20)], known=more) == [Declare(V1), Start("churn.v1:0")]
    assert restarted(V1, [replace_slot(LOADING, 30), running(20)]) == []
    assert restarted(V1, [running(30), running(20)]) == [Stop("churn.v1:1")]
    assert restarted(V1, [running(30), replace_slot(STOPPING, 20)]) == []
    assert restarted(V1, [running(30), STOPPED]) == [Declare(V1)]
    assert restarted(V1, [running(30)]) == []


def test_processes_are_restarted_one_by_one() -> None:
    two, more = version("1", 2), version("1", 3, slots=3)
    assert restarted(two, [running(10), running(11), running(20)], known=more) == [Stop("churn.v1:0")]
    assert restarted(two, [replace_slot(LOADING, 30), running(11), running(20)], known=more) == []
    assert restarted(two, [running(30), running(11), running(20)], known=more) == [Stop("churn.v1:1")]
    assert restarted(two, [running(30), replace_slot(LOADING, 31), running(20)], known=two) == []
    assert restarted(two, [running(30), running(31), running(20)], known=two) == [Stop("churn.v1:2")]


def test_a_restart_in_place_needs_no_process_more() -> None:
    two = version("1", 2)
    assert restarted(two, [running(10), running(11)], in_place=True) == [Stop("churn.v1:0")]
    assert restarted(two, [replace_slot(LOADING, 30), running(11)], in_place=True) == []
    assert restarted(two, [running(30), running(11)], in_place=True) == [Stop("churn.v1:1")]
    assert restarted(V1, [running(10)], in_place=True) == [Stop("churn.v1:0")]


@pytest.mark.parametrize("idle", [LOADING, BACKOFF])
def test_what_does_not_serve_is_restarted_at_once(idle: SlotActual) -> None:
    two, more = version("1", 2), version("1", 3, slots=3)
    slots = [running(10), replace_slot(idle, 11), FRESH]
    assert restarted(two, slots, known=more)[:1] == [Stop("churn.v1:1")]
    assert restarted(two, slots[:2], in_place=True) == [Stop("churn.v1:1")]


def test_a_restart_of_a_scaled_model_uses_the_slots_that_it_has() -> None:
    model = replace(V1, min_processes=1, max_processes=3)
    actions = restarted(model, [running(10), FRESH, FRESH])
    assert actions == [Declare(replace(model, processes=2, slots=2)), Start("churn.v1:1")]


def test_a_restart_of_what_leaves_or_is_gone_is_nothing() -> None:
    restarts = {"churn.v1": Restart(pids={0: 10}), "churn.v9": Restart(pids={0: 10})}
    desired = Deployment((V2,), restarts=restarts)
    actual = there(
        {"churn.v1": [running(10)], "churn.v2": [running(11)]}, FrontActual(generation=7, calls={"churn.v1": 1})
    )
    memory = remembered(V1, V2, unrouted={"churn.v1": NOW - 1})
    assert decide(desired, Deployment((V2,), generation=7), actual, memory, NOW, PACE) == []


# -- it is remembered -----------------------------------------------------------------------------------------
def test_what_runs_counts_as_started_whoever_started_it() -> None:
    memory = remembered(V1, started=["churn.v1:3"])
    slots = [READY, LOADING, BACKOFF, STOPPED, STOPPING, FATAL]
    assert begin(memory, NOTHING, NOTHING, there({"churn.v1": slots})).started == {
        "churn.v1:0", "churn.v1:1", "churn.v1:2", "churn.v1:3",
    }  # fmt: skip


def test_a_new_generation_starts_again_what_an_operator_stopped() -> None:
    model = version("1", 3)
    actual = there({"churn.v1": [READY, STOPPED, STOPPING]})
    memory = remembered(model, started=["churn.v1:0", "churn.v1:1", "churn.v1:2"])
    assert begin(memory, NOTHING, NOTHING, actual) == memory
    after = begin(memory, Deployment(generation=1), NOTHING, actual)
    assert after.started == {"churn.v1:0"}
    assert after.known == memory.known
    assert decided([model], [model], actual, after) == [Start("churn.v1:1")]


def test_control_knows_what_it_stopped_itself() -> None:
    memory = noted(remembered(V1), Start("churn.v1:0"), NOTHING, NOW)
    assert memory.started == {"churn.v1:0"}
    assert noted(memory, Stop("churn.v1:0"), NOTHING, NOW).started == set()


def test_a_failure_is_remembered() -> None:
    assert noted(remembered(), Fail("churn.v2", FAILURE), NOTHING, NOW).failed == {"churn.v2": FAILURE}


# -- what went wrong once -------------------------------------------------------------------------------------
@pytest.mark.parametrize("dying", [BACKOFF, LOADING])
def test_served_slots_that_die_again_and_again_do_not_keep_a_rollback_from_starting(dying: SlotActual) -> None:
    """Each of their starts is supervisord's and looks recent, so they would use up `starting_max` for ever."""
    broken = version("2", 2)
    exits = {f"churn.v2:{number}": died(NOW - 2) for number in range(2)}
    actual = there({"churn.v2": [dying, dying], "churn.v1": [FRESH]}, exits=exits)
    memory = remembered(V1, broken, begun={"churn.v1": NOW - 50}, started=exits)
    assert Start("churn.v1:0") in decided([V1], [broken], actual, memory)


def test_a_version_that_failed_with_another_one_is_not_called_starting_for_ever() -> None:
    """`v3` is stopped and removed because `v2` failed; `apply --wait` and control's looks wait for `settled`."""
    desired, routed = Deployment((V2, version("3"))), Deployment((V1,))
    memory = remembered(V1, failed={"churn.v2": FAILURE})
    assert decide(desired, routed, there({"churn.v1": [READY]}), memory, NOW, PACE) == []
    assert plans_of(desired, routed, memory).settled


def test_a_version_that_is_served_beside_the_old_one_replaces_it_when_it_is_ready() -> None:
    """One process of the new version has been tried; now it gets all, and the old one's are needed until then."""
    old, few, all_ = version("1", 4), version("2", 1), version("2", 4)
    actual = there({"churn.v1": [READY] * 4, "churn.v2": [READY]})
    actions = decided([all_], [old, few], actual, remembered(old, few))
    assert all(old in routing for routing in routes(actions))


def test_a_served_version_keeps_its_processes_until_the_one_beside_it_is_ready() -> None:
    """Most calls are to go to the new version, which cannot take them yet; if it fails, they stay with the old one."""
    many, few = version("1", 4), version("1", 1)
    memory = remembered(few, V2, begun=BEGUN)
    loading = there({"churn.v1": [READY] * 4, "churn.v2": [LOADING]})
    assert not any(isinstance(action, Stop) for action in decided([few, V2], [many], loading, memory))


def test_a_version_is_tried_again_although_supervisord_had_given_up_the_slot_that_is_still_there() -> None:
    """`v2` failed; while another slot of it stops, the operator applies again."""
    model = version("2", 2)
    actual = there({"churn.v1": [READY], "churn.v2": [FATAL, STOPPING]})
    memory = begin(
        remembered(V1, model, begun=BEGUN, failed={"churn.v2": FAILURE}),
        Deployment((model,), generation=1),
        Deployment((V1,)),
        actual,
    )
    assert decided([model], [V1], actual, memory) == [Declare(model), Start("churn.v2:0")]
    memory = noted(memory, Declare(model), Deployment((V1,)), NOW)
    later = decided([model], [V1], actual, memory, NOW + 1)
    assert not any(isinstance(action, Fail) for action in later)


# -- scaled models ----------------------------------------------------------------------------------------------------
def scaled_version(number: str, processes: int = 1) -> DeployedModel:
    return replace(version(number, processes), min_processes=0, max_processes=4)


def test_a_scaled_model_has_as_many_processes_as_its_load_asks_for_within_its_bounds() -> None:
    model = scaled_version("1")
    for asked, expected in ((0, 0), (3, 3), (9, 4)):
        desired = with_scale(Deployment((model,)), Deployment((model,)), {"churn.v1": asked})
        assert [one.processes for one in desired.models] == [expected]
    fixed = with_scale(Deployment((V1,)), Deployment((V1,)), {"churn.v1": 9})
    assert fixed.models == (V1,)


def test_a_new_version_of_a_scaled_model_begins_with_as_many_as_the_old_one_has() -> None:
    old, new = scaled_version("1"), scaled_version("2")
    desired = with_scale(Deployment((new,)), Deployment((old,)), {"churn.v1": 3})
    assert [one.processes for one in desired.models] == [3]


def test_a_new_version_that_nobody_asks_for_has_to_prove_itself_with_one_process() -> None:
    new = scaled_version("2", 0)
    assert with_scale(Deployment((new,)), NOTHING, {}).models[0].processes == 1
    memory = noted(remembered(), Declare(replace(new, processes=1)), NOTHING, NOW)
    assert memory.scaled == {"churn.v2": 1}
    routed = with_scale(Deployment((new,)), Deployment((new,)), memory.scaled)
    assert routed.models[0].processes == 1
    assert noted(memory, Remove("churn.v2"), NOTHING, NOW).scaled == {}
