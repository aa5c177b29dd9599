"""Targets side by side: whose output is seen, what the exit code is, who is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import until

PROGRAM = Path(__file__).parents[2] / "tools" / "side_by_side.py"
LIMIT_S = 20.0

MAKEFILE = """\
good:
	@echo "good is done"
bad:
	@echo "bad is done"; false
endless another:
	@$(PYTHON) endless.py $@
after:
	@while [ ! -e endless ]; do sleep 0.01; done; false
.PHONY: endless another
"""
# No shell's: it may lose a signal that comes between two commands.
ENDLESS = """\
import os, pathlib, sys, time
try:
    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(1)
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    """Give the command, to be run beside a Makefile."""
    (tmp_path / "Makefile").write_text(f"PYTHON = {sys.executable}\n{MAKEFILE}")
    (tmp_path / "endless.py").write_text(ENDLESS)
    return [sys.executable, str(PROGRAM)]


@pytest.mark.parametrize(("first", "behind", "code"), [("good", "good", 0), ("good", "bad", 1)])
def test_both_are_seen_and_one_that_fails_is_enough(
    program: list[str], tmp_path: Path, first: str, behind: str, code: int
) -> None:
    done = subprocess.run(
        [*program, first, behind], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == code
    assert done.stdout.count(f"{first} is done") == (2 if first == behind else 1)
    assert f"-- {behind}\n" in done.stdout


def test_what_runs_behind_one_that_fails_is_interrupted(program: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*program, "after", "endless"], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 1
    assert "-- endless: failed" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", ["", "INT"])
def test_at_ctrl_c_all_end(program: list[str], tmp_path: Path, number: signal.Signals, ignored: str) -> None:
    """Whoever gets the signal, and also where the shell has SIGINT ignored."""
    begun = [tmp_path / name for name in ("endless", "another")]
    command = ["sh", "-c", f'trap "" {ignored}; exec "$@"' if ignored else 'exec "$@"', "sh", *program]
    with subprocess.Popen([*command, *(path.name for path in begun)], cwd=tmp_path) as process:
        until(lambda: all(path.exists() and path.read_text() for path in begun), "both have begun")
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 130
    assert not [path for path in begun if Path("/proc", path.read_text().strip()).exists()]
