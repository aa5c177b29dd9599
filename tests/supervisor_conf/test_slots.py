"""A group grows while what it has goes on running: in a real supervisord."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from supervisords import CONFIG, Supervisord, supervisord

from host.supervisor import FAULT_BAD_NAME, ProcessState, SupervisorFault

pytestmark = pytest.mark.integration

FAULT_CANT_REREAD = 92

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


class Slots:
    """A real supervisord, and the groups in its configuration."""

    def __init__(self, running: Supervisord) -> None:
        self.config = running.config
        self.client = running.client
        self.processes = running.processes
        self.pids = running.pids

    def configure(self, *, command: str = "sleep 600", **groups: int) -> None:
        """Write the configuration: the slots of every group."""
        self.config.write_text(CONFIG + programs(command, groups))

    def declare(self, name: str) -> int:
        return int(self.client.call("slots.declare", name))

    def fault(self, name: str) -> int:
        with pytest.raises(SupervisorFault) as raised:
            self.declare(name)
        return raised.value.code

    def start(self, *names: str) -> dict[str, int]:
        """Start slots; give the pids of all that run."""
        for name in names:
            self.client.call("startProcess", name, True)
        return self.pids()


def programs(command: str, groups: Mapping[str, int]) -> str:
    return "".join(GROUP.format(name=name, slots=slots, command=command) for name, slots in groups.items())


@pytest.fixture
def slots() -> Iterator[Slots]:
    with supervisord(programs("sleep 600", {"a": 2})) as running:
        yield Slots(running)


def test_a_group_grows_and_keeps_what_runs(slots: Slots) -> None:
    before = slots.start("a:0", "a:1")
    slots.configure(a=4)
    assert slots.declare("a") == 4
    assert slots.pids() == before
    after = slots.processes()
    assert sorted(after) == ["a:0", "a:1", "a:2", "a:3"]
    assert after["a:2"].state is after["a:3"].state is ProcessState.STOPPED
    assert (after["a:2"].start_s, after["a:2"].pid) == (0, 0)
    grown = slots.start("a:2", "a:3")
    assert before.items() < grown.items()
    assert set(grown) == {"a:0", "a:1", "a:2", "a:3"}


def test_slots_that_were_added_are_slots_like_the_others(slots: Slots) -> None:
    slots.configure(a=3)
    slots.declare("a")
    (pid,) = slots.start("a:2").values()
    log = slots.config.with_name("a:2.log")
    assert log.exists()
    slots.client.call("stopProcess", "a:2", True)
    assert slots.pids() == {}
    assert slots.start("a:2") != {"a:2": pid}
    slots.client.call("stopProcessGroup", "a", True)
    assert slots.pids() == {}
    assert slots.client.call("removeProcessGroup", "a")
    assert slots.processes() == {}


def test_declaring_twice_changes_nothing(slots: Slots) -> None:
    slots.configure(a=3)
    assert slots.declare("a") == 3
    before = slots.start("a:0", "a:2")
    assert slots.declare("a") == 3
    assert slots.pids() == before


def test_a_group_may_grow_again_and_again(slots: Slots) -> None:
    before = slots.start("a:0")
    for count in range(3, 7):
        slots.configure(a=count)
        assert slots.declare("a") == count
    assert slots.pids() == before
    assert len(slots.processes()) == 6


def test_a_new_group_is_added_beside_the_others(slots: Slots) -> None:
    before = slots.start("a:0")
    slots.configure(a=2, b=1)
    assert slots.declare("b") == 1
    assert slots.pids() == before
    assert slots.processes()["b:0"].state is ProcessState.STOPPED
    assert before.items() < slots.start("b:0").items()


def test_only_the_group_that_is_named_is_changed(slots: Slots) -> None:
    slots.configure(a=4, b=1, c=1)
    slots.declare("b")
    assert sorted(slots.processes()) == ["a:0", "a:1", "b:0"]


def test_a_group_with_fewer_slots_or_another_command_keeps_what_it_has(slots: Slots) -> None:
    before = slots.start("a:0", "a:1")
    slots.configure(a=1, command="sleep 601")
    assert slots.declare("a") == 2
    assert slots.pids() == before


def test_slots_that_should_not_be_there_go_once_they_have_no_process(slots: Slots) -> None:
    slots.configure(a=4)
    slots.declare("a")
    before = slots.start("a:0", "a:2")
    slots.configure(a=1)
    assert slots.declare("a") == 2
    assert slots.pids() == before
    assert set(slots.processes()) == {"a:0", "a:2"}
    slots.client.call("stopProcess", "a:2", True)
    assert slots.declare("a") == 1
    assert set(slots.processes()) == {"a:0"}
    slots.configure(a=3)
    assert slots.declare("a") == 3
    assert set(slots.start("a:2")) == {"a:0", "a:2"}


def test_a_group_that_was_removed_can_be_declared_again(slots: Slots) -> None:
    assert slots.client.call("removeProcessGroup", "a")
    assert slots.declare("a") == 2
    assert set(slots.start("a:0")) == {"a:0"}


def test_a_name_that_the_configuration_has_not_is_a_fault(slots: Slots) -> None:
    before = slots.start("a:0")
    assert slots.fault("b") == FAULT_BAD_NAME
    # One that runs, and is no longer in the file, is no reason to stop it.
    slots.configure(b=1)
    assert slots.fault("a") == FAULT_BAD_NAME
    assert slots.pids() == before


def test_a_configuration_that_cannot_be_read_is_a_fault_and_changes_nothing(slots: Slots) -> None:
    before = slots.start("a:0")
    for text in (
        "no section",
        "",
        CONFIG + "[program:a]\n",
        CONFIG + "[program:a]\ncommand=x\nnumprocs=many\n",
        CONFIG + "[program:a]\ncommand=%(nothing)s\n",
    ):
        slots.config.write_text(text)
        assert slots.fault("a") == FAULT_CANT_REREAD, text
    slots.config.unlink()
    assert slots.fault("a") == FAULT_CANT_REREAD
    assert slots.pids() == before
    slots.configure(a=3)
    assert slots.declare("a") == 3
    assert slots.pids() == before
