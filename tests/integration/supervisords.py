"""Real supervisords that run nothing of modelhost but its interfaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import CHECKOUT, supervisord_answers, until

from host.supervisor import ProcessInfo, SupervisorClient

END_LIMIT_S = 10.0

CONFIG = """\
[supervisord]
nodaemon=true
silent=true
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
childlogdir=%(here)s
[unix_http_server]
file=%(here)s/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[rpcinterface:slots]
supervisor.rpcinterface_factory=supervisor_conf.slots:make_interface
[rpcinterface:fork]
supervisor.rpcinterface_factory=supervisor_conf.fork:make_interface
"""


@dataclass(frozen=True)
class Supervisord:
    """One that runs."""

    config: Path
    socket: Path
    client: SupervisorClient

    def processes(self) -> dict[str, ProcessInfo]:
        return {process.program: process for process in self.client.processes()}

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes().items() if process.pid}


@contextmanager
def supervisord(programs: str) -> Iterator[Supervisord]:
    """Run one with these sections. What it still runs in the end is killed."""
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as directory:
        config, path = Path(directory, "supervisord.conf"), Path(directory, "supervisor.sock")
        config.write_text(CONFIG + programs)
        found = Supervisord(config, path, SupervisorClient(path))
        process = subprocess.Popen([sys.executable, "-m", "supervisor.supervisord", "-n", "-c", config], cwd=CHECKOUT)
        try:
            until(lambda: supervisord_answers(path) or process.poll() is not None, "supervisord answers")
            yield found
        finally:
            try:
                # At once: supervisord itself would take its time to look at its signals and children.
                for pid in found.pids().values():
                    os.kill(pid, signal.SIGKILL)
            finally:
                process.kill()
                process.wait(END_LIMIT_S)
