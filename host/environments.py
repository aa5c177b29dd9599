"""Virtual environments for models: one for each distinct need, made by uv, found by the digest of what it holds.

A need is a Python version and a set of requirements. Models with equal needs share an environment; nothing in it is
ever changed, and another need is another directory. So building is safe beside a running host, and a version that
goes back to older requirements finds its environment where it was.

An environment is made under a hidden name and renamed when it is whole and proven, and only one process builds it at a
time: a build that is killed leaves nothing that could be taken for an environment, and the next one clears it away.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from host.config.environments import WORKER_REQUIREMENTS, EnvironmentNeed, environment_python
from host.protocol.errors import ConfigError, HostError

DESCRIPTION_FILE: Final = "modelhost.json"
_PROOF: Final = "import msgpack, msgspec, numpy"
_PROOF_S: Final = 60.0
_WORDS_OF_UV: Final = 40
"""Last lines that are repeated of what uv said when it failed."""


class EnvironmentStore:
    """The environments of one host."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, need: EnvironmentNeed) -> Path:
        """The directory of an environment, built or not."""
        return self.root / need.key

    def python(self, need: EnvironmentNeed) -> Path:
        """Its interpreter."""
        return environment_python(self.root, need)

    def is_built(self, need: EnvironmentNeed) -> bool:
        """Whether it is there, and its interpreter has not been uninstalled since."""
        return (self.path(need) / DESCRIPTION_FILE).is_file() and self.python(need).exists()

    def build(self, need: EnvironmentNeed, wheelhouse: Path | None, report: Callable[[str], None]) -> bool:
        """Make an environment; False if it was there. `report` gets uv's words as they come.

        Raises `ConfigError` with the resolver's own words, and `HostError` if there is no uv.
        """
        if self.is_built(need):
            return False
        uv = find_uv()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"environments: {self.root}: expected a directory to write to: {error.strerror}"
            ) from error
        with self._locked(need.key):
            if self.is_built(need):
                return False
            part = self._unfinished(need.key)
            shutil.rmtree(part, ignore_errors=True)
            try:
                _make(part, need, uv, wheelhouse, report)
                shutil.rmtree(self.path(need), ignore_errors=True)
                part.rename(self.path(need))
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return True

    def unneeded(self, keep: Collection[str]) -> list[str]:
        """The keys of what `prune` would remove."""
        if not self.root.is_dir():
            return []
        return sorted(
            path.name
            for path in self.root.iterdir()
            if path.is_dir() and not path.name.startswith(".") and path.name not in keep
        )

    def unfinished(self) -> list[Path]:
        """What killed builds left: directories without an environment's name that no process works on."""
        found: list[Path] = []
        for path in sorted(self.root.glob(".*.new")):
            try:
                with self._locked(path.name.removeprefix(".").removesuffix(".new"), wait=False):
                    found.append(path)
            except BlockingIOError:
                pass  # it is being built
        return found

    def prune(self, keep: Collection[str]) -> list[str]:
        """Remove every environment but these, and what killed builds left. Returns the keys that are gone."""
        if not self.root.is_dir():
            return []
        keys = {path.name.removeprefix(".").removesuffix(".new") for path in self.root.iterdir() if path.is_dir()}
        removed: list[str] = []
        for key in sorted(keys):
            with self._locked(key):
                shutil.rmtree(self._unfinished(key), ignore_errors=True)
                if key not in keep and (self.root / key).is_dir():
                    # Renamed first: half an environment never has its name.
                    (self.root / key).rename(self._unfinished(key))
                    shutil.rmtree(self._unfinished(key))
                    removed.append(key)
        return removed

    def _unfinished(self, key: str) -> Path:
        return self.root / f".{key}.new"

    @contextmanager
    def _locked(self, key: str, *, wait: bool = True) -> Iterator[None]:
        """Keep other processes from the same environment; the kernel lets go when this one dies.

        Raises `BlockingIOError` if another one is at it and `wait` is false.
        """
        file = os.open(self.root / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(file)


def find_uv() -> Path:
    """The uv that was installed with us, else the one on the PATH. Raises `HostError`."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise HostError("environments are built with uv, and there is none: pip install uv")
    return Path(found)


def find_python(version: str) -> Path:
    """An installed interpreter of a version such as `3.12`. Raises `ConfigError`.

    Looked for where modelhost itself runs, on the PATH, and among pyenv's. A candidate must answer: pyenv's own
    names on the PATH stand for versions that are not selected, too.
    """
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [Path(sys.base_prefix) / "bin" / name]
    candidates += [Path(directory) / name for directory in os.get_exec_path()]
    candidates += sorted((pyenv / "versions").glob(f"{version}.*/bin/{name}"), reverse=True)
    for candidate in dict.fromkeys(candidates):
        if candidate.is_file() and _answers(candidate, version):
            return candidate
    raise ConfigError(
        f"environment.python: expected a Python {version} that is installed, found none as {name} on the PATH "
        f"or in {pyenv / 'versions'}"
    )


def _answers(python: Path, version: str) -> bool:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", code], capture_output=True, text=True, timeout=_PROOF_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == version


def _make(
    directory: Path, need: EnvironmentNeed, uv: Path, wheelhouse: Path | None, report: Callable[[str], None]
) -> None:
    """Make an environment in a directory, install, prove that a worker can start in it, and describe it."""
    base = find_python(need.python)
    # Relocatable, because it gets its name when it is whole.
    _uv(uv, ["venv", "--relocatable", "--no-project", "--python", str(base), str(directory)], report)
    wanted = directory / "requirements.txt"
    wanted.write_text("".join(f"{line}\n" for line in (*need.requirements, *WORKER_REQUIREMENTS)), "utf-8")
    python = directory / "bin" / "python"
    source = ["--no-index", "--find-links", str(wheelhouse)] if wheelhouse is not None else []
    install = ["pip", "install", "--python", str(python), "--compile-bytecode", "--requirements", str(wanted)]
    _uv(uv, [*install, *source], report)
    _prove(python)
    frozen = _uv(uv, ["pip", "freeze", "--python", str(python)], lambda _: None)
    described = {
        "python": need.python,
        "requirements": need.requirements,
        "worker_requirements": WORKER_REQUIREMENTS,
        "installed": [line for line in frozen if "==" in line],
    }
    (directory / DESCRIPTION_FILE).write_text(json.dumps(described, indent=1) + "\n", "utf-8")


def _uv(uv: Path, arguments: Sequence[str], report: Callable[[str], None]) -> list[str]:
    """Run uv; return the lines that it said. Raises `ConfigError` with the last of them."""
    from host.cli.children import terminated_with_parent

    said: list[str] = []
    with subprocess.Popen(
        [str(uv), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_uv_environment(os.environ),
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
        preexec_fn=terminated_with_parent(),  # noqa: PLW1509 - this process has no threads
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        try:
            for line in process.stdout:
                said.append(line.rstrip())
                report(line.rstrip())
        except BaseException:
            # Ctrl-C. It, and whom it has compile, would go on to write what is about to be removed.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode:
        raise ConfigError("\n".join([f"uv {arguments[0]} failed:", *said[-_WORDS_OF_UV:]]))
    return said


def _uv_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's, for its indexes, proxies and caches; no Python of ours, and none that uv would download."""
    ours = {name: value for name, value in environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return ours | {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}


def _prove(python: Path) -> None:
    """Import what the worker needs. Raises `ConfigError`."""
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _PROOF], capture_output=True, text=True, timeout=_PROOF_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"the environment does not import what a worker needs within {_PROOF_S:.0f} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ConfigError(f"the environment cannot run a worker: {said[0]}")
