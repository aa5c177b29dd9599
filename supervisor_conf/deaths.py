"""Tells control how processes ended: an RPC interface inside supervisord, which alone gets their wait statuses.

supervisord's own answers show a signal as exit status -1, and for a process that died soon nothing at all. This listens
where it reaps its children, and answers `modelhost.deaths`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any, Final

DEATHS_KEPT: Final = 1024
"""For as long as control is away: at one death a second for a quarter of an hour."""


class DeathsInterface:
    """XML-RPC methods below `modelhost.`."""

    def __init__(self, supervisord: Any) -> None:
        self._options = supervisord.options
        self._serial = 0
        self._deaths: deque[dict[str, Any]] = deque(maxlen=DEATHS_KEPT)
        self._waitpid = self._options.waitpid
        self._options.waitpid = self._reap

    def deaths(self, after: int) -> list[dict[str, Any]]:
        """Every end of a process whose serial number is above `after`, the oldest first.

        Each with `serial`, `program`, `pid`, `status` (of waitpid(2)), `started` and `at` (seconds since the epoch) and
        `asked`: whether supervisord was told to stop it.
        """
        return [death for death in self._deaths if death["serial"] > after]

    def _reap(self) -> tuple[int, int]:
        pid, status = self._waitpid()
        process = self._options.pidhistory.get(pid) if pid else None
        if process is not None:
            self._serial += 1
            group, name = process.group.config.name, process.config.name
            self._deaths.append(
                {
                    "serial": self._serial,
                    "supervisord": os.getpid(),
                    "program": group if group == name else f"{group}:{name}",
                    "pid": pid,
                    "status": status,
                    "started": process.laststart,
                    "at": time.time(),
                    "asked": bool(process.killing),
                }
            )
        return pid, status


def make_interface(supervisord: Any, **options: str) -> DeathsInterface:
    """`supervisor.rpcinterface_factory` of the section `[rpcinterface:modelhost]`."""
    return DeathsInterface(supervisord)
