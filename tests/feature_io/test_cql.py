"""Views as CQL: types, statements, values."""

from __future__ import annotations

import math
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from contract import id_key, many, scalar
from hypothesis import given
from hypothesis import strategies as st

from feature_io.stores import BadRow
from feature_io.stores.cql import RowCodec, TableColumn, bare_type, column_types, ddl, insert, mismatches, select
from host.config.features import FeatureColumn, FeatureView, KeyColumn


def view_of(*columns: FeatureColumn, keys: tuple[KeyColumn, ...] = (), freshness: str | None = None) -> FeatureView:
    return FeatureView(
        name="v", store="s", keyspace="ks", table="t", keys=keys or (id_key(),),
        columns=columns or (scalar("x", "FP64"),), freshness_column=freshness,
    )  # fmt: skip


def table_of(**types: str) -> list[TableColumn]:
    """A table of columns; a key's type begins with `pk ` or `ck `."""
    kinds = {"pk ": "partition_key", "ck ": "clustering"}
    return [
        TableColumn(name, kinds.get(text[:3], "regular"), text.removeprefix("pk ").removeprefix("ck "))
        for name, text in types.items()
    ]


def test_statements_name_everything_in_quotes() -> None:
    view = view_of(scalar("x", "FP64"), many("v", "FP32", 8), keys=(id_key("UUID"),), freshness="at")
    assert select(view) == 'SELECT "x", "v", toUnixTimestamp("at") FROM "ks"."t" WHERE "id" = ?'
    assert insert(view) == 'INSERT INTO "ks"."t" ("id", "x", "v", "at") VALUES (?, ?, ?, ?)'
    assert ddl(view) == [
        "CREATE KEYSPACE IF NOT EXISTS \"ks\" WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
        'CREATE TABLE IF NOT EXISTS "ks"."t" ("id" uuid, "x" double, "v" frozen<list<float>>, "at" timestamp, '
        'PRIMARY KEY (("id")))',
    ]


def test_a_composite_key_is_the_partitions_key() -> None:
    view = view_of(keys=(id_key("INT32", "a"), id_key("BYTES", "b")))
    assert select(view).endswith('WHERE "a" = ? AND "b" = ?')
    assert ddl(view)[1].endswith('"a" int, "b" text, "x" double, PRIMARY KEY (("a", "b")))')


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("frozen<list<float>>", "list<float>"),
        ("list<frozen<list<float>>>", "list<list<float>>"),
        ("vector<float, 3>", "vector<float,3>"),
        ("text", "text"),
        ("map<int, frozen<set<text>>>", "map<int,set<text>>"),
    ],
)
def test_types_are_compared_without_frozen_and_spaces(text: str, bare: str) -> None:
    assert bare_type(text) == bare


def test_the_first_type_of_a_column_is_the_one_that_tables_are_made_with() -> None:
    assert column_types(many("v", "FP32", 2, 3))[0] == "list<float>"
    assert "vector<float,6>" in column_types(many("v", "FP32", 2, 3))
    assert column_types(many("v", "FP32", 3, storage="blob")) == ("blob",)
    assert "list<counter>" not in column_types(many("v", "INT64", 3))


def test_a_view_that_fits_has_no_mismatches() -> None:
    view = view_of(scalar("x", "FP64"), many("v", "FP32", 3), keys=(id_key("UUID"),), freshness="at")
    table = table_of(id="pk timeuuid", x="float", v="vector<float, 3>", at="timestamp", other="set<text>")
    assert mismatches(view, table, (), "aiocassandra") == []
    (problem,) = mismatches(view, table, ("vector",), "acsylla")
    assert problem.endswith("column v: expected a type that driver acsylla reads, received vector<float,3>")


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"id": "pk bigint", "day": "ck text", "x": "double"}, "received none for day"),
        ({"id": "pk bigint", "part": "pk int", "x": "double"}, "received none for part"),
        ({"id": "bigint", "other": "pk int", "x": "double"}, "received id"),
    ],
)
def test_the_views_key_is_the_tables_key(table: dict[str, str], problem: str) -> None:
    assert any(one.endswith(problem) for one in mismatches(view_of(), table_of(**table), (), "aiocassandra"))


# -- values -----------------------------------------------------------------------------------------------------------
def codec(view: FeatureView, **types: str) -> RowCodec:
    return RowCodec(view, table_of(**types))


