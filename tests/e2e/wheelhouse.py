"""A directory of wheels from which hosts without a way out install modelhost: its locked needs, and two versions of it.

    wheels = wheelhouse()
    wheels.directory, wheels.version, wheels.next_version

The second version is the same code under the next number, for upgrades. What is fetched is kept by the locks' digest,
what is built by that of the code.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache import digest_of, made_once

CHECKOUT: Final = Path(__file__).resolve().parents[2]
HOST_PYTHON: Final = "3.11"
"""Debian 12's."""
HOST_GLIBC: Final = 36
"""The minor number of Debian 12's glibc, 2.36."""
WORKER: Final = ("msgpack", "msgspec", "numpy")
"""The extra `worker`: what the environment of a model in Python needs."""
RUNTIMES: Final = ("lightgbm", "onnxruntime")
"""What the environments of the bundled models need beside it."""
FETCH_LIMIT_S: Final = 300.0
BUILD_LIMIT_S: Final = 120.0
_PARTS: Final = ("host", "feature_io", "models", "supervisor_conf")
_FILES: Final = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
_VERSION: Final = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Wheelhouse:
    """A directory for `pip install --no-index --find-links`, and the versions of modelhost in it."""

    directory: Path
    version: str
    next_version: str


def wheelhouse(*, runtimes: bool = False) -> Wheelhouse:
    """Give the directory for this checkout as it is; what is not there is fetched and built (half a minute).

    45 MB; with what models of the built-in `runtimes` need 110 MB.
    """
    names = (*WORKER, *RUNTIMES) if runtimes else WORKER
    sources = _sources()
    version = _version_of(sources["host/__init__.py"])
    digest = digest_of(_recipe(names), *(part for pair in sources.items() for part in pair))
    directory = made_once("wheelhouse", digest, lambda path: _fill(path, names))
    return Wheelhouse(directory, version, next_version(version))


def fetched(names: Sequence[str]) -> Path:
    """Give the directory of the locked wheels: those of modelhost's own needs, and of `names` with theirs."""
    return made_once("wheels", digest_of(_recipe(names)), lambda path: _fetch(path, names))


def next_version(version: str) -> str:
    """Count the last number up: 0.1.0 -> 0.1.1."""
    head, _, last = version.rpartition(".")
    return f"{head}.{int(last) + 1}"


def build(directory: Path, version: str, changes: Mapping[str, bytes] | None = None) -> Path:
    """Build this checkout's wheel under a version into `directory`. `changes`: files with other contents than here."""
    files = _sources() | dict(changes or {})
    files["host/__init__.py"] = _VERSION.sub(f'__version__ = "{version}"', files["host/__init__.py"].decode()).encode()
    tree = directory / f".tree-{version}"
    for name, content in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    try:
        _run([_uv(), "build", "--wheel", "--quiet", "--out-dir", directory, tree], BUILD_LIMIT_S)
    finally:
        shutil.rmtree(tree)
    (directory / ".gitignore").unlink(missing_ok=True)  # which uv writes
    return next(directory.glob(f"modelhost-{version}-*.whl"))


def _sources() -> dict[str, bytes]:
    """Read what a wheel is made of: name to content."""
    names = list(_FILES)
    for part in _PARTS:
        names += [
            str(path.relative_to(CHECKOUT))
            for path in (CHECKOUT / part).rglob("*")
            if "__pycache__" not in path.parts and path.is_file()
        ]
    return {name: (CHECKOUT / name).read_bytes() for name in sorted(names)}


def _version_of(source: bytes) -> str:
    found = _VERSION.search(source.decode())
    assert found is not None, "host/__init__.py has no line __version__ = ..."
    return found[1]


def _recipe(names: Sequence[str]) -> str:
    """Say what decides which wheels are fetched."""
    locks = [(CHECKOUT / "requirements" / name).read_text() for name in ("host.txt", "bundled.txt")]
    return "\n".join([HOST_PYTHON, str(HOST_GLIBC), platform.machine(), *names, *locks])


def _fill(directory: Path, names: Sequence[str]) -> None:
    for wheel in fetched(names).glob("*.whl"):
        os.link(wheel, directory / wheel.name)
    version = _version_of((CHECKOUT / "host/__init__.py").read_bytes())
    for each in (version, next_version(version)):
        build(directory, each)


def _fetch(directory: Path, names: Sequence[str]) -> None:
    """Fetch the wheels that fit a host, whatever Python this machine has: exactly what the locks say."""
    work = directory / ".work"
    work.mkdir()
    wanted = work / "wanted.txt"
    wanted.write_text("\n".join([*names, f"-r {CHECKOUT / 'requirements' / 'host.txt'}", ""]))
    exact = work / "exact.txt"
    machine = platform.machine()
    command: list[str | Path] = [
        _uv(),
        "pip",
        "compile",
        "--quiet",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        wanted,
    ]
    command += ["--constraint", CHECKOUT / "requirements" / "bundled.txt", "--output-file", exact]
    command += ["--python-version", HOST_PYTHON, "--python-platform", f"{machine}-manylinux_2_{HOST_GLIBC}"]
    _run(command, FETCH_LIMIT_S)
    # uv fetches no wheels: pip does, and gets all the names of platforms that the host's glibc can run.
    _run([_uv(), "venv", "--quiet", "--seed", work / "pip"], FETCH_LIMIT_S)
    download: list[str | Path] = [
        work / "pip/bin/python",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
    ]
    download += [
        "--only-binary",
        ":all:",
        "--python-version",
        HOST_PYTHON,
        "--implementation",
        "cp",
        "--dest",
        directory,
    ]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(HOST_GLIBC, 4, -1)]
    platforms += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    download += [option for name in platforms for option in ("--platform", name)]
    _run([*download, "--requirement", exact], FETCH_LIMIT_S)
    shutil.rmtree(work)


def _uv() -> Path:
    """The checkout's own uv, which its environments were made with."""
    return CHECKOUT / ".venv/tools/bin/uv"


def _run(command: Sequence[str | Path], limit_s: float) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, f"{Path(command[0]).name} {command[1]} failed:\n{done.stdout[-4000:]}"
