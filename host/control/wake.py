"""Has supervisord notice a worker's death now.

Its loop looks for dead children when something wakes it, else once a second, and starts the next one a turn later: two
seconds without a worker at worst. The end of the worker's connection is known within a millisecond, and every question
put to supervisord wakes it, so it is asked about the process until the next one runs.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from host.protocol.errors import HostError
from host.supervisor import AsyncSupervisorClient, ProcessInfo, ProcessState, process_info

logger = logging.getLogger("modelhost.control")

QUESTIONS_MAX: Final = 25
PAUSE_S: Final = 0.04
"""Together a second: after that supervisord has looked by itself."""

_BEFORE_RESTART: Final = frozenset({ProcessState.RUNNING, ProcessState.STARTING, ProcessState.EXITED})


def is_unnoticed(process: ProcessInfo, lost_pid: int) -> bool:
    """Whether supervisord still has to see that the process died, or to start the next one."""
    return process.pid in (lost_pid, 0) and process.state in _BEFORE_RESTART


async def wake_supervisor(client: AsyncSupervisorClient, program: str, lost_pid: int) -> None:
    """Ask about a process that died until the next one runs or it is clear that none will, a second at most."""
    try:
        for _ in range(QUESTIONS_MAX):
            if not is_unnoticed(process_info(await client.call("getProcessInfo", program)), lost_pid):
                return
            await asyncio.sleep(PAUSE_S)
    except HostError as error:
        logger.debug("%s: %s", program, error)
