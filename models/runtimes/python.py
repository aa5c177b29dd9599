"""Plain Python: the class `Model` of the package's own `model.py`.

    class Model:
        def load(self, package: pathlib.Path) -> None: ...
        def predict(self, inputs: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]: ...

`load` gets the package's directory. BYTES tensors are object arrays of `bytes`. Input arrays may be read-only.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from host.protocol.errors import ConfigError
from host.protocol.package import CODE_FILE, Package
from host.protocol.tensors import Array


def load(directory: Path, package: Package) -> PythonRuntime:
    """Import `model.py`, make a `Model` and let it load. What it raises passes through, with its traceback."""
    path = directory / CODE_FILE
    # The package's other modules are importable; its directory is not ours to write bytecode into.
    sys.path.insert(0, str(directory))
    sys.dont_write_bytecode = True
    spec = importlib.util.spec_from_file_location("model", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    model_class = getattr(module, "Model", None)
    if not isinstance(model_class, type):
        raise ConfigError(f"{path}: expected a class named Model, found none")
    for method in ("load", "predict"):
        if not callable(getattr(model_class, method, None)):
            raise ConfigError(f"{path}: class Model: expected a method {method}, found none")
    model = model_class()
    model.load(directory)
    return PythonRuntime(model, package)


class PythonRuntime:
    """A `Model` and the names of its tensors."""

    def __init__(self, model: Any, package: Package) -> None:
        self.version = f"python {platform.python_version()}"
        self._predict = model.predict
        self._inputs = [spec.name for spec in package.signature.inputs]
        self._outputs = [spec.name for spec in package.signature.outputs]

    def predict(self, inputs: Sequence[Array]) -> Sequence[Any]:
        """Call `Model.predict` with a dict. Raises `TypeError` or `KeyError` if it does not answer with one."""
        answer = self._predict(dict(zip(self._inputs, inputs, strict=True)))
        if not isinstance(answer, Mapping):
            raise TypeError(f"Model.predict: expected a dict of arrays, returned {type(answer).__name__}")
        missing = [name for name in self._outputs if name not in answer]
        if missing:
            raise KeyError(f"Model.predict: output {missing[0]!r} is missing, returned {sorted(map(str, answer))}")
        return [answer[name] for name in self._outputs]
