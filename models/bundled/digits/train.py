"""Train `digits`: a small neural network that reads handwritten digits, as an ONNX graph.

The driver `../train.py` calls `train(out)`. The held-out quarter of the images serves for the metrics and the
golden cases only: nothing is tuned on it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler

FLOOR = {"accuracy": 0.95}
PIXELS = 64
BRIGHTEST = 16  # pixels are 0..16
OPSET = 17  # old enough for every onnxruntime that modelhost supports (1.17 and later)

Arrays = dict[str, NDArray[np.generic]]


def train(out: Path) -> dict[str, float]:
    """Write `model.onnx` and `golden.json` into `out`; return the metrics on the held-out images."""
    dataset = load_digits()
    images = dataset.data.astype(np.float32)
    fit_images, held_out, fit_labels, held_labels = train_test_split(
        images, dataset.target, test_size=0.25, random_state=0, stratify=dataset.target
    )
    graph = to_onnx(
        fit(fit_images, fit_labels),
        initial_types=[("image", FloatTensorType([None, PIXELS]))],  # None: any number of rows
        options={"zipmap": False},  # probabilities as a tensor, not as a list of dictionaries
        target_opset={"": OPSET, "ai.onnx.ml": 3},
    )
    (out / "model.onnx").write_bytes(graph.SerializeToString())

    answers = run(out / "model.onnx", held_out)  # what is measured is what will be served
    metrics = {"accuracy": float(accuracy_score(held_labels, answers["label"]))}
    check(metrics)
    write_golden(out, held_out, answers["probabilities"])
    return metrics


def fit(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Pipeline:
    """Fit 64 pixels -> 64 hidden units -> 10 classes; the scaling to 0..1 is part of the model."""
    scale = MinMaxScaler().fit(np.array([[0.0] * PIXELS, [BRIGHTEST] * PIXELS], dtype=np.float32))
    network = MLPClassifier((64,), learning_rate_init=0.005, tol=1e-3, max_iter=300, random_state=0)
    network.fit(scale.transform(images), labels)
    return Pipeline([("scale", scale), ("network", network)])


def run(path: Path, images: NDArray[np.float32], outputs: list[str] | None = None) -> Arrays:
    """Compute the graph's outputs (all, or those named) for images [n, 64] with onnxruntime in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = outputs or ["probabilities", "label"]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def check(metrics: dict[str, float]) -> None:
    """Raise RuntimeError for a model that came out worse than the floor."""
    for metric, floor in FLOOR.items():
        if not metrics[metric] >= floor:
            raise RuntimeError(f"digits: {metric} {metrics[metric]:.4f} is below its floor {floor}")


def write_golden(out: Path, images: NDArray[np.float32], probabilities: NDArray[np.generic]) -> None:
    """Record held-out images [n, 64] with the answers that onnxruntime itself gives for each request."""
    least_certain = np.argsort(probabilities.max(axis=1))[:1]
    cases = [
        golden_case(out, "one_image", images[:1]),
        golden_case(out, "least_certain", images[least_certain]),
        golden_case(out, "only_the_label", images[1:3], ["label"]),
        golden_case(out, "eight_images", images[:8]),
    ]
    (out / "golden.json").write_text('{"cases": [\n' + ",\n".join(map(json.dumps, cases)) + "\n]}\n")


def golden_case(
    out: Path, name: str, images: NDArray[np.float32], outputs: list[str] | None = None
) -> dict[str, object]:
    """Make one case: a request that asks for all outputs or for those named, and its answer."""
    request: dict[str, object] = {"inputs": [tensor("image", images)]}
    if outputs:
        request["outputs"] = [{"name": output} for output in outputs]
    answers = run(out / "model.onnx", images, outputs)
    return {
        "name": name,
        "request": request,
        "response": {"outputs": [tensor(output, values) for output, values in answers.items()]},
        "tolerance": {"absolute": 1e-5, "relative": 0},  # FP32: other CPUs add in another order
    }


def tensor(name: str, values: NDArray[np.generic]) -> dict[str, object]:
    """Write one tensor in the Open Inference Protocol's JSON: the data is row-major and flat."""
    datatype = {"float32": "FP32", "int64": "INT64"}[values.dtype.name]
    return {"name": name, "shape": list(values.shape), "datatype": datatype, "data": values.ravel().tolist()}
