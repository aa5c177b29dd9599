"""One view's entities: what is asked of the store, how often, and what is answered without it."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable

import pytest

from feature_io.breaker import FAILURES, Breaker
from feature_io.cache import Cache
from feature_io.completion import Found, Source
from feature_io.entities import Entities
from feature_io.stores import BadRow, Key, Row, StoreBusy, StoreUnavailable
from host.config.features import FeatureColumn, FeatureView, KeyColumn

TURNS_MAX = 10_000


async def until(true: Callable[[], bool]) -> None:
    """Let the loop turn until something is true."""
    for _ in range(TURNS_MAX):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError(f"not true after {TURNS_MAX} turns of the loop")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Reader:
    """A store in the hand: it answers when it is told to. Implements `ViewReader`."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.asked: list[Key] = []
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def read(self, key: Key, timeout_s: float) -> Row | None:
        self.asked.append(key)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return self.rows.get(key)


VIEW = FeatureView(
    name="users",
    store="main",
    keyspace=None,
    table="users",
    keys=(KeyColumn(column="id", datatype="INT64", input="id"),),
    columns=(FeatureColumn(name="karma", datatype="FP64"), FeatureColumn(name="age", datatype="INT32")),
    freshness_column="updated",
    ttl_s=100,
    negative_ttl_s=10,
    stale_s=50,
    stale_if_error_s=1000,
)
ONE: Key = (1,)
ROW: Row = (1.5, 30, 900.0)
PACKED = (struct.pack("<d", 1.5), struct.pack("<i", 30))


class Bench:
    def __init__(self, **changes: object) -> None:
        self.clock = Clock()
        self.breaker = Breaker()
        self.cache = Cache(1 << 20)
        view = type(VIEW)(**({name: getattr(VIEW, name) for name in VIEW.__struct_fields__} | changes))
        self.entities = Entities(
            view,
            0,
            self.cache,
            self.breaker,
            self.clock,
            self.clock,
            random.Random(1),  # noqa: S311
        )
        self.reader = Reader()
        self.reader.rows[ONE] = ROW
        self.entities.reader = self.reader

    async def find(self, key: Key = ONE) -> Found:
        known = self.entities.known(key, self.clock.now_s)
        if known is not None:
            return known
        read = self.entities.read(key)
        return await read if isinstance(read, asyncio.Task) else read


async def test_a_row_is_read_once_and_cached_after_that() -> None:
    bench = Bench()
    assert await bench.find() == Found(Source.STORE, PACKED)
    assert await bench.find() == Found(Source.CACHE, PACKED)
    assert bench.reader.asked == [ONE]
    assert (bench.entities.counters.present, bench.entities.counters.cached) == (1, 1)


async def test_a_thousand_at_once_for_one_key_are_one_query() -> None:
    bench = Bench()
    bench.reader.open.clear()
    finding = [asyncio.create_task(bench.find()) for _ in range(1000)]
    await until(lambda: bench.entities.counters.joined == 999)
    bench.reader.open.set()
    assert {await one for one in finding} == {Found(Source.STORE, PACKED)}
    assert bench.reader.asked == [ONE]


async def test_a_missing_entity_is_remembered_for_its_own_time() -> None:
    bench = Bench()
    assert await bench.find((2,)) == Found(Source.MISSING, None)
    bench.clock.now_s += 8
    assert await bench.find((2,)) == Found(Source.MISSING, None)
    assert bench.reader.asked == [(2,)]
    bench.clock.now_s += 10 + 1000
    await bench.find((2,))
    assert bench.reader.asked == [(2,), (2,)]


async def test_a_missing_entity_stays_missing_while_it_is_looked_for_anew() -> None:
    bench = Bench()
    await bench.find((2,))
    bench.clock.now_s += 15
    assert await bench.find((2,)) == Found(Source.MISSING, None)
    await until(lambda: not bench.entities._running)
    assert bench.reader.asked == [(2,), (2,)]


async def test_a_stale_row_is_served_and_read_anew_once() -> None:
    bench = Bench()
    await bench.find()
    bench.clock.now_s += 120
    bench.reader.rows[ONE] = (2.5, 31, 1000.0)
    bench.reader.open.clear()
    for _ in range(3):
        assert await bench.find() == Found(Source.STALE, PACKED)
    bench.reader.open.set()
    await until(lambda: not bench.entities._running)
    assert bench.reader.asked == [ONE, ONE]
    assert (await bench.find()).source is Source.CACHE


async def test_an_old_row_is_read_before_it_is_served_and_served_if_that_fails() -> None:
    bench = Bench()
    await bench.find()
    bench.clock.now_s += 200
    bench.reader.error = StoreUnavailable("down")
    assert await bench.find() == Found(Source.STALE, PACKED)
    bench.reader.error = None
    assert await bench.find() == Found(Source.STORE, PACKED)


