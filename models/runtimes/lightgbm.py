"""LightGBM: a text model; the inputs are one numeric matrix, several, or named columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from host.protocol.errors import ConfigError
from host.protocol.package import Package
from host.protocol.tensors import Array
from models.runtimes.lightgbm_library import lightgbm
from models.runtimes.lightgbm_rows import ROWS_MAX, ROWS_MAX_THREADED, row_predictor


def load(directory: Path, package: Package) -> LightGBMRuntime:
    """Load `artifact` (written by `Booster.save_model`)."""
    path = directory / (package.artifact or "")
    try:
        booster = lightgbm.Booster(model_file=str(path))
    except lightgbm.basic.LightGBMError as error:
        raise ConfigError(f"{path}: not a LightGBM text model: {error}") from error
    return LightGBMRuntime(booster, _column_order(booster, package, str(path)), package)


class LightGBMRuntime:
    """A booster and the order in which its inputs make a matrix."""

    def __init__(self, booster: lightgbm.Booster, order: list[int], package: Package) -> None:
        self.version = f"lightgbm {lightgbm.__version__}"
        self._booster = booster
        self._order = order
        self._threads = package.resources.threads
        self._output_shape = package.signature.outputs[0].shape
        self._few = row_predictor(booster)
        self._few_rows = ROWS_MAX if self._threads == 1 else ROWS_MAX_THREADED

    def predict(self, inputs: Sequence[Array]) -> Sequence[Any]:
        """Predict probabilities or values: (rows,) or (rows, classes), brought to the output's shape."""
        if len(inputs) == 1 and inputs[0].ndim == 2:
            matrix = inputs[0]
        else:
            rows = len(inputs[0])
            matrix = np.concatenate([inputs[index].reshape(rows, -1) for index in self._order], axis=1)
        if matrix.dtype.kind != "f":
            # `Booster.predict` would make float32 of integers, and round those above 2**24.
            matrix = matrix.astype(np.float64)
        if self._few is not None and len(matrix) <= self._few_rows:
            scores = self._few.predict(matrix)
        else:
            scores = np.asarray(self._booster.predict(matrix, num_threads=self._threads, validate_features=False))
        if scores.ndim == 1 and len(self._output_shape) == 2:
            scores = scores[:, None]
        return (scores,)


def _column_order(booster: lightgbm.Booster, package: Package, path: str) -> list[int]:
    """The inputs' indices in the order of the model's columns. Raises `ConfigError` if they cannot make its matrix."""
    signature = package.signature
    problems = []
    if not signature.batchable or any(len(spec.shape) > 2 for spec in signature.inputs):
        problems.append(f"{path}: inputs and outputs of a LightGBM model are [-1] or [-1, columns]")
    if any(spec.datatype in ("BYTES", "BOOL", "FP16") for spec in signature.inputs):
        problems.append(f"{path}: inputs of a LightGBM model are numbers (FP32, FP64, INT*, UINT*)")
    if len(signature.outputs) != 1:
        problems.append(f"{path}: a LightGBM model has one output, model.toml declares {len(signature.outputs)}")
    widths = [spec.shape[1] if len(spec.shape) == 2 else 1 for spec in signature.inputs]
    if sum(widths) != booster.num_feature():
        problems.append(
            f"{path}: the model takes {booster.num_feature()} columns, the inputs in model.toml make {sum(widths)}"
        )
    if problems:
        raise ConfigError(*problems)
    names = [spec.name for spec in signature.inputs]
    columns = booster.feature_name()
    if len(names) > 1 and set(names) == set(columns):
        return [names.index(column) for column in columns]
    return list(range(len(names)))
