"""Tables that others made, over both drivers: their keys, types and rows, and changes while the store runs."""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, Session
from cassandra.policies import RoundRobinPolicy
from cassandra_nodes import CassandraNodes
from cassandra_stores import LIMIT_S, CassandraBench, benched, eventually
from contract import id_key, many, scalar

from feature_io.stores import BadRow, StoreUnavailable, TableMismatch
from host.config.features import CASSANDRA_DRIVERS, FeatureColumn, FeatureView, KeyColumn

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

MakeTable = Callable[..., FeatureView]


@pytest.fixture(scope="module")
def cql(cassandra: CassandraNodes) -> Iterator[Session]:
    """Give a session of the plain driver, in a keyspace of its own."""
    profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), request_timeout=LIMIT_S)
    cluster = Cluster(
        cassandra.contact_points,
        port=cassandra.port,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        connect_timeout=LIMIT_S,
        control_connection_timeout=LIMIT_S,
    )
    session = cluster.connect()
    session.execute("CREATE KEYSPACE tables WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}")
    session.set_keyspace("tables")
    yield session
    cluster.shutdown()


@pytest.fixture(params=CASSANDRA_DRIVERS)
async def bench(cassandra: CassandraNodes, request: pytest.FixtureRequest) -> AsyncIterator[CassandraBench]:
    async with benched(cassandra, request.param) as made:
        yield made


def view_of(table: str, *columns: FeatureColumn, keys: Any = None, **options: Any) -> FeatureView:
    """A view of a table in the keyspace `tables`."""
    return FeatureView(
        name="view", store="store", keyspace="tables", table=table,
        keys=tuple(keys or (id_key(),)), columns=columns or (scalar("x", "FP64"),), **options,
    )  # fmt: skip


@pytest.fixture
def table(cql: Session) -> Callable[[str], str]:
    """Make a table with a name of its own from what stands in parentheses."""

    def make(definition: str) -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        cql.execute(f"CREATE TABLE {name} ({definition})")
        return name

    return make


# -- keys and rows ------------------------------------------------------------------------------------------------
async def test_point_reads_in_a_partition_of_more_rows_than_a_page(bench: CassandraBench, table: Any) -> None:
    name = table("owner text, item int, x double, PRIMARY KEY (owner, item)")
    view = view_of(name, keys=[id_key("BYTES", "owner"), id_key("INT32", "item")])
    store = await bench.open()
    await store.write(view, [(("one", n), (n / 2,)) for n in range(6000)], LIMIT_S)
    reader = await store.reader(view, LIMIT_S)
    wanted = [*range(0, 6000, 7), 4999, 5000, 5001, 5999]
    rows = await asyncio.gather(*(reader.read(("one", n), LIMIT_S) for n in wanted))
    assert rows == [(n / 2,) for n in wanted]
    assert await reader.read(("one", 6000), LIMIT_S) is None


async def test_keys_in_any_order_of_partition_and_clustering_columns(
    bench: CassandraBench, table: Any, cql: Session
) -> None:
    name = table("a text, b int, c uuid, x double, PRIMARY KEY ((a, b), c)")
    one = uuid.uuid4()
    cql.execute(f"INSERT INTO {name} (a, b, c, x) VALUES (%s, %s, %s, 0.5)", ("ä", 7, one))
    view = view_of(name, keys=[id_key("UUID", "c"), id_key("BYTES", "a"), id_key("INT32", "b")])
    reader = await (await bench.open()).reader(view, LIMIT_S)
    assert await reader.read((str(one), "ä", 7), LIMIT_S) == (0.5,)
    assert await reader.read((str(one), "a", 7), LIMIT_S) is None


