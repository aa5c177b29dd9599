"""What runs next. Pure: no clock, no socket.

Natural batching: a batch is whatever arrived while the last one ran, up to the model's limit of rows. A request
alone never waits for company, and load by itself makes the batches large.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar


class Batchable(Protocol):
    """What batching needs to know of a waiting call."""

    @property
    def rows(self) -> int:
        """Rows that it adds to a batch."""
        ...

    @property
    def join_key(self) -> Hashable:
        """Calls of equal keys may run in one batch; None never joins."""
        ...


CallT = TypeVar("CallT", bound=Batchable)


class Backlog(Generic[CallT]):
    """Calls that wait, in order of arrival per connection."""

    def __init__(self, max_batch_rows: int) -> None:
        self._max_batch_rows = max_batch_rows
        self._queues: OrderedDict[Hashable, deque[CallT]] = OrderedDict()
        self.rows = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, connection: Hashable, calls: Sequence[CallT]) -> None:
        """Queue calls behind the others of their connection."""
        if not calls:
            return
        queue = self._queues.get(connection)
        if queue is None:
            queue = self._queues[connection] = deque()
        queue.extend(calls)
        self.rows += sum([call.rows for call in calls])

    def drop(self, connection: Hashable) -> None:
        """Forget the calls of a connection that is gone: nobody would read their answers."""
        self.rows -= sum(call.rows for call in self._queues.pop(connection, ()))

    def take(self) -> list[CallT]:
        """Take the next batch: at most `max_batch_rows` rows of one join key, connections in turn.

        A connection whose first call does not fit waits for the next batch, so its own order is kept; the
        connection that was served first goes to the end, so one that floods does not starve another.
        """
        if len(self._queues) == 1 and self.rows <= self._max_batch_rows:
            [(connection, queue)] = self._queues.items()
            if len(queue) == 1 or (len(keys := {call.join_key for call in queue}) == 1 and None not in keys):
                del self._queues[connection]
                self.rows = 0
                return list(queue)
        batch: list[CallT] = []
        rows, most = 0, self._max_batch_rows
        key: Hashable = None
        waiting = deque(self._queues.items())
        while waiting:
            connection, queue = waiting.popleft()
            call = queue[0]
            if batch and (key is None or call.join_key != key or rows + call.rows > most):
                continue
            key = call.join_key
            batch.append(queue.popleft())
            rows += call.rows
            if queue:
                waiting.append((connection, queue))
            else:
                del self._queues[connection]
        if self._queues and batch:
            self._queues.move_to_end(next(iter(self._queues)))
        self.rows -= rows
        return batch
