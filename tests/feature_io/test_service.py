"""The feature service over stores in the hand: connecting, checking, warming, answering in time."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feature_io import connection
from feature_io.service import FeatureService
from feature_io.stores import Key, Row, Store, StoreUnavailable, TableMismatch, ViewReader
from host.config.deployment import DeployedModel
from host.config.features import FeatureColumn, Features, FeatureView, KeyColumn, SqliteStore
from host.protocol.counters import Layout, Words, open_counters, private_counters, read_counters
from host.protocol.frames import Frame, FrameDecoder
from host.protocol.messages import Encoding, Limits, Operation, RequestHead, ResponseHead, read_responses
from host.protocol.types import Signature, TensorSpec

LIMIT_S = 30.0


def view(**changes: Any) -> FeatureView:
    fields: dict[str, Any] = {
        "name": "users",
        "store": "main",
        "keyspace": None,
        "table": "users",
        "keys": (KeyColumn(column="id", datatype="INT64", input="id"),),
        "columns": (FeatureColumn(name="karma", datatype="FP64"),),
    }
    return FeatureView(**(fields | changes))


MODEL = DeployedModel(
    name="m",
    version="1",
    processes=1,
    package="/m/1",
    platform="python",
    signature=Signature((TensorSpec("karma", "FP64", (-1, 1), ("users.karma",)),), (TensorSpec("y", "FP64", (-1, 1)),)),
    limits=Limits(),
)


class HandStore:
    """A store that does as it is told. Implements `Store` and `ViewReader`."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {(number,): (float(number),) for number in range(100)}
        self.opens: list[Exception | None] = []
        """What happens at each `open`, then success."""
        self.checks: list[Exception | None] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked: list[Key] = []
        self.closed = False

    async def open(self, timeout_s: float) -> None:
        error = self.opens.pop(0) if self.opens else None
        if error is not None:
            raise error

    async def reader(self, view: FeatureView, timeout_s: float) -> ViewReader:
        error = self.checks.pop(0) if self.checks else None
        if error is not None:
            raise error
        return self

    async def read(self, key: Key, timeout_s: float) -> Row | None:
        self.asked.append(key)
        try:
            async with asyncio.timeout(timeout_s):
                await self.answers.wait()
        except TimeoutError:
            raise StoreUnavailable("no answer") from None
        return self.rows.get(key)

    async def write(self, view: FeatureView, rows: Sequence[tuple[Key, Row]], timeout_s: float) -> None:
        raise AssertionError("nothing writes here")

    def ddl(self, view: FeatureView) -> list[str]:
        return []

    async def create(self, view: FeatureView, timeout_s: float) -> None:
        raise AssertionError("nothing is made here")

    async def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, store: HandStore, *views: FeatureView, counters: Path | None = None) -> None:
        self.store = store
        self.notices = 0
        features = Features((SqliteStore(name="main", path="/nowhere"),), views or (view(),))
        stores: list[Store] = [store]

        def words_of(layout: Layout, group: str) -> Words:
            return open_counters(counters, layout, "features:0", group) if counters else private_counters(layout)

        self.service = FeatureService(
            features, [MODEL], 1 << 20, lambda _: stores.pop(), self._noticed, words_of=words_of
        )

    def _noticed(self) -> None:
        self.notices += 1

    async def ask(
        self, document: Any, operation: Operation = Operation.INFER, left_s: float = LIMIT_S, model: str = "m.v1"
    ) -> tuple[ResponseHead, bytes]:
        now_ns = time.monotonic_ns()
        head = RequestHead(
            sequence=1,
            operation=operation,
            received_ns=now_ns,
            deadline_ns=now_ns + int(left_s * 1e9),
            model=model,
        )
        replied: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.service.handle(head, body, replied.set_result)
        async with asyncio.timeout(LIMIT_S):
            [frame] = _frames(await replied)
        [head] = read_responses(frame)
        return head, head.body or frame.body


def _frames(data: bytes) -> list[Frame]:
    return list(FrameDecoder(1 << 20).feed(data))


@asynccontextmanager
async def serving(store: HandStore, *views: FeatureView, counters: Path | None = None) -> AsyncIterator[Bench]:
    bench = Bench(store, *views, counters=counters)
    try:
        await bench.service.start()
        yield bench
    finally:
        await bench.service.close()
    assert store.closed
    assert not bench.service._tasks


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("feature_io.service.FIRST_TRY_S", LIMIT_S)


def batch(keys: list[Any], views: int = 1, **more: Any) -> dict[str, Any]:
    return {"views": [{"view": "users", "keys": keys, **more}] * views}


