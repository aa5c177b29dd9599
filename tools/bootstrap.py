"""Make the environments of a checkout, and run things in them. Standard library only.

    python3 tools/bootstrap.py run                # host and bundled models; train what is missing; modelhost up
    python3 tools/bootstrap.py env host           # .venv            what modelhost needs, and modelhost itself
    python3 tools/bootstrap.py env models         # .venv/model-env  what the bundled models need, without modelhost
    python3 tools/bootstrap.py env fleet          # .venv/fleet      modelhost and Ansible, for the playbooks
    python3 tools/bootstrap.py env dev            # .venv/dev        both, and the tools of the tests
    python3 tools/bootstrap.py env bench          # .venv/bench      the benchmarks' harness; bench-NAME: a peer
    python3 tools/bootstrap.py env 3.12           # .venv/py3.12     the environment `dev` of another Python
    python3 tools/bootstrap.py others pytest ...  # a command, in that environment of each other Python found
    python3 tools/bootstrap.py lock               # renew requirements/*.txt

Python 3.11 or newer: the Makefile says so to those who have an older one, which might not even read this file.

It works on a Debian that has only python3 and make: without python3-venv, without pip, without root. What is
missing (pip to begin with, the OpenMP library that LightGBM links) is unpacked from Debian's own packages into
`.venv`. Versions and hashes are those of `requirements/*.txt`; nothing is installed again while they are the same.
"""

from __future__ import annotations

import configparser
import contextlib
import enum
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCKS = ROOT / "requirements"
REPOSITORY = ROOT / "model_repository"
SUPPORTED_PYTHONS = ("3.11", "3.12", "3.13")
STAMP = "installed"
# What a virtual environment is made of. `.venv` holds other environments too: those are left alone.
PARTS = ("bin", "include", "lib", "lib64", "share", "etc", "pyvenv.cfg", STAMP)


class Contents(NamedTuple):
    """A line of the table below."""

    directory: str  # below `.venv`
    lock: str
    with_modelhost: bool
    with_lightgbm: bool


ENVIRONMENTS = {
    "host": Contents("", "host.txt", with_modelhost=True, with_lightgbm=False),
    "models": Contents("model-env", "bundled.txt", with_modelhost=False, with_lightgbm=True),
    "fleet": Contents("fleet", "fleet.txt", with_modelhost=True, with_lightgbm=False),
    "dev": Contents("dev", "dev.txt", with_modelhost=True, with_lightgbm=True),
    "bench": Contents("bench", "bench.txt", with_modelhost=False, with_lightgbm=True),
    **{
        f"bench-{peer}": Contents(f"bench-{peer}", f"bench-{peer}.txt", with_modelhost=False, with_lightgbm=True)
        for peer in ("fastapi", "mosec", "mlserver", "litserve", "bentoml", "ray")
    },
    "tools": Contents("tools", "bootstrap.txt", with_modelhost=False, with_lightgbm=False),
}


class CannotError(Exception):
    """The person at the terminal must act; the text says how."""


# -- the environments ---------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A directory below `.venv`, what is locked for it, and the interpreter that it is made with."""

    name: str
    directory: Path
    lock: Path
    python: str
    with_modelhost: bool
    with_lightgbm: bool

    @property
    def bin(self) -> Path:
        """Where its programs are."""
        return self.directory / "bin"

    @property
    def site_packages(self) -> Path:
        """Where its libraries are."""
        return next((self.directory / "lib").glob("python3.*")) / "site-packages"


def describe(name: str) -> Environment:
    """Name to environment. Raises `CannotError` for another Python that this machine does not have."""
    if name in ENVIRONMENTS:
        contents, python = ENVIRONMENTS[name], running_python()
    else:
        contents, python = ENVIRONMENTS["dev"]._replace(directory=f"py{name}"), other_python(name)
    return Environment(
        name=name,
        directory=VENV / contents.directory,
        lock=LOCKS / contents.lock,
        python=python,
        with_modelhost=contents.with_modelhost,
        with_lightgbm=contents.with_lightgbm,
    )


