"""The feature service's socket: frames in, frames out, one connection for each front."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from feature_io.service import FeatureService
from feature_io.stores import Store, make_store
from host.config.deployment import read_deployment
from host.config.features import Store as StoreConfig
from host.config.run_dir import FEATURES_GROUP, RunDirectory
from host.config.watch import replacements
from host.protocol.counters import counters_or_private
from host.protocol.errors import ConfigError, FrameError
from host.protocol.frames import FrameDecoder, Kind, encode_frame
from host.protocol.messages import Hello, Limits, hello_frame, notice_frame, read_requests
from host.protocol.process import settle_memory
from host.protocol.sockets import BACKLOG, SOCKET_DRAINED, SOCKET_READY, given_socket
from host.protocol.types import Signature

logger = logging.getLogger("modelhost.features")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureOptions:
    """What one feature process is told."""

    run_dir: Path
    index: int
    cache_bytes: int
    body_max_bytes: int
    drain_s: float


async def serve_features(
    options: FeatureOptions, pid: int, store_of: Callable[[StoreConfig], Store] = make_store
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was received and end."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    run_dir = RunDirectory(options.run_dir)
    deployment = read_deployment(run_dir.routing)
    connections: set[_Connection] = set()

    def changed() -> None:
        for connection in connections:
            connection.write(notice_frame(service.notice()))

    writer = f"{FEATURES_GROUP}:{options.index}"
    service = FeatureService(
        deployment.features,
        deployment.models,
        options.cache_bytes,
        store_of,
        changed,
        options.body_max_bytes,
        lambda layout, group: counters_or_private(run_dir.counters, layout, writer, group, logger.error),
    )
    hello = Hello(
        model_name=FEATURES_GROUP,
        model_version="",
        slot=options.index,
        pid=pid,
        platform="modelhost_features",
        signature=Signature((), ()),
        limits=Limits(),
    )
    try:
        await service.start()
        path = run_dir.worker_socket(FEATURES_GROUP, options.index)
        listener = given_socket() or _own_socket(path)
        server = await loop.create_unix_server(
            lambda: _Connection(service, hello, connections, options.body_max_bytes), sock=listener, backlog=BACKLOG
        )
        settle_memory()
        path.chmod(SOCKET_READY)
        logger.info("ready: %d views", len(deployment.features.views))
        following = asyncio.create_task(_follow(service, run_dir))
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait((ended, following), return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, following):
            task.cancel()
        if not stop.is_set():
            await following
        path.chmod(SOCKET_DRAINED)
        server.close()
        await _drain(connections, options.drain_s)
    finally:
        await service.close()
    logger.info("stopped")


async def _follow(service: FeatureService, run_dir: RunDirectory) -> None:
    """Know every version before its first request comes: from when it should run."""
    async for _ in replacements(run_dir.deployment):
        try:
            service.serve(read_deployment(run_dir.deployment).models)
        except ConfigError as error:
            logger.error("new versions are not known here: %s", error)


async def _drain(connections: set[_Connection], drain_s: float) -> None:
    """Say goodbye, and wait until every front has closed."""
    for connection in list(connections):
        connection.write(encode_frame(Kind.GOODBYE, b""))
    if connections:
        await asyncio.wait([connection.closed for connection in connections], timeout=drain_s)
    for connection in list(connections):
        connection.abort()


def _own_socket(path: Path) -> socket.socket:
    """A socket for a process that was started without the launcher."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    return listener


class _Connection(asyncio.Protocol):
    """One front, or whoever else the socket lets in."""

    def __init__(
        self, service: FeatureService, hello: Hello, connections: set[_Connection], body_max_bytes: int
    ) -> None:
        self._service = service
        self._hello = hello
        self._connections = connections
        self._decoder = FrameDecoder(body_max_bytes)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def write(self, frame: bytes) -> None:
        """Send a frame, unless the other side is gone; what one turn of the loop sends goes out together."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(frame)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol -------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who answers here, and what cannot be answered."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape, not by class
        self._connections.add(self)
        self._transport.write(hello_frame(self._hello) + notice_frame(self._service.notice()))

    def data_received(self, data: bytes) -> None:
        """Begin every request that is whole."""
        try:
            for frame in self._decoder.feed(data):
                if frame.kind != Kind.REQUEST:
                    raise FrameError(f"expected a request frame, received kind {frame.kind}")
                for head in read_requests(frame):
                    self._service.handle(head, head.body or frame.body, self.write)
        except FrameError as error:
            logger.warning("connection closed: %s", error)
            self.abort()

    def pause_writing(self) -> None:
        """The front does not take its answers: read no more of its requests."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Answers that are still to come are dropped."""
        self._transport = None
        self._connections.discard(self)
        self.closed.set_result(None)
