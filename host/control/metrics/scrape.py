"""`GET /metrics`: the thin shell around `families`. What several ask for at once is gathered once."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import host
from host.control.metrics.exposition import negotiated, text_of
from host.control.metrics.facts import Facts, Known, SlotUsage, UsageReader, pids_of
from host.control.metrics.families import families
from host.isolation.cgroups import CgroupTree
from host.protocol.counters import CounterSet, read_counters
from host.protocol.errors import HostError

logger = logging.getLogger("modelhost.control")

SCRAPE_LIMIT_S: Final = 5.0
"""Half of what Prometheus waits by default."""


class Metrics:
    """Answers scrapes."""

    def __init__(
        self,
        known: Callable[[], Awaitable[Known]],
        counters: Path,
        tree: CgroupTree | None,
        limit_s: float = SCRAPE_LIMIT_S,
    ) -> None:
        """`known`: what control knows now; `counters`: the directory; `tree`: the host's cgroups."""
        self._known = known
        self._counters = counters
        self._limit_s = limit_s
        self._usage = UsageReader(tree)
        self._complained: set[str] = set()
        self._gathering: asyncio.Task[Facts] | None = None

    async def scrape(self, accept: str) -> tuple[bytes, str]:
        """Gather and write; the text and its content type. Raises `HostError` if that takes too long."""
        content_type = negotiated(accept)
        try:
            async with asyncio.timeout(self._limit_s):
                facts = await self._facts()
                return await asyncio.to_thread(lambda: text_of(families(facts), content_type)), content_type
        except TimeoutError:
            raise HostError(f"metrics: not gathered within {self._limit_s:g} s") from None

    async def _facts(self) -> Facts:
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._gather())
            self._gathering.add_done_callback(self._gathered)
        # Whoever gives up must not take it from the others.
        return await asyncio.shield(self._gathering)

    def _gathered(self, task: asyncio.Task[Facts]) -> None:
        self._gathering = None
        if not task.cancelled() and task.exception() is not None:
            logger.error("metrics: %s", task.exception())

    async def _gather(self) -> Facts:
        # Nobody waits longer than he may; what comes later is there for the next one.
        known = await self._known()
        complaints: list[str] = []

        def read() -> tuple[list[CounterSet], dict[str, SlotUsage]]:
            return read_counters(self._counters, complaints.append), self._usage.read(pids_of(known.status))

        counters, usage = await asyncio.to_thread(read)
        for text in sorted({*complaints} - self._complained):
            logger.warning("metrics: %s", text)
        self._complained = set(complaints)
        return Facts(
            known=known,
            counters=counters,
            usage=usage,
            complaints=len(complaints),
            release=host.__version__,
            python=platform.python_version(),
        )
