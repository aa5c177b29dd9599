"""Every death is called by its name."""

from __future__ import annotations

import signal

import pytest

from host.control.deaths import Death, Memory, SlotDeaths, signal_name
from host.control.status import DeathKind
from host.protocol.messages import Limits

LIMITS = Limits(hang_s=10, startup_s=60)
MIB = 1 << 20


def death(status: int, *, asked: bool = False, lived_s: float = 61.0) -> Death:
    started = 5.0 - lived_s
    return Death(
        serial=1, supervisord=2, program="churn.v3:0", pid=7, status=status, started=started, at=5.0, asked=asked
    )


@pytest.mark.parametrize(
    ("status", "was_ready", "kind", "reason"),
    [
        (0, True, DeathKind.EXIT, "ended by itself (exit code 0)"),
        (1 << 8, True, DeathKind.EXIT, "exit code 1"),
        (3 << 8, True, DeathKind.EXIT, "exit code 3"),
        (2 << 8, False, DeathKind.PACKAGE, "the package cannot be served"),
        (3 << 8, False, DeathKind.GOLDEN, "a golden case failed"),
        (70 << 8, False, DeathKind.ISOLATION, 'isolation = "required", and a step of it failed'),
        (signal.SIGSEGV, True, DeathKind.SIGNAL, "killed by SIGSEGV"),
        (signal.SIGSEGV | 0x80, True, DeathKind.SIGNAL, "killed by SIGSEGV"),  # with a core dump
        (signal.SIGKILL, True, DeathKind.SIGNAL, "killed by SIGKILL"),
        (signal.SIGALRM, True, DeathKind.HANG, "hung: predict did not return within hang_s = 10 s"),
        (signal.SIGALRM, False, DeathKind.STARTUP, "not ready within startup_s = 60 s"),
    ],
)
def test_the_cause(status: int, was_ready: bool, kind: DeathKind, reason: str) -> None:
    slot = SlotDeaths()
    last = slot.record(death(status), LIMITS, Memory(), was_ready=was_ready, log=["a", "b"])
    assert last is not None
    assert (last.kind, last.reason, last.at, last.pid, last.log) == (kind, reason, 5.0, 7, ("a", "b"))
    assert slot.last == last
    assert slot.counts == {kind.value: 1}


def test_an_alarm_before_the_start_could_take_too_long_is_a_hang() -> None:
    last = SlotDeaths().record(death(signal.SIGALRM, lived_s=30.0), LIMITS, Memory(), was_ready=False, log=())
    assert last is not None
    assert last.kind is DeathKind.HANG


def test_an_oom_kill_has_its_limit_peak_and_count() -> None:
    slot = SlotDeaths()
    for count, kills in ((1, 1), (2, 4)):  # a kernel may count every process of the group
        memory = Memory(oom_kills=kills, limit_bytes=512 * MIB, peak_bytes=511 * MIB)
        last = slot.record(death(signal.SIGKILL), LIMITS, memory, was_ready=True, log=())
        assert last is not None
        assert last.kind is DeathKind.OOM
        assert last.reason == f"out of memory: killed at its limit of 512 MiB (peak 511 MiB, {count} times by now)"
    # The counter stands still: somebody else's SIGKILL.
    last = slot.record(death(signal.SIGKILL), LIMITS, memory, was_ready=True, log=())
    assert last is not None
    assert last.kind is DeathKind.SIGNAL
    assert slot.counts == {"oom": 2, "signal": 1}


def test_a_child_killed_for_memory_does_not_explain_another_death() -> None:
    slot = SlotDeaths()
    memory = Memory(oom_kills=1, limit_bytes=MIB, peak_bytes=MIB)
    last = slot.record(death(signal.SIGSEGV), LIMITS, memory, was_ready=True, log=())
    assert last is not None
    assert last.kind is DeathKind.SIGNAL


def test_an_end_that_was_asked_for_is_no_death() -> None:
    slot = SlotDeaths()
    assert slot.record(death(signal.SIGTERM, asked=True), LIMITS, Memory(), was_ready=True, log=()) is None
    assert (slot.counts, slot.last) == ({}, None)


def test_signals_have_names() -> None:
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(50) == "signal 50"
