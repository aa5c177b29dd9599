"""Which workers are ready, and what they have done: one connection to each worker's socket.

A hello is ready, the end of the connection is not.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from host.control.observe import FeatureCounters, Reading, WorkerCounters
from host.control.status import Readiness
from host.links import Link, LinkDirectory
from host.protocol.messages import Hello, Notice, Operation, RequestHead, ResponseHead

logger = logging.getLogger("modelhost.control")

_ANSWER_MAX_BYTES: Final = 1 << 20
"""Control asks for a few counters, so nothing large can come."""

_NS_PER_S: Final = 1_000_000_000
_decode_counters = msgspec.json.Decoder(WorkerCounters).decode
_decode_features = msgspec.json.Decoder(FeatureCounters).decode


def _nothing(*_: object) -> None:
    pass


class WorkerProbe:
    """Keeps the readiness of every worker, by program name, and never polls. Implements `LinkOwner`."""

    def __init__(
        self,
        sockets: Path,
        changed: Callable[[], None] = _nothing,
        died: Callable[[str, int], None] = _nothing,
    ) -> None:
        """`changed`: called after every change; `died`: with the program and pid of a worker that said no goodbye."""
        self._directory = LinkDirectory(sockets, self, _ANSWER_MAX_BYTES)
        self._changed = changed
        self._died = died
        self._by_link: dict[int, tuple[str, int]] = {}
        self._links: dict[str, Link] = {}
        """The newest link of every program that is ready."""
        self._sequences = itertools.count(1)
        self._asked: dict[tuple[int, int], asyncio.Future[bytes]] = {}
        """By link and sequence: no worker answers for another."""
        self.readiness: dict[str, Readiness] = {}
        self.unready: dict[str, str] = {}
        """Models whose features cannot be read, as `churn.v3`, and why."""
        self.last_ready_pid: dict[str, int] = {}
        """The newest process of each slot that could serve, also after its end."""

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._directory.run()

    async def first_joined(self, limit_s: float) -> None:
        """Wait until all that are ready as the watch begins have said so, but not longer than this."""
        await self._directory.first_joined(limit_s)

    async def read(self, programs: Iterable[str], timeout_s: float) -> dict[str, Reading]:
        """Ask these programs' workers for their counters, all at once; those that are not ready are left out.

        A worker answers between two batches: one that does not within `timeout_s` has no counters in its reading.
        """
        asked = {program: self._links[program] for program in programs if program in self._links}
        readings = await asyncio.gather(*(self._read(link, timeout_s) for link in asked.values()))
        return {
            program: reading
            for (program, link), reading in zip(asked.items(), readings, strict=True)
            if link.identity in self._by_link  # else it ended meanwhile, and how busy it was is nobody's concern
        }

    async def read_features(self, programs: Iterable[str], timeout_s: float) -> list[FeatureCounters]:
        """Ask feature processes for their counters; those that are not ready or do not answer are left out."""
        links = [self._links[program] for program in programs if program in self._links]
        return [one for one in await asyncio.gather(*(self._read_features(link, timeout_s) for link in links)) if one]

    async def _read_features(self, link: Link, timeout_s: float) -> FeatureCounters | None:
        try:
            return _decode_features(await self._ask(link, timeout_s))
        except (TimeoutError, EOFError):
            return None
        except msgspec.DecodeError as error:
            logger.warning("%s: expected its counters, received something else: %s", link.program, error)
            return None

    async def _read(self, link: Link, timeout_s: float) -> Reading:
        _, pid = self._by_link[link.identity]
        try:
            return Reading(pid=pid, counters=_decode_counters(await self._ask(link, timeout_s)))
        except (TimeoutError, EOFError):
            return Reading(pid=pid)
        except msgspec.DecodeError as error:
            logger.warning("%s: expected its counters, received something else: %s", link.program, error)
            return Reading(pid=pid)

    async def _ask(self, link: Link, timeout_s: float) -> bytes:
        """Ask for counters. Raises `TimeoutError`, or `EOFError` if the process ends meanwhile."""
        sequence = next(self._sequences)
        now_ns = time.monotonic_ns()
        head = RequestHead(
            sequence=sequence,
            operation=Operation.STATISTICS,
            received_ns=now_ns,
            deadline_ns=now_ns + int(timeout_s * _NS_PER_S),
        )
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[link.identity, sequence] = answer
        link.send(head)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            del self._asked[link.identity, sequence]

    def joined(self, link: Link, hello: Hello) -> None:
        """A worker said hello."""
        self._by_link[link.identity] = (link.program, hello.pid)
        self._links[link.program] = link
        self.last_ready_pid[link.program] = hello.pid
        self.readiness[link.program] = Readiness(ready=True, pid=hello.pid, since=time.time())
        self._changed()

    def leaving(self, link: Link) -> None:
        """A worker is about to stop; it waits for its connections to be closed."""
        self._gone(link)
        link.close()

    def lost(self, link: Link) -> None:
        """A worker is gone."""
        program, pid = self._by_link.get(link.identity, ("", 0))
        self._gone(link)
        if program:
            self._died(program, pid)

    def answered(self, link: Link, head: ResponseHead, body: bytes) -> None:
        """Give an answer to whoever waits for it; one that comes too late is dropped."""
        waiting = self._asked.get((link.identity, head.sequence))
        if waiting is not None and not waiting.done():
            waiting.set_result(body)

    def noticed(self, link: Link, notice: Notice) -> None:
        """Remember what the feature service says of models whose features cannot be read."""
        self.unready = notice.unready
        self._changed()

    def _gone(self, link: Link) -> None:
        program, pid = self._by_link.pop(link.identity, ("", 0))
        if self._links.get(program) is link:
            del self._links[program]
        for (identity, _), answer in self._asked.items():
            if identity == link.identity and not answer.done():
                answer.set_exception(EOFError())
        # The slot's next process may have said hello on its own socket before the end of this one is seen.
        if program and self.readiness[program].pid == pid:
            self.readiness[program] = Readiness(ready=False, pid=0, since=time.time())
            self._changed()
