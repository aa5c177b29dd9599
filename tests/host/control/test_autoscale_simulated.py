"""Autoscaling against simulated loads: requests, a queue, processes that take a while to load; no clock but its own."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.control.autoscale import LOOK_S, READ_TIMEOUT_S, Policy, State, decide
from host.control.observe import Reading, StageCounter, StageCounters, WorkerCounters, observe

# ruff: noqa: S311 - chance that repeats is what is wanted
LOAD_S = 2.0
"""A process from its start to ready."""

TEN_MINUTES_S = 600.0
MINUTE_S = 60.0
_NS_PER_S = 1_000_000_000

Load = Callable[[float], float]
"""Work offered at a time, in processes kept busy."""


def policy(least: int = 1, most: int = 8, timeout_s: float = 1.0, **changes: float) -> Policy:
    return Policy(min_processes=least, max_processes=most, queue_wait_max_s=timeout_s / 4, **changes)  # type: ignore[arg-type]


@dataclass(slots=True)
class Process:
    """A worker: runs one batch at a time, and answers control between two of them."""

    ready_s: float
    free_s: float = 0.0
    """When its last batch ends."""
    begun_s: float = 0.0
    """When its last batch began."""
    done: list[tuple[float, WorkerCounters]] = field(
        default_factory=lambda: [(-1.0, WorkerCounters(busy_ns=0, at_ns=0))]
    )
    """Its counters, as they are from the end of its last batches on."""

    def run(self, begin_s: float, service_s: float, waits_s: list[float]) -> None:
        busy_s = service_s * len(waits_s)
        self.begun_s, self.free_s = begin_s, begin_s + busy_s
        was = self.done[-1][1]
        stages, waited_ns = was.inference_stats, int(sum(waits_s) * _NS_PER_S)
        counted = WorkerCounters(
            busy_ns=was.busy_ns + int(busy_s * _NS_PER_S),
            at_ns=0,
            inference_stats=StageCounters(
                success=StageCounter(stages.success.count + len(waits_s), 0),
                queue=StageCounter(stages.queue.count + len(waits_s), stages.queue.ns + waited_ns),
            ),
        )
        self.done = [self.done[-1], (self.free_s, counted)]

    def answers_s(self, asked_s: float) -> float:
        """When it answers who asks it then: at once, or at the end of its batch."""
        return self.free_s if self.begun_s <= asked_s < self.free_s else asked_s

    def reading(self, asked_s: float) -> Reading:
        at_s = self.answers_s(asked_s)
        if at_s > asked_s + READ_TIMEOUT_S:
            return Reading(pid=id(self))
        counters = next(counters for end_s, counters in reversed(self.done) if end_s <= at_s)
        return Reading(pid=id(self), counters=msgspec.structs.replace(counters, at_ns=int((at_s + 10) * _NS_PER_S)))


@dataclass(slots=True)
class Simulation:
    """One model: one queue in order of arrival; a free process takes what waits, and what would be late is refused."""

    policy: Policy
    load: Load
    service_s: float = 0.02
    """Of a batch, for each request in it."""
    batch_max: int = 1
    timeout_s: float = 1.0
    noise: random.Random | None = None
    """Arrivals of a Poisson process; None: evenly spaced."""
    load_s: float = LOAD_S
    phase_s: float = 0.0
    """From the beginning to the first look."""
    processes: list[Process] = field(default_factory=list)
    queue: deque[float] = field(default_factory=deque)
    """When those that wait have come."""
    changes: list[tuple[float, int]] = field(default_factory=list)
    """When, and how many from then on."""
    refused: Counter[int] = field(default_factory=Counter)
    """By the second in which they came."""
    begin: int = field(init=False, default=1)
    """Processes at first, ready."""
    arrivals: Iterator[float] = field(init=False)
    arrival_s: float = field(init=False)
    """Of the next request."""

    def __post_init__(self) -> None:
        self.begin = max(1, self.policy.min_processes)
        self.processes = [Process(ready_s=-1.0) for _ in range(self.begin)]

    def run(self, duration_s: float) -> Simulation:
        state = State()
        readings: dict[str, Reading] = {}
        self.arrivals = self._arrivals(duration_s)
        self.arrival_s = next(self.arrivals, math.inf)
        look_s = self.phase_s or LOOK_S
        while look_s <= duration_s:
            unserved = self._advance(look_s)
            ready = [one for one in self.processes if one.ready_s <= look_s]
            # A look takes as long as its slowest worker, within its limit.
            slowest_s = max((one.answers_s(look_s) for one in ready), default=look_s)
            decided_s = min(slowest_s, look_s + READ_TIMEOUT_S)
            seen, readings = observe(
                readings,
                {str(number): one.reading(look_s) for number, one in enumerate(ready)},
                wanted=len(self.processes),
                unserved=unserved,
            )
            self._advance(decided_s)
            wanted, state, _ = decide(self.policy, state, seen, decided_s)
            self._scale(wanted, decided_s)
            look_s = max(look_s + LOOK_S, decided_s)
        return self

    def _advance(self, until_s: float) -> int:
        """Let come and begin what does until then; say how many no process was there for."""
        unserved = 0
        while self.arrival_s <= until_s:
            self._serve(self.arrival_s)
            self.queue.append(self.arrival_s)
            unserved += not self.processes
            self.arrival_s = next(self.arrivals, math.inf)
        self._serve(until_s)
        return unserved

    def _serve(self, until_s: float) -> None:
        """Begin all batches that begin until then."""
        while self.queue and self.processes:
            process = min(self.processes, key=lambda one: max(one.free_s, one.ready_s))
            begin_s = max(self.queue[0], process.free_s, process.ready_s)
            if begin_s > until_s:
                return
            waits_s: list[float] = []
            while self.queue and self.queue[0] <= begin_s and len(waits_s) < self.batch_max:
                came_s = self.queue.popleft()
                if begin_s + self.service_s > came_s + self.timeout_s:
                    self.refused[int(came_s)] += 1
                else:
                    waits_s.append(begin_s - came_s)
            if waits_s:
                process.run(begin_s, self.service_s, waits_s)

    def _scale(self, wanted: int, now_s: float) -> None:
        assert self.policy.min_processes <= wanted <= self.policy.max_processes
        if wanted == len(self.processes):
            return
        self.changes.append((now_s, wanted))
        while len(self.processes) < wanted:
            self.processes.append(Process(ready_s=now_s + self.load_s))
        del self.processes[wanted:]

    def _arrivals(self, duration_s: float) -> Iterator[float]:
        """Requests, such that their work comes to the load: one whenever it has added up to a whole one."""
        step_s, owed, now_s = min(0.01, self.service_s / 4), 0.0, 0.0
        due = self.noise.expovariate(1.0) if self.noise else 1.0
        for step in range(int(duration_s / step_s)):
            now_s = step * step_s
            owed += self.load(now_s) * step_s / self.service_s
            while owed >= due:
                owed -= due
                yield now_s
                due = self.noise.expovariate(1.0) if self.noise else 1.0

    @property
    def numbers(self) -> list[int]:
        """Of processes, one after the other."""
        return [self.begin, *(number for _, number in self.changes)]

    def downs(self) -> list[tuple[float, int]]:
        """Changes to fewer."""
        return [change for change, was in zip(self.changes, self.numbers, strict=False) if change[1] < was]

    def turns(self, begin_s: float = 0.0, end_s: float = math.inf) -> int:
        """How often the direction of the changes in a span of time is another than before."""
        steps = zip(self.numbers, self.changes, strict=False)
        ups = [number > was for was, (at_s, number) in steps if begin_s < at_s <= end_s]
        return len(list(groupby(ups))) - 1 if ups else 0


def square(high: float, period_s: float, low: float = 0.0) -> Load:
    return lambda now_s: high if now_s % period_s < period_s / 2 else low


# -- a step -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("phase_s", [0.01, 0.2, 0.4, 0.6, 0.8, 0.99])
@pytest.mark.parametrize("service_s", [0.002, 0.02, 0.1])
def test_twice_the_capacity_has_its_second_process_within_three_seconds(phase_s: float, service_s: float) -> None:
    done = Simulation(
        policy(), lambda now_s: 2.0 if 100 <= now_s < 200 else 0.0, service_s=service_s, phase_s=phase_s
    ).run(400)
    (asked_s, number), *later = done.changes
    assert number == 2
    assert 100 < asked_s <= 103
    # It is enough with a third one, which is gone again a minute after the load, in one direction.
    assert max(done.numbers) == 3
    assert done.turns() == 1
    assert later[-1][1] == 1
    assert 200 + MINUTE_S <= done.downs()[0][0] <= 200 + MINUTE_S + 5
    assert later[-1][0] <= 200 + 2 * MINUTE_S
    # Nothing is refused from when the second one is ready and what had queued up is done.
    assert all(second <= asked_s + LOAD_S + 1 for second in done.refused)


@pytest.mark.parametrize("phase_s", [0.01, 0.5, 0.99])
def test_nothing_is_refused_where_requests_may_wait_until_the_second_process_is_there(phase_s: float) -> None:
    done = Simulation(
        policy(timeout_s=5.0), lambda now_s: 2.0 if 100 <= now_s < 200 else 0.0, timeout_s=5.0, phase_s=phase_s
    ).run(400)
    assert 100 < done.changes[0][0] <= 103
    assert done.refused.total() == 0
    # What had queued up has more started than the load itself needs.
    assert done.turns() == 1 and max(done.numbers) <= 5


@pytest.mark.parametrize("phase_s", [0.01, 0.1, 0.2, 0.3, 0.4, 0.49])
@pytest.mark.parametrize("service_s", [0.002, 0.02, 0.1])
@pytest.mark.parametrize("batch_max", [32, 128, 1_000_000])
def test_nor_is_it_later_where_what_queues_makes_the_batches_longer(
    phase_s: float, service_s: float, batch_max: int
) -> None:
    done = Simulation(
        policy(timeout_s=20.0),
        lambda now_s: 2.0 if 100 <= now_s < 200 else 0.0,
        service_s=service_s,
        batch_max=batch_max,
        timeout_s=20.0,
        phase_s=phase_s,
    ).run(400)
    assert 100 < done.changes[0][0] <= 103
    assert done.refused.total() == 0
    assert done.turns() == 1 and max(done.numbers) <= 5 and done.numbers[-1] == 1


def test_a_load_that_one_process_carries_changes_nothing() -> None:
    assert Simulation(policy(), lambda now_s: 0.7 if 100 <= now_s < 200 else 0.0).run(400).changes == []


def test_what_loads_counts_so_nothing_is_added_twice() -> None:
    done = Simulation(policy(), lambda _: 1.3, load_s=20.0).run(200)
    assert [number for _, number in done.changes] == [2]


def test_a_large_step_is_made_in_few_steps() -> None:
    done = Simulation(policy(most=16), lambda now_s: 7.0).run(120)
    assert done.turns() == 0
    assert 10 <= done.numbers[-1] <= 12
    assert len(done.changes) <= 8
    assert done.changes[-1][0] <= 30


# -- constant loads ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("load", [0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.85, 1.0, 1.4, 2.0, 2.1, 2.8, 3.0, 4.2])
def test_a_constant_load_comes_to_rest(load: float) -> None:
    done = Simulation(policy(), lambda _: load).run(TEN_MINUTES_S)
    number = done.numbers[-1]
    early = [change for change in done.changes if change[0] <= 30]
    later = done.changes[len(early) :]
    assert [was < then for was, then in pairwise(done.numbers[: len(early) + 1])] == [True] * len(early)
    # What had queued up may have brought one too many. It goes after the first whole minute without need, for good.
    assert later == [] or (len(later) == 1 and later[0][1] == early[-1][1] - 1 and later[0][0] <= 30 + MINUTE_S)
    assert load <= 0.81 * number
    assert number == 1 or load / number > 0.8 * 0.6 * 2 / 3
    assert all(second <= 30 for second in done.refused)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [0.2, 0.4, 0.6, 0.7, 0.8, 1.2, 1.4, 2.5])
def test_chance_does_not_make_it_flap(load: float, seed: int) -> None:
    done = Simulation(policy(), lambda _: load, noise=random.Random(seed)).run(TEN_MINUTES_S)
    assert done.turns() <= 1
    assert load <= 0.8 * done.numbers[-1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [0.2, 0.4, 0.8, 2.0])
def test_nor_for_a_model_that_takes_seconds(load: float, seed: int) -> None:
    done = Simulation(
        policy(timeout_s=16.0), lambda _: load, service_s=2.0, timeout_s=16.0, noise=random.Random(seed)
    ).run(TEN_MINUTES_S)
    assert done.turns() <= 1


# -- waves ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("period_s", [4.0, 10.0, 30.0, 60.0, 100.0])
@pytest.mark.parametrize("high", [2.0, 3.0])
def test_waves_shorter_than_the_cool_down_change_nothing_after_the_first(period_s: float, high: float) -> None:
    done = Simulation(policy(), square(high, period_s)).run(TEN_MINUTES_S)
    assert done.downs() == []
    assert all(at_s <= max(20.0, 2.5 * period_s) for at_s, _ in done.changes)
    assert all(second <= max(20.0, 2.5 * period_s) for second in done.refused)


@pytest.mark.parametrize("period_s", [150.0, 200.0, 250.0, 300.0])
@pytest.mark.parametrize("seed", [None, 1])
def test_longer_waves_are_followed_once_a_period(period_s: float, seed: int | None) -> None:
    noise = None if seed is None else random.Random(seed)
    done = Simulation(policy(), square(2.0, period_s), noise=noise).run(TEN_MINUTES_S + period_s)
    for period in range(int(TEN_MINUTES_S / period_s)):
        begin_s = period * period_s
        assert done.turns(begin_s, begin_s + period_s) <= 1
    for at_s, _ in done.downs():
        assert at_s % period_s >= min(period_s / 2 + MINUTE_S, period_s) or at_s % period_s < 1


def test_a_ramp_is_followed_up_and_down() -> None:
    done = Simulation(policy(), lambda now_s: max(0.0, 4.0 - abs(now_s - 300) / 60)).run(900)
    assert done.turns() == 1
    assert done.numbers[-1] == 1
    for at_s, number in done.changes:
        offered = max(0.0, 4.0 - abs(at_s - 300) / 60)
        assert number >= offered / 0.8
    # Steps down are apart.
    assert all(later[0] - earlier[0] >= 30 for earlier, later in pairwise(done.downs()))


@pytest.mark.parametrize(("every_s", "turns"), [(20, 0), (45, 0), (200, 5)])
def test_spikes(every_s: int, turns: int) -> None:
    done = Simulation(policy(), lambda now_s: 3.0 if now_s % every_s < 2 else 0.2).run(TEN_MINUTES_S)
    assert done.turns() <= turns
    if not turns:
        assert done.downs() == []


# -- zero -------------------------------------------------------------------------------------------------------
def test_to_zero_after_five_minutes_and_a_stabilisation_and_back_with_the_first_request() -> None:
    done = Simulation(policy(least=0), lambda now_s: 0.5 if now_s < 60 or 600 <= now_s < 700 else 0.0).run(1200)
    (down, up, again) = done.changes
    assert down[1] == 0 and 60 + 300 <= down[0] <= 60 + 300 + MINUTE_S + 3
    assert up[1] == 1 and 600 < up[0] <= 601
    assert again[1] == 0 and again[0] >= 1000


def test_a_request_now_and_then_keeps_one() -> None:
    done = Simulation(policy(least=0), lambda now_s: 1.0 if now_s % 240 < 0.02 else 0.0).run(1500)
    assert done.changes == []


# -- any load ---------------------------------------------------------------------------------------------------
SEGMENT_S = 15.0


@settings(max_examples=40)
@given(
    loads=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=24),
    least=st.integers(1, 2),
    most=st.integers(2, 8),
    seed=st.none() | st.integers(0, 9),
)
def test_any_load(loads: list[float], least: int, most: int, seed: int | None) -> None:
    duration_s = SEGMENT_S * len(loads)
    done = Simulation(
        policy(least=least, most=most),
        lambda now_s: loads[min(int(now_s / SEGMENT_S), len(loads) - 1)],
        service_s=0.05,
        noise=None if seed is None else random.Random(seed),
    ).run(duration_s)
    downs = done.downs()
    # The number of changes is bounded: steps down are a cool-down apart, and what goes up has come down before.
    assert len(downs) <= duration_s / 30
    assert all(later[0] - earlier[0] >= 30 for earlier, later in pairwise(downs))
    climbed = sum(max(0, number - was) for was, number in pairwise(done.numbers))
    fallen = sum(max(0, was - number) for was, number in pairwise(done.numbers))
    assert climbed <= fallen + most - least
    # Never below what any whole segment of the last minute needed, as far as there were processes to show it.
    for at_s, number in downs:
        whole = range(max(0, math.ceil((at_s - MINUTE_S) / SEGMENT_S)), int(at_s / SEGMENT_S))
        needed = max((loads[one] for one in whole), default=0.0)
        assert min(needed, most * 0.8) <= number * 0.8
