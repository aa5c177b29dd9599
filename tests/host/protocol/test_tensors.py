"""The quick ways of reading and writing say what the general ones say, values and errors alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.protocol.errors import InvalidInput, Malformed
from host.protocol.messages import Encoding
from host.protocol.tensors import array_from_values, flat_reader, scalar_type
from host.protocol.types import DATATYPES, Signature, TensorSpec
from host.protocol.v2 import InferCodec, InferRequest

READ_FLAT = [datatype for datatype in DATATYPES if datatype != "FP16"]
ELEMENTS: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**65), 2**65) | st.integers(-130, 260),
    float: st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(width=32, allow_nan=False, allow_infinity=False),
    str: st.text(),
}


def outcome(read: Any, *arguments: Any) -> tuple[str, str, tuple[int, ...], list[Any]] | tuple[type, str]:
    """Datatype, order, shape and values of what was read, or the error."""
    try:
        array = read(*arguments)
    except (InvalidInput, Malformed) as error:
        return type(error), str(error)
    return array.dtype.str, "C" if array.flags.c_contiguous else "?", array.shape, array.ravel().tolist()


@given(st.sampled_from(READ_FLAT), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.data())
def test_reader_of_one_shape_reads_what_any_reader_reads(datatype: str, shape: list[int], data: st.DataObject) -> None:
    spec = TensorSpec("x", datatype, (-1,) * len(shape))
    count = int(np.prod(shape)) + data.draw(st.sampled_from([0, 0, 0, -1, 1]))
    elements = ELEMENTS[scalar_type(datatype)]
    values = data.draw(st.lists(elements, min_size=max(0, count), max_size=max(0, count)))
    assert outcome(flat_reader(spec, shape), values) == outcome(array_from_values, spec, shape, values)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64"])
def test_a_model_may_write_into_what_was_read(datatype: str) -> None:
    array = flat_reader(TensorSpec("x", datatype, (-1, 2)), [1, 2])([1, 2])
    array += 1
    assert array.tolist() == [[2, 3]]


@given(
    st.sampled_from(["FP64", "FP32", "INT64", "BOOL", "BYTES"]),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from([None, "an id"]),
)
def test_answer_of_one_output_is_written_as_any_answer(datatype: str, shape: list[int], request_id: str | None) -> None:
    spec = TensorSpec('y\u2028"', datatype, (-1,) * len(shape))
    made = InferCodec("m", "1", Signature(inputs=(spec,), outputs=(spec,)))
    size = int(np.prod(shape))
    if datatype == "BYTES":
        array = np.array([b"text"] * size + [None], dtype=object)[:-1].reshape(shape)
    else:
        array = (
            np.arange(size).astype({"FP64": "f8", "FP32": "f4", "INT64": "i8", "BOOL": "?"}[datatype]).reshape(shape)
        )
    request = InferRequest(arrays=(), outputs=((0, False),), id=request_id)
    for _ in range(2):
        assert made.encode(request, [array], Encoding.JSON) == made._encode(request, [array], Encoding.JSON)
