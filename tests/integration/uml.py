"""Run a command on a real cgroup v2 host: User-Mode Linux on this machine's own files, as an ordinary process.

    python tests/integration/uml.py [--memory 1500M] [--limit-s 1200] -- COMMAND ARGS...

Debian's package `user-mode-linux` is a Linux kernel that is a program. The guest sees every file of this machine at
its path (hostfs, writable!), has a /tmp, /run, /dev and /sys/fs/cgroup of its own, one processor and no network but
loopback. The command gets the caller's directory, environment and limits on open files; what it writes appears at
once, and its exit code is handed on. Whatever happens, nothing of the guest is left.

What the kernel (6.1) does not have: the cpuset controller, PSI, Landlock, IPv6. On hostfs inotify sees a directory only
as long as somebody holds it open: watched directories belong under /tmp. System calls take some 60 times as long as
on the machine, and starting Python 10 times. Memory takes room only once it is used: hosts with many models want 6G.
"""

from __future__ import annotations

import argparse
import os
import resource
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

PROGRAM = "linux.uml"
FAILED = 125  # as `timeout` and `docker run` say: the tool failed, not the command
TIMED_OUT = 124  # as `timeout` says
STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
STOP_LIMIT_S = 5.0
LOG_TAIL_LINES = 40

# {...} are filled in by `init_script`. dash reads it line by line, so it may hide itself under the new /tmp.
INIT = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec 3>{status}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in cpuset cpu io memory pids; do
    grep -qw $controller /sys/fs/cgroup/cgroup.controllers && echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
done
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
mount -t tmpfs -o mode=755,nosuid,nodev run /run
mkdir /run/machine
mount --bind / /run/machine
mount -t tmpfs -o mode=1777 tmp /tmp
for shown in {shown}; do
    mkdir -p "$shown" && mount --bind "/run/machine$shown" "$shown"
