"""What every Python peer does with a request: kept in one place so that the servers differ and the model does not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import lightgbm
import numpy as np


class LightGBMModel:
    """The bundled model in process, one thread."""

    def __init__(self) -> None:
        self._booster = lightgbm.Booster(model_file=os.environ["MODEL_FILE"])
        self.predict(np.zeros((1, self._booster.num_feature())))

    def predict(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Predict rows x features: (rows,) probabilities."""
        return np.asarray(self._booster.predict(matrix, num_threads=1))

    def answer_all(self, documents: Sequence[Any]) -> list[dict[str, Any]]:
        """Answer a batch of requests in one call of the model."""
        parts = [np.array(part["inputs"][0]["data"]).reshape(part["inputs"][0]["shape"]) for part in documents]
        scores = self.predict(np.concatenate(parts) if len(parts) > 1 else parts[0])
        answers, start = [], 0
        for part in parts:
            answers.append(answer(scores[start : start + len(part)]))
            start += len(part)
        return answers


def answer(scores: np.ndarray[Any, Any]) -> dict[str, Any]:
    """An answer of the Open Inference Protocol."""
    output = {"name": "probability", "datatype": "FP64", "shape": [len(scores), 1], "data": scores.tolist()}
    return {"model_name": "breast_cancer", "model_version": "1", "outputs": [output]}