def make(environment: Environment) -> Environment:
    """Make an environment if it is missing or out of date."""
    if next_step(environment) is not Step.NOTHING:
        with alone():
            if next_step(environment) is not Step.NOTHING:
                _fill(environment)
    return environment


def _fill(environment: Environment) -> None:
    uv = _uv()
    packages = len(set(re.findall(r"^([\w.-]+)\S*==", environment.lock.read_text(), re.MULTILINE)))
    place = environment.directory.relative_to(ROOT)
    say(f"installing the environment '{environment.name}' ({packages} packages) into {place} ...")
    with _installing(environment):
        sync = ["pip", "sync", "--quiet", "--require-hashes", "--python", f"{environment.bin}/python"]
        run([*uv, *sync, str(environment.lock)])
        if environment.with_modelhost:
            _install_checkout(environment)
        if environment.with_lightgbm:
            _provide_openmp(environment)


def _uv() -> list[str]:
    """Install the locked uv into `.venv/tools` if it is not there; return its command."""
    tools = describe("tools")
    if next_step(tools) is not Step.NOTHING:
        say("installing uv into .venv/tools ...")
        with _installing(tools), _installer(f"{tools.bin}/python") as install:
            run([*install, "--quiet", "--require-hashes", "-r", str(tools.lock)])
    return [f"{tools.bin}/uv"]


@contextlib.contextmanager
def _installing(environment: Environment) -> Iterator[None]:
    """Give the block a virtual environment to install into; stamp it only if the block comes to its end."""
    start = time.monotonic()
    wanted = wanted_stamp(environment)
    if next_step(environment) is Step.REBUILD:
        _remove(environment.directory)
        run([environment.python, "-m", "venv", "--without-pip", str(environment.directory)])
    (environment.directory / STAMP).unlink(missing_ok=True)
    yield
    (environment.directory / STAMP).write_text(str(wanted))
    say(f"  done in {time.monotonic() - start:.1f} s")


def _remove(directory: Path) -> None:
    for part in PARTS:
        path = directory / part
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep a second bootstrap of this checkout waiting. The kernel lets go of the lock of one that was killed."""
    with (VENV / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another installation into this checkout ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- what is installed -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What an environment was made from. Written last, so that an interrupted installation has none."""

    base: str  # interpreter and place: programs in an environment name both, so a change of these starts afresh
    content: str  # digest of the lock and of all else that decides what is in it

    def __str__(self) -> str:
        return f"{self.base}\n{self.content}\n"


class Step(enum.Enum):
    """What is to be done to an environment."""

    NOTHING = enum.auto()
    SYNC = enum.auto()
    REBUILD = enum.auto()


def next_step(environment: Environment) -> Step:
    """Decide what has to be done to an environment as it is now."""
    return decide(read_stamp(environment.directory), wanted_stamp(environment))


def decide(stamp: str | None, wanted: Stamp) -> Step:
    """Decide from what an environment's stamp says. One that has none was never finished."""
    if stamp == str(wanted):
        return Step.NOTHING
    if stamp is not None and stamp.startswith(f"{wanted.base}\n"):
        return Step.SYNC
    return Step.REBUILD


def wanted_stamp(environment: Environment) -> Stamp:
    """Say what an environment has to be made from now."""
    digest = hashlib.sha256()
    for source in (environment.lock, Path(__file__), *([ROOT / "setup.cfg"] if environment.with_modelhost else [])):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    version = sys.version
    if environment.python != running_python():
        version = run([environment.python, "-c", "import sys; print(sys.version)"])
    python = f"{environment.python} {' '.join(version.split())}"
    return Stamp(base=f"{python}\n{environment.directory}", content=digest.hexdigest())


def read_stamp(directory: Path) -> str | None:
    """Read what an environment was made from; None if it is not there, or was not finished."""
    try:
        # A venv's python is a link: gone when the interpreter is.
        return (directory / STAMP).read_text() if (directory / "bin" / "python").exists() else None
    except FileNotFoundError:
        return None


