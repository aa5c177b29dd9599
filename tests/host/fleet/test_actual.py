"""What hosts run, and balancers say, against what should be."""

from __future__ import annotations

from typing import Any

import pytest
from inventories import fleet_of, inventory, layer

from host.fleet.actual import compare, report


def entry(name: str, version: str, processes: int | None = None, **more: Any) -> dict[str, Any]:
    counts = {} if processes is None else {"processes": processes}
    return {"name": name, "version": version, "default": True, **counts, **more}


FLEET: dict[str, Any] = {
    "hosts": {
        "h1": {"models": {"churn": entry("churn", "3", 2)}},
        "h2": {"models": {"churn": entry("churn", "3", 1), "fraud": entry("fraud", "7")}},
    },
    "models": {"churn": {"hosts": {"h1": {}, "h2": {}}}, "fraud": {"hosts": {"h2": {}}}},
}


def seen(name: str, version: str, processes: int = 1, **more: Any) -> dict[str, Any]:
    there = {"name": name, "version": version, "default": True, "state": "serving", "reason": ""}
    return {**there, "wanted": processes, "ready": processes, **more}


def states(**hosts: list[dict[str, Any]] | None) -> dict[str, Any]:
    return {host: None if models is None else {"running": True, "models": models} for host, models in hosts.items()}


H1 = [seen("churn", "3", 2)]
H2 = [seen("churn", "3"), seen("fraud", "7", 5)]


def test_a_fleet_that_is_as_it_should_be() -> None:
    said = report(FLEET, states(h1=H1, h2=H2))
    assert said["drift"] == []
    assert said["lines"] == [
        "HOST  MODEL  SHOULD RUN  RUNS   STATE",
        "h1    churn  3 x 2       3 x 2  serving",
        "h2    churn  3 x 1       3 x 1  serving",
        "h2    fraud  7           7 x 5  serving",
    ]


@pytest.mark.parametrize(
    ("h1", "drift"),
    [
        (
            [seen("churn", "2", 2)],
            ["h1: churn version 3 does not run", "h1: churn version 2 should not be there (serving)"],
        ),
        ([seen("churn", "3", 1)], ["h1: churn version 3 should have 2 processes, and has 1"]),
        ([seen("churn", "3", 2, ready=1)], ["h1: churn version 3: 1 of 2 processes are ready"]),
        (
            [seen("churn", "3", 2, ready=1, reason="no such disk")],
            ["h1: churn version 3: 1 of 2 processes are ready: no such disk"],
        ),
        ([seen("churn", "3", 2, state="failed", reason="hangs")], ["h1: churn version 3 is failed: hangs"]),
        ([seen("churn", "3", 2, default=False)], ["h1: churn version 3 should be the default"]),
        ([*H1, seen("old", "1")], ["h1: old version 1 should not be there (serving)"]),
    ],
)
def test_what_differs_is_told(h1: list[dict[str, Any]], drift: list[str]) -> None:
    said = report(FLEET, states(h1=h1, h2=H2))
    assert said["drift"] == drift
    assert sum(line.endswith("<-") for line in said["lines"]) == len(drift)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"unreachable": True, "msg": "no route"}, "cannot be reached"),
        ({"running": False, "reason": "no host runs in /run"}, "no host runs in /run"),
        ({"running": False}, "does not run"),
        ({"running": True, "reason": "control does not answer", "models": []}, "control does not answer"),
        ({"failed": True, "msg": "no Python"}, "no Python"),
    ],
)
def test_a_host_that_does_not_answer_is_drift(state: dict[str, Any], reason: str) -> None:
    (row,) = (row for row in compare(FLEET, {"h1": state, **states(h2=H2)}) if row.host == "h1")
    assert row.drift == f"h1: {reason}"
    assert row.wanted == "1 models"


@pytest.mark.parametrize("missing", [{}, {"h1": None}, {"h1": {}}])
def test_a_host_that_was_left_out_is_told_and_is_no_drift(missing: dict[str, Any]) -> None:
    said = report(FLEET, {**missing, **states(h2=H2)}, {"h1": "2"})
    assert said["drift"] == []
    assert said["lines"][1] == "h1           1 models    -      not asked"


# -- second versions, and processes that follow the load ---------------------------------------------------------------
def one_host(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"hosts": {"h1": {"models": {f"{one['name']}@{one['version']}": one for one in entries}}}, "models": {}}


@pytest.mark.parametrize(("default", "drift"), [(False, []), (True, ["h1: churn version 4 should not be the default"])])
def test_a_canary_is_not_the_default(default: bool, drift: list[str]) -> None:
    fleet = one_host(entry("churn", "3", 2), entry("churn", "4", 1, canary_percent=5, default=False))
    assert report(fleet, states(h1=[*H1, seen("churn", "4", default=default)]))["drift"] == drift


