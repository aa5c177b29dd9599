"""`modelhost_gate`: its decisions, and what it asks of a command line that answers what each test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from module_runs import Stub, load, run_module, stub_in

from host.config.judgement import Judge
from host.control.judge import SLOWER_MIN_NS, Tally, Verdict, judge
from host.protocol.latency import Latencies, LatencyHistogram

module = load("modelhost_gate")
Look, Window, Terms = module.Look, module.Window, module.Terms

TERMS = Terms(soak_s=60.0, min_requests=100, min_requests_required=False, max_failed_percent=1.0, max_slowdown=2.0)
WELL = Look("serving", 2, 2, "", 0, 0, {}, {"churn.v4:0": 1, "churn.v4:1": 0}, "", (5,))


def latencies(*milliseconds: float) -> Latencies:
    histogram = LatencyHistogram()
    for one in milliseconds:
        histogram.add(int(one * 1e6))
    return histogram.read()


def window(answered: int = 100, failed: int = 0, ms: float = 2.0, **fields: Any) -> Any:
    counts = latencies(*[ms] * answered).counts
    return Window(**{"watched_s": 60.0, "answered": answered, "failed": failed, "counts": counts, **fields})


def verdict(
    given_window: Any, look: Any = WELL, reference: dict[str, Any] | None = None, **terms: Any
) -> tuple[str, str]:
    found: tuple[str, str] = module.judge(TERMS._replace(**terms), given_window, look, reference or {})
    return found


# -- the verdict --------------------------------------------------------------------------------------------------
def test_a_version_that_is_well_passes_at_the_end_of_the_window() -> None:
    assert verdict(window(watched_s=59.9))[0] == "wait"
    assert verdict(window())[0] == "passed"
    assert verdict(window(), reference={"p90_ms": 2.0, "failed_percent": None})[0] == "passed"


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (WELL._replace(state=""), "it is not there, and not served"),
        (WELL._replace(state="failed", reason="no such weights"), "it is given up: no such weights"),
        (WELL._replace(state="starting"), "it is starting, and not served"),
        (WELL._replace(state="leaving"), "it is leaving, and not served"),
        (WELL._replace(reason="its features cannot be read"), "it cannot serve: its features cannot be read"),
    ],
)
@pytest.mark.parametrize("measure_only", [False, True])
def test_a_version_that_is_not_served_fails_at_once(look: Any, why: str, measure_only: bool) -> None:
    assert verdict(Window(), look, measure_only=measure_only) == ("failed", why)


def test_a_death_fails_at_once() -> None:
    look = WELL._replace(last_exit="churn.v4:0: killed by SIGSEGV")
    assert verdict(Window(deaths=1), look) == (
        "failed",
        "deaths of its processes: 1, the last one churn.v4:0: killed by SIGSEGV",
    )
    assert verdict(Window(deaths=1))[0] == "failed"


@pytest.mark.parametrize(
    ("answered", "failed", "elsewhere", "expected"),
    [
        (97, 2, 0.0, "wait"),  # too few to say
        (98, 2, 0.0, "failed"),  # 2 % of 100
        (99, 1, 0.0, "wait"),  # 1 % is allowed
        (980, 20, 1.0, "wait"),  # 1 more than elsewhere
        (979, 21, 1.0, "failed"),
        (0, 100, 99.0, "wait"),
    ],
)
def test_failures_end_it_as_soon_as_they_say_something(
    answered: int, failed: int, elsewhere: float, expected: str
) -> None:
    some = window(answered, failed, watched_s=1.0)
    assert verdict(some, reference={"failed_percent": elsewhere})[0] == expected
    assert verdict(some, reference={"failed_percent": elsewhere}, measure_only=True)[0] == "wait"


@pytest.mark.parametrize(
    ("answered", "failed", "required", "expected"),
    [
        (0, 0, False, "passed"),
        (99, 0, False, "passed"),
        (50, 49, False, "passed"),
        (0, 1, False, "failed"),
        (0, 0, True, "failed"),
        (99, 0, True, "failed"),
        (100, 0, True, "passed"),
    ],
)
def test_few_requests(answered: int, failed: int, required: bool, expected: str) -> None:
    found, why = verdict(window(answered, failed), min_requests_required=required)
    assert found == expected
    assert answered + failed >= 100 or f"{answered + failed} requests, of 100 that it takes to say anything" in why


@pytest.mark.parametrize(
    ("ms", "base_ms", "expected"),
    [(4.0, 2.5, "passed"), (6.0, 2.5, "failed"), (0.9, 0.1, "passed"), (1.9, 0.1, "failed"), (500.0, None, "passed")],
)
def test_slowness_is_judged_at_the_end(ms: float, base_ms: float | None, expected: str) -> None:
    assert verdict(window(ms=ms), reference={"p90_ms": base_ms})[0] == expected
    assert verdict(window(ms=ms, watched_s=59.0), reference={"p90_ms": base_ms})[0] == "wait"
    assert verdict(window(ms=ms), reference={"p90_ms": base_ms}, measure_only=True)[0] == "passed"


def test_a_process_that_is_not_ready_may_come_for_a_while() -> None:
    look = WELL._replace(ready=1)
    assert verdict(window(), look) == ("wait", "1 of 2 processes are ready")
    assert verdict(window(watched_s=60 + module.UNREADY_S), look) == ("failed", "1 of 2 processes are ready")


def test_without_a_window_it_is_looked_at_once() -> None:
    assert verdict(Window(), soak_s=0.0, min_requests_required=True) == ("passed", "it is served by 2 processes")


@given(
    answered=st.integers(0, 300),
    failed=st.integers(0, 20),
    ms=st.sampled_from([0.2, 1.1, 2.0, 3.0, 7.0]),
    base_answered=st.integers(1, 300),
    base_failed=st.integers(0, 20),
    base_ms=st.sampled_from([0.2, 1.1, 2.0, 3.0, 7.0]),
    watched_s=st.sampled_from([1.0, 59.0, 60.0, 100.0]),
)
def test_the_rules_are_those_of_a_canary_on_one_host(
    answered: int, failed: int, ms: float, base_answered: int, base_failed: int, base_ms: float, watched_s: float
) -> None:
    assume(answered + failed >= TERMS.min_requests)
    canary = Tally(answered, failed, latencies(*[ms] * answered))
    default = Tally(base_answered, base_failed, latencies(*[base_ms] * base_answered))
    expected, _ = judge(
        Judge(window_s=60, min_requests=100, max_failed_percent=1.0, max_slowdown=2.0), canary, default, watched_s
    )
    base = module.numbers(base_answered, base_failed, default.latency.counts)
    found, _ = verdict(window(answered, failed, ms, watched_s=watched_s), reference=base)
    assert found == {Verdict.WAIT: "wait", Verdict.ROLL_BACK: "failed", Verdict.PASSED: "passed"}[expected]


def test_a_millisecond_is_the_same_here_and_there() -> None:
    assert module.SLOWER_MIN_MS == SLOWER_MIN_NS / 1e6


# -- the window ---------------------------------------------------------------------------------------------------
def test_the_window_holds_what_came_between() -> None:
    before = WELL._replace(answered=1000, failed=10, counts={80: 1000})
    now = WELL._replace(answered=1300, failed=11, counts={80: 1200, 90: 100})
    grown = module.grown(module.grown(Window(), before, now, 2.5), now, now, 1.5)
    assert grown == Window(watched_s=4.0, answered=300, failed=1, counts={80: 200, 90: 100})
    assert grown.numbers["failed_percent"] == pytest.approx(100 / 301, abs=1e-3)


@pytest.mark.parametrize(
    "now",
    [
        WELL._replace(answered=40, counts={80: 40}),
        WELL._replace(answered=2000, counts={80: 2000}, fronts=(6,)),
        WELL._replace(answered=2000, counts={80: 2000}, fronts=(5, 6)),
    ],
)
def test_a_front_that_counts_from_0_again_leaves_a_gap_and_no_wrong_number(now: Any) -> None:
    before = WELL._replace(answered=1000, counts={80: 1000})
    gap = module.grown(Window(), before, now, 1.0)
    assert gap == Window(watched_s=1.0, gaps=1)
    more = now._replace(answered=now.answered + 5, counts={80: now.counts[80] + 5})
    assert module.grown(gap, now, more, 1.0) == Window(watched_s=2.0, gaps=1, answered=5, counts={80: 5})


@pytest.mark.parametrize(
    ("now", "deaths"),
    [
        ({"churn.v4:0": 1, "churn.v4:1": 0}, 0),
        ({"churn.v4:0": 2, "churn.v4:1": 0}, 1),
        ({"churn.v4:0": 1}, 0),  # scaled down
        ({"churn.v4:0": 1, "churn.v4:1": 0, "churn.v4:2": 2}, 2),
        ({"churn.v4:0": 0, "churn.v4:1": 0}, 0),  # control forgot
    ],
)
def test_deaths_are_those_since_the_first_look(now: dict[str, int], deaths: int) -> None:
    assert module.grown(Window(), WELL, WELL._replace(deaths=now), 1.0).deaths == deaths


# -- the module ---------------------------------------------------------------------------------------------------
@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Give a command line, which is asked often."""
    monkeypatch.setattr(module, "LOOK_MAX_S", 0.01)
    return stub_in(tmp_path)


