"""What happened between two looks at a host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statuses import NOW, death, host, model, replace, slot

from host.config.history import Change
from host.control.news import EVENTS_KEPT, SLOTS_SHOWN, Event, Look, Severity, events_between, events_known, kept
from host.control.observe import StoreState
from host.control.status import Backoff, HostStatus, VersionState

READY = model()


def told(before: HostStatus, now: HostStatus, **more: object) -> list[tuple[str, str, str]]:
    """What, subject and text of every event."""
    later = Look(at=NOW, status=now, **more)  # type: ignore[arg-type]
    return [(one.what, one.subject, one.text) for one in events_between(Look(at=NOW - 1, status=before), later)]


def test_nothing_happened() -> None:
    assert told(host(READY), host(READY)) == []


def test_a_death_and_the_next_life_are_told_with_cause_and_log() -> None:
    alive, gone = slot(), slot(pid=0, last_exit=death(), deaths={"signal": 1})
    back = slot(pid=12, last_exit=death(), deaths={"signal": 1}, since=NOW)
    died = events_between(Look(at=NOW - 1, status=host(READY)), Look(at=NOW, status=host(model(slots=(gone,)))))
    first = next(one for one in died if one.what == "death")
    assert (first.at, first.severity, first.model) == (999.0, Severity.BAD, "churn")
    assert (first.text, first.log) == ("killed by SIGKILL, pid 11", ("the last line",))
    assert told(host(model(slots=(gone,))), host(model(slots=(back,)))) == [
        ("restart", "churn.v3:0", "ready again, pid 12"),
        ("host", "host", "ready"),
    ]
    # Both within one look: neither is lost.
    assert [one[0] for one in told(host(model(slots=(alive,))), host(model(slots=(back,))))] == ["death", "restart"]


def test_several_deaths_within_one_look_are_counted() -> None:
    before = slot(last_exit=death(900.0), deaths={"signal": 2})
    now = slot(pid=14, last_exit=death(999.5, 13), deaths={"signal": 3, "oom": 2})
    (event, *_) = told(host(model(slots=(before,))), host(model(slots=(now,))))
    assert event == ("death", "churn.v3:0", "killed by SIGKILL, pid 13 (3 times since the last look)")


def test_a_restart_that_somebody_asked_for_is_no_death() -> None:
    assert told(host(READY), host(model(slots=(slot(pid=12),)))) == [("restart", "churn.v3:0", "started again, pid 12")]


def test_the_next_process_of_a_death_that_was_told_is_no_restart_of_its_own() -> None:
    # The death was known before supervisord's list had the next process.
    told_already = slot(pid=11, ready=False, last_exit=death(pid=11), deaths={"signal": 1})
    back = slot(pid=12, last_exit=death(pid=11), deaths={"signal": 1})
    found = told(host(model(slots=(told_already,))), host(model(slots=(back,))))
    assert [one for one in found if one[0] == "restart"] == [("restart", "churn.v3:0", "ready again, pid 12")]


def test_a_pause_after_short_lives_is_told() -> None:
    waiting = slot(pid=0, backoff=Backoff(short_lives=4, since=900.0, until=NOW + 8), ready=False)
    found = told(host(READY), host(model(slots=(waiting,))))
    assert ("death", "churn.v3:0", "starts again in 8 s, after 4 short lives") in found


def test_a_front_is_a_process_like_any_other() -> None:
    gone = slot("front:0", 5, last_exit=death(pid=4), deaths={"signal": 1})
    found = told(host(READY), host(READY, host=(gone, slot("control", 6))))
    assert found == [
        ("death", "front:0", "killed by SIGKILL, pid 4"),
        ("restart", "front:0", "ready again, pid 5"),
    ]


def test_a_rollout_is_told_from_its_beginning_to_its_end() -> None:
    new = model(
        version="4", slots=(slot("churn.v4:0", 0), slot("churn.v4:1", 0)), state=VersionState.STARTING, wanted=2
    )
    half = replace(new, ready=1)
    served = replace(new, ready=2, state=VersionState.SERVING)
    old = replace(READY, state=VersionState.REPLACED)
    leaving = replace(READY, state=VersionState.LEAVING)
    texts = [
        text
        for before, now in (
            (host(READY), host(new, old)),
            (host(new, old), host(half, old)),
            (host(half, old), host(served, leaving)),
            (host(served, leaving), host(served)),
        )
        for what, subject, text in told(before, now)
        if what == "rollout"
    ]
    assert texts == [
        "rollout begun, 2 processes",
        "served until another version is ready",
        "1 of 2 processes ready",
        "served, 2 of 2 processes ready",
        "not served any more: finishes what it has",
        "removed",
    ]


def test_a_version_that_was_given_up_says_why() -> None:
    new = model(version="4", slots=(), state=VersionState.STARTING, wanted=1)
    failed = replace(new, state=VersionState.FAILED, reason="a golden case failed", log=("expected 1",))
    (event,) = events_between(Look(at=NOW, status=host(new)), Look(at=NOW, status=host(failed)))
    assert (event.severity, event.text, event.log) == (
        Severity.BAD,
        "given up: a golden case failed",
        ("expected 1",),
    )


def test_scaling_is_told() -> None:
    assert told(host(model(wanted=1)), host(model(wanted=3, ready=3))) == [("scaling", "churn.v3", "1 -> 3 processes")]


def test_what_an_operator_stops_behind_controls_back_is_drift() -> None:
    stopped = slot(pid=0, state="STOPPED", ready=False)
    found = told(host(READY), host(model(slots=(stopped,))))
    assert ("drift", "churn.v3:0", "stopped by an operator") in found
    leaving = model(slots=(stopped,), state=VersionState.LEAVING)
    assert not [
        one for one in told(host(replace(READY, state=VersionState.LEAVING)), host(leaving)) if one[0] == "drift"
    ]


def test_a_process_that_should_not_be_there_is_drift() -> None:
    stray = slot("old.v1:0", 77)
    assert told(host(READY), host(READY, unwanted=(stray,))) == [("drift", "old.v1:0", "runs and should not")]


def test_features_that_cannot_be_read_are_told_and_that_they_can_be_again() -> None:
    broken = replace(READY, reason="view users: no such column")
    assert told(host(READY), host(broken)) == [("store", "churn.v3", "cannot serve: view users: no such column")]
    assert told(host(broken), host(READY)) == [("store", "churn.v3", "its features can be read again")]


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (StoreState(open=False), StoreState(open=True, openings=1), "does not answer: it is left alone"),
        (StoreState(open=True, openings=1), StoreState(open=False, openings=1), "answers again"),
        (StoreState(open=False, openings=1), StoreState(open=False, openings=2), "did not answer for a moment"),
    ],
)
def test_a_stores_breaker_is_told(before: StoreState, now: StoreState, text: str) -> None:
    earlier = Look(at=NOW - 1, status=host(READY), stores={"main": before})
    (event,) = events_between(earlier, Look(at=NOW, status=host(READY), stores={"main": now}))
    assert (event.what, event.subject) == ("store", "main")
    assert event.text.startswith(text)


def change(who: str, what: str) -> Change:
    return Change(at=998.0, who=who, what=what, generation=2, differences=("churn: version 3 -> 4",), models=())


def test_who_changed_what_is_told() -> None:
    assert told(host(READY), host(READY), last_change=change("ann", "apply")) == [
        ("change", "host", "ann: apply: churn: version 3 -> 4")
    ]


@pytest.mark.parametrize(("verdict", "severity"), [("rolled back", Severity.BAD), ("promoted", Severity.INFO)])
def test_a_judgement_on_a_canary_is_told(verdict: str, severity: Severity) -> None:
    judged = change("control", f"canary churn.v4 {verdict}: 9 % failed")
    (event,) = events_between(Look(at=NOW, status=host(READY)), Look(at=NOW, status=host(READY), last_change=judged))
    assert (event.what, event.severity) == ("canary", severity)


def test_the_host_becomes_ready_and_stops_being_so() -> None:
    unready = host(READY, ready=False)
    assert told(unready, host(READY)) == [("host", "host", "ready")]
    assert told(host(READY), unready) == [("host", "host", "not ready: 1 of 1 processes are")]


def test_what_happened_before_the_first_look_is_known_from_what_is_kept() -> None:
    status = host(model(slots=(slot(last_exit=death()),)))
    found = events_known(Look(at=NOW, status=status), [change("ann", "apply")])
    assert [(one.at, one.what) for one in found] == [(998.0, "change"), (999.0, "death")]


@pytest.mark.parametrize("many", [0, 1, SLOTS_SHOWN, SLOTS_SHOWN + 1, 200])
def test_of_the_same_for_many_processes_the_rest_is_counted(many: int) -> None:
    before = model(slots=tuple(slot(f"m.v1:{number}", number + 1) for number in range(many)))
    now = model(slots=tuple(slot(f"m.v1:{number}", number + 1000) for number in range(many)))
    found = told(host(before), host(now))
    assert len(found) == min(many, SLOTS_SHOWN + 1)
    if many > SLOTS_SHOWN:
        assert found[-1][2] == f"the same happened to {many - SLOTS_SHOWN} more processes"


@given(st.lists(st.integers(0, EVENTS_KEPT + 1), max_size=4))
def test_only_the_last_events_are_kept(numbers: list[int]) -> None:
    events: tuple[Event, ...] = ()
    for number in numbers:
        new = [
            Event(at=float(one), severity=Severity.INFO, what="w", subject="s", text=str(one)) for one in range(number)
        ]
        events = kept(events, new)
        assert len(events) <= EVENTS_KEPT
        assert not new or events[-1] == new[-1]
