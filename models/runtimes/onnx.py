"""ONNX through onnxruntime: any number of inputs and outputs, with a dynamic batch dimension or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from host.protocol.errors import ConfigError
from host.protocol.package import Package
from host.protocol.tensors import Array
from host.protocol.types import Signature, TensorSpec, shape_text

_ONNX_TYPES: Final = {
    "BOOL": "tensor(bool)",
    "UINT8": "tensor(uint8)",
    "UINT16": "tensor(uint16)",
    "UINT32": "tensor(uint32)",
    "UINT64": "tensor(uint64)",
    "INT8": "tensor(int8)",
    "INT16": "tensor(int16)",
    "INT32": "tensor(int32)",
    "INT64": "tensor(int64)",
    "FP16": "tensor(float16)",
    "FP32": "tensor(float)",
    "FP64": "tensor(double)",
    "BYTES": "tensor(string)",
}


def load(directory: Path, package: Package) -> OnnxRuntime:
    """Load `artifact` with as many threads as the package says, spinning off."""
    path = directory / (package.artifact or "")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = package.resources.threads
    options.inter_op_num_threads = 1
    # A spinning thread burns the CPU that the next model needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        raise ConfigError(f"{path}: onnxruntime cannot load it: {error}") from error
    problems = _problems(session, package.signature, str(path))
    if problems:
        raise ConfigError(*problems)
    return OnnxRuntime(session, package.signature)


class OnnxRuntime:
    """A session with the names of its inputs and outputs."""

    def __init__(self, session: onnxruntime.InferenceSession, signature: Signature) -> None:
        self.version = f"onnxruntime {onnxruntime.__version__}"
        self._session = session
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = [spec.name for spec in signature.outputs]
        self._texts = [spec.datatype == "BYTES" for spec in signature.inputs]

    def predict(self, inputs: Sequence[Array]) -> Sequence[Any]:
        """Run the graph. ONNX strings are text: BYTES inputs must be UTF-8."""
        feeds = {
            name: _decoded(array) if is_text else array
            for name, array, is_text in zip(self._inputs, inputs, self._texts, strict=True)
        }
        outputs: Sequence[Any] = self._session.run(self._outputs, feeds)
        return outputs


def _decoded(array: Array) -> Array:
    texts = np.empty(array.shape, dtype=np.object_)
    texts.ravel()[:] = [value.decode() for value in array.ravel().tolist()]
    return texts


def _problems(session: onnxruntime.InferenceSession, signature: Signature, path: str) -> list[str]:
    problems: list[str] = []
    for what, specs, nodes in (
        ("input", signature.inputs, session.get_inputs()),
        ("output", signature.outputs, session.get_outputs()),
    ):
        known = {node.name: node for node in nodes}
        for spec in specs:
            if spec.name not in known:
                names = ", ".join(f"'{name}'" for name in known)
                problems.append(f"{path}: {what} '{spec.name}' of model.toml is not in the graph, which has {names}")
            else:
                problems.extend(_mismatch(f"{path}: {what} '{spec.name}'", spec, known[spec.name]))
        if what == "input":
            missing = set(known) - {spec.name for spec in specs}
            problems.extend(
                f"{path}: the graph's input '{name}' is not declared in model.toml" for name in sorted(missing)
            )
    return problems


def _mismatch(where: str, spec: TensorSpec, node: Any) -> list[str]:
    problems = []
    if node.type != _ONNX_TYPES[spec.datatype]:
        problems.append(f"{where}: model.toml says {spec.datatype}, the graph has {node.type}")
    # The graph names or leaves out a variable dimension; an empty shape may be an unknown one.
    graph_shape = [dim if isinstance(dim, int) else -1 for dim in node.shape or []]
    fits = len(graph_shape) == len(spec.shape) and all(
        -1 in (declared, found) or declared == found for declared, found in zip(spec.shape, graph_shape, strict=True)
    )
    fixed_batch = fits and bool(graph_shape) and spec.shape[0] == -1 and graph_shape[0] != -1
    if graph_shape and (not fits or fixed_batch):
        problems.append(
            f"{where}: model.toml says shape {shape_text(spec.shape)}, the graph has {shape_text(graph_shape)}"
        )
    return problems