@given(st.text(max_size=40) | st.integers() | st.text(alphabet="0123456789abcdef-", min_size=30, max_size=40))
def test_whatever_comes_as_a_key_is_bound_or_not_there(part: int | str) -> None:
    for datatype, cql_type in (("INT8", "tinyint"), ("INT64", "bigint"), ("BYTES", "text"), ("UUID", "uuid")):
        bound = codec(view_of(keys=(id_key(datatype),)), id=f"pk {cql_type}", x="double").key((part,))
        if bound is not None:
            assert type(bound[0]) is {"text": str, "uuid": uuid.UUID}.get(cql_type, int)
            if datatype != "UUID":
                assert bound == (part,)


@pytest.mark.parametrize("size", [1, 65_534, 65_535])
def test_a_partition_key_up_to_the_limit_is_asked_for(size: int) -> None:
    assert codec(view_of(keys=(id_key("BYTES"),)), id="pk text", x="double").key(("x" * size,)) is not None


@pytest.mark.parametrize("text", ["", "x" * 65_536, "ä" * 32_768, "\ud800"])
def test_a_partition_key_past_the_limit_is_not_there(text: str) -> None:
    assert codec(view_of(keys=(id_key("BYTES"),)), id="pk text", x="double").key((text,)) is None


def test_a_composite_key_has_a_limit_for_all_of_its_partition_columns() -> None:
    view = view_of(keys=(id_key("BYTES", "a"), id_key("BYTES", "b"), id_key("BYTES", "c")))
    one = codec(view, a="pk text", b="pk text", c="ck text", x="double")
    assert one.key(("", "", "")) is not None
    assert one.key(("x" * 32_767, "y" * 32_762, "z" * 65_535)) is not None
    assert one.key(("x" * 32_767, "y" * 32_763, "z")) is None
    assert one.key(("x", "y", "z" * 65_536)) is None


@pytest.mark.parametrize("key", [(), (1, 2), (True,), (1.0,), ("1",), (None,)])
def test_a_key_of_another_shape_or_type_is_not_there(key: Any) -> None:
    assert codec(view_of(), id="pk bigint", x="double").key(key) is None


def test_rows_are_bound_as_the_columns_types_say() -> None:
    view = view_of(
        scalar("a", "FP64"), scalar("b", "BYTES"), scalar("c", "BYTES"), many("v", "FP32", 2),
        many("w", "FP32", 2, storage="blob"), scalar("d", "BOOL"), scalar("e", "FP64"), freshness="at",
    )  # fmt: skip
    one = codec(
        view, id="pk bigint", a="decimal", b="text", c="blob", v="list<float>", w="blob", d="boolean", e="double",
        at="timestamp",
    )  # fmt: skip
    values = one.row((1,), (0.1, b"bytes", "text", [1, 2.5], bytearray(8), True, 3, 1.5))
    assert values == (
        1, Decimal("0.1"), "bytes", b"text", [1.0, 2.5], bytes(8), True, 3.0,
        datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC),
    )  # fmt: skip
    assert one.row((1,), (None,) * 8) == (1, *[None] * 8)
    assert one.decode([Decimal("0.1"), "b", b"c", [1.0], b"", True, 3.0, 1500]) == (
        0.1, "b", b"c", [1.0], b"", True, 3.0, 1.5,
    )  # fmt: skip
    assert one.decode([None] * 8) == (None,) * 8


@pytest.mark.parametrize(
    ("column", "cql_type", "value", "expected"),
    [
        (scalar("x", "INT64"), "int", 2**31, "column x: expected int, received 2147483648"),
        (scalar("x", "UINT64"), "bigint", 2**63, "column x: expected bigint"),
        (scalar("x", "BYTES"), "ascii", "ä", "column x: expected ASCII text"),
        (scalar("x", "FP64"), "decimal", math.nan, "column x: expected a finite decimal number"),
        (scalar("x", "BYTES"), "text", b"\xff", "column x: expected"),
        (many("x", "INT64", 2), "list<int>", [1, 2**31], "column x: expected int"),
    ],
)
def test_a_value_that_the_column_cannot_have_is_named(
    column: FeatureColumn, cql_type: str, value: object, expected: str
) -> None:
    with pytest.raises(BadRow, match=expected):
        codec(view_of(column), id="pk bigint", x=cql_type).row((1,), (value,))


@pytest.mark.parametrize("value", ["soon", True, math.nan, math.inf, 1e20])
def test_a_freshness_that_is_no_time_is_named(value: object) -> None:
    with pytest.raises(BadRow, match="column at: expected seconds since the epoch"):
        codec(view_of(freshness="at"), id="pk bigint", x="double", at="timestamp").row((1,), (0.5, value))


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(BadRow, match="expected 1 values, received 2"):
        codec(view_of(), id="pk bigint", x="double").row((1,), (0.5, 1.5))
