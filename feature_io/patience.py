"""Limits for waits that are many at a time: `asyncio.timeout` for a seventh of its cost, as every read has one."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Final, Self

TICK_S: Final = 0.001
"""Limits are looked at no more often than this, so a wait ends that much late at most."""


class Patience:
    """All limits of one owner on one event loop, with one timer for them together.

    Most waits end long before their limit, so a limit costs an entry in a set; all are looked at when the earliest of
    those that the timer knows of is over.
    """

    __slots__ = ("_due_s", "_limits", "_loop", "_timer")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        """Looked up once: CPython 3.11 makes a system call each time."""
        self._limits: set[Limit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf
        """When the timer is."""

    def limit(self, timeout_s: float) -> Limit:
        """A limit for what this task awaits inside it. Raises `RuntimeError` outside of a task."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a limit for a wait needs a task that waits")
        return Limit(self, task, loop.time() + timeout_s)

    def end(self) -> None:
        """The time of all waits is over, now. A limit may be begun afterwards, on another loop too."""
        for limit in list(self._limits):
            limit.end()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due_s, self._loop = None, math.inf, None

    def __len__(self) -> int:
        """Waits that go on."""
        return len(self._limits)

    def __contains__(self, limit: Limit) -> bool:
        """Whether this wait goes on."""
        return limit in self._limits

    def begin(self, limit: Limit) -> None:
        """What a limit calls."""
        self._limits.add(limit)
        if limit.due_s < self._due_s:
            self._arm(limit.due_s)

    def forget(self, limit: Limit) -> None:
        """What a limit calls."""
        self._limits.discard(limit)

    def _arm(self, due_s: float) -> None:
        assert self._loop is not None  # noqa: S101 - there is a limit, which looked it up
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._loop.call_later(max(TICK_S, due_s - self._loop.time()), self._look)

    def _look(self) -> None:
        assert self._loop is not None  # noqa: S101
        self._timer, self._due_s = None, math.inf
        now_s = self._loop.time()
        for limit in [limit for limit in self._limits if limit.due_s <= now_s]:
            limit.end()
        if self._limits:
            self._arm(min(limit.due_s for limit in self._limits))


class Limit:
    """What is awaited inside is cancelled when the time is over, and leaves as `TimeoutError`.

    As in `asyncio.timeout`, a task that others cancel at the same time stays cancelled.
    """

    __slots__ = ("_cancelling", "_is_over", "_owner", "_task", "due_s")

    def __init__(self, owner: Patience, task: asyncio.Task[object], due_s: float) -> None:
        self.due_s = due_s
        """By the loop's clock."""
        self._owner = owner
        self._task = task
        self._cancelling = task.cancelling()
        self._is_over = False

    def end(self) -> None:
        """The time is over, now; for a wait that has ended this does nothing."""
        if self not in self._owner:
            return
        self._owner.forget(self)
        self._is_over = True
        self._task.cancel()

    def __enter__(self) -> Self:
        self._owner.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner.forget(self)
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
