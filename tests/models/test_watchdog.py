"""A model that does not return: its stack is written down, and its process ends by SIGALRM."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BEGIN = "import ctypes, itertools, threading, time\nfrom models.watchdog import Watchdog\nwatchdog = Watchdog()\n"
HANGS = {
    "in Python": "while True: pass",
    "in C, holding the interpreter's lock": "ctypes.PyDLL(None).pause()",
    "in a loop in C": "sum(itertools.repeat(0))",
    "in a system call": "time.sleep(1000)",
    "in a thread that is waited for": "t = threading.Thread(target=threading.Event().wait); t.start(); t.join()",
}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("where", HANGS)
def test_hang_is_dumped_and_ended(where: str) -> None:
    # The timer is set in `predict`, so that it finds the process there however late that goes on.
    code = f"def predict():\n    watchdog.start(0.2)\n    {HANGS[where].replace('; ', chr(10) + '    ')}\npredict()\n"
    ended = run(code)
    assert ended.returncode == -signal.SIGALRM
    assert "most recent call first" in ended.stderr
    assert "in predict" in ended.stderr


def test_model_that_returns_is_left_alone() -> None:
    ended = run(
        "for _ in range(3):\n    watchdog.start(30)\n    watchdog.stop()\n"
        "import signal\nassert signal.getitimer(signal.ITIMER_REAL) == (0, 0)\n"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
