"""Which worker runs which request, and when. Pure and synchronous: state in, actions out; no clock, no socket.

Every method looks at the state, changes it, and returns the I/O that is still to do. Nothing awaits in between, so
there is no race to think about; the shell (`host.links`) carries the actions out.

A request is in exactly one place: in its pool's queue, or in flight on one worker. It leaves with exactly one
`Answer` or `Refuse`, or because its client is gone (`cancel`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from host.protocol.errors import DeadlineExceeded, ModelNotReady, QueueFull, RequestError, WorkerDied
from host.protocol.messages import Limits, ResponseHead

PoolKey = tuple[str, str]
"""Model name and version."""

AHEAD_BATCHES: Final = 2
"""A worker gets at most so many full batches: one that runs, one that is ready when it ends. The rest waits here,
where it can still expire or be cancelled."""

ATTEMPTS_MAX: Final = 2
"""A request that was in flight on a dying worker is sent once more; after the second death it is the suspect."""


@dataclass(slots=True, eq=False)
class Pending:
    """A request from its admission to its answer."""

    sequence: int
    pool: PoolKey
    deadline_ns: int
    rows: int = 1
    """The best estimate until the worker has read the body."""
    attempts: int = 0
    alone: bool = False
    worker: int | None = None
    """Where it is in flight; None while it is queued."""


@dataclass(frozen=True, slots=True)
class Send:
    """Write the request to the worker."""

    worker: int
    sequence: int
    alone: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """Give the worker's answer to the client; the shell has its head and body at hand."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Give the client an error."""

    sequence: int
    error: RequestError


@dataclass(frozen=True, slots=True)
class CloseWorker:
    """Close the connection: the worker said goodbye and has answered everything."""

    worker: int


Action = Send | Answer | Refuse | CloseWorker


@dataclass(slots=True, eq=False)
class Worker:
    """One connection to a worker."""

    identity: int
    pool: PoolKey
    in_flight: dict[int, Pending] = field(default_factory=dict)
    rows: int = 0
    leaving: bool = False


@dataclass(slots=True, eq=False)
class Pool:
    """The workers and the queue of one model version."""

    key: PoolKey
    limits: Limits
    window_rows: int
    workers: dict[int, Worker] = field(default_factory=dict)
    queue: deque[Pending] = field(default_factory=deque)

    @property
    def ready(self) -> int:
        """Workers that take requests."""
        return sum(not worker.leaving for worker in self.workers.values())


