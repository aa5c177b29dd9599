"""The SQLite store: what every store must do, and what a file of this host makes possible."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from contract import LIMIT_S, STALL_READ_S, StoreContract, filled, id_key, make_view, many, scalar

from feature_io.stores import BadRow, StoreBusy, StoreUnavailable, TableMismatch, make_store, sqlite
from feature_io.stores.sqlite import WAITING_MAX, SqliteFeatureStore
from host.config.features import FeatureView, SqliteStore

ENDLESS = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT max(i) AS id, 0.5 AS x FROM n GROUP BY i % 2"
)


class SqliteBench:
    """A file, and stores on it."""

    keyspace: str | None = None
    keeps_nan: bool = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stores: list[SqliteFeatureStore] = []

    async def open(self, concurrency: int = 2) -> SqliteFeatureStore:
        store = make_store(SqliteStore(name="store", path=str(self.path), concurrency=concurrency))
        assert isinstance(store, SqliteFeatureStore)
        self._stores.append(store)
        await store.open(LIMIT_S)
        return store

    def execute(self, *statements: str) -> None:
        """Run statements as another process would."""
        connection = sqlite3.connect(self.path, timeout=LIMIT_S)
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    @asynccontextmanager
    async def stalled(self, view: FeatureView) -> AsyncIterator[None]:
        """Put an endless SQL view in the table's place."""
        store = await self.open()
        self.execute(f"DROP TABLE {view.table}", f"CREATE VIEW {view.table} AS {ENDLESS}")
        yield
        self.execute(f"DROP VIEW {view.table}", *store.ddl(view))

    async def close_writers(self) -> None:
        """Close all stores but the last one that was opened."""
        for store in self._stores[:-1]:
            await store.close()

    async def close_only(self) -> None:
        """Close the stores that are open; more may be opened."""
        for store in self._stores:
            await store.close()

    async def close(self) -> None:
        await self.close_only()
        # `close` gives them a few seconds, in which a busy disk may not have taken all that SQLite writes at its end.
        for thread in threading.enumerate():
            if thread.name.startswith("features-"):
                await asyncio.to_thread(thread.join, LIMIT_S)
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("features-")]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[SqliteBench]:
    """Give a file that is not there yet, in a directory whose name needs quoting."""
    (tmp_path / "a dir %41 ?x#y").mkdir()
    one = SqliteBench(tmp_path / "a dir %41 ?x#y" / "features.sqlite")
    yield one
    await one.close()


class TestContract(StoreContract):
    @pytest.fixture
    async def bench(self, tmp_path: Path) -> AsyncIterator[SqliteBench]:
        one = SqliteBench(tmp_path / "features.sqlite")
        yield one
        await one.close()


# -- the file -----------------------------------------------------------------------------------------------------
async def test_reading_never_makes_a_file_and_says_what_would(bench: SqliteBench) -> None:
    store = await bench.open()
    with pytest.raises(TableMismatch, match=r"expected an SQLite file, received none.*features create view --apply"):
        await store.reader(make_view(bench), LIMIT_S)
    assert not list(bench.path.parent.iterdir())


async def test_a_file_of_another_kind_is_named(bench: SqliteBench) -> None:
    bench.path.write_text("id,x\n" * 1000)
    store = await bench.open()
    with pytest.raises(TableMismatch, match="expected an SQLite file, received another"):
        await store.reader(make_view(bench), LIMIT_S)


async def test_a_directory_that_is_not_there_is_said(bench: SqliteBench) -> None:
    bench.path.parent.rmdir()
    store = await bench.open()
    with pytest.raises(StoreUnavailable, match=r"features\.sqlite: unable to open database file"):
        await store.create(make_view(bench), LIMIT_S)


async def test_after_writing_there_is_one_file(bench: SqliteBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((n,), (0.5,)) for n in range(1000)])
    await bench.close()
    assert [path.name for path in bench.path.parent.iterdir()] == ["features.sqlite"]


