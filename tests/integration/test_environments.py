"""Environments that are really built, from wheels made here: no index is asked."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import CHECKOUT, RunningHost, tensors, until
from packages import UNHURRIED, write_package

from host.config.environments import WORKER_REQUIREMENTS, EnvironmentNeed, read_requirements
from host.environments import EnvironmentStore, find_python, find_uv
from host.protocol.errors import ConfigError

pytestmark = pytest.mark.integration

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
TELLS = '''
import numpy, shade

class Model:
    """Says which library it has."""

    def load(self, package):
        pass

    def predict(self, inputs):
        return {"y": inputs["x"] * 0 + shade.NUMBER}
'''


WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(directory: Path, name: str, version: str, code: str, requires: str = "") -> None:
    """Make a wheel of one module (PEP 427)."""
    files = {
        f"{name}.py": code,
        f"{name}-{version}.dist-info/WHEEL": WHEEL,
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {requires}\n" if requires else ""),
    }
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}\n")
    record = f"{name}-{version}.dist-info/RECORD"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(record, "".join([*lines, f"{record},,\n"]))


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory of wheels: what a worker needs, and two versions of a library of ours."""
    directory = tmp_path_factory.mktemp("wheels")
    # uv downloads nothing for others; pip does, and uv brings it.
    pip = [str(find_uv()), "tool", "run", "--quiet", "--python", sys.executable, "pip"]
    subprocess.run(
        [*pip, "download", "--quiet", "--only-binary=:all:", "--dest", str(directory), *WORKER_REQUIREMENTS],
        check=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    write_wheel(directory, "shade", "1.0", "NUMBER = 1\n")
    write_wheel(directory, "shade", "2.0", "NUMBER = 2\n")
    write_wheel(directory, "stubborn", "1.0", "", requires="shade==1.0")
    return directory


def need(*requirements: str, python: str = VERSION) -> EnvironmentNeed:
    return EnvironmentNeed(python=python, requirements=tuple(sorted(requirements)))


def number(store: EnvironmentStore, wanted: EnvironmentNeed) -> str:
    code = "import shade; print(shade.NUMBER)"
    done = subprocess.run([store.python(wanted), "-I", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def names(root: Path) -> list[str]:
    """What is there, but for locks."""
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_environments_are_made_once_side_by_side_and_say_what_they_hold(tmp_path: Path, wheelhouse: Path) -> None:
    store = EnvironmentStore(tmp_path / "environments")
    one, two = need("shade==1.0"), need("shade==2.0")
    said: list[str] = []
    assert store.build(one, wheelhouse, said.append)
    assert any("shade==1.0" in line for line in said)
    assert store.build(two, wheelhouse, said.append)
    assert not store.build(one, wheelhouse, said.append)
    assert (number(store, one), number(store, two)) == ("1", "2")
    described = json.loads((store.path(one) / "modelhost.json").read_text())
    assert "shade==1.0" in described["installed"]
    assert names(store.root) == sorted([one.key, two.key])


def test_a_conflict_is_told_in_the_resolvers_words_and_leaves_nothing(tmp_path: Path, wheelhouse: Path) -> None:
    store = EnvironmentStore(tmp_path / "environments")
    wanted = need("stubborn", "shade==2.0")
    with pytest.raises(ConfigError, match="uv pip failed") as raised:
        store.build(wanted, wheelhouse, lambda _: None)
    # uv breaks its lines as the terminal's width wants it.
    assert "stubborn depend on shade==1.0 and you require shade==2.0" in " ".join(str(raised.value).split())
    assert not store.is_built(wanted)
    assert names(store.root) == []


def test_a_python_that_is_not_there_is_named_and_never_fetched(tmp_path: Path, wheelhouse: Path) -> None:
    store = EnvironmentStore(tmp_path / "environments")
    with pytest.raises(ConfigError, match=r"expected a Python 3\.99 that is installed, found none as python3\.99"):
        store.build(need(python="3.99"), wheelhouse, lambda _: None)
    assert names(store.root) == []


def test_prune_removes_what_nobody_needs_and_what_was_killed(tmp_path: Path, wheelhouse: Path) -> None:
    store = EnvironmentStore(tmp_path / "environments")
    one, two = need("shade==1.0"), need("shade==2.0")
    store.build(one, wheelhouse, lambda _: None)
    store.build(two, wheelhouse, lambda _: None)
    (store.root / ".0123456789abcdef.new").mkdir()
    assert store.prune({two.key}) == [one.key]
    assert names(store.root) == [two.key]
    assert EnvironmentStore(tmp_path / "none").prune(set()) == []


# -- the command ------------------------------------------------------------------------------------------------
def write_model(repository: Path, name: str, requirements: str) -> None:
    package = write_package(
        repository,
        name,
        TELLS,
        inputs=[("x", "FP64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1])],
        limits=UNHURRIED,
    )
    with (package / "model.toml").open("a") as file:
        file.write('[environment]\nrequirements = "requirements.txt"\n')
    (package / "requirements.txt").write_text(requirements)


def modelhost(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "host.cli", *map(str, arguments)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, said = process.communicate(timeout=100)
    return process.returncode, out, said


def test_models_with_other_libraries_answer_side_by_side(
    repository: Path, tmp_path: Path, wheelhouse: Path, make_host: Callable[..., RunningHost]
) -> None:
    write_model(repository, "one", "shade==1.0\n")
    write_model(repository, "two", "shade==2.0\n")
    write_model(repository, "three", "shade==2.0  # as two\n")
    root = tmp_path / "environments"
    where = ("--repository", repository, "--environments", root)
    code, _, said = ended(modelhost("check", *where))
    assert code == 2
    assert "one version 1: its environment is not built; build it with: modelhost build one" in said

    code, out, said = ended(modelhost("build", *where, "--wheelhouse", wheelhouse, "--json"))
    assert code == 0, said
    entries = json.loads(out)["environments"]
    assert len(names(root)) == len({entry["environment"] for entry in entries}) == 2
    assert "shade==1.0" in said

    host = make_host(repository, settings={"environments": root})
    host.start()
    answers = {
        model: host.infer(model, tensors(x=("FP64", [1, 1], [5.0]))).document["outputs"][0]["data"][0]
        for model in ("one", "two", "three")
    }
    assert answers == {"one": 1.0, "two": 2.0, "three": 2.0}

    # It is there, whoever uses it: nothing is built again, and nothing that a package asks for is pruned.
    code, out, said = ended(modelhost("build", *where, "--prune"))
    assert (code, said) == (0, "")
    assert out.count("was there") == 3
    shutil.rmtree(repository / "one")
    code, out, _ = ended(modelhost("build", *where, "--prune"))
    assert (code, out.count("removed: ")) == (0, 1)
    assert len(names(root)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_ended_is_no_environment_and_the_next_one_is(
    repository: Path, tmp_path: Path, wheelhouse: Path, number: signal.Signals
) -> None:
    write_model(repository, "one", "shade==1.0\n")
    root = tmp_path / "environments"
    build = ("build", "--repository", repository, "--environments", root, "--wheelhouse", wheelhouse)
    for _ in range(5):
        process = modelhost(*build)
        until(lambda: list(root.glob(".*.new/bin")) or process.poll() is not None, "the build has begun", 60.0)  # noqa: B023
        process.send_signal(number)
        code, _, _ = ended(process)
        built = [name for name in names(root) if not name.startswith(".")]
        if not built:
            break
        # It was done before the signal came, as this process was not run meanwhile.
        shutil.rmtree(root)
    assert built == []
    assert code == (130 if number is signal.SIGINT else -number)
    if number is signal.SIGINT:
        assert names(root) == []
    code, _, said = ended(modelhost(*build))
    assert code == 0, said
    assert len(names(root)) == 1


def test_an_unknown_model_is_refused_with_those_that_are_known(repository: Path, tmp_path: Path) -> None:
    write_model(repository, "one", "shade==1.0\n")
    code, _, said = ended(
        modelhost("build", "nine", "--repository", repository, "--environments", tmp_path / "environments")
    )
    assert (code, said.strip()) == (2, "nine: expected a deployed model: one")


# -- real libraries ---------------------------------------------------------------------------------------------
TRAIN = """
import json, sys
import lightgbm, numpy
rows = numpy.random.default_rng(0).normal(size=(400, 4))
booster = lightgbm.train(
    {"objective": "binary", "num_leaves": 7, "num_threads": 1, "verbose": -1, "seed": 1},
    lightgbm.Dataset(rows, (rows[:, 0] * rows[:, 1] > 0).astype(float)), 20)
booster.save_model(sys.argv[1])
print(json.dumps({"lightgbm": lightgbm.__version__, "numpy": numpy.__version__, "rows": rows[:50].tolist(),
                  "answers": booster.predict(rows[:50], num_threads=1).tolist()}))
"""
LIBRARIES = {
    "old": (VERSION, "lightgbm==3.3.5\nnumpy==1.26.4\nscikit-learn<1.6\nscipy<1.14\n"),
    "new": (VERSION, "lightgbm>=4.6,<5\nnumpy>=2.2,<3\n"),
}


def other_python() -> str | None:
    """Another version of Python that is installed and that modelhost serves with."""
    for version in ("3.13", "3.12", "3.11"):
        if version != VERSION:
            try:
                find_python(version)
            except ConfigError:
                continue
            return version
    return None


@pytest.mark.timeout(300)
def test_two_lightgbms_two_numpys_and_another_python_answer_as_their_own_libraries_do(
    repository: Path, tmp_path: Path, make_host: Callable[..., RunningHost]
) -> None:
    root = tmp_path / "environments"
    store = EnvironmentStore(root)
    libraries = dict(LIBRARIES)
    other = other_python()
    if other is not None:
        libraries["other"] = (other, LIBRARIES["new"][1])
    expected = {}
    for name, (python, requirements) in libraries.items():
        package = repository / name / "1"
        package.mkdir(parents=True)
        (package / "requirements.txt").write_text(requirements)
        wanted = EnvironmentNeed(python=python, requirements=read_requirements(package / "requirements.txt"))
        store.build(wanted, None, lambda _: None)
        trained = subprocess.run(
            [store.python(wanted), "-I", "-c", TRAIN, package / "model.txt"],
            capture_output=True, text=True, check=True, timeout=100,
        )  # fmt: skip
        expected[name] = json.loads(trained.stdout.splitlines()[-1])
        (package / "model.toml").write_text(
            'runtime = "lightgbm"\nartifact = "model.txt"\n'
            '[[inputs]]\nname = "x"\ndatatype = "FP64"\nshape = [-1, 4]\n'
            '[[outputs]]\nname = "p"\ndatatype = "FP64"\nshape = [-1, 1]\n'
            f"[limits]\ntimeout_ms = {UNHURRIED['timeout_ms']}\n"
            f'[environment]\npython = "{python}"\nrequirements = "requirements.txt"\n'
        )
    assert expected["old"]["lightgbm"] == "3.3.5"
    assert expected["old"]["numpy"].startswith("1.26.")
    assert expected["new"]["lightgbm"].startswith("4.")
    assert expected["new"]["numpy"].startswith("2.")

    host = make_host(repository, settings={"environments": root})
    host.start()
    for name, own in expected.items():
        for rows in (own["rows"], own["rows"][:1]):
            data = [value for row in rows for value in row]
            answer = host.infer(name, tensors(x=("FP64", [len(rows), 4], data)))
            assert answer.document["outputs"][0]["data"] == own["answers"][: len(rows)], name
        assert f"ready: lightgbm {own['lightgbm']}" in host.log(f"{name}.v1:0")
