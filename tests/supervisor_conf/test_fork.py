"""A process that is stopped in the moment when it was started ends: no signal is forgotten between fork and exec."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from supervisords import supervisord

from host.supervisor import ProcessState

PROGRAM = """\
[program:sleeper]
command=sleep 600
autostart=false
startsecs=0
stopwaitsecs=60
"""

# Fork is replaced below the module: both processes get a TERM in the moment when they are two.
BETWEEN_FORK_AND_EXEC = """\
import errno, json, os, signal
from supervisor_conf import fork as module

seen, fork = [], os.fork

def fork_into_a_signal():
    pid = fork()
    os.kill(os.getpid(), signal.SIGTERM)
    return pid

def fork_that_fails():
    os.kill(os.getpid(), signal.SIGTERM)
    raise BlockingIOError(errno.EAGAIN, "no more processes")

def state():
    return {
        "seen": [int(number) for number in seen],
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "own_handler": signal.getsignal(signal.SIGTERM) is handler,
    }

def handler(number, frame):
    seen.append(number)

signal.signal(signal.SIGTERM, handler)
os.fork = fork_into_a_signal
pid = module.fork()
if pid == 0:
    os._exit(3)
answer = {"child": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "forked": state()}
seen.clear()
os.fork = fork_that_fails
try:
    module.fork()
except BlockingIOError:
    answer["failed"] = state()
print(json.dumps(answer))
"""


def test_a_signal_right_after_the_fork_reaches_both() -> None:
    done = subprocess.run([sys.executable, "-c", BETWEEN_FORK_AND_EXEC], capture_output=True, check=True, timeout=30)
    as_before = {"seen": [15], "blocked": [], "own_handler": True}
    assert json.loads(done.stdout) == {"child": -15, "forked": as_before, "failed": as_before}


@pytest.mark.integration
def test_a_process_that_was_just_started_can_be_stopped() -> None:
    """Without the interface every fifth of these takes its 60 seconds."""
    with supervisord(PROGRAM) as running:
        for _ in range(100):
            running.client.call("startProcess", "sleeper", False)
            running.client.call("stopProcess", "sleeper", False)
            deadline = time.monotonic() + 30
            while running.processes()["sleeper"].state is not ProcessState.STOPPED:
                assert time.monotonic() < deadline, running.processes()
