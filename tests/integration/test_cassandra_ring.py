"""Three nodes that have every row: one dies, then another one freezes, and reads go on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

import pytest
from cassandra_nodes import CassandraNodes
from cassandra_stores import LIMIT_S, CassandraBench, benched, eventually
from contract import make_view, scalar
from hosts import PATIENCE

from feature_io.stores import StoreUnavailable, ViewReader
from host.config.features import CASSANDRA_DRIVERS, FeatureView

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1000)]

ROWS: Final = 500
DEADLINE_S: Final = 1.0 * PATIENCE
"""A read that waits for a node that is gone takes all of it; one may wait as long as the node that is left collects
its garbage while others use the processors."""
P99_S: Final = 0.25 * PATIENCE
SPECULATIVE_MS: Final = 20
GIVEN_UP_S: Final = 0.5 * PATIENCE
"""Reads that begin so soon after a fault may fail; those that begin later may not."""
READS: Final = 2_000
"""In each phase, after that."""
READERS: Final = 16
ATTEMPTS: Final = 8
"""So often the nodes are lost, at most: one time neither the readers nor the node that is left may have been held up by
whatever else runs on the machine."""


class Read(NamedTuple):
    """One read, in seconds of the monotonic clock."""

    began_s: float
    took_s: float
    failed: bool


@pytest.fixture(params=CASSANDRA_DRIVERS)
async def bench(cassandra_ring: CassandraNodes, request: pytest.FixtureRequest) -> AsyncIterator[CassandraBench]:
    async with benched(cassandra_ring, request.param) as made:
        yield made


class Load:
    """Readers that ask without pause, and what became of every read."""

    def __init__(self, reader: ViewReader) -> None:
        self.reads: list[Read] = []
        self._reader = reader
        self._chance = random.Random(3)  # noqa: S311
        self._tasks = [asyncio.ensure_future(self._run()) for _ in range(READERS)]

    async def _run(self) -> None:
        while True:
            key = self._chance.randrange(ROWS)
            began_s, failed = time.monotonic(), False
            try:
                assert await self._reader.read((key,), DEADLINE_S) == (key / 2,)
            except StoreUnavailable:
                failed = True
            self.reads.append(Read(began_s, time.monotonic() - began_s, failed))

    async def go_on(self, fault_s: float) -> list[Read]:
        """Wait for as many reads as a phase has, with a limit; give all that began after the fault."""
        give_up_s = time.monotonic() + 3 * LIMIT_S
        while sum(read.began_s >= fault_s + GIVEN_UP_S for read in self.reads) < READS:
            assert time.monotonic() < give_up_s, "the reads do not go on"
            assert not any(task.done() for task in self._tasks)
            await asyncio.sleep(0.02)
        return [read for read in self.reads if read.began_s >= fault_s]

    async def end(self) -> None:
        """Stop reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def figures(name: str, reads: Sequence[Read], fault_s: float) -> tuple[int, float]:
    """Print a phase; give how many failed when they should not, and the 99th percentile of all."""
    took_s = sorted(read.took_s for read in reads)
    late = [read for read in reads if read.began_s >= fault_s + GIVEN_UP_S]
    failed, p99_s = sum(read.failed for read in late), took_s[int(len(took_s) * 0.99)]
    print(  # noqa: T201 - figures for the log
        f"{name}: {len(reads)} reads, {sum(read.failed for read in reads)} failed, {failed} of them after "
        f"{GIVEN_UP_S * 1000:.0f} ms; p50 {took_s[len(took_s) // 2] * 1000:.1f} ms, p99 {p99_s * 1000:.1f} ms, "
        f"longest {took_s[-1] * 1000:.1f} ms"
    )
    return failed, p99_s


async def test_one_of_three_nodes_dies_and_one_freezes_under_load(bench: CassandraBench) -> None:
    view = make_view(bench, scalar("x", "FP64"))
    writer = await bench.open(consistency="ALL")
    await writer._driver.execute(
        f"CREATE KEYSPACE IF NOT EXISTS {view.keyspace} "
        "WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 3}",
        (),
        LIMIT_S,
    )
    await writer.create(view, LIMIT_S)
    await writer.write(view, [((n,), (n / 2,)) for n in range(ROWS)], LIMIT_S)
    for _ in range(ATTEMPTS):
        results = await lose_two(bench, view)
        if all(failed == 0 and p99_s < P99_S for failed, p99_s in results):
            break
    for failed, p99_s in results:
        assert failed == 0
        assert p99_s < P99_S


async def lose_two(bench: CassandraBench, view: FeatureView) -> list[tuple[int, float]]:
    """Kill a node and freeze another one under load; give both phases' figures. All nodes are back in the end."""
    nodes = bench.nodes.nodes
    store = await bench.open(speculative_after_ms=SPECULATIVE_MS)
    reader = await store.reader(view, LIMIT_S)
    # Cold nodes are slow: not what this is about.
    for _ in range(3):
        await asyncio.gather(*(eventually(reader, (n,), LIMIT_S) for n in range(ROWS)))
    load = Load(reader)
    try:
        began_s = time.monotonic()
        figures(f"{bench.driver}, all nodes", await load.go_on(began_s), began_s)
        results = []
        for name, fault in (("one killed", nodes[2].kill), ("another frozen", nodes[1].freeze)):
            await asyncio.to_thread(fault)
            fault_s = time.monotonic()
            results.append(figures(f"{bench.driver}, {name}", await load.go_on(fault_s), fault_s))
    finally:
        await load.end()
        nodes[1].thaw()
        bench.nodes.spawn(nodes[2])
        await asyncio.to_thread(bench.nodes.wait_until_ready, nodes[2])
    assert await eventually(reader, (1,)) == (0.5,)
    await store.close()
    return results
