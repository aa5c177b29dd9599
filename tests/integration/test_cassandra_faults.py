"""A Cassandra that freezes, dies and comes back, and what the drivers get wrong by themselves; over both drivers."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cassandra_nodes import CassandraNodes, keytool
from cassandra_stores import (
    LIMIT_S,
    CassandraBench,
    benched,
    descriptor_count,
    eventually,
    settled,
    thread_count,
)
from contract import filled, make_view, scalar
from features import opened

from feature_io.stores import StoreBusy, StoreUnavailable
from host.config.features import CASSANDRA_DRIVERS, Tls

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1000)]

CYCLES = 10


@pytest.fixture(params=CASSANDRA_DRIVERS)
async def bench(cassandra: CassandraNodes, request: pytest.FixtureRequest) -> AsyncIterator[CassandraBench]:
    async with benched(cassandra, request.param) as made:
        yield made


@pytest.fixture
async def aiocassandra(cassandra: CassandraNodes) -> AsyncIterator[CassandraBench]:
    async with benched(cassandra, "aiocassandra") as made:
        yield made


async def restarted(nodes: CassandraNodes) -> None:
    """Kill the first node, start it again, and wait until it listens, without holding up the loop."""
    nodes.nodes[0].kill()
    nodes.spawn(nodes.nodes[0])
    await asyncio.to_thread(nodes.wait_until_ready, nodes.nodes[0])


# -- nodes that do not answer -----------------------------------------------------------------------------------------
async def test_reads_of_a_frozen_node_end_in_time_and_work_again_when_it_thaws(bench: CassandraBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    async with bench.stalled(view):
        for _ in range(5):
            with pytest.raises(StoreUnavailable, match="view view, key 1: no answer within 300 ms"):
                await reader.read((1,), 0.3)
    assert await eventually(reader, (1,)) == (0.5,)


async def test_a_node_that_was_killed_and_is_back_is_read_again_by_the_same_reader(bench: CassandraBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    bench.nodes.nodes[0].kill()
    with pytest.raises(StoreUnavailable, match="view view, key 1: "):
        await reader.read((1,), 0.5)
    bench.nodes.spawn(bench.nodes.nodes[0])
    await asyncio.to_thread(bench.nodes.wait_until_ready, bench.nodes.nodes[0])
    assert await eventually(reader, (1,)) == (0.5,)


async def test_a_store_that_could_not_be_opened_is_opened_later(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((1,), (0.5,))])
    store = bench.make()
    bench.nodes.nodes[0].kill()
    for _ in range(2):
        with pytest.raises(
            StoreUnavailable, match=f"store store: {bench.nodes.contact_points[0]}:{bench.nodes.port}: "
        ):
            await store.open(5.0)
    bench.nodes.spawn(bench.nodes.nodes[0])
    await asyncio.to_thread(bench.nodes.wait_until_ready, bench.nodes.nodes[0])
    await store.open(LIMIT_S)
    assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)


async def test_opening_a_frozen_cluster_ends_in_time_and_does_not_hold_up_the_loop(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((1,), (0.5,))])
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    for _ in range(5):
        store, turns = bench.make(), 0
        turning = asyncio.ensure_future(turn())
        async with bench.stalled(view):
            with pytest.raises(StoreUnavailable, match="no answer within 1000 ms"):
                await store.open(1.0)
        turning.cancel()
        # Of a process that did not run meanwhile there are few, too: then it is looked at again.
        if turns > 10:
            break
    assert turns > 10
    await store.open(LIMIT_S)
    assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)


async def test_contact_points_that_do_not_answer_are_passed_over(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((1,), (0.5,))])
    dead = bench.nodes.contact_points[0].rpartition(".")[0] + ".250"
    store = await bench.open(contact_points=(dead, *bench.nodes.contact_points))
    assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)


async def test_more_reads_than_may_wait_are_refused_at_once(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [])
    store = await bench.open(concurrency=2, max_waiting=3)
    reader = await store.reader(view, LIMIT_S)
    async with bench.stalled(view):
        reads = [asyncio.ensure_future(reader.read((n,), 0.5)) for n in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(StoreBusy, match="2 reads in flight, and 3 wait"):
            await reader.read((5,), LIMIT_S)
        ends = await asyncio.gather(*reads, return_exceptions=True)
        assert all(type(end) is StoreUnavailable for end in ends)
    assert await eventually(reader, (1,)) is None


async def test_reads_that_wait_get_their_turn(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((n,), (float(n),)) for n in range(100)])
    store = await bench.open(concurrency=1, max_waiting=99)
    reader = await store.reader(view, LIMIT_S)
    assert await asyncio.gather(*(reader.read((n,), LIMIT_S) for n in range(100))) == [(float(n),) for n in range(100)]


# -- what is left -----------------------------------------------------------------------------------------------------
async def test_ten_times_down_and_up_leaves_nothing_behind(cassandra: CassandraNodes) -> None:
    async with AsyncExitStack() as stack:
        benches = [await stack.enter_async_context(benched(cassandra, driver)) for driver in CASSANDRA_DRIVERS]
        for one in benches:
            one.complaints = benches[0].complaints
        view = make_view(benches[0])
        await filled(benches[0], view, [((1,), (0.5,))])
        await benches[0].close()
        gc.collect()
        at_first = (thread_count(), descriptor_count())
        stores = [await one.open() for one in benches]
        readers = [await store.reader(view, LIMIT_S) for store in stores]
        tasks: list[int] = []
        threads: list[int] = []
        descriptors: list[int] = []
        for cycle in range(CYCLES):
            reading = [asyncio.ensure_future(reader.read((1,), 0.2)) for reader in readers for _ in range(50)]
            await restarted(cassandra)
            await asyncio.gather(*reading, return_exceptions=True)
            del reading  # errors hold frames, and those what they were about
            for reader in readers:
                assert await eventually(reader, (1,)) == (0.5,)
            # The driver's own pool grows to its size once; reconnections may be under way, and end.
            if cycle < 2:
                tasks.append(len(asyncio.all_tasks()))
            else:
                await settled(lambda: len(asyncio.all_tasks()), max(tasks), "tasks")
            if cycle < 5:
                threads.append(thread_count())
                descriptors.append(descriptor_count())
            else:
                await settled(thread_count, max(threads) + 1, "threads")
                await settled(descriptor_count, max(descriptors) + 2, "descriptors")
        for store in stores:
            await store.close()
        gc.collect()
        await settled(lambda: (thread_count(), 0), (at_first[0] + 1, 0), "threads")  # `to_thread` keeps one
        await settled(descriptor_count, at_first[1], "descriptors")


async def test_opening_and_closing_leaves_nothing_behind(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((1,), (0.5,))])
    await bench.close()
    gc.collect()
    at_first = (thread_count(), descriptor_count())
    for _ in range(CYCLES):
        store = await bench.open()
        reader = await store.reader(view, LIMIT_S)
        assert await reader.read((1,), LIMIT_S) == (0.5,)
        await store.close()
        await store.close()
    gc.collect()
    await settled(thread_count, at_first[0], "threads")
    await settled(descriptor_count, at_first[1], "descriptors")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_openings_that_were_given_up_leave_nothing_behind(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [])
    await bench.close()
    gc.collect()
    at_first = (thread_count(), descriptor_count())
    store = bench.make()
    async with bench.stalled(view):
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.open(0.2)
    await store.close()
    gc.collect()
    await settled(thread_count, at_first[0], "threads")
    await settled(descriptor_count, at_first[1], "descriptors")


async def test_cancelled_reads_leave_nothing_behind(bench: CassandraBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((1,), (0.5,))])
    store = await bench.open(concurrency=8)
    reader = await store.reader(view, LIMIT_S)
    chance = random.Random(1)  # noqa: S311
    for _ in range(50):
        reads = [asyncio.ensure_future(reader.read((1,), LIMIT_S)) for _ in range(40)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        for read in chance.sample(reads, 30):
            read.cancel()
        ends = await asyncio.gather(*reads, return_exceptions=True)
        assert all(end == (0.5,) or isinstance(end, asyncio.CancelledError) for end in ends)
    assert not store._slots.locked()
    assert store._slots._value == 8
    assert (store._waiting, len(store._patience)) == (0, 0)


# -- what the drivers get wrong -----------------------------------------------------------------------------------
async def test_answers_that_come_as_their_reads_time_out_reach_nobody(bench: CassandraBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((n,), (float(n),)) for n in range(100)])
    # What reads take, whether they are cut short or not: times that follow it fall on both sides of it, however busy
    # the machine becomes.
    took_s: deque[float] = deque(maxlen=100)
    for number in range(300):
        began_s = time.perf_counter()
        await reader.read((number % 100,), LIMIT_S)
        took_s.append(time.perf_counter() - began_s)
    chance = random.Random(2)  # noqa: S311
    ends = {"in time": 0, "too late": 0}
    give_up_s = time.monotonic() + 3 * LIMIT_S

    async def read(numbers: Iterator[int]) -> None:
        for number in numbers:
            if number >= 12_000 and (min(ends.values()) > 100 or time.monotonic() > give_up_s):
                break
            limit_s = chance.uniform(0.5, 3) * sorted(took_s)[50]
            began_s = time.perf_counter()
            try:
                assert await reader.read((number % 100,), limit_s) == (float(number % 100),)
                ends["in time"] += 1
            except StoreUnavailable:
                ends["too late"] += 1
            took_s.append(time.perf_counter() - began_s)

    numbers = itertools.count()
    await asyncio.gather(*(read(numbers) for _ in range(4)))
    assert min(ends.values()) > 100, ends
    assert await reader.read((7,), LIMIT_S) == (7.0,)
    assert bench.complaints == []


async def test_reads_do_not_need_the_loops_own_threads(bench: CassandraBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    over = threading.Event()
    blocked = loop.run_in_executor(None, over.wait, LIMIT_S)
    try:
        assert await reader.read((1,), LIMIT_S) == (0.5,)
        store = await bench.open()
        assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)
        await store.close()
    finally:
        over.set()
        await blocked


async def test_reads_go_on_while_a_preparation_takes_its_time(aiocassandra: CassandraBench) -> None:
    view = make_view(aiocassandra)
    await filled(aiocassandra, view, [((1,), (0.5,))])
    store = await aiocassandra.open()
    reader = await store.reader(view, LIMIT_S)
    over = threading.Event()
    blocked = store._driver._blocking.submit(over.wait, LIMIT_S)  # type: ignore[attr-defined]
    try:
        with pytest.raises(StoreUnavailable, match="view view: no answer within 200 ms"):
            await store.reader(view, 0.2)
        assert await reader.read((1,), LIMIT_S) == (0.5,)
    finally:
        over.set()
        await asyncio.wrap_future(blocked)
    assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)


async def test_the_table_of_columns_is_read_whole(aiocassandra: CassandraBench) -> None:
    """`execute_future` gives the first page only; what is no point read is asked for unpaged."""
    store = await aiocassandra.open()
    view = make_view(aiocassandra, scalar("x", "FP64"))
    await store.create(view, LIMIT_S)
    await store.write(view, [((n,), (float(n),)) for n in range(5_500)], LIMIT_S)
    statement = await store._driver.prepare(f'SELECT id FROM "{view.keyspace}"."{view.table}"', LIMIT_S)
    assert len(await store._driver.execute(statement, (), LIMIT_S)) == 5_500
    assert len(await store._driver.read(statement, (), LIMIT_S)) == 2


async def test_a_read_that_was_given_up_leaves_the_connection_usable(bench: CassandraBench) -> None:
    """Requests that nobody waits for any more are let go of by the driver, too: by its own timer."""
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    async with bench.stalled(view):
        for _ in range(10):
            ends = await asyncio.gather(*(reader.read((1,), 0.05) for _ in range(100)), return_exceptions=True)
            assert all(isinstance(end, StoreUnavailable) for end in ends)
    assert await eventually(reader, (1,)) == (0.5,)
    rows = await asyncio.gather(*(reader.read((1,), LIMIT_S) for _ in range(500)))
    assert rows == [(0.5,)] * 500


# -- who may read -----------------------------------------------------------------------------------------------------
SECURED = """
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
client_encryption_options:
  enabled: {tls}
  keystore: {directory}/node.p12
  keystore_password: modelhost
  store_type: PKCS12
