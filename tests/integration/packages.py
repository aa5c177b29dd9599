"""Python models that the tests write: one that misbehaves on request, one that waits at a gate, and others."""

from __future__ import annotations

import http.client
import json
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

Tensor = tuple[str, str, list[int]] | tuple[str, str, list[int], list[str]]

UNHURRIED: Final = {"timeout_ms": 10_000}
"""Limits of models whose deadline is no subject: on a busy machine a process may stand still for seconds."""

TEXTS = '''
import numpy as np

STRANGE = {b"surrogate": "\\ud800", b"object": object(), b"number": 7, b"null": None}

class Model:
    """Upper case; some words make it answer what is no text."""

    def load(self, package):
        pass

    def predict(self, inputs):
        texts = inputs["text"]
        upper = np.empty(texts.shape, dtype=object)
        upper.ravel()[:] = [STRANGE.get(text, text.upper()) for text in texts.ravel()]
        return {"upper": upper, "length": np.array([len(text) for text in texts.ravel()]).reshape(texts.shape)}
'''

TYPED = """
class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {f"{name}_back": array for name, array in inputs.items()}
"""

FRAGILE = '''
import numpy as np

class Model:
    """Doubles; 13 raises, 14 loses a row, 15 answers texts, 16 answers NaN, 17 no dict, 18 another output."""

    def load(self, package):
        pass

    def predict(self, inputs):
        x = inputs["x"]
        if 13 in x:
            raise ValueError("the secret of thirteen")
        if 14 in x:
            return {"y": x[1:] * 2.0}
        if 15 in x:
            return {"y": np.full(x.shape, b"text", dtype=object)}
        if 17 in x:
            return x
        if 18 in x:
            return {"z": x}
        if 19 in x:
            raise RecursionError
        return {"y": np.where(x == 16, np.nan, x * 2.0)}
'''

GATED = '''
import socket
import numpy as np

class Model:
    """Doubles; waits for the test at the gate, if there is one. `seen` counts the rows that ran, without zeros."""

    def load(self, package):
        self.gate = package / "gate.sock"
        self.seen = 0

    def predict(self, inputs):
        x = inputs["x"]
        self.seen += int(np.count_nonzero(x))
        if x.any() and self.gate.exists():
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self.gate))
                sock.sendall(x.astype("<f8").tobytes())
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1)
        return {"y": x * 2, "seen": np.full(x.shape, self.seen), "batch": np.full(x.shape, len(x))}
'''


def write_package(
    repository: Path,
    name: str,
    code: str,
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    version: str = "1",
    processes: int = 1,
    limits: Mapping[str, int | bool] | None = None,
    **tables: Mapping[str, object],
) -> Path:
    """Write a package of the python runtime; give its directory. `tables`: `resources`, `sandbox` and so on."""
    directory = repository / name / version
    directory.mkdir(parents=True)
    lines = ['runtime = "python"']
    for key, specs in (("inputs", inputs), ("outputs", outputs)):
        for tensor, datatype, shape, *feature in specs:
            lines += [f"[[{key}]]", f'name = "{tensor}"', f'datatype = "{datatype}"', f"shape = {shape}"]
            lines += [f"feature = {json.dumps(names)}" for names in feature]
    for table, values in {"scale": {"processes": processes}, "limits": limits or {}, **tables}.items():
        # A JSON value of these kinds is a TOML value too.
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (directory / "model.toml").write_text("\n".join(lines) + "\n")
    (directory / "model.py").write_text(code)
    return directory


def write_texts(repository: Path) -> Path:
    """BYTES in, BYTES and INT64 out."""
    return write_package(
        repository,
        "texts",
        TEXTS,
        inputs=[("text", "BYTES", [-1, 1])],
        outputs=[("upper", "BYTES", [-1, 1]), ("length", "INT64", [-1, 1])],
        limits=UNHURRIED,
    )


def write_typed(repository: Path) -> Path:
    """One input of several datatypes each, answered as they came."""
    specs = [("flag", "BOOL"), ("small", "INT8"), ("large", "UINT64"), ("half", "FP16"), ("single", "FP32")]
    return write_package(
        repository,
        "typed",
        TYPED,
        inputs=[(name, datatype, [-1, 2]) for name, datatype in specs],
        outputs=[(f"{name}_back", datatype, [-1, 2]) for name, datatype in specs],
        limits=UNHURRIED,
    )


def write_fragile(repository: Path, **limits: int) -> Path:
    """The one that misbehaves when told to."""
    return write_package(
        repository,
        "fragile",
        FRAGILE,
        inputs=[("x", "INT64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1])],
        processes=1,
        limits=UNHURRIED | limits,
    )


def write_gated(repository: Path, name: str = "gated", **limits: int) -> Path:
    """The one that waits: one row a batch and a queue of two, unless told otherwise."""
    return write_package(
        repository,
        name,
        GATED,
        inputs=[("x", "FP64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1]), ("seen", "INT64", [-1, 1]), ("batch", "INT64", [-1, 1])],
        limits=UNHURRIED | {"max_batch_rows": 1, "max_queue": 2} | limits,
    )


class Visit:
    """One batch that stands at the gate, its model's `predict` waiting."""

    def __init__(self, sock: socket.socket, values: tuple[float, ...]) -> None:
        self._sock = sock
        self.values = values

    @property
    def pid(self) -> int:
        """The worker."""
        pid: int = struct.unpack("3i", self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid

    def let_through(self) -> None:
        """Let `predict` go on."""
        self._sock.close()


QUIET_MAX_S: Final = 0.9
"""So long a worker may stand at the gate and still get more: one that is quiet for a second counts as one that stands
still (`dispatch.STALL_UNKNOWN_NS`). A test that took longer to send what it wants to be there tries again."""


class Gate:
    """The test's side of a gated model. While it is there, every batch of it comes here and waits."""

    def __init__(self, package: Path) -> None:
        self._path = package / "gate.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._path.chmod(0o666)  # the model has a user of its own
        self._listener.listen(64)
        self._standing: list[Visit] = []

    def entered(self, limit_s: float = 30.0) -> Visit:
        """Wait for the next batch to arrive."""
        self._listener.settimeout(limit_s)
        sock, _ = self._listener.accept()
        sock.settimeout(limit_s)
        data = bytearray()
        while part := sock.recv(65536):
            data += part
        visit = Visit(sock, tuple(value for (value,) in struct.iter_unpack("<d", data)))
        self._standing.append(visit)
        return visit

    def let_all_through(self, connections: Sequence[http.client.HTTPConnection]) -> None:
        """Let everybody through, who stands here and who comes, until all of these have their answer to read."""
        socks = {connection.sock for connection in connections}
        while set(select.select(socks, [], [], 0)[0]) != socks:
            for visit in self._standing:
                visit.let_through()
            with suppress(TimeoutError):
                self.entered(0.05)

    def remove(self) -> None:
        """Take the gate away: who waits goes on, who comes later does not wait."""
        self._path.unlink()
        self._listener.close()
        for visit in self._standing:
            visit.let_through()


def write_variable(repository: Path) -> Path:
    """Both dimensions vary, so that requests of different widths cannot be joined."""
    return write_package(
        repository,
        "variable",
        TYPED,
        inputs=[("x", "FP32", [-1, -1])],
        outputs=[("x_back", "FP32", [-1, -1])],
        limits=UNHURRIED,
    )
