"""What a host that runs says, judged."""

from __future__ import annotations

import dataclasses
from typing import Final

import msgspec
import pytest

from host.control.status import DeathKind, ExitStatus, HostStatus, ModelStatus, SlotStatus, VersionState
from host.doctor.facts import (
    Asked,
    ControlFacts,
    FrontFacts,
    HealthFacts,
    ModelFacts,
    Seen,
    StoreFacts,
    SupervisorFacts,
    ViewFacts,
    WorkerFacts,
)
from host.doctor.findings import Finding, Level, worst
from host.doctor.live_checks import check_control, check_fronts, check_models, check_stores, check_supervisord
from host.supervisor import ProcessInfo, ProcessState

OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL


def bad(findings: list[Finding]) -> list[tuple[str, Level]]:
    """Where and how bad, of what is not ok."""
    assert findings
    assert all(bool(one.what_to_do) == (one.level is not OK) for one in findings)
    return [(one.subject, one.level) for one in findings if one.level is not OK]


def seen(program: str, state: ProcessState = ProcessState.RUNNING, pid: int = 7, letter: str = "S") -> Seen:
    group, _, name = program.partition(":")
    process = ProcessInfo(
        group=group,
        name=name or group,
        state=state,
        pid=pid,
        start_s=0,
        stop_s=0,
        exit_status=0,
        spawn_error="",
    )
    return Seen(process=process, kernel_state=letter)


SUPERVISOR: Final = SupervisorFacts(
    up_pid=2,
    up_state="S",
    pid=3,
    state="S",
    problem="",
    version="4.3.0",
    took_s=0.001,
    processes=(seen("front:0"), seen("control"), seen("m.v1:0"), seen("m.v1:1", ProcessState.STOPPED, 0, "")),
    wanted=("front:0", "control", "m.v1:0"),
    known=frozenset({"front", "control", "m.v1"}),
)


def supervisor(**changes: object) -> list[tuple[str, Level]]:
    return bad(check_supervisord(dataclasses.replace(SUPERVISOR, **changes)))  # type: ignore[arg-type]


def test_supervisord_that_is_well() -> None:
    assert supervisor() == []


@pytest.mark.parametrize(("version", "is_old"), [("4.2.5", True), ("4.3.0", False), ("5.0.0.dev0", False)])
def test_supervisord_that_is_old(version: str, is_old: bool) -> None:
    assert supervisor(version=version) == ([("supervisord (pid 3)", WARN)] if is_old else [])


def test_supervisord_that_is_gone_frozen_or_left_behind() -> None:
    assert supervisor(pid=None) == [("supervisord", FAIL)]
    silent = check_supervisord(dataclasses.replace(SUPERVISOR, problem="no answer in time"))
    assert [(one.subject, one.what) for one in silent] == [("supervisord (pid 3)", "no answer in time")]
    frozen = check_supervisord(dataclasses.replace(SUPERVISOR, problem="no answer in time", state="T"))
    assert "kill -CONT 3" in frozen[0].what_to_do
    assert supervisor(up_pid=None) == [("modelhost up", FAIL)]
    assert supervisor(up_state="T") == [("modelhost up (pid 2)", FAIL)]


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (ProcessState.STARTING, WARN),
        (ProcessState.STOPPING, WARN),
        (ProcessState.BACKOFF, FAIL),
        (ProcessState.STOPPED, FAIL),
        (ProcessState.EXITED, FAIL),
        (ProcessState.FATAL, FAIL),
        (ProcessState.UNKNOWN, FAIL),
    ],
)
def test_processes_that_do_not_run(state: ProcessState, level: Level) -> None:
    processes = (seen("front:0"), seen("control"), seen("m.v1:0", state))
    assert supervisor(processes=processes) == [("m.v1:0", level)]


