"""Values to tensor bytes and back: exact, strict, and said in words when wrong."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_io.stores import BadRow
from feature_io.values import Packer, check_values, pack, pack_default, unpack
from host.config.features import STORAGES, FeatureColumn
from host.protocol.types import DATATYPES, ITEM_BYTES

DTYPES = {name: np.dtype(f"<{kind}") for name, kind in {
    "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2", "INT32": "i4",
    "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8", "BOOL": "?",
}.items()}  # fmt: skip
NUMBERS = [name for name in DTYPES if name != "BOOL"]


def column(datatype: str, *shape: int, storage: str | None = None, **rest: Any) -> FeatureColumn:
    return FeatureColumn(
        name="x", datatype=datatype, shape=shape, storage=storage or ("list" if shape else "scalar"), **rest
    )


def items(datatype: str) -> st.SearchStrategy[Any]:
    """Every value that a datatype has."""
    if datatype == "BOOL":
        return st.booleans()
    if datatype == "BYTES":
        return st.text()
    if datatype == "FP16":  # of which hypothesis draws finite ones that are none, too, and throws them away
        finite = st.floats(min_value=-65504.0, max_value=65504.0, width=16)
        return finite | st.sampled_from([float("nan"), float("inf"), -float("inf")])
    if datatype.startswith("FP"):
        return st.floats(width=int(datatype[2:]))  # type: ignore[arg-type]
    info = np.iinfo(DTYPES[datatype])
    return st.integers(int(info.min), int(info.max))


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_what_is_packed_is_unpacked(datatype: str, data: st.DataObject) -> None:
    value = data.draw(items(datatype))
    packed = pack(column(datatype), value)
    assert repr(unpack(column(datatype), packed)) == repr(value)
    if datatype in DTYPES:
        assert np.frombuffer(packed, DTYPES[datatype]).tobytes() == np.array([value], DTYPES[datatype]).tobytes()


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_lists_are_nested_by_their_shape(datatype: str, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    one = column(datatype, *shape)
    values = data.draw(st.lists(items(datatype), min_size=one.items, max_size=one.items))
    packed = pack(one, values)
    assert packed == b"".join(pack(column(datatype), value) for value in values)
    nested = unpack(one, packed)
    flat = np.empty(one.items, object)
    flat[:] = values
    assert repr(nested) == repr(flat.reshape(shape).tolist())


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
@given(data=st.data())
def test_a_blob_is_the_bytes_of_the_values(datatype: str, data: st.DataObject) -> None:
    blob, listed = column(datatype, 3, storage="blob"), column(datatype, 3)
    values = data.draw(st.lists(items(datatype), min_size=3, max_size=3))
    packed = pack(listed, values)
    assert pack(blob, packed) == packed
    assert pack(blob, values) == packed, "a default, as features.toml has it"
    assert repr(unpack(blob, packed)) == repr(values)


@given(st.lists(st.text(), min_size=2, max_size=2))
def test_texts_carry_their_length(texts: list[str]) -> None:
    packed = pack(column("BYTES", 2), texts)
    assert packed == b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)


def test_bytes_that_are_no_text_stay_bytes() -> None:
    assert unpack(column("BYTES"), pack(column("BYTES"), b"\xff\x00")) == b"\xff\x00"
    assert unpack(column("BYTES"), pack(column("BYTES"), "ä".encode())) == "ä"


def test_half_precision_is_ieee() -> None:
    for value in (0.1, 65504.0, 6e-8, -0.0, math.inf, math.nan):
        assert pack(column("FP16"), value) == np.float16(value).tobytes()


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_a_whole_number_is_a_float(datatype: str) -> None:
    assert pack(column(datatype), 3) == pack(column(datatype), 3.0)
    assert pack(column(datatype, 2), [3, 0.5]) == pack(column(datatype, 2), [3.0, 0.5])


@pytest.mark.parametrize(
    ("one", "value", "words"),
    [
        (column("FP64"), "1.5", 'column x: expected FP64, received "1.5"'),
        (column("FP64"), True, "column x: expected FP64, received true"),
        (column("FP64"), 10**400, "column x: expected FP64, received a number of 1329 bits"),
        (column("FP32"), 1e300, "column x: expected FP32, received 1e+300"),
        (column("FP16"), 70000.0, "column x: expected FP16, received 70000.0"),
        (column("INT8"), 128, "column x: expected INT8, received 128"),
        (column("UINT8"), -1, "column x: expected UINT8, received -1"),
        (column("INT64"), 1 << 63, "column x: expected INT64, received 9223372036854775808"),
        (column("INT64"), 1.0, "column x: expected INT64, received 1.0"),
        (column("INT64"), True, "column x: expected INT64, received true"),
        (column("BOOL"), 1, "column x: expected BOOL, received 1"),
        (column("BYTES"), 5, "column x: expected BYTES, received 5"),
        (column("BYTES"), "\ud800", "column x: expected BYTES, received"),
        (column("FP32"), [1.0], "column x: expected FP32, received [1.0]"),
        (column("FP32"), None, "column x: expected FP32, received null"),
        (column("FP32", 2), 1.0, "column x: expected 2 FP32 values, received 1.0"),
        (column("FP32", 2), "ab", 'column x: expected 2 FP32 values, received "ab"'),
        (column("FP32", 2), [1.0], "column x: expected 2 FP32 values, received 1"),
        (column("FP32", 2), [1.0, None], "column x: expected FP32 values, received null at position 1"),
        (column("FP32", 2), [1.0, 1e300], "column x: expected FP32 values, received 1e+300 at position 1"),
        (column("FP32", 2), [1.0, True], "column x: expected FP32 values, received true at position 1"),
        (column("BOOL", 2), [True, 1], "column x: expected BOOL values, received 1 at position 1"),
        (column("BYTES", 2), ["a", None], "column x: expected BYTES values, received null at position 1"),
        (column("FP32", 2, storage="blob"), b"1234567", "column x: expected 8 bytes (2 x FP32), received 7 bytes"),
        (column("BOOL", 2, storage="blob"), b"\x01\x02", "column x: expected bytes 0 and 1 (BOOL), received b'"),
        (column("FP32", 2, storage="blob"), "text", 'column x: expected 2 FP32 values, received "text"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(one: FeatureColumn, value: object, words: str) -> None:
    with pytest.raises(BadRow) as raised:
        pack(one, value)
    assert str(raised.value).startswith(words)
    with pytest.raises(BadRow):
        check_values(one, [value]) if value is not None else pack(one, value)


def test_defaults() -> None:
    assert pack_default(column("FP64")) is None
    assert pack_default(column("FP64", default=0.5, required=False)) == struct.pack("<d", 0.5)
    assert pack_default(column("FP64", default=7, required=False)) == struct.pack("<d", 7)
    assert pack_default(column("FP32", 2, default=[0, 1.5], required=False)) == struct.pack("<2f", 0, 1.5)
    blob = column("FP32", 2, storage="blob", default=[0, 1.5], required=False)
    assert pack_default(blob) == struct.pack("<2f", 0, 1.5)
    assert pack_default(column("BYTES", default="ä", required=False)) == b"\x02\x00\x00\x00\xc3\xa4"


def test_a_packer_is_the_same_packing() -> None:
    packer = Packer(column("FP64"))
    assert packer.pack(0.5) == pack(column("FP64"), 0.5)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-200, 300), st.floats(), st.text(max_size=3),
    st.binary(max_size=12),
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(-5, 300), st.floats()), max_size=3),
)  # fmt: skip


@given(st.sampled_from(DATATYPES), st.sampled_from(STORAGES), st.lists(ANYTHING, max_size=5))
def test_a_column_is_checked_as_its_values_are(datatype: str, storage: str, values: list[Any]) -> None:
    one = column(datatype, *(() if storage == "scalar" else (2,)), storage=storage)
    if storage == "blob" and ITEM_BYTES[datatype] is None:
        return
    wrong = []
    for value in values:
        if value is not None:
            try:
                pack(one, value)
            except BadRow as error:
                wrong.append(str(error))
    if wrong:
        with pytest.raises(BadRow) as raised:
            check_values(one, values)
        assert str(raised.value) == wrong[0]
    else:
        check_values(one, values)
