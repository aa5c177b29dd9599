"""Packages: what a model.toml may say, and that everything wrong with it is said at once."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from host.protocol.errors import ConfigError
from host.protocol.messages import Limits
from host.protocol.package import golden_cases, parse_package, read_package
from host.protocol.schema import parse_bytes
from host.protocol.types import TensorSpec

MINIMAL = """
runtime = "lightgbm"
artifact = "model.txt"
[[inputs]]
name = "features"
datatype = "FP64"
shape = [-1, 30]
[[outputs]]
name = "probability"
datatype = "FP64"
shape = [-1, 1]
"""


def table(extra: str = "", **changes: Any) -> dict[str, Any]:
    return {**tomllib.loads(MINIMAL + extra), **changes}


def problems(name: str = "churn", version: str = "3", extra: str = "", **changes: Any) -> list[str]:
    try:
        parse_package(name, version, table(extra, **changes))
    except ConfigError as error:
        return list(error.problems)
    return []


def test_minimal_package_has_the_documented_defaults() -> None:
    package = parse_package("churn", "3", table())
    assert package.limits == Limits(
        timeout_ms=1000, max_batch_rows=256, max_queue=1024, startup_s=60, hang_s=10, retry=True
    )
    assert package.resources.memory_bytes == 512 << 20
    assert (package.scale.min_processes, package.scale.max_processes) == (1, 1)
    assert package.signature.inputs == (TensorSpec("features", "FP64", (-1, 30)),)
    assert package.platform == "lightgbm_text"


def test_everything_that_may_be_said_is_read() -> None:
    extra = """