def status(answered: int = 0, failed: int = 0, deaths: int = 0, **fields: Any) -> dict[str, Any]:
    """What `modelhost status --json` says, in short."""
    exit_ = {"at": 1.0, "pid": 3, "kind": "signal", "reason": "killed by SIGKILL", "log": []} if deaths else None
    slot = {"name": "churn.v4:0", "pid": 9, "deaths": {"signal": deaths}, "last_exit": exit_}
    traffic = {"answered": answered, "failed": failed, "latency": {"sum_ns": 0, "counts": {"160": answered}}}
    model = {
        "name": "churn", "version": "4", "default": True, "state": "serving", "wanted": 1, "ready": 1, "reason": "",
        "slots": [slot], "traffic": traffic, **fields,
    }  # fmt: skip
    return {"document": {"running": True, "ready": True, "host": [{"name": "front:0", "pid": 5}], "models": [model]}}


WARNING = {
    "check": "models",
    "subject": "churn version 4",
    "level": "warn",
    "what": "has no golden case",
    "what_to_do": "x",
}


def gated(stub: Stub, **options: Any) -> dict[str, Any]:
    return run_module(module, command=stub.path, config="/c.toml", model="churn", **options)


def test_asks_it_once_and_looks_once(stub: Stub) -> None:
    stub.answers(status=status(), doctor={"document": {"level": "warn", "findings": [WARNING]}})
    result = gated(stub)
    assert (result["failed"], result["changed"], result["verdict"], result["version"]) == (False, False, "passed", "4")
    assert result["notes"] == ["churn version 4: has no golden case"]
    assert result["smoke"] == [WARNING]
    (call,) = stub.calls("doctor")
    assert call["argv"] == ["doctor", "--only", "models", "--model", "churn.v4", "--json", "--config", "/c.toml"]


