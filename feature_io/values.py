"""Values of features: what a store holds, and the bytes that a tensor has them as. Pure.

The bytes are those of the Open Inference Protocol's binary tensor data: numbers little-endian, a BOOL one byte, each
BYTES element preceded by its length in four bytes. One entity's feature is as many elements as its shape holds.

Strict: a BOOL is no number and a number no BOOL; where a float is expected a whole number will do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from feature_io.stores import BadRow
from host.config.features import FeatureColumn
from host.protocol.schema import described
from host.protocol.types import ITEM_BYTES

Pack = Callable[[object], bytes]

_CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""Datatype to `struct`'s letter."""

_NONE: Final = frozenset((type(None),))
_SHOWN_BITS: Final = 128
_FALSE_OR_TRUE: Final = b"\x00\x01"


class Packer:
    """Packs one column's values; made once for each column, because the work is chosen by its type."""

    __slots__ = ("column", "pack")

    def __init__(self, column: FeatureColumn) -> None:
        self.column = column
        self.pack: Pack = _packer(column)
        """A raw value of a store, or a default, as bytes. Raises `BadRow`. Null has no bytes: it is not asked for."""


def pack(column: FeatureColumn, value: object) -> bytes:
    """Pack one value; who packs many keeps a `Packer`. Raises `BadRow` that names column, expected and received."""
    return _packer(column)(value)


def pack_default(column: FeatureColumn) -> bytes | None:
    """A column's default as bytes; None if it has none. It was checked when the file was read."""
    return None if column.required else pack(column, column.default)


def unpack(column: FeatureColumn, data: bytes) -> Any:
    """The value that `pack` made these bytes of: a scalar, or lists nested as the shape says.

    BYTES are text; those that are not UTF-8 stay `bytes`.
    """
    items = _items(column.datatype, data)
    return _nested(items, column.shape)[0]


def unpack_flat(column: FeatureColumn, data: bytes) -> list[Any]:
    """A list's values, flat, as a store's `Row` has them. Raises `ValueError` for other counts."""
    size = ITEM_BYTES[column.datatype]
    if size is not None and len(data) != size * column.items:
        raise ValueError(f"expected {size * column.items} bytes, received {len(data)}")
    items = _items(column.datatype, data)
    if len(items) != column.items:
        raise ValueError(f"expected {column.items} values, received {len(items)}")
    return items


def check_values(column: FeatureColumn, values: Sequence[object]) -> None:
    """Check a whole column of raw values, nulls among them, at C's speed. Raises `BadRow` for the first bad one."""
    if not _all_fit(column, values):
        one = _packer(column)
        for value in values:
            if value is not None:
                one(value)


# -- one value to bytes -----------------------------------------------------------------------------------------------
def _packer(column: FeatureColumn) -> Pack:
    return _blob(column) if column.storage == "blob" else _values(column)


def _values(column: FeatureColumn) -> Pack:
    """What packs values, however they lie in the store."""
    if column.shape:
        return _list(column)
    if column.datatype == "BOOL":
        return _bool(column)
    if column.datatype == "BYTES":
        return _text(column)
    return _number(column)


def _number(column: FeatureColumn) -> Pack:
    """The path of nearly every feature: one comparison of types and one call of `struct`."""
    pack_one = struct.Struct(f"<{_CODES[column.datatype]}").pack
    wanted: type[int] | type[float] = float if column.datatype.startswith("FP") else int
    also: type[int] | type[float] = int

    def pack_number(value: object) -> bytes:
        kind = type(value)
        if kind is not wanted and kind is not also:
            raise _bad(column, value)
        try:
            return pack_one(value)
        except (struct.error, OverflowError):
            raise _bad(column, value) from None

    return pack_number


def _bool(column: FeatureColumn) -> Pack:
    def pack_bool(value: object) -> bytes:
        if value is True:
            return b"\x01"
        if value is False:
            return b"\x00"
        raise _bad(column, value)

    return pack_bool


