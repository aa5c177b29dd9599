"""Runtimes: one file each, one line each in `LOADERS`.

A runtime module has `load(directory, package) -> Runtime`. It is imported in the model's own interpreter, and
only there, so each may import whatever library it needs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from host.protocol.errors import ConfigError
from host.protocol.package import Package
from host.protocol.tensors import Array

LOADERS: Final = {
    "lightgbm": "models.runtimes.lightgbm",
    "onnx": "models.runtimes.onnx",
    "python": "models.runtimes.python",
}


class Runtime(Protocol):
    """A loaded model. Called from one thread only."""

    version: str
    """Library and version, for people: `lightgbm 4.7.0`."""

    def predict(self, inputs: Sequence[Array]) -> Sequence[Any]:
        """Answer a batch: arrays in the order of the signature's inputs to arrays in that of its outputs.

        Whatever it raises fails the batch; what it returns is checked by the caller.
        """
        ...


def import_loader(package: Package) -> Callable[[Path, Package], Runtime]:
    """Import the package's runtime and return its `load`. Raises `ConfigError` if its library is missing.

    `load(directory, package)` loads the artifacts; it raises `ConfigError` if they do not fit the signature.
    """
    try:
        module = importlib.import_module(LOADERS[package.runtime])
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{package.name}/{package.version}: runtime {package.runtime!r}: "
            f"the model's environment ({sys.executable}) cannot import it: {error}"
        ) from error
    load: Callable[[Path, Package], Runtime] = module.load
    return load