class Dispatcher:
    """All pools of one front."""

    def __init__(self) -> None:
        self.pools: dict[PoolKey, Pool] = {}
        self.pending: dict[int, Pending] = {}
        self.workers: dict[int, Worker] = {}
        self.unknown_answers = 0
        """Answers for requests that were finished already: counted and dropped."""

    def __repr__(self) -> str:
        pools = ", ".join(
            f"{name}.v{version}: {pool.ready} ready, {len(pool.queue)} queued, "
            f"{sum(len(worker.in_flight) for worker in pool.workers.values())} in flight"
            for (name, version), pool in self.pools.items()
        )
        return f"<Dispatcher {pools or 'empty'}>"

    def declare(self, key: PoolKey, limits: Limits) -> None:
        """Make a pool exist: its requests are refused as not ready, rather than unknown, while it has no worker."""
        pool = self.pools.get(key)
        window_rows = AHEAD_BATCHES * limits.max_batch_rows
        if pool is None:
            self.pools[key] = Pool(key=key, limits=limits, window_rows=window_rows)
        else:
            pool.limits, pool.window_rows = limits, window_rows

    # -- requests -----------------------------------------------------------------------------------------
    def submit(self, pending: Pending) -> list[Action]:
        """Admit a request: send it, queue it, or refuse it. Its pool must have been declared."""
        pool = self.pools[pending.pool]
        if not pool.queue:
            worker = self._free_worker(pool, pending.rows)
            if worker is not None:
                self.pending[pending.sequence] = pending
                return [self._assign(worker, pending)]
            if not pool.ready:
                name, version = pool.key
                return [
                    Refuse(pending.sequence, ModelNotReady(f"model '{name}' version {version}: no worker is ready"))
                ]
        if len(pool.queue) >= pool.limits.max_queue:
            name, version = pool.key
            error = QueueFull(f"model '{name}' version {version}: {len(pool.queue)} requests are waiting (max_queue)")
            return [Refuse(pending.sequence, error)]
        self.pending[pending.sequence] = pending
        pool.queue.append(pending)
        return []

    def cancel(self, sequence: int) -> list[Action]:
        """The client is gone. In the queue the request vanishes; in flight, its answer will be dropped."""
        pending = self.pending.pop(sequence, None)
        if pending is not None and pending.worker is None:
            self.pools[pending.pool].queue.remove(pending)
        return []

    def expire(self, now_ns: int) -> list[Action]:
        """Refuse every request whose deadline has passed."""
        late = [pending for pending in self.pending.values() if pending.deadline_ns <= now_ns]
        actions: list[Action] = []
        for pending in late:
            where = "waiting in the queue" if pending.worker is None else "waiting for the worker"
            self.cancel(pending.sequence)
            actions.append(Refuse(pending.sequence, DeadlineExceeded(f"deadline passed while {where}")))
        return actions

    def next_deadline_ns(self) -> int | None:
        """When `expire` has something to do next; None if nothing is pending."""
        return min((pending.deadline_ns for pending in self.pending.values()), default=None)

    # -- workers ------------------------------------------------------------------------------------------
    def worker_joined(self, worker: int, key: PoolKey, limits: Limits) -> list[Action]:
        """A worker said hello. `worker` is a number of the shell's, never used twice."""
        if key not in self.pools:
            self.declare(key, limits)
        pool = self.pools[key]
        self.workers[worker] = pool.workers[worker] = Worker(identity=worker, pool=key)
        return self._feed(pool)

    def worker_leaving(self, worker: int) -> list[Action]:
        """A worker said goodbye: it gets nothing more, and its connection is closed after the last answer."""
        leaving = self.workers[worker]
        leaving.leaving = True
        return self._closed_if_done(leaving)

    def worker_lost(self, worker: int) -> list[Action]:
        """A worker's connection ended. Its requests go back to the head of the queue, each alone in its batch."""
        lost = self.workers.pop(worker)
        pool = self.pools[lost.pool]
        del pool.workers[worker]
        actions: list[Action] = []
        again: list[Pending] = []
        for pending in lost.in_flight.values():
            if pending.sequence not in self.pending:
                continue
            pending.worker = None
            pending.alone = True
            if not pool.limits.retry or pending.attempts >= ATTEMPTS_MAX:
                del self.pending[pending.sequence]
                actions.append(Refuse(pending.sequence, WorkerDied(_death_text(pool, pending))))
            else:
                again.append(pending)
        pool.queue.extendleft(reversed(again))
        if not pool.ready:
            actions.extend(self._refuse_queue(pool))
        return actions + self._feed(pool)

    def answered(self, worker: int, head: ResponseHead) -> list[Action]:
        """A worker answered."""
        answering = self.workers[worker]
        finished = answering.in_flight.pop(head.sequence, None)
        if finished is None:
            self.unknown_answers += 1
            return []
        answering.rows -= finished.rows
        actions: list[Action] = []
        if self.pending.pop(head.sequence, None) is not None:
            actions.append(Answer(head.sequence))
        else:
            self.unknown_answers += 1
        if answering.leaving:
            return actions + self._closed_if_done(answering)
        pool = self.pools[answering.pool]
        if pool.queue:
            actions.extend(self._feed(pool))
        return actions

    # -- inside -------------------------------------------------------------------------------------------
    def _free_worker(self, pool: Pool, rows: int) -> Worker | None:
        """The worker with the fewest outstanding rows, if the request fits into its window."""
        best: Worker | None = None
        for worker in pool.workers.values():
            if not worker.leaving and (best is None or worker.rows < best.rows):
                best = worker
        # An idle worker takes any request, so one larger than the window cannot wait for ever.
        if best is None or (best.rows and best.rows + rows > pool.window_rows):
            return None
        return best

    def _assign(self, worker: Worker, pending: Pending) -> Send:
        pending.worker = worker.identity
        pending.attempts += 1
        worker.in_flight[pending.sequence] = pending
        worker.rows += pending.rows
        return Send(worker.identity, pending.sequence, pending.alone)

    def _feed(self, pool: Pool) -> list[Action]:
        actions: list[Action] = []
        while pool.queue:
            worker = self._free_worker(pool, pool.queue[0].rows)
            if worker is None:
                break
            actions.append(self._assign(worker, pool.queue.popleft()))
        return actions

    def _refuse_queue(self, pool: Pool) -> list[Action]:
        name, version = pool.key
        refused: list[Action] = []
        while pool.queue:
            pending = pool.queue.popleft()
            del self.pending[pending.sequence]
            error: RequestError = ModelNotReady(f"model '{name}' version {version}: its last worker is gone")
            refused.append(Refuse(pending.sequence, error))
        return refused

    def _closed_if_done(self, worker: Worker) -> list[Action]:
        return [] if worker.in_flight else [CloseWorker(worker.identity)]


def _death_text(pool: Pool, pending: Pending) -> str:
    name, version = pool.key
    times = "once; the model does not allow a retry" if not pool.limits.retry else f"{pending.attempts} times"
    return f"model '{name}' version {version}: the worker died with the request in flight ({times})"
