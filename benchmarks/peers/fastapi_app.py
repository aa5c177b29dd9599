"""FastAPI and uvicorn (uvloop, httptools), the model in process, as one would write it: pydantic validates.

The model is called in the event loop: a thread pool makes a model this small slower. `MODEL_FILE` is LightGBM,
`ONNX_FILE` the digits model; without either, `binary` adds up the rows of a raw FP32 body.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from pydantic import BaseModel

app = FastAPI()


class Tensor(BaseModel):
    """One input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferenceRequest(BaseModel):
    """An Open Inference Protocol request, as far as these models need it."""

    inputs: list[Tensor]


if "MODEL_FILE" in os.environ:
    from lightgbm_model import LightGBMModel, answer

    model = LightGBMModel()

    @app.post("/v2/models/breast_cancer/infer")
    async def infer(request: InferenceRequest) -> dict[str, Any]:
        """Answer one request."""
        tensor = request.inputs[0]
        return answer(model.predict(np.array(tensor.data).reshape(tensor.shape)))


if "ONNX_FILE" in os.environ:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["ONNX_FILE"], options)

    @app.post("/v2/models/digits/infer")
    async def digits(request: InferenceRequest) -> dict[str, Any]:
        """Answer one request."""
        tensor = request.inputs[0]
        image = np.array(tensor.data, dtype=np.float32).reshape(tensor.shape)
        outputs = session.run(None, {session.get_inputs()[0].name: image})
        named = zip(session.get_outputs(), outputs, strict=True)
        return {
            "model_name": "digits",
            "outputs": [
                {"name": meta.name, "shape": list(array.shape), "data": array.ravel().tolist()} for meta, array in named
            ],
        }


@app.post("/v2/models/sums/infer")
async def sums(request: Request) -> dict[str, Any]:
    """Add up rows that come as binary data behind a JSON head."""
    body = await request.body()
    size = int(request.headers["inference-header-content-length"])
    shape = json.loads(body[:size])["inputs"][0]["shape"]
    rows = np.frombuffer(body, dtype=np.float32, offset=size).reshape(shape)
    total = rows.sum(axis=1)
    return {"model_name": "sums", "outputs": [{"name": "sum", "shape": [len(total), 1], "data": total.tolist()}]}
