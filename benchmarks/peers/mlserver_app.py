"""MLServer: a custom runtime, one parallel worker, adaptive batching (64 requests, 1 ms), no metrics, no access log."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from lightgbm_model import LightGBMModel
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Model(MLModel):
    """The custom runtime."""

    async def load(self) -> bool:
        """Load."""
        self._model = LightGBMModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Predict a batch."""
        matrix = NumpyCodec.decode_input(payload.inputs[0])
        scores = self._model.predict(np.asarray(matrix)).reshape(-1, 1)
        output = NumpyCodec.encode_output("probability", scores)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])


def configure(directory: Path, port: int) -> None:
    """Write the server's files."""
    settings = {
        "http_port": port,
        "grpc_port": port + 1000,
        "metrics_endpoint": None,
        "metrics_port": port + 2000,
        "host": "127.0.0.1",
        "parallel_workers": 1,
        "debug": False,
        "use_structured_logging": False,
    }
    (directory / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": "breast_cancer",
        "implementation": "mlserver_app.Model",
        "max_batch_size": 64,
        "max_batch_time": 0.001,
        "parameters": {"version": "1"},
    }
    (directory / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    place, number = Path(sys.argv[1]), int(sys.argv[2])
    configure(place, number)
    command = Path(sys.executable).with_name("mlserver")
    os.execv(command, [str(command), "start", str(place)])  # noqa: S606 - no shell wanted
