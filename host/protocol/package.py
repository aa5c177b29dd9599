"""The model package: what a data scientist hands over. `<repository>/<name>/<version>/model.toml` and its files.

Parsed at this edge into frozen values; everything that is wrong is reported at once.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from host.protocol.errors import ConfigError
from host.protocol.messages import Limits
from host.protocol.schema import TableReader
from host.protocol.types import DATATYPES, NAME_MAX_CHARS, NAME_PATTERN, Signature, TensorSpec

RUNTIMES: Final = ("lightgbm", "onnx", "python")
PLATFORMS: Final = {"lightgbm": "lightgbm_text", "onnx": "onnxruntime_onnx", "python": "python"}
"""Runtime to the Open Inference Protocol's `platform`."""

MODEL_FILE: Final = "model.toml"
GOLDEN_FILE: Final = "golden.json"
CODE_FILE: Final = "model.py"

RESERVED_NAMES: Final = ("stats",)
"""`GET /v2/models/stats` is the statistics of all models, so no model can be called that."""

PROCESSES_MAX: Final = 256
THREADS_MAX: Final = 256
TIMEOUT_MAX_MS: Final = 3_600_000
_CPU_SET: Final = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_FEATURE: Final = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_]+")
_PYTHON: Final = re.compile(r"3\.\d+")


class Resources(msgspec.Struct, frozen=True):
    """`[resources]`, per process."""

    memory_bytes: int = 512 << 20
    cpus: int | str = 1
    """How many, or which ones (`"2-3"`)."""
    threads: int = 1


class Scale(msgspec.Struct, frozen=True):
    """`[scale]`: a fixed number of processes, or bounds for autoscaling."""

    min_processes: int
    max_processes: int


class Environment(msgspec.Struct, frozen=True):
    """`[environment]`: the model's own interpreter and libraries."""

    python: str | None = None
    requirements: str | None = None


class Sandbox(msgspec.Struct, frozen=True):
    """`[sandbox]`: what the model's code may do."""

    network: bool = False
    writable: tuple[str, ...] = ()


class Package(msgspec.Struct, frozen=True):
    """One version of a model."""

    name: str
    version: str
    runtime: str
    artifact: str | None
    signature: Signature
    resources: Resources
    scale: Scale
    limits: Limits
    environment: Environment
    sandbox: Sandbox

    @property
    def platform(self) -> str:
        """The Open Inference Protocol's name of the runtime."""
        return PLATFORMS[self.runtime]


class GoldenOutput(msgspec.Struct, frozen=True):
    """An expected output of a golden case; `data` is flat."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]


class GoldenResponse(msgspec.Struct, frozen=True):
    """The expected answer of a golden case."""

    outputs: list[GoldenOutput]


class Tolerance(msgspec.Struct, frozen=True):
    """How far a number may be off: |received - expected| <= absolute + relative * |expected|."""

    absolute: float = 0.0
    relative: float = 1e-6


class GoldenCase(msgspec.Struct, frozen=True):
    """A recorded request with its expected answer."""

    name: str
    request: dict[str, Any]
    response: GoldenResponse
    tolerance: Tolerance = Tolerance()


class _GoldenFile(msgspec.Struct, frozen=True):
    cases: list[GoldenCase]


def name_problem(what: str, name: str) -> str | None:
    """What is wrong with a model name or version, or None."""
    if NAME_PATTERN.fullmatch(name) is None:
        return (
            f"{what}: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, received {name!r}"
        )
    if len(name) > NAME_MAX_CHARS:
        return f"{what}: expected at most {NAME_MAX_CHARS} characters, received {len(name)}"
    if what == "model name" and name in RESERVED_NAMES:
        return f"{what}: {name!r} is reserved (GET /v2/models/{name} means something else)"
    return None


def parse_package(name: str, version: str, table: Mapping[str, Any], where: str = MODEL_FILE) -> Package:
    """Read the content of a `model.toml`. Raises `ConfigError` with every problem."""
    problems: list[str] = []
    for what, text in (("model name", name), ("model version", version)):
        problem = name_problem(what, text)
        if problem:
            problems.append(f"{where}: {problem}")
    reader = TableReader(where, table, problems)
    runtime = reader.text("runtime", choices=RUNTIMES)
    artifact = reader.relative_path("artifact")
    if artifact is None and table.get("runtime") in ("lightgbm", "onnx") and not table.get("artifact"):
        reader.problem("artifact", f"the model's file, required by runtime {runtime}")
    package = Package(
        name=name,
        version=version,
        runtime=runtime,
        artifact=artifact,
        signature=Signature(inputs=_tensors(reader, "inputs"), outputs=_tensors(reader, "outputs")),
        resources=_resources(reader.table("resources")),
        scale=_scale(reader.table("scale")),
        limits=_limits(reader.table("limits")),
        environment=_environment(reader.table("environment")),
        sandbox=_sandbox(reader.table("sandbox")),
    )
    reader.finish()
    if problems:
        raise ConfigError(*problems)
    return package


def read_package(directory: Path) -> Package:
    """Read and check `<name>/<version>/`, its files included. Raises `ConfigError` with every problem."""
    directory = directory.absolute()
    path = directory / MODEL_FILE
    if not directory.is_dir():
        raise ConfigError(f"{directory}: expected a model package: a directory <name>/<version> with {MODEL_FILE}")
    package = parse_package(directory.parent.name, directory.name, read_toml(path), str(path))
    problems = _file_problems(directory, package)
    try:
        golden_cases(directory)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return package


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises `ConfigError` that names the file and the place."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a file, found none") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def golden_cases(directory: Path) -> list[GoldenCase]:
    """The package's recorded requests; none if it has no `golden.json`. Raises `ConfigError`."""
    path = directory / GOLDEN_FILE
    try:
        return msgspec.convert(json.loads(path.read_bytes()), _GoldenFile).cases
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(
            f'{path}: expected {{"cases": [{{"name", "request", "response": {{"outputs": [...]}}}}]}}: {error}'
        ) from error


