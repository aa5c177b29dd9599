"""The packages that `modelhost new` writes: one small real data set, one model for each runtime.

The data: 50 cars, how fast they went (mph) and how far they rolled until they stood (feet), recorded in the
1920s. M. Ezekiel, Methods of Correlation Analysis (1930); `cars` in every R. Facts, free of any licence.
"""

from __future__ import annotations

from typing import Final

TRAINED_RUNTIMES: Final = {"lightgbm": ("lightgbm",), "onnx": ("numpy", "onnx", "onnxruntime")}
"""Runtimes whose artifact a `train.py` makes, and the libraries that it imports."""

_DATA = """\
SPEED = [4, 4, 7, 7, 8, 9, 10, 10, 10, 11, 11, 12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15,
         15, 16, 16, 17, 17, 17, 18, 18, 18, 18, 19, 19, 19, 20, 20, 20, 20, 20, 22, 23, 24, 24, 24, 24, 25]
DISTANCE = [2, 10, 4, 22, 16, 10, 18, 26, 34, 17, 28, 14, 20, 24, 28, 26, 34, 34, 46, 26, 36, 60, 80, 20, 26,
            54, 32, 40, 32, 40, 50, 42, 56, 76, 84, 36, 46, 68, 32, 48, 52, 56, 64, 66, 54, 70, 92, 93, 120, 85]
"""

_MODEL_TOML = """\
# A model package. Check it: modelhost check DIRECTORY. Run it: modelhost try DIRECTORY.

runtime = "{runtime}"
{artifact}

# What a request carries. Datatypes: BOOL, INT8..INT64, UINT8..UINT64, FP16, FP32, FP64, BYTES (strings).
# -1 is the number of rows: requests of any size are joined to batches and split again.
[[inputs]]
name = "speed"                  # mph
datatype = "{datatype}"
shape = [-1, 1]

[[outputs]]
name = "distance"               # feet until the car stands
datatype = "{datatype}"
shape = [-1, 1]

[resources]                     # of each process
memory = "512MiB"
cpus = 1
threads = 1

[scale]
processes = 1

[limits]
timeout_ms = 1000               # the longest that a request may take, waiting included
max_batch_rows = 256            # rows in one call of the model
max_queue = 1024                # requests that wait; the next one is told to come back later
startup_s = 60                  # load, warm-up and golden cases
hang_s = 10                     # one call of the model; then the process is replaced
"""

_README = """\
# {name}

How far a car of the 1920s rolls until it stands (feet), from its speed (mph). Replace it with your own model:
the contract is `model.toml`; {contract}

```sh
modelhost check {directory}     # everything that is wrong, at once
modelhost try {directory}       # load it in a real worker, run golden.json, show times and memory
```

`golden.json` holds requests with the answers that the model gave when it was made. A worker that does not
reproduce them never becomes ready.

Data: 50 cars, M. Ezekiel, *Methods of Correlation Analysis* (1930). An example, not advice on braking.
"""

_MODEL_PY = '''\
"""A straight line. A model is a class `Model` with `load` and `predict`; it needs nothing of modelhost."""

import json


class Model:
    def load(self, package):
        """Read the artifacts from the package's directory (a pathlib.Path); called once."""
        weights = json.loads((package / "weights.json").read_text())
        self.slope, self.intercept = weights["slope"], weights["intercept"]

    def predict(self, inputs):
        """Answer a batch: a dict of numpy arrays by name, [rows, 1] each, to another. Strings come as bytes."""
        return {"distance": inputs["speed"] * self.slope + self.intercept}
'''

_WEIGHTS = """\
{"slope": 3.9324087591240877, "intercept": -17.579094890510948}
"""

_PYTHON_GOLDEN = """\
{"cases": [
{"name": "two cars",
 "request": {"inputs": [{"name": "speed", "shape": [2, 1], "datatype": "FP64", "data": [10, 20]}]},
 "response": {"outputs": [
  {"name": "distance", "shape": [2, 1], "datatype": "FP64", "data": [21.744992700729928, 61.06908029197081]}]},
 "tolerance": {"absolute": 1e-9, "relative": 0}}
]}
"""

