"""Views as SQLite's tables: the statements that make, read and write them, their types, and their values. Pure.

A table that `ddl` makes is STRICT: INTEGER for whole numbers and BOOL, REAL for floats, TEXT for BYTES and
for UUID keys, BLOB for lists and blobs; a freshness column is REAL, seconds since the epoch. Lists are stored as the
bytes of their values (little-endian, texts with their length before them) and not as JSON: a number is then the same to
the last bit, NaN and infinity exist, and a vector is read without parsing text. A UINT64 from 2^63 on is stored as the
negative number of the same 64 bits, because INTEGER ends there. A REAL column has no NaN (SQLite makes it null), so one
is refused; and no -0.0, which becomes 0.0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from feature_io.stores import BadRow, Key, Row
from feature_io.values import Packer, check_values, unpack_flat
from host.config.features import FeatureColumn, FeatureView

FRESHNESS: Final = "FP64"
"""What a freshness column is checked as."""


def ddl(view: FeatureView) -> list[str]:
    """The statement that makes the view's table."""
    keys = [f"{quoted(key.column)} {_key_type(key.datatype)} NOT NULL" for key in view.keys]
    columns = [f"{quoted(column.name)} {_column_type(column)}" for column in view.columns]
    if view.freshness_column is not None:
        columns.append(f"{quoted(view.freshness_column)} REAL")
    primary = f"PRIMARY KEY ({', '.join(quoted(key.column) for key in view.keys)})"
    body = ",\n  ".join([*keys, *columns, primary])
    return [f"CREATE TABLE IF NOT EXISTS {quoted(view.table)} (\n  {body}\n) STRICT, WITHOUT ROWID"]


def quoted(name: str) -> str:
    """A name in a statement."""
    return '"' + name.replace('"', '""') + '"'


def _stored_names(view: FeatureView) -> list[str]:
    """What a row of the view holds, in order."""
    return [column.name for column in view.columns] + ([view.freshness_column] if view.freshness_column else [])


def select(view: FeatureView) -> str:
    """Read one row by its key; a second one shows that the key is not unique."""
    names = ", ".join(map(quoted, _stored_names(view)))
    keys = " AND ".join(f"{quoted(key.column)} = ?" for key in view.keys)
    return f"SELECT {names} FROM {quoted(view.table)} WHERE {keys} LIMIT 2"  # noqa: S608 - names are checked


def upsert(view: FeatureView) -> str:
    """Insert a row, or replace the view's columns of the one with its key."""
    keys = [quoted(key.column) for key in view.keys]
    names = [quoted(name) for name in _stored_names(view)]
    marks = ", ".join("?" * (len(keys) + len(names)))
    replaced = ", ".join(f"{name} = excluded.{name}" for name in names)
    return (
        f"INSERT INTO {quoted(view.table)} ({', '.join(keys + names)}) VALUES ({marks}) "  # noqa: S608
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {replaced}"
    )


def _key_type(datatype: str) -> str:
    return "TEXT" if datatype in ("BYTES", "UUID") else "INTEGER"


def _column_type(column: FeatureColumn) -> str:
    if column.storage != "scalar":
        return "BLOB"
    if column.datatype == "BYTES":
        return "TEXT"
    return "REAL" if column.datatype.startswith("FP") else "INTEGER"


def _affinity(declared: str) -> str:
    """What SQLite makes of a declared type (its own rules: sqlite.org/datatype3.html, 3.1)."""
    text = declared.upper()
    if text in ("", "ANY"):
        return "ANY"  # an expression of an SQL view, for one: its values are looked at when they are read
    for part, affinity in (
        ("INT", "INTEGER"), ("CHAR", "TEXT"), ("CLOB", "TEXT"), ("TEXT", "TEXT"), ("BLOB", "BLOB"),
        ("REAL", "REAL"), ("FLOA", "REAL"), ("DOUBLE", "REAL"),
    ):  # fmt: skip
        if part in text:
            return affinity
    return "NUMERIC"


_ACCEPTED: Final = {
    "INTEGER": ("INTEGER", "NUMERIC"),
    "REAL": ("REAL", "NUMERIC"),
    "TEXT": ("TEXT",),
    "BLOB": ("BLOB",),
}