def test_processes_that_are_missing_too_many_or_strange() -> None:
    assert supervisor(processes=SUPERVISOR.processes[:2]) == [("m.v1:0", FAIL)]
    more = (*SUPERVISOR.processes[:3], seen("m.v1:1"))
    assert supervisor(processes=more) == [("m.v1:1", WARN)]
    assert supervisor(processes=more, is_scaled=frozenset({"m.v1"})) == []
    assert supervisor(processes=(*SUPERVISOR.processes, seen("cron"))) == [("cron", WARN)]


def slot(name: str, ready: bool = True, last_exit: ExitStatus | None = None) -> SlotStatus:
    return SlotStatus(
        name=name,
        state="RUNNING" if ready else "FATAL",
        pid=7 if ready else 0,
        ready=ready,
        since=0.0,
        uptime_s=1.0,
        restarts=0,
        last_exit=last_exit,
    )


MODEL: Final = ModelStatus(name="m", version="1", default=True, wanted=1, ready=1, slots=(slot("m.v1:0"),))
STATUS: Final = HostStatus(
    ready=True, wanted=1, ready_processes=1, models=(MODEL,), host=(slot("front:0"),), unwanted=()
)


def control(model: ModelStatus = MODEL, draining: bool = False, **changes: object) -> list[Finding]:
    status = msgspec.structs.replace(STATUS, models=(model,), **changes)
    return check_control(ControlFacts(problem="", status=status, draining=draining))


def test_control_that_is_well() -> None:
    assert bad(control()) == []


def test_control_that_is_silent_or_frozen() -> None:
    silent = ControlFacts(problem="no answer within 8 s", status=None, draining=False)
    assert bad(check_control(silent)) == [("control", FAIL)]
    frozen = check_control(dataclasses.replace(silent, frozen_pid=5))
    assert bad(frozen) == [("control (pid 5)", FAIL)]
    assert "kill -CONT 5" in frozen[0].what_to_do


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (VersionState.FAILED, FAIL),
        (VersionState.STARTING, WARN),
        (VersionState.REPLACED, WARN),
        (VersionState.LEAVING, WARN),
    ],
)
def test_versions_that_do_not_serve(state: VersionState, level: Level) -> None:
    found = control(msgspec.structs.replace(MODEL, state=state, reason="its golden case"), settled=False)
    assert bad(found) == [("m version 1", level)]
    assert state is not VersionState.FAILED or "its golden case" in found[0].what


def test_slots_that_are_not_ready_say_why() -> None:
    died = ExitStatus(at=0.0, pid=7, kind=DeathKind.OOM, reason="more than 256 MiB")
    found = control(msgspec.structs.replace(MODEL, slots=(slot("m.v1:0", ready=False, last_exit=died),)))
    assert bad(found) == [("m.v1:0", FAIL)]
    assert "more than 256 MiB" in found[0].what
    assert bad(control(host=(slot("front:0", ready=False),))) == [("front:0", FAIL)]
    assert bad(control(msgspec.structs.replace(MODEL, reason="view u: no table"))) == [("m version 1", FAIL)]


def test_control_that_drains_or_is_at_work() -> None:
    assert bad(control(draining=True)) == [("control", WARN)]
    assert bad(control(settled=False)) == [("control", WARN)]


FRONT: Final = FrontFacts(program="front:0", pid=7, is_frozen=False, problem="", generation=3)
HEALTH: Final = HealthFacts(fronts=(FRONT,), generation=3, url="http://h", live="", ready="", took_s=0.001)


def fronts(front: FrontFacts = FRONT, **changes: object) -> list[tuple[str, Level]]:
    return bad(check_fronts(dataclasses.replace(HEALTH, fronts=(front,), **changes)))  # type: ignore[arg-type]


