"""The life of one front process: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from host.config.deployment import read_deployment
from host.config.run_dir import RunDirectory
from host.config.settings import OTLP_MISSING
from host.front.access_log import AccessLog, StandardError
from host.front.bodies import BodyBudget
from host.front.catalog import Catalog
from host.front.documents import SERVER_NAME
from host.front.fast_lane import LINGER_S, SWEEP_S, WRITE_TIMEOUT_S, FastConnection, FastLane
from host.front.gateway import Gateway
from host.front.handler import Handler
from host.front.headers import RequestIds
from host.front.outcomes import Outcomes, WordsOf, words_in_files
from host.front.routing import Routing
from host.front.shadow import Shadows
from host.front.sharing import Sharing
from host.front.traced_gateway import TracedGateway
from host.front.tracing import Tracer
from host.links import LinkDirectory
from host.protocol.documents import error_document
from host.protocol.errors import ConfigError, HostError, Malformed, Overloaded
from host.protocol.frames import ANSWER_MAX_BYTES
from host.protocol.logs import TEXT
from host.protocol.messages import Encoding
from host.protocol.process import settle_memory

if TYPE_CHECKING:
    from host.front.otlp import TraceSender

logger = logging.getLogger("modelhost.front")

LISTEN_BACKLOG: Final = 1024
_NS_PER_S: Final = 1_000_000_000
FIRST_JOINED_S: Final = 2.0
"""A worker says hello between two batches: one that takes longer is not waited for."""

LAST_TRACES_S: Final = 1.0
"""A front that stops waits so long for the collector to take the last traces."""

HELD_BODIES: Final = 16
"""A front holds at most so many bodies of the largest size, or any number of smaller ones of the same sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontOptions:
    """What one front process is told."""

    run_dir: Path
    index: int
    address: str
    port: int
    max_body_bytes: int
    max_connections: int
    keepalive_s: float
    drain_s: float
    log_format: str = TEXT
    access_log: float = 0.0
    otlp_endpoint: str | None = None
    trace_sample: float = 0.0
    fast_lane: bool = True


async def serve_front(options: FrontOptions) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises `HostError` if the address cannot be listened on."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    # 1. start
    run_dir = RunDirectory(options.run_dir)
    catalog = Catalog(read_deployment(run_dir.routing))
    words = words_in_files(run_dir.counters, options.index)
    sender: TraceSender | None = None
    if options.otlp_endpoint is None:
        gateway = Gateway(loop, catalog, words)
    else:
        gateway, sender = traced_gateway(loop, catalog, words, options)
    sharing = Sharing(gateway, Shadows(loop, gateway))
    budget = BodyBudget(HELD_BODIES * options.max_body_bytes)
    request_ids = RequestIds()
    access = AccessLog(loop, f"front:{options.index}", options.log_format, options.access_log, StandardError().write)
    handler = Handler(catalog, gateway, sharing, budget, request_ids, access, options.max_body_bytes)
    directory = LinkDirectory(run_dir.sockets, gateway, ANSWER_MAX_BYTES)
    links = asyncio.create_task(directory.run())
    http = FrontServer(handler, options, gateway.others)
    lane = FastLane(
        catalog,
        gateway,
        sharing,
        budget,
        request_ids,
        access,
        max_body_bytes=options.max_body_bytes,
        keepalive_s=options.keepalive_s,
        other_lane=http.aiohttp_protocol,
    )
    if options.fast_lane:
        http.fast_lane = lane
    routing = Routing(run_dir, handler, lane, gateway)
    chores = [asyncio.create_task(one) for one in (routing.follow(), lane.sweep(), http.sweep())]
    settle_memory()
    # As soon as it listens it gets its share of the connections, whatever it knows of workers by then.
    await directory.first_joined(FIRST_JOINED_S)
    sock = listening_socket(options.address, options.port)
    listener = await loop.create_server(http.protocol, sock=sock)
    answering = await routing.answer_control(options.index)
    logger.info("listening on %s port %d", options.address, options.port)

    # 2. serve
    ended = asyncio.create_task(stop.wait())
    await asyncio.wait((ended, links, *chores), return_when=asyncio.FIRST_COMPLETED)
    for task in (links, *chores):
        if task.done():
            task.result()

    # 3. drain: not ready any more, no new connections, requests in hand answered, idle connections closed
    logger.info("draining: %d requests in hand", gateway.in_flight)
    draining = time.monotonic()
    handler.stopping = True
    waiting = accept_waiting(sock)
    listener.close()
    for connection in waiting:
        await loop.connect_accepted_socket(http.protocol, connection)
    await lane.stop(options.drain_s)
    http.server.pre_shutdown()
    await http.server.shutdown(max(0.0, options.drain_s - (time.monotonic() - draining)))

    # 4. stop
    for task in (links, *chores):
        task.cancel()
    await asyncio.gather(links, *chores, return_exceptions=True)
    await answering.cleanup()
    access.close()
    if sender is not None:
        await asyncio.to_thread(sender.close, LAST_TRACES_S)
    run_dir.front_socket(options.index).unlink(missing_ok=True)
    logger.info("stopped")


