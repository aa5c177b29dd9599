"""The worker's loop: one thread, one epoll, all connections.

Each turn reads every frame that is waiting, then runs one batch, then writes the answers: while a batch runs, the
next one gathers in the sockets. Nothing here polls and no timer decides about a batch.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from pathlib import Path
from typing import Final

from host.protocol.errors import FrameError, Internal, RequestError
from host.protocol.frames import FrameDecoder, Kind, encode_frame
from host.protocol.logs import about
from host.protocol.messages import (
    Hello,
    Operation,
    RequestHead,
    ResponseHead,
    hello_frame,
    read_requests,
    response_frames,
)
from host.protocol.sockets import BACKLOG, SOCKET_DRAINED, SOCKET_READY
from models.batching import Backlog
from models.service import Call, Service

logger = logging.getLogger("modelhost.worker")

_READ_BYTES: Final = 256 * 1024
_UNREAD_MAX_BYTES: Final = 64 * 1024 * 1024
"""Answers that a front has not read; beyond it the worker reads no more requests from that front."""
_REQUEST: Final = int(Kind.REQUEST)
_STATISTICS: Final = Operation.STATISTICS
"""Compared once for every frame: to look up an enum's attribute takes longer than to compare."""


class Connection:
    """One front."""

    __slots__ = ("decoder", "interest", "sock", "unread")

    def __init__(self, sock: socket.socket, body_max_bytes: int) -> None:
        self.sock = sock
        self.decoder = FrameDecoder(body_max_bytes)
        self.unread = bytearray()
        self.interest = select.EPOLLIN


