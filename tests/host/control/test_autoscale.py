"""Each rule of autoscaling by itself, and its bounds under any observations."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config.deployment import DeployedModel
from host.control.autoscale import COOL_DOWN_S, IDLE_S, Decision, Need, Policy, State, decide, policy_of
from host.control.observe import Observation
from host.protocol.messages import Limits
from host.protocol.types import Signature

POLICY = Policy(min_processes=1, max_processes=8, queue_wait_max_s=0.25)
ZERO = Policy(min_processes=0, max_processes=8, queue_wait_max_s=0.25)


def seen(wanted: int, busy: float = 0.0, ready: int | None = None, **more: float) -> Observation:
    ready = wanted if ready is None else ready
    more = {"requests": int(busy > 0), "request_s": 0.02} | more
    return Observation(wanted=wanted, ready=ready, busy=busy, **more)  # type: ignore[arg-type]


def looks(policy: Policy, *observations: Observation, state: State | None = None, begin_s: float = 0.0) -> Decision:
    """Look once a second until something is to change; give the last decision."""
    decision = Decision(0, state or State(), "")
    for second, one in enumerate(observations, 1):
        decision = decide(policy, decision.state, one, begin_s + second)
        if decision.why:
            break
    return decision


def quiet(policy: Policy, wanted: int, seconds: int, busy: float = 0.0) -> Decision:
    return looks(policy, *[seen(wanted, busy)] * seconds)


# -- up ---------------------------------------------------------------------------------------------------------
def test_as_many_at_once_as_bring_the_load_back_to_the_target() -> None:
    assert looks(POLICY, seen(2, 0.8)).wanted == 2
    decision = looks(POLICY, seen(2, 0.81))
    assert (decision.wanted, decision.why) == (3, "2 ready 81% busy")
    assert looks(POLICY, seen(4, 1.0)).wanted == 6


def test_one_busy_second_after_a_quiet_minute_is_not_a_load() -> None:
    decision = quiet(POLICY, 1, 60)
    assert looks(POLICY, seen(1, 1.0), state=decision.state, begin_s=60).wanted == 1
    assert looks(POLICY, seen(1, 1.0), seen(1, 1.0), state=decision.state, begin_s=60).wanted == 2


def test_those_that_load_count() -> None:
    assert looks(POLICY, seen(2, 1.0, ready=1)).wanted == 2
    assert looks(POLICY, *[seen(2, 1.0, ready=1)] * 100).wanted == 2
    assert looks(POLICY, seen(5, 1.0, ready=4)).wanted == 6


def test_newcomers_are_given_time_to_work_off_what_is_queued() -> None:
    busy = [seen(2, 1.0, ready=1), seen(2, 1.0, ready=2)]
    assert looks(POLICY, *busy, seen(2, 1.0)).wanted == 2
    assert looks(POLICY, *busy, seen(2, 1.0), seen(2, 1.0)).wanted == 3


@pytest.mark.parametrize(
    ("queue_wait_s", "busy", "wanted"), [(0.25, 0.7, 2), (0.26, 0.7, 3), (0.26, 0.6, 2), (0.26, 0.61, 3)]
)
def test_requests_that_wait_for_busy_workers_get_one_more(queue_wait_s: float, busy: float, wanted: int) -> None:
    assert looks(POLICY, seen(2, busy, queue_wait_s=queue_wait_s)).wanted == wanted


def test_of_twice_as_many_or_four_more_at_a_time_the_larger() -> None:
    greedy = Policy(min_processes=1, max_processes=99, queue_wait_max_s=1.0, target_share=0.1, down_share=0.05)
    assert looks(greedy, seen(1, 1.0)).wanted == 5
    assert looks(greedy, seen(6, 1.0)).wanted == 12


def test_never_more_than_the_bound() -> None:
    assert looks(POLICY, seen(8, 1.0, queue_wait_s=9.0)).wanted == 8
    decision = looks(POLICY, seen(9, 0.7))
    assert (decision.wanted, decision.why) == (8, "1 to 8 are allowed")


def test_a_model_whose_requests_take_seconds_is_judged_over_a_longer_time() -> None:
    idle = [seen(1, 0.0, request_s=2.0)] * 30
    assert looks(POLICY, *idle, *[seen(1, 1.0, request_s=0.0)] * 3).wanted == 1
    assert looks(POLICY, *idle, *[seen(1, 1.0, request_s=0.0)] * 20).wanted == 2


# -- down -------------------------------------------------------------------------------------------------------
def test_down_after_a_whole_window_and_not_before() -> None:
    loaded = looks(POLICY, seen(4, 0.5))
    assert loaded.wanted == 4
    # At 61 s the look of the first second belongs to the window still, in which four were needed.
    assert looks(POLICY, *[seen(4, 0.1)] * 60, state=loaded.state, begin_s=1).wanted == 4
    # Then the one of the next second counts, whose average was still falling.
    decision = looks(POLICY, *[seen(4, 0.1)] * 61, state=loaded.state, begin_s=1)
    assert (decision.wanted, decision.why) == (2, "no more were needed for 60 s")


@pytest.mark.parametrize(("busy", "wanted"), [(0.30, 2), (0.31, 3), (0.46, 4), (0.60, 4), (0.79, 4)])
def test_no_fewer_than_the_load_needs(busy: float, wanted: int) -> None:
    assert quiet(POLICY, 4, 70, busy).wanted == wanted


def test_the_largest_need_of_the_window_counts() -> None:
    decision = looks(POLICY, *[seen(4, 0.0)] * 50, *[seen(4, 0.4)] * 5, *[seen(4, 0.0)] * 50)
    assert decision.wanted == 3
    assert decision.state.needs[0].processes == 3


def test_steps_down_are_a_cool_down_apart() -> None:
    state, wanted, steps = State(), 8, []
    for second in range(200):
        load = max(0.0, 4.8 - second / 15)  # one less is needed every nine seconds
        decision = decide(POLICY, state, seen(wanted, load / wanted), second)
        if decision.wanted != wanted:
            steps.append((second, decision.wanted))
        state, wanted = decision.state, decision.wanted
    assert [number for _, number in steps] == [7, 4, 1]
    assert all(later - earlier >= COOL_DOWN_S for (earlier, _), (later, _) in pairwise(steps))


def test_no_step_down_while_those_that_are_ready_cannot_show_the_load() -> None:
    # Two of three have died and do not come back.
    assert looks(POLICY, *[seen(3, 1.0, ready=1)] * 200).wanted == 3
    assert looks(POLICY, *[seen(3, 0.2, ready=1)] * 200).wanted == 1
    assert looks(POLICY, *[seen(3, ready=0, unserved=1)] * 500).wanted == 3


def test_who_forgets_everything_steps_down_a_window_later() -> None:
    assert quiet(POLICY, 3, 61).wanted == 3
    assert quiet(POLICY, 3, 62).wanted == 1


def test_up_to_the_lower_bound_at_once() -> None:
    decision = looks(Policy(min_processes=2, max_processes=4, queue_wait_max_s=0.25), seen(0))
    assert (decision.wanted, decision.why) == (2, "2 to 4 are allowed")


def test_memory_does_not_grow() -> None:
    falling = [seen(8, max(0.0, 1.0 - second / 5000)) for second in range(4000)]
    needs = looks(POLICY, *falling).state.needs
    assert len(needs) <= 10
    assert [one.processes for one in needs] == sorted((one.processes for one in needs), reverse=True)


# -- zero -------------------------------------------------------------------------------------------------------
def test_from_zero_with_the_first_request() -> None:
    assert looks(ZERO, seen(0)).wanted == 0
    decision = looks(ZERO, seen(0), seen(0, unserved=1))
    assert (decision.wanted, decision.why) == (1, "a request came")
    # Others do not add to it while it loads.
    assert looks(ZERO, seen(1, ready=0, unserved=50), state=decision.state, begin_s=2).wanted == 1


def test_to_zero_only_without_a_request_for_long() -> None:
    last = int(IDLE_S) + 61
    busy = looks(ZERO, seen(1, 0.3))
    idle = [seen(1)] * 400
    steps = []
    state = busy.state
    for second, one in enumerate(idle, 2):
        decision = decide(ZERO, state, one, second)
        state = decision.state
        if decision.wanted != 1:
            steps.append((second, decision.why))
            break
    assert steps and IDLE_S < steps[0][0] <= last + 10
    assert steps[0][1] == "no request for 300 s"


def test_a_request_in_between_starts_the_idle_time_anew() -> None:
    assert looks(ZERO, *[seen(1)] * 290, seen(1, requests=1), *[seen(1)] * 290).wanted == 1


def test_a_process_that_never_becomes_ready_and_nobody_asks_for_goes_too() -> None:
    assert looks(ZERO, *[seen(1, ready=0)] * 400).wanted == 0


def test_with_a_lower_bound_of_one_it_never_goes_to_zero() -> None:
    assert quiet(POLICY, 1, 1000).wanted == 1


# -- the rest ---------------------------------------------------------------------------------------------------
def test_policy_of_a_model() -> None:
    model = DeployedModel(
        name="churn",
        version="3",
        processes=0,
        min_processes=0,
        max_processes=4,
        package="/p",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(timeout_ms=2000),
    )
    policy = policy_of(model)
    assert (policy.min_processes, policy.max_processes, policy.queue_wait_max_s) == (0, 4, 0.5)
    assert policy.down_share < policy.target_share < policy.up_share


observations = st.builds(
    Observation,
    wanted=st.integers(0, 10),
    ready=st.integers(0, 10),
    busy=st.floats(0.0, 1.0),
    queue_wait_s=st.floats(0.0, 2.0),
    request_s=st.sampled_from([0.0, 0.001, 0.5, 5.0]),
    requests=st.integers(0, 3),
    unserved=st.integers(0, 3),
)


@given(least=st.integers(0, 3), more=st.integers(0, 5), observed=st.lists(observations, max_size=200))
def test_bounds_hold_whatever_is_observed(least: int, more: int, observed: list[Observation]) -> None:
    policy = Policy(min_processes=least, max_processes=max(1, least + more), queue_wait_max_s=0.25)
    state = State()
    changed_s = float("-inf")
    for second, one in enumerate(observed):
        decision = decide(policy, state, one, second)
        assert decision == decide(policy, state, one, second)
        assert policy.min_processes <= decision.wanted <= policy.max_processes
        within = min(max(one.wanted, policy.min_processes), policy.max_processes)
        if decision.wanted < within:
            assert second - changed_s >= policy.cool_down_s
            assert decision.wanted >= max(need.processes for need in decision.state.needs)
            assert decision.wanted > 0 or not (one.requests or one.unserved)
        assert (decision.why != "") == (decision.wanted != one.wanted)
        if decision.wanted != one.wanted:
            changed_s = second
        state = decision.state
        assert isinstance(state.needs[-1], Need)
