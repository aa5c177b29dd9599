"""Views as CQL: which types their columns may have, the statements that read and write them, and their values. Pure.

Names are quoted everywhere: `features.toml` has them as the cluster keeps them: in lower case, unless they were quoted
when the table was made.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from feature_io.stores import BadRow, Key, Row
from feature_io.values import Packer
from host.config.features import FeatureColumn, FeatureView

SCALAR_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "BOOL": ("boolean",),
    "INT8": ("tinyint",),
    "INT16": ("smallint", "tinyint"),
    "INT32": ("int", "smallint", "tinyint"),
    "INT64": ("bigint", "int", "smallint", "tinyint", "counter"),
    "UINT8": ("smallint", "tinyint"),
    "UINT16": ("int", "smallint", "tinyint"),
    "UINT32": ("bigint", "int", "smallint", "tinyint"),
    "UINT64": ("varint", "bigint", "int", "smallint", "tinyint"),
    "FP16": ("float",),
    "FP32": ("float",),
    "FP64": ("double", "float", "decimal"),
    "BYTES": ("text", "varchar", "ascii", "blob"),
}
"""Datatype to the CQL types that its values can be kept in; the first is the one that tables are made with."""

KEY_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    **{datatype: SCALAR_TYPES[datatype] for datatype in ("INT8", "INT16", "INT32", "BYTES")},
    "INT64": ("bigint", "int", "smallint", "tinyint"),
    "UUID": ("uuid", "timeuuid"),
}
"""The same for keys."""

TIMESTAMP: Final = "timestamp"

KEY_MAX_BYTES: Final = 65_535
"""Of a partition's key, and of each clustering column: Cassandra's own limit."""

_INTEGER_BITS: Final = {"tinyint": 8, "smallint": 16, "int": 32, "bigint": 64, "counter": 64}
_COMPONENT_BYTES: Final = 3
"""What each column of a composite partition key adds to its own bytes."""
_FIXED_BYTES: Final = 16
"""No number and no UUID is longer."""

COLUMNS: Final = "SELECT column_name, kind, type FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ?"
KEYSPACE: Final = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?"

Encode = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column as the cluster describes it."""

    name: str
    kind: str
    """`partition_key`, `clustering`, `static` or `regular`."""
    type: str


def quoted(name: str) -> str:
    """A name in a statement."""
    return '"' + name.replace('"', '""') + '"'


def table_name(view: FeatureView) -> str:
    """The view's table in a statement."""
    return f"{quoted(view.keyspace or '')}.{quoted(view.table)}"


def bare_type(text: str) -> str:
    """A type without `frozen` and spaces: `frozen<list<float>>` is `list<float>`."""
    return re.sub(r"\bfrozen<(.*)>", r"\1", text.replace(" ", ""))


# -- does a view fit its table? ---------------------------------------------------------------------------------------
def column_types(column: FeatureColumn) -> tuple[str, ...]:
    """What a feature's column may be."""
    if column.storage == "blob":
        return ("blob",)
    scalars = SCALAR_TYPES[column.datatype]
    if column.storage == "scalar":
        return scalars
    lists = [f"list<{scalar}>" for scalar in scalars if scalar != "counter"]
    vectors = [f"vector<{scalar},{column.items}>" for scalar in scalars if scalar != "counter"]
    return (*lists, *vectors)


def mismatches(view: FeatureView, table: Sequence[TableColumn], undecoded: Iterable[str], driver: str) -> list[str]:
    """Everything that keeps a view from being read from its table. `undecoded`: types that the driver cannot read."""
    where = f"view {view.name}: table {view.keyspace}.{view.table}"
    there = {column.name: column for column in table}
    wanted: list[tuple[str, tuple[str, ...], str]] = []
    wanted += [(key.column, KEY_TYPES[key.datatype], "key column") for key in view.keys]
    wanted += [(column.name, column_types(column), "column") for column in view.columns]
    if view.freshness_column is not None:
        wanted.append((view.freshness_column, (TIMESTAMP,), "column"))
    problems = []
    for name, types, what in wanted:
        expected = f"{where}: {what} {name}: expected {' or '.join(types)}"
        if name not in there:
            problems.append(f"{expected}, received no such column; there are: {', '.join(sorted(there))}")
            continue
        received = bare_type(there[name].type)
        if received not in types:
            problems.append(f"{expected}, received {there[name].type}")
        elif set(re.findall(r"\w+", received)) & set(undecoded):
            problems.append(f"{where}: {what} {name}: expected a type that driver {driver} reads, received {received}")
    return [*problems, *_key_mismatches(where, view, table)]


