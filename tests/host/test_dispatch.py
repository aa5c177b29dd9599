"""Dispatch: each rule by itself, and a state machine that checks the bounds under any order of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from host.dispatch import (
    AHEAD_BATCHES,
    ATTEMPTS_MAX,
    Action,
    Answer,
    CloseWorker,
    Dispatcher,
    Pending,
    Refuse,
    Send,
)
from host.protocol.errors import DeadlineExceeded, ModelNotReady, QueueFull, WorkerDied
from host.protocol.messages import Limits, ResponseHead

KEY = ("churn", "3")
WINDOW_ROWS = 2


def dispatcher(max_queue: int = 3, workers: int = 1, retry: bool = True, max_batch_rows: int = 1) -> Dispatcher:
    made = Dispatcher()
    limits = Limits(max_queue=max_queue, max_batch_rows=max_batch_rows, retry=retry)
    made.declare(KEY, limits)
    for worker in range(1, workers + 1):
        made.worker_joined(worker, KEY, limits)
    return made


def submit(made: Dispatcher, *sequences: int, deadline_ns: int = 1000, rows: int = 1) -> list[Action]:
    return [action for sequence in sequences for action in made.submit(Pending(sequence, KEY, deadline_ns, rows=rows))]


def answer(sequence: int) -> ResponseHead:
    return ResponseHead(sequence=sequence, status=200)


def test_request_goes_to_the_worker_at_once() -> None:
    assert submit(dispatcher(), 7) == [Send(1, 7, alone=False)]


def test_least_loaded_worker_is_chosen() -> None:
    made = dispatcher(workers=2)
    first, second, third = submit(made, 1, 2, 3)
    assert isinstance(first, Send) and isinstance(second, Send) and isinstance(third, Send)
    assert first.worker != second.worker
    made.answered(second.worker, answer(2))
    assert submit(made, 4) == [Send(second.worker, 4, alone=False)]


def test_worker_gets_two_batches_ahead_and_the_rest_waits() -> None:
    made = dispatcher(max_batch_rows=4)
    sent = [action for action in submit(made, *range(1, 12)) if isinstance(action, Send)]
    assert len(sent) == AHEAD_BATCHES * 4
    assert len(made.pools[KEY].queue) == 3


def test_request_larger_than_the_window_is_sent_to_an_idle_worker() -> None:
    made = dispatcher()
    assert submit(made, 1, rows=100) == [Send(1, 1, alone=False)]
    assert submit(made, 2, rows=1) == []


def test_answer_frees_room_for_the_first_in_the_queue() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3, 4)
    assert made.answered(1, answer(1)) == [Answer(1), Send(1, 3, alone=False)]


def test_queue_sheds_at_its_limit() -> None:
    made = dispatcher(max_queue=2)
    assert len(submit(made, 1, 2, 3, 4)) == WINDOW_ROWS
    (refused,) = submit(made, 5)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, QueueFull)


def test_queue_of_one_takes_one() -> None:
    made = dispatcher(max_queue=1)
    assert submit(made, 1, 2, 3) == [Send(1, 1, alone=False), Send(1, 2, alone=False)]
    (refused,) = submit(made, 4)
    assert isinstance(refused, Refuse)


def test_no_worker_is_not_ready() -> None:
    (refused,) = submit(dispatcher(workers=0), 1)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, ModelNotReady)


def test_unknown_answer_is_counted_and_dropped() -> None:
    made = dispatcher()
    submit(made, 1)
    assert made.answered(1, answer(99)) == []
    assert made.answered(1, answer(1)) == [Answer(1)]
    assert made.answered(1, answer(1)) == []
    assert made.unknown_answers == 2


def test_cancelled_in_the_queue_is_never_sent() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3, 4)
    made.cancel(3)
    assert made.answered(1, answer(1)) == [Answer(1), Send(1, 4, alone=False)]


def test_cancelled_in_flight_drops_its_answer_and_keeps_its_place_until_then() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3)
    assert made.cancel(1) == []
    assert len(made.pools[KEY].queue) == 1
    assert made.answered(1, answer(1)) == [Send(1, 3, alone=False)]


def test_cancel_of_an_unknown_request_does_nothing() -> None:
    assert dispatcher().cancel(5) == []


def test_expiry_refuses_at_the_deadline_and_not_before() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3, deadline_ns=1000)
    assert made.next_deadline_ns() == 1000
    assert made.expire(999) == []
    expired = made.expire(1000)
    assert [action.sequence for action in expired if isinstance(action, Refuse)] == [1, 2, 3]
    assert all(isinstance(action, Refuse) and isinstance(action.error, DeadlineExceeded) for action in expired)
    assert "in the queue" in str(expired[2].error) if isinstance(expired[2], Refuse) else False
    assert made.next_deadline_ns() is None


def test_dead_workers_requests_go_to_another_alone_and_first() -> None:
    made = dispatcher(workers=2)
    submit(made, 1, 2, 3, 4, 5)
    lost = made.pending[1].worker
    assert lost is not None
    mine = [sequence for sequence, pending in made.pending.items() if pending.worker == lost]
    other = 3 - lost
    assert made.worker_lost(lost) == []
    theirs = [sequence for sequence in (1, 2, 3, 4) if sequence not in mine]
    assert made.answered(other, answer(theirs[0])) == [Answer(theirs[0]), Send(other, mine[0], alone=True)]
    assert made.answered(other, answer(theirs[1])) == [Answer(theirs[1]), Send(other, mine[1], alone=True)]
    assert made.answered(other, answer(mine[0])) == [Answer(mine[0]), Send(other, 5, alone=False)]


def test_request_that_saw_two_deaths_is_refused() -> None:
    made = dispatcher(workers=3)
    (sent,) = submit(made, 1)
    assert isinstance(sent, Send)
    (again,) = made.worker_lost(sent.worker)
    assert again == Send(again.worker, 1, alone=True) if isinstance(again, Send) else False
    assert isinstance(again, Send)
    (refused,) = made.worker_lost(again.worker)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, WorkerDied)
    assert not made.pending


def test_model_without_retry_refuses_at_the_first_death() -> None:
    made = dispatcher(workers=2, retry=False)
    (sent,) = submit(made, 1)
    assert isinstance(sent, Send)
    (refused,) = made.worker_lost(sent.worker)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, WorkerDied)


def test_last_workers_death_refuses_what_waits() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3)
    refused = made.worker_lost(1)
    assert sorted(action.sequence for action in refused if isinstance(action, Refuse)) == [1, 2, 3]
    assert all(isinstance(action, Refuse) and isinstance(action.error, ModelNotReady) for action in refused)


def test_leaving_worker_gets_nothing_more_and_is_closed_after_its_last_answer() -> None:
    made = dispatcher(workers=2)
    (sent,) = submit(made, 1)
    assert isinstance(sent, Send)
    assert made.worker_leaving(sent.worker) == []
    other = 3 - sent.worker
    assert submit(made, 2) == [Send(other, 2, alone=False)]
    assert made.answered(sent.worker, answer(1)) == [Answer(1), CloseWorker(sent.worker)]


def test_idle_leaving_worker_is_closed_at_once() -> None:
    made = dispatcher()
    assert made.worker_leaving(1) == [CloseWorker(1)]
    assert made.worker_lost(1) == []


def test_queue_waits_out_a_gap_between_a_leaving_and_a_joining_worker() -> None:
    made = dispatcher()
    submit(made, 1, 2, 3)
    made.worker_leaving(1)
    assert made.answered(1, answer(1)) == [Answer(1)]
    made.worker_joined(2, KEY, Limits(max_batch_rows=1))
    assert made.pending[3].worker == 2


def test_worker_of_an_undeclared_version_makes_its_pool() -> None:
    made = dispatcher()
    made.worker_joined(9, ("churn", "4"), Limits())
    assert made.pools[("churn", "4")].ready == 1


def test_repr_shows_what_an_engineer_asks_first() -> None:
    made = dispatcher(workers=1)
    submit(made, 1, 2, 3)
    assert repr(made) == "<Dispatcher churn.v3: 1 ready, 1 queued, 2 in flight>"


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
                case Send(worker, sequence, alone):
                    assert worker in self.alive, "sent to a worker that is gone"
                    assert sequence in self.open, "sent a request that is finished"
                    self.sends[sequence] = self.sends.get(sequence, 0) + 1
                    assert self.sends[sequence] <= ATTEMPTS_MAX
                    assert alone == (self.sends[sequence] > 1)
                    self.at_worker[worker].append(sequence)
                case Answer(sequence) | Refuse(sequence, _):
                    assert sequence in self.open, "answered twice"
                    self.open.remove(sequence)
                case CloseWorker(worker):
                    self.lose(worker)

    def lose(self, worker: int) -> None:
        self.alive.remove(worker)
        del self.at_worker[worker]
        self.perform(self.made.worker_lost(worker))

    @rule(timeout=st.integers(1, 50), rows=st.integers(1, 5))
    def submits(self, timeout: int, rows: int) -> None:
        self.sequence += 1
        self.open.add(self.sequence)
        self.perform(self.made.submit(Pending(self.sequence, KEY, self.now_ns + timeout, rows=rows)))

    @rule()
    def joins(self) -> None:
        self.worker += 1
        self.alive.add(self.worker)
        self.at_worker[self.worker] = []
        self.perform(self.made.worker_joined(self.worker, KEY, self.limits))

    @precondition(lambda self: self.alive)
    @rule(choice=st.randoms(use_true_random=False))
    def dies(self, choice: st.DataObject) -> None:
        self.lose(choice.choice(sorted(self.alive)))  # type: ignore[attr-defined]

    @precondition(lambda self: self.alive)
    @rule(choice=st.randoms(use_true_random=False))
    def leaves(self, choice: st.DataObject) -> None:
        self.perform(self.made.worker_leaving(choice.choice(sorted(self.alive))))  # type: ignore[attr-defined]

    @precondition(lambda self: any(self.at_worker.values()))
    @rule(choice=st.randoms(use_true_random=False))
    def answers(self, choice: st.DataObject) -> None:
        worker = choice.choice(sorted(w for w, has in self.at_worker.items() if has))  # type: ignore[attr-defined]
        sequence = choice.choice(self.at_worker[worker])  # type: ignore[attr-defined]
        self.at_worker[worker].remove(sequence)
        self.perform(self.made.answered(worker, answer(sequence)))

    @precondition(lambda self: self.open)
    @rule(choice=st.randoms(use_true_random=False))
    def cancels(self, choice: st.DataObject) -> None:
        sequence = choice.choice(sorted(self.open))  # type: ignore[attr-defined]
        self.open.remove(sequence)
        self.perform(self.made.cancel(sequence))

    @rule(by=st.integers(1, 30))
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
        fresh = sum(not pending.alone for pending in pool.queue)
        assert fresh <= self.limits.max_queue
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
