"""The cgroup v2 guest itself: what it hands on, what it offers, and that nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uml
from hosts import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which(uml.PROGRAM) is None, reason="needs Debian's user-mode-linux"),
]

MEMORY = "300M"
COMMAND = [sys.executable, uml.__file__, "--memory", MEMORY]

# One guest is asked everything: each boot takes a second.
QUESTIONS = """
echo "cgroup $(cat /proc/self/cgroup)"
echo "controllers $(cat /sys/fs/cgroup/cgroup.subtree_control)"
echo "directory $PWD"
echo "colour $COLOUR"
echo "open files $(ulimit -n)"
echo "clock $(date +%s)"
echo "terminal $(tty)"
mkdir /sys/fs/cgroup/slot && echo 20M >/sys/fs/cgroup/slot/memory.max && echo 0 >/sys/fs/cgroup/slot/memory.swap.max
sh -c 'echo $$ >/sys/fs/cgroup/slot/cgroup.procs; exec head -c 100M /dev/zero | tail -c 90M' >/dev/null
echo "memory $(grep 'oom_kill ' /sys/fs/cgroup/slot/memory.events)"
sleep 1000 &
echo "error" >&2
exit 3
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Give a directory for all that a guest puts on this machine, and assert that it is empty in the end."""
    directory = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    try:
        yield directory
        assert list(directory.iterdir()) == []
    finally:
        shutil.rmtree(directory)


def guests(temporary: Path) -> list[int]:
    """Every process of a guest that was started with this directory for its files."""
    found = []
    for path in [one / "cmdline" for one in Path("/proc").glob("[0-9]*")]:
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word.startswith(f"uml_dir={temporary}/".encode()) for word in words):
            found.append(int(path.parent.name))
    return found


def run_uml(temporary: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        env={**os.environ, "TMPDIR": str(temporary), **environment},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_guest_is_a_cgroup_v2_host(temporary: Path) -> None:
    done = run_uml(temporary, "--", "sh", "-c", QUESTIONS, COLOUR='it\'s "blue" $HOME')
    assert done.returncode == 3
    assert done.stderr == ""
    *answers, error = done.stdout.splitlines()
    said = {line.split(" ")[0]: line.partition(" ")[2] for line in answers}
    assert error == "error"
    assert said["cgroup"] == "0::/"
    assert {"memory", "cpu", "pids"} <= set(said["controllers"].split())
    assert said["directory"] == str(Path(__file__).parent)
    assert said["colour"] == 'it\'s "blue" $HOME'
    assert said["open"] == f"files {soft_open_files()}"
    assert abs(int(said["clock"]) - Path(temporary).stat().st_mtime) < 20
    assert said["terminal"] == "not a tty"
    assert said["memory"] == "oom_kill 1"
    assert guests(temporary) == []


def soft_open_files() -> int:
    """How many files a shell started here may open."""
    return int(subprocess.run(["sh", "-c", "ulimit -n"], capture_output=True, check=True).stdout)


def test_all_output_arrives(temporary: Path) -> None:
    done = run_uml(temporary, "--", sys.executable, "-c", "print('\\n'.join(map(str, range(200_000))))")
    assert done.returncode == 0
    assert done.stdout.split() == [str(number) for number in range(200_000)]


def test_what_takes_longer_than_it_may_is_killed(temporary: Path) -> None:
    for limit_s in (5, 20, 60):
        done = run_uml(temporary, "--limit-s", str(limit_s), "--", "sh", "-c", "echo begun; sleep 1000")
        assert done.returncode == uml.TIMED_OUT
        assert done.stderr == f"uml.py: not done within {limit_s} s\n"
        assert guests(temporary) == []
        if done.stdout:  # else the time was over before the guest had booted
            break
    assert done.stdout == "begun\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    try:
        with subprocess.Popen(
            [*COMMAND, "--", "sh", "-c", "echo begun; sleep 1000"],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            assert guests(temporary)
            process.send_signal(number)
            assert process.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
        until(lambda: not guests(temporary), "no process is left")
        # Nobody can clean up after SIGKILL; the guest has ended all the same.
        assert number == signal.SIGKILL or list(temporary.iterdir()) == []
    finally:
        shutil.rmtree(temporary)


def test_a_guest_that_fails_is_no_success(temporary: Path) -> None:
    # The kernel panics when its process 1 ends.
    done = run_uml(temporary, "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
    assert done.returncode == uml.FAILED
    assert "the guest ended before its command did" in done.stderr
    assert "Kernel panic" in done.stderr
    assert guests(temporary) == []


def test_a_missing_program_is_named() -> None:
    with pytest.raises(uml.GuestFailed, match="apt-get install user-mode-linux"):
        uml.Guest(command=["true"], program="linux.missing").run(print)