"""


@pytest.mark.parametrize("with_tls", [True, False], ids=["tls", "plain"])
async def test_a_cluster_with_passwords_and_tls(cassandra: CassandraNodes, tmp_path: Path, with_tls: bool) -> None:
    nodes = CassandraNodes(1, settings=SECURED.format(directory=tmp_path, tls=str(with_tls).lower()))
    with nodes:
        address = nodes.contact_points[0]
        pair = [
            "-alias",
            "node",
            "-keystore",
            f"{tmp_path}/node.p12",
            "-storepass",
            "modelhost",
            "-storetype",
            "PKCS12",
        ]
        keytool("-genkeypair", *pair, "-keyalg", "EC", "-dname", "CN=node", "-ext", f"SAN=IP:{address}")
        keytool("-exportcert", "-rfc", *pair, "-file", f"{tmp_path}/ca.pem")
        nodes.start()
        password = tmp_path / "password"
        password.write_text("cassandra\nnot this line\n")
        options = {"username": "cassandra", "password_file": str(password)}
        if with_tls:
            options["tls"] = Tls(ca=f"{tmp_path}/ca.pem")  # type: ignore[assignment]
        for driver in CASSANDRA_DRIVERS[:1] if with_tls else CASSANDRA_DRIVERS:
            async with benched(nodes, driver) as bench:
                store = bench.make(**options)
                # The first user is made some time after the node listens.
                await opened(store)
                view = make_view(bench)
                await store.create(view, LIMIT_S)
                await store.write(view, [((1,), (0.5,))], LIMIT_S)
                assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)
                password.write_text("wrong")
                with pytest.raises(StoreUnavailable, match=r"[Pp]assword"):
                    await bench.make(**options).open(LIMIT_S)
                password.write_text("cassandra")
                if with_tls:
                    nobody = {**options, "tls": Tls(ca="/etc/ssl/certs/ca-certificates.crt")}
                    with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                        await bench.make(**nobody).open(LIMIT_S)
                    with pytest.raises(StoreUnavailable):
                        await bench.make(**{**options, "tls": None}).open(LIMIT_S)
                with pytest.raises(StoreUnavailable, match="No such file"):
                    await bench.make(**{**options, "password_file": "/nowhere"}).open(LIMIT_S)
