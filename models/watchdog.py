"""Ends a process whose model does not return, after writing down where it is.

A timer of the kernel and a signal handler in C (faulthandler), so that it works while native code holds the
interpreter's lock: SIGALRM dumps the stacks of all threads to stderr, then ends the process by its default action.
Whoever reads the process's end sees SIGALRM, which nothing else here uses.
"""

from __future__ import annotations

import faulthandler
import signal


class Watchdog:
    """One timer a process."""

    def __init__(self) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)

    def start(self, limit_s: float) -> None:
        """End the process unless `stop` comes first, or another `start`."""
        signal.setitimer(signal.ITIMER_REAL, limit_s)

    def stop(self) -> None:
        """It returned."""
        signal.setitimer(signal.ITIMER_REAL, 0.0)
