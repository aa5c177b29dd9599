"""What a file holds, as the values of a store. Pure.

A whole column of a batch is read at once, at C's speed; only a column in which something is unusual is read again cell
by cell, to say which rows are bad and why.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from feature_io.plan import check_key
from feature_io.stores import BadRow, Key, Row
from feature_io.values import Packer, check_values
from host.config.features import FeatureColumn, FeatureView, KeyColumn
from host.protocol.errors import InvalidInput
from host.protocol.schema import described

Values = Sequence[Any]
Bad = dict[int, str]
"""Rows of a batch that are left out, by their place in it, and why."""

_INTEGER: Final = re.compile(r"\s*[+-]?[0-9]+\s*")
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}
_INTEGER_CHARS_MAX: Final = 25
"""Longer than any number of 64 bits; Python refuses to read the longest ones at all."""

_decode_json = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class CellReader:
    """Reads one column of a file."""

    column: FeatureColumn
    many: Callable[[Values], Values]
    """All cells of a batch. Raises `ValueError` or `BadRow` when it meets anything that it cannot read."""
    one: Callable[[Any], Any]
    """One cell, null as None. Raises `BadRow`."""
    is_key: bool = False

    def read(self, cells: Values, bad: Bad) -> Values:
        """The values; where a cell is bad, the row is noted in `bad` and the value means nothing."""
        try:
            values = self.many(cells)
            check_values(self.column, values)
            if not (self.is_key and None in values):
                return values
        except (ValueError, BadRow):
            pass
        pack = Packer(self.column).pack
        found: list[Any] = []
        for place, cell in enumerate(cells):
            value = None
            try:
                value = self.one(cell)
                if value is not None:
                    pack(value)
                elif self.is_key:
                    raise BadRow(f"column {self.column.name}: expected a key, received null")
            except BadRow as error:
                bad.setdefault(place, str(error))
            found.append(value)
        return found


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads rows of a view: its key columns, its columns, and its freshness column where the file has one."""

    names: list[str]
    """Columns of the file, in the order in which `read` wants them."""
    optional: str | None
    """The one of them that the file need not have: the freshness column, which then is the time of the load."""
    readers: list[CellReader]
    keys: int

    def read(self, columns: Sequence[Values], bad: Bad, now_s: float) -> list[tuple[Key, Row]]:
        """Rows that are good, in order; of several with one key all. Notes the others in `bad`."""
        read = [reader.read(cells, bad) for reader, cells in zip(self.readers, columns, strict=False)]
        if len(read) < len(self.readers):
            read.append([now_s] * len(read[0]))
        rows = zip(zip(*read[: self.keys], strict=True), zip(*read[self.keys :], strict=True), strict=True)
        if not bad:
            return list(rows)
        return [row for place, row in enumerate(rows) if place not in bad]


def text_rows(view: FeatureView) -> RowReader:
    """For cells that are text (CSV). An empty cell is null, in every column and with quotes or without."""
    return _rows(view, _text_reader)


def value_rows(view: FeatureView) -> RowReader:
    """For cells that are values (JSON, Parquet)."""
    return _rows(view, _value_reader)


def key_of_texts(view: FeatureView, texts: Sequence[str]) -> Key:
    """A key from one text for each key column, as a command line has them. Raises `BadRow`."""
    parts: list[Any] = []
    for key, text in zip(view.keys, texts, strict=True):
        bad: Bad = {}
        parts += _key_reader(key, _text_reader).read([text], bad)
        if bad:
            raise BadRow(bad[0])
    return tuple(parts)


_Make = Callable[[FeatureColumn], CellReader]


def _rows(view: FeatureView, make: _Make) -> RowReader:
    readers = [_key_reader(key, make) for key in view.keys] + [make(column) for column in view.columns]
    names = [reader.column.name for reader in readers]
    if view.freshness_column is not None:
        column = FeatureColumn(name=view.freshness_column, datatype="FP64")
        readers.append(CellReader(column=column, many=_each(_seconds(column)), one=_seconds(column)))
        names.append(view.freshness_column)
    return RowReader(names, view.freshness_column, readers, len(view.keys))


def _each(one: Callable[[Any], Any]) -> Callable[[Values], Values]:
    return lambda cells: [one(cell) for cell in cells]


# -- keys and times -------------------------------------------------------------------------------------------------
def _key_reader(key: KeyColumn, make: _Make) -> CellReader:
    datatype = "BYTES" if key.datatype == "UUID" else key.datatype
    reader = make(FeatureColumn(name=key.column, datatype=datatype))
    one = reader.one
    if key.datatype == "UUID":
        one = lambda cell: _uuid(key, reader.one(_uuid_text(cell)))  # noqa: E731
        return CellReader(column=reader.column, many=_each(one), one=one, is_key=True)
    return CellReader(column=reader.column, many=reader.many, one=one, is_key=True)


def _uuid_text(cell: Any) -> Any:
    """Parquet has them as 16 bytes too."""
    if isinstance(cell, uuid.UUID):
        return str(cell)
    return str(uuid.UUID(bytes=cell)) if isinstance(cell, bytes) and len(cell) == 16 else cell


def _uuid(key: KeyColumn, text: Any) -> Any:
    if text is None:
        return None
    try:
        return check_key(key, [text], "key")[0]
    except InvalidInput:
        raise BadRow(f"column {key.column}: expected a UUID, received {described(text)}") from None