async def test_a_file_that_is_replaced_is_noticed(bench: SqliteBench, tmp_path: Path) -> None:
    view = make_view(bench)
    await filled(bench, view, [((1,), (0.5,))])
    reader = await (await bench.open()).reader(view, LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (0.5,)
    await bench.close_writers()
    other = SqliteBench(tmp_path / "new.sqlite")
    await filled(other, view, [((1,), (1.5,)), ((2,), (2.5,))])
    await other.close_only()
    assert await reader.read((1,), LIMIT_S) == (0.5,)
    other.path.replace(bench.path)
    assert await reader.read((1,), LIMIT_S) == (1.5,)
    assert await reader.read((2,), LIMIT_S) == (2.5,)


async def test_a_file_that_is_replaced_by_a_larger_one_under_reads(bench: SqliteBench, tmp_path: Path) -> None:
    view = make_view(bench)
    await filled(bench, view, [((n,), (0.5,)) for n in range(10)])
    store = await bench.open(4)
    reader = await store.reader(view, LIMIT_S)
    other = SqliteBench(tmp_path / "new.sqlite")
    await filled(other, view, [((n,), (1.5,)) for n in range(50_000)])
    await other.close_only()
    await asyncio.gather(*(reader.read((n,), LIMIT_S) for n in range(500)))
    await bench.close_writers()
    other.path.replace(bench.path)
    rows = await asyncio.gather(*(reader.read((n,), LIMIT_S) for n in range(0, 50_000, 50)))
    assert set(rows) == {(1.5,)}


async def test_writing_begins_and_ends_under_reads(bench: SqliteBench) -> None:
    view = make_view(bench)
    await filled(bench, view, [((n,), (0.5,)) for n in range(100)])
    reader = await (await bench.open(4)).reader(view, LIMIT_S)
    done = asyncio.Event()
    seen = set()

    async def keep_reading() -> None:
        while not done.is_set():
            seen.update(await asyncio.gather(*(reader.read((n,), LIMIT_S) for n in range(100))))

    reading = asyncio.ensure_future(keep_reading())
    for number in range(5):
        writer = await bench.open(1)
        await writer.write(view, [((n,), (float(number),)) for n in range(100)], LIMIT_S)
        await writer.close()
    done.set()
    await reading
    assert seen <= {(0.5,), *((float(number),) for number in range(5))}
    assert await reader.read((1,), LIMIT_S) == (4.0,)


async def test_a_file_that_goes_away_is_said_and_read_again_when_it_is_back(bench: SqliteBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    away = bench.path.with_name("away")
    bench.path.rename(away)
    with pytest.raises(StoreUnavailable, match=r"features\.sqlite: No such file"):
        await reader.read((1,), LIMIT_S)
    away.rename(bench.path)
    assert await reader.read((1,), LIMIT_S) == (0.5,)


async def test_a_table_that_goes_away_is_said(bench: SqliteBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [])
    bench.execute(f"DROP TABLE {view.table}")
    with pytest.raises(StoreUnavailable, match=f"no such table: {view.table}"):
        await reader.read((1,), LIMIT_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_who_may_only_read_reads() -> None:
    # pytest's own directories are its user's, and each run that begins sees to that.
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as directory:
        bench = SqliteBench(Path(directory, "features.sqlite"))
        view = make_view(bench)
        await filled(bench, view, [((1,), (0.5,))])
        await bench.close_only()
        bench.execute("PRAGMA journal_mode = WAL")  # in which a reader makes files beside it, if it can
        bench.path.parent.chmod(0o755)
        bench.path.chmod(0o644)
        store = await bench.open()
        os.seteuid(65534)
        try:
            reader = await store.reader(view, LIMIT_S)
            assert await reader.read((1,), LIMIT_S) == (0.5,)
        finally:
            os.seteuid(0)
        await bench.close()


# -- other processes ------------------------------------------------------------------------------------------------
async def test_a_writer_that_holds_its_lock_does_not_stall_readers(bench: SqliteBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    writer = sqlite3.connect(bench.path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute(f"UPDATE {view.table} SET x = 9.5")  # noqa: S608
    assert await reader.read((1,), LIMIT_S) == (0.5,)
    another = await bench.open()
    assert await (await another.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)
    with pytest.raises(StoreUnavailable):
        await another.write(view, [((1,), (7.5,))], STALL_READ_S)
    writer.execute("COMMIT")
    writer.close()
    assert await reader.read((1,), LIMIT_S) == (9.5,)
    await another.write(view, [((1,), (7.5,))], LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (7.5,)


async def test_a_write_that_gets_its_lock_after_its_time_is_not_done(
    bench: SqliteBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    late = await bench.open()
    # As when the thread was held up: it still tries when its caller has been told that there was no answer.
    monkeypatch.setattr(sqlite, "_left_ms", lambda _: int(LIMIT_S * 1000))
    with pytest.raises(StoreUnavailable, match="no answer within"):
        await late.write(view, [((1,), (7.5,))], STALL_READ_S)
    other.execute("COMMIT")
    other.close()
    await late.reader(view, LIMIT_S)  # in the same thread, thus after it
    assert await reader.read((1,), LIMIT_S) == (0.5,)
    await late.write(view, [((1,), (8.5,))], LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (8.5,)


async def test_a_file_without_wal_that_is_locked_is_waited_for(bench: SqliteBench) -> None:
    view = make_view(bench)
    store = await bench.open()
    writer = sqlite3.connect(bench.path, isolation_level=None)
    writer.execute(store.ddl(view)[0])
    reader = await store.reader(view, LIMIT_S)
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute(f"INSERT INTO {view.table} VALUES (1, 0.5)")  # noqa: S608
    with pytest.raises(StoreUnavailable):
        await reader.read((1,), STALL_READ_S)
    waiting = asyncio.ensure_future(reader.read((1,), LIMIT_S))
    assert not (await asyncio.wait([waiting], timeout=0.02))[0]
    writer.execute("COMMIT")
    writer.close()
    assert await waiting == (0.5,)


# -- limits -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("waiting", [WAITING_MAX, WAITING_MAX + 1])
async def test_more_reads_than_may_wait_are_refused_at_once(bench: SqliteBench, waiting: int) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [((1,), (0.5,))])
    ends = await asyncio.gather(*(reader.read((1,), LIMIT_S) for _ in range(waiting)), return_exceptions=True)
    assert ends.count((0.5,)) == WAITING_MAX
    assert sum(isinstance(end, StoreBusy) for end in ends) == waiting - WAITING_MAX


async def test_one_slow_view_does_not_stall_others(bench: SqliteBench) -> None:
    slow, quick = make_view(bench), make_view(bench)
    slow_reader = await filled(bench, slow, [])
    store = await bench.open(2)
    slow_reader = await store.reader(slow, LIMIT_S)
    await store.create(quick, LIMIT_S)
    quick_reader = await store.reader(quick, LIMIT_S)
    async with bench.stalled(slow):
        waiting = asyncio.ensure_future(slow_reader.read((1,), LIMIT_S))
        await asyncio.wait([waiting], timeout=0.01)
        assert await quick_reader.read((1,), LIMIT_S) is None
        waiting.cancel()


async def test_a_write_whose_caller_leaves_is_whole_or_not_there(bench: SqliteBench) -> None:
    view = make_view(bench)
    reader = await filled(bench, view, [])
    store = await bench.open()
    with pytest.raises(StoreUnavailable):
        await store.write(view, [((n,), (0.5,)) for n in range(200_000)], 0.02)
    await store.write(view, [((-1,), (0.5,))], LIMIT_S)
    first, last = await reader.read((0,), LIMIT_S), await reader.read((199_999,), LIMIT_S)
    assert first == last


# -- tables that others made ----------------------------------------------------------------------------------------
async def test_several_rows_for_one_key_are_no_row(bench: SqliteBench) -> None:
    view = make_view(bench)
    bench.execute(f"CREATE TABLE {view.table} (id INTEGER, x REAL)", f"INSERT INTO {view.table} VALUES (1, 2), (1, 3)")  # noqa: S608
    reader = await (await bench.open()).reader(view, LIMIT_S)
    with pytest.raises(BadRow, match="expected one row for a key, received several"):
        await reader.read((1,), LIMIT_S)
    assert await reader.read((2,), LIMIT_S) is None


async def test_what_is_no_list_is_a_bad_row(bench: SqliteBench) -> None:
    view = make_view(bench, many("x", "FP32", 2))
    reader = await filled(bench, view, [])
    bench.execute(f"INSERT INTO {view.table} VALUES (1, x'0011'), (2, NULL)")  # noqa: S608
    with pytest.raises(BadRow, match="column x: expected the bytes of 2 FP32 values, received 2 bytes"):
        await reader.read((1,), LIMIT_S)
    assert await reader.read((2,), LIMIT_S) == (None,)


@pytest.mark.parametrize(
    ("declared", "datatype", "literal", "value"),
    [
        ("BIGINT", "INT64", "7", 7),
        ("boolean", "BOOL", "1", True),
        ("DOUBLE PRECISION", "FP64", "0.5", 0.5),
        ("FLOAT", "FP32", "0.5", 0.5),
        ("VARCHAR(20)", "BYTES", "'ä'", "ä"),
        ("BLOB", "BYTES", "x'ff00'", b"\xff\x00"),
        ("DECIMAL(10,2)", "FP64", "0.5", 0.5),
    ],
)
async def test_types_of_other_tables(
    bench: SqliteBench, declared: str, datatype: str, literal: str, value: object
) -> None:
    view = make_view(bench, scalar("X", datatype), keys=[id_key("INT64", "ID")])
    bench.execute(
        f"CREATE TABLE {view.table} (id INTEGER PRIMARY KEY, x {declared})",
        f"INSERT INTO {view.table} VALUES (1, {literal})",  # noqa: S608
    )
    reader = await (await bench.open()).reader(view, LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (value,)


async def test_a_view_of_the_file_is_read_as_a_table(bench: SqliteBench) -> None:
    view = make_view(bench)
    bench.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, y REAL)",
        "INSERT INTO t VALUES (1, 2)",
        f"CREATE VIEW {view.table} AS SELECT id, y * 2 AS x FROM t",  # noqa: S608
    )
    reader = await (await bench.open()).reader(view, LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (4.0,)


async def test_names_that_are_words_of_sql_are_names(bench: SqliteBench) -> None:
    view = make_view(bench, scalar("select", "FP64"), keys=[id_key("INT64", "from")], table="order")
    reader = await filled(bench, view, [((1,), (0.5,))])
    assert await reader.read((1,), LIMIT_S) == (0.5,)


async def test_columns_that_are_not_the_views_are_kept_by_a_write(bench: SqliteBench) -> None:
    whole = make_view(bench, scalar("a", "FP64"), scalar("b", "FP64"))
    part = make_view(bench, scalar("b", "FP64"), table=whole.table)
    reader = await filled(bench, whole, [((1,), (1.0, 2.0))])
    await (await bench.open()).write(part, [((1,), (5.0,))], LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (1.0, 5.0)