def traced_gateway(
    loop: asyncio.AbstractEventLoop, catalog: Catalog, words_of: WordsOf, options: FrontOptions
) -> tuple[Gateway, TraceSender]:
    """A gateway that makes traces, and who sends them. Raises `ConfigError` without the extra that this takes."""
    try:
        from host.front.otlp import TraceSender
    except ImportError as error:
        raise ConfigError(f"{OTLP_MISSING}: {error}") from error
    tracer = Tracer(options.trace_sample)
    sender = TraceSender(options.otlp_endpoint or "", tracer, f"front:{options.index}")
    sender.start()
    return TracedGateway(loop, catalog, words_of, tracer), sender


class FrontServer:
    """Gives every new connection its lane; holds aiohttp's low-level server and the connection limit."""

    def __init__(self, handler: Handler, options: FrontOptions, outcomes: Outcomes) -> None:
        """`outcomes`: where what is refused without a request is counted."""
        self._outcomes = outcomes
        self._max_connections = options.max_connections
        self.fast_lane: FastLane | None = None
        # A client that goes away cancels its handler, and so its place in the queue.
        self.server = web.Server(handler, handler_cancellation=True)
        self._options: dict[str, Any] = {
            "loop": asyncio.get_running_loop(),
            "access_log": None,
            # `bodies` decompresses: aiohttp does not notice a gzip body that is cut, and knows no limit.
            "auto_decompress": False,
            "keepalive_timeout": options.keepalive_s,
            "lingering_time": LINGER_S,
        }

    def protocol(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        lane = self.fast_lane
        open_connections = len(self.server.connections) + (len(lane.connections) if lane is not None else 0)
        if open_connections >= self._max_connections:
            return _Refusal(self._max_connections, self._outcomes)
        return FastConnection(lane) if lane is not None else self.aiohttp_protocol()

    def aiohttp_protocol(self) -> asyncio.Protocol:
        """The protocol of a connection that aiohttp serves."""
        connection = _AiohttpConnection(self.server, **self._options)
        connection.outcomes = self._outcomes
        return connection

    async def sweep(self) -> None:
        """Cut off clients of aiohttp's connections that do not take their answers, once a second, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_ns = time.monotonic_ns()
            for connection in list(self.server.connections):
                cast("_AiohttpConnection", connection).sweep(now_ns)


class _AiohttpConnection(RequestHandler):
    """A connection that aiohttp serves.

    What aiohttp itself refuses (broken heads, oversized headers) is answered in modelhost's form. aiohttp sets no limit
    to how long a client takes for its answers, not even when it has closed the connection: `sweep` does.
    """

    __slots__ = ("_stuck_ns", "_unsent_bytes", "_wire", "outcomes")

    outcomes: Outcomes
    """Where requests that are not HTTP are counted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin. aiohttp forgets the transport when it closes; it may be open for long after that."""
        self._wire = cast("asyncio.Transport", transport)
        self._stuck_ns = 0
        self._unsent_bytes = 0
        super().connection_made(transport)

    def sweep(self, now_ns: int) -> None:
        """Abort if nothing that waits for the client has been taken for `WRITE_TIMEOUT_S`."""
        unsent_bytes = self._wire.get_write_buffer_size()
        if unsent_bytes == 0 or unsent_bytes < self._unsent_bytes or not self._stuck_ns:
            self._stuck_ns = now_ns
        elif now_ns - self._stuck_ns > WRITE_TIMEOUT_S * _NS_PER_S:
            self._wire.abort()
        self._unsent_bytes = unsent_bytes

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer 400 for a request that is not HTTP; what else comes here is a defect, and logged by aiohttp."""
        if status == 400:
            # Behind the first line aiohttp quotes what it has, which may be another request's body.
            text = " ".join((message or "bad request").partition("\n")[0].split())[:200].rstrip(":")
            error = Malformed(f"not a valid HTTP request: {text}")
            self.outcomes.refused(error)
            body = error_document(error, Encoding.JSON)
            headers = {"Content-Type": "application/json", "Server": SERVER_NAME}
            response = web.Response(body=body, status=400, headers=headers)
            response.force_close()
            return response
        return super().handle_error(request, status, exc, message)


class _Refusal(asyncio.Protocol):
    """A connection beyond the limit: told so at once, and closed."""

    def __init__(self, limit: int, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._error = error = Overloaded(f"the host has its limit of {limit} connections")
        body = error_document(error, Encoding.JSON)
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: {error.retry_after_s}\r\nConnection: close\r\n\r\n"
        )
        self._answer = head.encode() + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Write and close."""
        stream = cast("asyncio.Transport", transport)
        self._outcomes.refused(self._error)
        stream.write(self._answer)
        stream.close()


def accept_waiting(sock: socket.socket) -> list[socket.socket]:
    """Take the connections that nobody has accepted yet: the kernel would reset them when their listener closes."""
    waiting: list[socket.socket] = []
    while True:
        try:
            connection, _ = sock.accept()
        except OSError:  # mostly that there is none
            return waiting
        connection.setblocking(False)
        waiting.append(connection)


def listening_socket(address: str, port: int) -> socket.socket:
    """A socket that several fronts may share (`SO_REUSEPORT`): the kernel spreads connections over them."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind((address, port))
        sock.listen(LISTEN_BACKLOG)
    except OSError as error:
        sock.close()
        raise HostError(f"cannot listen on {address} port {port}: {error.strerror}") from error
    return sock