def mismatches(view: FeatureView, table: dict[str, str]) -> Iterable[str]:
    """What keeps the view from being read; `table`: columns in lower case, and their declared types."""
    if not table:
        yield (
            f"expected a table {view.table}, received none of that name: "
            f"make it with: modelhost features create {view.name} --apply"
        )
        return
    wanted = [(key.column, key.datatype, _key_type(key.datatype)) for key in view.keys]
    wanted += [(column.name, column.datatype, _column_type(column)) for column in view.columns]
    if view.freshness_column is not None:
        wanted.append((view.freshness_column, "seconds since the epoch", "REAL"))
    for name, datatype, stored in wanted:
        declared = table.get(name.casefold())
        here = f"table {view.table}: column {name}: expected {stored} ({datatype})"
        if declared is None:
            yield f"{here}, received no such column"
            continue
        accepted = _ACCEPTED[stored]
        if datatype == "BYTES" and stored == "TEXT" and name not in {key.column for key in view.keys}:
            accepted = ("TEXT", "BLOB")
        elif name == view.freshness_column:
            accepted = ("REAL", "INTEGER", "NUMERIC")
        if _affinity(declared) not in (*accepted, "ANY"):
            yield f"{here}, received {declared}"


# -- values -----------------------------------------------------------------------------------------------------------
_Convert = Callable[[Any], Any]
_UINT64_WRAP: Final = 1 << 64
_INT64_END: Final = 1 << 63


def from_sqlite(view: FeatureView) -> list[_Convert | None]:
    """For each value of a row what makes it what `Row` says; None: it is that already."""
    converts = [_reading(column) for column in view.columns]
    return [*converts, _seconds] if view.freshness_column is not None else converts


def _reading(column: FeatureColumn) -> _Convert | None:
    if column.storage == "list":
        return lambda data: _listed(column, data)
    if column.storage == "blob":
        return None
    if column.datatype == "BOOL":
        return _boolean
    if column.datatype == "UINT64":
        return lambda value: value + _UINT64_WRAP if type(value) is int and value < 0 else value
    return None


def _boolean(value: Any) -> Any:
    return value == 1 if value in (0, 1) and type(value) is int else value


def _seconds(value: Any) -> Any:
    if type(value) not in (int, float):
        raise BadRow(f"freshness column: expected seconds since the epoch, received {value!r}")
    return float(value)


def _listed(column: FeatureColumn, data: Any) -> Any:
    """A list's values; what is not the bytes of one stays what it is, and is refused where values are checked."""
    if not isinstance(data, bytes):
        return data
    try:
        return unpack_flat(column, data)
    except (struct.error, ValueError):
        raise BadRow(
            f"column {column.name}: expected the bytes of {column.items} {column.datatype} values, "
            f"received {len(data)} bytes"
        ) from None


def to_sqlite(view: FeatureView, rows: Sequence[tuple[Key, Row]]) -> list[tuple[Any, ...]]:
    """Rows as the statement's parameters. Raises `BadRow`."""
    columns: list[Sequence[Any]] = list(zip(*(key for key, _ in rows), strict=True))
    values = list(zip(*(row for _, row in rows), strict=True))
    for column, stored in zip(view.columns, values, strict=False):
        columns.append(_written(column, stored))
    if view.freshness_column is not None:
        seconds = FeatureColumn(name=view.freshness_column, datatype=FRESHNESS)
        columns.append(_written(seconds, values[len(view.columns)]))
    return list(zip(*columns, strict=True))


def _written(column: FeatureColumn, values: Sequence[Any]) -> Sequence[Any]:
    if column.storage != "scalar":
        pack = Packer(column).pack
        return [None if value is None else pack(value) for value in values]
    check_values(column, values)
    if column.datatype.startswith("FP"):
        _refuse_nan(column, values)
    elif column.datatype == "UINT64":
        return [value - _UINT64_WRAP if value is not None and value >= _INT64_END else value for value in values]
    return values


def _refuse_nan(column: FeatureColumn, values: Sequence[Any]) -> None:
    # A sum is NaN if a value is; looking at each one would cost as much as writing it.
    total = sum(value for value in values if value is not None) if None in values else sum(values)
    if total != total and any(value is not None and value != value for value in values):
        raise BadRow(
            f"column {column.name}: expected {column.datatype} as SQLite has it, received NaN: write null and give the "
            f'column "default = nan", or use storage = "blob"'
        )
