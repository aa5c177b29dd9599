"""Which worker runs which request, and when. Pure and synchronous: state in, actions out; no clock, no socket.

Every method looks at the state, changes it, and returns the I/O that is still to do. Nothing awaits in between, so
there is no race to think about; the shell (`host.front.gateway`) carries the actions out. Times are nanoseconds of
one monotonic clock, which the shell reads.

A request is in exactly one place: in its pool's queue, or in flight on one worker. It leaves with exactly one
`Answer` or `Refuse`, or because its client is gone (`cancel`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, MutableSequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

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

PoolKey = tuple[str, str]
"""Model name and version."""

AHEAD_BATCHES: Final = 2
"""A worker gets at most so many full batches: one that runs, one that is ready when it ends. The rest waits here,
where it can still expire or be cancelled."""

DEATHS_MAX: Final = 2
"""A request that may have been running when a worker died is sent once more; after the second death it is the
culprit."""

STALL_MIN_NS: Final = 250_000_000
STALL_FACTOR: Final = 4
STALL_UNKNOWN_NS: Final = 1_000_000_000
"""A worker gets nothing new when it has answered nothing for 250 ms and four times what its work should take; for
1 s as long as nobody knows what its work takes. It is back with its next answer."""

OTHERS_MAX_AGE_NS: Final = 250_000_000
"""How long a worker's word on other fronts' rows is believed when it has no work of this front."""

SIZES_MEMORY: Final = 0.99
"""How much of the sums behind rows per byte is kept at each answer: the last hundred or so requests count."""

RETRY_AFTER_MAX_S: Final = 60
_NOT_SERVED: Final = "it is not served here any more"
_NS_PER_S: Final = 1_000_000_000


class Pending(msgspec.Struct, eq=False, kw_only=True):
    """A request from its admission to its answer."""

    sequence: int
    pool: PoolKey
    deadline_ns: int
    size_bytes: int = 0
    """Of the body: what its rows are estimated from."""
    rows: int = 1
    """The best estimate until the worker has read the body."""
    deaths: int = 0
    """Workers that died when it may have been in the batch that ran."""
    alone: bool = False
    """Run in a batch of its own."""
    worker: int | None = None
    """Where it is in flight; None while it is queued."""
    sent_ns: int = 0
    """When it was given to a worker, the last time."""


class Send(msgspec.Struct, frozen=True):
    """Write the request to the worker."""

    worker: int
    pending: Pending


class Answer(msgspec.Struct, frozen=True):
    """Give the worker's answer to the client; the shell has its head and body at hand."""

    pending: Pending


class Refuse(msgspec.Struct, frozen=True):
    """Give the client an error."""

    pending: Pending
    error: RequestError


class CloseWorker(msgspec.Struct, frozen=True):
    """Close the connection: the worker said goodbye and has answered everything."""

    worker: int


