"""What every store must do: one suite for all of them.

A test module of a store subclasses `StoreContract` in a class whose name begins with `Test`, and gives it the fixture
`bench`:

    class TestSqlite(StoreContract):
        @pytest.fixture
        async def bench(self, tmp_path): ...

Tests make tables through the store itself (`create` and `write`), so a store needs to bring nothing else; each table
has a name of its own, so tests of one cluster can run one after the other in one keyspace.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

import pytest

from feature_io.stores import BadRow, Key, Row, Store, StoreUnavailable, TableMismatch, ViewReader
from feature_io.values import pack
from host.config.features import FeatureColumn, FeatureView, KeyColumn

LIMIT_S: Final = 20.0
"""Of what is not about time; a cluster that has just started is slow."""

STALL_READ_S: Final = 0.4
"""The patience of a read that cannot be answered."""
STALL_LIMIT_S: Final = 8.0
"""By then it must have ended, on a machine that is busy with other things too; less than a driver's own ten seconds."""

_numbers = itertools.count(1)

INF: Final = math.inf
NAN: Final = math.nan


class Bench(Protocol):
    """A store to be tested, and what its kind can do."""

    keyspace: str | None
    """For the views."""
    keeps_nan: bool
    """Whether a NaN of a scalar column is kept; a store that cannot refuses to write one."""

    async def open(self) -> Store:
        """Give an open store; several of one test are on the same data. The fixture closes them."""
        ...

    def stalled(self, view: FeatureView) -> AbstractAsyncContextManager[None]:
        """Within, the store answers no read of this view. Its table exists and is empty before and afterwards."""
        ...


# -- views and rows -----------------------------------------------------------------------------------------------
def scalar(name: str, datatype: str) -> FeatureColumn:
    """A column of single values."""
    return FeatureColumn(name=name, datatype=datatype)


def many(name: str, datatype: str, *shape: int, storage: str = "list") -> FeatureColumn:
    """A column of lists."""
    return FeatureColumn(name=name, datatype=datatype, shape=shape, storage=storage)


def id_key(datatype: str = "INT64", column: str = "id") -> KeyColumn:
    """A column of a key."""
    return KeyColumn(column=column, datatype=datatype, input=column)


def make_view(
    bench: Bench,
    *columns: FeatureColumn,
    keys: Iterable[KeyColumn] = (),
    freshness_column: str | None = None,
    table: str | None = None,
) -> FeatureView:
    """Give a view of a table that no other test has."""
    name = table or f"t{next(_numbers)}_{uuid.uuid4().hex[:12]}"
    return FeatureView(
        name="view",
        store="store",
        keyspace=bench.keyspace,
        table=name,
        keys=tuple(keys) or (id_key(),),
        columns=columns or (scalar("x", "FP64"),),
        freshness_column=freshness_column,
    )


async def filled(bench: Bench, view: FeatureView, rows: Iterable[tuple[Key, Row]]) -> ViewReader:
    """Make the view's table, write rows, and give a reader."""
    store = await bench.open()
    await store.create(view, LIMIT_S)
    await store.write(view, list(rows), LIMIT_S)
    return await store.reader(view, LIMIT_S)


def packed(view: FeatureView, row: Row | None) -> list[bytes | None]:
    """A row as the service keeps it: this also checks that the raw values are of the right types."""
    assert row is not None
    assert len(row) == len(view.columns) + (view.freshness_column is not None)
    return [None if v is None else pack(column, v) for column, v in zip(view.columns, row, strict=False)]


async def assert_reads_back(bench: Bench, view: FeatureView, rows: list[tuple[Key, Row]]) -> None:
    """What is written is what is read, to the last bit."""
    reader = await filled(bench, view, rows)
    for key, row in rows:
        assert packed(view, await reader.read(key, LIMIT_S)) == packed(view, row), key


