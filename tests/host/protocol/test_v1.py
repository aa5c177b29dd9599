"""Prediction by rows and by columns."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.protocol.errors import InvalidInput, Malformed, RequestError
from host.protocol.messages import Encoding
from host.protocol.types import Signature, TensorSpec
from host.protocol.v1 import PredictCodec

Y = TensorSpec("y", "FP64", (-1, 1))
ONE = PredictCodec(Signature((TensorSpec("x", "FP64", (-1, 2)),), (Y,)))
TWO = PredictCodec(
    Signature(
        (TensorSpec("a", "INT64", (-1, 1)), TensorSpec("t", "BYTES", (-1, 1))), (Y, TensorSpec("band", "BYTES", (-1,)))
    )
)
FIXED = PredictCodec(Signature((TensorSpec("x", "FP32", (2, 2)),), (TensorSpec("y", "FP32", (2,)),)))


def values(made: PredictCodec, document: Any) -> list[Any]:
    return [array.tolist() for array in made.decode(json.dumps(document).encode(), Encoding.JSON).inputs]


@pytest.mark.parametrize(
    ("made", "document", "expected"),
    [
        (ONE, {"instances": [[1, 2], [3, 4]]}, [[[1, 2], [3, 4]]]),
        (ONE, {"instances": [{"x": [1, 2]}]}, [[[1, 2]]]),
        (ONE, {"inputs": [[1, 2]]}, [[[1, 2]]]),
        (ONE, {"inputs": {"x": [[1, 2]]}}, [[[1, 2]]]),
        (ONE, {"instances": [[1, 2]], "signature_name": "serving_default"}, [[[1, 2]]]),
        (TWO, {"instances": [{"a": 1, "t": "x"}, {"a": 2, "t": "ü"}]}, [[[1], [2]], [[b"x"], ["ü".encode()]]]),
        (TWO, {"instances": [{"a": [1], "t": [{"b64": "/w=="}]}]}, [[[1]], [[b"\xff"]]]),
        (TWO, {"inputs": {"t": ["x", "y"], "a": [[1], [2]]}}, [[[1], [2]], [[b"x"], [b"y"]]]),
        (FIXED, {"instances": [[[1, 2], [3, 4]]]}, [[[1, 2], [3, 4]]]),
    ],
)
def test_rows_and_columns_are_read(made: PredictCodec, document: Any, expected: list[Any]) -> None:
    assert values(made, document) == expected


@pytest.mark.parametrize(
    ("made", "document", "error", "message"),
    [
        (ONE, [], Malformed, "expected an object with 'instances' or 'inputs'"),
        (ONE, {}, Malformed, "expected exactly one of 'instances' and 'inputs', received an empty object"),
        (ONE, {"instances": [], "inputs": []}, Malformed, "received 'instances', 'inputs'"),
        (ONE, {"instances": 3}, Malformed, "'instances': expected a list"),
        (ONE, {"instances": []}, InvalidInput, "at least one row"),
        (ONE, {"instances": [[1, 2, 3]]}, InvalidInput, r"input 'x': expected shape \[-1, 2\], received \[1, 3\]"),
        (ONE, {"instances": [[1, 2], [3]]}, InvalidInput, "input 'x': ragged data"),
        (ONE, {"instances": [[1, "2"]]}, InvalidInput, r"input 'x': expected numbers \(FP64\), received '2'"),
        (ONE, {"instances": [{"w": [1, 2]}]}, InvalidInput, "element 0: input 'x' is missing: received 'w'"),
        (TWO, {"instances": [[1, "x"]]}, InvalidInput, "element 0: expected an object with 'a', 't', received list"),
        (TWO, {"instances": [{"a": 1, "t": "x"}, {"a": 1}]}, InvalidInput, "element 1: input 't' is missing"),
        (TWO, {"instances": [{"a": 1, "t": "x", "b": 2}]}, InvalidInput, "unknown input 'b': expected 'a', 't'"),
        (TWO, {"inputs": [[1]]}, InvalidInput, "'inputs': expected an object with 'a', 't', received list"),
        (TWO, {"instances": [{"a": 1.5, "t": "x"}]}, InvalidInput, r"input 'a': expected integers \(INT64\)"),
        (TWO, {"instances": [{"a": 1, "t": {"b64": "%"}}]}, Malformed, "input 't': expected base64"),
        (TWO, {"instances": [{"a": float("nan"), "t": "x"}]}, InvalidInput, "input 'a': expected finite numbers"),
        (ONE, {"instances": [[1, float("inf")]]}, InvalidInput, "input 'x': expected finite numbers, received inf"),
        (FIXED, {"instances": [[[1, 2], [3, 4]]] * 2}, InvalidInput, "no batch dimension: expected one, received 2"),
    ],
)
def test_wrong_request_names_what_is_wrong(
    made: PredictCodec, document: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        values(made, document)


def answer(made: PredictCodec, request: Any, *outputs: Any) -> Any:
    decoded = made.decode(json.dumps(request).encode(), Encoding.JSON)
    return json.loads(made.encode(decoded, [np.array(output) for output in outputs], Encoding.JSON))


def test_one_output_is_one_value_per_row() -> None:
    assert answer(ONE, {"instances": [[1, 2]] * 2}, [[0.5], [0.7]]) == {"predictions": [[0.5], [0.7]]}


def test_several_outputs_are_one_object_per_row_or_column() -> None:
    bands = np.array([b"low", b"high"], dtype=object)
    rows = {"instances": [{"a": 1, "t": "x"}, {"a": 2, "t": "y"}]}
    assert answer(TWO, rows, [[1.0], [2.0]], bands) == {
        "predictions": [{"y": [1.0], "band": "low"}, {"y": [2.0], "band": "high"}]
    }
    columns = {"inputs": {"a": [1, 2], "t": ["x", "y"]}}
    assert answer(TWO, columns, [[1.0], [2.0]], bands) == {
        "predictions": {"y": [[1.0], [2.0]], "band": ["low", "high"]}
    }


def test_model_without_batches_answers_one_instance() -> None:
    assert answer(FIXED, {"instances": [[[1, 2], [3, 4]]]}, [1, 2]) == {"predictions": [[1, 2]]}


def test_msgpack_carries_bytes_and_nan() -> None:
    request = TWO.decode(msgpack.packb({"instances": [{"a": 1, "t": b"\xff"}]}), Encoding.MSGPACK)
    assert request.inputs[1].tolist() == [[b"\xff"]]
    body = TWO.encode(request, [np.array([[np.nan]]), np.array([b"\xff"], dtype=object)], Encoding.MSGPACK)
    (prediction,) = msgpack.unpackb(body)["predictions"]
    assert prediction["band"] == b"\xff"
    assert np.isnan(prediction["y"][0])


@pytest.mark.parametrize("made", [ONE, TWO, FIXED])
@given(st.binary(max_size=60), st.sampled_from(Encoding))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused_and_nothing_else(made: PredictCodec, data: bytes, encoding: Encoding) -> None:
    for body in (data, b'{"instances":[' + data + b"]}"):
        try:
            made.decode(body, encoding)
        except RequestError as error:
            assert str(error)
