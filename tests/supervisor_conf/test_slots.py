"""A group grows while what it has goes on running: in a real supervisord."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import supervisord_answers, until

from host.supervisor import FAULT_BAD_NAME, ProcessInfo, ProcessState, SupervisorClient, SupervisorFault

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
FAULT_CANT_REREAD = 92
LIMIT_S = 10.0

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
"""

GROUP = """\
[program:{name}]
command={command}
numprocs={slots}
process_name=%(process_num)d
autostart=false
startsecs=0
stopsignal=KILL
stdout_logfile=%(here)s/{name}:%(process_num)d.log
"""


@dataclass(frozen=True)
class Supervisord:
    """One that runs, and its configuration."""

    config: Path
    client: SupervisorClient

    def configure(self, *, command: str = "sleep 600", **groups: int) -> None:
        """Write the configuration: the slots of every group."""
        sections = (GROUP.format(name=name, slots=slots, command=command) for name, slots in groups.items())
        self.config.write_text(CONFIG + "".join(sections))

    def declare(self, name: str) -> int:
        return int(self.client.call("slots.declare", name))

    def fault(self, name: str) -> int:
        with pytest.raises(SupervisorFault) as raised:
            self.declare(name)
        return raised.value.code

    def start(self, *programs: str) -> dict[str, int]:
        """Start slots; give the pids of all that run."""
        for program in programs:
            self.client.call("startProcess", program, True)
        return self.pids()

    def processes(self) -> dict[str, ProcessInfo]:
        return {process.program: process for process in self.client.processes()}

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes().items() if process.pid}


@pytest.fixture
def supervisord() -> Iterator[Supervisord]:
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as directory:
        config, path = Path(directory, "supervisord.conf"), Path(directory, "supervisor.sock")
        found = Supervisord(config, SupervisorClient(path))
        found.configure(a=2)
        process = subprocess.Popen([sys.executable, "-m", "supervisor.supervisord", "-n", "-c", config], cwd=ROOT)
        try:
            until(lambda: supervisord_answers(path) or process.poll() is not None, "supervisord answers")
            yield found
            # At once: supervisord itself would take its time to look at its signals and children.
            for pid in found.pids().values():
                os.kill(pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait(LIMIT_S)


def test_a_group_grows_and_keeps_what_runs(supervisord: Supervisord) -> None:
    before = supervisord.start("a:0", "a:1")
    supervisord.configure(a=4)
    assert supervisord.declare("a") == 4
    assert supervisord.pids() == before
    after = supervisord.processes()
    assert sorted(after) == ["a:0", "a:1", "a:2", "a:3"]
    assert after["a:2"].state is after["a:3"].state is ProcessState.STOPPED
    assert (after["a:2"].start_s, after["a:2"].pid) == (0, 0)
    grown = supervisord.start("a:2", "a:3")
    assert before.items() < grown.items()
    assert set(grown) == {"a:0", "a:1", "a:2", "a:3"}


def test_slots_that_were_added_are_slots_like_the_others(supervisord: Supervisord) -> None:
    supervisord.configure(a=3)
    supervisord.declare("a")
    (pid,) = supervisord.start("a:2").values()
    log = supervisord.config.with_name("a:2.log")
    assert log.exists()
    supervisord.client.call("stopProcess", "a:2", True)
    assert supervisord.pids() == {}
    assert supervisord.start("a:2") != {"a:2": pid}
    supervisord.client.call("stopProcessGroup", "a", True)
    assert supervisord.pids() == {}
    assert supervisord.client.call("removeProcessGroup", "a")
    assert supervisord.processes() == {}


def test_declaring_twice_changes_nothing(supervisord: Supervisord) -> None:
    supervisord.configure(a=3)
    assert supervisord.declare("a") == 3
    before = supervisord.start("a:0", "a:2")
    assert supervisord.declare("a") == 3
    assert supervisord.pids() == before


def test_a_group_may_grow_again_and_again(supervisord: Supervisord) -> None:
    before = supervisord.start("a:0")
    for slots in range(3, 7):
        supervisord.configure(a=slots)
        assert supervisord.declare("a") == slots
    assert supervisord.pids() == before
    assert len(supervisord.processes()) == 6


def test_a_new_group_is_added_beside_the_others(supervisord: Supervisord) -> None:
    before = supervisord.start("a:0")
    supervisord.configure(a=2, b=1)
    assert supervisord.declare("b") == 1
    assert supervisord.pids() == before
    assert supervisord.processes()["b:0"].state is ProcessState.STOPPED
    assert before.items() < supervisord.start("b:0").items()


def test_only_the_group_that_is_named_is_changed(supervisord: Supervisord) -> None:
    supervisord.configure(a=4, b=1, c=1)
    supervisord.declare("b")
    assert sorted(supervisord.processes()) == ["a:0", "a:1", "b:0"]


def test_a_group_with_fewer_slots_or_another_command_keeps_what_it_has(supervisord: Supervisord) -> None:
    before = supervisord.start("a:0", "a:1")
    supervisord.configure(a=1, command="sleep 601")
    assert supervisord.declare("a") == 2
    assert supervisord.pids() == before


def test_slots_that_should_not_be_there_go_once_they_have_no_process(supervisord: Supervisord) -> None:
    supervisord.configure(a=4)
    supervisord.declare("a")
    before = supervisord.start("a:0", "a:2")
    supervisord.configure(a=1)
    assert supervisord.declare("a") == 2
    assert supervisord.pids() == before
    assert set(supervisord.processes()) == {"a:0", "a:2"}
    supervisord.client.call("stopProcess", "a:2", True)
    assert supervisord.declare("a") == 1
    assert set(supervisord.processes()) == {"a:0"}
    supervisord.configure(a=3)
    assert supervisord.declare("a") == 3
    assert set(supervisord.start("a:2")) == {"a:0", "a:2"}


def test_a_group_that_was_removed_can_be_declared_again(supervisord: Supervisord) -> None:
    assert supervisord.client.call("removeProcessGroup", "a")
    assert supervisord.declare("a") == 2
    assert set(supervisord.start("a:0")) == {"a:0"}


def test_a_name_that_the_configuration_has_not_is_a_fault(supervisord: Supervisord) -> None:
    before = supervisord.start("a:0")
    assert supervisord.fault("b") == FAULT_BAD_NAME
    # One that runs, and is no longer in the file, is no reason to stop it.
    supervisord.configure(b=1)
    assert supervisord.fault("a") == FAULT_BAD_NAME
    assert supervisord.pids() == before


def test_a_configuration_that_cannot_be_read_is_a_fault_and_changes_nothing(supervisord: Supervisord) -> None:
    before = supervisord.start("a:0")
    for text in (
        "no section",
        "",
        CONFIG + "[program:a]\n",
        CONFIG + "[program:a]\ncommand=x\nnumprocs=many\n",
        CONFIG + "[program:a]\ncommand=%(nothing)s\n",
    ):
        supervisord.config.write_text(text)
        assert supervisord.fault("a") == FAULT_CANT_REREAD, text
    supervisord.config.unlink()
    assert supervisord.fault("a") == FAULT_CANT_REREAD
    assert supervisord.pids() == before
    supervisord.configure(a=3)
    assert supervisord.declare("a") == 3
    assert supervisord.pids() == before
