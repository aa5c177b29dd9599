"""The front's own answers: metadata, configuration, statistics, readiness. Pure: deployment in, plain values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from host.config.deployment import DeployedModel
from host.config.features import Features, feature_refs, input_datatype
from host.protocol.types import TensorSpec

SERVER_NAME: Final = "modelhost"
EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "schedule_policy", "statistics")
"""Extensions of the Open Inference Protocol that work here, and no other."""

NO_FEATURES: Final = Features()
_CONFIG_NAMES: Final = {"BYTES": "TYPE_STRING"}


def server_metadata(version: str) -> dict[str, Any]:
    """`GET /v2`."""
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


def health(live: bool, ready: bool) -> dict[str, bool]:
    """`GET /v2/health/live` and `/ready`: clients read either key of either."""
    return {"live": live, "ready": ready}


def model_metadata(model: DeployedModel, versions: Sequence[str], features: Features = NO_FEATURES) -> dict[str, Any]:
    """`GET /v2/models/{m}`; `versions`: all that are deployed.

    An input that is fetched when it is left out says so in its parameters, and by which inputs.
    """
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": model.platform,
        "inputs": [_input(spec, features) for spec in model.signature.inputs],
        "outputs": [_tensor(spec) for spec in model.signature.outputs],
    }


def model_config(model: DeployedModel) -> dict[str, Any]:
    """`GET /v2/models/{m}/config`: dims leave the batch dimension out if there is one (`max_batch_size` > 0)."""
    batchable = model.signature.batchable
    return {
        "name": model.name,
        "platform": model.platform,
        "backend": model.platform.partition("_")[0],
        "version_policy": {"specific": {"versions": [model.version]}},
        "max_batch_size": model.limits.max_batch_rows if batchable else 0,
        "input": [_config_tensor(spec, batchable) for spec in model.signature.inputs],
        "output": [_config_tensor(spec, batchable) for spec in model.signature.outputs],
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": model.processes}],
    }


def model_statistics(workers: Iterable[Mapping[str, Any]], model: DeployedModel) -> dict[str, Any]:
    """One entry of `model_stats`: the counters of a version's workers, added together."""
    total: dict[str, Any] = {
        "name": model.name,
        "version": model.version,
        "last_inference": 0,
        "inference_count": 0,
        "execution_count": 0,
        "inference_stats": {
            stage: {"count": 0, "ns": 0}
            for stage in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        },
        "batch_stats": [],
    }
    for worker in workers:
        total["last_inference"] = max(total["last_inference"], worker["last_inference"])
        for key in ("inference_count", "execution_count"):
            total[key] += worker[key]
        for stage, duration in worker["inference_stats"].items():
            total["inference_stats"][stage]["count"] += duration["count"]
            total["inference_stats"][stage]["ns"] += duration["ns"]
    return total


def repository_index(models: Iterable[tuple[DeployedModel, str | None]], only_ready: bool) -> list[dict[str, str]]:
    """`POST /v2/repository/index`; each model with why it is not ready, or None."""
    return [
        {
            "name": model.name,
            "version": model.version,
            "state": "READY" if reason is None else "UNAVAILABLE",
            "reason": reason or "",
        }
        for model, reason in models
        if reason is None or not only_ready
    ]


def v1_model_status(models: Iterable[tuple[DeployedModel, bool]]) -> dict[str, Any]:
    """`GET /v1/models/{m}`, as TensorFlow Serving writes it, with KServe's `name` and `ready` beside it."""
    versions = list(models)
    return {
        "name": versions[0][0].name,
        "ready": any(ready for _, ready in versions),
        "model_version_status": [
            {
                "version": model.version,
                "state": "AVAILABLE" if ready else "LOADING",
                "status": {"error_code": "OK", "error_message": ""},
            }
            for model, ready in versions
        ],
    }


def feature_views(features: Features) -> dict[str, Any]:
    """`GET /v1/features`: what there is to read."""
    return {
        "views": [
            {
                "name": view.name,
                "keys": [{"name": key.column, "datatype": key.datatype} for key in view.keys],
                "features": [
                    {"name": column.name, "datatype": column.datatype, "shape": list(column.shape)}
                    for column in view.columns
                ],
            }
            for view in features.views
        ]
    }


def _input(spec: TensorSpec, features: Features) -> dict[str, Any]:
    if not spec.features:
        return _tensor(spec)
    views = [view for ref in feature_refs(spec) if (view := features.view(ref.view)) is not None]
    keys = {key.input: {"name": key.input, "datatype": input_datatype(key)} for view in views for key in view.keys}
    return _tensor(spec) | {"parameters": {"features": list(spec.features), "keys": list(keys.values())}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _config_tensor(spec: TensorSpec, batchable: bool) -> dict[str, Any]:
    dims = spec.shape[1:] if batchable else spec.shape
    # The protocol has no empty dims: a batch of scalars is written as one element per row.
    return {
        "name": spec.name,
        "data_type": _CONFIG_NAMES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": list(dims) or [1],
    }
