"""Readiness follows the workers' sockets."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.control.observe import Reading, WorkerCounters
from host.control.probe import WorkerProbe
from host.protocol.frames import FrameDecoder, Kind, encode_frame
from host.protocol.messages import (
    Hello,
    Limits,
    Operation,
    RequestHead,
    ResponseHead,
    hello_frame,
    read_requests,
    response_frames,
)
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


def answer(head: RequestHead, body: bytes) -> bytes:
    return response_frames([ResponseHead(sequence=head.sequence, status=200, body=body)])


class FakeWorker:
    """Listens as a worker does and says what it is told to."""

    def __init__(self, path: Path, first: bytes) -> None:
        self._path = path
        self._first = first
        self._writers: list[asyncio.StreamWriter] = []
        self._decoder = FrameDecoder(0)
        self.asked: asyncio.Queue[RequestHead] = asyncio.Queue()
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
        while data := await reader.read(65536):
            for frame in self._decoder.feed(data):
                for head in read_requests(frame):
                    self.asked.put_nowait(head)
        writer.close()
        self.closed.set()

    def say(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)

    async def answer(self, body: bytes) -> None:
        """Wait for a question and answer it."""
        head = await self.asked.get()
        assert head.operation is Operation.STATISTICS
        self.say(answer(head, body))

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
        async with asyncio.timeout(30):
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
    async with asyncio.timeout(30):
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
    async with asyncio.timeout(30):
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
    async with asyncio.timeout(30):
        await silent.connected.wait()
    await watched.until("a.v1:1", True, 6)
    assert "a.v1:0" not in watched.probe.readiness
    await silent.die()
    await talking.die()


# -- counters -----------------------------------------------------------------------------------------------------
LONG_S = 60.0
SHORT_S = 0.05


async def start(watched: Watched, slot: int, pid: int) -> FakeWorker:
    worker = FakeWorker(watched.directory / "a.v1" / f"{slot}.sock", hello(pid))
    await worker.start()
    await watched.until(f"a.v1:{slot}", True, pid)
    return worker


async def test_workers_are_asked_for_their_counters_all_at_once(watched: Watched) -> None:
    first, second = await start(watched, 0, 5), await start(watched, 1, 6)
    programs = ["a.v1:0", "a.v1:1", "a.v1:2"]
    asking = asyncio.create_task(watched.probe.read(programs, LONG_S))
    # Not in the order in which they were asked.
    await second.answer(b'{"busy_ns": 2, "at_ns": 8}')
    await first.answer(b'{"busy_ns": 1, "at_ns": 7, "name": "a"}')
    assert await asking == {
        "a.v1:0": Reading(pid=5, counters=WorkerCounters(busy_ns=1, at_ns=7)),
        "a.v1:1": Reading(pid=6, counters=WorkerCounters(busy_ns=2, at_ns=8)),
    }
    assert await watched.probe.read(["b.v1:0"], LONG_S) == {}
    await first.die()
    await second.die()


async def test_a_worker_that_does_not_answer_in_time_has_no_counters(watched: Watched) -> None:
    worker = await start(watched, 0, 5)
    assert await watched.probe.read(["a.v1:0"], SHORT_S) == {"a.v1:0": Reading(pid=5)}
    # Its late answer is dropped, and not taken for that of the next question.
    await worker.answer(b'{"busy_ns": 1, "at_ns": 1}')
    asking = asyncio.create_task(watched.probe.read(["a.v1:0"], LONG_S))
    await worker.answer(b'{"busy_ns": 2, "at_ns": 2}')
    assert (await asking)["a.v1:0"].counters == WorkerCounters(busy_ns=2, at_ns=2)
    await worker.die()


async def test_a_worker_that_answers_something_else_has_no_counters(watched: Watched) -> None:
    worker = await start(watched, 0, 5)
    for body in (b"", b"[]", b'{"busy_ns": -1, "at_ns": 1}', b'{"busy_ns": "many"}'):
        asking = asyncio.create_task(watched.probe.read(["a.v1:0"], LONG_S))
        await worker.answer(body)
        assert await asking == {"a.v1:0": Reading(pid=5)}
    await worker.die()


async def test_no_worker_answers_for_another(watched: Watched) -> None:
    first, second = await start(watched, 0, 5), await start(watched, 1, 6)
    asking = asyncio.create_task(watched.probe.read(["a.v1:0"], LONG_S))
    head = await first.asked.get()
    second.say(answer(head, b'{"busy_ns": 9, "at_ns": 9}'))
    # An answer of its own comes after the forged one on its connection.
    other = asyncio.create_task(watched.probe.read(["a.v1:1"], LONG_S))
    await second.answer(b'{"busy_ns": 2, "at_ns": 2}')
    await other
    assert not asking.done()
    first.say(answer(head, b'{"busy_ns": 1, "at_ns": 1}'))
    assert (await asking)["a.v1:0"].counters == WorkerCounters(busy_ns=1, at_ns=1)
    await first.die()
    await second.die()


async def test_a_worker_that_dies_while_it_is_asked_is_left_out(watched: Watched) -> None:
    worker = await start(watched, 0, 5)
    asking = asyncio.create_task(watched.probe.read(["a.v1:0"], LONG_S))
    await worker.asked.get()
    await worker.die()
    async with asyncio.timeout(LONG_S / 2):
        assert await asking == {}
