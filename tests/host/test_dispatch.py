"""Dispatch: each rule by itself, and a state machine that checks the bounds under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from host.dispatch import (
    AHEAD_BATCHES,
    DEATHS_MAX,
    LATE_ANSWERS,
    OTHERS_MAX_AGE_NS,
    RETRIES,
    RETURNED,
    STALL_MIN_NS,
    STALL_UNKNOWN_NS,
    UNKNOWN_ANSWERS,
    WORKER_DEATHS,
    Action,
    Answer,
    CloseWorker,
    Demand,
    Dispatcher,
    Pending,
    Refuse,
    Send,
)
from host.protocol.errors import (
    DeadlineExceeded,
    ModelNotReady,
    Overloaded,
    PoisonRequest,
    QueueFull,
    RequestError,
    WorkerDied,
    WouldBeLate,
)
from host.protocol.messages import Limits, ResponseHead

KEY = ("churn", "3")
WINDOW_ROWS = 2
MS = 1_000_000


def dispatcher(
    max_queue: int = 3, workers: int = 1, retry: bool = True, max_batch_rows: int = 1, holds: bool = False
) -> Dispatcher:
    made = Dispatcher()
    limits = Limits(max_queue=max_queue, max_batch_rows=max_batch_rows, retry=retry)
    made.declare(KEY, limits, holds=holds)
    for worker in range(1, workers + 1):
        made.worker_joined(worker, KEY, limits, 0)
    return made


def submit(
    made: Dispatcher, *sequences: int, deadline_ns: int = 10**15, size_bytes: int = 0, now_ns: int = 0
) -> list[Action]:
    actions: list[Action] = []
    for sequence in sequences:
        pending = Pending(sequence=sequence, pool=KEY, deadline_ns=deadline_ns, size_bytes=size_bytes)
        actions += made.submit(pending, now_ns)
    return actions


def counted(made: Dispatcher, what: int) -> int:
    return made.pools[KEY].counts[what]


def reply(sequence: int, **fields: int) -> ResponseHead:
    return ResponseHead(sequence=sequence, status=200, **fields)  # type: ignore[arg-type]


def answered(made: Dispatcher, worker: int, sequence: int, now_ns: int = 0, **fields: int) -> list[Action]:
    return list(made.answered(worker, reply(sequence, **fields), now_ns))


def shown(actions: list[Action]) -> list[tuple[object, ...]]:
    """Actions as plain values."""
    plain: list[tuple[object, ...]] = []
    for action in actions:
        match action:
            case Send(worker, pending):
                plain.append(("alone" if pending.alone else "send", pending.sequence, worker))
            case Answer(pending):
                plain.append(("answer", pending.sequence))
            case Refuse(pending, error):
                plain.append((type(error), pending.sequence))
            case CloseWorker(worker):
                plain.append(("close", worker))
    return plain


def refusal(actions: list[Action], expected: type[RequestError]) -> RequestError:
    (refused,) = actions
    assert isinstance(refused, Refuse)
    assert type(refused.error) is expected
    return refused.error


def learn(made: Dispatcher, *, batch_ns: int = 0, row_ns: int = 0, worker: int = 1) -> None:
    """Let one request be answered with what a batch costs."""
    submit(made, 9999)
    answered(made, worker, 9999, rows=1, batch_rows=1, row_service_ns=row_ns, batch_service_ns=batch_ns)


# -- choice of worker, window, queue ----------------------------------------------------------------------
def test_request_goes_to_the_worker_at_once() -> None:
    assert shown(submit(dispatcher(), 7)) == [("send", 7, 1)]


def test_least_loaded_worker_is_chosen() -> None:
    made = dispatcher(workers=2)
    assert shown(submit(made, 1, 2)) == [("send", 1, 1), ("send", 2, 2)]
    answered(made, 2, 2)
    assert shown(submit(made, 4)) == [("send", 4, 2)]


def test_nobody_waits_beside_a_worker_that_is_busy_for_other_fronts_only() -> None:
    made = dispatcher(workers=2)
    submit(made, 1, 2)
    answered(made, 2, 2, rows=1, batch_rows=1, backlog_rows=5)
    # The first one has less to do until its window is full.
    assert shown(submit(made, 3, 4)) == [("send", 3, 1), ("send", 4, 2)]


def test_rows_of_other_fronts_count_in_the_choice() -> None:
    made = dispatcher(workers=2, max_batch_rows=8)
    submit(made, 1)
    answered(made, 1, 1, rows=1, batch_rows=1, backlog_rows=3)
    assert shown(submit(made, 2, 3, 4)) == [("send", 2, 2), ("send", 3, 2), ("send", 4, 2)]
    assert shown(submit(made, 5)) == [("send", 5, 1)]


def test_own_rows_in_the_workers_backlog_are_not_counted_twice() -> None:
    made = dispatcher(max_batch_rows=8)
    submit(made, 1, 2, 3)
    answered(made, 1, 1, rows=1, batch_rows=1, backlog_rows=2)
    assert made.workers[1].others_rows == 0


def test_worker_gets_two_batches_ahead_and_the_rest_waits() -> None:
    made = dispatcher(max_batch_rows=4)
    assert len(submit(made, *range(1, 12))) == AHEAD_BATCHES * 4
    assert len(made.pools[KEY].queue) == 3


def test_rows_and_not_requests_fill_the_window() -> None:
    made = dispatcher(max_batch_rows=4)
    submit(made, 1, size_bytes=100)
    answered(made, 1, 1, rows=2)
    # Two rows a hundred bytes, by what was answered: four such requests are two batches.
    assert len(submit(made, *range(2, 8), size_bytes=100)) == 4
    assert made.pools[KEY].queued_rows == 4


def test_rows_are_estimated_within_what_a_request_may_hold() -> None:
    pool = dispatcher(max_batch_rows=8).pools[KEY]
    assert pool.estimated_rows(10**6) == 1
    pool.learn_size(4, 400)
    assert [pool.estimated_rows(size) for size in (0, 1, 100, 149, 151, 800, 10**9)] == [1, 1, 1, 1, 2, 8, 8]


def test_answer_frees_room_for_the_first_in_the_queue() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3, 4)
    assert shown(answered(made, 1, 1)) == [("answer", 1), ("send", 3, 1)]


def test_queue_sheds_at_its_limit() -> None:
    made = dispatcher(max_queue=2)
    assert len(submit(made, 1, 2, 3, 4)) == WINDOW_ROWS
    refusal(submit(made, 5), QueueFull)


def test_queue_of_one_takes_one() -> None:
    made = dispatcher(max_queue=1)
    assert shown(submit(made, 1, 2, 3)) == [("send", 1, 1), ("send", 2, 1)]
    refusal(submit(made, 4), QueueFull)


def test_no_worker_is_not_ready() -> None:
    refusal(submit(dispatcher(workers=0), 1), ModelNotReady)


def test_unknown_answer_is_counted_and_dropped() -> None:
    made = dispatcher()
    submit(made, 1)
    assert answered(made, 1, 99) == []
    assert shown(answered(made, 1, 1)) == [("answer", 1)]
    assert answered(made, 1, 1) == []
    assert (counted(made, UNKNOWN_ANSWERS), counted(made, LATE_ANSWERS)) == (2, 0)


# -- admission ------------------------------------------------------------------------------------------------
def test_request_that_cannot_make_it_is_refused_at_once() -> None:
    made = dispatcher(max_queue=100)
    learn(made, row_ns=10 * MS)
    submit(made, 1)
    # One ahead, as much again in its batch, itself: at the limit it is taken, a nanosecond below it is not.
    error = refusal(submit(made, 2, deadline_ns=30 * MS - 1), WouldBeLate)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 1
    assert shown(submit(made, 3, deadline_ns=30 * MS)) == [("send", 3, 1)]


def test_an_idle_model_is_asked_whatever_the_estimate_says() -> None:
    made = dispatcher(max_queue=100)
    learn(made, batch_ns=1000 * MS)
    # Only an answer can correct what a bad moment taught.
    assert shown(submit(made, 1, deadline_ns=10 * MS)) == [("send", 1, 1)]
    refusal(submit(made, 2, deadline_ns=10 * MS), WouldBeLate)
    answered(made, 1, 1, batch_rows=1, batch_service_ns=MS)
    assert shown(submit(made, 3, 4, deadline_ns=10 * MS)) == [("send", 3, 1), ("send", 4, 1)]


def test_the_estimate_goes_with_the_last_worker() -> None:
    made = dispatcher(max_queue=100)
    learn(made, batch_ns=1000 * MS)
    made.worker_lost(1, 0)
    made.worker_joined(2, KEY, made.pools[KEY].limits, 0)
    assert shown(submit(made, 1, 2, deadline_ns=10 * MS)) == [("send", 1, 2), ("send", 2, 2)]


def test_other_fronts_rows_are_old_news_after_a_while() -> None:
    made = dispatcher(max_queue=100, workers=2)
    submit(made, 1)
    answered(made, 1, 1, now_ns=0, batch_rows=1, backlog_rows=7, row_service_ns=MS)
    worker = made.workers[1]
    assert worker.load_rows(OTHERS_MAX_AGE_NS) == 7
    assert worker.load_rows(OTHERS_MAX_AGE_NS + 1) == 0
    submit(made, 2, now_ns=0)
    worker.in_flight[99] = Pending(sequence=99, pool=KEY, deadline_ns=10**15)
    assert worker.load_rows(10**12) == 7


def test_a_model_with_slow_batches_is_not_taken_for_stalled() -> None:
    made = dispatcher(max_queue=100, max_batch_rows=4)
    learn(made, batch_ns=400 * MS, row_ns=1000)
    submit(made, 1)
    worker = made.workers[1]
    # Two batches of 400 ms may be before its answer, and each may take four times that.
    assert not worker.stalled(STALL_MIN_NS + 3200 * MS, 4)
    assert worker.stalled(STALL_MIN_NS + 3201 * MS, 4)


def wait_ns(made: Dispatcher) -> int:
    """What one row more would wait."""
    _, sent_rows = made.pools[KEY].least_loaded(0)
    return made.pools[KEY].wait_ns(1, sent_rows)


def test_cost_of_a_batch_is_counted_once_for_each_batch() -> None:
    made = dispatcher(max_queue=100, max_batch_rows=4)
    learn(made, batch_ns=10 * MS, row_ns=MS)
    submit(made, *range(1, 9))
    # Eight rows ahead are two batches, and one more is its own: 3 * 10 + 8 + 4 + 1.
    assert wait_ns(made) == 43 * MS


def test_more_workers_share_the_wait() -> None:
    made = dispatcher(max_queue=100, workers=2, max_batch_rows=4)
    learn(made, row_ns=MS)
    submit(made, *range(1, 9))
    assert wait_ns(made) == 9 * MS
    made.worker_leaving(2)
    assert wait_ns(made) == 9 * MS


def test_as_long_as_nothing_is_known_everything_is_admitted() -> None:
    made = dispatcher(max_queue=100)
    assert all(not isinstance(action, Refuse) for action in submit(made, *range(1, 50), deadline_ns=1))


def test_retry_after_says_when_and_never_more_than_a_minute() -> None:
    made = dispatcher(max_queue=1000)
    learn(made, row_ns=1000 * MS)
    submit(made, *range(1, 5))
    error = refusal(submit(made, 100, deadline_ns=1000 * MS), WouldBeLate)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 5
    submit(made, *range(5, 500))
    error = refusal(submit(made, 1000, deadline_ns=1000 * MS), WouldBeLate)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 60


def test_deadline_that_has_passed_already() -> None:
    refusal(submit(dispatcher(), 1, deadline_ns=5, now_ns=5), DeadlineExceeded)


# -- cancellation and deadlines -----------------------------------------------------------------------------------
def test_cancelled_in_the_queue_is_never_sent() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3, 4)
    assert made.cancel(3)
    assert shown(answered(made, 1, 1)) == [("answer", 1), ("send", 4, 1)]


def test_cancelled_in_flight_drops_its_answer_and_keeps_its_place_until_then() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3)
    made.cancel(1)
    assert len(made.pools[KEY].queue) == 1
    assert shown(answered(made, 1, 1)) == [("send", 3, 1)]
    assert counted(made, LATE_ANSWERS) == 1


def test_cancel_of_an_unknown_request_does_nothing() -> None:
    made = dispatcher()
    assert not made.cancel(5)


def test_expiry_refuses_at_the_deadline_and_not_before() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3, deadline_ns=1000)
    assert made.next_deadline_ns() == 1000
    assert made.expire(999) == []
    expired = made.expire(1000)
    assert shown(expired) == [(DeadlineExceeded, 1), (DeadlineExceeded, 2), (DeadlineExceeded, 3)]
    texts = [str(action.error) for action in expired if isinstance(action, Refuse)]
    assert "for the worker" in texts[0]
    assert "in the queue" in texts[2]
    assert made.next_deadline_ns() is None
    assert made.pools[KEY].queued_rows == 0


# -- slow and stuck workers -----------------------------------------------------------------------------------------
def test_worker_that_went_quiet_gets_nothing_new() -> None:
    made = dispatcher(workers=2, max_batch_rows=8)
    learn(made, row_ns=MS)
    submit(made, 1, 2)
    late = STALL_MIN_NS + 4 * MS
    answered(made, 2, 2, now_ns=late)
    assert not made.workers[1].stalled(late, 8)
    assert made.workers[1].stalled(late + 1, 8)
    assert [shown(submit(made, sequence, now_ns=late + 1)) for sequence in (3, 4, 5)] == [
        [("send", sequence, 2)] for sequence in (3, 4, 5)
    ]
    # With its answer it is back.
    answered(made, 1, 1, now_ns=late + 2)
    assert shown(submit(made, 6, now_ns=late + 2)) == [("send", 6, 1)]


def test_worker_whose_cost_is_unknown_gets_longer() -> None:
    made = dispatcher(max_batch_rows=8)
    submit(made, 1)
    assert not made.workers[1].stalled(STALL_UNKNOWN_NS, 8)
    assert made.workers[1].stalled(STALL_UNKNOWN_NS + 1, 8)
    # Nobody else is there: it waits in the queue, where it can expire.
    assert submit(made, 2, now_ns=STALL_UNKNOWN_NS + 1) == []
    assert shown(answered(made, 1, 1, now_ns=STALL_UNKNOWN_NS + 2)) == [("answer", 1), ("send", 2, 1)]


def test_idle_worker_is_never_quiet() -> None:
    made = dispatcher()
    assert shown(submit(made, 1, now_ns=10**12)) == [("send", 1, 1)]
    assert not made.workers[1].stalled(10**12, 1)


# -- deaths ---------------------------------------------------------------------------------------------------------
def test_what_may_have_run_is_sent_again_alone_and_the_rest_as_before() -> None:
    made = dispatcher(workers=2, max_batch_rows=2, max_queue=10)
    submit(made, *range(1, 9))
    assert [made.pending[sequence].worker for sequence in (1, 3, 5, 7)] == [1, 1, 1, 1]
    assert made.worker_lost(1, 0) == []
    assert [(p.sequence, p.alone) for p in made.pools[KEY].queue] == [(1, True), (3, True), (5, False), (7, False)]
    assert shown(answered(made, 2, 2)) == [("answer", 2), ("alone", 1, 2)]
    assert [counted(made, what) for what in (WORKER_DEATHS, RETRIES, RETURNED)] == [1, 2, 2]


def test_request_that_ran_at_two_deaths_is_poison_and_its_neighbours_are_not() -> None:
    made = dispatcher(workers=1, max_batch_rows=8)
    submit(made, 1, 2, 3)
    made.worker_joined(2, KEY, made.pools[KEY].limits, 0)
    assert shown(made.worker_lost(1, 0)) == [("alone", 1, 2), ("alone", 2, 2), ("alone", 3, 2)]
    made.worker_joined(3, KEY, made.pools[KEY].limits, 0)
    # On worker 2 only the first was running: the others stand behind it, each to be alone in its batch.
    lost = made.worker_lost(2, 0)
    assert shown(lost) == [(PoisonRequest, 1), ("alone", 2, 3), ("alone", 3, 3)]
    assert shown(answered(made, 3, 2)) == [("answer", 2)]


def test_a_request_alone_behind_a_batch_is_no_suspect_of_that_batch() -> None:
    made = dispatcher(workers=2, max_batch_rows=8)
    submit(made, 1, 2)
    made.worker_lost(2, 0)
    assert made.pending[2].alone
    made.worker_joined(3, KEY, made.pools[KEY].limits, 0)
    made.worker_lost(1, 0)
    assert (made.pending[1].deaths, made.pending[2].deaths) == (1, 1)


def test_model_without_retry_refuses_what_may_have_run() -> None:
    made = dispatcher(workers=2, retry=False)
    submit(made, 1, 2, 3)
    assert shown(made.worker_lost(1, 0)) == [(WorkerDied, 1), ("send", 3, 2)]


def test_last_workers_death_refuses_what_waits() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3)
    assert sorted(shown(made.worker_lost(1, 0)), key=str) == [(ModelNotReady, n) for n in (1, 2, 3)]
    assert made.pools[KEY].queued_rows == 0


# -- goodbyes -------------------------------------------------------------------------------------------------------
def test_leaving_worker_gets_nothing_more_and_is_closed_after_its_last_answer() -> None:
    made = dispatcher(workers=2)
    submit(made, 1)
    assert made.worker_leaving(1) == []
    assert shown(submit(made, 2)) == [("send", 2, 2)]
    assert shown(answered(made, 1, 1)) == [("answer", 1), ("close", 1)]


def test_idle_leaving_worker_is_closed_at_once() -> None:
    made = dispatcher()
    assert made.worker_leaving(1) == [CloseWorker(1)]
    assert made.worker_lost(1, 0) == []
    assert counted(made, WORKER_DEATHS) == 0


def test_queue_waits_out_a_gap_between_a_leaving_and_a_joining_worker() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3)
    made.worker_leaving(1)
    assert shown(answered(made, 1, 1)) == [("answer", 1)]
    made.worker_joined(2, KEY, Limits(max_batch_rows=1), 0)
    assert made.pending[3].worker == 2


def test_worker_of_an_undeclared_version_makes_its_pool() -> None:
    made = dispatcher()
    made.worker_joined(9, ("churn", "4"), Limits(), 0)
    assert made.pools[("churn", "4")].ready == 1


def test_repr_shows_what_an_engineer_asks_first() -> None:
    made = dispatcher(workers=1)
    submit(made, 1, 2, 3)
    assert repr(made) == "<Dispatcher churn.v3: 1 ready, 1 queued, 2 in flight>"


# -- a pool that holds its requests while it has no worker ----------------------------------------------------
def join(made: Dispatcher, worker: int, now_ns: int = 0) -> list[Action]:
    return made.worker_joined(worker, KEY, made.pools[KEY].limits, now_ns)


def test_held_requests_run_in_order_when_a_worker_comes() -> None:
    made = dispatcher(workers=0, holds=True)
    assert made.demand() == {}
    assert submit(made, 1, 2, 3) == []
    assert made.demand() == {KEY: Demand(waiting=3, so_far=3)}
    assert shown(join(made, 1)) == [("send", 1, 1), ("send", 2, 1)]
    assert shown(answered(made, 1, 1)) == [("answer", 1), ("send", 3, 1)]
    assert made.demand() == {KEY: Demand(waiting=0, so_far=3)}


@pytest.mark.parametrize("max_queue", [1, 2])
def test_no_more_are_held_than_the_queue_takes(max_queue: int) -> None:
    made = dispatcher(workers=0, holds=True, max_queue=max_queue)
    assert submit(made, *range(1, max_queue + 1)) == []
    refusal(submit(made, 99), QueueFull)
    # That one is demand all the same.
    assert made.demand() == {KEY: Demand(waiting=max_queue, so_far=max_queue + 1)}


def test_held_request_expires_at_its_deadline() -> None:
    made = dispatcher(workers=0, holds=True)
    refusal(submit(made, 1, deadline_ns=100, now_ns=100), DeadlineExceeded)
    assert submit(made, 2, deadline_ns=101, now_ns=100) == []
    assert made.expire(100) == []
    assert made.next_deadline_ns() == 101
    error = refusal(made.expire(101), DeadlineExceeded)
    assert str(error) == "deadline passed while no worker was ready"
    assert made.demand() == {KEY: Demand(waiting=0, so_far=2)}
    assert join(made, 1) == []


def test_held_request_whose_client_went_is_never_sent() -> None:
    made = dispatcher(workers=0, holds=True)
    submit(made, 1)
    made.cancel(1)
    assert join(made, 1) == []


def test_what_waits_is_held_when_the_last_worker_dies() -> None:
    made = dispatcher(holds=True)
    submit(made, 1, 2, 3)
    assert made.worker_lost(1, 0) == []
    assert made.demand() == {KEY: Demand(waiting=3, so_far=3)}
    # The one that may have run goes alone; one that kills two workers is still the culprit.
    assert shown(join(made, 2)) == [("alone", 1, 2), ("send", 2, 2)]
    assert shown(made.worker_lost(2, 0)) == [(PoisonRequest, 1)]
    assert shown(join(made, 3)) == [("send", 2, 3), ("send", 3, 3)]


def test_what_waits_is_held_when_the_last_worker_leaves() -> None:
    made = dispatcher(holds=True)
    submit(made, 1, 2, 3)
    made.worker_leaving(1)
    submit(made, 4)
    assert made.demand() == {KEY: Demand(waiting=2, so_far=2)}
    answered(made, 1, 1)
    assert shown(answered(made, 1, 2)) == [("answer", 2), ("close", 1)]
    assert made.worker_lost(1, 0) == []
    assert made.demand() == {KEY: Demand(waiting=2, so_far=2)}
    assert shown(join(made, 2)) == [("send", 3, 2), ("send", 4, 2)]


def test_nobody_is_refused_as_late_by_what_a_worker_that_left_took() -> None:
    made = dispatcher(holds=True)
    learn(made, batch_ns=1000 * MS)
    submit(made, 1)
    made.worker_leaving(1)
    assert submit(made, 2, deadline_ns=MS) == []


def test_what_is_held_is_refused_when_the_model_is_withdrawn() -> None:
    made = dispatcher(workers=0, holds=True)
    submit(made, 1)
    assert made.keep_only([KEY]) == []
    error = refusal(made.keep_only([]), ModelNotReady)
    assert str(error) == "model 'churn' version 3: it is not served here any more"
    assert made.pools == {} and made.pending == {}


def test_a_withdrawn_models_last_worker_answers_and_nothing_is_held_after_it() -> None:
    made = dispatcher(holds=True)
    submit(made, 1, 2, 3)
    assert made.keep_only([]) == []
    assert shown(answered(made, 1, 1)) == [("answer", 1), ("send", 3, 1)]
    assert shown(made.worker_lost(1, 0)) == [(ModelNotReady, 2), (ModelNotReady, 3)]
    assert made.pools == {}


def test_a_model_that_holds_nothing_counts_what_it_refuses() -> None:
    made = dispatcher(workers=0)
    refusal(submit(made, 1), ModelNotReady)
    assert made.demand() == {KEY: Demand(waiting=0, so_far=1)}


def test_a_model_may_begin_and_cease_to_hold() -> None:
    made = dispatcher(workers=0)
    limits = made.pools[KEY].limits
    assert not made.pools[KEY].takes
    made.declare(KEY, limits, holds=True)
    assert made.pools[KEY].takes
    assert submit(made, 1) == []
    # What is held already goes on waiting.
    made.declare(KEY, limits)
    refusal(submit(made, 2), ModelNotReady)
    assert shown(join(made, 1)) == [("send", 1, 1)]
    assert made.pools[KEY].takes


class DispatchMachine(RuleBasedStateMachine):
    """Any order of submits, answers, deaths, goodbyes, cancellations and deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(max_queue=4, max_batch_rows=2)
        self.made = Dispatcher()
        self.made.declare(KEY, self.limits)
        self.now_ns = 0
        self.sequence = 0
        self.worker = 0
        self.alive: set[int] = set()
        self.open: set[int] = set()
        """Requests that must still get exactly one answer."""
        self.at_worker: dict[int, list[int]] = {}
        self.sends: dict[int, int] = {}

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(worker, pending):
                    sequence = pending.sequence
                    assert worker in self.alive, "sent to a worker that is gone"
                    assert sequence in self.open, "sent a request that is finished"
                    self.sends[sequence] = self.sends.get(sequence, 0) + 1
                    assert pending.deaths < DEATHS_MAX
                    assert pending.alone == (pending.deaths > 0)
                    self.at_worker[worker].append(sequence)
                case Answer(pending) | Refuse(pending, _):
                    assert pending.sequence in self.open, "answered twice"
                    self.open.remove(pending.sequence)
                case CloseWorker(worker):
                    self.lose(worker)

    def lose(self, worker: int) -> None:
        self.alive.remove(worker)
        del self.at_worker[worker]
        self.perform(self.made.worker_lost(worker, self.now_ns))

    @rule(timeout=st.integers(1, 50), size_bytes=st.integers(0, 5))
    def submits(self, timeout: int, size_bytes: int) -> None:
        self.sequence += 1
        self.open.add(self.sequence)
        deadline_ns = self.now_ns + timeout
        pending = Pending(sequence=self.sequence, pool=KEY, deadline_ns=deadline_ns, size_bytes=size_bytes)
        self.perform(list(self.made.submit(pending, self.now_ns)))

    @rule(holds=st.booleans())
    def is_declared_again(self, holds: bool) -> None:
        self.made.declare(KEY, self.limits, holds=holds)

    @rule()
    def joins(self) -> None:
        self.worker += 1
        self.alive.add(self.worker)
        self.at_worker[self.worker] = []
        self.perform(self.made.worker_joined(self.worker, KEY, self.limits, self.now_ns))

    @precondition(lambda self: self.alive)
    @rule(choice=st.randoms(use_true_random=False))
    def dies(self, choice: st.DataObject) -> None:
        self.lose(choice.choice(sorted(self.alive)))  # type: ignore[attr-defined]

    @precondition(lambda self: self.alive)
    @rule(choice=st.randoms(use_true_random=False))
    def leaves(self, choice: st.DataObject) -> None:
        self.perform(self.made.worker_leaving(choice.choice(sorted(self.alive))))  # type: ignore[attr-defined]

    @precondition(lambda self: any(self.at_worker.values()))
    @rule(choice=st.randoms(use_true_random=False), rows=st.integers(0, 2), cost=st.integers(0, 9))
    def answers(self, choice: st.DataObject, rows: int, cost: int) -> None:
        worker = choice.choice(sorted(w for w, has in self.at_worker.items() if has))  # type: ignore[attr-defined]
        sequence = choice.choice(self.at_worker[worker])  # type: ignore[attr-defined]
        self.at_worker[worker].remove(sequence)
        head = reply(
            sequence, rows=rows, batch_rows=rows, row_service_ns=cost, batch_service_ns=cost, backlog_rows=cost
        )
        self.perform(list(self.made.answered(worker, head, self.now_ns)))

    @precondition(lambda self: self.open)
    @rule(choice=st.randoms(use_true_random=False))
    def cancels(self, choice: st.DataObject) -> None:
        sequence = choice.choice(sorted(self.open))  # type: ignore[attr-defined]
        self.open.remove(sequence)
        self.made.cancel(sequence)

    @rule(by=st.integers(1, 30) | st.just(STALL_UNKNOWN_NS + 1))
    def time_passes(self, by: int) -> None:
        self.now_ns += by
        self.perform(self.made.expire(self.now_ns))

    @invariant()
    def nothing_is_lost(self) -> None:
        assert set(self.made.pending) == self.open

    @invariant()
    def bounds_hold(self) -> None:
        pool = self.made.pools[KEY]
        # A dead worker's requests go back beyond the limit: they were admitted already.
        assert sum(self.sends.get(pending.sequence, 0) == 0 for pending in pool.queue) <= self.limits.max_queue
        assert pool.ready == sum(not worker.leaving for worker in pool.workers.values())
        assert pool.queued_rows == sum(pending.rows for pending in pool.queue)
        for worker in pool.workers.values():
            rows = [pending.rows for pending in worker.in_flight.values()]
            assert worker.rows == sum(rows)
            assert worker.rows <= pool.window_rows or len(rows) == 1

    @invariant()
    def nobody_waits_beside_an_idle_worker(self) -> None:
        pool = self.made.pools[KEY]
        if pool.queue:
            assert all(worker.rows or worker.leaving for worker in pool.workers.values())


TestDispatchMachine = DispatchMachine.TestCase
TestDispatchMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