Action = Send | Answer | Refuse | CloseWorker


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of a model version that no worker was there for."""

    waiting: int
    """Held now."""
    so_far: int
    """Held or refused since the front started."""


# What went wrong with a pool, counted where the shell says. (What is refused, whoever gives the answer counts.)
LATE_ANSWERS: Final = 0
"""Answers for requests that had expired or whose client was gone: dropped."""
UNKNOWN_ANSWERS: Final = 1
"""Answers for requests that were never sent on that connection, or are answered already: dropped."""
WORKER_DEATHS: Final = 2
"""Connections of workers that ended without a goodbye."""
RETRIES: Final = 3
"""Requests sent again because they may have been running when their worker died."""
RETURNED: Final = 4
"""Requests of dead workers that had not begun and went back to the queue."""

Counts = MutableSequence[int] | memoryview
"""A number for each of these, and whatever comes behind them."""


def own_counts(_: PoolKey) -> Counts:
    """Counts that nobody else sees."""
    return [0] * (RETURNED + 1)


@dataclass(slots=True, eq=False)
class Worker:
    """One connection to a worker."""

    identity: int
    pool: PoolKey
    in_flight: dict[int, Pending] = field(default_factory=dict)
    """In the order in which they were sent, which is the order in which the worker runs them."""
    rows: int = 0
    """Of this front's requests in flight."""
    others_rows: int = 0
    """What the worker's last answer said of rows waiting there for other fronts."""
    row_ns: int = 0
    """What one row more costs the worker, as its last answer said; 0: not known yet."""
    batch_ns: int = 0
    """What a batch costs it before its first row."""
    progress_ns: int = 0
    """When it answered last, or got work while it had none."""
    leaving: bool = False

    def stalled(self, now_ns: int, max_batch_rows: int) -> bool:
        """Whether it has gone quiet over its work."""
        if not self.in_flight:
            return False
        quiet_ns = now_ns - self.progress_ns
        if quiet_ns <= STALL_MIN_NS:
            return False
        if not (self.row_ns or self.batch_ns):
            return quiet_ns > STALL_UNKNOWN_NS
        rows = self.rows + self.others_rows
        batches = 1 + -(-rows // max_batch_rows)
        return quiet_ns > STALL_MIN_NS + STALL_FACTOR * (batches * self.batch_ns + rows * self.row_ns)

    def load_rows(self, now_ns: int) -> int:
        """Rows that it has, over all fronts. What it said of others holds for a while when nothing is asked of it."""
        if self.others_rows and (self.in_flight or now_ns - self.progress_ns <= OTHERS_MAX_AGE_NS):
            return self.rows + self.others_rows
        return self.rows


@dataclass(slots=True, eq=False)
class Pool:
    """The workers and the queue of one model version."""

    key: PoolKey
    label: str
    """What messages call it."""
    limits: Limits
    window_rows: int
    counts: Counts
    workers: dict[int, Worker] = field(default_factory=dict)
    queue: deque[Pending] = field(default_factory=deque)
    queued_rows: int = 0
    batch_ns: int = 0
    """What a batch costs before its first row, as the last answer said."""
    row_ns: int = 0
    answered_rows: float = 0.0
    answered_bytes: float = 0.0

    ready: int = 0
    """Workers that take requests."""
    holds: bool = False
    """Requests wait for a worker to come, rather than be refused, while there is none."""
    without_worker: int = 0
    """Requests that no worker was there for when they came, or when the last one went: each was held or refused."""

    def estimated_rows(self, size_bytes: int) -> int:
        """How many rows a body of so many bytes holds, going by those that were answered."""
        if not self.answered_bytes:
            return 1
        rows = int(size_bytes * self.answered_rows / self.answered_bytes + 0.5)
        return 1 if rows <= 1 else min(rows, self.limits.max_batch_rows)

    def learn_size(self, rows: int, size_bytes: int) -> None:
        """Count an answered request in the estimate of rows per byte."""
        self.answered_rows = SIZES_MEMORY * self.answered_rows + rows
        self.answered_bytes = SIZES_MEMORY * self.answered_bytes + size_bytes

    def least_loaded(self, now_ns: int) -> tuple[Worker | None, int]:
        """The worker with the least to do among those that take requests, and the rows that all of them have.

        None if all that are left have gone quiet.
        """
        best: Worker | None = None
        best_rows = sent_rows = 0
        for worker in self.workers.values():
            if worker.leaving:
                continue
            rows = worker.load_rows(now_ns)
            sent_rows += rows
            if (best is None or rows < best_rows) and not (
                now_ns - worker.progress_ns > STALL_MIN_NS and worker.stalled(now_ns, self.limits.max_batch_rows)
            ):
                best, best_rows = worker, rows
        return best, sent_rows

    @property
    def takes(self) -> bool:
        """Whether requests are run, or held until they can be."""
        return self.ready > 0 or self.holds

    @property
    def idle(self) -> bool:
        """Whether nothing of this front is queued or with a worker."""
        return not self.queue and not any(worker.in_flight for worker in self.workers.values())

    def forget_cost(self) -> None:
        """The workers that told it are gone."""
        self.batch_ns = self.row_ns = 0

    def taker(self, worker: Worker | None, rows: int) -> Worker | None:
        """The least loaded worker if a request fits into its window, else one that has nothing of ours.

        That one takes any, so no request waits for ever; other fronts may have given it more rows than the least loaded
        one has of ours.
        """
        if worker is None or not worker.rows or worker.rows + rows <= self.window_rows:
            return worker
        return next((other for other in self.workers.values() if not other.rows and not other.leaving), None)

    def wait_ns(self, rows: int, sent_rows: int) -> int:
        """How long a request of so many rows takes from now to its answer, by measured cost; 0 if that is unknown.

        A batch costs `batch_ns + row_ns * rows`. Ahead of the request are its share of everything sent and queued
        (of one worker among equals); behind it, and answered together with it, at most as much again, up to one
        batch.
        """
        ahead = sent_rows + self.queued_rows
        if not ahead or not self.ready:
            return self.batch_ns + self.row_ns * rows
        ahead = -(-ahead // self.ready)
        most = self.limits.max_batch_rows
        batches = 1 + -(-ahead // most)
        return batches * self.batch_ns + self.row_ns * (ahead + min(ahead, most) + rows)


class Dispatcher:
    """All pools of one front."""

    def __init__(self, counts_of: Callable[[PoolKey], Counts] = own_counts) -> None:
        """`counts_of`: where a pool counts, asked when there is a new one."""
        self._counts_of = counts_of
        self.pools: dict[PoolKey, Pool] = {}
        self.pending: dict[int, Pending] = {}
        self.workers: dict[int, Worker] = {}
        self._kept: frozenset[PoolKey] | None = None
        """Pools that stay without a worker; None: all."""

    def __repr__(self) -> str:
        pools = ", ".join(
            f"{name}.v{version}: {pool.ready} ready, {len(pool.queue)} queued, "
            f"{sum(len(worker.in_flight) for worker in pool.workers.values())} in flight"
            for (name, version), pool in self.pools.items()
        )
        return f"<Dispatcher {pools or 'empty'}>"

    def declare(self, key: PoolKey, limits: Limits, label: str = "", *, holds: bool = False) -> None:
        """Make a pool exist: its requests are refused as not ready, rather than unknown, while it has no worker.

        `label`: what messages call it, if it is no model version's. `holds`: its requests wait for a worker instead,
        within `max_queue` and their deadlines; somebody starts one for them.
        """
        pool = self.pools.get(key)
        window_rows = AHEAD_BATCHES * limits.max_batch_rows
        if pool is None:
            label = label or f"model '{key[0]}' version {key[1]}"
            counts = self._counts_of(key)
            self.pools[key] = Pool(
                key=key, limits=limits, window_rows=window_rows, counts=counts, label=label, holds=holds
            )
        else:
            pool.limits, pool.window_rows, pool.holds = limits, window_rows, holds

    def keep_only(self, keys: Collection[PoolKey]) -> list[Action]:
        """Drop every other pool, now or when its last worker is gone. What such a pool holds is refused."""
        self._kept = frozenset(keys)
        actions: list[Action] = []
        for pool in list(self.pools.values()):
            if pool.key not in self._kept:
                pool.holds = False
                if not pool.workers:
                    actions += self._refuse_queue(pool, _NOT_SERVED)
            self._drop_if_done(pool)
        return actions

    def missed(self, key: PoolKey) -> None:
        """A request would have been submitted, had there been a worker; somebody else answers it."""
        pool = self.pools.get(key)
        if pool is not None:
            pool.without_worker += 1

    def demand(self) -> dict[PoolKey, Demand]:
        """Of every pool that had requests while it had no worker."""
        return {
            key: Demand(waiting=0 if pool.ready else len(pool.queue), so_far=pool.without_worker)
            for key, pool in self.pools.items()
            if pool.without_worker
        }

    def _drop_if_done(self, pool: Pool) -> None:
        if self._kept is not None and pool.key not in self._kept and not pool.workers:
            del self.pools[pool.key]

    # -- requests -----------------------------------------------------------------------------------------
    def submit(self, pending: Pending, now_ns: int) -> Iterable[Action]:
        """Admit a request: send it, queue it, or refuse it."""
        pool = self.pools.get(pending.pool)
        if pool is None:  # withdrawn while its features were read
            name, version = pending.pool
            return (Refuse(pending, ModelNotReady(f"model '{name}' version {version} is not served here any more")),)
        pending.rows = pool.estimated_rows(pending.size_bytes)
        if not pool.ready:
            pool.without_worker += 1
            if not pool.holds:
                return (Refuse(pending, ModelNotReady(f"{pool.label}: no worker is ready")),)
        remaining_ns = pending.deadline_ns - now_ns
        if remaining_ns <= 0:
            return (Refuse(pending, DeadlineExceeded("deadline passed before the request was queued")),)
        worker, sent_rows = pool.least_loaded(now_ns)
        wait_ns = pool.wait_ns(pending.rows, sent_rows)
        # An idle model is always asked: only its answers can correct an estimate that is wrong by now. Of a worker that
        # is still to come nothing is known.
        if wait_ns > remaining_ns and pool.ready and not pool.idle:
            return (Refuse(pending, _would_be_late(pool, wait_ns, remaining_ns)),)
        if not pool.queue and (taker := pool.taker(worker, pending.rows)) is not None:
            self.pending[pending.sequence] = pending
            return (self._assign(taker, pending, now_ns),)
        if len(pool.queue) >= pool.limits.max_queue:
            error = QueueFull(f"{pool.label}: {len(pool.queue)} requests are waiting (max_queue)")
            error.retry_after_s = _retry_after_s(wait_ns)
            return (Refuse(pending, error),)
        self.pending[pending.sequence] = pending
        pool.queue.append(pending)
        pool.queued_rows += pending.rows
        return ()

    def cancel(self, sequence: int) -> bool:
        """The client is gone. In the queue the request vanishes; in flight, its answer will be dropped.

        Whether it was still to be answered.
        """
        return self._forget(sequence) is not None

    def expire(self, now_ns: int) -> list[Action]:
        """Refuse every request whose deadline has passed."""
        late = [pending for pending in self.pending.values() if pending.deadline_ns <= now_ns]
        actions: list[Action] = []
        for pending in late:
            pool = self.pools[pending.pool]
            _, version = pending.pool
            if pending.worker is not None:
                where = f"waiting for {'the worker' if version else pool.label}"
            else:
                where = "waiting in the queue" if pool.ready else "no worker was ready"
            self._forget(pending.sequence)
            actions.append(Refuse(pending, DeadlineExceeded(f"deadline passed while {where}")))
        return actions

    def next_deadline_ns(self) -> int | None:
        """When `expire` has something to do next; None if nothing is pending."""
        return min((pending.deadline_ns for pending in self.pending.values()), default=None)

    # -- workers ------------------------------------------------------------------------------------------
    def worker_joined(self, worker: int, key: PoolKey, limits: Limits, now_ns: int) -> list[Action]:
        """A worker said hello. `worker` is a number of the shell's, never used twice."""
        if key not in self.pools:
            self.declare(key, limits)
        pool = self.pools[key]
        self.workers[worker] = pool.workers[worker] = Worker(identity=worker, pool=key)
        pool.ready += 1
        return self._feed(pool, now_ns)

    def worker_leaving(self, worker: int) -> list[Action]:
        """A worker said goodbye: it gets nothing more, and its connection is closed after the last answer."""
        leaving = self.workers[worker]
        self._unready(self.pools[leaving.pool], leaving)
        leaving.leaving = True
        return self._closed_if_done(leaving)

    def worker_lost(self, worker: int, now_ns: int) -> list[Action]:
        """A worker's connection ended; what it had goes back to the head of the queue.

        Requests that may have been in the batch that ran are suspects: each is sent once more, alone in its batch.
        The others had not begun and lose nothing but time.
        """
        lost = self.workers.pop(worker)
        pool = self.pools[lost.pool]
        del pool.workers[worker]
        self._unready(pool, lost)
        if not lost.leaving or lost.in_flight:
            pool.counts[WORKER_DEATHS] += 1
        suspects = _may_have_run(lost, pool.limits.max_batch_rows)
        actions: list[Action] = []
        again: list[Pending] = []
        for pending in lost.in_flight.values():
            if pending.sequence not in self.pending:
                continue
            pending.worker = None
            if pending.sequence in suspects:
                pending.deaths += 1
                pending.alone = True
                error = _death(pool, pending)
                if error is not None:
                    del self.pending[pending.sequence]
                    actions.append(Refuse(pending, error))
                    continue
                pool.counts[RETRIES] += 1
            else:
                pool.counts[RETURNED] += 1
            again.append(pending)
        pool.queue.extendleft(reversed(again))
        pool.queued_rows += sum(pending.rows for pending in again)
        if not pool.ready:
            pool.forget_cost()
            pool.without_worker += len(again)
            if not pool.holds:
                actions.extend(self._refuse_queue(pool, "its last worker is gone"))
        actions += self._feed(pool, now_ns)
        self._drop_if_done(pool)
        return actions

    def answered(self, worker: int, head: ResponseHead, now_ns: int) -> Iterable[Action]:
        """A worker answered."""
        answering = self.workers[worker]
        finished = answering.in_flight.pop(head.sequence, None)
        if finished is None:
            self.pools[answering.pool].counts[UNKNOWN_ANSWERS] += 1
            return ()
        answering.rows -= finished.rows
        answering.progress_ns = now_ns
        pool = self.pools[answering.pool]
        if head.rows:
            pool.learn_size(head.rows, finished.size_bytes)
        if head.batch_rows:
            answering.row_ns = pool.row_ns = head.row_service_ns
            answering.batch_ns = pool.batch_ns = head.batch_service_ns
            answering.others_rows = max(0, head.backlog_rows - answering.rows)
        answers: tuple[Action, ...] = ()
        if self.pending.pop(head.sequence, None) is None:
            pool.counts[LATE_ANSWERS] += 1
        else:
            answers = (Answer(finished),)
        if answering.leaving:
            return (*answers, *self._closed_if_done(answering))
        if pool.queue:
            return (*answers, *self._feed(pool, now_ns))
        return answers

    # -- inside -------------------------------------------------------------------------------------------
    def _assign(self, worker: Worker, pending: Pending, now_ns: int) -> Send:
        if not worker.in_flight:
            worker.progress_ns = now_ns
        pending.worker, pending.sent_ns = worker.identity, now_ns
        worker.in_flight[pending.sequence] = pending
        worker.rows += pending.rows
        return Send(worker.identity, pending)

    def _feed(self, pool: Pool, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        while pool.queue:
            worker, _ = pool.least_loaded(now_ns)
            taker = pool.taker(worker, pool.queue[0].rows)
            if taker is None:
                break
            pending = pool.queue.popleft()
            pool.queued_rows -= pending.rows
            actions.append(self._assign(taker, pending, now_ns))
        return actions

    def _forget(self, sequence: int) -> Pending | None:
        pending = self.pending.pop(sequence, None)
        if pending is not None and pending.worker is None:
            pool = self.pools[pending.pool]
            pool.queue.remove(pending)
            pool.queued_rows -= pending.rows
        return pending

    def _unready(self, pool: Pool, worker: Worker) -> None:
        """A worker that took requests does so no more; what is queued may have nobody left."""
        if not worker.leaving:
            pool.ready -= 1
            if not pool.ready:
                pool.without_worker += len(pool.queue)

    def _refuse_queue(self, pool: Pool, reason: str) -> list[Action]:
        refused: list[Action] = []
        while pool.queue:
            pending = pool.queue.popleft()
            del self.pending[pending.sequence]
            refused.append(Refuse(pending, ModelNotReady(f"{pool.label}: {reason}")))
        pool.queued_rows = 0
        return refused

    def _closed_if_done(self, worker: Worker) -> list[Action]:
        return [] if worker.in_flight else [CloseWorker(worker.identity)]


def _may_have_run(worker: Worker, max_batch_rows: int) -> set[int]:
    """The sequences that may have been in the batch that a worker was running.

    A worker runs a connection's requests in the order in which they came, at most `max_batch_rows` rows at a time
    and every row at least once, and answers a batch whole. So the batch is a beginning of what is not answered:
    one request that runs alone, or those before the first such.
    """
    suspects: set[int] = set()
    for pending in worker.in_flight.values():
        if len(suspects) == max_batch_rows or (pending.alone and suspects):
            break
        suspects.add(pending.sequence)
        if pending.alone:
            break
    return suspects


def _death(pool: Pool, pending: Pending) -> WorkerDied | None:
    """What a suspect gets after a death; None: another try."""
    if not pool.limits.retry:
        return WorkerDied(f"{pool.label}: the worker died with the request in flight; the model allows no retry")
    if pending.deaths >= DEATHS_MAX:
        return PoisonRequest(f"{pool.label}: {pending.deaths} workers died while they ran this request")
    return None


def _would_be_late(pool: Pool, wait_ns: int, remaining_ns: int) -> Overloaded:
    error = WouldBeLate(
        f"{pool.label}: the answer would take about {wait_ns // 1_000_000} ms, "
        f"the deadline is in {remaining_ns // 1_000_000} ms"
    )
    error.retry_after_s = _retry_after_s(wait_ns - remaining_ns)
    return error


def _retry_after_s(wait_ns: int) -> int:
    return max(1, min(RETRY_AFTER_MAX_S, -(-wait_ns // _NS_PER_S)))
