"""Make the environments of a checkout, and run things in them. Standard library only.

    python3 tools/bootstrap.py run            # host and bundled models; train what is missing; modelhost up
    python3 tools/bootstrap.py env host       # .venv            what modelhost needs, and modelhost itself
    python3 tools/bootstrap.py env models     # .venv/model-env  what the bundled models need, without modelhost
    python3 tools/bootstrap.py env dev        # .venv/dev        both, and the tools of the tests
    python3 tools/bootstrap.py env 3.12       # .venv/py3.12     the same with another Python
    python3 tools/bootstrap.py pythons        # the other CPythons 3.11 to 3.13 of this machine

It works on a Debian that has only python3 and make: without python3-venv, without pip, without root. What is
missing (pip to begin with, the OpenMP library that LightGBM links) is unpacked from Debian's own packages into
`.venv`. Versions and hashes are those of `requirements/*.txt`; nothing is installed again while they are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCKS = ROOT / "requirements"
REPOSITORY = ROOT / "model_repository"
MINIMUM = (3, 11)
OTHER_PYTHONS = ("3.11", "3.12", "3.13")
STAMP = "installed"


class CannotError(Exception):
    """The person at the terminal must act; the text says how."""


# -- the environments ---------------------------------------------------------------------------------------
def environment(name: str) -> Path:
    """Make an environment if it is missing or out of date; return its directory."""
    lock, directory, python, with_modelhost = {
        "host": (LOCKS / "host.txt", VENV, sys.executable, True),
        "models": (LOCKS / "bundled.txt", VENV / "model-env", sys.executable, False),
        "dev": (LOCKS / "dev.txt", VENV / "dev", sys.executable, True),
        "bench": (LOCKS / "bench.txt", VENV / "bench", sys.executable, False),
    }.get(name) or (LOCKS / "dev.txt", VENV / f"py{name}", _other_python(name), True)
    wanted = _stamp(lock, python)
    stamp = directory / STAMP
    if stamp.is_file() and stamp.read_text() == wanted:
        return directory
    start = time.monotonic()
    count = sum("==" in line and not line.startswith(" ") for line in lock.read_text().splitlines())
    say(f"installing the environment '{name}' ({count} packages) into {directory.relative_to(ROOT)} ...")
    stamp.unlink(missing_ok=True)
    uv = _uv()
    if not (directory / "bin" / "python").exists():
        run([python, "-m", "venv", "--without-pip", str(directory)])
    run([*uv, "pip", "sync", "--quiet", "--require-hashes", "--python", f"{directory}/bin/python", str(lock)])
    if with_modelhost:
        _install_checkout(directory)
    if name != "host" and name != "bench":
        _provide_openmp(directory)
    stamp.write_text(wanted)
    say(f"  done in {time.monotonic() - start:.1f} s")
    return directory


def _stamp(lock: Path, python: str) -> str:
    """What an environment depends on: the lock, the interpreter, this script, and where the checkout is."""
    version = run([python, "-c", "import sys; print(sys.version)"], capture=True)
    digest = hashlib.sha256(lock.read_bytes() + Path(__file__).read_bytes())
    return f"{digest.hexdigest()}\n{version}{ROOT}\n"


def _install_checkout(directory: Path) -> None:
    """Put the checkout on the environment's path, and the command `modelhost` into it.

    What an editable install does, without downloading a build tool for it.
    """
    _site_packages(directory).joinpath("modelhost.pth").write_text(f"{ROOT}\n")
    command = directory / "bin" / "modelhost"
    command.write_text(f"#!{directory}/bin/python\nimport sys\nfrom host.cli.main import main\n\nsys.exit(main())\n")
    command.chmod(0o755)


def _provide_openmp(directory: Path) -> None:
    """LightGBM's wheel links the system's libgomp.so.1; where there is none, one is unpacked and preloaded."""
    python = f"{directory}/bin/python"
    probe = "import ctypes; ctypes.CDLL('libgomp.so.1')"
    if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0:
        return
    with debian_package("libgomp1") as files:
        found = next(files.rglob("libgomp.so.1"))
        library = directory / "lib" / "libgomp.so.1"
        shutil.copyfile(found.resolve(), library)
    # The dynamic linker takes a library that is loaded already, by its name, whoever asks for it.
    line = f"import ctypes; ctypes.CDLL({str(library)!r}, mode=ctypes.RTLD_GLOBAL)\n"
    _site_packages(directory).joinpath("libgomp.pth").write_text(line)


def _site_packages(directory: Path) -> Path:
    return next((directory / "lib").glob("python3.*")) / "site-packages"


# -- uv and pip -----------------------------------------------------------------------------------------------
def _uv() -> list[str]:
    """The command of the locked uv, installed into `.venv/tools` by whatever pip there is."""
    directory = VENV / "tools"
    uv = directory / "bin" / "uv"
    lock = LOCKS / "bootstrap.txt"
    stamp = directory / STAMP
    wanted = _stamp(lock, sys.executable)
    if not (uv.is_file() and stamp.is_file() and stamp.read_text() == wanted):
        stamp.unlink(missing_ok=True)
        run([sys.executable, "-m", "venv", "--without-pip", str(directory)])
        python = str(directory / "bin" / "python")
        with _pip() as pip:
            run([python, *pip, "install", "--quiet", "--require-hashes", "-r", str(lock)], say_output=True)
        stamp.write_text(wanted)
    return [str(uv)]


@contextlib.contextmanager
def _pip() -> Iterator[list[str]]:
    """Arguments that make a Python run pip: from ensurepip's wheel, or from Debian's package of that wheel."""
    try:
        import ensurepip

        bundled = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    except ImportError:
        bundled = []
    if not bundled:
        bundled = sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))
    if bundled:
        yield [f"{bundled[-1]}/pip"]
        return
    with debian_package("python3-pip-whl") as files:
        yield [f"{next(files.rglob('pip-*.whl'))}/pip"]


# -- Debian packages without root -------------------------------------------------------------------------------
@contextlib.contextmanager
def debian_package(name: str) -> Iterator[Path]:
    """Download and unpack a Debian package into a temporary directory. Installs nothing, needs no root."""
    advice = f"type 'sudo apt-get install {name}' and try again"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise CannotError(f"this machine lacks what Debian's package {name} has: install it, and try again")
    say(f"  unpacking Debian's package {name} (nothing is installed on the system) ...")
    with tempfile.TemporaryDirectory(prefix="modelhost-") as temporary:
        work = Path(temporary)
        if not _download(name, work, []):
            # The machine has no package lists yet; these are our own, and go away with the directory.
            for part in ("state/lists/partial", "cache/archives/partial"):
                (work / part).mkdir(parents=True)
            options = ["-o", f"Dir::State={work}/state", "-o", f"Dir::Cache={work}/cache"]
            options += ["-o", "Dir::State::Status=/var/lib/dpkg/status"]
            subprocess.run(["apt-get", *options, "-qq", "update"], capture_output=True, check=False)
            if not _download(name, work, options):
                raise CannotError(f"Debian's package {name} cannot be downloaded: {advice}")
        files = work / "files"
        run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(files)])
        yield files


def _download(name: str, work: Path, options: list[str]) -> bool:
    command = ["apt-get", *options, "-qq", "download", name]
    result = subprocess.run(command, cwd=work, capture_output=True, check=False)
    return result.returncode == 0 and any(work.glob("*.deb"))


# -- other Pythons ------------------------------------------------------------------------------------------------
def other_pythons() -> dict[str, str]:
    """The CPythons 3.11 to 3.13 of this machine beside the running one: version to path.

    Searched on PATH and where pyenv keeps them: pyenv's own shims answer only for the selected versions.
    """
    found: dict[str, str] = {}
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for version in OTHER_PYTHONS:
        if version == running:
            continue
        candidates = [Path(part) / f"python{version}" for part in os.environ.get("PATH", "").split(os.pathsep)]
        candidates += sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
        for candidate in candidates:
            if candidate.is_file() and _answers(candidate, version):
                found[version] = str(candidate)
                break
    return found


def _answers(python: Path, version: str) -> bool:
    probe = "import sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
    result = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False)
    return result.returncode == 0 and result.stdout.split() == [version, "cpython"]


def _other_python(version: str) -> str:
    found = other_pythons()
    if version not in found:
        raise CannotError(f"Python {version}: not found on this machine")
    return found[version]


# -- commands -----------------------------------------------------------------------------------------------------
def run_host(arguments: list[str]) -> None:
    """Make what is missing, then become `modelhost up`."""
    host = environment("host")
    models = environment("models")
    python = f"{models}/bin/python"
    run([python, "-P", str(ROOT / "models" / "bundled" / "train.py"), "--repository", str(REPOSITORY)], say_output=True)
    command = [f"{host}/bin/modelhost", "up", "--model-python", python, *arguments]
    os.chdir(ROOT)
    os.execv(command[0], command)  # noqa: S606 - no shell wanted


def run(command: list[str], *, capture: bool = False, say_output: bool = False) -> str:
    """Run a command to its end. Raises `CannotError` with what it said if it fails."""
    if say_output:
        result = subprocess.run(command, check=False, text=True)
        said = ""
    else:
        result = subprocess.run(command, check=False, text=True, capture_output=True)
        said = f"\n{result.stderr.strip() or result.stdout.strip()}"
    if result.returncode != 0:
        raise CannotError(f"{' '.join(command[:6])} ... failed (exit code {result.returncode}){said}")
    return result.stdout if capture else ""


def say(text: str) -> None:
    """Tell the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def check_python() -> None:
    """Refuse a Python that is too old."""
    if sys.version_info < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise CannotError(f"Python {wanted} or newer is needed, {sys.executable} is {sys.version.split()[0]}: "
                          f"'make PYTHON=/path/to/python{wanted} ...' names another")  # fmt: skip


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
        check_python()
        if command == "pythons":
            print("\n".join(other_pythons()))
        elif command == "env" and arguments:
            check_writable()
            for name in arguments:
                environment(name)
        elif command == "run":
            check_writable()
            run_host(arguments)
        elif command == "lock":
            from lock import lock_all

            check_writable()
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
