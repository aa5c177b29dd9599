"""Requests with inputs left out become requests with everything in them, or are refused by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import pytest

from feature_io.cache import Packed
from feature_io.completion import Completer, Found, Source
from feature_io.plan import model_features, packed_defaults
from feature_io.stores import Key
from host.config.features import FeatureColumn, Features, FeatureView, KeyColumn
from host.protocol.errors import FeaturesUnavailable, InvalidInput, Malformed, MissingFeature, RequestError
from host.protocol.messages import NO_JSON_HEADER, Encoding
from host.protocol.types import Signature, TensorSpec
from host.protocol.v1 import PredictCodec
from host.protocol.v2 import InferCodec

F64 = struct.Struct("<d").pack
I32 = struct.Struct("<i").pack

USERS = FeatureView(
    name="users",
    store="main",
    keyspace=None,
    table="users",
    keys=(KeyColumn(column="user_id", datatype="INT64", input="user_id"),),
    columns=(
        FeatureColumn(name="karma", datatype="FP64", default=0.5, required=False),
        FeatureColumn(name="score", datatype="FP64", default=-1, required=False),
        FeatureColumn(name="age", datatype="INT32"),
    ),
)
VISITS = FeatureView(
    name="visits",
    store="main",
    keyspace=None,
    table="visits",
    keys=(
        KeyColumn(column="user_id", datatype="INT64", input="user_id"),
        KeyColumn(column="day", datatype="BYTES", input="weekday"),
    ),
    columns=(FeatureColumn(name="hours", datatype="FP64", shape=(3,), storage="list"),),
    missing="refuse",
    unavailable="refuse",
)
FEATURES = Features((), (USERS, VISITS))
SIGNATURE = Signature(
    (
        TensorSpec("x", "FP64", (-1, 2)),
        TensorSpec("pair", "FP64", (-1, 2), ("users.karma", "users.score")),
        TensorSpec("age", "INT32", (-1, 1), ("users.age",)),
        TensorSpec("hours", "FP64", (-1, 4), ("visits.hours", "users.karma")),
    ),
    (TensorSpec("y", "FP64", (-1, 1)),),
)
MAX_ROWS, MAX_BYTES = 20_000, 1 << 20
MODEL = model_features(SIGNATURE, FEATURES, MAX_ROWS)
assert MODEL is not None
DEFAULTS = [packed_defaults(view) for view in FEATURES.views]
COMPLETER = Completer(MODEL, DEFAULTS, MAX_BYTES)

ROWS: dict[tuple[int, Key], Packed] = {
    (0, (1,)): (F64(1.5), F64(2.5), I32(30)),
    (0, (2,)): (None, F64(3.5), I32(40)),
    (0, (3,)): (F64(1.0), F64(2.0), None),
    (1, (1, "monday")): (F64(1.0) + F64(2.0) + F64(3.0),),
    (1, (2, "monday")): (F64(4.0) + F64(5.0) + F64(float("nan")),),
}


def tensor(name: str, datatype: str, data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def request(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(inputs), **more}


def x(rows: int) -> dict[str, Any]:
    return tensor("x", "FP64", [float(n) for n in range(2 * rows)], [rows, 2])


def found_for(places: list[tuple[int, Key]], sources: Mapping[tuple[int, Key], Source]) -> dict[Any, Found]:
    found = {}
    for place in places:
        row = ROWS.get(place)
        source = sources.get(place, Source.CACHE if row is not None else Source.MISSING)
        found[place] = Found(source, row if source not in (Source.MISSING, Source.NOWHERE) else None)
    return found


def complete(wanted: Any, sources: Mapping[tuple[int, Key], Source] = {}) -> bytes:
    found = found_for(wanted.places, sources)
    return wanted.complete({view: [found[view, key] for key in keys] for view, keys in wanted.keys.items()})  # type: ignore[no-any-return]


def completed(document: dict[str, Any], **sources: Any) -> bytes:
    wanted = COMPLETER.infer(json.dumps(document).encode(), Encoding.JSON, NO_JSON_HEADER)
    assert wanted is not None
    return complete(wanted, **sources)


def arrays(body: bytes) -> list[np.ndarray[Any, Any]]:
    """What a worker makes of a completed request."""
    return list(InferCodec("m", "1", SIGNATURE).decode(body, Encoding.MSGPACK).inputs)


TWO = request(x(2), tensor("user_id", "INT64", [1, 2]), tensor("weekday", "BYTES", ["monday", "monday"]))


def test_what_is_left_out_is_fetched_and_keys_are_taken_out() -> None:
    got = arrays(completed(TWO))
    np.testing.assert_array_equal(got[0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(got[1], [[1.5, 2.5], [0.5, 3.5]])  # karma of 2 is null, and has a default
    np.testing.assert_array_equal(got[2], [[30], [40]])
    np.testing.assert_array_equal(got[3], [[1, 2, 3, 1.5], [4, 5, np.nan, 0.5]])


def test_values_of_the_request_win() -> None:
    own = tensor("pair", "FP64", [9.0, 8.0, 7.0, 6.0], [2, 2])
    got = arrays(completed(request(own, *TWO["inputs"])))
    np.testing.assert_array_equal(got[1], [[9, 8], [7, 6]])
    np.testing.assert_array_equal(got[2], [[30], [40]])


@pytest.mark.parametrize("shape", [[2], [2, 1]])
@pytest.mark.parametrize("nested", [False, True])
def test_keys_come_flat_or_nested(shape: list[int], nested: bool) -> None:
    keys = [[1], [2]] if nested else [1, 2]
    days = [["monday"], ["monday"]] if nested else ["monday", "monday"]
    document = request(x(2), tensor("user_id", "INT64", keys, shape), tensor("weekday", "BYTES", days, shape))
    np.testing.assert_array_equal(arrays(completed(document))[2], [[30], [40]])


def test_msgpack_and_binary_requests_are_completed_alike() -> None:
    expected = arrays(completed(TWO))
    wanted = COMPLETER.infer(msgpack.packb(TWO), Encoding.MSGPACK, NO_JSON_HEADER)
    days = b"\x06\x00\x00\x00monday" * 2
    binary = [struct.pack("<4d", 0, 1, 2, 3), struct.pack("<2q", 1, 2), days]
    head = request(
        *({**one, "parameters": {"binary_data_size": len(raw)}} for one, raw in zip(TWO["inputs"], binary, strict=True))
    )
    for one in head["inputs"]:
        del one["data"]
    text = json.dumps(head).encode()
    from_binary = COMPLETER.infer(text + b"".join(binary), Encoding.JSON, len(text))
    for one in (wanted, from_binary):
        for got, want in zip(arrays(complete(one)), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_id_outputs_and_parameters_stay() -> None:
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    body = completed({**TWO, "id": "seven", "outputs": outputs, "parameters": {"timeout": 1000}})
    got = InferCodec("m", "1", SIGNATURE).decode(body, Encoding.MSGPACK)
    assert (got.id, got.outputs, got.timeout_us) == ("seven", ((0, True),), 1000)


def test_each_key_is_wanted_once() -> None:
    keys = [number % 10 for number in range(64)]
    document = request(x(64), tensor("user_id", "INT64", keys), tensor("weekday", "BYTES", ["monday"] * 64))
    wanted = COMPLETER.infer(json.dumps(document).encode(), Encoding.JSON, NO_JSON_HEADER)
    assert wanted is not None
    assert len(wanted.places) == 20
    assert len(set(wanted.places)) == 20


def test_only_the_views_that_are_needed_are_read() -> None:
    document = request(x(1), tensor("hours", "FP64", [1.0, 2, 3, 4], [1, 4]), tensor("user_id", "INT64", [1]))
    wanted = COMPLETER.infer(json.dumps(document).encode(), Encoding.JSON, NO_JSON_HEADER)
    assert wanted is not None
    assert wanted.places == [(0, (1,))]


def test_status_on_request() -> None:
    document = {**TWO, "parameters": {"feature_status": True}}
    body = completed(document, sources={(0, (1,)): Source.STORE, (1, (1, "monday")): Source.STALE})
    request_ = InferCodec("m", "1", SIGNATURE).decode(body, Encoding.MSGPACK)
    assert request_.feature_status == {
        "users.karma": ["present", "default"],
        "users.score": ["present", "cached"],
        "users.age": ["present", "cached"],
        "visits.hours": ["stale", "cached"],
    }


GIVEN = [x(1), tensor("pair", "FP64", [1.0, 2], [1, 2]), tensor("age", "INT32", [1], [1, 1]),
         tensor("hours", "FP64", [1.0, 2, 3, 4], [1, 4])]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(request(*GIVEN)).encode(),
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"inputs": 5}',
        b'{"inputs": [{"name": "x"}]}',
        b'{"inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [NaN]}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_complete_or_not_understood_is_left_to_the_worker(body: bytes) -> None:
    assert COMPLETER.infer(body, Encoding.JSON, NO_JSON_HEADER) is None
    assert COMPLETER.infer(body, Encoding.JSON, 0) is None


def test_a_key_that_nothing_needs_is_taken_out() -> None:
    wanted = COMPLETER.infer(json.dumps(request(*GIVEN, tensor("user_id", "INT64", [1]))).encode(), Encoding.JSON, -1)
    assert wanted is not None
    assert wanted.places == []
    assert len(arrays(complete(wanted))) == 4


def user(data: Any, shape: list[int] | None = None, datatype: str = "INT64") -> list[dict[str, Any]]:
    rows = len(data) if isinstance(data, list) else 1
    days = tensor("weekday", "BYTES", ["monday"] * rows)
    return [
        x(rows),
        {"name": "user_id", "datatype": datatype, "shape": [rows] if shape is None else shape, "data": data},
        days,
    ]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([x(1)], MissingFeature, "input 'pair' is missing, and so is 'user_id', by which it is fetched"),
        (user([1])[:2], MissingFeature, "'weekday'.*received 'user_id'"),
        (user([1.5]), InvalidInput, "input 'user_id' element 0: expected a whole number of 64 bits"),
        (user([True]), InvalidInput, "element 0.*received true"),
        (user(["1"]), InvalidInput, "element 0"),
        (user([1, 1 << 63]), InvalidInput, "element 1"),
        (user([1], datatype="INT32"), InvalidInput, "expected datatype INT64, received INT32"),
        (user([1], shape=[1, 2]), InvalidInput, "expected shape"),
        (user([1], shape=[]), InvalidInput, "expected shape"),
        (user([1], shape=[0]), InvalidInput, "expected shape"),
        (user([1], shape=[-1]), InvalidInput, "expected shape"),
        (user([1, 2], shape=[3]), Malformed, "needs 3 values, received 2"),
        ([*user([1]), user([1])[1]], Malformed, "input 'user_id' is given twice"),
        (user("abc"), Malformed, "expected a list of keys as data, received str"),
        (user({"a": 1}), Malformed, "expected a list of keys"),
        (
            [x(1), tensor("user_id", "INT64", [1]), tensor("weekday", "BYTES", ["a", "b"])],
            InvalidInput,
            "as many values",
        ),
        ([x(1), tensor("user_id", "INT64", [1]), tensor("weekday", "BYTES", [5])], InvalidInput, "expected text"),
    ],
)
def test_wrong_keys_are_named(inputs: list[dict[str, Any]], error: type[RequestError], message: str) -> None:
    with pytest.raises(error, match=message):
        COMPLETER.infer(json.dumps(request(*inputs)).encode(), Encoding.JSON, NO_JSON_HEADER)


@pytest.mark.parametrize("count", [9_999, 10_000, 10_001])
def test_the_number_of_keys_is_limited(count: int) -> None:
    given = [tensor("hours", "FP64", [0.0] * 4 * count, [count, 4])]
    body = json.dumps(request(x(count), tensor("user_id", "INT64", list(range(count))), *given)).encode()
    if count > 10_000:
        with pytest.raises(InvalidInput, match="at most 10000 different keys in a request, received 10001"):
            COMPLETER.infer(body, Encoding.JSON, NO_JSON_HEADER)
    else:
        wanted = COMPLETER.infer(body, Encoding.JSON, NO_JSON_HEADER)
        assert wanted is not None
        assert len(wanted.places) == count


def one_key(rows: int) -> bytes:
    """A small request that asks for one entity again and again."""
    given = [tensor("hours", "FP64", b"", [rows, 4])]
    return msgpack.packb(request(*given, tensor("user_id", "INT64", struct.pack("<q", 1) * rows, [rows])))


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_rows_are_limited_as_the_worker_limits_them(rows: int) -> None:
    model = model_features(SIGNATURE, FEATURES, 3)
    assert model is not None
    completer = Completer(model, DEFAULTS, MAX_BYTES)
    if rows > 3:
        with pytest.raises(InvalidInput, match=r"expected 1 to 3 rows \(the model's max_batch_rows\), received 4"):
            completer.infer(one_key(rows), Encoding.MSGPACK, NO_JSON_HEADER)
    else:
        assert completer.infer(one_key(rows), Encoding.MSGPACK, NO_JSON_HEADER) is not None


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_the_completed_request_is_limited(more: int) -> None:
    wanted = COMPLETER.infer(one_key(10), Encoding.MSGPACK, NO_JSON_HEADER)
    size = len(complete(wanted))
    completer = Completer(MODEL, DEFAULTS, size + more)
    wanted = completer.infer(one_key(10), Encoding.MSGPACK, NO_JSON_HEADER)
    if more < 0:
        with pytest.raises(InvalidInput, match="with its features the request has"):
            complete(wanted)
    else:
        assert len(complete(wanted)) == size


def test_what_will_be_too_large_is_refused_before_anything_is_read() -> None:
    completer = Completer(MODEL, DEFAULTS, 100)
    with pytest.raises(InvalidInput, match="ask for fewer rows"):
        completer.infer(one_key(10), Encoding.MSGPACK, NO_JSON_HEADER)


def test_texts_that_repeat_are_limited_while_they_are_joined() -> None:
    texts = FeatureView(
        name="texts",
        store="main",
        keyspace=None,
        table="texts",
        keys=(KeyColumn(column="id", datatype="INT64", input="id"),),
        columns=(FeatureColumn(name="text", datatype="BYTES"),),
    )
    signature = Signature((TensorSpec("text", "BYTES", (-1, 1), ("texts.text",)),), ())
    model = model_features(signature, Features((), (texts,)), 1000)
    assert model is not None
    completer = Completer(model, [(None,)], 100_000)
    body = json.dumps(request(tensor("id", "INT64", [1] * 1000))).encode()
    wanted = completer.infer(body, Encoding.JSON, NO_JSON_HEADER)
    assert wanted is not None
    row = Found(Source.CACHE, ((1000).to_bytes(4, "little") + b"x" * 1000,))
    with pytest.raises(InvalidInput, match="ask for fewer rows"):
        wanted.complete({0: [row] * 1000})


@pytest.mark.parametrize(
    ("key", "source", "error", "message"),
    [
        (9, None, MissingFeature, "view users has no entity user_id = 9, and users.age has no default"),
        (3, None, MissingFeature, "view users has a null for user_id = 3, and users.age has no default"),
        (1, Source.NOWHERE, FeaturesUnavailable, "input 'age': the store of view users does not answer"),
    ],
)
def test_what_has_no_default_refuses(key: int, source: Source | None, error: type[RequestError], message: str) -> None:
    given = [tensor("hours", "FP64", [0.0] * 4, [1, 4])]
    with pytest.raises(error, match=message):
        completed(
            request(x(1), tensor("user_id", "INT64", [key]), *given),
            sources={} if source is None else {(0, (key,)): source},
        )


@pytest.mark.parametrize("source", [Source.MISSING, Source.NOWHERE])
def test_what_has_defaults_goes_on_with_them(source: Source) -> None:
    given = [tensor("hours", "FP64", [0.0] * 4, [1, 4]), tensor("age", "INT32", [5], [1, 1])]
    document = request(x(1), tensor("user_id", "INT64", [9]), *given, parameters={"feature_status": True})
    body = completed(document, sources={(0, (9,)): source})
    np.testing.assert_array_equal(arrays(body)[1], [[0.5, -1.0]])
    status = InferCodec("m", "1", SIGNATURE).decode(body, Encoding.MSGPACK).feature_status
    assert status == {"users.karma": [source.value], "users.score": [source.value]}


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Source.MISSING, MissingFeature, "view visits has no entity user_id = 1, day = 'tuesday'"),
        (Source.NOWHERE, FeaturesUnavailable, "the store of view visits does not answer"),
    ],
)
def test_a_view_may_refuse_instead_of_defaults(source: Source, error: type[RequestError], message: str) -> None:
    document = request(x(1), tensor("user_id", "INT64", [1]), tensor("weekday", "BYTES", ["tuesday"]))
    with pytest.raises(error, match=message):
        completed(document, sources={(1, (1, "tuesday")): source})


# -- v1 -------------------------------------------------------------------------------------------------------------
def predicted(document: dict[str, Any], encoding: Encoding = Encoding.JSON) -> list[np.ndarray[Any, Any]]:
    body = json.dumps(document).encode() if encoding is Encoding.JSON else msgpack.packb(document)
    wanted = COMPLETER.predict(body, encoding)
    assert wanted is not None
    return list(PredictCodec(SIGNATURE).decode(complete(wanted), Encoding.MSGPACK).inputs)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_instances_and_columns_are_completed(encoding: Encoding) -> None:
    expected = arrays(completed(TWO))
    rows = [
        {"x": [0.0, 1.0], "user_id": 1, "weekday": "monday"},
        {"x": [2.0, 3.0], "user_id": [2], "weekday": "monday"},
    ]
    columns = {"x": [[0.0, 1.0], [2.0, 3.0]], "user_id": [1, [2]], "weekday": ["monday", "monday"]}
    for document in ({"instances": rows}, {"inputs": columns}):
        for got, want in zip(predicted(document, encoding), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        5,
        {"instances": []},
        {"instances": [1.0]},
        {"instances": 5},
        {"inputs": [1]},
        {"instances": [{"x": [1.0, 2], "pair": [1.0, 2], "age": 1, "hours": [1.0, 2, 3, 4]}]},
    ],
)
def test_v1_that_is_complete_or_not_understood_is_left_to_the_worker(document: Any) -> None:
    assert COMPLETER.predict(json.dumps(document).encode(), Encoding.JSON) is None


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ({"instances": [{"x": [1.0, 2]}, {"user_id": 1}]}, InvalidInput, "the same fields in every element"),
        ({"instances": [{"x": [1.0, 2], "user_id": "a"}]}, InvalidInput, "field 'user_id' element 0"),
        ({"instances": [{"x": [1.0, 2]}]}, MissingFeature, "'user_id'"),
        ({"inputs": {"x": [[1.0, 2]], "user_id": 1}}, InvalidInput, "expected a list of keys, received int"),
        ({"inputs": {"x": [[1.0, 2]], "user_id": []}}, MissingFeature, "'weekday'"),
    ],
)
def test_v1_that_is_wrong_is_named(document: Any, error: type[RequestError], message: str) -> None:
    with pytest.raises(error, match=message):
        COMPLETER.predict(json.dumps(document).encode(), Encoding.JSON)


def test_no_rows_are_refused() -> None:
    document = {"inputs": {"x": [], "user_id": [], "weekday": []}}
    with pytest.raises(InvalidInput, match=r"expected 1 to 20000 rows.*received 0"):
        COMPLETER.predict(json.dumps(document).encode(), Encoding.JSON)


def test_a_model_without_features_needs_nothing() -> None:
    assert model_features(Signature((TensorSpec("x", "FP64", (-1, 2)),), ()), FEATURES, 1) is None
