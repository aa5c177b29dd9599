"""Open Inference Protocol requests and answers: every datatype there and back, and an error for everything else."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from host.protocol.errors import InvalidInput, Malformed, RequestError
from host.protocol.messages import NO_JSON_HEADER, Encoding
from host.protocol.tensors import NUMPY_DTYPES, Array, bytes_of, joined
from host.protocol.types import DATATYPES, Signature, TensorSpec
from host.protocol.v2 import FORMS_MAX, LEARN_EVERY, InferCodec, InferRequest

INTEGERS = [name for name in DATATYPES if "INT" in name]


def codec(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP64", (-1, 1)),)) -> InferCodec:
    return InferCodec("churn", "3", Signature(inputs or (TensorSpec("x", "FP64", (-1, 2)),), outputs))


def tensor(
    data: Any = None, *, name: str = "x", shape: Any = (1, 2), datatype: str = "FP64", **more: Any
) -> dict[str, Any]:
    given_data = {} if data is None else {"data": data}
    return {"name": name, "shape": list(shape), "datatype": datatype, **given_data, **more}


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def decode(made: InferCodec, *inputs: dict[str, Any], **more: Any) -> InferRequest:
    return made.decode(body(*inputs, **more), Encoding.JSON)


# -- what is taken --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [[1, 2.5, 3, 4], [[1, 2.5], [3, 4]]], ids=["flat", "nested"])
@pytest.mark.parametrize("encoding", Encoding)
def test_data_may_be_flat_or_nested(data: list[Any], encoding: Encoding) -> None:
    document = {"inputs": [tensor(data, shape=(2, 2))]}
    raw = json.dumps(document).encode() if encoding is Encoding.JSON else msgpack.packb(document)
    array = joined(codec().decode(raw, encoding).inputs)
    assert array.dtype == np.float64
    assert array.tolist() == [[1, 2.5], [3, 4]]


def values_for(datatype: str) -> st.SearchStrategy[Array]:
    shape = arrays.array_shapes(min_dims=2, max_dims=2, max_side=4)
    if datatype == "BYTES":
        texts = st.text(st.characters(codec="utf-8"), max_size=6).map(str.encode)
        return shape.flatmap(
            lambda size: st.lists(texts, min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
                lambda given: np.array([*given, None], dtype=object)[:-1].reshape(size)
            )
        )
    dtype = NUMPY_DTYPES[datatype]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    if datatype == "FP16":  # of which hypothesis draws others, too, and throws nearly all arrays away
        elements = {"min_value": -65504.0, "max_value": 65504.0}
    return shape.flatmap(lambda size: arrays.arrays(dtype, size, elements=elements))


def plain(array: Array) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in array.ravel().tolist()]


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_model_gets_what_the_client_sent_and_the_client_what_the_model_answered(datatype: str, data: Any) -> None:
    array = data.draw(values_for(datatype))
    spec = TensorSpec("x", datatype, (-1, -1))
    made = codec(spec, outputs=(TensorSpec("y", datatype, (-1, -1)),))
    raw = bytes_of(datatype, array)
    sent = tensor(shape=array.shape, datatype=datatype, parameters={"binary_data_size": len(raw)})
    head = body(sent, parameters={"binary_data_output": True})
    ways = [(head + raw, Encoding.JSON, len(head))]
    if datatype != "FP16":
        ways.append((body(tensor(plain(array), shape=array.shape, datatype=datatype)), Encoding.JSON, NO_JSON_HEADER))
        listed = {"inputs": [tensor(plain(array), shape=array.shape, datatype=datatype)]}
        ways.append((msgpack.packb(listed), Encoding.MSGPACK, NO_JSON_HEADER))
        as_bin = {"inputs": [tensor(raw, shape=array.shape, datatype=datatype)]}
        ways.append((msgpack.packb(as_bin), Encoding.MSGPACK, NO_JSON_HEADER))
    for raw_body, encoding, json_bytes in ways:
        request = made.decode(raw_body, encoding, json_bytes)
        received = joined(request.inputs)
        assert received.dtype == NUMPY_DTYPES[datatype]
        assert np.array_equal(received, array)
        answer, answer_json_bytes = made.encode(request, [array], encoding)
        if answer_json_bytes != NO_JSON_HEADER:
            output = json.loads(answer[:answer_json_bytes])["outputs"][0]
            assert output["parameters"] == {"binary_data_size": len(raw)}
            assert answer[answer_json_bytes:] == raw
        elif encoding is Encoding.JSON and datatype != "FP16":
            assert json.loads(answer)["outputs"][0]["data"] == plain(array)
        elif encoding is Encoding.MSGPACK:
            output = msgpack.unpackb(answer)["outputs"][0]
            assert plain(np.array([*output["data"], None], dtype=object)[:-1]) == plain(array)
            assert output["shape"] == list(array.shape)


def test_binary_and_documented_tensors_may_be_mixed_in_any_order() -> None:
    made = codec(*(TensorSpec(name, "INT32", (-1,)) for name in "abc"))
    head = body(
        tensor(name="c", shape=[2], datatype="INT32", parameters={"binary_data_size": 8}),
        tensor([5, 6], name="a", shape=[2], datatype="INT32"),
        tensor(name="b", shape=[2], datatype="INT32", parameters={"binary_data_size": 8}),
    )
    request = made.decode(head + struct.pack("<4i", 1, 2, 3, 4), Encoding.JSON, len(head))
    assert [joined([given]).tolist() for given in request.inputs] == [[5, 6], [3, 4], [1, 2]]


def test_raw_request_is_the_only_inputs_bytes_and_asks_for_binary() -> None:
    request = codec().decode(struct.pack("<4d", 1, 2, 3, 4), Encoding.JSON, 0)
    assert joined(request.inputs).tolist() == [[1, 2], [3, 4]]
    assert request.outputs == ((0, True),)


@pytest.mark.parametrize(
    ("parameters", "asked", "binary"),
    [
        ({}, {}, False),
        ({"binary_data_output": True}, {}, True),
        ({"binary_data_output": True}, {"binary_data": False}, False),
        ({}, {"binary_data": True}, True),
    ],
)
def test_outputs_own_flag_wins_over_the_requests(parameters: Any, asked: Any, binary: bool) -> None:
    request = decode(codec(), tensor([1, 2]), parameters=parameters, outputs=[{"name": "y", "parameters": asked}])
    assert request.outputs == ((0, binary),)


def test_outputs_come_in_the_order_asked() -> None:
    outputs = (TensorSpec("a", "INT64", (-1,)), TensorSpec("b", "INT64", (-1,)))
    made = codec(outputs=outputs)
    request = decode(made, tensor([1, 2]), outputs=[{"name": "b"}, {"name": "a"}])
    answer, _ = made.encode(request, [np.array([1]), np.array([2])], Encoding.JSON)
    assert [output["name"] for output in json.loads(answer)["outputs"]] == ["b", "a"]


def test_id_is_echoed_if_and_only_if_it_was_given() -> None:
    made = codec()
    with_id, _ = made.encode(decode(made, tensor([1, 2]), id="q1"), [np.ones((1, 1))], Encoding.JSON)
    without, _ = made.encode(decode(made, tensor([1, 2])), [np.ones((1, 1))], Encoding.JSON)
    assert json.loads(with_id)["id"] == "q1"
    assert "id" not in json.loads(without)


def test_unknown_parameters_are_ignored_and_timeout_is_read() -> None:
    assert decode(codec(), tensor([1, 2]), parameters={"priority": 3, "timeout": 1500}).timeout_us == 1500


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_up_to_their_bounds(name: str) -> None:
    bounds = np.iinfo(NUMPY_DTYPES[name])
    made = codec(TensorSpec("x", name, (-1,)))
    request = decode(made, tensor([int(bounds.min), int(bounds.max)], shape=[2], datatype=name))
    assert joined(request.inputs).tolist() == [bounds.min, bounds.max]
    for beyond in (int(bounds.min) - 1, int(bounds.max) + 1):
        with pytest.raises(InvalidInput, match=rf"input 'x': expected {name} \(.*received {beyond} \(element 1\)"):
            decode(made, tensor([0, beyond], shape=[2], datatype=name))


def test_nan_and_infinity_travel_in_msgpack() -> None:
    document = msgpack.packb({"inputs": [tensor([float("nan"), float("inf")])]})
    assert np.isnan(joined(codec().decode(document, Encoding.MSGPACK).inputs)[0, 0])


# -- documents in a known form ----------------------------------------------------------------------------------
SPECS = [TensorSpec("data", datatype, (-1, -1)) for datatype in ("FP64", "FP32", "UINT8", "BOOL", "BYTES")]
SCALARS: dict[str, list[Any]] = {
    "FP64": [1.5, 2],
    "FP32": [1.5, 1e39],
    "UINT8": [7, 300],
    "BOOL": [True, False],
    "BYTES": ["a", "]", '"data":[1]'],
}
TEMPLATES = [
    '{"inputs":[{"name":"data","shape":[SHAPE],"datatype":"TYPE","data":[VALUES]}]}',
    ' {"inputs" : [ {"data" : [VALUES] , "datatype":"TYPE", "shape":[SHAPE], "name":"data"} ] }\n',
    '{"unknown":{"data":[3]},"inputs":[{"name":"data","shape":[SHAPE],"datatype":"TYPE","data":[VALUES]}]}',
    '{"inputs":[{"data":[9],"name":"data","shape":[SHAPE],"datatype":"TYPE","data":[VALUES]}]}',
    '{"inputs":[{"name":"data","shape":[SHAPE],"datatype":"TYPE","parameters":{"a":"\\"data\\":[1]"},"data":[VALUES]}]}',
    '{"id":"7","inputs":[{"name":"data","shape":[SHAPE],"datatype":"TYPE","data":[VALUES]}]}',
    '{"inputs":[{"name":"data","shape":[SHAPE],"datatype":"TYPE","data":[VALUES]}],"outputs":[{"name":"y"}]}',
    '{"inputs":[{"name":"data","shape":[SHAPE],"datatype":"TYPE","data":[VALUES]}],"parameters":{"timeout":5}}',
]
ODD_VALUES = [
    "",
    "1",
    "1,2,3",
    "[1,2]",
    "NaN",
    "null",
    "-1,1",
    '1,2],"shape":[1,2',
    '1,2],"data":[3,4',
    "1,2]}]}",
    "1 2",
    "1,",
]


def outcome(made: InferCodec, document: bytes) -> Any:
    try:
        request = made.decode(document, Encoding.JSON)
    except (InvalidInput, Malformed) as error:
        return type(error), str(error)
    array = joined(request.inputs)
    return array.dtype, array.shape, array.tolist(), request.outputs, request.id, request.timeout_us


@given(
    st.sampled_from(TEMPLATES),
    st.sampled_from(SPECS),
    st.data(),
)
@settings(deadline=None)
def test_documents_in_a_known_form_are_read_like_any_other(template: str, spec: TensorSpec, data: Any) -> None:
    made = codec(spec)

    def document(values: str, shape: str = "1,2") -> bytes:
        return template.replace("SHAPE", shape).replace("TYPE", spec.datatype).replace("VALUES", values).encode()

    def listed() -> str:
        values = data.draw(st.lists(st.sampled_from(SCALARS[spec.datatype]), min_size=1, max_size=3))
        return json.dumps(values)[1:-1]

    usual = json.dumps([SCALARS[spec.datatype][0]] * 2)[1:-1]
    for _turn in range(2 * LEARN_EVERY):
        made.decode(document(usual), Encoding.JSON)
    assert template not in TEMPLATES[:2] or made.forms
    for _turn in range(4):
        values = data.draw(st.sampled_from(ODD_VALUES)) if data.draw(st.booleans()) else listed()
        sent = document(values, data.draw(st.sampled_from(["1,2", "1,2", "2,1", "1", "0"])))
        assert outcome(made, sent) == outcome(codec(spec), sent)


def test_forms_are_learned_one_in_so_many_and_the_newest_are_kept() -> None:
    made = codec(TensorSpec("x", "FP64", (-1, 2)))
    for rows in range(1, FORMS_MAX + 3):
        for turn in range(LEARN_EVERY):
            assert len(made.forms) == min(rows - 1, FORMS_MAX)
            decode(made, tensor([turn] * 2 * rows, shape=(rows, 2)))
    assert [b"[%d, 2]" % rows in form.opening for rows, form in enumerate(made.forms, 3)] == [True] * FORMS_MAX


# -- what is refused ------------------------------------------------------------------------------------------
FP32 = codec(TensorSpec("x", "FP32", (-1, 2)))
BOOL = codec(TensorSpec("x", "BOOL", (-1, 2)))
TEXT = codec(TensorSpec("x", "BYTES", (-1, 2)))
HALF = codec(TensorSpec("x", "FP16", (-1, 2)))
TWO = codec(TensorSpec("x", "FP64", (-1, 2)), TensorSpec("z", "FP64", (-1, 2)))


@pytest.mark.parametrize(
    ("made", "raw", "error", "message"),
    [
        (codec(), b"", Malformed, "the body is empty"),
        (codec(), b"{", Malformed, "not JSON"),
        (codec(), b"[1]", Malformed, "not an inference request"),
        (codec(), b'"\xff"', Malformed, "not UTF-8"),
        (codec(), b"{}", Malformed, "inputs"),
        (codec(), body(), InvalidInput, "input 'x' is missing: received none"),
        (codec(), body(tensor([1, 2], name="w")), InvalidInput, "unknown input 'w': expected 'x'"),
        (codec(), body(tensor([1, 2]), tensor([1, 2])), Malformed, "input 'x' is given twice"),
        (TWO, body(tensor([1, 2])), InvalidInput, "input 'z' is missing: received 'x'"),
        (codec(), body(tensor([1, 2], datatype="FP32")), InvalidInput, "expected datatype FP64, received 'FP32'"),
        (codec(), body(tensor([1, 2], datatype="FP99")), InvalidInput, "expected datatype FP64, received 'FP99'"),
        (codec(), body(tensor([1, 2], shape=[1, 3])), InvalidInput, r"expected shape \[-1, 2\], received \[1, 3\]"),
        (codec(), body(tensor([1, 2], shape=[2])), InvalidInput, r"expected shape \[-1, 2\], received \[2\]"),
        (codec(), body(tensor([1, 2], shape=[-1, 2])), Malformed, r"dimensions >= 0, received \[-1, 2\]"),
        (codec(), body(tensor([1, 2], shape=[2, 2])), Malformed, r"shape \[2, 2\] holds 4 elements, received 2"),
        (codec(), body(tensor([1, 2], shape=[10**12, 2])), Malformed, "holds 2000000000000 elements, received 2"),
        (codec(), body(tensor([1, 2], shape=[10**30, 2])), Malformed, "input 'x'"),
        (codec(), body(tensor([1, 2], shape="12")), Malformed, "shape.*input 'x'"),
        (codec(), body(tensor()), Malformed, "input 'x': expected data or binary_data_size, received neither"),
        (codec(), body(tensor([1, "2"])), InvalidInput, r"expected numbers \(FP64\), received '2' \(element 1\)"),
        (codec(), body(tensor([1, None])), InvalidInput, "received null"),
        (codec(), body(tensor([True, 2])), InvalidInput, "received true"),
        (codec(), body(tensor("12")), InvalidInput, "expected data to be a list, received '12'"),
        (codec(), body(tensor([[1, 2], [3]], shape=[2, 2])), InvalidInput, "input 'x': ragged data"),
        (codec(), body(tensor([[[1, 2]]])), InvalidInput, "input 'x'"),
        (codec(), body(tensor([[1], [2]])), Malformed, r"declared shape \[1, 2\], received data of shape \[2, 1\]"),
        (
            codec(),
            body(tensor([1, float("nan")])),
            InvalidInput,
            r"input 'x': expected finite.*received nan \(element 1\)",
        ),
        (codec(), body(tensor([1, float("inf")])), InvalidInput, "input 'x': expected finite numbers, received inf"),
        (codec(), body(tensor([1, 7])).replace(b"7", b"1e999"), InvalidInput, "input 'x'"),
        (FP32, body(tensor([1, 1e300], datatype="FP32")), InvalidInput, "received 1e.300 .element 1., which is beyond"),
        (BOOL, body(tensor([1, 0], datatype="BOOL")), InvalidInput, "expected true or false .BOOL., received 1"),
        (TEXT, body(tensor(["a", 1], datatype="BYTES")), InvalidInput, r"expected strings \(BYTES\), received 1"),
        (TEXT, body(tensor(["a", "\ud800"], datatype="BYTES")), RequestError, "surrogate|not JSON"),
        (HALF, body(tensor([1, 2], datatype="FP16")), InvalidInput, "FP16 cannot travel"),
        (codec(), body(tensor([1, 2]), outputs=[{"name": "q"}]), InvalidInput, "unknown output 'q': expected 'y'"),
        (codec(), body(tensor([1, 2]), outputs=[{"name": "y"}] * 2), Malformed, "output 'y' is asked for twice"),
        (codec(), body(tensor([1, 2]), parameters={"timeout": "5"}), Malformed, "parameter timeout"),
        (codec(), body(tensor([1, 2]), parameters={"timeout": -5}), Malformed, "parameter timeout"),
        (codec(), body(tensor([1, 2]), parameters={"binary_data_output": 1}), Malformed, "expected true or false"),
        (codec(), body(tensor([1, 2], parameters={"binary_data_size": 16})), Malformed, "both data and binary"),
        (codec(), b"[" * 100_000, Malformed, "not JSON: nested too deep"),
    ],
)
def test_wrong_request_names_what_is_wrong(made: InferCodec, raw: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made.decode(raw, Encoding.JSON)


@pytest.mark.parametrize(
    ("size", "tail", "message"),
    [
        (16, 15, "binary_data_size is 16 bytes, received 15 bytes"),
        (16, 17, "the inputs declare 16 bytes, received 17"),
        (8, 8, r"FP64 of shape \[1, 2\] takes 16 bytes, received 8"),
        (-1, 0, "binary_data_size: expected a whole number >= 0, received -1"),
        ("16", 16, "binary_data_size: expected a whole number"),
        (2**63, 0, "received 0 bytes of binary data"),
    ],
)
def test_binary_sizes_must_add_up(size: Any, tail: int, message: str) -> None:
    head = body(tensor(parameters={"binary_data_size": size}))
    with pytest.raises(Malformed, match=message):
        codec().decode(head + b"\0" * tail, Encoding.JSON, len(head))


@pytest.mark.parametrize("json_bytes", [-2, 10_000])
def test_header_length_must_be_within_the_body(json_bytes: int) -> None:
    with pytest.raises(Malformed, match="Inference-Header-Content-Length: expected 0 to"):
        codec().decode(body(tensor([1, 2])), Encoding.JSON, json_bytes)


def test_texts_in_bytes_are_checked_one_by_one() -> None:
    for raw in (b"\x05\0\0\0ab", b"\x01\0\0", b"\x01\0\0\0a", b"\x01\0\0\0a" * 3, b"\xff\xff\xff\xff"):
        head = body(tensor(datatype="BYTES", parameters={"binary_data_size": len(raw)}))
        with pytest.raises(Malformed, match="input 'x'"):
            TEXT.decode(head + raw, Encoding.JSON, len(head))


def test_raw_request_needs_whole_rows_and_one_input() -> None:
    with pytest.raises(Malformed, match="multiple of 16 bytes, received 17"):
        codec().decode(b"\0" * 17, Encoding.JSON, 0)
    with pytest.raises(InvalidInput, match="a raw request needs a model of one input"):
        TWO.decode(b"\0" * 16, Encoding.JSON, 0)


@pytest.mark.parametrize(
    "raw", [b"\x81\xa6inputs\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_declared_msgpack_sizes_allocate_nothing(raw: bytes) -> None:
    with pytest.raises(Malformed):
        codec().decode(raw, Encoding.MSGPACK)


def test_every_cut_of_a_valid_request_is_refused() -> None:
    whole = body(tensor([1, 2]), id="q", parameters={"timeout": 5})
    for end in range(len(whole)):
        with pytest.raises(RequestError):
            codec().decode(whole[:end], Encoding.JSON)


@pytest.mark.parametrize("made", [codec(), TWO, TEXT, BOOL, HALF, FP32])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_requests_are_read_or_refused_and_nothing_else(made: InferCodec, data: Any) -> None:
    valid = data.draw(
        st.sampled_from(
            [
                body(tensor([1, 2]), id="q"),
                body(tensor([[1, 2]]), tensor([3, 4], name="z")),
                body(tensor(["a", "ü"], datatype="BYTES"), outputs=[{"name": "y"}]),
                msgpack.packb({"inputs": [tensor([1.5, 2])]}),
                msgpack.packb({"inputs": [tensor(b"\0" * 16), tensor([b"\xff", "x"], datatype="BYTES")]}),
            ]
        )
    )
    damaged = bytearray(valid)
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(valid) - 1), st.integers(0, 255)), max_size=4)
    ):
        damaged[position] = value
    encoding = data.draw(st.sampled_from(Encoding))
    json_bytes = data.draw(st.one_of(st.just(NO_JSON_HEADER), st.integers(0, len(valid) + 2)))
    try:
        made.decode(bytes(damaged), encoding, json_bytes)
    except RequestError as error:
        assert str(error)


# -- answers that a format cannot carry -----------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_answer_that_json_cannot_carry_is_an_error_and_not_null(value: float) -> None:
    made = codec()
    request = decode(made, tensor([1, 2]))
    with pytest.raises(InvalidInput, match="output 'y': the model answered NaN or Infinity"):
        made.encode(request, [np.array([[value]])], Encoding.JSON)
    answer, _ = made.encode(request, [np.array([[value]])], Encoding.MSGPACK)
    assert not np.isfinite(msgpack.unpackb(answer)["outputs"][0]["data"][0])


def test_answer_without_binary_bytes_has_no_binary_header() -> None:
    made = codec(outputs=(TensorSpec("y", "BYTES", (-1,)),))
    request = decode(made, tensor([1, 2]), parameters={"binary_data_output": True})
    assert made.encode(request, [np.empty(0, dtype=object)], Encoding.JSON)[1] == NO_JSON_HEADER