done
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
ip link set lo up
stty -F /dev/tty1 raw
ulimit -Hn {open_files_hard}
ulimit -Sn {open_files}
# The command writes to a pipe, as under CI: a terminal would change what it says.
mkfifo -m 600 /run/output
cat /run/output >/dev/tty1 3>&- &
reader=$!
(
    exec 3>&- >/run/output 2>&1 </dev/null
    cd {directory} && exec env -i {environment} {command}
)
code=$?
# What the command has left behind must hold up nothing.
for process in /proc/[0-9]*; do
    pid=${{process#/proc/}}
    [ $pid = 1 ] || [ $pid = $reader ] || kill -KILL $pid
done 2>/dev/null
wait $reader
echo $code >&3
echo o >/proc/sysrq-trigger
sleep 60
"""


class GuestFailed(Exception):
    """The guest did not start, or ended before its command did."""


class GuestTimedOut(Exception):
    """The command ran longer than it may."""


class Stopped(BaseException):
    """A signal asks this program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What to run, and with how much."""

    command: Sequence[str]
    memory: str = "1500M"
    limit_s: float = 1200.0
    directory: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    program: str = PROGRAM

    def run(self, output: Callable[[bytes], object]) -> int:
        """Boot, run the command, give all it writes to `output` as it comes, power off; return its exit code.

        Raises GuestFailed with the kernel's last words, or GuestTimedOut; nothing of the guest is left either way.
        """
        if shutil.which(self.program) is None:
            raise GuestFailed(f"there is no program {self.program}: apt-get install user-mode-linux")
        with tempfile.TemporaryDirectory(prefix="mh-uml-") as name:
            files = Files(Path(name))
            files.init.write_text(init_script(self, files.status))
            files.init.chmod(0o700)
            with self._booted(files) as guest_output:
                copy(guest_output, output, deadline=time.monotonic() + self.limit_s)
            return files.exit_code()

    @contextmanager
    def _booted(self, files: Files) -> Iterator[int]:
        """Start the guest and give the end of the pipe it writes to; wait for its end, or kill it with all it started.

        A session of its own, since a guest that panics sends SIGTERM to its process group.
        """
        readable, writable = os.pipe()
        try:
            with files.log.open("wb") as log:
                process = subprocess.Popen(
                    kernel_command(self, files, writable),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[writable],
                    start_new_session=True,
                )
        except BaseException:
            os.close(readable)
            raise
        finally:
            os.close(writable)
        try:
            yield readable
        except BaseException:
            process.terminate()
            raise
        finally:
            end(process)
            os.close(readable)


@dataclass(frozen=True, slots=True)
class Files:
    """The guest's own files on this machine."""

    directory: Path

    @property
    def init(self) -> Path:
        """The program of the guest's process 1."""
        return self.directory / "init"

    @property
    def status(self) -> Path:
        """Where it writes the command's exit code."""
        return self.directory / "status"

    @property
    def log(self) -> Path:
        """What the kernel says."""
        return self.directory / "log"

    def exit_code(self) -> int:
        """Read the command's exit code; without one the guest has failed."""
        try:
            return int(self.status.read_text())
        except (FileNotFoundError, ValueError):
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            raise GuestFailed("\n".join(["the guest ended before its command did; it said last:", *lines])) from None


def init_script(guest: Guest, status: Path) -> str:
    """Write the guest's process 1, which mounts, runs the command, notes its exit code in `status` and powers off."""
    open_files, open_files_hard = (
        "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return INIT.format(
        status=shlex.quote(str(status)),
        open_files=open_files,
        open_files_hard=open_files_hard,
        directory=shlex.quote(str(guest.directory)),
        shown=shlex.join(map(str, shown_directories(guest.directory))),
        environment=shlex.join(f"{name}={value}" for name, value in guest.environment.items()),
        command=shlex.join(guest.command),
    )


def shown_directories(directory: Path) -> list[Path]:
    """Where the command begins, this checkout and its interpreter, if the guest's own /tmp and /run hide them."""
    wanted = sorted({directory, Path(__file__).resolve().parents[2], Path(sys.prefix)})
    hidden = [path for path in wanted if {Path("/tmp"), Path("/run")} & set(path.parents)]
    return [path for path in hidden if not set(path.parents) & set(hidden)]


def kernel_command(guest: Guest, files: Files, output_fd: int) -> list[str]:
    """Put together how the guest is started; console 1 writes to `output_fd`.

    `setpriv` terminates the guest when this program is killed.
    `taskset` keeps its processes on one processor: each system call and page fault of the guest goes from one to the
    other and back, which then takes a quarter of the time (measured: 12 us for 51 us).
    """
    return [
        *("setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(max(os.sched_getaffinity(0))), guest.program),
        *(f"mem={guest.memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", f"init={files.init}"),
        *(f"uml_dir={files.directory}/", "umid=guest", "con0=null,fd:1", f"con1=null,fd:{output_fd}"),
        *("con=null", "ssl=null"),
    ]


def copy(readable: int, output: Callable[[bytes], object], *, deadline: float) -> None:
    """Give what can be read to `output` until its end."""
    with selectors.DefaultSelector() as selector:
        selector.register(readable, selectors.EVENT_READ)
        while (left_s := deadline - time.monotonic()) > 0:
            if selector.select(left_s):
                if not (data := os.read(readable, 65536)):
                    return
                output(data)
    raise GuestTimedOut


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a guest that powers off or was terminated; kill what it has not stopped itself.

    On SIGTERM the kernel stops and reaps its processes. Those of one that panics or hangs live on.
    """
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(STOP_LIMIT_S)


def stop(number: int, _frame: object) -> NoReturn:
    """Handle a signal that asks for the end; another one must not get in the way of cleaning up."""
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="uml.py", description="Run a command on a cgroup v2 host (User-Mode Linux).")
    parser.add_argument("--memory", default="1500M", help="the guest's memory (default: %(default)s)")
    parser.add_argument("--limit-s", type=float, default=1200.0, help="seconds it may take (default: %(default)s)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    chosen = parser.parse_args(arguments)
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        guest = Guest(command=chosen.command, memory=chosen.memory, limit_s=chosen.limit_s)
        return guest.run(lambda data: (sys.stdout.buffer.write(data), sys.stdout.buffer.flush()))
    except GuestFailed as error:
        sys.stderr.write(f"uml.py: {error}\n")
        return FAILED
    except GuestTimedOut:
        sys.stderr.write(f"uml.py: not done within {chosen.limit_s:g} s\n")
        return TIMED_OUT
    except Stopped as stopped:
        return 128 + stopped.number
    except BrokenPipeError:  # nobody listens any more, and so nothing is to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