INTEGERS: Final = [f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
FLOATS: Final = {
    "FP16": [0.0, 1.5, -65504.0, 65504.0, 5.960464477539063e-08],
    "FP32": [0.0, 0.1, -3.4028234663852886e38, 3.4028234663852886e38, 1.401298464324817e-45],
    "FP64": [0.0, 0.1, -1.7976931348623157e308, 1.7976931348623157e308, 5e-324, 2.0**53 + 2],
}
"""Without -0.0, of which SQLite makes 0.0: no model tells them apart."""
TEXTS: Final = [
    "",
    "a",
    "äöü",
    "日本語",
    "👩‍👩‍👧",
    "a\x00b",
    "line\nbreak",
    "'; drop table x; --",
    '"',
    "%s ? $1",
    "x" * 5000,
]


def bounds(datatype: str) -> tuple[int, int]:
    """The least and the greatest value of a datatype of whole numbers."""
    bits = int(datatype.removeprefix("U").removeprefix("INT"))
    return (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


class StoreContract:
    """The suite. `bench` is the subclass's fixture."""

    @pytest.fixture
    async def bench(self) -> Any:
        raise NotImplementedError("the subclass gives the fixture 'bench'")

    # -- rows and keys --------------------------------------------------------------------------------------------
    async def test_a_row_is_read_and_an_entity_that_is_not_there_is_none(self, bench: Bench) -> None:
        view = make_view(bench, scalar("x", "FP64"), scalar("n", "INT64"))
        reader = await filled(bench, view, [((1,), (0.5, 7)), ((2,), (1.5, 8))])
        assert await reader.read((1,), LIMIT_S) == (0.5, 7)
        assert await reader.read((2,), LIMIT_S) == (1.5, 8)
        assert await reader.read((3,), LIMIT_S) is None

    async def test_columns_come_in_the_views_order_and_others_of_the_table_do_not_matter(self, bench: Bench) -> None:
        whole = make_view(bench, scalar("a", "INT64"), scalar("b", "BYTES"), scalar("c", "FP64"))
        await filled(bench, whole, [((1,), (10, "ten", 10.5))])
        part = make_view(bench, scalar("c", "FP64"), scalar("a", "INT64"), table=whole.table)
        store = await bench.open()
        reader = await store.reader(part, LIMIT_S)
        assert await reader.read((1,), LIMIT_S) == (10.5, 10)

    async def test_nulls_are_none_and_a_row_of_nulls_is_a_row(self, bench: Bench) -> None:
        columns = [scalar(f"c_{datatype.lower()}", datatype) for datatype in ("BOOL", "INT32", "FP32", "BYTES")]
        view = make_view(bench, *columns, many("vs", "FP32", 3), many("bs", "FP32", 3, storage="blob"))
        nothing = (None,) * 6
        reader = await filled(bench, view, [((1,), nothing), ((2,), (True, None, 0.5, None, None, bytes(12)))])
        assert await reader.read((1,), LIMIT_S) == nothing
        assert await reader.read((2,), LIMIT_S) == (True, None, 0.5, None, None, bytes(12))

    async def test_a_write_replaces_the_row_nulls_too(self, bench: Bench) -> None:
        view = make_view(bench, scalar("a", "FP64"), scalar("b", "FP64"))
        reader = await filled(bench, view, [((1,), (1.0, 2.0))])
        store = await bench.open()
        await store.write(view, [((1,), (None, 5.0))], LIMIT_S)
        assert await reader.read((1,), LIMIT_S) == (None, 5.0)

    async def test_writing_nothing_is_allowed(self, bench: Bench) -> None:
        view = make_view(bench)
        reader = await filled(bench, view, [])
        assert await reader.read((1,), LIMIT_S) is None

    @pytest.mark.parametrize("datatype", ["INT8", "INT16", "INT32", "INT64"])
    async def test_number_keys_to_their_bounds(self, bench: Bench, datatype: str) -> None:
        low, high = bounds(datatype)
        view = make_view(bench, keys=[id_key(datatype)])
        reader = await filled(bench, view, [((key,), (float(key % 97),)) for key in (low, -1, 0, 1, high)])
        for key in (low, -1, 0, 1, high):
            assert await reader.read((key,), LIMIT_S) == (float(key % 97),), key
        assert await reader.read((5,), LIMIT_S) is None

    async def test_text_keys_are_told_apart_to_the_last_character(self, bench: Bench) -> None:
        view = make_view(bench, keys=[id_key("BYTES")])
        texts = [text for text in TEXTS if text] + ["A", "a ", " a", "1", "01", "é", "e\u0301"]
        reader = await filled(bench, view, [((text,), (float(n),)) for n, text in enumerate(texts)])
        for number, text in enumerate(texts):
            assert await reader.read((text,), LIMIT_S) == (float(number),), text
        assert await reader.read(("b",), LIMIT_S) is None

    async def test_uuid_keys_are_their_text(self, bench: Bench) -> None:
        view = make_view(bench, keys=[id_key("UUID")])
        keys = [str(uuid.UUID(int=number)) for number in (0, 1, 2**128 - 1)] + [str(uuid.uuid4())]
        reader = await filled(bench, view, [((key,), (float(n),)) for n, key in enumerate(keys)])
        for number, key in enumerate(keys):
            assert await reader.read((key,), LIMIT_S) == (float(number),)
        assert await reader.read((str(uuid.uuid4()),), LIMIT_S) is None

    async def test_composite_keys_take_all_their_columns(self, bench: Bench) -> None:
        keys = [id_key("INT32", "user_id"), id_key("BYTES", "day"), id_key("UUID", "device")]
        view = make_view(bench, keys=keys)
        one, two = str(uuid.uuid4()), str(uuid.uuid4())
        rows: list[tuple[Key, Row]] = [
            ((1, "monday", one), (1.0,)),
            ((1, "monday", two), (2.0,)),
            ((1, "tuesday", one), (3.0,)),
            ((2, "monday", one), (4.0,)),
        ]
        reader = await filled(bench, view, rows)
        for key, row in rows:
            assert await reader.read(key, LIMIT_S) == row
        assert await reader.read((2, "tuesday", one), LIMIT_S) is None

    # -- values ---------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("datatype", INTEGERS)
    async def test_whole_numbers_to_their_bounds(self, bench: Bench, datatype: str) -> None:
        low, high = bounds(datatype)
        values = sorted({low, low + 1, 0, 1, high // 2 + 1, high - 1, high})
        view = make_view(bench, scalar("x", datatype))
        await assert_reads_back(bench, view, [((n,), (value,)) for n, value in enumerate(values)])

    @pytest.mark.parametrize("datatype", FLOATS)
    async def test_floats_to_their_bounds(self, bench: Bench, datatype: str) -> None:
        values = [*FLOATS[datatype], INF, -INF]
        view = make_view(bench, scalar("x", datatype))
        await assert_reads_back(bench, view, [((n,), (value,)) for n, value in enumerate(values)])

    @pytest.mark.parametrize("datatype", FLOATS)
    async def test_nan_is_kept_or_refused_and_never_something_else(self, bench: Bench, datatype: str) -> None:
        view = make_view(bench, scalar("x", datatype))
        if bench.keeps_nan:
            reader = await filled(bench, view, [((1,), (NAN,))])
            row = await reader.read((1,), LIMIT_S)
            assert row is not None
            assert math.isnan(row[0])
        else:
            with pytest.raises(BadRow, match=r"column x: .*[nN]a[nN]"):
                await filled(bench, view, [((1,), (NAN,))])

    async def test_booleans_are_booleans(self, bench: Bench) -> None:
        view = make_view(bench, scalar("x", "BOOL"))
        reader = await filled(bench, view, [((1,), (True,)), ((0,), (False,))])
        for key, wanted in ((1, True), (0, False)):
            row = await reader.read((key,), LIMIT_S)
            assert row is not None
            assert row[0] is wanted

    async def test_texts_of_every_script(self, bench: Bench) -> None:
        view = make_view(bench, scalar("x", "BYTES"))
        await assert_reads_back(bench, view, [((n,), (text,)) for n, text in enumerate(TEXTS)])

    @pytest.mark.parametrize("datatype", ["BOOL", *INTEGERS, *FLOATS, "BYTES"])
    async def test_lists_of_every_datatype(self, bench: Bench, datatype: str) -> None:
        if datatype == "BOOL":
            values: list[Any] = [True, False, True, True]
        elif datatype == "BYTES":
            values = ["", "äöü", "日本語", "a\x00b"]
        elif datatype in FLOATS:
            values = [*FLOATS[datatype][2:4], NAN, -INF]
        else:
            values = [*bounds(datatype), 0, 1]
        view = make_view(bench, many("x", datatype, 4), many("y", datatype, 2, 2))
        await assert_reads_back(bench, view, [((1,), (values, values[::-1])), ((2,), (values[::-1], values))])

    async def test_blobs_are_the_bytes_themselves(self, bench: Bench) -> None:
        view = make_view(bench, many("x", "FP32", 64, storage="blob"), many("y", "FP16", 2, 3, storage="blob"))
        data = bytes(range(256))
        reader = await filled(bench, view, [((1,), (data, data[:12]))])
        assert await reader.read((1,), LIMIT_S) == (data, data[:12])

    async def test_freshness_is_seconds_since_the_epoch_after_the_features(self, bench: Bench) -> None:
        view = make_view(bench, scalar("x", "FP64"), freshness_column="changed_at")
        reader = await filled(bench, view, [((1,), (0.5, 1_700_000_000.25)), ((2,), (0.5, None))])
        row = await reader.read((1,), LIMIT_S)
        assert row is not None
        assert row[0] == 0.5
        assert type(row[1]) is float
        assert row[1] == pytest.approx(1_700_000_000.25, abs=0.001)
        assert await reader.read((2,), LIMIT_S) == (0.5, None)

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            (scalar("x", "FP64"), "text"),
            (scalar("x", "INT8"), 128),
            (scalar("x", "FP32"), 1e300),
            (scalar("x", "BOOL"), 1),
            (scalar("x", "BYTES"), 5),
            (many("x", "FP32", 3), [1.0, 2.0]),
            (many("x", "FP32", 2), [1.0, None]),
            (many("x", "FP32", 2, storage="blob"), b"1234567"),
        ],
        ids=lambda one: str(one.datatype if isinstance(one, FeatureColumn) else one),
    )
    async def test_a_value_that_is_not_the_columns_is_not_written(
        self, bench: Bench, column: FeatureColumn, value: object
    ) -> None:
        view = make_view(bench, column)
        store = await bench.open()
        await store.create(view, LIMIT_S)
        with pytest.raises(BadRow, match=r"column x: expected .* received"):
            await store.write(view, [((1,), (value,))], LIMIT_S)
        reader = await store.reader(view, LIMIT_S)
        assert await reader.read((1,), LIMIT_S) is None

    # -- tables ---------------------------------------------------------------------------------------------------
    async def test_making_a_table_twice_leaves_it_as_it_is(self, bench: Bench) -> None:
        view = make_view(bench)
        reader = await filled(bench, view, [((1,), (0.5,))])
        store = await bench.open()
        await store.create(view, LIMIT_S)
        assert await reader.read((1,), LIMIT_S) == (0.5,)
        assert store.ddl(view)
        assert not any(statement.rstrip().endswith(";") for statement in store.ddl(view))

    async def test_a_missing_table_is_named(self, bench: Bench) -> None:
        await filled(bench, make_view(bench), [])  # so that the file or the keyspace is there
        store = await bench.open()
        view = make_view(bench)
        with pytest.raises(TableMismatch, match=view.table):
            await store.reader(view, LIMIT_S)

    async def test_every_missing_column_is_named(self, bench: Bench) -> None:
        table = make_view(bench)
        await filled(bench, table, [])
        store = await bench.open()
        view = make_view(
            bench, scalar("x", "FP64"), scalar("y_gone", "FP64"), scalar("z_gone", "INT64"), table=table.table,
            freshness_column="never_was",
        )  # fmt: skip
        with pytest.raises(TableMismatch) as raised:
            await store.reader(view, LIMIT_S)
        for name in ("y_gone", "z_gone", "never_was"):
            assert any(name in problem for problem in raised.value.problems), name
        assert not any("column x" in problem for problem in raised.value.problems)

    async def test_a_missing_key_column_is_named(self, bench: Bench) -> None:
        table = make_view(bench)
        await filled(bench, table, [])
        store = await bench.open()
        view = make_view(bench, keys=[id_key(column="user_id")], table=table.table)
        with pytest.raises(TableMismatch, match="user_id"):
            await store.reader(view, LIMIT_S)

    @pytest.mark.parametrize(
        ("is_there", "wanted"),
        [
            (scalar("x", "BYTES"), scalar("x", "FP64")),
            (scalar("x", "FP64"), scalar("x", "BYTES")),
            (scalar("x", "FP64"), scalar("x", "INT64")),
            (scalar("x", "INT64"), scalar("x", "BYTES")),
            (scalar("x", "FP64"), many("x", "FP64", 4)),
            (many("x", "FP32", 4, storage="blob"), scalar("x", "FP32")),
        ],
        ids=lambda one: f"{one.datatype}-{one.storage}",
    )
    async def test_a_column_of_another_type_is_named(
        self, bench: Bench, is_there: FeatureColumn, wanted: FeatureColumn
    ) -> None:
        table = make_view(bench, is_there, scalar("good", "FP64"))
        await filled(bench, table, [])
        store = await bench.open()
        view = make_view(bench, wanted, scalar("good", "FP64"), table=table.table)
        with pytest.raises(TableMismatch, match=r"\bx\b.*expected .*received") as raised:
            await store.reader(view, LIMIT_S)
        assert not any("good" in problem.split(":")[0] for problem in raised.value.problems)

    async def test_a_key_of_another_type_is_named(self, bench: Bench) -> None:
        table = make_view(bench, keys=[id_key("BYTES")])
        await filled(bench, table, [])
        store = await bench.open()
        view = make_view(bench, keys=[id_key("INT64")], table=table.table)
        with pytest.raises(TableMismatch, match=r"\bid\b.*expected .*received"):
            await store.reader(view, LIMIT_S)

    # -- many at once, and none at all ------------------------------------------------------------------------------
    async def test_many_keys_at_once_each_get_their_own_row(self, bench: Bench) -> None:
        view = make_view(bench, scalar("x", "FP64"), scalar("name", "BYTES"))
        reader = await filled(bench, view, [((n,), (n / 2, f"n{n}")) for n in range(1000)])
        wanted = [*range(1000), *range(5000, 5100), *range(100)]
        rows = await asyncio.gather(*(reader.read((n,), LIMIT_S) for n in wanted))
        assert rows == [(n / 2, f"n{n}") if n < 1000 else None for n in wanted]

    async def test_readers_of_several_views_do_not_mix_rows(self, bench: Bench) -> None:
        views = [make_view(bench) for _ in range(3)]
        readers = [await filled(bench, view, [((1,), (float(n),))]) for n, view in enumerate(views)]
        rows = await asyncio.gather(*(readers[n % 3].read((1,), LIMIT_S) for n in range(60)))
        assert rows == [(float(n % 3),) for n in range(60)]

    async def test_a_read_ends_when_its_time_is_over(self, bench: Bench) -> None:
        view = make_view(bench)
        reader = await filled(bench, view, [])
        async with bench.stalled(view):
            began_s = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await reader.read((1,), STALL_READ_S)
            assert time.monotonic() - began_s < STALL_LIMIT_S
        await self.assert_works_again(bench, view, reader)

    async def test_many_reads_end_when_their_time_is_over(self, bench: Bench) -> None:
        view = make_view(bench)
        reader = await filled(bench, view, [])
        async with bench.stalled(view):
            began_s = time.monotonic()
            ends = await asyncio.gather(*(reader.read((n,), STALL_READ_S) for n in range(40)), return_exceptions=True)
            assert time.monotonic() - began_s < STALL_LIMIT_S
            assert all(isinstance(end, StoreUnavailable) for end in ends)
        await self.assert_works_again(bench, view, reader)

    async def test_a_read_is_cancelled_at_once(self, bench: Bench) -> None:
        view = make_view(bench)
        reader = await filled(bench, view, [])
        async with bench.stalled(view):
            reads = [asyncio.ensure_future(reader.read((n,), LIMIT_S)) for n in range(10)]
            await asyncio.wait(reads, timeout=0.05)
            began_s = time.monotonic()
            for read in reads:
                read.cancel()
            ends = await asyncio.gather(*reads, return_exceptions=True)
            assert time.monotonic() - began_s < STALL_LIMIT_S
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        await self.assert_works_again(bench, view, reader)

    async def test_one_cancelled_read_takes_no_other_with_it(self, bench: Bench) -> None:
        view = make_view(bench)
        reader = await filled(bench, view, [((n,), (float(n),)) for n in range(50)])
        reads = [asyncio.ensure_future(reader.read((n,), LIMIT_S)) for n in range(50)]
        await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=0)
        for read in reads[::2]:
            read.cancel()
        ends = await asyncio.gather(*reads, return_exceptions=True)
        assert ends[1::2] == [(float(n),) for n in range(1, 50, 2)]

    async def test_a_closed_store_refuses_reads_and_can_be_closed_again(self, bench: Bench) -> None:
        view = make_view(bench)
        await filled(bench, view, [((1,), (0.5,))])
        store = await bench.open()
        reader = await store.reader(view, LIMIT_S)
        assert await reader.read((1,), LIMIT_S) == (0.5,)
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable):
            await reader.read((1,), LIMIT_S)
        with pytest.raises(StoreUnavailable):
            await store.reader(view, LIMIT_S)
        with pytest.raises(StoreUnavailable):
            await store.write(view, [((1,), (0.5,))], LIMIT_S)

    async def test_closing_ends_reads_that_wait(self, bench: Bench) -> None:
        view = make_view(bench)
        await filled(bench, view, [])
        store = await bench.open()
        reader = await store.reader(view, LIMIT_S)
        async with bench.stalled(view):
            reads = [asyncio.ensure_future(reader.read((n,), LIMIT_S)) for n in range(10)]
            await asyncio.wait(reads, timeout=0.05)
            began_s = time.monotonic()
            await store.close()
            ends = await asyncio.gather(*reads, return_exceptions=True)
            assert time.monotonic() - began_s < STALL_LIMIT_S
            assert all(isinstance(end, StoreUnavailable) for end in ends)

    @staticmethod
    async def assert_works_again(bench: Bench, view: FeatureView, reader: ViewReader) -> None:
        """What did not answer is asked again, with the same reader, until it answers."""
        store = await bench.open()
        await store.write(view, [((1,), (0.5,))], LIMIT_S)
        give_up_s = time.monotonic() + LIMIT_S
        while True:
            try:
                assert await reader.read((1,), LIMIT_S) == (0.5,)
            except StoreUnavailable:
                assert time.monotonic() < give_up_s, "the store does not come back"
                await asyncio.sleep(0.05)  # as a caller would: asked again, with a limit
            else:
                return
