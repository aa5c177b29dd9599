"""Limits, defects, what the kernel says, and the report."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from host.cli.doctor import document
from host.config.settings import load_settings
from host.doctor.examination import LIMITS_S, Examination, Examined, within
from host.doctor.findings import Group, Level, fail, ok
from host.doctor.kernel import memory_numbers, number, open_files_limit, process_state, read_clock, rooms
from host.doctor.target import Target, find_target
from host.protocol.errors import HostError


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """Give a host without anything."""
    return find_target(load_settings(None, {}, {}, tmp_path))


def test_within_gives_what_came() -> None:
    assert within(5.0, lambda: 7) == 7
    assert within(5.0, lambda: None) is None


def test_within_raises_what_was_raised() -> None:
    def broken() -> None:
        raise HostError("broken")

    with pytest.raises(HostError, match="broken"):
        within(5.0, broken)


def test_within_does_not_wait_for_what_hangs() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.01, lambda: release.wait(30))
    release.set()


def test_a_group_that_hangs_is_a_finding(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hanging(Examination):
        def _examine(self, group: Group) -> list[object]:  # type: ignore[override]
            release.wait(30)
            return []

    monkeypatch.setattr("host.doctor.examination.LIMIT_S", 0.01)
    (one,) = Hanging(target).run([Group.DISK])
    release.set()
    assert [finding.level for finding in one.findings] == [Level.FAIL]
    assert "hangs" in one.findings[0].what


def test_a_defect_of_one_group_does_not_hide_the_others(target: Target) -> None:
    class Broken(Examination):
        def _examine(self, group: Group) -> list[object]:  # type: ignore[override]
            raise KeyError("x")

    found = list(Broken(target).run([Group.DISK, Group.CLOCK]))
    assert [one.group for one in found] == [Group.CLOCK, Group.DISK]
    assert all("KeyError" in one.findings[0].what for one in found)


def test_groups_of_a_running_host_are_not_looked_at_without_one(target: Target) -> None:
    begun: list[Group] = []
    found = list(Examination(target).run([Group.MODELS, Group.SUPERVISORD], begun.append))
    assert begun == [Group.SUPERVISORD, Group.MODELS]
    assert all(one.findings[0].what == "no host runs here: not looked at" for one in found)


def test_models_that_are_asked_for_by_name_need_a_host(target: Target) -> None:
    (one,) = Examination(target, ["churn"]).run([Group.MODELS])
    assert [finding.level for finding in one.findings] == [Level.FAIL]
    assert one.findings[0].what == "no host runs here that could serve them"


def test_every_limit_is_of_a_group() -> None:
    assert all(limit_s > 0 for limit_s in LIMITS_S.values())


def test_the_document_has_levels_of_groups_and_of_all() -> None:
    examined = [
        Examined(group=Group.CLOCK, findings=(ok(Group.CLOCK, "c", "w"),), took_s=0.12345),
        Examined(group=Group.DISK, findings=(fail(Group.DISK, "d", "w", "do"),), took_s=0.0),
    ]
    told = document(examined)
    assert told["level"] == "fail"
    assert told["groups"][0] == {"group": "clock", "level": "ok", "seconds": 0.123}
    assert len(told["findings"]) == 2


# -- what the kernel says ---------------------------------------------------------------------------------------------
def test_process_state(tmp_path: Path) -> None:
    directory = tmp_path / "proc" / "12"
    directory.mkdir(parents=True)
    (directory / "stat").write_text("12 (a) T) (b) T 1 12 12 0 -1 4194304\n")
    assert process_state(12, tmp_path) == "T"
    assert process_state(13, tmp_path) == ""
    assert process_state(os.getpid()) == "R"


def test_open_files_limit(tmp_path: Path) -> None:
    directory = tmp_path / "proc" / "12"
    directory.mkdir(parents=True)
    (directory / "limits").write_text("Limit  Soft Limit\nMax open files            1024     4096     files\n")
    assert open_files_limit(12, tmp_path) == 1024
    assert open_files_limit(13, tmp_path) is None


def test_memory_and_rooms_of_a_recorded_tree(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "sys" / "kernel").mkdir(parents=True)
    (proc / "sys" / "fs" / "inotify").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:  16 kB\nHugePages_Total:  0\n")
    (proc / "loadavg").write_text("0.1 0.2 0.3 2/345 999\n")
    (proc / "sys" / "kernel" / "threads-max").write_text("1000\n")
    (proc / "sys" / "kernel" / "pid_max").write_text("400\n")
    (proc / "sys" / "fs" / "inotify" / "max_user_instances").write_text("128\n")
    fd = proc / "5" / "fd"
    fd.mkdir(parents=True)
    (fd / "3").symlink_to("anon_inode:inotify")
    (fd / "4").symlink_to("/dev/null")
    assert memory_numbers(tmp_path)["MemTotal"] == 16 * 1024
    found = {room.name: (room.limit, room.used, room.needed) for room in rooms(7, 4, tmp_path)}
    assert found == {
        "kernel.threads-max": (1000, 345, 7),
        "kernel.pid_max": (400, 345, 7),
        "fs.inotify.max_user_instances": (128, 1, 4),
    }


@pytest.mark.parametrize(("text", "expected"), [("7\n", 7), ("max\n", None), ("", None)])
def test_number(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "n").write_text(text)
    assert number(tmp_path / "n") == expected
    assert number(tmp_path / "none") is None


def test_the_clock_can_be_asked() -> None:
    told = read_clock()
    assert told.synchronised in (True, False, None)
    assert told.max_error_s >= 0.0
