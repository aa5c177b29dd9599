"""`tritonclient` as a client that others wrote: sync and aio, binary and JSON, compressed, and its errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import RunningHost, until
from numpy.typing import NDArray
from references import REFERENCES, Reference
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, aio
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.integration

LIMIT_S = 10.0

both_forms = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


@pytest.fixture
def client(host: RunningHost) -> Iterator[InferenceServerClient]:
    """Give a client that gives up after a while."""
    with InferenceServerClient(host.address, connection_timeout=LIMIT_S, network_timeout=LIMIT_S) as client:
        yield client


@pytest.fixture
async def aclient(host: RunningHost) -> AsyncIterator[aio.InferenceServerClient]:
    """Give the asynchronous client."""
    async with aio.InferenceServerClient(host.address, conn_timeout=LIMIT_S) as client:
        yield client


@pytest.fixture(scope="module")
def cancer(bundled: Path) -> Reference:
    """Give the LightGBM model's rows and answers."""
    return REFERENCES["breast_cancer"](bundled / "breast_cancer" / "1")


@pytest.fixture(scope="module")
def digits(bundled: Path) -> Reference:
    """Give the ONNX model's."""
    return REFERENCES["digits"](bundled / "digits" / "1")


@pytest.fixture(scope="module")
def diabetes(bundled: Path) -> Reference:
    """Give the Python model's."""
    return REFERENCES["diabetes"](bundled / "diabetes" / "1")


def inputs(reference: Reference, start: int = 0, end: int = 4, *, binary: bool = True) -> list[InferInput]:
    tensors = []
    for name, array in reference.rows(start, end).items():
        tensor = InferInput(name, list(array.shape), reference.datatypes[name])
        tensor.set_data_from_numpy(np.ascontiguousarray(array), binary_data=binary)
        tensors.append(tensor)
    return tensors