def _install_checkout(environment: Environment) -> None:
    """Put the checkout on the environment's path, and the command `modelhost` into it.

    What an editable install does, without downloading a build tool for it.
    """
    environment.site_packages.joinpath("modelhost.pth").write_text(f"{ROOT}\n")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options.entry_points"]["console_scripts"].split("\n"):
        if line.strip():
            _write_script(environment.bin, *re.split(r"\s*[=:]\s*", line.strip()))


def _write_script(directory: Path, name: str, module: str, function: str) -> None:
    """Write a console script. The second line makes the shell start Python, which takes it for a docstring.

    A plain `#!` line cannot hold a path with a space.
    """
    script = directory / name
    script.write_text(
        f'#!/bin/sh\n"exec" "{directory}/python" "$0" "$@"\n'
        f"import sys\nfrom {module} import {function}\n\nsys.exit({function}())\n"
    )
    script.chmod(0o755)


def _provide_openmp(environment: Environment) -> None:
    """LightGBM's wheel links the system's libgomp.so.1; where there is none, one is unpacked and preloaded."""
    probe = "import ctypes; ctypes.CDLL('libgomp.so.1')"
    if subprocess.run([f"{environment.bin}/python", "-c", probe], capture_output=True, check=False).returncode == 0:
        return
    with debian_package("libgomp1", advise="libgomp1", otherwise="install libgomp (the OpenMP library)") as files:
        library = environment.directory / "lib" / "libgomp.so.1"
        shutil.copyfile(next(files.rglob("libgomp.so.1")).resolve(), library)
    # The dynamic linker takes a library that is loaded already, by its name, whoever asks for it.
    line = f"import ctypes; ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)\n"
    environment.site_packages.joinpath("libgomp.pth").write_text(line)


# -- pip ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _installer(python: str) -> Iterator[list[str]]:
    """Give a command that installs requirements for a Python that has no pip: what this machine has, or Debian's."""
    wheels = sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))  # Debian's python3-pip-whl
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin is not None:
        wheels += sorted((Path(ensurepip.origin).parent / "_bundled").glob("pip-*.whl"))
    if wheels:
        yield [python, f"{wheels[-1]}/pip", "install"]
    elif importlib.util.find_spec("pip") is not None:
        yield [sys.executable, "-m", "pip", "--python", python, "install", "--ignore-installed"]
    elif shutil.which("uv") is not None:
        yield ["uv", "pip", "install", "--python", python]
    else:
        with debian_package("python3-pip-whl", advise="python3-venv", otherwise="install pip or uv") as files:
            yield [python, f"{next(files.rglob('pip-*.whl'))}/pip", "install"]