[resources]
memory = "2GiB"
cpus = "2-3"
threads = 4
[scale]
min = 0
max = 5
[limits]
retry = false
[environment]
python = "3.12"
requirements = "requirements.txt"
[sandbox]
network = true
writable = ["cache"]
"""
    package = parse_package("churn", "3", table(extra))
    assert (package.resources.memory_bytes, package.resources.cpus) == (2 << 30, "2-3")
    assert (package.scale.min_processes, package.scale.max_processes) == (0, 5)
    assert not package.limits.retry
    assert package.environment.python == "3.12"
    assert package.sandbox.writable == ("cache",)


@pytest.mark.parametrize(
    ("extra", "changes", "message"),
    [
        ("", {"runtime": "tensorflow"}, 'model.toml: runtime: expected one of "lightgbm", "onnx", "python", received'),
        ("", {"runtime": 3}, "runtime: expected"),
        ("", {"artifact": "../model.txt"}, "artifact: expected a path inside the package"),
        ("", {"artifact": "/model.txt"}, "artifact: expected a path inside the package"),
        ("", {"artifact": None}, "artifact: expected the model's file, required by runtime lightgbm"),
        ("", {"inputs": []}, "inputs: expected at least one [[inputs]]"),
        ("", {"inputs": {}}, "inputs: expected tables: [[inputs]]"),
        ("", {"inputs": [{"name": "x"}]}, "inputs[0].datatype: expected one of"),
        ("", {"inputs": [{"name": "x", "datatype": "FP64"}]}, "inputs[0].shape: expected a list of sizes"),
        ("", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [0]}]}, "inputs[0].shape"),
        ("", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [-2]}]}, "inputs[0].shape"),
        ("", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1], "feature": "x"}]}, "inputs[0].feature"),
        (
            "",
            {"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1]}] * 2},
            "inputs[1].name: expected a name of its",
        ),
        ("", {"inputs": [{"name": "x", "datatype": "FP64", "shape": [-1], "typo": 1}]}, "inputs[0].typo: unknown key"),
        ("", {"colour": "red"}, "colour: unknown key; expected one of runtime, artifact, inputs"),
        ("[limits]\ntimout_ms = 5", {}, "limits.timout_ms: unknown key; expected one of timeout_ms"),
        ("[resources]\nmemory = '5 apples'", {}, 'resources.memory: expected a size such as "512MiB"'),
        ("[resources]\nmemory = 0", {}, "resources.memory"),
        ("[resources]\ncpus = '2-'", {}, "resources.cpus: expected a number of CPUs >= 1, or a set"),
        ("[scale]\nprocesses = 2\nmax = 3", {}, "scale.processes: expected either processes, or min and max"),
        ("[scale]\nmin = 3\nmax = 2", {}, "scale.min: expected at most max (2), received 3"),
        ("[environment]\npython = '2.7'", {}, 'environment.python: expected a version such as "3.11"'),
        ("[environment]\nrequirements = '../r.txt'", {}, "environment.requirements: expected a path inside"),
        ("[sandbox]\nnetwork = 'no'", {}, "sandbox.network: expected true or false"),
        ("[sandbox]\nwritable = 'cache'", {}, "sandbox.writable: expected a list of strings"),
        ("", {"limits": 5}, "limits: expected a table"),
    ],
)
def test_wrong_key_is_named_with_what_was_expected(extra: str, changes: dict[str, Any], message: str) -> None:
    found = problems(extra=extra, **changes)
    assert any(message in problem for problem in found), found
    assert all(problem.startswith("model.toml: ") for problem in found)


@pytest.mark.parametrize(
    ("key", "minimum", "maximum"),
    [
        ("limits.timeout_ms", 1, 3_600_000),
        ("limits.max_batch_rows", 1, 1 << 20),
        ("limits.max_queue", 1, 1 << 20),
        ("limits.startup_s", 1, 86_400),
        ("limits.hang_s", 1, 86_400),
        ("resources.threads", 1, 256),
        ("resources.cpus", 1, None),
        ("scale.processes", 1, 256),
    ],
)
def test_numbers_at_their_limits(key: str, minimum: int, maximum: int | None) -> None:
    section, name = key.split(".")
    refused = [minimum - 1, -1] + ([maximum + 1] if maximum else [])
    for value in refused:
        assert any(f"{key}: expected" in problem for problem in problems(extra=f"[{section}]\n{name} = {value}"))
    for value in [minimum] + ([maximum] if maximum else []):
        assert not problems(extra=f"[{section}]\n{name} = {value}")
    for value in ("true", "1.5", "'one'"):
        assert any(key in problem for problem in problems(extra=f"[{section}]\n{name} = {value}"))


def test_everything_wrong_is_said_at_once() -> None:
    found = problems(
        name="-x", version="", extra="[limits]\nmax_queue = 0\n[oops]\n", runtime="x", inputs=[], outputs=[]
    )
    text = "\n".join(found)
    for part in ("model name", "model version", "runtime", "inputs", "outputs", "limits.max_queue", "oops"):
        assert part in text


@pytest.mark.parametrize("name", ["a", "A1", "a.b-c_d", "x" * 64])
def test_good_names(name: str) -> None:
    assert not problems(name=name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "a b", "a/b", "ü", "a:b", "x" * 65, "stats"])
def test_bad_names(name: str) -> None:
    assert any("model name" in problem for problem in problems(name=name))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("0", 0),
        ("5B", 5),
        ("2 KiB", 2048),
        ("512MiB", 512 << 20),
        ("1GiB", 1 << 30),
        ("1MB", None),
        ("", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size


# -- files ------------------------------------------------------------------------------------------------
@pytest.fixture
def directory(tmp_path: Path) -> Path:
    package = tmp_path / "churn" / "3"
    package.mkdir(parents=True)
    (package / "model.toml").write_text(MINIMAL)
    (package / "model.txt").write_text("")
    return package


def file_problems(directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_package(directory)
    return str(caught.value)


def test_name_and_version_are_the_directories(directory: Path) -> None:
    package = read_package(directory)
    assert (package.name, package.version) == ("churn", "3")


def test_missing_files_are_all_named(directory: Path) -> None:
    (directory / "model.txt").unlink()
    text = MINIMAL.replace('"lightgbm"', '"python"') + '[environment]\nrequirements = "requirements.txt"\n'
    (directory / "model.toml").write_text(text)
    said = file_problems(directory)
    assert "artifact: expected the file model.txt, found none" in said
    assert "environment.requirements: expected the file requirements.txt, found none" in said
    assert 'runtime "python": expected the file model.py, found none' in said


def test_missing_directory_and_missing_model_toml(directory: Path) -> None:
    assert "expected a model package: a directory <name>/<version>" in file_problems(directory / "nowhere")
    (directory / "model.toml").unlink()
    assert "model.toml: expected a file, found none" in file_problems(directory)


@pytest.mark.parametrize(("content", "message"), [(b"a = = 1", "not TOML"), (b"a = '\xff'", "not UTF-8")])
def test_model_toml_that_cannot_be_read(directory: Path, content: bytes, message: str) -> None:
    (directory / "model.toml").write_bytes(content)
    assert message in file_problems(directory)


def test_golden_cases_are_read(directory: Path) -> None:
    assert golden_cases(directory) == []
    output = {"name": "p", "shape": [1, 1], "datatype": "FP64", "data": [0.5]}
    case = {"name": "one", "request": {"inputs": []}, "response": {"outputs": [output]}}
    (directory / "golden.json").write_text(json.dumps({"cases": [case]}))
    (read,) = golden_cases(directory)
    assert (read.name, read.tolerance.relative) == ("one", 1e-6)
    assert read.response.outputs[0].shape == (1, 1)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cases": [{"name": 1}]}', '{"cases": [{"name": "x"}]}', "{'"])
def test_broken_golden_json_is_named(directory: Path, content: str) -> None:
    (directory / "golden.json").write_text(content)
    assert 'golden.json: expected {"cases":' in file_problems(directory)
