"""Connections to workers: found by their sockets, kept while they live, gone at EOF.

Every model version has a directory of its own for its sockets, so that no model's code can stand in for another's
worker: a worker that says hello for a model whose directory this is not is not listened to.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Protocol, cast

from asyncinotify import Event, Inotify, Mask

from host.config.run_dir import FEATURES_GROUP, group_name
from host.protocol.errors import FrameError
from host.protocol.frames import Frame, FrameDecoder, Kind
from host.protocol.messages import (
    Hello,
    Notice,
    RequestHead,
    ResponseHead,
    read_hello,
    read_notice,
    read_responses,
    request_frames,
)
from host.protocol.sockets import SOCKET_READY

logger = logging.getLogger("modelhost.links")

HELLO_TIMEOUT_S: Final = 10.0
"""A worker says hello between two batches; one that takes longer is connected to again later."""

FLUSH_REQUESTS: Final = 4
"""A turn that sends more requests than this to one worker does not wait for its own end: the worker begins with the
first ones meanwhile (docs/adr/0008)."""

RECONNECT_S: Final = 0.05
"""Between the end of a link and the next try; a dead worker's socket refuses that one, and it is the last."""

_SOCKET_NAME: Final = re.compile(r"[0-9]{1,3}\.sock")
_RESPONSE: Final = int(Kind.RESPONSE)
"""Compared once for every answer: a plain number is cheaper than an enum's attribute."""

_CHANGES: Final = Mask.CREATE | Mask.MOVED_TO | Mask.ATTRIB | Mask.ONLYDIR


class LinkOwner(Protocol):
    """Who is told what happens on a link. Every method is called from the event loop."""

    def joined(self, link: Link, hello: Hello) -> None:
        """The worker said hello."""
        ...

    def leaving(self, link: Link) -> None:
        """The worker said goodbye: it answers what it has and wants nothing more."""
        ...

    def lost(self, link: Link) -> None:
        """The connection of a worker that had said hello ended."""
        ...

    def answered(self, link: Link, head: ResponseHead, body: bytes) -> None:
        """The worker answered."""
        ...

    def noticed(self, link: Link, notice: Notice) -> None:
        """The feature service says which models it cannot serve. Nobody else may say so."""
        ...


