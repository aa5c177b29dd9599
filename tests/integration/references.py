"""The bundled models called directly, through their own libraries, on rows of their own data sets."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

Arrays = dict[str, NDArray[Any]]
ROWS = 200


@dataclass(frozen=True)
class Reference:
    """Rows for a model, and what its library says to them."""

    model: str
    datatypes: dict[str, str]
    inputs: Arrays
    outputs: Arrays
    tolerance: float

    def rows(self, start: int, end: int) -> Arrays:
        """Some of the rows."""
        return {name: array[start:end] for name, array in self.inputs.items()}

    def compare(self, received: dict[str, Any], start: int, end: int) -> None:
        """Compare outputs for some of the rows: numbers within the tolerance, texts exactly."""
        assert received.keys() == self.outputs.keys()
        for name, expected in self.outputs.items():
            want, got = expected[start:end], np.asarray(received[name])
            assert got.size == want.size, name
            if got.dtype.kind in "OS":
                got = np.array([text.decode() if isinstance(text, bytes) else text for text in got.ravel()])
            got = got.reshape(want.shape)
            if want.dtype.kind == "f":
                assert np.abs(got - want).max() <= self.tolerance, name
            else:
                assert (got == want).all(), name


def breast_cancer(package: Path) -> Reference:
    """LightGBM in FP64."""
    rows = load_breast_cancer().data[:ROWS]
    scores = np.asarray(lightgbm.Booster(model_file=str(package / "model.txt")).predict(rows, num_threads=1))
    return Reference("breast_cancer", {"features": "FP64"}, {"features": rows}, {"probability": scores[:, None]}, 1e-9)


def digits(package: Path) -> Reference:
    """ONNX in FP32."""
    rows = load_digits().data[:ROWS].astype(np.float32)
    session = onnxruntime.InferenceSession(str(package / "model.onnx"), providers=["CPUExecutionProvider"])
    probabilities, label = session.run(["probabilities", "label"], {"image": rows})
    return Reference(
        "digits", {"image": "FP32"}, {"image": rows}, {"probabilities": probabilities, "label": label}, 1e-5
    )


def diabetes(package: Path) -> Reference:
    """The package's own class, ten named columns and texts in its answer."""
    spec = importlib.util.spec_from_file_location("diabetes_reference", package / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Model()
    model.load(package)
    data = load_diabetes(scaled=False)
    inputs = {name: data.data[:ROWS, [column]] for column, name in enumerate(data.feature_names)}
    outputs = model.predict(inputs)
    outputs["risk_band"] = outputs["risk_band"].astype(str)
    return Reference("diabetes", dict.fromkeys(inputs, "FP64"), inputs, outputs, 1e-9)


REFERENCES: dict[str, Callable[[Path], Reference]] = {
    "breast_cancer": breast_cancer,
    "digits": digits,
    "diabetes": diabetes,
}
