"""The quick ways of reading and writing say what the general ones say, values and errors alike."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.protocol.errors import InvalidInput, Malformed
from host.protocol.messages import Encoding
from host.protocol.tensors import NUMPY_DTYPES, array_from_values, flat_reader, joined, scalar_type
from host.protocol.types import DATATYPES, Signature, TensorSpec
from host.protocol.v2 import BatchOutputs, InferCodec, InferRequest

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
        array = joined([read(*arguments)])
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
    array = joined([flat_reader(TensorSpec("x", datatype, (-1, 2)), [1, 2])([1, 2])])
    array += 1
    assert array.tolist() == [[2, 3]]


@given(
    st.sampled_from(["FP64", "FP32", "INT64", "BOOL", "BYTES"]),
    st.lists(st.integers(0, 3), max_size=2),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.sampled_from([None, "an id"]),
    st.sampled_from([None, math.nan, b"\xff"]),
)
def test_rows_of_a_batch_are_written_as_any_answer(
    datatype: str, inner: list[int], parts: list[int], request_id: str | None, unsayable: Any
) -> None:
    spec = TensorSpec('y\u2028"', datatype, (-1,) * (1 + len(inner)))
    made = InferCodec("m", "1", Signature(inputs=(spec,), outputs=(spec,)))
    shape = (sum(parts), *inner)
    size = int(np.prod(shape))
    if datatype == "BYTES":
        array = np.array([b"text"] * size + [None], dtype=object)[:-1].reshape(shape)
    else:
        array = np.arange(size).astype(NUMPY_DTYPES[datatype]).reshape(shape)
    # One element that JSON cannot say costs its own request the answer, and no other.
    if size and (datatype == "BYTES" if isinstance(unsayable, bytes) else unsayable and datatype.startswith("FP")):
        array.ravel()[size // 2] = unsayable
    request = InferRequest(inputs=(), outputs=((0, False),), id=request_id)
    batch = BatchOutputs([array], spec, batchable=True)
    start = 0
    for rows in parts:
        end = start + rows
        try:
            expected = made.encode(request, [array[start:end]], Encoding.JSON)
        except InvalidInput as error:
            with pytest.raises(InvalidInput, match=re.escape(str(error))):
                made.encode_rows(request, batch, start, end, Encoding.JSON)
        else:
            assert made.encode_rows(request, batch, start, end, Encoding.JSON) == expected
        start = end


def test_a_model_without_rows_answers_whole() -> None:
    spec = TensorSpec("y", "FP64", (2,))
    made = InferCodec("m", "1", Signature(inputs=(spec,), outputs=(spec,)))
    batch = BatchOutputs([np.array([1.0, 2.0])], spec, batchable=False)
    request = InferRequest(inputs=(), outputs=((0, False),))
    body, _ = made.encode_rows(request, batch, 0, 1, Encoding.JSON)
    assert json.loads(body)["outputs"][0] == {"name": "y", "datatype": "FP64", "shape": [2], "data": [1.0, 2.0]}
