"""Readiness follows the workers' sockets."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.control.probe import WorkerProbe
from host.protocol.frames import Kind, encode_frame
from host.protocol.messages import Hello, Limits, hello_frame
from host.protocol.types import Signature


def hello(pid: int) -> bytes:
    return hello_frame(
        Hello(
            model_name="a",
            model_version="1",
            slot=0,
            pid=pid,
            platform="python",
            signature=Signature((), ()),
            limits=Limits(),
        )
    )


class FakeWorker:
    """Listens as a worker does and says what it is told to."""

    def __init__(self, path: Path, first: bytes) -> None:
        self._path = path
        self._first = first
        self._writers: list[asyncio.StreamWriter] = []
        self.connected = asyncio.Event()
        self.closed = asyncio.Event()

    async def start(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        hidden = self._path.with_name(f".{self._path.name}.new")
        self._server = await asyncio.start_unix_server(self._accept, hidden)
        hidden.chmod(0o600)
        hidden.rename(self._path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.connected.set()
        writer.write(self._first)
        await reader.read()
        writer.close()
        self.closed.set()

    def say(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)

    async def die(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


class Watched:
    """A probe that runs, and a way to wait for what it sees."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._changed = asyncio.Event()
        self.died: list[tuple[str, int]] = []
        self.probe = WorkerProbe(directory, self._changed.set, lambda program, pid: self.died.append((program, pid)))

    async def until(self, program: str, ready: bool, pid: int = 0) -> None:
        async with asyncio.timeout(5):
            while (seen := self.probe.readiness.get(program)) is None or (seen.ready, seen.pid) != (ready, pid):
                await self._changed.wait()
                self._changed.clear()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as directory:
        watched = Watched(Path(directory))
        task = asyncio.create_task(watched.probe.run())
        yield watched
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_hello_is_ready_and_its_end_is_not(watched: Watched) -> None:
    worker = FakeWorker(watched.directory / "a.v1" / "0.sock", hello(5))
    await worker.start()
    await watched.until("a.v1:0", True, 5)
    before = watched.probe.readiness["a.v1:0"].since
    await worker.die()
    await watched.until("a.v1:0", False)
    assert watched.probe.readiness["a.v1:0"].since >= before
    assert watched.died == [("a.v1:0", 5)]


async def test_goodbye_is_not_ready_and_the_connection_is_closed(watched: Watched) -> None:
    worker = FakeWorker(watched.directory / "a.v1" / "0.sock", hello(5))
    await worker.start()
    await watched.until("a.v1:0", True, 5)
    (watched.directory / "a.v1" / "0.sock").unlink()
    worker.say(encode_frame(Kind.GOODBYE, b""))
    await watched.until("a.v1:0", False)
    async with asyncio.timeout(5):
        await worker.closed.wait()
    await worker.die()
    assert watched.died == []


async def test_the_next_process_of_a_slot_stays_ready_when_the_last_one_ends(watched: Watched) -> None:
    first = FakeWorker(watched.directory / "a.v1" / "0.sock", hello(5))
    await first.start()
    await watched.until("a.v1:0", True, 5)
    second = FakeWorker(watched.directory / "a.v1" / "0.sock", hello(6))
    await second.start()
    await watched.until("a.v1:0", True, 6)
    first.say(encode_frame(Kind.GOODBYE, b""))
    async with asyncio.timeout(5):
        await first.closed.wait()
    assert watched.probe.readiness["a.v1:0"].pid == 6
    await second.die()
    await watched.until("a.v1:0", False)
    await first.die()


async def test_a_socket_that_says_nothing_is_not_ready(watched: Watched) -> None:
    silent = FakeWorker(watched.directory / "a.v1" / "0.sock", b"")
    talking = FakeWorker(watched.directory / "a.v1" / "1.sock", hello(6))
    await silent.start()
    await talking.start()
    async with asyncio.timeout(5):
        await silent.connected.wait()
    await watched.until("a.v1:1", True, 6)
    assert "a.v1:0" not in watched.probe.readiness
    await silent.die()
    await talking.die()