def tensor(name: str, array: NDArray[Any], datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def texts(*values: str | bytes) -> NDArray[Any]:
    return np.array(values, dtype=np.object_).reshape(-1, 1)


def decoded(array: NDArray[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else value for value in array.ravel()]


# -- everything but inference -----------------------------------------------------------------------------
def test_health(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("digits", "2")
    assert not client.is_model_ready("nobody")


def test_metadata(client: InferenceServerClient) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "modelhost"
    assert "binary_tensor_data" in server["extensions"]
    assert client.get_model_metadata("digits", "1") == {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert client.get_model_metadata("digits") == client.get_model_metadata("digits", "1")


def test_config(client: InferenceServerClient) -> None:
    config = client.get_model_config("diabetes")
    assert (config["name"], config["platform"], config["max_batch_size"]) == ("diabetes", "python", 256)
    assert config["input"][0] == {"name": "age", "data_type": "TYPE_FP64", "dims": [1]}
    assert {"name": "risk_band", "data_type": "TYPE_STRING", "dims": [1]} in config["output"]
    assert client.get_model_config("diabetes", "1") == config


def test_statistics_count_rows_and_requests(client: InferenceServerClient, cancer: Reference) -> None:
    def told() -> tuple[int, int]:
        (statistics,) = client.get_inference_statistics("breast_cancer", "1")["model_stats"]
        assert (statistics["name"], statistics["version"]) == ("breast_cancer", "1")
        return statistics["inference_count"], statistics["inference_stats"]["success"]["count"]

    client.infer("breast_cancer", inputs(cancer, 0, 1))
    # A worker that does not answer within a second is left out of the sums: what is there is the most that is told.
    rows, requests = max(told() for _ in range(3))
    client.infer("breast_cancer", inputs(cancer, 0, 5))
    client.infer("breast_cancer", inputs(cancer, 5, 6))
    until(lambda: told() == (rows + 6, requests + 2), "both are counted")


def test_statistics_of_all_models(client: InferenceServerClient) -> None:
    statistics = client.get_inference_statistics()["model_stats"]
    assert {"breast_cancer", "digits", "diabetes"} <= {entry["name"] for entry in statistics}


def test_repository_index(client: InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert {"name": "digits", "version": "1", "state": "READY", "reason": ""} in index


# -- inference --------------------------------------------------------------------------------------------
@both_forms
def test_infer_lightgbm(client: InferenceServerClient, cancer: Reference, binary: bool) -> None:
    result = client.infer("breast_cancer", inputs(cancer, binary=binary), request_id="id-77")
    assert result.get_response()["id"] == "id-77"
    assert result.get_response()["model_name"] == "breast_cancer"
    cancer.compare({"probability": result.as_numpy("probability")}, 0, 4)
    assert result.as_numpy("nothing") is None


@pytest.mark.parametrize("outputs_binary", [True, False])
@both_forms
def test_infer_chosen_outputs(
    client: InferenceServerClient, digits: Reference, binary: bool, outputs_binary: bool
) -> None:
    asked = [InferRequestedOutput(name, binary_data=outputs_binary) for name in ("label", "probabilities")]
    result = client.infer("digits", inputs(digits, binary=binary), model_version="1", outputs=asked)
    answer = result.get_response()
    assert [output["name"] for output in answer["outputs"]] == ["label", "probabilities"]
    for output in answer["outputs"]:
        assert ("data" in output) is not outputs_binary
    digits.compare({name: result.as_numpy(name) for name in digits.outputs}, 0, 4)
    only = client.infer("digits", inputs(digits, binary=binary), outputs=asked[:1])
    assert [output["name"] for output in only.get_response()["outputs"]] == ["label"]


def test_one_output_binary_and_one_in_json(client: InferenceServerClient, digits: Reference) -> None:
    asked = [InferRequestedOutput("probabilities", binary_data=False), InferRequestedOutput("label", binary_data=True)]
    result = client.infer("digits", inputs(digits), outputs=asked)
    digits.compare({name: result.as_numpy(name) for name in digits.outputs}, 0, 4)
    assert [set(output) & {"data", "parameters"} for output in result.get_response()["outputs"]] == [
        {"data"},
        {"parameters"},
    ]


def test_binary_and_json_inputs_mixed(client: InferenceServerClient, diabetes: Reference) -> None:
    tensors = [
        tensor(name, np.ascontiguousarray(array), "FP64", binary=bool(position % 2))
        for position, (name, array) in enumerate(diabetes.rows(0, 7).items())
    ]
    result = client.infer("diabetes", tensors)
    diabetes.compare({name: result.as_numpy(name) for name in diabetes.outputs}, 0, 7)


@pytest.mark.parametrize("outputs_binary", [True, False])
def test_bytes_outputs(client: InferenceServerClient, diabetes: Reference, outputs_binary: bool) -> None:
    asked = [InferRequestedOutput("risk_band", binary_data=outputs_binary)]
    result = client.infer("diabetes", inputs(diabetes, 0, 50), outputs=asked)
    assert decoded(result.as_numpy("risk_band")) == diabetes.outputs["risk_band"][:50].ravel().tolist()


@both_forms
def test_bytes_inputs(client: InferenceServerClient, binary: bool) -> None:
    given = texts("abc", "", "größe", "x" * 70_000, 'tab\t"quote"\n')
    result = client.infer("texts", [tensor("text", given, "BYTES", binary=binary)])
    upper = [text.encode().upper() for text in given.ravel()]
    assert [text.encode() for text in decoded(result.as_numpy("upper"))] == upper
    assert result.as_numpy("length").ravel().tolist() == [len(text) for text in upper]


def test_bytes_that_are_no_text_travel_binary_only(client: InferenceServerClient) -> None:
    given = tensor("text", texts(b"\xff\x00\xfe"), "BYTES")
    assert client.infer("texts", [given]).as_numpy("upper").ravel().tolist() == [b"\xff\x00\xfe"]
    with pytest.raises(InferenceServerException, match=r"'upper'.*not UTF-8") as failure:
        client.infer("texts", [given], outputs=[InferRequestedOutput("upper", binary_data=False)])
    assert failure.value.status() == "422"


def test_every_datatype_binary(client: InferenceServerClient) -> None:
    given = {
        "flag": (np.array([[True, False]]), "BOOL"),
        "small": (np.array([[-128, 127]], dtype=np.int8), "INT8"),
        "large": (np.array([[0, 2**64 - 1]], dtype=np.uint64), "UINT64"),
        "half": (np.array([[0.5, -2.0]], dtype=np.float16), "FP16"),
        "single": (np.array([[np.nan, -np.inf]], dtype=np.float32), "FP32"),
    }
    result = client.infer("typed", [tensor(name, array, datatype) for name, (array, datatype) in given.items()])
    for name, (array, _) in given.items():
        received = result.as_numpy(f"{name}_back")
        assert received.dtype == array.dtype
        np.testing.assert_array_equal(received, array)


def test_a_raw_request(client: InferenceServerClient, host: RunningHost, digits: Reference) -> None:
    rows = digits.inputs["image"][:3]
    answer = host.infer("digits", rows.tobytes(), Inference_Header_Content_Length="0")
    assert answer.status == 200, answer.body
    result = InferenceServerClient.parse_response_body(
        answer.body, header_length=int(answer.headers["inference-header-content-length"])
    )
    digits.compare({name: result.as_numpy(name) for name in digits.outputs}, 0, 3)


def test_a_body_that_the_client_generated(host: RunningHost, digits: Reference) -> None:
    body, json_bytes = InferenceServerClient.generate_request_body(inputs(digits, 3, 9), request_id="generated")
    answer = host.infer("digits", bytes(body), Inference_Header_Content_Length=str(json_bytes))
    result = InferenceServerClient.parse_response_body(
        answer.body, header_length=int(answer.headers["inference-header-content-length"])
    )
    assert result.get_response()["id"] == "generated"
    digits.compare({name: result.as_numpy(name) for name in digits.outputs}, 3, 9)


@both_forms
@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression(
    client: InferenceServerClient,
    digits: Reference,
    binary: bool,
    request_coding: str | None,
    response_coding: str | None,
) -> None:
    result = client.infer(
        "digits",
        inputs(digits, 0, 64, binary=binary),
        outputs=[InferRequestedOutput(name, binary_data=binary) for name in digits.outputs],
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    digits.compare({name: result.as_numpy(name) for name in digits.outputs}, 0, 64)


def test_asynchronous_requests_of_the_sync_client(host: RunningHost, cancer: Reference) -> None:
    with InferenceServerClient(host.address, concurrency=8, network_timeout=LIMIT_S) as client:
        requests = [client.async_infer("breast_cancer", inputs(cancer, row, row + 1)) for row in range(40)]
        for row, request in enumerate(requests):
            result = request.get_result(timeout=LIMIT_S)
            cancer.compare({"probability": result.as_numpy("probability")}, row, row + 1)


# -- errors -----------------------------------------------------------------------------------------------
def wrong_width() -> list[InferInput]:
    return [tensor("image", np.zeros((1, 63), dtype=np.float32), "FP32")]


def wrong_datatype() -> list[InferInput]:
    return [tensor("image", np.zeros((1, 64)), "FP64")]


def wrong_name() -> list[InferInput]:
    return [tensor("picture", np.zeros((1, 64), dtype=np.float32), "FP32")]


ERRORS = [
    pytest.param("nobody", "", wrong_width, "404", "unknown model 'nobody'", id="unknown-model"),
    pytest.param("digits", "9", wrong_width, "404", "model 'digits' has no version '9'", id="unknown-version"),
    pytest.param(
        "digits", "", wrong_width, "422", r"input 'image': expected shape \[-1, 64\], received \[1, 63\]", id="shape"
    ),
    pytest.param(
        "digits", "", wrong_datatype, "422", "input 'image': expected datatype FP32, received 'FP64'", id="datatype"
    ),
    pytest.param("digits", "", wrong_name, "422", "unknown input 'picture': expected 'image'", id="unknown-input"),
]


@pytest.mark.parametrize(("model", "version", "make", "status", "message"), ERRORS)
def test_errors(client: InferenceServerClient, model: str, version: str, make: Any, status: str, message: str) -> None:
    with pytest.raises(InferenceServerException, match=message) as failure:
        client.infer(model, make(), model_version=version)
    assert failure.value.status() == status


@pytest.mark.parametrize(("model", "version", "make", "status", "message"), ERRORS)
async def test_errors_aio(
    aclient: aio.InferenceServerClient, model: str, version: str, make: Any, status: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message) as failure:
        await aclient.infer(model, make(), model_version=version)
    assert failure.value.status() == status


def test_errors_of_the_other_endpoints(client: InferenceServerClient) -> None:
    for ask in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        with pytest.raises(InferenceServerException, match="unknown model 'nobody': deployed here: ") as failure:
            ask("nobody")
        assert failure.value.status() == "404"


def test_an_unknown_output_is_named(client: InferenceServerClient, digits: Reference) -> None:
    with pytest.raises(InferenceServerException, match="unknown output 'nothing': expected 'probabilities', 'label'"):
        client.infer("digits", inputs(digits), outputs=[InferRequestedOutput("nothing")])


def test_loading_is_not_on_the_public_port(client: InferenceServerClient) -> None:
    for ask in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="no such path: /v2/repository/models/digits"):
            ask("digits")


# -- aio --------------------------------------------------------------------------------------------------
async def test_everything_but_inference_aio(aclient: aio.InferenceServerClient) -> None:
    assert await aclient.is_server_live()
    assert await aclient.is_server_ready()
    assert await aclient.is_model_ready("digits", "1")
    assert not await aclient.is_model_ready("nobody")
    assert (await aclient.get_server_metadata())["name"] == "modelhost"
    assert (await aclient.get_model_metadata("digits"))["name"] == "digits"
    assert (await aclient.get_model_config("digits"))["max_batch_size"] == 256
    assert (await aclient.get_inference_statistics("digits"))["model_stats"][0]["name"] == "digits"
    assert await aclient.get_model_repository_index()


@both_forms
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
async def test_infer_aio(
    aclient: aio.InferenceServerClient, digits: Reference, binary: bool, coding: str | None
) -> None:
    result = await aclient.infer(
        "digits",
        inputs(digits, 0, 64, binary=binary),
        request_id="aio",
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert result.get_response()["id"] == "aio"
    digits.compare({name: result.as_numpy(name) for name in digits.outputs}, 0, 64)


@pytest.mark.parametrize("model", list(REFERENCES))
async def test_200_concurrent_aio(host: RunningHost, bundled: Path, model: str) -> None:
    reference = REFERENCES[model](bundled / model / "1")
    async with aio.InferenceServerClient(host.address, conn_limit=64, conn_timeout=LIMIT_S) as client:

        async def one(row: int) -> None:
            # One to three rows each, so that batches are split at odd places.
            end = min(row + 1 + row % 3, 200)
            result = await client.infer(model, inputs(reference, row, end), request_id=str(row))
            assert result.get_response()["id"] == str(row)
            reference.compare({name: result.as_numpy(name) for name in reference.outputs}, row, end)

        async with asyncio.timeout(30):
            await asyncio.gather(*map(one, range(200)))
