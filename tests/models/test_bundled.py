"""The bundled models: trained for real into a temporary repository, and compared with their own libraries."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

BUNDLED = Path(__file__).resolve().parents[2] / "models" / "bundled"
COMMON_FILES = {"model.toml", "README.md", "golden.json"}
FILES = {
    "breast_cancer": COMMON_FILES | {"model.txt"},
    "breast_cancer_by_id": COMMON_FILES | {"model.txt"},
    "digits": COMMON_FILES | {"model.onnx"},
    "diabetes": COMMON_FILES | {"model.py", "blend.json", "trees.txt"},
}
BESIDE = {"features.toml", "features.sqlite"}
DTYPES = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "BYTES": object}

Arrays = dict[str, NDArray[Any]]
every_model = pytest.mark.parametrize("name", FILES)


def train(
    *arguments: str | Path,
    driver: Path = BUNDLED / "train.py",
    flags: tuple[str, ...] = ("-W", "error"),
    under: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run the driver by path, as `make run` does; a warning in it is an error."""
    command = [*under, sys.executable, "-P", *flags, driver, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=580, check=False, cwd="/")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Train all of them: the repository, and what the driver printed."""
    repository = tmp_path_factory.mktemp("bundled") / "repository"
    run = train("--repository", repository)
    assert (run.returncode, run.stderr) == (0, "")
    return repository, run.stdout


@pytest.fixture
def repository(trained: tuple[Path, str]) -> Path:
    """Give the trained repository; tests that change it take `copied`."""
    return trained[0]


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """Give a copy of the trained repository to change."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


