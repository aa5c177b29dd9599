"""What `modelhost up` does so that nothing of it is ever left behind: Linux prctl(2) and /proc."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies, instead of init: so they can be found and ended."""
    _prctl(ctypes.CDLL(None, use_errno=True), _PR_SET_CHILD_SUBREAPER, 1)


def terminated_with_parent() -> Callable[[], None]:
    """What a child runs between fork and exec, so that it gets SIGTERM when this process dies, however it dies."""
    libc = ctypes.CDLL(None, use_errno=True)  # loaded before the fork
    parent = os.getpid()

    def before_exec() -> None:
        _prctl(libc, _PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def kill_children() -> int:
    """Kill and reap every child, adopted ones too, until there is none. Return how many there were."""
    killed = 0
    while pids := child_pids(os.getpid()):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass
            killed += 1
    return killed


def child_pids(parent: int, proc: Path = Path("/proc")) -> list[int]:
    """The children of a process."""
    found: list[int] = []
    # Not `*/stat` in one: that looks at each file, and raises if a process ends meanwhile.
    for path in [one / "stat" for one in proc.glob("[0-9]*")]:
        try:
            # The command may hold spaces and parentheses: the fields after its last one are plain.
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