class Server:
    """Serves one `Service` on one Unix socket until `stop` is called and the work at hand is answered."""

    def __init__(
        self, service: Service, hello: Hello, path: Path, body_max_bytes: int, listener: socket.socket | None = None
    ) -> None:
        """`listener`: a socket that listens at `path` already, and is ready when its mode says so."""
        self._service = service
        self._hello = hello_frame(hello)
        self._path = path
        self._body_max_bytes = body_max_bytes
        self._backlog: Backlog[Call] = Backlog(service.package.limits.max_batch_rows)
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._given = listener is not None
        self._listener = listener or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        # A signal handler can only set a flag; a byte on this pair wakes the loop to look at it.
        self._wake_out, self._wake_in = socket.socketpair()
        for end in (self._wake_out, self._wake_in):
            end.setblocking(False)
        self._stopping = False

    @property
    def wakeup_fd(self) -> int:
        """Where `signal.set_wakeup_fd` writes."""
        return self._wake_in.fileno()

    def stop(self) -> None:
        """Take no new connections, tell the fronts, answer what was received. Safe in a signal handler."""
        self._stopping = True

    def listen(self) -> None:
        """Say that this worker can serve: by the mode of the socket, or by making one appear, whole."""
        if self._given:
            self._path.chmod(SOCKET_READY)
        else:
            hidden = self._path.with_name(f".{self._path.name}.new")
            hidden.unlink(missing_ok=True)
            self._listener.bind(str(hidden))
            hidden.chmod(SOCKET_READY)
            self._listener.listen(BACKLOG)
            hidden.rename(self._path)
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_out, select.EPOLLIN)
        # A process that the model forks must not hold our sockets open: the fronts would never see our end.
        os.register_at_fork(after_in_child=self._close_in_child)

    def serve(self, drain_s: float) -> None:
        """Run until stopped and drained; `drain_s` bounds the draining."""
        deadline = 0.0
        while True:
            if self._stopping:
                if not deadline:
                    deadline = time.monotonic() + drain_s
                    self._say_goodbye()
                if not self._connections or time.monotonic() >= deadline:
                    break
            self._turn(0.0 if self._backlog else deadline - time.monotonic() if deadline else -1.0)
        self._close()

    def _turn(self, timeout_s: float) -> None:
        events_of = self._epoll.poll(timeout_s)
        start_ns = time.monotonic_ns()
        for fd, events in events_of:
            connection = self._connections.get(fd)
            if connection is not None:
                if events & select.EPOLLOUT:
                    self._write(fd, connection)
                if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    self._read(fd, connection)
            elif fd == self._wake_out.fileno():
                self._wake_out.recv(4096)
            elif fd == self._listener.fileno():
                self._accept()
        if self._backlog:
            self._run_batch(start_ns)

    def _run_batch(self, start_ns: int) -> None:
        batch = self._backlog.take()
        answers = self._service.run(batch, time.monotonic_ns(), self._backlog.rows)
        by_connection: dict[int, list[ResponseHead]] = {}
        for call, answer in zip(batch, answers, strict=True):
            by_connection.setdefault(call.connection, []).append(answer)
        for fd, its_answers in by_connection.items():
            self._send(fd, response_frames(its_answers))
        # The whole turn: reading what came meanwhile and writing the answers is part of what a batch costs.
        self._service.took(time.monotonic_ns() - start_ns)

    # -- connections ------------------------------------------------------------------------------------
    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                logger.error("cannot accept a connection: %s", error)
                return
            sock.setblocking(False)
            self._connections[sock.fileno()] = Connection(sock, self._body_max_bytes)
            self._epoll.register(sock, select.EPOLLIN)
            self._send(sock.fileno(), self._hello)

    def _read(self, fd: int, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_READ_BYTES)
            if not data:
                connection.decoder.eof()
                self._drop(fd)
                return
            frames = connection.decoder.feed(data)
        except BlockingIOError:
            return
        except (FrameError, OSError) as error:
            logger.warning("connection closed: %s", error)
            self._drop(fd)
            return
        start_ns = time.perf_counter_ns()
        calls: list[Call] = []
        refusals: list[ResponseHead] = []
        for frame in frames:
            try:
                if frame.kind != _REQUEST:
                    raise FrameError(f"expected a request frame, received kind {frame.kind}")
                heads = read_requests(frame)
            except FrameError as error:
                logger.warning("connection closed: %s", error)
                self._drop(fd)
                return
            for head in heads:
                received = self._receive(head, head.body or frame.body, fd)
                if isinstance(received, Call):
                    calls.append(received)
                else:
                    refusals.append(received)
        self._backlog.add(fd, calls)
        self._service.decoded(len(calls), time.perf_counter_ns() - start_ns)
        if refusals:
            self._send(fd, response_frames(refusals))

    def _receive(self, head: RequestHead, body: bytes, fd: int) -> Call | ResponseHead:
        """What a request comes to: a call that waits for its batch, or an answer at once."""
        if head.operation is _STATISTICS:
            return self._service.statistics_answer(head)
        try:
            return self._service.decode(head, body, fd)
        except RequestError as error:
            return self._service.refusal(head, error)
        except Exception:
            # A defect of ours costs this request, and not the worker with everyone else's.
            logger.exception("decoding failed", extra=about(head.request_id, head.traceparent))
            return self._service.refusal(head, Internal("internal error; the worker's log has the details"))

    def _send(self, fd: int, data: bytes) -> None:
        connection = self._connections.get(fd)
        if connection is None:
            return
        if not connection.unread:
            try:
                sent = connection.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(fd)
                return
            if sent == len(data):
                return
            data = data[sent:]
        connection.unread += data
        self._watch(fd, connection)

    def _write(self, fd: int, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.unread)
        except BlockingIOError:
            return
        except OSError:
            self._drop(fd)
            return
        del connection.unread[:sent]
        self._watch(fd, connection)

    def _watch(self, fd: int, connection: Connection) -> None:
        """Ask epoll for what matters now: a front that does not read its answers is not read either."""
        interest = 0
        if connection.unread:
            interest |= select.EPOLLOUT
        if len(connection.unread) <= _UNREAD_MAX_BYTES:
            interest |= select.EPOLLIN
        if interest != connection.interest:
            connection.interest = interest
            self._epoll.modify(fd, interest)

    def _drop(self, fd: int) -> None:
        connection = self._connections.pop(fd, None)
        if connection is None:
            return
        self._backlog.drop(fd)
        self._epoll.unregister(fd)
        connection.sock.close()

    def _close_in_child(self) -> None:
        """Close this process' copies; what epoll watches belongs to the parent as well and stays as it is."""
        for connection in self._connections.values():
            connection.sock.close()
        for ours in (self._listener, self._epoll, self._wake_in, self._wake_out):
            ours.close()

    # -- the end ----------------------------------------------------------------------------------------
    def _say_goodbye(self) -> None:
        if self._given:
            self._path.chmod(SOCKET_DRAINED)
        else:
            self._path.unlink(missing_ok=True)
        self._epoll.unregister(self._listener)
        self._listener.close()
        for fd in list(self._connections):
            self._send(fd, encode_frame(Kind.GOODBYE, b""))

    def _close(self) -> None:
        for fd in list(self._connections):
            self._drop(fd)
        self._epoll.close()
        self._wake_in.close()
        self._wake_out.close()