class Link(asyncio.Protocol):
    """One connection to one worker."""

    _identities = itertools.count(1)

    def __init__(self, path: Path, owner: LinkOwner, body_max_bytes: int) -> None:
        self.identity = next(self._identities)
        self.path = path
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.hello: Hello | None = None
        self.greeted = asyncio.Event()
        """There was a hello, or there will be none."""
        self._owner = owner
        # A hello has no body: who is nobody yet gets no memory of ours.
        self._decoder = FrameDecoder(0)
        self._body_max_bytes = body_max_bytes
        self._transport: asyncio.Transport | None = None
        self._unsent: list[RequestHead] = []
        self._hello_timer: asyncio.TimerHandle | None = None

    @property
    def program(self) -> str:
        """The worker as supervisord calls it: `churn.v3:0`."""
        return f"{self.path.parent.name}:{self.path.stem}"

    def send(self, request: RequestHead) -> None:
        """Send a request; what one turn of the loop sends goes out together, `FLUSH_REQUESTS` at most at a time."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(request)
        if len(self._unsent) >= FLUSH_REQUESTS:
            self._flush()

    def close(self) -> None:
        """Close after what is written has been sent."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol ---------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the hello, with a limit."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape, not by class
        self._hello_timer = self._loop.call_later(HELLO_TIMEOUT_S, self._hello_overdue)

    def data_received(self, data: bytes) -> None:
        """Take frames apart and tell the owner."""
        try:
            for frame in self._decoder.feed(data):
                if frame.kind == _RESPONSE and self.hello is not None:
                    for head in read_responses(frame):
                        self._owner.answered(self, head, head.body or frame.body)
                else:
                    self._receive(frame)
        except FrameError as error:
            logger.error("%s: %s; connection closed", self.program, error)
            self._abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the owner, and whoever waits to connect again."""
        self._transport = None
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        try:
            self._decoder.eof()
        except FrameError as truncated:
            logger.warning("%s: %s", self.program, truncated)
        if self.hello is not None:
            self._owner.lost(self)
        if not self.closed.done():
            self.closed.set_result(None)

    def _flush(self) -> None:
        if self._transport is not None and self._unsent:
            self._transport.write(request_frames(self._unsent))
        self._unsent.clear()

    def _receive(self, frame: Frame) -> None:
        if frame.kind == Kind.HELLO and self.hello is None:
            hello = read_hello(frame.head)
            group = group_name(hello.model_name, hello.model_version)
            if group != self.path.parent.name:
                raise FrameError(f"expected a worker of {self.path.parent.name}, received the hello of one of {group}")
            self.hello = hello
            self._decoder.body_max_bytes = self._body_max_bytes
            if self._hello_timer is not None:
                self._hello_timer.cancel()
            self._owner.joined(self, hello)
            self.greeted.set()
        elif frame.kind == Kind.GOODBYE and self.hello is not None:
            self._owner.leaving(self)
        elif frame.kind == Kind.NOTICE and self.hello is not None and self.path.parent.name == FEATURES_GROUP:
            self._owner.noticed(self, read_notice(frame.head))
        else:
            raise FrameError(f"unexpected frame of kind {frame.kind}")

    def _hello_overdue(self) -> None:
        logger.warning("%s: no hello within %.0f s; connection closed", self.program, HELLO_TIMEOUT_S)
        self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class LinkDirectory:
    """Connects to every worker socket below a directory, at once and whenever one appears. Never polls."""

    def __init__(self, directory: Path, owner: LinkOwner, body_max_bytes: int) -> None:
        """`directory` holds one directory of sockets for each model version."""
        self._directory = directory
        self._owner = owner
        self._body_max_bytes = body_max_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[Path, dict[int, Link]] = {}
        self._watching = asyncio.Event()

    async def run(self, watching: Callable[[], None] = lambda: None) -> None:
        """Watch until cancelled; `watching` is called when no socket that appears can be missed any more."""
        try:
            with Inotify() as inotify:
                inotify.add_watch(self._directory, _CHANGES)
                self._look(inotify)
                self._watching.set()
                watching()
                async for event in inotify:
                    self._noticed(inotify, event)
        finally:
            for task in list(self._tasks):
                task.cancel()
            for links in self._open.values():
                for link in links.values():
                    link.close()

    async def first_joined(self, limit_s: float) -> None:
        """Wait for the hello of every worker that is ready as the watch begins, but not longer than this."""
        try:
            async with asyncio.timeout(limit_s):
                await self._watching.wait()
                await asyncio.sleep(0)  # every task that looks at a socket has begun by then
                await asyncio.gather(*(link.greeted.wait() for links in self._open.values() for link in links.values()))
        except TimeoutError:
            pass

    def _noticed(self, inotify: Inotify, event: Event) -> None:
        if Mask.Q_OVERFLOW in event.mask:
            self._look(inotify)
        elif event.path is not None and event.path.parent == self._directory:
            self._look_into(inotify, event.path)
        elif event.path is not None and _is_socket_name(event.path.name):
            self._spawn(self._connect(event.path))

    def _look(self, inotify: Inotify) -> None:
        for path in sorted(self._directory.iterdir()):
            self._look_into(inotify, path)

    def _look_into(self, inotify: Inotify, group: Path) -> None:
        """Watch a model version's directory; what is no directory, or gone already, is none."""
        try:
            # Watched first, then listed: a socket that appears in between is noticed twice, which does no harm.
            inotify.add_watch(group, _CHANGES)
            found = sorted(group.iterdir())
        except (NotADirectoryError, FileNotFoundError):
            return
        except OSError as error:
            logger.error("%s: cannot be watched: %s", group, error)
            return
        for path in found:
            if _is_socket_name(path.name):
                self._spawn(self._connect(path))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, path: Path) -> None:
        """Connect to a socket, unless a link to this very socket is open; stay until it ends, and again.

        A refusal means a socket that nobody listens on any more: whoever listens next makes a new one.
        """
        while True:
            try:
                state = path.lstat()  # noqa: ASYNC240 - one stat of a local directory
                inode = state.st_ino
                if not _is_ready(state) or inode in self._open.setdefault(path, {}):
                    return
                link = Link(path, self._owner, self._body_max_bytes)
                self._open[path][inode] = link
                try:
                    await asyncio.get_running_loop().create_unix_connection(lambda link=link: link, str(path))  # type: ignore[misc]
                    await link.closed
                finally:
                    link.greeted.set()
                    del self._open[path][inode]
            except (FileNotFoundError, ConnectionRefusedError):
                return
            except OSError as error:
                logger.warning("%s:%s: cannot connect: %s", path.parent.name, path.stem, error)
            await asyncio.sleep(RECONNECT_S)


def _is_ready(state: os.stat_result) -> bool:
    """A socket itself, no link to one, whose worker says that it can serve."""
    return stat.S_ISSOCK(state.st_mode) and stat.S_IMODE(state.st_mode) == SOCKET_READY


def _is_socket_name(name: str) -> bool:
    """`0.sock`, by the number of the slot; a worker prepares its socket under a name that begins with a dot."""
    return _SOCKET_NAME.fullmatch(name) is not None
