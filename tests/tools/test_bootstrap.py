"""The bootstrap and the locks: what `make run` rests on."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load("bootstrap")
lock = load("lock")


def locked(path: Path) -> dict[str, set[str]]:
    """Package to versions of a lock (one per Python version, at times)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^ ;\\]+)", path.read_text(), re.MULTILINE):
        found.setdefault(name.lower().replace("_", "-"), set()).add(version)
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_lock_names_no_index_and_hashes_everything(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert "index-url" not in text
    requirements = re.split(r"\n(?=[a-z])", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    assert all("--hash=sha256:" in requirement for requirement in requirements if requirement.strip())


def test_locks_have_everything_that_setup_cfg_asks_for() -> None:
    base, extras = lock.read_setup()
    for name, requirements in (("host", base), ("bundled", lock.expand("train", extras)), ("dev", base)):
        have = locked(ROOT / "requirements" / f"{name}.txt")
        for requirement in requirements:
            package = re.split(r"[ <>=!\[]", requirement)[0].lower()
            assert package in have, f"requirements/{name}.txt lacks {package}: make lock"


def test_locks_agree_on_shared_packages() -> None:
    host, dev = locked(ROOT / "requirements" / "host.txt"), locked(ROOT / "requirements" / "dev.txt")
    bundled = locked(ROOT / "requirements" / "bundled.txt")
    assert all(dev[name] == versions for name, versions in {**host, **bundled}.items())


def test_models_environment_has_no_part_of_the_host() -> None:
    have = locked(ROOT / "requirements" / "bundled.txt")
    assert not have.keys() & {"aiohttp", "uvloop", "supervisor", "click", "modelhost"}
    assert have.keys() >= {"numpy", "msgpack", "msgspec"}


def test_extras_that_name_extras_are_followed() -> None:
    extras = {"a": ["one"], "b": ["modelhost[a]", "two"], "c": ["modelhost[a,b]", "three"]}
    assert lock.expand("c", extras) == ["one", "one", "two", "three"]


def test_stamp_changes_with_the_lock_and_the_interpreter(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("one")
    second.write_text("two")
    assert bootstrap._stamp(first, sys.executable) == bootstrap._stamp(first, sys.executable)
    assert bootstrap._stamp(first, sys.executable) != bootstrap._stamp(second, sys.executable)


def test_running_python_is_not_among_the_others() -> None:
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" not in bootstrap.other_pythons()


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(cwd / "tools" / "bootstrap.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_unknown_command_shows_the_list() -> None:
    result = run("nonsense")
    assert result.returncode == 2
    assert "tools/bootstrap.py run" in result.stdout


def test_missing_python_is_one_line() -> None:
    result = run("env", "3.99")
    assert result.returncode == 2
    assert result.stderr == "modelhost: Python 3.99: not found on this machine\n"


def test_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "bootstrap.py").write_bytes((ROOT / "tools" / "bootstrap.py").read_bytes())
    (tmp_path / ".venv").write_text("a file is in the way")
    result = run("env", "host", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"modelhost: {tmp_path}/.venv: cannot write here (")
    assert result.stderr.count("\n") == 1