def test_an_answer_that_is_not_the_recorded_one_fails_before_anything_is_watched(stub: Stub) -> None:
    bad = {**WARNING, "level": "fail", "what": "answers otherwise than its golden case"}
    stub.answers(status=status(), doctor={"document": {"level": "fail", "findings": [bad]}, "code": 1})
    result = gated(stub, version="4", soak_s=600)
    assert (result["failed"], result["verdict"], result["window"]) == (True, "failed", None)
    assert result["msg"] == "churn version 4: churn version 4: answers otherwise than its golden case"


def test_a_death_in_the_window_ends_it(stub: Stub) -> None:
    stub.answers(status=[status(1000, 5), status(1200, 5), status(1200, 5, deaths=1)])
    result = gated(stub, version="4", soak_s=600, smoke=False)
    assert result["failed"]
    assert result["msg"] == "churn version 4: deaths of its processes: 1, the last one churn.v4:0: killed by SIGKILL"
    assert (result["window"]["requests"], result["window"]["failed"], result["window"]["deaths"]) == (200, 0, 1)


def test_failures_in_the_window_end_it(stub: Stub) -> None:
    stub.answers(status=[status(1000, 500), status(1098, 502)])
    result = gated(stub, version="4", soak_s=600, smoke=False)
    assert result["msg"] == "churn version 4: 2.0 % of 100 requests failed, 0.0 % elsewhere"


def test_measures_for_others(stub: Stub) -> None:
    stub.answers(status=[status(0, 0), status(0, 0), status(80, 40)])
    result = gated(stub, soak_s=1, smoke=False, measure_only=True)
    assert (result["failed"], result["verdict"], result["window"]["requests"]) == (False, "measured", 120)
    assert gated(stub, version="4", soak_s=1, smoke=False, reference=result["window"])["verdict"] == "passed"


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"running": False, "ready": False, "reason": "no host runs in /run/m"}, "no host runs in /run/m"),
        ({"running": True, "models": []}, "no version of it is served"),
    ],
)
def test_what_is_not_there_fails(stub: Stub, document: dict[str, Any], why: str) -> None:
    stub.answers(status={"document": document})
    result = gated(stub)
    assert result["failed"] and why in result["msg"]
    assert result["version"] is None


def test_control_may_be_started_again_meanwhile(stub: Stub) -> None:
    away = {"document": {"running": True, "ready": False, "reason": "control does not answer"}, "code": 1}
    stub.answers(status=[status(), away, status()])
    assert gated(stub, version="4", soak_s=1, smoke=False)["verdict"] == "passed"


def test_control_that_stays_away_is_a_failure(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_S", 0.0)
    away = {"document": {"running": True, "ready": False, "reason": "control does not answer"}, "code": 1}
    stub.answers(status=[status(), away])
    result = gated(stub, version="4", soak_s=1, smoke=False)
    assert result["msg"] == "churn version 4: nothing can be said of it: control does not answer"


def test_check_mode_is_skipped(stub: Stub) -> None:
    assert gated(stub, check_mode=True, version="9")["skipped"] is True
    assert stub.calls("status") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soak_s": -1}, "soak_s: expected a number from 0 to 86400, received -1"),
        ({"soak_s": 86_401}, "soak_s: expected"),
        ({"min_requests": 0}, "min_requests: expected a number from 1 to 1e+06, received 0"),
        ({"max_failed_percent": 100.1}, "max_failed_percent: expected"),
        ({"max_slowdown": "nan"}, "max_slowdown: expected"),
        (
            {"reference": {"p90_ms": "fast"}},
            "reference: p90_ms: expected a number of at least 0, or none, received 'fast'",
        ),
        ({"reference": {"failed_percent": -1}}, "reference: failed_percent: expected"),
    ],
)
def test_options_have_bounds(stub: Stub, options: dict[str, Any], message: str) -> None:
    assert gated(stub, **options)["msg"].startswith(message)
    assert stub.calls("status") == []