# -- Debian packages without root -------------------------------------------------------------------------------
@contextlib.contextmanager
def debian_package(name: str, *, advise: str, otherwise: str) -> Iterator[Path]:
    """Download and unpack a Debian package into a temporary directory. Installs nothing, needs no root.

    `advise` is the package to install by hand if that fails, `otherwise` what to do on another system.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise CannotError(f"{otherwise} and try again: this machine lacks what Debian has in its package {name}")
    say(f"  unpacking Debian's package {name} (nothing is installed on the system) ...")
    with tempfile.TemporaryDirectory(prefix="modelhost-") as temporary:
        work = Path(temporary)
        if not _download(name, work, []):
            # The machine has no package lists, or old ones; these are our own, and go away with the directory.
            for part in ("state/lists/partial", "cache/archives/partial"):
                (work / part).mkdir(parents=True)
            options = ["-o", f"Dir::State={work}/state", "-o", f"Dir::Cache={work}/cache"]
            options += ["-o", "Dir::State::Status=/var/lib/dpkg/status"]
            subprocess.run(["apt-get", *options, "-qq", "update"], capture_output=True, check=False)
            if not _download(name, work, options):
                remedy = f"type 'sudo apt-get install {advise}' and try again"
                raise CannotError(f"Debian's package {name} cannot be downloaded: {remedy}")
        files = work / "files"
        run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(files)])
        yield files


def _download(name: str, work: Path, options: list[str]) -> bool:
    command = ["apt-get", *options, "-qq", "download", name]
    result = subprocess.run(command, cwd=work, capture_output=True, check=False)
    return result.returncode == 0 and any(work.glob("*.deb"))


# -- Pythons --------------------------------------------------------------------------------------------------------
def running_python() -> str:
    """The interpreter that environments are made with: never that of an environment which is active just now."""
    python: str = getattr(sys, "_base_executable", sys.executable)  # CPython's own, though not documented
    return os.path.realpath(python)


def other_pythons() -> dict[str, str]:
    """The supported CPythons of this machine beside the running one: version to path.

    Searched on PATH and where pyenv keeps them: pyenv's own shims answer only for the selected versions.
    """
    found: dict[str, str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in SUPPORTED_PYTHONS:
        if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
            continue
        candidates = [Path(part) / f"python{version}" for part in os.environ.get("PATH", "").split(os.pathsep)]
        candidates += sorted((pyenv / "versions").glob(f"{version}.*/bin/python{version}"))
        for candidate in candidates:
            if candidate.is_file() and _answers(candidate, version):
                found[version] = str(candidate)
                break
    return found


def _answers(python: Path, version: str) -> bool:
    """Whether it is that CPython, and one that environments can be made with (a minimal one may lack `venv`)."""
    probe = "import sys, ssl, venv; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
    result = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False)
    return result.returncode == 0 and result.stdout.split() == [version, "cpython"]


def other_python(version: str) -> str:
    """The path of one of `other_pythons`."""
    found = other_pythons()
    if version not in found:
        raise CannotError(f"Python {version}: not found on this machine")
    return found[version]


# -- commands -----------------------------------------------------------------------------------------------------
def run_host(arguments: list[str]) -> None:
    """Make what is missing, then become `modelhost up`."""
    host = make(describe("host"))
    python = f"{make(describe('models')).bin}/python"
    run([python, "-P", str(ROOT / "models" / "bundled" / "train.py"), "--repository", str(REPOSITORY)], show=True)
    command = [f"{host.bin}/modelhost", "up", "--model-python", python, *arguments]
    os.chdir(ROOT)
    os.execv(command[0], command)  # noqa: S606 - no shell wanted


def run_in_others(arguments: list[str]) -> None:
    """Run a program of the environment `dev` on every other Python found. Raises `CannotError` if it fails on some."""
    found = other_pythons()
    say(f"other Pythons found: {', '.join(f'{version} ({path})' for version, path in found.items()) or 'none'}")
    program, *rest = arguments
    failed = []
    for version in found:
        environment = make(describe(version))
        say(f"{program} on Python {version}")
        if subprocess.run([f"{environment.bin}/{program}", *rest], check=False).returncode != 0:
            failed.append(version)
    if failed:
        raise CannotError(f"{program} failed on Python {', '.join(failed)}")


def run(command: list[str], *, show: bool = False) -> str:
    """Run a command to its end and return what it printed, or let that go to the terminal (`show`).

    Raises `CannotError`, with what it said, if it fails.
    """
    result = subprocess.run(command, check=False, text=True, capture_output=not show)
    if result.returncode != 0:
        said = "" if show else f"\n{result.stderr.strip() or result.stdout.strip()}"
        raise CannotError(f"{' '.join(command[:6])} ... failed (exit code {result.returncode}){said}")
    return result.stdout or ""


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def check_writable() -> None:
    """Refuse a directory that nothing can be installed into."""
    try:
        VENV.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=VENV):
            pass
    except OSError as error:
        raise CannotError(f"{VENV}: cannot write here ({error.strerror}): use a checkout that is yours") from error


def main() -> int:
    """Run one command of the list above."""
    command, *arguments = sys.argv[1:] or ["help"]
    try:
        if command == "env" and arguments:
            check_writable()
            for name in arguments:
                make(describe(name))
        elif command == "run":
            check_writable()
            run_host(arguments)
        elif command == "others" and arguments:
            check_writable()
            run_in_others(arguments)
        elif command == "lock":
            from lock import lock_all

            check_writable()
            with alone():
                lock_all(_uv())
        else:
            print(__doc__)
            return 0 if command in ("help", "-h", "--help") else 2
    except CannotError as error:
        say(f"modelhost: {error}")
        return 2
    except KeyboardInterrupt:
        say("modelhost: stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