_GOLDEN_CODE = """\
    case = {{
        "name": "two cars",
        "request": {{"inputs": [{{"name": "speed", "shape": [2, 1], "datatype": "{datatype}", "data": [10.0, 20.0]}}]}},
        "response": {{
            "outputs": [{{"name": "distance", "shape": [2, 1], "datatype": "{datatype}", "data": answers}}]
        }},
        "tolerance": {{"absolute": {tolerance}, "relative": 0}},
    }}
    (HERE / "golden.json").write_text(json.dumps({{"cases": [case]}}, indent=1) + "\\n")
"""

_LIGHTGBM_TRAIN = (
    '''\
"""Train the model and record its golden case: python train.py (needs lightgbm)."""

import json
from pathlib import Path

import lightgbm
import numpy as np

HERE = Path(__file__).resolve().parent

'''
    + _DATA
    + """

def main():
    data = lightgbm.Dataset(np.array(SPEED, dtype=float)[:, None], np.array(DISTANCE, dtype=float))
    settings = {"objective": "regression", "num_leaves": 4, "min_data_in_leaf": 5, "learning_rate": 0.2}
    booster = lightgbm.train(settings | {"num_threads": 1, "deterministic": True, "verbose": -1}, data, 20)
    booster.save_model(HERE / "model.txt")
    answers = booster.predict([[10.0], [20.0]]).tolist()
"""
    + _GOLDEN_CODE.format(datatype="FP64", tolerance="1e-9")
    + """

main()
"""
)

_ONNX_TRAIN = (
    '''\
"""Fit a line, write it as a graph and record its golden case: python train.py (needs onnx and onnxruntime)."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

HERE = Path(__file__).resolve().parent

'''
    + _DATA
    + """

def main():
    slope, intercept = np.polyfit(SPEED, DISTANCE, 1)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["speed", "slope"], ["scaled"]),
            helper.make_node("Add", ["scaled", "intercept"], ["distance"]),
        ],
        "stopping_distance",
        [helper.make_tensor_value_info("speed", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["rows", 1])],
        [
            helper.make_tensor("slope", TensorProto.FLOAT, [1], [slope]),
            helper.make_tensor("intercept", TensorProto.FLOAT, [1], [intercept]),
        ],
    )
    # Versions that every onnxruntime since 1.8 reads.
    model = helper.make_model(graph, ir_version=7, opset_imports=[helper.make_opsetid("", 13)])
    onnx.checker.check_model(model)
    onnx.save(model, HERE / "model.onnx")
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(None, {"speed": np.array([[10], [20]], dtype=np.float32)})[0].ravel().tolist()
"""
    + _GOLDEN_CODE.format(datatype="FP32", tolerance="1e-4")
    + """

main()
"""
)


def package_files(name: str, runtime: str, directory: str) -> dict[str, str]:
    """The files of a new package, by name. `directory`: how the README calls it."""
    artifact = {
        "lightgbm": 'artifact = "model.txt"          # written by booster.save_model("model.txt")',
        "onnx": 'artifact = "model.onnx"         # any graph that onnxruntime loads',
        "python": "# The class Model in model.py, with load and predict; it opens its artifacts itself.",
    }[runtime]
    contract = {
        "lightgbm": "`model.txt` is what LightGBM's `Booster.save_model` writes. `python train.py` makes this one.",
        "onnx": "`model.onnx` is any graph that onnxruntime loads. `python train.py` makes this one.",
        "python": "`model.py` has the class `Model` with `load` and `predict`.",
    }[runtime]
    datatype = "FP32" if runtime == "onnx" else "FP64"
    files = {
        "model.toml": _MODEL_TOML.format(runtime=runtime, artifact=artifact, datatype=datatype),
        "README.md": _README.format(name=name, contract=contract, directory=directory),
    }
    match runtime:
        case "lightgbm":
            files["train.py"] = _LIGHTGBM_TRAIN
        case "onnx":
            files["train.py"] = _ONNX_TRAIN
        case _:
            files |= {"model.py": _MODEL_PY, "weights.json": _WEIGHTS, "golden.json": _PYTHON_GOLDEN}
    return files
