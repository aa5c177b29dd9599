"""cassandra-driver's connection on our loop, against a server that speaks no CQL."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cassandra.connection import ConnectionShutdown, DefaultEndPoint

from feature_io.stores.drivers.loop_connection import LoopConnection

LIMIT_S = 30.0
REQUEST = b"a request;"


class Server:
    """One connection's other end."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.reader: Any = None
        self.writer: Any = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.connected.set()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Any, Server]]:
    """A connection, whose first message (OPTIONS, 9 bytes) has been read."""
    server = Server()
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    kind = LoopConnection.on_loop(asyncio.get_running_loop())
    connection: Any = await asyncio.to_thread(kind, DefaultEndPoint("127.0.0.1", port), connect_timeout=LIMIT_S)
    try:
        async with asyncio.timeout(LIMIT_S):
            await server.connected.wait()
            assert len(await server.reader.readexactly(9)) == 9
            yield connection, server
    finally:
        connection.close()
        server.writer.close()
        listener.close()
        await listener.wait_closed()
    assert connection._socket.fileno() == -1


def waiting(connection: Any) -> asyncio.Future[Any]:
    """A request in flight: what its callback is given."""
    answer = asyncio.get_running_loop().create_future()
    connection._requests[1] = (answer.set_result, None, None)
    return answer


async def test_what_is_pushed_arrives_in_its_order() -> None:
    async with connected() as (connection, server):
        for number in range(100):
            connection.push(b"%d;" % number)
        expected = b"".join(b"%d;" % number for number in range(100))
        assert await server.reader.readexactly(len(expected)) == expected
        await asyncio.to_thread(connection.push, b"from a thread;")
        assert await server.reader.readuntil(b";") == b"from a thread;"


async def test_what_the_other_side_does_not_take_yet_waits() -> None:
    large = bytes(range(256)) * (1 << 16)
    async with connected() as (connection, server):
        connection.push(large)
        await asyncio.sleep(0)
        for _ in range(3):
            connection.push(REQUEST)
            await asyncio.sleep(0)
        assert connection._unsent
        assert await server.reader.readexactly(len(large)) == large
        assert await server.reader.readexactly(3 * len(REQUEST)) == 3 * REQUEST
        connection.push(REQUEST)
        assert await server.reader.readexactly(len(REQUEST)) == REQUEST


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x84\x00\x00\x01\x06\xff\xff\xff\xff"])
async def test_the_end_of_it_and_nonsense_end_what_is_in_flight(said: bytes) -> None:
    async with connected() as (connection, server):
        answer = waiting(connection)
        server.writer.write(said)
        server.writer.close()
        assert isinstance(await answer, ConnectionShutdown)
        assert connection.is_closed
        assert connection._socket.fileno() == -1
        with pytest.raises(ConnectionShutdown):
            connection.send_msg(None, 1, None)


async def test_a_connection_closed_by_a_thread_is_let_go_of_on_the_loop() -> None:
    async with connected() as (connection, server):
        connection._requests[1] = ((told := []).append, None, None)
        await asyncio.to_thread(connection.close)
        assert isinstance(told[0], ConnectionShutdown)
        assert await server.reader.read() == b""
        connection.push(REQUEST)
        connection.close()
        await asyncio.sleep(0)
        assert connection._socket.fileno() == -1


async def test_all_that_are_open_are_closed_at_the_end_and_so_is_what_comes_later() -> None:
    async with connected() as (connection, server):
        answer = waiting(connection)
        await asyncio.to_thread(type(connection).end_all)
        assert isinstance(await answer, ConnectionShutdown)
        assert await server.reader.read() == b""
        other = Server()
        listener = await asyncio.start_server(other.accept, "127.0.0.1", 0)
        late = DefaultEndPoint("127.0.0.1", listener.sockets[0].getsockname()[1])
        with pytest.raises(ConnectionShutdown, match="after the cluster was shut down"):
            await asyncio.to_thread(type(connection), late, connect_timeout=LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            await other.connected.wait()
            assert await other.reader.read() == b""
        other.writer.close()
        listener.close()
        await listener.wait_closed()


def test_one_that_outlives_its_loop_lets_go_of_its_socket() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    endpoint = DefaultEndPoint(*listener.getsockname())

    async def open_one() -> Any:
        kind = LoopConnection.on_loop(asyncio.get_running_loop())
        return await asyncio.to_thread(kind, endpoint, connect_timeout=LIMIT_S)

    with listener:
        left = asyncio.run(open_one())
        with ThreadPoolExecutor(1) as threads:
            threads.submit(left.close).result()
            assert left._socket.fileno() == -1
            with pytest.raises(RuntimeError, match="closed"):
                threads.submit(type(left), endpoint, connect_timeout=LIMIT_S).result()


async def test_timers_of_the_loop_and_of_threads() -> None:
    kind = LoopConnection.on_loop(asyncio.get_running_loop())
    fired: asyncio.Queue[str] = asyncio.Queue()
    kind.create_timer(0.001, lambda: fired.put_nowait("loop"))
    await asyncio.to_thread(kind.create_timer, 0.002, lambda: fired.put_nowait("thread"))
    # The loop makes no turn before they are cancelled: none can fire, however late this thread is.
    kind.create_timer(0.001, lambda: fired.put_nowait("cancelled")).cancel()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(kind.create_timer, 0.001, lambda: fired.put_nowait("cancelled")).result().cancel()
    for _ in range(2):
        await asyncio.sleep(0)
    # The loop fires timers in the order of their times, and this one's is after all of the others.
    kind.create_timer(0.005, lambda: fired.put_nowait("last"))
    async with asyncio.timeout(LIMIT_S):
        assert {await fired.get(), await fired.get()} == {"loop", "thread"}
        assert await fired.get() == "last"
    assert fired.empty()