def test_fronts() -> None:
    assert fronts() == []
    assert fronts(dataclasses.replace(FRONT, is_frozen=True)) == [("front:0 (pid 7)", FAIL)]
    assert fronts(dataclasses.replace(FRONT, problem="does not answer", pid=0)) == [("front:0", FAIL)]
    assert fronts(dataclasses.replace(FRONT, generation=2)) == [("front:0 (pid 7)", WARN)]
    assert fronts(live="no answer within 3 s", ready="no answer within 3 s") == [("http://h", FAIL)]
    assert fronts(ready="answered 503") == [("http://h", FAIL)]
    assert fronts(ready="answered 503", draining=True) == [("http://h", WARN)]


VIEW: Final = ViewFacts(view="u", store="main", direct="", direct_s=0.001, live="")


def test_stores() -> None:
    where = "view u in store main"
    assert bad(check_stores(StoreFacts(views=()))) == []
    for live in ("", None):
        assert bad(check_stores(StoreFacts(views=(dataclasses.replace(VIEW, live=live),)))) == []
    gone = check_stores(StoreFacts(views=(dataclasses.replace(VIEW, direct="no such file", live="503"),)))
    assert bad(gone) == [(where, FAIL)]
    assert gone[0].what == "no such file"
    only_live = check_stores(StoreFacts(views=(dataclasses.replace(VIEW, live="answered 503"),)))
    assert bad(only_live) == [(where, FAIL)]
    assert "modelhost restart features" in only_live[0].what_to_do
    frozen = StoreFacts(views=(VIEW,), frozen=(seen("features:0", letter="T"),))
    assert bad(check_stores(frozen)) == [("features:0 (pid 7)", FAIL)]


ASKED: Final = Asked(
    name="m", version="1", case="first", status=200, message="", difference="", took_s=0.002, log="/l/m.v1:0.log"
)


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, OK),
        ({"case": ""}, OK),
        ({"difference": "output 'y': expected 1, received 2"}, FAIL),
        ({"status": 0, "message": "no answer within 3 s"}, FAIL),
        ({"status": 0, "asleep": True}, OK),
        ({"status": 503, "message": "MODEL_NOT_READY: none"}, FAIL),
        ({"status": 422, "message": "INVALID_INPUT: x"}, FAIL),
        ({"status": 422, "message": "INVALID_INPUT: x", "case": ""}, WARN),
        ({"status": 399, "case": ""}, FAIL),
        ({"status": 400, "case": ""}, WARN),
        ({"status": 499, "case": ""}, WARN),
        ({"status": 500, "case": ""}, FAIL),
    ],
)
def test_models(changes: dict[str, object], level: Level) -> None:
    one = dataclasses.replace(ASKED, **changes)  # type: ignore[arg-type]
    found = check_models(ModelFacts(asked=(one,), workers=(), patience_s=2.0))
    assert [(finding.subject, finding.level) for finding in found] == [("m version 1", level)]
    assert str(changes.get("message", "")) in found[0].what
    assert str(changes.get("difference", "")) in found[0].what
    assert "2.0 ms" in found[0].what or one.asleep


def test_workers() -> None:
    worker = WorkerFacts(program="m.v1:0", pid=7, is_frozen=False, answers=True)
    silent, frozen = dataclasses.replace(worker, answers=False), dataclasses.replace(worker, is_frozen=True)
    where = "m.v1:0 (pid 7)"
    for one, expected in ((worker, []), (silent, [(where, WARN)]), (frozen, [(where, FAIL)])):
        assert bad(check_models(ModelFacts(asked=(ASKED,), workers=(one,), patience_s=2.0))) == expected
    assert bad(check_models(ModelFacts(asked=(), workers=(), patience_s=2.0))) == []


def test_a_process_that_a_debugger_holds_is_frozen() -> None:
    assert [seen("m.v1:0", letter=letter).is_frozen for letter in ("T", "t", "S", "R", "D", "Z", "")] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


def test_the_worst_counts() -> None:
    findings = check_fronts(dataclasses.replace(HEALTH, ready="503"))
    assert worst(findings) is FAIL
    assert worst(findings[:1]) is OK
    assert worst([]) is OK