def _key_mismatches(where: str, view: FeatureView, table: Sequence[TableColumn]) -> Iterable[str]:
    """One entity is one row: the view's key is the table's, whole and nothing beside it."""
    there = {column.name for column in table}
    primary = [column.name for column in table if column.kind in ("partition_key", "clustering")]
    keys = [key.column for key in view.keys]
    missing = [name for name in primary if name not in keys]
    extra = [name for name in keys if name in there and name not in primary]
    if missing:
        yield f"{where}: keys: expected all of the table's primary key, received none for {', '.join(missing)}"
    if extra:
        key = ", ".join(primary)
        yield f"{where}: keys: expected only the table's primary key ({key}), received {', '.join(extra)}"


# -- statements -----------------------------------------------------------------------------------------------------
def select(view: FeatureView) -> str:
    """Read one row by its whole key."""
    wanted = [quoted(column.name) for column in view.columns]
    if view.freshness_column is not None:
        # As milliseconds: a time outside of Python's years does not break the read of its row.
        wanted.append(f"toUnixTimestamp({quoted(view.freshness_column)})")
    keys = " AND ".join(f"{quoted(key.column)} = ?" for key in view.keys)
    return f"SELECT {', '.join(wanted)} FROM {table_name(view)} WHERE {keys}"  # noqa: S608 - quoted names


def insert(view: FeatureView) -> str:
    """Write one row: keys, columns, freshness."""
    names = [*(key.column for key in view.keys), *(column.name for column in view.columns)]
    if view.freshness_column is not None:
        names.append(view.freshness_column)
    marks = ", ".join("?" for _ in names)
    return f"INSERT INTO {table_name(view)} ({', '.join(map(quoted, names))}) VALUES ({marks})"  # noqa: S608 - quoted


def ddl(view: FeatureView) -> list[str]:
    """The keyspace and the table, unless they are there.

    The keyspace has one replica (`SimpleStrategy`): for trying out. Where rows are to outlive a node, make it first.
    All key columns together are the partition's key: every read finds its node, and no partition grows.
    """
    columns = [f"{quoted(key.column)} {KEY_TYPES[key.datatype][0]}" for key in view.keys]
    for column in view.columns:
        name = column_types(column)[0]
        # Frozen: one cell, read and replaced as a whole.
        columns.append(f"{quoted(column.name)} {f'frozen<{name}>' if column.storage == 'list' else name}")
    if view.freshness_column is not None:
        columns.append(f"{quoted(view.freshness_column)} {TIMESTAMP}")
    partition = ", ".join(quoted(key.column) for key in view.keys)
    return [
        f"CREATE KEYSPACE IF NOT EXISTS {quoted(view.keyspace or '')} "
        "WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
        f"CREATE TABLE IF NOT EXISTS {table_name(view)} ({', '.join(columns)}, PRIMARY KEY (({partition})))",
    ]


