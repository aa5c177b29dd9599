"""Loses no signal for a process that was just started: supervisord's fork, replaced inside supervisord.

Between fork and exec a child has supervisord's own handlers, which note a signal for a loop that the child does not
have. A TERM that came then was forgotten, and the process ran on until its KILL, `stopwaitsecs` later.
"""

from __future__ import annotations

import os
import signal
from typing import Any


def fork() -> int:
    """Do fork(2); the child takes every signal by its default action from its first moment, as its program will.

    Raises `OSError` as `os.fork` does.
    """
    handled = [number for number in signal.valid_signals() if callable(signal.getsignal(number))]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    try:
        pid = os.fork()
        if pid == 0:
            for number in handled:
                signal.signal(number, signal.SIG_DFL)
        return pid
    finally:
        # What came meanwhile is delivered here: to supervisord's handlers in the parent, and to none in the child.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class ForkInterface:
    """Has no methods: an RPC interface is how supervisord lets code in."""

    def __init__(self, supervisord: Any) -> None:
        supervisord.options.fork = fork


def make_interface(supervisord: Any, **options: str) -> ForkInterface:
    """`supervisor.rpcinterface_factory` of the section `[rpcinterface:fork]`."""
    return ForkInterface(supervisord)
