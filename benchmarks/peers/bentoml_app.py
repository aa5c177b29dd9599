"""BentoML: a batchable API (64 requests, 10 ms latency target), one worker."""

from __future__ import annotations

from typing import Any

import bentoml
from lightgbm_model import LightGBMModel


@bentoml.service(workers=1, traffic={"timeout": 10}, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Model:
    """The service."""

    def __init__(self) -> None:
        self._model = LightGBMModel()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000, route="/infer")
    def infer(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer a batch; a request is a batch of one document."""
        return self._model.answer_all([{"inputs": [tensor]} for tensor in inputs])