def asking(*ids: int) -> dict[str, Any]:
    return {"inputs": [{"name": "id", "datatype": "INT64", "shape": [len(ids)], "data": list(ids)}]}


async def test_a_request_is_completed_from_the_store_and_then_from_the_cache() -> None:
    store = HandStore()
    async with serving(store) as bench:
        bodies = [await bench.ask(asking(3, 4)) for _ in range(2)]
        assert [head.status for head, _ in bodies] == [200, 200]
        document = msgspec.msgpack.decode(bodies[0][1])
        assert document["inputs"][0]["shape"] == [2, 1]
        assert bodies[0][1] == bodies[1][1]
        assert store.asked == [(3,), (4,)]


async def test_a_request_that_is_complete_is_left_as_it_is() -> None:
    given = {"inputs": [{"name": "karma", "datatype": "FP64", "shape": [1, 1], "data": [1.0]}]}
    async with serving(HandStore()) as bench:
        head, body = await bench.ask(given)
        assert (head.status, body) == (200, b"")


@pytest.mark.parametrize("failures", [1, 3])
async def test_a_store_that_cannot_be_opened_is_opened_later(failures: int) -> None:
    store = HandStore()
    store.opens = [StoreUnavailable("down")] * failures
    async with serving(store) as bench:
        head, _ = await bench.ask(asking(1))
        assert head.status in (200, 503)
        await until(lambda: bench.service._views[0].reader is not None)
        assert (await bench.ask(asking(2)))[0].status == 200


async def test_a_defect_of_a_store_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    store = HandStore()
    store.opens = [ValueError("a defect")]
    async with serving(store) as bench:
        await until(lambda: bench.service._views[0].reader is not None)
    assert "a defect" in caplog.text


async def test_a_mismatch_is_told_and_taken_back_when_the_table_is_mended() -> None:
    store = HandStore()
    store.checks = [TableMismatch("table users: expected column karma, received none")] * 1000
    async with serving(store) as bench:
        assert bench.service.notice().unready == {
            "m.v1": "view users: table users: expected column karma, received none"
        }
        store.checks.clear()
        await until(lambda: not bench.service.notice().unready)
        assert bench.notices >= 2
        assert (await bench.ask(asking(1)))[0].status == 200


async def test_a_mismatch_is_taken_back_although_the_store_failed_in_between() -> None:
    store = HandStore()
    store.checks = [TableMismatch("table users: no column"), StoreUnavailable("away")]
    async with serving(store) as bench:
        await until(lambda: bench.service._views[0].reader is not None)
        assert not bench.service.notice().unready
        assert bench.notices == 2


async def test_warm_up_reads_what_the_file_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    keys = tmp_path / "keys.jsonl"
    keys.write_text("\n".join([*map(str, range(70)), "", "[70]", '"a"', "{", "[1, 2]"]))
    store = HandStore()
    async with serving(store, view(warm_up=str(keys))) as bench:
        assert sorted(store.asked) == [(number,) for number in range(71)]
        before = len(store.asked)
        await bench.ask(asking(5, 70))
        assert len(store.asked) == before
    assert [f"line {line}:" in caplog.text for line in (72, 73, 74, 75)] == [False, True, True, True]