# -- values -----------------------------------------------------------------------------------------------------------
class RowCodec:
    """A view's keys and rows as the driver takes and gives them; the table fits the view."""

    def __init__(self, view: FeatureView, table: Sequence[TableColumn]) -> None:
        there = {column.name: column for column in table}
        self._view = view
        self._keys = tuple(_encoder(bare_type(there[key.column].type)) for key in view.keys)
        self._partition = {p for p, key in enumerate(view.keys) if there[key.column].kind == "partition_key"}
        self._has_texts = any(key.datatype == "BYTES" for key in view.keys)
        self._packers = tuple(Packer(column) for column in view.columns)
        self._columns = tuple(_column_encoder(bare_type(there[column.name].type)) for column in view.columns)
        self._decimals = tuple(p for p, c in enumerate(view.columns) if "decimal" in there[c.name].type)
        self._freshness = len(view.columns) if view.freshness_column is not None else None
        self._is_plain = not self._decimals and self._freshness is None

    def key(self, key: Key) -> tuple[Any, ...] | None:
        """The values to bind; None if no row can have this key: a number too large, a text that is no UUID, ...

        The cluster would refuse some of these, and whoever sends such a key would make it look broken.
        """
        if len(key) != len(self._keys):
            return None
        try:
            values = tuple([encode(part) for encode, part in zip(self._keys, key, strict=True)])
        except ValueError:
            return None
        return values if not self._has_texts or self._key_fits(values) else None

    def row(self, key: Key, row: Row) -> tuple[Any, ...]:
        """The values of an insert. Raises `BadRow` that names the column, expected and received."""
        keys = self.key(key)
        if keys is None:
            names = ", ".join(f"{one.column} ({one.datatype})" for one in self._view.keys)
            raise BadRow(f"expected a key that the table can have: {names}")
        wanted = len(self._columns) + (self._freshness is not None)
        if len(row) != wanted:
            raise BadRow(f"expected {wanted} values, received {len(row)}")
        values = []
        for packer, encode, value in zip(self._packers, self._columns, row, strict=False):
            if value is not None:
                packer.pack(value)
                try:
                    value = encode(value)
                except ValueError as error:
                    raise BadRow(f"column {packer.column.name}: expected {error}, received {value!r:.100}") from error
            values.append(value)
        if self._freshness is not None:
            values.append(self._timestamp(row[-1]))
        return (*keys, *values)

    def decode(self, row: Sequence[Any]) -> Row:
        """A row as views have it."""
        if self._is_plain:
            return tuple(row)
        values = list(row)
        for place in self._decimals:
            values[place] = _float(values[place])
        if self._freshness is not None and values[self._freshness] is not None:
            values[self._freshness] = values[self._freshness] / 1000
        return tuple(values)

    def _timestamp(self, value: object) -> datetime | None:
        if value is None:
            return None
        name = self._view.freshness_column
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRow(f"column {name}: expected seconds since the epoch, received {value!r:.100}")
        try:
            return datetime.fromtimestamp(value, UTC)
        except (OverflowError, ValueError, OSError) as error:
            raise BadRow(f"column {name}: expected seconds since the epoch, received {value!r}") from error

    def _key_fits(self, values: Sequence[Any]) -> bool:
        """Whether the partition's key is not empty, and nothing is longer than Cassandra allows."""
        partition_bytes = 0
        for place, value in enumerate(values):
            size = _size_bytes(value)
            if place in self._partition:
                partition_bytes += size + _COMPONENT_BYTES
            elif size > KEY_MAX_BYTES:
                return False
        if len(self._partition) == 1:
            return 0 < partition_bytes - _COMPONENT_BYTES <= KEY_MAX_BYTES
        return partition_bytes <= KEY_MAX_BYTES


def _size_bytes(value: Any) -> int:
    if type(value) is str:
        return len(value.encode())
    return len(value) if type(value) is bytes else _FIXED_BYTES


def _column_encoder(cql_type: str) -> Encode:
    """For the column's values, which are the view's by now."""
    inner = re.fullmatch(r"(?:list|vector)<(\w+)(?:,\d+)?>", cql_type)
    if inner is None:
        return _encoder(cql_type)
    one = _encoder(inner[1])
    return lambda values: [one(value) for value in values]


def _encoder(cql_type: str) -> Encode:
    """Python's value as the driver binds it to a column of this type; raises `ValueError` that says what would do."""
    if cql_type in _INTEGER_BITS:
        return _integer(cql_type, _INTEGER_BITS[cql_type])
    return {
        "boolean": _boolean,
        "varint": _any_integer,
        "float": _any_float,
        "double": _any_float,
        "decimal": _decimal,
        "text": _text,
        "varchar": _text,
        "ascii": _ascii,
        "blob": _blob,
        "uuid": _uuid,
        "timeuuid": _time_uuid,
    }[cql_type]


def _integer(cql_type: str, bits: int) -> Encode:
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1

    def encode(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(cql_type)
        return value

    return encode


def _any_integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("varint")
    return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("boolean")
    return value


def _any_float(value: Any) -> float:
    return float(value)


def _decimal(value: Any) -> Decimal:
    try:
        exact = Decimal(repr(float(value)))
    except InvalidOperation as error:
        raise ValueError("a decimal number") from error
    if not exact.is_finite():
        raise ValueError("a finite decimal number")
    return exact


def _text(value: Any) -> str:
    if type(value) is bytes:
        return value.decode()
    if type(value) is not str:
        raise ValueError("text")
    value.encode()
    return value


def _ascii(value: Any) -> str:
    text = _text(value)
    if not text.isascii():
        raise ValueError("ASCII text")
    return text


def _blob(value: Any) -> bytes:
    if type(value) is str:
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise ValueError("bytes")


def _uuid(value: Any) -> uuid.UUID:
    if type(value) is not str:
        raise ValueError("a UUID's text")
    return uuid.UUID(value)


def _time_uuid(value: Any) -> uuid.UUID:
    one = _uuid(value)
    if one.version != 1:
        raise ValueError("a UUID of version 1")
    return one


def _float(value: Any) -> Any:
    if isinstance(value, list):
        return [_float(one) for one in value]
    return float(value) if isinstance(value, Decimal) else value
