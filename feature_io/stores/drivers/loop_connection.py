"""cassandra-driver's connections on our own event loop, instead of on a thread of the driver's.

With a thread of its own (libev) the driver and the loop hand one interpreter's lock back and forth, twice for each read
(docs/adr/0020). A class of connection is the driver's way to choose; connecting, negotiating and closing still run in
its threads, and so does what they send: that is handed over.

The driver forgets connections that it makes while it is shut down. So a class knows those of its own that are open, and
`end_all` lets go of them.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Final

from cassandra.connection import Connection, ConnectionShutdown

_READ_BYTES: Final = 1 << 16


class LoopConnection(Connection):  # type: ignore[misc]
    """One connection. `on_loop` makes the class for a loop, which must run as long as the cluster is there."""

    loop: ClassVar[asyncio.AbstractEventLoop]
    loop_thread: ClassVar[int]
    ours: ClassVar[_Open]
    is_closed: bool

    @classmethod
    def on_loop(cls, loop: asyncio.AbstractEventLoop) -> type[LoopConnection]:
        """The class for connections on the running loop, which is the one given."""
        return type(cls.__name__, (cls,), {"loop": loop, "loop_thread": threading.get_ident(), "ours": _Open()})

    @classmethod
    def end_all(cls) -> None:
        """Close what is open, and whatever is opened from now on. By any thread."""
        for connection in cls.ours.end():
            connection.close()

    @classmethod
    def create_timer(cls, timeout: float, callback: Callable[[], None]) -> asyncio.TimerHandle | _DistantTimer:
        """Call back after so many seconds, unless `cancel` is called before."""
        if threading.get_ident() == cls.loop_thread:
            return cls.loop.call_later(timeout, callback)
        timer = _DistantTimer(callback)
        cls.loop.call_soon_threadsafe(cls.loop.call_later, timeout, timer.fire)
        return timer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Connect; blocks, and raises `OSError`. Called by the driver's threads."""
        super().__init__(*args, **kwargs)
        self._outgoing: list[bytes] = []
        self._unsent = b""
        """What the socket did not take."""
        self._flushes = False
        self._connect_socket()
        try:
            self._socket.setblocking(False)
            if not self.ours.add(self):
                raise ConnectionShutdown(f"Connection to {self.endpoint} came after the cluster was shut down")
            self.loop.call_soon_threadsafe(self._begin)
            self._send_options_message()
        except BaseException:
            self.ours.discard(self)
            self._socket.close()
            raise

    def push(self, data: bytes) -> None:
        """Send; everything of one turn of the loop goes out together."""
        if threading.get_ident() == self.loop_thread:
            self._enqueue(data)
        else:
            self.loop.call_soon_threadsafe(self._enqueue, data)

    def close(self) -> None:
        """Fail what is in flight, and let go of the socket."""
        with self.lock:
            if self.is_closed:
                return
            self.is_closed = True
        if threading.get_ident() == self.loop_thread:
            self._end()
        else:
            try:
                self.loop.call_soon_threadsafe(self._end)
            except RuntimeError:  # the loop is closed, and looks at no socket
                self._let_go()
        if not self.is_defunct:
            self.error_all_requests(ConnectionShutdown(f"Connection to {self.endpoint} was closed"))
            self.connected_event.set()

    def _let_go(self) -> None:
        self.ours.discard(self)
        self._socket.close()
        self._outgoing.clear()

    # -- on the loop ------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        if not self.is_closed:
            self.loop.add_reader(self._socket.fileno(), self._readable)

    def _end(self) -> None:
        descriptor = self._socket.fileno()
        if descriptor >= 0:
            self.loop.remove_reader(descriptor)
            self.loop.remove_writer(descriptor)
        self._let_go()

    def _enqueue(self, data: bytes) -> None:
        self._outgoing.append(data)
        if not self._flushes:
            self._flushes = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushes = False
        if self.is_closed or self._unsent:  # the socket says when it takes more
            return
        self._unsent = b"".join(self._outgoing)
        self._outgoing.clear()
        self._send()

    def _writable(self) -> None:
        self.loop.remove_writer(self._socket.fileno())
        self._send()
        self._flush()

    def _send(self) -> None:
        try:
            # TLS wants the same bytes again where it could not take them.
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            self.loop.add_writer(self._socket.fileno(), self._writable)
        except ssl.SSLWantReadError:
            pass  # `_readable` tries again
        except OSError as error:
            self.defunct(error)

    def _readable(self) -> None:
        is_over = False
        try:
            while True:
                data = self._socket.recv(_READ_BYTES)
                self._iobuf.write(data)
                if len(data) < _READ_BYTES:
                    is_over = not data
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.defunct(error)
            return
        try:
            if self._iobuf.tell():
                self.process_io_buffer()
        except Exception as error:
            # Whatever its decoders raise: nothing after it can be read.
            self.defunct(error)
            return
        if is_over:
            self.close()
        elif self._unsent and isinstance(self._socket, ssl.SSLSocket):
            self._send()
            self._flush()


class _Open:
    """The connections of a class that are open. For all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: set[LoopConnection] = set()
        self._is_over = False

    def add(self, connection: LoopConnection) -> bool:
        """Take one more; False if it comes too late."""
        with self._lock:
            if self._is_over:
                return False
            self._connections.add(connection)
            return True

    def discard(self, connection: LoopConnection) -> None:
        """It is open no more."""
        with self._lock:
            self._connections.discard(connection)

    def end(self) -> list[LoopConnection]:
        """Those that are open; from now on none is taken."""
        with self._lock:
            self._is_over = True
            return list(self._connections)


class _DistantTimer:
    """A timer that another thread has set."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Call nobody."""
        self._callback = None

    def fire(self) -> None:
        """The time is over."""
        if self._callback is not None:
            self._callback()