def _seconds(column: FeatureColumn) -> Callable[[Any], float | None]:
    """Seconds since the epoch, or a time of ISO 8601 (without a zone: UTC)."""

    def read(cell: Any) -> float | None:
        if cell is None or cell == "":
            return None
        try:
            if isinstance(cell, str):
                try:
                    cell = float(cell)
                except ValueError:
                    cell = datetime.fromisoformat(cell)
            if isinstance(cell, datetime):
                return (cell if cell.tzinfo is not None else cell.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            pass
        if type(cell) in (int, float) and math.isfinite(cell):
            return float(cell)
        raise BadRow(
            f"column {column.name}: expected seconds since the epoch or a time such as 2026-01-31T12:00:00Z, "
            f"received {described(cell)}"
        )

    return read


# -- text -------------------------------------------------------------------------------------------------------------
def _text_reader(column: FeatureColumn) -> CellReader:
    if column.shape or column.storage == "blob":
        value = _value_reader(column)
        one: Callable[[str], Any] = lambda cell: _json_cell(column, value, cell)  # noqa: E731
        return CellReader(column=column, many=_each(one), one=one)
    if column.datatype == "BYTES":
        return CellReader(column=column, many=_texts, one=lambda cell: _text(column, cell))
    if column.datatype == "BOOL":
        one = lambda cell: _boolean(column, cell)  # noqa: E731
        return CellReader(column=column, many=_each(one), one=one)
    if column.datatype.startswith("FP"):
        return CellReader(column=column, many=_numbers(float), one=lambda cell: _float(column, cell))
    return CellReader(column=column, many=_numbers(int), one=lambda cell: _integer(column, cell))


def _numbers(kind: Callable[[str], Any]) -> Callable[[Values], Values]:
    def read(cells: Values) -> Values:
        try:
            values = list(map(kind, cells))
        except ValueError:
            values = [kind(cell) if cell else None for cell in cells]
        text = "".join(cells)
        if "_" in text or not text.isascii():  # which Python reads, and nobody else
            raise ValueError
        return values

    return read


def _texts(cells: Values) -> Values:
    return [cell or None for cell in cells] if "" in cells else cells


def _text(column: FeatureColumn, cell: str) -> str | None:
    if not cell.isprintable() and any("\ud800" <= char <= "\udfff" for char in cell):
        raise BadRow(
            f"column {column.name}: expected text in UTF-8, received {cell.encode(errors='surrogateescape')!r}"
        )
    return cell or None


def _integer(column: FeatureColumn, cell: str) -> int | None:
    if not cell:
        return None
    if len(cell) > _INTEGER_CHARS_MAX or _INTEGER.fullmatch(cell) is None:
        raise BadRow(f"column {column.name}: expected {column.datatype}, received {described(cell)}")
    return int(cell)


def _float(column: FeatureColumn, cell: str) -> float | None:
    if not cell:
        return None
    try:
        if cell.isascii() and "_" not in cell:
            return float(cell)
    except ValueError:
        pass
    raise BadRow(f"column {column.name}: expected {column.datatype}, received {described(cell)}")


def _boolean(column: FeatureColumn, cell: str) -> bool | None:
    if not cell:
        return None
    value = _BOOLEANS.get(cell.strip().lower())
    if value is None:
        raise BadRow(f"column {column.name}: expected true, false, 1 or 0, received {described(cell)}")
    return value


def _json_cell(column: FeatureColumn, value: CellReader, cell: str) -> Any:
    if not cell:
        return None
    try:
        return value.one(_decode_json(cell))
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise BadRow(
            f"column {column.name}: expected a JSON list of {column.items} {column.datatype} values, "
            f"received {described(cell)}"
        ) from None


# -- values -----------------------------------------------------------------------------------------------------------
def _value_reader(column: FeatureColumn) -> CellReader:
    if column.storage == "blob":
        pack = Packer(column).pack
        one = lambda cell: None if cell is None else pack(_flat(column, cell))  # noqa: E731
    elif column.shape:
        one = lambda cell: _flat(column, cell)  # noqa: E731
    elif column.datatype == "BYTES":
        one = _decoded
    else:
        return CellReader(column=column, many=lambda cells: cells, one=lambda cell: cell)
    return CellReader(column=column, many=_each(one), one=one)


def _decoded(cell: Any) -> Any:
    """Text that a Parquet file has as bytes."""
    if type(cell) is bytes:
        try:
            return cell.decode()
        except UnicodeDecodeError:
            pass
    return cell


def _flat(column: FeatureColumn, cell: Any) -> Any:
    """A list nested as the shape says, or flat already. Raises `BadRow`."""
    if len(column.shape) < 2 or not isinstance(cell, list) or not any(isinstance(item, list) for item in cell):
        return cell
    try:
        return list(_unnested(cell, column.shape))
    except ValueError:
        raise BadRow(
            f"column {column.name}: expected a list of {column.items} values, flat or nested as "
            f"{list(column.shape)}, received {described(cell)}"
        ) from None


def _unnested(cell: Any, shape: Sequence[int]) -> Iterator[Any]:
    if not shape:
        yield cell
    elif not isinstance(cell, list) or len(cell) != shape[0]:
        raise ValueError
    else:
        for item in cell:
            yield from _unnested(item, shape[1:])
