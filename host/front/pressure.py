"""How busy a front is: by what the kernel counts of its thread, a few times a second at most."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

LOOK_NS: Final = 20_000_000
"""Between two looks, which take 5 us each."""

SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")


class Pressure:
    """The share of its time that a thread ran, or was ready to and waited for a CPU. For the thread that makes it."""

    def __init__(self, spent_ns: Callable[[], int] | None = None) -> None:
        """`spent_ns`: what the thread has spent so since it began."""
        self._spent_ns = spent_ns or spent_by_this_thread()
        self._looked_ns = 0
        self._seen_ns = 0
        self._share = 0.0

    def share(self, now_ns: int) -> float:
        """From 0 to 1, over the time between the last two looks; 0 as long as there were none."""
        passed_ns = now_ns - self._looked_ns
        if passed_ns >= LOOK_NS:
            spent_ns = self._spent_ns()
            if self._looked_ns:
                self._share = min(1.0, (spent_ns - self._seen_ns) / passed_ns)
            self._looked_ns, self._seen_ns = now_ns, spent_ns
        return self._share


def spent_by_this_thread(schedstat: Path = SCHEDSTAT) -> Callable[[], int]:
    """What tells how long this thread ran or waited for a CPU; without the kernel's help, only how long it ran."""
    try:
        descriptor = os.open(schedstat, os.O_RDONLY | os.O_CLOEXEC)
        read_schedstat(os.pread(descriptor, 100, 0))
    except (OSError, ValueError):
        return time.thread_time_ns
    return lambda: read_schedstat(os.pread(descriptor, 100, 0))


def read_schedstat(text: bytes) -> int:
    """Time on a CPU and time on its run queue, in nanoseconds, added (docs.kernel.org/scheduler/sched-stats.html)."""
    ran_ns, waited_ns, _ = map(int, text.split())
    return ran_ns + waited_ns