@pytest.mark.parametrize("error", [StoreUnavailable("down"), StoreBusy("full"), BadRow("two rows"), ValueError("bug")])
async def test_a_read_that_fails_is_nowhere_and_is_tried_again(error: Exception) -> None:
    bench = Bench()
    bench.reader.error = error
    assert await bench.find() == Found(Source.NOWHERE, None)
    bench.reader.error = None
    assert (await bench.find()).source is Source.STORE


async def test_a_row_that_was_gone_is_not_served_any_more() -> None:
    bench = Bench()
    await bench.find()
    bench.clock.now_s += 2000
    bench.reader.error = StoreUnavailable("down")
    assert await bench.find() == Found(Source.NOWHERE, None)
    assert len(bench.cache) == 0


async def test_a_dead_store_is_asked_no_more_until_the_pause_is_over() -> None:
    bench = Bench()
    bench.reader.error = StoreUnavailable("down")
    for number in range(100):
        await bench.find((number,))
    assert len(bench.reader.asked) == FAILURES
    assert bench.entities.counters.refused == 100 - FAILURES
    bench.reader.error = None
    bench.clock.now_s += 10
    assert (await bench.find()).source is Source.STORE
    assert not bench.breaker.is_open


async def test_a_busy_store_and_a_bad_row_do_not_open_the_circuit() -> None:
    bench = Bench()
    for error in (StoreBusy("full"), BadRow("two rows")):
        bench.reader.error = error
        for number in range(2 * FAILURES):
            await bench.find((number,))
    assert not bench.breaker.is_open


async def test_without_a_reader_only_the_cache_answers() -> None:
    bench = Bench()
    await bench.find()
    bench.entities.reader = None
    bench.clock.now_s += 200
    assert await bench.find() == Found(Source.STALE, PACKED)
    assert await bench.find((2,)) == Found(Source.NOWHERE, None)


async def test_a_row_that_is_too_old_by_its_own_column_is_missing() -> None:
    bench = Bench(max_age_s=50)
    assert await bench.find() == Found(Source.MISSING, None)
    bench.reader.rows[(2,)] = (1.5, 30, 990.0)
    bench.reader.rows[(3,)] = (1.5, 30, None)
    assert (await bench.find((2,))).source is Source.STORE
    assert (await bench.find((3,))).source is Source.MISSING


async def test_a_null_is_none_and_a_wrong_value_no_row() -> None:
    bench = Bench()
    bench.reader.rows[ONE] = (None, 30, 900.0)
    assert (await bench.find()).row == (None, PACKED[1])
    bench.reader.rows[(2,)] = (1.5, "thirty", 900.0)
    assert await bench.find((2,)) == Found(Source.NOWHERE, None)
    assert bench.entities.counters.bad_rows == 1


async def test_forgetting_one_entity_or_all() -> None:
    bench = Bench()
    bench.reader.rows[(2,)] = ROW
    await bench.find()
    await bench.find((2,))
    assert (bench.entities.invalidate(ONE), bench.entities.invalidate(ONE)) == (1, 0)
    assert (await bench.find()).source is Source.STORE
    assert bench.entities.invalidate(None) == 2
    assert len(bench.cache) == 0


async def test_what_was_being_read_when_it_was_forgotten_is_not_kept() -> None:
    bench = Bench()
    bench.reader.open.clear()
    finding = asyncio.create_task(bench.find())
    await until(lambda: bool(bench.reader.asked))
    bench.entities.invalidate(ONE)
    again = asyncio.create_task(bench.find())
    await until(lambda: len(bench.reader.asked) == 2)
    bench.reader.open.set()
    await finding
    assert (await again).source is Source.STORE
    assert (await bench.find()).source is Source.CACHE


async def test_closing_ends_every_read() -> None:
    bench = Bench()
    bench.reader.open.clear()
    reads = [bench.entities.read((number,)) for number in range(10)]
    await asyncio.sleep(0)
    await bench.entities.close()
    assert all(isinstance(read, asyncio.Task) and read.cancelled() for read in reads)
    assert not bench.entities._running


async def test_ttls_are_spread() -> None:
    bench = Bench()
    for number in range(200):
        bench.reader.rows[(number,)] = ROW
        await bench.find((number,))
    ends = [bench.cache._entries[one].fresh_until_s - bench.clock.now_s for one in bench.cache]
    assert 90 <= min(ends) < 92
    assert 98 < max(ends) <= 100


@pytest.mark.parametrize("ttl_s", [0, 1])
async def test_a_ttl_of_nothing_keeps_nothing_fresh(ttl_s: float) -> None:
    bench = Bench(ttl_s=ttl_s)
    await bench.find()
    again = await bench.find()
    assert again.source is (Source.CACHE if ttl_s else Source.STORE)
