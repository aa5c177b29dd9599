"""What the host answers is what the model's own library says, in every form, alone and in a batch."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import numpy as np
import pytest
from hosts import Answer, RunningHost
from references import REFERENCES, Arrays, Reference
from tritonclient.http import InferenceServerClient, InferInput

pytestmark = pytest.mark.integration

SLICES = ((0, 1), (7, 8), (0, 64), (100, 200))
MSGPACK = {"Content-Type": "application/msgpack"}

each_slice = pytest.mark.parametrize(("start", "end"), SLICES)


@pytest.fixture(scope="module", params=list(REFERENCES))
def reference(request: pytest.FixtureRequest, bundled: Path) -> Reference:
    """Give one bundled model after the other."""
    return REFERENCES[request.param](bundled / request.param / "1")


def document(reference: Reference, rows: Arrays, data: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": name, "shape": list(array.shape), "datatype": reference.datatypes[name], "data": data(array)}
            for name, array in rows.items()
        ]
    }


def flat(array: Any) -> Any:
    return array.ravel().tolist()


def nested(array: Any) -> Any:
    return array.tolist()


def outputs_of(answer: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in answer["outputs"]}


def unpacked(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/msgpack"
    return dict(msgpack.unpackb(answer.body))


@each_slice
@pytest.mark.parametrize("data", [flat, nested])
def test_json(host: RunningHost, reference: Reference, start: int, end: int, data: Callable[[Any], Any]) -> None:
    answer = host.infer(reference.model, document(reference, reference.rows(start, end), data))
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.document["model_name"] == reference.model
    assert answer.document["model_version"] == "1"
    reference.compare(outputs_of(answer.document), start, end)


@each_slice
@pytest.mark.parametrize("data", [flat, nested, lambda array: array.tobytes()], ids=["flat", "nested", "bin"])
def test_msgpack(host: RunningHost, reference: Reference, start: int, end: int, data: Callable[[Any], Any]) -> None:
    body = msgpack.packb(document(reference, reference.rows(start, end), data))
    answer = host.call("POST", f"/v2/models/{reference.model}/infer", body, MSGPACK)
    reference.compare(outputs_of(unpacked(answer)), start, end)


def test_msgpack_with_binary_outputs(host: RunningHost, reference: Reference) -> None:
    request = document(reference, reference.rows(0, 64), flat) | {"parameters": {"binary_data_output": True}}
    answer = unpacked(host.call("POST", f"/v2/models/{reference.model}/infer", msgpack.packb(request), MSGPACK))
    dtypes = {"FP64": "<f8", "FP32": "<f4", "INT64": "<i8"}
    received = {}
    for output in answer["outputs"]:
        assert isinstance(output["data"], bytes)
        if output["datatype"] == "BYTES":
            received[output["name"]] = bytes_elements(output["data"])
        else:
            received[output["name"]] = np.frombuffer(output["data"], dtypes[output["datatype"]])
    reference.compare(received, 0, 64)


def bytes_elements(data: bytes) -> list[str]:
    """BYTES: for each element a length and so many bytes."""
    elements = []
    while data:
        size = int.from_bytes(data[:4], "little")
        elements.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return elements


@each_slice
def test_tritonclient_binary(host: RunningHost, reference: Reference, start: int, end: int) -> None:
    tensors = []
    for name, array in reference.rows(start, end).items():
        tensor = InferInput(name, list(array.shape), reference.datatypes[name])
        tensor.set_data_from_numpy(np.ascontiguousarray(array), binary_data=True)
        tensors.append(tensor)
    with InferenceServerClient(host.address) as client:
        result = client.infer(reference.model, tensors)
        received = {name: result.as_numpy(name) for name in reference.outputs}
    reference.compare(received, start, end)


async def test_64_concurrent_single_rows(host: RunningHost, reference: Reference) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(row: int) -> None:
            body = document(reference, reference.rows(row, row + 1), flat)
            async with session.post(f"{host.url}/v2/models/{reference.model}/infer", json=body) as response:
                assert response.status == 200
                reference.compare(outputs_of(await response.json()), row, row + 1)

        async with asyncio.timeout(30):
            await asyncio.gather(*map(one, range(64)))


# -- v1 ---------------------------------------------------------------------------------------------------
def predictions(reference: Reference, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer of v1 as outputs by name: rows as objects, or the only output by itself."""
    assert answer.keys() == {"predictions"}
    values = answer["predictions"]
    if len(reference.outputs) == 1:
        return {next(iter(reference.outputs)): values}
    if isinstance(values, list):
        return {name: [row[name] for row in values] for name in reference.outputs}
    return dict(values)


def instances(reference: Reference, start: int, end: int) -> list[Any]:
    rows = reference.rows(start, end)
    if len(rows) == 1:
        return list(next(iter(rows.values())).tolist())
    return [{name: array[row].tolist() for name, array in rows.items()} for row in range(end - start)]


