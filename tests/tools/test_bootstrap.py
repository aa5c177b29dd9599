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


def load(name: str, root: Path = ROOT) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", root / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
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


UV = """#!/bin/sh
echo "$@" >> "{log}"
exit $(cat "{code}")
"""


class Checkout:
    """A checkout with locks of its own and a `uv` that only writes down what it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "uv.log"
        self.code = root / "uv.code"
        for part in ("tools", "requirements", ".venv/tools/bin"):
            (root / part).mkdir(parents=True)
        for part in ("tools/bootstrap.py", "setup.cfg"):
            (root / part).write_bytes((ROOT / part).read_bytes())
        for lock in ("host", "bootstrap"):
            (root / "requirements" / f"{lock}.txt").write_text("anything==1.0\n")
        self.code.write_text("0")
        self.log.touch()
        self.tools = load("bootstrap", root)
        uv = root / ".venv" / "tools" / "bin" / "uv"
        uv.write_text(UV.format(log=self.log, code=self.code))
        uv.chmod(0o755)
        uv.with_name("python").symlink_to(sys.executable)
        stamp = self.tools.wanted_stamp(self.tools.describe("tools"))
        (root / ".venv" / "tools" / "installed").write_text(str(stamp))

    def make(self) -> str:
        """Make the host's environment; return what there is to do afterwards."""
        environment = self.tools.describe("host")
        try:
            self.tools.make(environment)
        finally:
            step: str = self.tools.next_step(environment).name
        return step

    @property
    def installations(self) -> int:
        return len(self.log.read_text().splitlines())


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")  # a path with a space


def test_nothing_is_installed_twice(checkout: Checkout) -> None:
    assert checkout.make() == "NOTHING"
    assert "pip sync" in checkout.log.read_text() and "--require-hashes" in checkout.log.read_text()
    assert checkout.make() == "NOTHING"
    assert checkout.installations == 1


def test_changed_lock_is_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.make()
    mark = checkout.root / ".venv" / "lib" / "mark"
    mark.touch()
    (checkout.root / "requirements" / "host.txt").write_text("anything==2.0\n")
    assert checkout.make() == "NOTHING"
    assert checkout.installations == 2
    assert mark.exists()


def test_failed_installation_says_why_and_starts_afresh(checkout: Checkout) -> None:
    checkout.make()
    (checkout.root / "requirements" / "host.txt").write_text("anything==2.0\n")
    checkout.code.write_text("7")
    with pytest.raises(checkout.tools.CannotError, match="exit code 7"):
        checkout.make()
    left = checkout.root / ".venv" / "lib" / "half"
    left.touch()
    checkout.code.write_text("0")
    assert checkout.make() == "NOTHING"
    assert not left.exists()


def test_other_interpreter_or_place_starts_afresh_and_spares_the_neighbours(checkout: Checkout) -> None:
    checkout.make()
    old, neighbour = checkout.root / ".venv" / "bin" / "old", checkout.root / ".venv" / "model-env"
    old.touch()
    neighbour.mkdir()
    stamp = checkout.root / ".venv" / "installed"
    stamp.write_text(stamp.read_text().replace(sys.version.split()[0], "3.11.0rc1", 1))
    assert checkout.make() == "NOTHING"
    assert not old.exists()
    assert neighbour.is_dir()


def test_environment_whose_interpreter_is_gone_is_made_again(checkout: Checkout) -> None:
    checkout.make()
    python = checkout.root / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to(checkout.root / "uninstalled")
    assert checkout.make() == "NOTHING"
    assert python.exists()


def test_command_of_setup_cfg_starts_in_a_path_with_a_space(checkout: Checkout) -> None:
    checkout.make()
    (checkout.root / "host" / "cli").mkdir(parents=True)
    (checkout.root / "host" / "cli" / "main.py").write_text("import sys\n\n\ndef main():\n    return len(sys.argv)\n")
    command = [str(checkout.root / ".venv" / "bin" / "modelhost"), "one", "two words"]
    assert subprocess.run(command, check=False, timeout=100).returncode == 3


def test_second_installation_waits_for_the_first(checkout: Checkout) -> None:
    command = [sys.executable, "-B", str(checkout.root / "tools" / "bootstrap.py"), "env", "host"]
    with checkout.tools.alone():
        second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert second.stderr.readline() == "waiting for another installation into this checkout ...\n"
        assert checkout.installations == 0
    assert second.communicate(timeout=100)
    assert second.returncode == 0
    assert checkout.installations == 1


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