@pytest.mark.parametrize("more", [{"canary_percent": 5}, {"shadow_percent": 5}, {"default": False}, {}])
def test_a_fleet_as_it_is_evaluated_has_what_is_compared(more: dict[str, Any]) -> None:
    """Of entries that do not say whether they are the default."""
    fleet = fleet_of(inventory(layer("host h1", "h1", churn={"version": "3", "processes": 2}, churn__4=more)))
    assert report(fleet, states(h1=[*H1, seen("churn", "4", default=False)]))["drift"] == []
    (drift,) = report(fleet, states(h1=[*H1, seen("churn", "4", 2, default=False)]))["drift"]
    assert drift == "h1: churn version 4 should have 1 processes, and has 2"


@pytest.mark.parametrize(
    ("wanted", "ready", "drift"),
    [
        (1, 1, "should have 2 to 6 processes, and has 1"),
        (2, 2, ""),
        (4, 4, ""),
        (6, 6, ""),
        (7, 7, "should have 2 to 6 processes, and has 7"),
        (4, 2, ""),  # two more start
        (4, 1, "1 of 4 processes are ready"),
    ],
)
def test_any_number_within_bounds_is_right(wanted: int, ready: int, drift: str) -> None:
    fleet = one_host(entry("churn", "3", min_processes=2, max_processes=6))
    (row,) = compare(fleet, states(h1=[seen("churn", "3", wanted, ready=ready)]))
    assert row.wanted == "3 x 2 to 6"
    assert row.drift.removeprefix("h1: churn version 3").lstrip(": ") == drift


@pytest.mark.parametrize(("wanted", "ready", "right"), [(0, 0, True), (1, 1, True), (1, 0, False), (3, 1, True)])
def test_bounds_may_begin_with_none(wanted: int, ready: int, right: bool) -> None:
    fleet = one_host(entry("churn", "3", min_processes=0, max_processes=6))
    (row,) = compare(fleet, states(h1=[seen("churn", "3", wanted, ready=ready)]))
    assert (row.drift == "") == right


# -- releases ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("releases", "release", "drift"),
    [
        (None, "0.1.0", []),
        ({}, "0.1.0", []),
        ({"h1": ""}, "0.1.0", []),
        ({"h1": "0.1.0"}, "0.1.0", []),
        ({"h1": "0.1.1"}, None, []),
        ({"h1": "0.1.1"}, "0.1.0", ["h1: release 0.1.0 runs, should be 0.1.1"]),
    ],
)
def test_another_release_than_the_inventory_s(
    releases: dict[str, str] | None, release: str | None, drift: list[str]
) -> None:
    state = states(h1=H1, h2=H2)
    state["h1"]["release"] = release
    assert report(FLEET, state, releases)["drift"] == drift


def test_the_release_of_a_host_that_does_not_run() -> None:
    state = {"h1": {"running": False, "release": "1"}, **states(h2=H2)}
    assert report(FLEET, state, {"h1": "2"})["drift"] == ["h1: release 1 runs, should be 2", "h1: does not run"]


# -- balancers -----------------------------------------------------------------------------------------------------
def server(backend: str, name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {"backend": backend, "server": name, "state": state, "up": state != "maint", "weight": 1, **more}


@pytest.mark.parametrize(
    ("state", "drift"),
    [
        ({"servers": [server("model_a", "h1"), server("model_a", "h2", weight=0)]}, []),
        ({"servers": [server("model_a", "h1", "drain")]}, ["balancer: h1 gets no requests for a (drain)"]),
        ({"servers": [server("model_a", "h1", "maint")]}, ["balancer: h1 gets no requests for a (maint)"]),
        ({"servers": [server("model_a", "h1", up=False)]}, ["balancer: h1 is down for a"]),
        (
            {"servers": [server(one, "h1", up=False) for one in ("modelhost_hosts", "model_a", "model_model_b")]},
            ["balancer: h1 is down for a, model_b"],
        ),
        ({"servers": [server("modelhost_hosts", "h1", up=False)]}, ["balancer: h1 is down for modelhost_hosts"]),
        (
            {"servers": [server(f"model_{one}", "h1", "drain") for one in "abcdefg"]},
            ["balancer: h1 gets no requests for a, b, c, d, e and 2 more (drain)"],
        ),
        (
            {"servers": [server("model_a", "h1", "drain", up=False), server("model_a", "h2", up=False)]},
            ["balancer: h1 gets no requests for a (drain)", "balancer: h2 is down for a"],
        ),
        ({"unreachable": True, "msg": "no route"}, ["balancer: cannot be reached"]),
        ({"failed": False, "msg": "HAProxy does not run"}, ["balancer: HAProxy does not run"]),
        ({}, []),
        (None, []),
    ],
)
def test_what_balancers_say(state: dict[str, Any] | None, drift: list[str]) -> None:
    said = report(FLEET, states(h1=H1, h2=H2), balancers={"balancer": state})
    assert said["drift"] == drift
    assert sum(line.endswith("<-") for line in said["lines"]) == len(drift)
    assert "balancer" in said["lines"][-1]


def test_a_balancer_has_a_row() -> None:
    balancers = {"b1": {"servers": [server("model_a", "h1")]}, "b2": None}
    lines = report(FLEET, states(h1=H1, h2=H2), balancers=balancers)["lines"]
    assert lines[-2:] == [
        "b1           1 servers   1 servers",
        "b2           -           -          not asked",
    ]
