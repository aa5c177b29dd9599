"""What every supervised process does about its own death, and its memory."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>

EXIT_CONFIG: Final = 2
"""Of a process whose package or settings are wrong."""

EXIT_GOLDEN: Final = 3
"""Of a worker that does not reproduce a golden case."""

EXIT_NOT_ISOLATED: Final = 70
"""Of a launcher that failed in a step that it may not leave out; `EX_SOFTWARE` of <sysexits.h>."""

GC_THRESHOLD: Final = 20_000
"""New containers between two looks at the youngest; Python's own is 700."""


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when its parent dies (`prctl(PR_SET_PDEATHSIG, SIGKILL)`).

    Without it the children of a killed supervisord live on, and the next supervisord starts them a second time.
    `parent_pid`: who the parent is expected to be; if it is gone already, the process ends at once.
    """
    expected = os.getppid() if parent_pid is None else parent_pid
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != expected:
        os.kill(os.getpid(), signal.SIGKILL)


def settle_memory() -> None:
    """Have the garbage collector leave alone what is there by now, and look less often at what comes.

    A request leaves no cycles behind, so most collections find nothing; a model's own are still found.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
