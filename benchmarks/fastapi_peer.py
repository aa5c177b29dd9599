"""The peer: the same model in process under FastAPI and uvicorn, as one would write it.

Run by `bench.py`: `uvicorn fastapi_peer:app`, with MODEL_FILE in the environment. uvloop and httptools are on
(uvicorn[standard]); the request is validated by pydantic; LightGBM uses one thread, as in modelhost.
"""

from __future__ import annotations

import os
from typing import Any

import lightgbm
import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

booster = lightgbm.Booster(model_file=os.environ["MODEL_FILE"])
app = FastAPI()


class Tensor(BaseModel):
    """One input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferenceRequest(BaseModel):
    """An Open Inference Protocol request, as far as this model needs it."""

    inputs: list[Tensor]


@app.post("/v2/models/breast_cancer/infer")
async def infer(request: InferenceRequest) -> dict[str, Any]:
    """Predict in the event loop: a thread pool makes this small model slower."""
    tensor = request.inputs[0]
    scores = np.asarray(booster.predict(np.array(tensor.data).reshape(tensor.shape), num_threads=1))
    output = {"name": "probability", "datatype": "FP64", "shape": [len(scores), 1], "data": scores.tolist()}
    return {"model_name": "breast_cancer", "model_version": "1", "outputs": [output]}