@each_slice
def test_v1_instances(host: RunningHost, reference: Reference, start: int, end: int) -> None:
    answer = host.call("POST", f"/v1/models/{reference.model}:predict", {"instances": instances(reference, start, end)})
    assert answer.status == 200, answer.body
    reference.compare(predictions(reference, answer.document), start, end)


@each_slice
def test_v1_inputs(host: RunningHost, reference: Reference, start: int, end: int) -> None:
    inputs = {name: array.tolist() for name, array in reference.rows(start, end).items()}
    answer = host.call("POST", f"/v1/models/{reference.model}/versions/1:predict", {"inputs": inputs})
    assert answer.status == 200, answer.body
    received = predictions(reference, answer.document)
    reference.compare(received, start, end)


def test_v1_inputs_without_a_name(host: RunningHost, reference: Reference) -> None:
    rows = next(iter(reference.rows(0, 3).values())).tolist()
    answer = host.call("POST", f"/v1/models/{reference.model}:predict", {"inputs": rows})
    if len(reference.inputs) > 1:
        assert answer.error == (422, "INVALID_INPUT")
        assert all(f"'{name}'" in answer.document["error"] for name in reference.inputs)
    else:
        reference.compare(predictions(reference, answer.document), 0, 3)


def test_v1_msgpack(host: RunningHost, reference: Reference) -> None:
    body = msgpack.packb({"instances": instances(reference, 0, 5)})
    answer = host.call("POST", f"/v1/models/{reference.model}:predict", body, MSGPACK)
    reference.compare(predictions(reference, unpacked(answer)), 0, 5)


def test_v1_scalars_as_rows(host: RunningHost, bundled: Path) -> None:
    reference = REFERENCES["diabetes"](bundled / "diabetes" / "1")
    rows = [{name: float(array[row, 0]) for name, array in reference.inputs.items()} for row in range(4)]
    answer = host.call("POST", "/v1/models/diabetes:predict", {"instances": rows})
    reference.compare(predictions(reference, answer.document), 0, 4)


# -- encodings and compression ----------------------------------------------------------------------------
def test_accept_msgpack_for_json(host: RunningHost, reference: Reference) -> None:
    answer = host.infer(
        reference.model, document(reference, reference.rows(0, 2), flat), Accept="application/x-msgpack"
    )
    reference.compare(outputs_of(unpacked(answer)), 0, 2)


def test_accept_json_for_msgpack(host: RunningHost, reference: Reference) -> None:
    body = msgpack.packb(document(reference, reference.rows(0, 2), flat))
    headers = {"Content-Type": "application/x-msgpack", "Accept": "application/json"}
    answer = host.call("POST", f"/v2/models/{reference.model}/infer", body, headers)
    assert answer.headers["content-type"] == "application/json"
    reference.compare(outputs_of(answer.document), 0, 2)


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress)]
)
@pytest.mark.parametrize("path", ["/v2/models/{}/infer", "/v1/models/{}:predict"])
def test_compressed_requests(
    host: RunningHost, reference: Reference, coding: str, compress: Callable[[bytes], bytes], path: str
) -> None:
    if "v2" in path:
        body = document(reference, reference.rows(0, 64), flat)
    else:
        body = {"instances": instances(reference, 0, 64)}
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    answer = host.call("POST", path.format(reference.model), compress(json.dumps(body).encode()), headers)
    assert answer.status == 200, answer.body
    read = outputs_of if "v2" in path else lambda document: predictions(reference, document)
    reference.compare(read(answer.document), 0, 64)


@pytest.mark.parametrize(("coding", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_compressed_answers(
    host: RunningHost, reference: Reference, coding: str, decompress: Callable[[bytes], bytes]
) -> None:
    request = document(reference, reference.rows(0, 200), flat)
    answer = host.infer(reference.model, request, Accept_Encoding=coding)
    assert answer.headers["content-encoding"] == coding
    assert answer.headers["vary"] == "Accept-Encoding"
    reference.compare(outputs_of(json.loads(decompress(answer.body))), 0, 200)


@pytest.mark.parametrize("accepted", ["identity", "br", "gzip;q=0", "*;q=0", ""])
def test_large_answers_are_plain_unless_asked(host: RunningHost, reference: Reference, accepted: str) -> None:
    request = document(reference, reference.rows(0, 200), flat)
    answer = host.infer(reference.model, request, Accept_Encoding=accepted)
    assert "content-encoding" not in answer.headers
    reference.compare(outputs_of(answer.document), 0, 200)


def test_an_answer_compressed_off_the_loop(host: RunningHost) -> None:
    text = "".join(map(str, range(30_000)))
    body = {"inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [text + "a", "b" + text]}]}
    answer = host.infer("texts", body, Accept_Encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    document = json.loads(gzip.decompress(answer.body))
    assert outputs_of(document) == {"upper": [text + "A", "B" + text], "length": [len(text) + 1] * 2}