def _file_problems(directory: Path, package: Package) -> list[str]:
    needed = [(package.artifact, "artifact"), (package.environment.requirements, "environment.requirements")]
    if package.runtime == "python":
        needed.append((CODE_FILE, 'runtime "python"'))
    return [
        f"{directory / MODEL_FILE}: {key}: expected the file {file}, found none"
        for file, key in needed
        if file is not None and not (directory / file).is_file()
    ]


def _tensors(reader: TableReader, key: str) -> tuple[TensorSpec, ...]:
    specs: list[TensorSpec] = []
    for tensor in reader.tables(key):
        name = tensor.text("name")
        datatype = tensor.text("datatype", choices=DATATYPES)
        shape = tensor.take("shape")
        if not isinstance(shape, list) or not all(type(dim) is int and (dim == -1 or dim > 0) for dim in shape):
            tensor.problem("shape", "a list of sizes, -1 for a variable one (the first -1 is rows)", shape)
            shape = [-1]
        features = _features(tensor) if key == "inputs" else ()
        tensor.finish()
        if name in [spec.name for spec in specs]:
            tensor.problem("name", "a name of its own", name)
        specs.append(TensorSpec(name, datatype, tuple(shape), features))
    if not specs:
        reader.problem(key, f"at least one [[{key}]] with name, datatype and shape")
    return tuple(specs)


def _features(tensor: TableReader) -> tuple[str, ...]:
    """`feature`: one, or a list of several."""
    value = tensor.take("feature")
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and _FEATURE.fullmatch(n) for n in names):
        tensor.problem("feature", 'a feature as "view.column", or a list of such', value)
        return ()
    return tuple(names)


def read_cpus(reader: TableReader) -> int | str | None:
    """The key `cpus`: a number, or a set as the kernel writes it; None if it is not there."""
    cpus = reader.take("cpus")
    if cpus is None or (type(cpus) is int and cpus >= 1) or (isinstance(cpus, str) and _CPU_SET.fullmatch(cpus)):
        return cpus
    reader.problem("cpus", 'a number of CPUs >= 1, or a set such as "2-3"', cpus)
    return None


def _resources(reader: TableReader) -> Resources:
    resources = Resources(
        memory_bytes=reader.size_bytes("memory", default="512MiB"),
        cpus=read_cpus(reader) or 1,
        threads=reader.integer("threads", default=1, minimum=1, maximum=THREADS_MAX),
    )
    reader.finish()
    return resources


def _scale(reader: TableReader) -> Scale:
    if reader.has("processes") and (reader.has("min") or reader.has("max")):
        reader.problem("processes", "either processes, or min and max")
    processes = reader.integer("processes", default=1, minimum=1, maximum=PROCESSES_MAX)
    scale = Scale(
        min_processes=reader.integer("min", default=processes, minimum=0, maximum=PROCESSES_MAX),
        max_processes=reader.integer("max", default=processes, minimum=1, maximum=PROCESSES_MAX),
    )
    if scale.min_processes > scale.max_processes:
        reader.problem("min", f"at most max ({scale.max_processes})", scale.min_processes)
    reader.finish()
    return scale


def _limits(reader: TableReader) -> Limits:
    limits = Limits(
        timeout_ms=reader.integer("timeout_ms", default=1000, minimum=1, maximum=TIMEOUT_MAX_MS),
        max_batch_rows=reader.integer("max_batch_rows", default=256, minimum=1, maximum=1 << 20),
        max_queue=reader.integer("max_queue", default=1024, minimum=1, maximum=1 << 20),
        startup_s=reader.integer("startup_s", default=60, minimum=1, maximum=86_400),
        hang_s=reader.integer("hang_s", default=10, minimum=1, maximum=86_400),
        retry=reader.boolean("retry", default=True),
    )
    reader.finish()
    return limits


def _environment(reader: TableReader) -> Environment:
    python = reader.optional_text("python")
    if python is not None and _PYTHON.fullmatch(python) is None:
        reader.problem("python", 'a version such as "3.11"', python)
    environment = Environment(python=python, requirements=reader.relative_path("requirements"))
    reader.finish()
    return environment


def _sandbox(reader: TableReader) -> Sandbox:
    sandbox = Sandbox(network=reader.boolean("network", default=False), writable=reader.texts("writable"))
    reader.finish()
    return sandbox
