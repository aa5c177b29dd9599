"""The wheel works outside the checkout: the command, the front's imports, and a worker by path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import CHECKOUT, until

pytestmark = pytest.mark.integration

UV = CHECKOUT / ".venv" / "tools" / "bin" / "uv"


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """Build the wheel from a copy of the tracked files, and unpack it beside the libraries of this environment."""
    work = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    source = work / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, source / name)
    subprocess.run([UV, "build", "--wheel", "--quiet", "--out-dir", work, source], check=True, timeout=120)
    (wheel,) = work.glob("modelhost-*.whl")
    environment = work / "venv"
    venv.create(environment, with_pip=False)
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--no-deps", "--python", environment / "bin" / "python", wheel], check=True
    )
    site = next(environment.glob("lib/python*/site-packages"))
    # The dependencies are those that the tests run with: what is tested here is modelhost's own wheel.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    site.joinpath("libraries.pth").write_text("\n".join(libraries) + "\n")
    yield environment
    shutil.rmtree(work)


def run(environment: Path, *command: str) -> str:
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [environment / "bin" / command[0], *command[1:]],
        cwd=environment, env=clean, check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip


def test_wheel_brings_the_command(installed: Path) -> None:
    assert "modelhost" in run(installed, "modelhost", "--version")
    assert "up" in run(installed, "modelhost", "--help")


def test_wheel_is_whole_and_imports_from_its_own_place(installed: Path) -> None:
    code = "import host.front.server, host.control, supervisor_conf.render, models.worker; print(models.__file__)"
    assert str(installed) in run(installed, "python", "-P", "-c", code)


def test_wheel_carries_the_bundled_models_sources(installed: Path) -> None:
    site = next(installed.glob("lib/python*/site-packages"))
    names = {path.name for path in (site / "models" / "bundled" / "diabetes").iterdir()}
    assert {"train.py", "model.py", "model.toml", "README.md"} <= names


def test_wheel_carries_the_status_page(installed: Path) -> None:
    site = next(installed.glob("lib/python*/site-packages"))
    static = Path("host", "control", "static")
    carried = {str(path.relative_to(site)) for path in (site / static).rglob("*") if path.is_file()}
    assert carried == {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / static).rglob("*") if path.is_file()}


def test_wheels_worker_serves_in_an_interpreter_that_lacks_modelhost(installed: Path, bundled: Path) -> None:
    site = next(installed.glob("lib/python*/site-packages"))
    socket = installed.parent / "w.sock"
    command = [sys.executable, "-I", "-u", str(site / "models" / "by_path.py")]
    command += ["--package", str(bundled / "breast_cancer" / "1"), "--socket", str(socket)]
    worker = subprocess.Popen(command, cwd="/", stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: socket.exists() or worker.poll() is not None, "the worker's socket", 30)
        assert worker.poll() is None, worker.stderr.read() if worker.stderr else ""
    finally:
        worker.terminate()
        worker.communicate(timeout=20)
    assert worker.returncode == 0
    assert not socket.exists()
