"""Runtimes: what they load, what they refuse to load, and how they bring tensors into the library's form."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from host.protocol.errors import ConfigError
from host.protocol.package import RUNTIMES, Package, parse_package
from host.protocol.tensors import NUMPY_DTYPES
from models.runtimes import LOADERS, Runtime, import_loader
from models.runtimes.lightgbm_rows import ROWS_MAX

ROWS = np.random.default_rng(0).normal(size=(200, 3))
TARGET = (ROWS[:, 0] - 2 * ROWS[:, 2] > 0).astype(int)


def test_every_runtime_of_the_package_format_has_its_line() -> None:
    assert set(LOADERS) == set(RUNTIMES)


def load(directory: Path, **table: Any) -> Runtime:
    package: Package = parse_package("model", "1", table)
    return import_loader(package)(directory, package)


def tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


# -- lightgbm ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def booster(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, lightgbm.Booster]:
    directory = tmp_path_factory.mktemp("lightgbm")
    data = lightgbm.Dataset(ROWS, TARGET, feature_name=["a", "b", "c"])
    trained = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1, "seed": 1}, data, 10)
    trained.save_model(directory / "model.txt")
    return directory, trained


LIGHTGBM = {"runtime": "lightgbm", "artifact": "model.txt", "outputs": [tensor("p", "FP64", -1, 1)]}


def test_lightgbm_takes_one_matrix(booster: tuple[Path, lightgbm.Booster]) -> None:
    directory, trained = booster
    runtime = load(directory, **LIGHTGBM, inputs=[tensor("features", "FP64", -1, 3)])
    (scores,) = runtime.predict([ROWS[:5]])
    assert scores.shape == (5, 1)
    assert np.array_equal(scores[:, 0], np.asarray(trained.predict(ROWS[:5])))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("datatype", ["INT64", "INT32", "FP64"])
def test_a_rows_score_does_not_depend_on_its_batch(tmp_path: Path, datatype: str, shape: tuple[int, ...]) -> None:
    # float32 cannot tell these numbers apart.
    column = np.arange(2**24, 2**24 + 200)
    data = lightgbm.Dataset(column[:, None].astype(float), (column % 8 > 3).astype(int), params={"max_bin": 255})
    trained = lightgbm.train({"verbose": -1, "min_data_in_leaf": 1, "num_threads": 1, "seed": 1}, data, 20)
    trained.save_model(tmp_path / "model.txt")
    runtime = load(tmp_path, **LIGHTGBM, inputs=[tensor("x", datatype, *shape)])
    expected = np.asarray(trained.predict(column[:, None].astype(float)))
    values = column.astype(NUMPY_DTYPES[datatype]).reshape(shape)
    for rows in (1, ROWS_MAX, ROWS_MAX + 1, 200):
        found = np.concatenate([runtime.predict([values[at : at + rows]])[0] for at in range(0, 200, rows)])
        assert np.array_equal(found[:, 0], expected)


def test_lightgbm_takes_named_columns_in_any_order(booster: tuple[Path, lightgbm.Booster]) -> None:
    directory, trained = booster
    inputs = [tensor("c", "FP64", -1, 1), tensor("a", "FP64", -1), tensor("b", "FP64", -1, 1)]
    runtime = load(directory, **LIGHTGBM, inputs=inputs)
    (scores,) = runtime.predict([ROWS[:5, 2:3], ROWS[:5, 0], ROWS[:5, 1:2]])
    assert np.array_equal(scores[:, 0], np.asarray(trained.predict(ROWS[:5])))


def test_lightgbm_joins_matrices_in_the_declared_order(booster: tuple[Path, lightgbm.Booster]) -> None:
    directory, trained = booster
    runtime = load(directory, **LIGHTGBM, inputs=[tensor("ab", "FP64", -1, 2), tensor("karma", "FP64", -1, 1)])
    (scores,) = runtime.predict([ROWS[:5, :2], ROWS[:5, 2:]])
    assert np.array_equal(scores[:, 0], np.asarray(trained.predict(ROWS[:5])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": [tensor("features", "FP64", -1, 4)]}, "takes 3 columns, the inputs in model.toml make 4"),
        ({"inputs": [tensor("features", "BYTES", -1, 3)]}, "inputs of a LightGBM model are numbers"),
        ({"inputs": [tensor("features", "FP64", 3)]}, r"are \[-1\] or \[-1, columns\]"),
        (
            {"inputs": [tensor("x", "FP64", -1, 3)], "outputs": [tensor("p", "FP64", -1), tensor("q", "FP64", -1)]},
            "has one output, model.toml declares 2",
        ),
    ],
)
def test_lightgbm_refuses_what_cannot_make_its_matrix(
    booster: tuple[Path, lightgbm.Booster], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(booster[0], **{**LIGHTGBM, **changes})


def test_lightgbm_names_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("not a model")
    with pytest.raises(ConfigError, match=r"model\.txt: not a LightGBM text model"):
        load(tmp_path, **LIGHTGBM, inputs=[tensor("features", "FP64", -1, 3)])


# -- onnx ---------------------------------------------------------------------------------------------------
def write_graph(directory: Path, batch: str | int = "rows") -> None:
    """total = a + b (FP32), same = text (BYTES)."""
    inputs = [
        helper.make_tensor_value_info("a", TensorProto.FLOAT, [batch, 2]),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [batch, 2]),
        helper.make_tensor_value_info("text", TensorProto.STRING, [batch]),
    ]
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.FLOAT, [batch, 2]),
        helper.make_tensor_value_info("same", TensorProto.STRING, [batch]),
    ]
    nodes = [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Identity", ["text"], ["same"])]
    graph = helper.make_graph(nodes, "sum", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, directory / "model.onnx")


ONNX = {
    "runtime": "onnx",
    "artifact": "model.onnx",
    "inputs": [tensor("text", "BYTES", -1), tensor("a", "FP32", -1, 2), tensor("b", "FP32", -1, 2)],
    "outputs": [tensor("same", "BYTES", -1), tensor("total", "FP32", -1, 2)],
}


def test_onnx_takes_several_inputs_in_the_declared_order(tmp_path: Path) -> None:
    write_graph(tmp_path)
    runtime = load(tmp_path, **ONNX)
    ones = np.ones((3, 2), dtype=np.float32)
    same, total = runtime.predict([np.array([b"x", "ü".encode(), b""], dtype=object), ones, 2 * ones])
    assert same.tolist() == ["x", "ü", ""]
    assert np.array_equal(total, 3 * ones)


def test_onnx_without_a_batch_dimension(tmp_path: Path) -> None:
    write_graph(tmp_path, batch=1)
    fixed = {
        "inputs": [tensor("text", "BYTES", 1), tensor("a", "FP32", 1, 2), tensor("b", "FP32", 1, 2)],
        "outputs": [tensor("total", "FP32", 1, 2)],
    }
    (total,) = load(tmp_path, **{**ONNX, **fixed}).predict(
        [np.array([b"x"], dtype=object), np.ones((1, 2), np.float32), np.ones((1, 2), np.float32)]
    )
    assert total.tolist() == [[2, 2]]


def test_onnx_reports_every_difference_from_the_graph(tmp_path: Path) -> None:
    write_graph(tmp_path)
    wrong = {
        "inputs": [tensor("a", "FP64", -1, 2), tensor("b", "FP32", -1, 3), tensor("c", "FP32", -1)],
        "outputs": [tensor("nothing", "FP32", -1)],
    }
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **{**ONNX, **wrong})
    text = str(caught.value)
    assert "input 'a': model.toml says FP64, the graph has tensor(float)" in text
    assert "input 'b': model.toml says shape [-1, 3], the graph has [-1, 2]" in text
    assert "input 'c' of model.toml is not in the graph" in text
    assert "the graph's input 'text' is not declared" in text
    assert "output 'nothing' of model.toml is not in the graph" in text


def test_onnx_refuses_rows_for_a_graph_of_one(tmp_path: Path) -> None:
    write_graph(tmp_path, batch=1)
    with pytest.raises(ConfigError, match=r"input 'a': model.toml says shape \[-1, 2\], the graph has \[1, 2\]"):
        load(tmp_path, **ONNX)


def test_onnx_names_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ConfigError, match=r"model\.onnx: onnxruntime cannot load it"):
        load(tmp_path, **ONNX)


# -- python -------------------------------------------------------------------------------------------------
PYTHON = {"runtime": "python", "inputs": [tensor("x", "FP64", -1)], "outputs": [tensor("y", "FP64", -1)]}


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    before, path, bytecode = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    yield tmp_path
    sys.path[:] = path
    sys.dont_write_bytecode = bytecode
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_python_gives_the_package_to_load_and_dicts_to_predict(package: Path) -> None:
    (package / "factor.txt").write_text("3")
    (package / "beside.py").write_text("OFFSET = 1\n")
    (package / "model.py").write_text(
        "from beside import OFFSET\n"
        "class Model:\n"
        "    def load(self, package):\n"
        "        self.factor = float((package / 'factor.txt').read_text())\n"
        "    def predict(self, inputs):\n"
        "        return {'y': inputs['x'] * self.factor + OFFSET, 'unused': None}\n"
    )
    (y,) = load(package, **PYTHON).predict([np.array([1.0, 2.0])])
    assert y.tolist() == [4, 7]
    assert not list(package.rglob("__pycache__"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n", "expected a class named Model, found none"),
        ("class Model:\n    def load(self, package): ...\n", "expected a method predict, found none"),
        ("class Model:\n    def predict(self, inputs): ...\n", "expected a method load, found none"),
    ],
)
def test_python_says_what_its_class_lacks(package: Path, code: str, message: str) -> None:
    (package / "model.py").write_text(code)
    with pytest.raises(ConfigError, match=message):
        load(package, **PYTHON)


@pytest.mark.parametrize(
    ("answer", "error"), [("[1]", "expected a dict of arrays, returned list"), ("{'z': 1}", "output 'y' is missing")]
)
def test_python_says_what_an_answer_lacks(package: Path, answer: str, error: str) -> None:
    (package / "model.py").write_text(
        f"class Model:\n    def load(self, package): ...\n    def predict(self, inputs): return {answer}\n"
    )
    with pytest.raises((TypeError, KeyError), match=error):
        load(package, **PYTHON).predict([np.array([1.0])])


def test_missing_library_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "models.runtimes.onnx", raising=False)
    with pytest.raises(ConfigError, match=r"runtime 'onnx': the model's environment \(.*python.*\) cannot import it"):
        import_loader(parse_package("model", "1", ONNX))
