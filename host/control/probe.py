"""Which workers are ready: one connection to each worker's socket; a hello is ready, the end of it is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from host.control.status import Readiness
from host.links import Link, LinkDirectory
from host.protocol.messages import Hello, Notice, ResponseHead

_ANSWER_MAX_BYTES: Final = 1 << 20
"""Control asks for nothing yet, so nothing large can come."""


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

    def joined(self, link: Link, hello: Hello) -> None:
        """A worker said hello."""
        self._by_link[link.identity] = (link.program, hello.pid)
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
        """Drop an answer: nothing was asked."""

    def noticed(self, link: Link, notice: Notice) -> None:
        """Remember what the feature service says of models whose features cannot be read."""
        self.unready = notice.unready
        self._changed()

    def _gone(self, link: Link) -> None:
        program, pid = self._by_link.pop(link.identity, ("", 0))
        # The slot's next process may have said hello on its own socket before the end of this one is seen.
        if program and self.readiness[program].pid == pid:
            self.readiness[program] = Readiness(ready=False, pid=0, since=time.time())
            self._changed()