async def test_a_warm_up_file_that_is_not_there_is_named_and_no_reason_not_to_serve(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(HandStore(), view(warm_up="/nowhere/keys")) as bench:
        assert (await bench.ask(asking(1)))[0].status == 200
    assert "/nowhere/keys cannot be read" in caplog.text


async def test_features_take_their_share_of_the_time_and_no_more() -> None:
    store = HandStore()
    store.answers.clear()
    async with serving(store, view(timeout_ms=60_000)) as bench:
        for _ in range(5):
            begun = time.monotonic()
            head, body = await bench.ask(asking(1), left_s=0.5)
            took_s = time.monotonic() - begun
            if took_s < 0.5 + 1.0 and head.status != 504:
                break
            # Something else had the processor. Whoever asks again waits for the same read.
        assert head.status == 503
        assert json.loads(body)["code"] == "FEATURES_UNAVAILABLE"
        assert 0.35 < took_s < 0.5 + 1.0
        # The read goes on for whoever asks next.
        store.answers.set()
        assert (await bench.ask(asking(1)))[0].status == 200
        assert store.asked == [(1,)]


@pytest.mark.parametrize(
    ("document", "operation", "model", "status", "code"),
    [
        (asking(1), Operation.INFER, "other.v1", 500, "INTERNAL"),
        (b"{", Operation.READ_FEATURES, "", 400, "MALFORMED"),
        ({"views": []}, Operation.READ_FEATURES, "", 422, "INVALID_INPUT"),
        ({"view": "users", "path": ["777"]}, Operation.READ_FEATURES, "", 404, "UNKNOWN_ENTITY"),
        ({"view": "nobody"}, Operation.INVALIDATE_FEATURES, "", 404, "UNKNOWN_VIEW"),
        ({"wrong": 1}, Operation.INVALIDATE_FEATURES, "", 400, "MALFORMED"),
        (asking(777), Operation.INFER, "m.v1", 422, "MISSING_FEATURE"),
        (batch(keys=["\ud800"]), Operation.READ_FEATURES, "", 422, "INVALID_INPUT"),
        (batch(keys=["x" * 200_000]), Operation.READ_FEATURES, "", 422, "INVALID_INPUT"),
        (batch(keys=[1] * 10_001), Operation.READ_FEATURES, "", 422, "INVALID_INPUT"),
        (batch(keys=[1] * 10_000, views=20), Operation.READ_FEATURES, "", 422, "INVALID_INPUT"),
    ],
)
async def test_refusals(document: Any, operation: Operation, model: str, status: int, code: str) -> None:
    async with serving(HandStore()) as bench:
        head, body = await bench.ask(document, operation, model=model)
        assert (head.status, json.loads(body)["code"]) == (status, code)
        assert len(body) < 1000


async def test_columns_that_repeat_are_one() -> None:
    async with serving(HandStore()) as bench:
        head, body = await bench.ask(batch(keys=[1], columns=["karma"] * 1000), Operation.READ_FEATURES)
        assert (head.status, json.loads(body)["views"][0]["rows"][0]["features"]) == (200, {"karma": 1.0})


async def test_answers_are_limited() -> None:
    async with serving(HandStore()) as bench:
        await bench.ask(batch(keys=[1]), Operation.READ_FEATURES)
        _, body = await bench.ask(batch(keys=[1]), Operation.READ_FEATURES)  # from the cache, as from here on
        for limit, status in ((len(body), 200), (len(body) - 1, 422)):
            bench.service._max_bytes = limit
            assert (await bench.ask(batch(keys=[1]), Operation.READ_FEATURES))[0].status == status


async def test_a_deadline_that_has_passed_reads_nothing() -> None:
    store = HandStore()
    async with serving(store) as bench:
        head, body = await bench.ask(asking(1), left_s=-0.001)
        assert (head.status, json.loads(body)["code"]) == (504, "DEADLINE_EXCEEDED")
        assert not store.asked


async def test_statistics_count() -> None:
    async with serving(HandStore()) as bench:
        await bench.ask(asking(1, 2, 1))
        await bench.ask(asking(1))
        head, body = await bench.ask(b"", Operation.STATISTICS)
        assert (head.status, head.encoding) == (200, Encoding.JSON)
        document = json.loads(body)
        assert document["completed"] == 2
        assert document["cache"]["entries"] == 2
        assert {k: document["views"]["users"][k] for k in ("present", "cached", "queries")} == {
            "present": 2,
            "cached": 1,
            "queries": 2,
        }


async def test_the_next_process_goes_on_counting_but_for_what_is_only_now(tmp_path: Path) -> None:
    for life in (1, 2):
        async with serving(HandStore(), counters=tmp_path) as bench:
            await bench.ask(asking(1, 2, 1))
            await bench.ask(asking(1))
            await bench.ask(asking(404))
            await bench.ask(asking(404))
            found = {one.kind: one for one in read_counters(tmp_path, pytest.fail)}
            size_bytes = bench.service.cache.size_bytes
            [statistics] = bench.service.statistics()["views"].values()
        assert {one.writer for one in found.values()} == {"features:0"}
        assert found["view"].group == "users"
        assert found["store"].group == "main"
        view = {name: count for name, count in found["view"].values.items() if count}
        assert view == {name: life * each for name, each in EACH_LIFE.items()}
        assert found["view"].histograms["query_ns"].count == 3 * life
        assert statistics["missing"] == view["negative"] + view["absent"]
        assert found["features"].values == {
            "completed": 2 * life,
            "evictions": 0,
            "entries": 3,
            "size_bytes": size_bytes,
            "capacity_bytes": 1 << 20,
        }
        assert found["store"].values == {"openings": 0, "open": 0, "connected": 1}


EACH_LIFE = {"fresh": 1, "negative": 1, "present": 2, "absent": 1, "queries": 3}
