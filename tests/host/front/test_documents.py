"""The front's own documents, against the forms that clients expect."""

from __future__ import annotations

import pytest

from host.config.deployment import DeployedModel, Deployment
from host.front import documents
from host.front.catalog import Catalog
from host.protocol.errors import UnknownModel, UnknownVersion
from host.protocol.messages import Limits
from host.protocol.types import Signature, TensorSpec


def deployed(name: str = "churn", version: str = "3", default: bool = True, rows: bool = True) -> DeployedModel:
    lead = (-1,) if rows else ()
    signature = Signature(
        inputs=(TensorSpec("features", "FP64", (*lead, 30)), TensorSpec("text", "BYTES", (*lead, 1))),
        outputs=(TensorSpec("label", "INT64", lead or (1,)),),
    )
    return DeployedModel(
        name=name,
        version=version,
        processes=2,
        package=f"/models/{name}/{version}",
        platform="onnxruntime_onnx",
        signature=signature,
        limits=Limits(max_batch_rows=64),
        default=default,
    )


def test_metadata_shows_the_batch_dimension() -> None:
    assert documents.model_metadata(deployed(), ["3", "2"]) == {
        "name": "churn",
        "versions": ["3", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "features", "datatype": "FP64", "shape": [-1, 30]},
            {"name": "text", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
    }


def test_config_leaves_the_batch_dimension_out() -> None:
    config = documents.model_config(deployed())
    assert config["max_batch_size"] == 64
    assert config["input"][0] == {"name": "features", "data_type": "TYPE_FP64", "dims": [30]}
    assert config["input"][1]["data_type"] == "TYPE_STRING"
    assert config["output"][0] == {"name": "label", "data_type": "TYPE_INT64", "dims": [1]}


def test_config_of_a_model_without_batches_keeps_its_dims() -> None:
    config = documents.model_config(deployed(rows=False))
    assert config["max_batch_size"] == 0
    assert config["input"][0]["dims"] == [30]


def test_statistics_of_workers_are_added_together() -> None:
    worker = {
        "last_inference": 5,
        "inference_count": 10,
        "execution_count": 2,
        "inference_stats": {"success": {"count": 3, "ns": 100}},
    }
    later = {**worker, "last_inference": 9}
    total = documents.model_statistics([worker, later], deployed())
    assert (total["last_inference"], total["inference_count"], total["execution_count"]) == (9, 20, 4)
    assert total["inference_stats"]["success"] == {"count": 6, "ns": 200}
    assert total["inference_stats"]["fail"] == {"count": 0, "ns": 0}


def test_repository_index_can_leave_out_what_is_not_ready() -> None:
    models = [(deployed("a"), None), (deployed("b"), "no worker is ready")]
    assert [entry["state"] for entry in documents.repository_index(models, only_ready=False)] == [
        "READY",
        "UNAVAILABLE",
    ]
    assert [entry["name"] for entry in documents.repository_index(models, only_ready=True)] == ["a"]


def test_catalog_finds_the_default_and_each_version() -> None:
    catalog = Catalog(Deployment((deployed(version="2", default=False), deployed(version="3"))))
    assert catalog.find("churn").version == "3"
    assert catalog.find("churn", "2").version == "2"


def test_catalog_names_what_is_deployed() -> None:
    catalog = Catalog(Deployment((deployed(),)))
    with pytest.raises(UnknownModel, match="unknown model 'chum': deployed here: churn"):
        catalog.find("chum")
    with pytest.raises(UnknownVersion, match="no version '9' here: expected one of 3"):
        catalog.find("churn", "9")


def test_catalog_of_nothing_says_so() -> None:
    with pytest.raises(UnknownModel, match="deployed here: none"):
        Catalog(Deployment()).find("churn")