async def test_several_rows_for_one_key_are_a_bad_row(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id bigint PRIMARY KEY, x double")
    reader = await (await bench.open()).reader(view_of(name), LIMIT_S)
    assert await reader.read((1,), LIMIT_S) is None
    cql.execute(f"DROP TABLE {name}")
    cql.execute(f"CREATE TABLE {name} (id bigint, n int, x double, PRIMARY KEY (id, n))")
    for number in range(3):
        cql.execute(f"INSERT INTO {name} (id, n, x) VALUES (1, {number}, 0.5)")
    cql.execute(f"INSERT INTO {name} (id, n, x) VALUES (2, 0, 1.5)")
    assert await eventually(reader, (2,)) == (1.5,)
    with pytest.raises(BadRow, match="store store: view view, key 1: expected one row, received more"):
        await reader.read((1,), LIMIT_S)


@pytest.mark.parametrize(
    ("cql_type", "datatype", "keys"),
    [
        ("text", "BYTES", ["", "x" * 65_536, "\ud800"]),
        ("ascii", "BYTES", ["ä"]),
        ("blob", "BYTES", [""]),
        ("tinyint", "INT64", [128, -129, 2**63 - 1]),
        ("int", "INT64", [2**31]),
        ("uuid", "UUID", ["nonsense", "", "123e4567-e89b-12d3-a456-42661417400"]),
        ("timeuuid", "UUID", [str(uuid.UUID(int=1 << 78))]),
    ],
)
async def test_a_key_that_no_row_can_have_is_not_there_and_not_asked_for(
    bench: CassandraBench, table: Any, cql_type: str, datatype: str, keys: list[Any]
) -> None:
    view = view_of(table(f"id {cql_type} PRIMARY KEY, x double"), keys=[id_key(datatype)])
    store = await bench.open()
    reader = await store.reader(view, LIMIT_S)
    for key in keys:
        assert await reader.read((key,), LIMIT_S) is None
        with pytest.raises(BadRow, match="a key that the table can have: id"):
            await store.write(view, [((key,), (0.5,))], LIMIT_S)


async def test_the_longest_key_is_read(bench: CassandraBench, table: Any) -> None:
    view = view_of(table("id text PRIMARY KEY, x double"), keys=[id_key("BYTES")])
    store = await bench.open()
    await store.write(view, [(("ä" + "x" * 65_533,), (0.5,))], LIMIT_S)
    reader = await store.reader(view, LIMIT_S)
    assert await reader.read(("ä" + "x" * 65_533,), LIMIT_S) == (0.5,)


async def test_the_longest_parts_of_a_composite_key_are_read(bench: CassandraBench, table: Any) -> None:
    name = table("a text, b text, c text, x double, PRIMARY KEY ((a, b), c)")
    view = view_of(name, keys=[id_key("BYTES", column) for column in "abc"])
    key = ("x" * 40_000, "y" * (65_535 - 40_000 - 6), "z" * 65_535)
    store = await bench.open()
    reader = await store.reader(view, LIMIT_S)
    # Whether a row so large is taken is the commit log's question; that it can be asked for is ours.
    assert await reader.read(key, LIMIT_S) is None
    assert await reader.read(("", "", ""), LIMIT_S) is None
    assert await reader.read((key[0], key[1] + "y", "z"), LIMIT_S) is None
    assert await reader.read((key[0], key[1], "z" * 65_536), LIMIT_S) is None


async def test_deleted_rows_are_not_there_and_deleted_cells_are_null(
    bench: CassandraBench, table: Any, cql: Session
) -> None:
    name = table("id bigint PRIMARY KEY, x double, y double")
    for number in (1, 2):
        cql.execute(f"INSERT INTO {name} (id, x, y) VALUES ({number}, 0.5, 1.5)")
    reader = await (await bench.open()).reader(view_of(name, scalar("x", "FP64"), scalar("y", "FP64")), LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (0.5, 1.5)
    cql.execute(f"DELETE FROM {name} WHERE id = 1")
    cql.execute(f"DELETE x FROM {name} WHERE id = 2")
    assert await reader.read((1,), LIMIT_S) is None
    assert await reader.read((2,), LIMIT_S) == (None, 1.5)


async def test_rows_that_expired_are_not_there(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id bigint PRIMARY KEY, x double")
    cql.execute(f"INSERT INTO {name} (id, x) VALUES (1, 0.5) USING TTL 1")
    reader = await (await bench.open()).reader(view_of(name), LIMIT_S)
    for _ in range(1000):
        if await reader.read((1,), LIMIT_S) is None:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the row is still there")


async def test_rows_of_three_hundred_columns(bench: CassandraBench, table: Any) -> None:
    columns = [scalar(f"c{number}", "FP32") for number in range(300)]
    name = table("id bigint PRIMARY KEY, " + ", ".join(f"{column.name} float" for column in columns))
    view = view_of(name, *columns)
    store = await bench.open()
    row = tuple(number / 4 for number in range(300))
    await store.write(view, [((1,), row)], LIMIT_S)
    assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == row


# -- types ----------------------------------------------------------------------------------------------------------
async def test_lists_that_are_not_frozen_and_empty_ones(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id bigint PRIMARY KEY, x list<float>")
    cql.execute(f"INSERT INTO {name} (id, x) VALUES (1, [0.5, 1.5])")
    cql.execute(f"INSERT INTO {name} (id, x) VALUES (2, [])")
    reader = await (await bench.open()).reader(view_of(name, many("x", "FP32", 2)), LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == ([0.5, 1.5],)
    assert await reader.read((2,), LIMIT_S) is None or await reader.read((2,), LIMIT_S) == (None,)


async def test_blobs_of_floats(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id bigint PRIMARY KEY, x blob")
    data = struct.pack("<8f", *range(8))
    cql.execute(f"INSERT INTO {name} (id, x) VALUES (1, %s)", (data,))
    reader = await (await bench.open()).reader(view_of(name, many("x", "FP32", 8, storage="blob")), LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (data,)


async def test_narrower_columns_than_the_views_datatypes(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id int PRIMARY KEY, a tinyint, b smallint, c int, d float, e ascii, f blob")
    cql.execute(f"INSERT INTO {name} (id, a, b, c, d, e, f) VALUES (1, -3, 300, 70000, 0.5, 'plain', 0xff00)")
    columns = [scalar("a", "INT64"), scalar("b", "INT32"), scalar("c", "INT64"), scalar("d", "FP64")]
    reader = await (await bench.open()).reader(
        view_of(name, *columns, scalar("e", "BYTES"), scalar("f", "BYTES")), LIMIT_S
    )
    assert await reader.read((1,), LIMIT_S) == (-3, 300, 70000, 0.5, "plain", b"\xff\x00")


async def test_counters_are_read(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id bigint PRIMARY KEY, n counter")
    cql.execute(f"UPDATE {name} SET n = n + 5 WHERE id = 1")
    store = await bench.open()
    view = view_of(name, scalar("n", "INT64"))
    assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (5,)
    with pytest.raises(StoreUnavailable, match="not allowed on counter tables"):  # a counter is never set
        await store.write(view, [((1,), (5,))], LIMIT_S)


async def test_freshness_outside_of_pythons_years_is_a_number(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id bigint PRIMARY KEY, x double, at timestamp")
    cql.execute(f"INSERT INTO {name} (id, x, at) VALUES (1, 0.5, {10**16})")
    cql.execute(f"INSERT INTO {name} (id, x, at) VALUES (2, 0.5, -500)")
    reader = await (await bench.open()).reader(view_of(name, freshness_column="at"), LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (0.5, 1e13)
    assert await reader.read((2,), LIMIT_S) == (0.5, -0.5)


async def test_names_are_as_the_cluster_has_them(bench: CassandraBench, cql: Session) -> None:
    cql.execute('CREATE TABLE "Users" ("Id" bigint PRIMARY KEY, "select" double)')
    view = view_of("Users", scalar("select", "FP64"), keys=[id_key(column="Id")])
    try:
        store = await bench.open()
        await store.write(view, [((1,), (0.5,))], LIMIT_S)
        assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (0.5,)
        with pytest.raises(TableMismatch, match=r"expected the table tables\.users, received none"):
            await store.reader(view_of("users"), LIMIT_S)
    finally:
        cql.execute('DROP TABLE "Users"')


@pytest.mark.parametrize(
    ("cql_type", "column"),
    [
        ("text", scalar("x", "FP64")),
        ("double", scalar("x", "FP32")),
        ("bigint", scalar("x", "INT32")),
        ("int", scalar("x", "INT16")),
        ("smallint", scalar("x", "INT8")),
        ("int", scalar("x", "BOOL")),
        ("varint", scalar("x", "INT64")),
        ("uuid", scalar("x", "BYTES")),
        ("timestamp", scalar("x", "INT64")),
        ("set<float>", many("x", "FP32", 4)),
        ("map<int, float>", many("x", "FP32", 4)),
        ("frozen<tuple<float, float>>", many("x", "FP32", 2)),
        ("list<double>", many("x", "FP32", 4)),
        ("vector<float, 3>", many("x", "FP32", 4)),
        ("blob", many("x", "FP32", 4)),
        ("list<float>", many("x", "FP32", 4, storage="blob")),
        ("frozen<list<frozen<list<float>>>>", many("x", "FP32", 2, 2)),
        ("float", many("x", "FP32", 4)),
    ],
    ids=lambda one: one if isinstance(one, str) else f"{one.datatype}-{one.storage}",
)
async def test_a_column_of_another_type_is_named_with_both(
    bench: CassandraBench, table: Any, cql_type: str, column: FeatureColumn
) -> None:
    name = table(f"id bigint PRIMARY KEY, x {cql_type}")
    with pytest.raises(TableMismatch) as raised:
        await (await bench.open()).reader(view_of(name, column), LIMIT_S)
    (problem,) = raised.value.problems
    assert f"store store: view view: table tables.{name}: column x: expected " in problem
    assert problem.endswith(f"received {cql_type}")


async def test_every_problem_of_a_view_is_told_at_once(bench: CassandraBench, table: Any) -> None:
    name = table("a bigint, b bigint, x text, y double, at bigint, PRIMARY KEY (a, b)")
    view = view_of(
        name, scalar("x", "FP64"), scalar("z", "FP64"), freshness_column="at",
        keys=[id_key("BYTES", "a"), id_key("INT64", "y"), id_key("INT64", "nowhere")],
    )  # fmt: skip
    with pytest.raises(TableMismatch) as raised:
        await (await bench.open()).reader(view, LIMIT_S)
    ends = [problem.partition(f"tables.{name}: ")[2] for problem in raised.value.problems]
    assert ends == [
        "key column a: expected text or varchar or ascii or blob, received bigint",
        "key column y: expected bigint or int or smallint or tinyint, received double",
        "key column nowhere: expected bigint or int or smallint or tinyint, received no such column; "
        "there are: a, at, b, x, y",
        "column x: expected double or float or decimal, received text",
        "column z: expected double or float or decimal, received no such column; there are: a, at, b, x, y",
        "column at: expected timestamp, received bigint",
        "keys: expected all of the table's primary key, received none for b",
        "keys: expected only the table's primary key (a, b), received y",
    ]


async def test_a_keyspace_that_is_not_there_is_named(bench: CassandraBench) -> None:
    view = FeatureView(
        name="view", store="store", keyspace="nowhere", table="t", keys=(id_key(),), columns=(scalar("x", "FP64"),)
    )
    with pytest.raises(TableMismatch, match="expected the keyspace nowhere of t, received none"):
        await (await bench.open()).reader(view, LIMIT_S)


@pytest.mark.parametrize(
    ("cql_type", "column", "literal", "value"),
    [
        ("vector<float, 3>", many("x", "FP32", 3), "[0.5, 1.5, 2.5]", [0.5, 1.5, 2.5]),
        ("decimal", scalar("x", "FP64"), "1.25", 1.25),
        ("varint", scalar("x", "UINT64"), str(2**64 - 1), 2**64 - 1),
        ("list<decimal>", many("x", "FP64", 2), "[1.25, 2.5]", [1.25, 2.5]),
    ],
)
async def test_types_that_only_one_driver_reads_are_refused_by_the_other(
    bench: CassandraBench, table: Any, cql: Session, cql_type: str, column: FeatureColumn, literal: str, value: Any
) -> None:
    name = table(f"id bigint PRIMARY KEY, x {cql_type}")
    cql.execute(f"INSERT INTO {name} (id, x) VALUES (1, {literal})")
    store = await bench.open()
    view = view_of(name, column)
    if bench.driver == "acsylla":
        with pytest.raises(TableMismatch, match=r"column x: expected a type that driver acsylla reads, received "):
            await store.reader(view, LIMIT_S)
        return
    reader = await store.reader(view, LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (value,)
    await store.write(view, [((2,), (value,))], LIMIT_S)
    assert await reader.read((2,), LIMIT_S) == (value,)


# -- changes while the store runs -----------------------------------------------------------------------------------
async def test_a_column_more_changes_nothing(bench: CassandraBench, table: Any, cql: Session) -> None:
    name = table("id bigint PRIMARY KEY, x double")
    cql.execute(f"INSERT INTO {name} (id, x) VALUES (1, 0.5)")
    store = await bench.open()
    reader = await store.reader(view_of(name), LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (0.5,)
    cql.execute(f"ALTER TABLE {name} ADD (a double, y double)")
    cql.execute(f"INSERT INTO {name} (id, x, a, y) VALUES (1, 1.5, 9, 2.5)")
    assert await reader.read((1,), LIMIT_S) == (1.5,)
    both = await store.reader(view_of(name, scalar("x", "FP64"), scalar("y", "FP64")), LIMIT_S)
    assert await both.read((1,), LIMIT_S) == (1.5, 2.5)


async def test_a_dropped_column_fails_its_reads_until_it_is_there_again(
    bench: CassandraBench, table: Any, cql: Session
) -> None:
    name = table("id bigint PRIMARY KEY, x double, y double")
    cql.execute(f"INSERT INTO {name} (id, x, y) VALUES (1, 0.5, 1.5)")
    store = await bench.open()
    reader = await store.reader(view_of(name, scalar("y", "FP64")), LIMIT_S)
    other = await store.reader(view_of(name), LIMIT_S)
    assert await reader.read((1,), LIMIT_S) == (1.5,)
    cql.execute(f"ALTER TABLE {name} DROP y")
    # What the cluster said when it was asked to prepare the statement again, acsylla keeps to itself.
    why = "Undefined column name y" if bench.driver == "aiocassandra" else "NoHostsAvailable"
    with pytest.raises(StoreUnavailable, match=f"store store: view view, key 1: .*{why}"):
        await reader.read((1,), LIMIT_S)
    assert await other.read((1,), LIMIT_S) == (0.5,)
    with pytest.raises(TableMismatch, match=r"column y: expected .* received no such column"):
        await store.reader(view_of(name, scalar("y", "FP64")), LIMIT_S)
    cql.execute(f"ALTER TABLE {name} ADD y double")
    assert await reader.read((1,), LIMIT_S) == (None,)
    cql.execute(f"INSERT INTO {name} (id, x, y) VALUES (1, 0.5, 2.5)")
    assert await reader.read((1,), LIMIT_S) == (2.5,)


async def test_a_write_to_a_table_that_changed_is_refused_and_then_works(
    bench: CassandraBench, table: Any, cql: Session
) -> None:
    name = table("id bigint PRIMARY KEY, x double")
    store = await bench.open()
    view = view_of(name)
    await store.write(view, [((1,), (0.5,))], LIMIT_S)
    cql.execute(f"ALTER TABLE {name} DROP x")
    # See above: acsylla does not say that it was refused.
    with pytest.raises(BadRow if bench.driver == "aiocassandra" else StoreUnavailable, match="key 1: "):
        await store.write(view, [((1,), (0.5,))], LIMIT_S)
    with pytest.raises(TableMismatch, match="column x"):
        await store.write(view, [((1,), (0.5,))], LIMIT_S)
    cql.execute(f"ALTER TABLE {name} ADD x double")
    await store.write(view, [((1,), (1.5,))], LIMIT_S)
    assert await (await store.reader(view, LIMIT_S)).read((1,), LIMIT_S) == (1.5,)


async def test_a_keyspace_that_is_there_is_left_as_it_is(bench: CassandraBench, cql: Session) -> None:
    keyspace = f"k_{uuid.uuid4().hex[:12]}"
    cql.execute(
        f"CREATE KEYSPACE {keyspace} WITH replication = "
        "{'class': 'NetworkTopologyStrategy', 'datacenter1': 1} AND durable_writes = false"
    )
    key = KeyColumn(column="id", datatype="INT64", input="id")
    view = FeatureView(
        name="view", store="store", keyspace=keyspace, table="t", keys=(key,), columns=(scalar("x", "FP64"),)
    )
    store = await bench.open()
    await store.create(view, LIMIT_S)
    await store.reader(view, LIMIT_S)
    (row,) = cql.execute("SELECT durable_writes FROM system_schema.keyspaces WHERE keyspace_name = %s", (keyspace,))
    assert row.durable_writes is False