def module_from(path: Path) -> ModuleType:
    """Import a file by its path, under a name of its own, and leave no bytecode beside it."""
    spec = importlib.util.spec_from_file_location(f"bundled_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(module)
    return module


def snapshot(directory: Path) -> dict[str, bytes]:
    """Read every file below a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def array(tensor: dict[str, Any]) -> NDArray[Any]:
    """Decode one tensor of the protocol's JSON; strings become bytes."""
    values = [v.encode() if isinstance(v, str) else v for v in tensor["data"]]
    return np.array(values, dtype=DTYPES[tensor["datatype"]]).reshape(tensor["shape"])


def golden(package: Path) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((package / "golden.json").read_text())["cases"]
    return cases


# The libraries themselves, each from the saved artifacts alone.


def breast_cancer_by_lightgbm(package: Path) -> Callable[[Arrays], Arrays]:
    import lightgbm

    booster = lightgbm.Booster(model_file=str(package / "model.txt"))
    return lambda inputs: {"probability": np.asarray(booster.predict(inputs["features"])).reshape(-1, 1)}


def breast_cancer_by_id_by_lightgbm(package: Path) -> Callable[[Arrays], Arrays]:
    from sklearn.datasets import load_breast_cancer

    rows, answer = load_breast_cancer().data, breast_cancer_by_lightgbm(package)
    # A request has the features themselves (golden cases), or the number of a patient.
    return lambda inputs: answer(inputs if "features" in inputs else {"features": rows[inputs["patient_id"]]})


def digits_by_onnxruntime(package: Path) -> Callable[[Arrays], Arrays]:
    import onnxruntime

    session = onnxruntime.InferenceSession(package / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def diabetes_by_formula(package: Path) -> Callable[[Arrays], Arrays]:
    import lightgbm

    blend = json.loads((package / "blend.json").read_text())
    booster = lightgbm.Booster(model_file=str(package / "trees.txt"))

    def answer(inputs: Arrays) -> Arrays:
        rows = np.concatenate([inputs[column] for column in booster.feature_name()], axis=1)
        linear = rows @ blend["coefficients"] + blend["intercept"]
        weight, (low, high) = blend["linear_weight"], blend["band_edges"]
        progression = weight * linear + (1 - weight) * np.asarray(booster.predict(rows))
        bands = [b"low" if p < low else b"medium" if p < high else b"high" for p in progression]
        return {
            "progression": progression.reshape(-1, 1),
            "risk_band": np.array(bands, dtype=object).reshape(-1, 1),
        }

    return answer


def diabetes_by_model_py(package: Path) -> Callable[[Arrays], Arrays]:
    model = module_from(package / "model.py").Model()
    model.load(package)
    predict: Callable[[Arrays], Arrays] = model.predict
    return predict


LIBRARIES = {
    "breast_cancer": breast_cancer_by_lightgbm,
    "breast_cancer_by_id": breast_cancer_by_id_by_lightgbm,
    "digits": digits_by_onnxruntime,
    "diabetes": diabetes_by_formula,
}


def assert_answers(answers: Arrays, expected: list[dict[str, Any]], absolute: float) -> None:
    """Compare named arrays with recorded output tensors: name, shape, datatype, values."""
    for tensor in expected:
        got, wanted = answers[tensor["name"]], array(tensor)
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        if tensor["datatype"] in ("FP32", "FP64"):
            assert np.max(np.abs(got - wanted)) <= absolute
        else:
            assert got.tolist() == wanted.tolist()


# What a package holds


@every_model
def test_package_holds_exactly_its_files(repository: Path, name: str) -> None:
    package = repository / name / "1"
    assert {path.name for path in package.iterdir()} == FILES[name]
    assert [path.name for path in (repository / name).iterdir()] == ["1"]
    assert (package / "model.toml").read_bytes() == (BUNDLED / name / "model.toml").read_bytes()


def test_repository_holds_nothing_but_models_and_their_features(repository: Path) -> None:
    assert {path.name for path in repository.iterdir()} == FILES.keys() | BESIDE


@every_model
def test_model_toml_is_complete(repository: Path, name: str) -> None:
    package = repository / name / "1"
    config = tomllib.loads((package / "model.toml").read_text())
    runtimes = {"breast_cancer": "lightgbm", "breast_cancer_by_id": "lightgbm", "digits": "onnx", "diabetes": "python"}
    assert config["runtime"] == runtimes[name]
    assert "artifact" not in config or (package / config["artifact"]).is_file()
    assert config["resources"].keys() == {"memory", "cpus", "threads"}
    assert config["scale"] == {"processes": 2 if name == "breast_cancer" else 1}
    assert config["limits"].keys() == {"timeout_ms", "max_batch_rows", "max_queue", "startup_s", "hang_s"}


@every_model
def test_golden_cases_have_the_declared_signature(repository: Path, name: str) -> None:
    package = repository / name / "1"
    config = tomllib.loads((package / "model.toml").read_text())
    cases = golden(package)
    assert 3 <= len(cases) <= 5
    assert max(case["request"]["inputs"][0]["shape"][0] for case in cases) > 1
    for case in cases:
        asked = [output["name"] for output in case["request"].get("outputs", config["outputs"])]
        assert [tensor["name"] for tensor in case["response"]["outputs"]] == asked
        for declared, tensors in (
            (config["inputs"], case["request"]["inputs"]),
            (config["outputs"], case["response"]["outputs"]),
        ):
            signature = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in declared}
            for tensor in tensors:
                assert (tensor["datatype"], [-1, *tensor["shape"][1:]]) == signature[tensor["name"]]
                assert len(tensor["data"]) == np.prod(tensor["shape"])


# What a model answers


@pytest.mark.parametrize(
    ("name", "load"), [*LIBRARIES.items(), pytest.param("diabetes", diabetes_by_model_py, id="model.py")]
)
def test_golden_answers_come_from_the_library(
    repository: Path, name: str, load: Callable[[Path], Callable[[Arrays], Arrays]]
) -> None:
    answer = load(repository / name / "1")
    for case in golden(repository / name / "1"):
        assert case["tolerance"] == {"absolute": 1e-5 if name == "digits" else 1e-9, "relative": 0}
        answers = answer({tensor["name"]: array(tensor) for tensor in case["request"]["inputs"]})
        assert_answers(answers, case["response"]["outputs"], case["tolerance"]["absolute"])


def test_python_model_gives_a_row_the_same_answer_alone_and_in_a_batch(repository: Path) -> None:
    predict = diabetes_by_model_py(repository / "diabetes" / "1")
    batch = {t["name"]: array(t) for t in golden(repository / "diabetes" / "1")[-1]["request"]["inputs"]}
    together = predict(batch)
    for row in range(len(batch["age"])):
        alone = predict({name: values[row : row + 1] for name, values in batch.items()})
        assert alone["progression"][0, 0] == together["progression"][row, 0]
        assert alone["risk_band"][0, 0] == together["risk_band"][row, 0]


def test_python_model_gives_strings_as_object_arrays_of_bytes(repository: Path) -> None:
    predict = diabetes_by_model_py(repository / "diabetes" / "1")
    bands = []
    for case in golden(repository / "diabetes" / "1")[:3]:
        band = predict({t["name"]: array(t) for t in case["request"]["inputs"]})["risk_band"]
        assert band.dtype == object
        bands.append(band[0, 0])
    assert bands == [b"low", b"medium", b"high"]


# What a README promises


@every_model
def test_readme_example_is_what_the_library_answers(repository: Path, name: str) -> None:
    package = repository / name / "1"
    text = (package / "README.md").read_text()
    request = re.search(rf"curl -s localhost:8080/v2/models/{name}/infer -d '(.*?)'\n", text, re.DOTALL)
    response = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert request is not None and response is not None
    answers = LIBRARIES[name](package)({t["name"]: array(t) for t in json.loads(request[1])["inputs"]})
    promised = json.loads(response[1])
    assert (promised["model_name"], promised["model_version"]) == (name, "1")
    assert {tensor["name"] for tensor in promised["outputs"]} == answers.keys()
    # Another CPU may train a network that differs a little: its README still tells the truth to two digits.
    assert_answers(answers, promised["outputs"], 0.01)


@every_model
def test_readme_states_the_measured_metrics(trained: tuple[Path, str], name: str) -> None:
    report = next(line for line in trained[1].splitlines() if line.startswith(f"{name}: "))
    text = (BUNDLED / name / "README.md").read_text()
    measured = re.findall(r"(\w+) (\d+\.\d{4})", report)
    assert measured
    for metric, value in measured:
        stated = re.search(rf"`{metric}`.*\| (\d+\.\d+) \|", text)
        assert stated is not None, metric
        assert float(stated[1]) == pytest.approx(float(value), abs=0.01)


# How the driver works


def test_driver_reports_one_line_for_each_model(trained: tuple[Path, str]) -> None:
    features, *lines = sorted(trained[1].splitlines(), key=lambda line: not line.startswith("features: "))
    assert re.fullmatch(r"features: loading \.\.\. 1707 rows in .*/repository/features\.sqlite, \d+\.\d s", features)
    assert [line.split(":")[0] for line in lines] == sorted(FILES)
    assert all(re.search(r"training \.\.\. .* \d\.\d{4}.* on held-out rows, \d+\.\d s$", line) for line in lines)


def test_present_models_are_left_alone_and_no_library_is_imported(repository: Path) -> None:
    before = snapshot(repository)
    run = train("--repository", repository, flags=("-X", "importtime"))
    assert run.returncode == 0
    assert [line.split(": ")[1].split()[0] for line in run.stdout.splitlines()] == ["present"] * 5
    imported = {line.split("|")[-1].strip() for line in run.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"numpy", "sklearn", "lightgbm", "onnxruntime", "skl2onnx", "asyncio", "feature_io"}
    assert snapshot(repository) == before


def test_only_the_named_and_missing_model_is_trained(copied: Path) -> None:
    shutil.rmtree(copied / "breast_cancer")
    shutil.rmtree(copied / "digits")
    run = train("--repository", copied, "breast_cancer")
    assert run.returncode == 0
    assert (copied / "breast_cancer" / "1" / "golden.json").is_file()
    assert not (copied / "digits").exists()


def test_force_trains_again_and_gives_the_same_model(repository: Path, copied: Path) -> None:
    (copied / "digits" / "1" / "stray").write_text("left by hand")
    run = train("--repository", copied, "--force")
    assert run.returncode == 0
    assert [line for line in run.stdout.splitlines() if "present" in line] == [
        f"features: present in {copied}/features.toml"
    ]
    again, before = snapshot(copied), snapshot(repository)
    assert again.keys() == before.keys()
    # skl2onnx does not always write a graph's parts in the same order; golden.json shows that it computes the same.
    assert {path for path in again if again[path] != before[path]} <= {path for path in again if path.endswith(".onnx")}
    assert {path.name for path in copied.iterdir()} == FILES.keys() | BESIDE


def test_features_are_the_data_sets(repository: Path) -> None:
    from sklearn.datasets import load_breast_cancer

    model = tomllib.loads((repository / "breast_cancer_by_id" / "1" / "model.toml").read_text())
    views = {view["name"]: view for view in tomllib.loads((repository / "features.toml").read_text())["views"]}
    connection = sqlite3.connect(f"file:{repository}/features.sqlite?mode=ro", uri=True)
    columns = []
    for reference in model["inputs"][0]["feature"]:
        view, column = reference.split(".")
        assert column in [one["name"] for one in views[view]["columns"]]
        found = connection.execute(f"SELECT {column} FROM {view} ORDER BY patient_id").fetchall()  # noqa: S608
        columns.append([value for (value,) in found])
    connection.close()
    assert np.array_equal(np.array(columns).T, load_breast_cancer().data)


def test_a_features_toml_that_is_there_is_left_as_it_is(copied: Path) -> None:
    (copied / "features.toml").write_text("# mine\n")
    (copied / "features.sqlite").unlink()
    run = train("--repository", copied)
    assert run.returncode == 0
    assert f"features: {copied}/features.toml left as it is; breast_cancer_by_id needs the views of" in run.stdout
    assert (copied / "features.toml").read_text() == "# mine\n"
    assert not (copied / "features.sqlite").exists()


def test_features_that_were_not_finished_are_loaded_again(copied: Path) -> None:
    (copied / "features.toml").unlink()
    (copied / "features.sqlite").write_bytes(b"half")
    run = train("--repository", copied, "breast_cancer_by_id")
    assert (run.returncode, run.stderr) == (0, "")
    assert (copied / "features.sqlite").read_bytes().startswith(b"SQLite format 3\0")
    assert (copied / "features.toml").read_bytes() == (BUNDLED / "breast_cancer_by_id" / "features.toml").read_bytes()
    assert {path.name for path in copied.iterdir()} == FILES.keys() | BESIDE


@every_model
def test_training_below_its_floor_fails(name: str) -> None:
    module = module_from(BUNDLED / name / "train.py")
    module.check(module.FLOOR)
    for metric, floor in module.FLOOR.items():
        for worse in (floor - 0.001, float("nan")):
            with pytest.raises(RuntimeError, match=f"{name}: {metric} .* is below its floor"):
                module.check({**module.FLOOR, metric: worse})


# A driver with a toy model beside it: no library, and training that fails or hangs when the test wants it

TOY = """
import os, time
from pathlib import Path

def train(out):
    (out / "artifact").write_text("half")
    match os.environ.get("TOY"):
        case "hang":
            print("half way", flush=True)
            while True:  # not signal.pause(), which a signal that comes just before it does not end
                time.sleep(0.01)
        case "worse":
            raise RuntimeError("toy: accuracy 0.1 is below its floor 0.9")
        case "library":
            import a_library_that_nobody_has
        case "shared library":
            raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")
        case "bug":
            raise ZeroDivisionError("a bug")
    (out / "artifact").write_text("whole")
    (out / "golden.json").write_text("{}")
    return {"accuracy": 0.95}
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Give a driver that has one bundled model, `toy`."""
    source = tmp_path / "bundled" / "toy"
    source.mkdir(parents=True)
    (source / "train.py").write_text(TOY)
    (source / "model.toml").write_text('runtime = "python"\n')
    return Path(shutil.copy(BUNDLED / "train.py", source.parent))


@pytest.fixture
def hanging(toy: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start training into `repository` and stop in the middle, with the artifact half written."""
    process = subprocess.Popen(
        [sys.executable, "-P", toy, "--repository", tmp_path / "repository"],
        env={**os.environ, "TOY": "hang"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "toy: training ... half way\n"
        yield process
        process.kill()


def test_toy_package_is_built_with_readable_modes(toy: Path, tmp_path: Path) -> None:
    run = train("--repository", tmp_path / "new" / "repository", driver=toy)
    assert (run.returncode, run.stderr) == (0, "")
    package = tmp_path / "new" / "repository" / "toy" / "1"
    assert {path.name for path in package.iterdir()} == {"model.toml", "artifact", "golden.json"}
    assert package.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_killed_run_leaves_no_model_and_the_next_run_cleans_up(
    toy: Path, hanging: subprocess.Popen[str], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    hanging.kill()
    hanging.wait()
    assert [path.name for path in repository.iterdir()] == [".training"]

    assert train("--repository", repository, driver=toy).returncode == 0
    assert [path.name for path in repository.iterdir()] == ["toy"]
    assert (repository / "toy" / "1" / "artifact").read_text() == "whole"


def test_killed_force_run_keeps_the_old_model(toy: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assert train("--repository", repository, driver=toy).returncode == 0
    with subprocess.Popen(
        [sys.executable, "-P", toy, "--repository", repository, "--force"],
        env={**os.environ, "TOY": "hang"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert (repository / "toy" / "1" / "artifact").read_text() == "whole"

    assert "present" in train("--repository", repository, driver=toy).stdout
    assert [path.name for path in repository.iterdir()] == ["toy"]


def test_interrupted_run_cleans_up_itself(hanging: subprocess.Popen[str], tmp_path: Path) -> None:
    hanging.send_signal(signal.SIGINT)
    _, stderr = hanging.communicate(timeout=60)
    assert (hanging.returncode, stderr.count("\n")) == (130, 1)
    assert list((tmp_path / "repository").iterdir()) == []


def test_second_run_at_the_same_time_is_refused(toy: Path, hanging: subprocess.Popen[str], tmp_path: Path) -> None:
    run = train("--repository", tmp_path / "repository", driver=toy)
    assert run.returncode == 2
    assert run.stderr.endswith("another training run is at work here\n")
    assert (tmp_path / "repository" / ".training" / "toy" / "artifact").read_text() == "half"


@pytest.mark.parametrize(
    ("reason", "code", "message"),
    [
        ("worse", 1, "train.py: toy: accuracy 0.1 is below its floor 0.9\n"),
        (
            "library",
            2,
            "train.py: the Python module 'a_library_that_nobody_has' is missing: pip install 'modelhost[train]'\n",
        ),
        (
            "shared library",
            2,
            "train.py: libgomp.so.1: cannot open shared object file: No such file or directory\n",
        ),
    ],
)
def test_failed_training_says_why_in_one_line_and_leaves_nothing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, code: int, message: str
) -> None:
    monkeypatch.setenv("TOY", reason)
    run = train("--repository", tmp_path / "repository", driver=toy)
    assert (run.returncode, run.stderr) == (code, message)
    assert run.stdout == "toy: training ... stopped\n"
    assert list((tmp_path / "repository").iterdir()) == []


def test_bug_in_a_training_keeps_its_traceback_and_leaves_nothing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY", "bug")
    run = train("--repository", tmp_path / "repository", driver=toy)
    assert run.returncode == 1
    assert "ZeroDivisionError: a bug" in run.stderr
    assert list((tmp_path / "repository").iterdir()) == []


def test_directory_that_cannot_be_made_is_one_line(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = train("--repository", tmp_path / "file" / "repository", driver=toy)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"train.py: {tmp_path / 'file' / 'repository'}: Not a directory\n"


def test_directory_that_cannot_be_written_is_one_line(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir(mode=0o500)
    # root writes everywhere, unless it lacks the capability
    under = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    run = train("--repository", tmp_path / "repository", driver=toy, under=under)
    assert run.returncode == 2
    assert run.stderr == f"train.py: {tmp_path / 'repository' / '.training'}: Permission denied\n"


def test_missing_scikit_learn_is_one_line(tmp_path: Path) -> None:
    run = train("--repository", tmp_path / "repository", "breast_cancer", flags=("-S",))  # no site-packages
    assert run.returncode == 2
    assert re.fullmatch(
        r"train\.py: the Python module '\w+' is missing: pip install 'modelhost\[train\]'\n", run.stderr
    )


def test_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    run = train("--repository", tmp_path / "repository", "iris")
    assert run.returncode == 2
    assert "no bundled model 'iris'; there are: breast_cancer, breast_cancer_by_id, diabetes, digits" in run.stderr
    assert not (tmp_path / "repository").exists()


def test_help_names_the_models_and_shows_commands() -> None:
    run = train("--help")
    assert run.returncode == 0
    assert "breast_cancer, breast_cancer_by_id, diabetes, digits" in run.stdout
    assert "train.py --repository model_repository --force digits" in run.stdout