def _texts_packed(column: FeatureColumn, values: Sequence[object]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        raw = _raw(value)
        if raw is None:
            raise _bad(column, values)
        parts += (len(raw).to_bytes(4, "little"), raw)
    return b"".join(parts)


def _text(column: FeatureColumn) -> Pack:
    def pack_text(value: object) -> bytes:
        raw = _raw(value)
        if raw is None:
            raise _bad(column, value)
        return len(raw).to_bytes(4, "little") + raw

    return pack_text


def _list(column: FeatureColumn) -> Pack:
    count, datatype = column.items, column.datatype
    code = _CODES.get(datatype)
    pack_all = struct.Struct(f"<{count}{code}").pack if code else bytes
    allowed = _allowed(datatype)

    def pack_list(value: object) -> bytes:
        if not isinstance(value, list | tuple) or len(value) != count:
            raise _bad(column, value)
        if datatype == "BYTES":
            return _texts_packed(column, value)
        if not allowed.issuperset(map(type, value)):
            raise _bad(column, value)
        try:
            return pack_all(*value) if code else pack_all(value)
        except (struct.error, OverflowError):
            raise _bad(column, value) from None

    return pack_list


def _blob(column: FeatureColumn) -> Pack:
    size = column.items * (ITEM_BYTES[column.datatype] or 0)
    is_bool = column.datatype == "BOOL"
    pack_values = _values(column)

    def pack_blob(value: object) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            # A default, or a line of a file that is loaded: the values themselves.
            return pack_values(value)
        if len(value) != size:
            received = f"{len(value)} bytes"
            raise BadRow(
                f"column {column.name}: expected {size} bytes ({column.items} x {column.datatype}), received {received}"
            )
        data = bytes(value)
        if is_bool and data.translate(None, _FALSE_OR_TRUE):
            raise BadRow(f"column {column.name}: expected bytes 0 and 1 (BOOL), received {described(data)}")
        return data

    return pack_blob


def _raw(value: object) -> bytes | None:
    if isinstance(value, bytes):
        return value
    try:
        return value.encode() if isinstance(value, str) else None
    except UnicodeEncodeError:  # half a surrogate pair
        return None


def _bad(column: FeatureColumn, value: object) -> BadRow:
    """Say what was expected; for a list name the element that is wrong, or the number of them."""
    datatype = column.datatype
    if column.shape and isinstance(value, list | tuple):
        if len(value) != column.items:
            expected, received = f"{column.items} {datatype} values", f"{len(value)}"
        else:
            single = FeatureColumn(name=column.name, datatype=datatype)
            position = next((p for p, item in enumerate(value) if not _fits(single, item)), 0)
            expected, received = f"{datatype} values", f"{_worded(value[position])} at position {position}"
    elif column.shape:
        expected, received = f"{column.items} {datatype} values", _worded(value)
    else:
        expected, received = datatype, _worded(value)
    return BadRow(f"column {column.name}: expected {expected}, received {received}")


def _worded(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and value.bit_length() > _SHOWN_BITS:
        return f"a number of {value.bit_length()} bits"  # Python refuses to write out the largest ones
    return described(value)


def _fits(column: FeatureColumn, value: object) -> bool:
    try:
        _packer(column)(value)
    except BadRow:
        return False
    return True


# -- a column of values -----------------------------------------------------------------------------------------------
def _allowed(datatype: str) -> frozenset[type]:
    """Python's types that values of a datatype may have."""
    if datatype == "BOOL":
        return frozenset((bool,))
    if datatype == "BYTES":
        return frozenset((str, bytes))
    return frozenset((int, float)) if datatype.startswith("FP") else frozenset((int,))


def _all_fit(column: FeatureColumn, values: Sequence[object]) -> bool:
    """Whether all values are surely right; if not, they are looked at one by one."""
    if column.storage != "scalar":
        return False
    types = set(map(type, values))
    if not types <= _allowed(column.datatype) | _NONE:
        return False
    if column.datatype == "BOOL":
        return True
    present: Sequence[Any] = [value for value in values if value is not None] if types & _NONE else values
    if column.datatype == "BYTES":
        return bytes not in types and _raw("".join(present)) is not None
    code = _CODES[column.datatype]
    if code == "d" and int not in types:
        return True
    try:
        struct.pack(f"<{len(present)}{code}", *present)
    except (struct.error, OverflowError):
        return False
    return True


# -- bytes to values --------------------------------------------------------------------------------------------------
def _items(datatype: str, data: bytes) -> list[Any]:
    if datatype == "BYTES":
        return _texts(data)
    if datatype == "BOOL":
        return [byte != 0 for byte in data]
    count = len(data) // (ITEM_BYTES[datatype] or 1)
    return list(struct.unpack(f"<{count}{_CODES[datatype]}", data))


def _texts(data: bytes) -> list[Any]:
    texts: list[Any] = []
    place = 0
    while place < len(data):
        start = place + 4
        place = start + int.from_bytes(data[place:start], "little")
        raw = data[start:place]
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError:
            texts.append(raw)
    return texts


def _nested(items: list[Any], shape: Sequence[int]) -> list[Any]:
    """Items grouped from the last dimension to the first; the one that is left is the value."""
    for size in reversed(shape):
        items = [items[start : start + size] for start in range(0, len(items), size)]
    return items
