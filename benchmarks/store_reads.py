"""What the store costs over the bare driver: uncached point reads, all in one process, in turns.

    .venv/dev/bin/python benchmarks/store_reads.py

One node on this machine, as many reads in flight for each way; `benchmarks/feature_reads.py` measures the feature
service, in which this store is, from outside. Only ratios of one run mean something.

The bare driver is asked in two ways: a callback (in the driver's own thread) sends the next read; and callbacks wake
an event loop, which sends the next ones. Ratios are to the faster one of each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

import uvloop  # noqa: E402
from cassandra_nodes import CassandraNodes  # noqa: E402

from benchmarks.feature_reads import (  # noqa: E402
    BARE,
    DRIVERS,
    ENTITIES,
    IN_FLIGHT,
    LIMIT_S,
    ROUNDS,
    WARM_UP_READS,
    BareDriver,
    features_for,
    fill,
)
from feature_io.stores import ViewReader, make_store  # noqa: E402
from host.config.features import Features  # noqa: E402

AWAITED = f"{BARE}, awaited"


class AwaitedDriver(BareDriver):
    """The same statement, and the least that an event loop needs to wait for it: one future, one wake-up."""

    async def reads_per_s_awaited(self, seconds: float) -> float:
        """Read for so long, `IN_FLIGHT` at a time."""
        loop = asyncio.get_running_loop()
        wake, session, statement = loop.call_soon_threadsafe, self._session, self._statement

        async def read(key: int) -> Any:
            answer = loop.create_future()
            session.execute_async(statement, (key,)).add_callbacks(
                lambda rows: wake(answer.set_result, rows), lambda error: wake(answer.set_exception, error)
            )
            return await answer

        return await in_turns(read, seconds)


async def in_turns(read: Callable[[int], Any], seconds: float) -> float:
    """Read for so long, `IN_FLIGHT` at a time; reads per second."""
    end_s, count = time.monotonic() + seconds, 0

    async def reads() -> None:
        nonlocal count
        while time.monotonic() < end_s:
            assert await read(random.randrange(ENTITIES))  # noqa: S311
            count += 1

    begun_s = time.monotonic()
    await asyncio.gather(*(reads() for _ in range(IN_FLIGHT)))
    return count / (time.monotonic() - begun_s)


async def open_reader(features: Features) -> tuple[ViewReader, Callable[[], Any]]:
    """Open a store; give its view's reader, and what closes it."""
    store = make_store(features.stores[0])
    await store.open(LIMIT_S)
    return await store.reader(features.views[0], LIMIT_S), store.close


def cassandra_reads(seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every way in turns; medians of the rates, and of each round's ratio to the bare driver."""
    found: dict[str, list[float]] = {name: [] for name in (BARE, AWAITED, *DRIVERS)}
    with CassandraNodes(1) as nodes, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        say("starting Cassandra ...")
        nodes.start()
        say(f"writing {ENTITIES:,} rows ...")
        runner.run(fill(features_for(nodes, DRIVERS[1])))
        bare = AwaitedDriver(nodes)
        opened = {name: runner.run(open_reader(features_for(nodes, name))) for name in DRIVERS}
        try:
            ways: dict[str, Callable[[float], float]] = {
                BARE: bare.reads_per_s,
                AWAITED: lambda for_s: runner.run(bare.reads_per_s_awaited(for_s)),
            }
            for name, (reader, _) in opened.items():
                ways[name] = partial(_store_reads, runner, reader)
            warm = 0.0
            while warm < WARM_UP_READS:
                warm += sum(2 * way(2.0) for way in ways.values())
            for turn in range(rounds):
                for name, way in ways.items():
                    found[name].append(way(seconds))
                say(f"round {turn + 1} of {rounds}: { {name: round(rates[-1]) for name, rates in found.items()} }")
        finally:
            for _, close in opened.values():
                runner.run(close())
            bare.close()
    fastest = [max(rates) for rates in zip(found[BARE], found[AWAITED], strict=True)]
    ratios = {
        name: round(statistics.median(mine / bare for mine, bare in zip(found[name], fastest, strict=True)), 2)
        for name in DRIVERS
    }
    medians = {name: round(statistics.median(rates)) for name, rates in found.items()}
    return {"reads_per_s": medians, "ratio_to_bare": ratios, "in_flight": IN_FLIGHT}


def _store_reads(runner: asyncio.Runner, reader: ViewReader, seconds: float) -> float:
    return runner.run(in_turns(lambda key: reader.read((key,), LIMIT_S), seconds))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="length of one measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default %(default)s")
    options = parser.parse_args()
    found = cassandra_reads(options.seconds, options.rounds, lambda text: print(text, file=sys.stderr, flush=True))
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
