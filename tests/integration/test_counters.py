"""Counters on a real host: their sums are what the clients counted, whoever was killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import aiohttp
import pytest
from hosts import CALL_LIMIT_S, RunningHost, tensors, until
from packages import write_fragile, write_gated, write_texts
from versions import watched, write_versions

from host.protocol.counters import FRONT, LAYOUTS, STATUSES, CounterSet, read_counters
from host.protocol.errors import HTTP_STATUS

pytestmark = pytest.mark.integration

MakeHost = Callable[..., RunningHost]
Counts = Counter[tuple[str, int]]
"""Group and status to requests."""

CLIENTS = 8
ROUNDS = 60
LISTENING = " listening on "
"""What a front logs when it does."""
_CODES = {f"refused_{error.code}": status for error, status in HTTP_STATUS.items()}


def in_files(host: RunningHost, complain: Callable[[str], None] = pytest.fail) -> list[CounterSet]:
    return read_counters(host.run_dir.counters, complain)


def counted(host: RunningHost) -> Counts:
    """What the fronts have counted."""
    found: Counts = Counter()
    for one in in_files(host):
        if one.kind == FRONT.kind:
            for name, value in one.values.items():
                if name == "answered_other":
                    assert value == 0
                elif name.startswith("answered_"):
                    found[one.group, int(name.removeprefix("answered_"))] += value
                elif name in _CODES:
                    found[one.group, _CODES[name]] += value
    return found


def summed(host: RunningHost, kind: str, name: str) -> int:
    return sum(one.values[name] for one in in_files(host) if one.kind == kind)


def number(value: int) -> dict[str, Any]:
    return tensors(x=("INT64", [1, 1], [value]))


REQUESTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("fragile.v1", "/v2/models/fragile/infer", {"json": number(1)}),
    ("fragile.v1", "/v2/models/fragile/infer", {"json": number(13)}),  # raises
    ("fragile.v1", "/v2/models/fragile/versions/1/infer", {"json": number(2)}),
    ("fragile.v1", "/v2/models/fragile/infer", {"data": b"{"}),
    ("", "/v2/models/fragile/infer", {"data": b"{}", "headers": {"Content-Type": "text/xml"}}),
    ("fragile.v1", "/v2/models/fragile/infer", {"data": b"no gzip", "headers": {"Content-Encoding": "gzip"}}),
    ("fragile.v1", "/v2/models/fragile/infer", {"json": number(1), "headers": {"X-Request-Timeout-Ms": "none"}}),
    ("texts.v1", "/v2/models/texts/infer", {"json": tensors(text=("BYTES", [1, 1], ["a"]))}),
    ("texts.v1", "/v2/models/texts/infer", {"json": tensors(other=("BYTES", [1, 1], ["a"]))}),
    ("", "/v2/models/nobody/infer", {"json": number(1)}),
    ("", "/v2/models/fragile/versions/9/infer", {"json": number(1)}),
    ("", "/nowhere", {"data": b""}),
    ("", "/v1/features:batch", {"json": {"views": []}}),
)


async def ask(session: aiohttp.ClientSession, url: str, seen: Counts) -> None:
    """Ask everything once, and count the answers. Whatever gets none is a failure."""
    for group, path, options in REQUESTS:
        async with session.post(url + path, **options) as response:
            await response.read()
        seen[group, response.status] += 1


def new_process(host: RunningHost, program: str, killed: int, listened: int) -> bool:
    """Whether there is another one. A front is RUNNING for supervisord when it lives; `listened`: how often it did."""
    slot = host.slot(program)
    there = slot.ready and slot.pid not in (0, killed)
    return there and (not program.startswith("front:") or host.log(program).count(LISTENING) > listened)


async def killed(host: RunningHost, program: str) -> None:
    """Kill a process, and wait until another one does its work."""
    pid = (await asyncio.to_thread(host.slot, program)).pid
    listened = host.log(program).count(LISTENING)
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: new_process(host, program, pid, listened), f"another {program}")


@contextmanager
def counters_watched(host: RunningHost) -> Iterator[None]:
    """Read the files again and again: no counter may ever be less than it was."""
    stop, backwards = Event(), []
    gauges = {name for layout in LAYOUTS.values() for name in layout.gauges}

    def watch() -> None:
        before: dict[tuple[str, str, str, str], int] = {}
        while not stop.wait(0.01):
            for one in in_files(host, backwards.append):
                sums = {name: latencies.count for name, latencies in one.histograms.items()}
                for name, value in (one.values | sums).items():
                    key = (one.kind, one.writer, one.group, name)
                    if value < before.get(key, 0) and name not in gauges:
                        backwards.append(f"{key}: {before[key]} -> {value}")
                    before[key] = value

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert backwards == []


async def test_sums_are_what_clients_counted_whoever_is_killed(repository: Path, make_host: MakeHost) -> None:
    write_fragile(repository)
    write_texts(repository)
    host = make_host(repository, fronts=2, processes={"fragile": 2})
    host.start()
    before, seen = counted(host), Counter[tuple[str, int]]()
    timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)

    async def client(rounds: int, force_close: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=force_close)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            for _ in range(rounds):
                await ask(session, host.url, seen)

    async def load(rounds: int) -> None:
        await asyncio.gather(*(client(rounds, force_close=place % 2 == 0) for place in range(CLIENTS)))

    with counters_watched(host):
        loading = asyncio.create_task(load(ROUNDS))
        for program in ("fragile.v1:0", "texts.v1:0", "fragile.v1:1"):
            await killed(host, program)
        await loading
        assert not loading.cancelled()
        assert counted(host) - before == seen
        # What a front that is killed had not answered nobody can count; so it has nothing in hand.
        for program in ("front:0", "front:1"):
            await killed(host, program)
            await load(3)
        assert counted(host) - before == seen
    assert {group for group, _ in seen} == {"fragile.v1", "texts.v1", ""}
    assert {200, 400, 404, 415, 422, 500} <= {status for _, status in seen}
    total = sum(count for (group, _), count in seen.items() if group)
    assert total == 8 * CLIENTS * (ROUNDS + 6)
    fronts = [one for one in in_files(host) if one.kind == "front" and one.group]
    answered = [status for status in STATUSES if status < 500]
    for one in fronts:
        assert one.histograms["total_ns"].count == sum(one.values[f"answered_{status}"] for status in answered)
    assert summed(host, "worker", "rows") >= seen["fragile.v1", 200] + seen["texts.v1", 200]
    assert summed(host, "front", "worker_deaths") >= 3


async def test_requests_cut_off_with_their_front_are_counted_once_at_most(
    repository: Path, make_host: MakeHost
) -> None:
    write_fragile(repository)
    host = make_host(repository, fronts=2)
    host.start()
    answered, broken, stop = 0, 0, asyncio.Event()

    async def client() -> None:
        nonlocal answered, broken
        timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not stop.is_set():
                try:
                    async with session.post(f"{host.url}/v2/models/fragile/infer", json=number(1)) as response:
                        await response.read()
                    assert response.status == 200
                    answered += 1
                except aiohttp.ClientError:
                    broken += 1

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    for program in ("front:0", "front:1", "front:0"):
        await killed(host, program)
    stop.set()
    await asyncio.gather(*clients)
    assert answered <= counted(host)["fragile.v1", 200] <= answered + broken


def test_what_a_host_has_counted_goes_with_it(repository: Path, make_host: MakeHost) -> None:
    write_fragile(repository)
    host = make_host(repository)
    host.start()
    host.infer("fragile", number(1))
    assert counted(host)["fragile.v1", 200] == 1
    assert {path.stat().st_mode & 0o777 for path in host.run_dir.counters.iterdir()} == {0o600}
    host._stop()
    assert list(host.run_dir.counters.iterdir()) == []
    host.start()
    assert counted(host)["fragile.v1", 200] == 0


async def test_a_version_that_left_keeps_its_counts_and_goes_on_when_it_is_back(
    repository: Path, make_host: MakeHost
) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository, fronts=2)

    async def deployed(version: str) -> None:
        host.deployment_file.write_text(f'[[models]]\nname = "versioned"\nversion = "{version}"\n')
        done = await asyncio.to_thread(host.command, "apply", "--wait")
        assert done.returncode == 0, done.stderr

    host.deployment_file.write_text('[[models]]\nname = "versioned"\nversion = "1"\n')
    host.start()
    with counters_watched(host):
        async with watched(host) as watch:
            await watch.more(100)
            for version in ("2", "1"):
                await deployed(version)
                await watch.more(100)
        assert watch.failed == []
        assert set(watch.counts) == {"1", "2"}
        gone = "worker~versioned.v2:0~versioned.v2"
        assert (host.run_dir.counters / gone).is_file()
        for version, answered in watch.counts.items():
            assert counted(host)[f"versioned.v{version}", 200] == answered


def link_of(path: Path) -> str:
    """What a link of /proc leads to; empty if it is gone meanwhile."""
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return ""


def test_a_worker_has_its_words_and_not_their_file(repository: Path, make_host: MakeHost) -> None:
    write_fragile(repository)
    host = make_host(repository)
    host.start()
    [pid] = host.worker_pids("fragile").values()
    assert "worker~fragile.v1:0~fragile.v1" in Path(f"/proc/{pid}/maps").read_text()
    opened = [link for path in Path(f"/proc/{pid}/fd").iterdir() if (link := link_of(path))]
    assert any("socket:" in one for one in opened)
    assert not any("counters" in one for one in opened)


REQUESTS_IN_ALL = int(os.environ.get("COUNTED_REQUESTS", "48000"))
"""Of three models together; a million of them take half a minute."""
CONNECTIONS = 25
PIPELINED = 32


@pytest.mark.timeout(600)
async def test_a_flood_is_counted_to_the_request_while_workers_are_killed_at_random(
    repository: Path, make_host: MakeHost
) -> None:
    write_fragile(repository)
    write_texts(repository)
    write_gated(repository, max_batch_rows=64, max_queue=1024)
    host = make_host(repository, fronts=2, processes={"fragile": 2, "texts": 2, "gated": 2})
    host.start()
    documents = {
        "fragile": number(1),
        "texts": tensors(text=("BYTES", [1, 1], ["a"])),
        "gated": tensors(x=("FP64", [1, 1], [1.0])),
    }
    requests = [(f"{model}.v1", plain_request(model, document)) for model, document in documents.items()]
    before, seen, over = counted(host), Counter[tuple[str, int]](), asyncio.Event()

    async def client(place: int) -> None:
        chooser = random.Random(place)  # noqa: S311 - which model is asked
        reader, writer = await asyncio.open_connection("127.0.0.1", host.port)
        left = REQUESTS_IN_ALL // CONNECTIONS
        while left:
            chosen = chooser.choices(requests, k=min(PIPELINED, left))
            left -= len(chosen)
            writer.write(b"".join(request for _, request in chosen))
            for group, _ in chosen:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0]))
                seen[group, int(head[9:12])] += 1
        writer.close()
        await writer.wait_closed()

    async def killer() -> int:
        chooser, killed = random.Random(0), 0  # noqa: S311 - who is killed, and when
        while True:
            pids = [pid for model in documents for pid in host.worker_pids(model).values()]
            if pids:
                with suppress(ProcessLookupError):
                    os.kill(chooser.choice(pids), signal.SIGKILL)
                    killed += 1
            try:
                async with asyncio.timeout(chooser.uniform(0.2, 0.6)):
                    await over.wait()
                return killed
            except TimeoutError:
                pass

    killing = asyncio.create_task(killer())
    await asyncio.gather(*map(client, range(CONNECTIONS)))
    over.set()
    assert await killing >= 2
    assert sum(seen.values()) == REQUESTS_IN_ALL
    assert counted(host) - before == seen


def plain_request(model: str, document: dict[str, Any]) -> bytes:
    body = json.dumps(document).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
