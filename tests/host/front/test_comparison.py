"""When a shadow's answer says the same as the original's."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.front.comparison import Answered, Difference, first_difference
from host.protocol.messages import NO_JSON_HEADER, Encoding

TOLERANCE = 1e-6


def output(data: Any, datatype: str = "FP64", name: str = "y", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data), 1], "data": data} | more


def answer(*outputs: dict[str, Any], version: str = "1", encoding: Encoding = Encoding.JSON) -> Answered:
    document = {"model_name": "m", "model_version": version, "id": version, "outputs": list(outputs)}
    body = json.dumps(document).encode() if encoding is Encoding.JSON else msgpack.packb(document)
    return Answered(200, encoding, NO_JSON_HEADER, body)


def binary(raw: bytes, datatype: str, count: int) -> Answered:
    """One output, its values behind the JSON part."""
    one = {"name": "y", "datatype": datatype, "shape": [count, 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"outputs": [one]}).encode()
    return Answered(200, Encoding.JSON, len(head), head + raw)


def predictions(value: Any) -> Answered:
    return Answered(200, Encoding.JSON, NO_JSON_HEADER, json.dumps({"predictions": value}).encode())


def compared(one: Any, other: Any, tolerance: float = TOLERANCE) -> Difference | None:
    return first_difference(answer(output([one])), answer(output([other]), version="2"), tolerance)


EQUAL = [
    (1.0, 1.0),
    (1.0, 1.0 + 9e-7),
    (1e300, 1e300 * (1 + 9e-7)),
    (0.0, 9e-10),
    (0.0, -0.0),
    (2, 2.0),
    (True, True),
    ("a", "a"),
    (None, None),
]
DIFFERENT = [
    (1.0, 1.0 + 2e-6),
    (0.0, 2e-9),
    (1.0, "1.0"),
    (1.0, True),
    (1, True),
    (10**9, 10**9 + 1),  # a class, a key: whole numbers have no tolerance
    ("a", "A"),
    (1.0, None),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_what_is_the_same(one: Any, other: Any) -> None:
    assert compared(one, other) is None
    assert compared(other, one) is None


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_not(one: Any, other: Any) -> None:
    assert compared(one, other) == Difference("output 'y'[0]", one, other)
    assert compared(other, one) is not None


@pytest.mark.parametrize(("one", "other", "same"), [
    (math.nan, math.nan, True),
    (math.inf, math.inf, True),
    (math.inf, -math.inf, False),
    (math.inf, 1e308, False),
    (math.nan, 1.0, False),
])  # fmt: skip
def test_what_json_cannot_say(one: float, other: float, same: bool) -> None:
    for form in (
        [answer(output([value]), encoding=Encoding.MSGPACK) for value in (one, other)],
        [binary(struct.pack("<d", value), "FP64", 1) for value in (one, other)],
        [answer(output(struct.pack("<d", value), shape=[1]), encoding=Encoding.MSGPACK) for value in (one, other)],
    ):
        assert (first_difference(*form, TOLERANCE) is None) is same


def test_the_tolerance_is_the_versions() -> None:
    assert compared(1.0, 1.0009, tolerance=1e-3) is None
    assert compared(1.0, 1.0011, tolerance=1e-3) is not None
    assert compared(1.0, 1.0 + 1e-12, tolerance=0.0) is None  # the absolute one stays


def test_the_first_difference_is_named_and_shown() -> None:
    ours = answer(output([1.0, 2.0]), output([1.0, 2.0, 3.0], name="z"))
    theirs = answer(output([1.0, 2.0]), output([1.0, 2.5, 3.5], name="z"))
    assert str(first_difference(ours, theirs, TOLERANCE)) == "output 'z'[1]: 2.0, the shadow's 2.5"


@pytest.mark.parametrize(
    ("other", "where"),
    [
        (answer(output([1.0, 2.0], name="x")), "names of outputs"),
        (answer(output([1.0, 2.0]), output([1.0, 2.0], name="z")), "names of outputs"),
        (answer(output([1.0, 2.0], "FP32")), "datatype of output 'y'"),
        (answer(output([1.0, 2.0], shape=[1, 2])), "shape of output 'y'"),
        (answer(output([1.0], shape=[2, 1])), "length of output 'y'"),
        (Answered(422, Encoding.JSON, NO_JSON_HEADER, b"{}"), "status"),
        (Answered(200, Encoding.JSON, NO_JSON_HEADER, b"{"), "not readable"),
        (Answered(200, Encoding.JSON, NO_JSON_HEADER, b"[]"), "not readable"),
        (Answered(200, Encoding.JSON, NO_JSON_HEADER, b'{"outputs": [1]}'), "not readable"),
        (Answered(200, Encoding.JSON, NO_JSON_HEADER, b"{}"), "not readable"),
        (Answered(200, Encoding.JSON, NO_JSON_HEADER, b'{"a": ' + b"[" * 5000), "not readable"),
        (Answered(200, Encoding.MSGPACK, NO_JSON_HEADER, b"\xc1"), "not readable"),
        (Answered(200, Encoding.JSON, 2, b"{}" + bytes(16)), "not readable"),
        (binary(bytes(15), "FP64", 2), "not readable"),
    ],
)
def test_what_differs_before_the_values_do(other: Answered, where: str) -> None:
    for pair in ((answer(output([1.0, 2.0])), other), (other, answer(output([1.0, 2.0])))):
        found = first_difference(*pair, TOLERANCE)
        assert found is not None
        assert found.where.startswith(where)


def test_refusals_are_the_same_by_their_status() -> None:
    ours, theirs = (Answered(422, Encoding.JSON, NO_JSON_HEADER, text) for text in (b'{"error": "a"}', b"{}"))
    assert first_difference(ours, theirs, TOLERANCE) is None


@pytest.mark.parametrize(("datatype", "code", "values"), [
    ("BOOL", "?", (True, False)), ("UINT8", "B", (1, 255)), ("INT8", "b", (1, -1)), ("UINT16", "H", (1, 65535)),
    ("INT16", "h", (1, -1)), ("UINT32", "I", (1, 7)), ("INT32", "i", (1, 7)), ("UINT64", "Q", (1, 2**64 - 1)),
    ("INT64", "q", (1, -1)), ("FP16", "e", (1.0, 2.5)), ("FP32", "f", (1.0, 2.5)), ("FP64", "d", (1.0, 2.5)),
])  # fmt: skip
def test_binary_data_of_every_datatype(datatype: str, code: str, values: tuple[Any, Any]) -> None:
    ours, theirs = struct.pack(f"<2{code}", *values), struct.pack(f"<2{code}", values[0], values[0])
    assert first_difference(binary(ours, datatype, 2), binary(ours, datatype, 2), TOLERANCE) is None
    found = first_difference(binary(ours, datatype, 2), binary(theirs, datatype, 2), TOLERANCE)
    assert found == Difference("output 'y'[1]", values[1], values[0])


def test_binary_texts() -> None:
    def texts(*values: bytes) -> Answered:
        return binary(b"".join(struct.pack("<I", len(value)) + value for value in values), "BYTES", len(values))

    assert first_difference(texts(b"a", b""), texts(b"a", b""), TOLERANCE) is None
    assert first_difference(texts(b"a", b"bc"), texts(b"a", b"b"), TOLERANCE) == ("output 'y'[1]", b"bc", b"b")
    assert first_difference(texts(b"a"), binary(b"\xff", "BYTES", 1), TOLERANCE) is not None


def test_predictions_however_nested() -> None:
    ours = predictions([{"a": [0.1, 0.2], "b": "x"}, {"a": [0.3, 0.4], "b": "y"}])
    assert first_difference(ours, ours, TOLERANCE) is None
    theirs = predictions([{"a": [0.1, 0.2], "b": "x"}, {"a": [0.3, 0.5], "b": "y"}])
    assert first_difference(ours, theirs, TOLERANCE) == ("predictions[1].a[1]", 0.4, 0.5)
    assert first_difference(predictions({"a": 1}), predictions({"b": 1}), TOLERANCE) is not None
    assert first_difference(predictions([1]), predictions(1), TOLERANCE) == ("predictions", [1], 1)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUES)
def test_everything_is_the_same_as_itself(value: Any) -> None:
    body = msgpack.packb({"predictions": value})
    ours = Answered(200, Encoding.MSGPACK, NO_JSON_HEADER, body)
    assert first_difference(ours, ours, 0.0) is None
