"""What roll-outs say of a host that does not become ready."""

from __future__ import annotations

import json
from typing import Any

import pytest
from module_runs import load

rolling = load("modelhost_rolling", "filter_plugins")
SAID = "modelhost does not run: its service said last: "


def model(name: str, state: str = "serving", ready: int = 2, reason: str = "") -> dict[str, Any]:
    """A version as `modelhost_info` tells of it."""
    return {"name": name, "version": "1", "state": state, "ready": ready, "wanted": 2, "reason": reason}


def entry(message: object, start: str = "2") -> str:
    """A line of a service's journal, of one of its starts."""
    return json.dumps({"MESSAGE": message, "_SYSTEMD_INVOCATION_ID": start, "PRIORITY": "6"})


def test_well_is_what_all_processes_serve() -> None:
    models = [model("a"), model("b", ready=1), model("c", "failed", 0), model("d", "replaced")]
    assert rolling.well({"models": models}) == ["a@1"]
    assert rolling.well({}) == rolling.well({"models": None}) == []


@pytest.mark.parametrize(
    ("state", "journal", "why"),
    [
        ({"running": False, "reason": "no host runs"}, [], "no host runs"),
        ({}, [entry(""), entry(" ")], "it does not run"),
        ({}, [entry(None), entry([255, 10]), '{"PRIORITY": "6"}'], "it does not run"),
        ({}, ['{"MESSAGE": "alone"}'], f"{SAID}alone"),
        (
            {"running": False, "reason": "no host runs"},
            [entry("modelhost: port 1: in use"), entry("modelhost: port 1: in use\n"), entry("modelhost: bye")],
            f"{SAID}modelhost: port 1: in use; modelhost: bye",
        ),
        # What it said before it was stopped, or at an earlier start, is no reason.
        ({}, [entry("draining", "1"), entry("stopped", "1"), entry("no such address")], f"{SAID}no such address"),
        ({}, [entry("draining", "1"), entry("no such address", "2"), entry("", "3")], f"{SAID}no such address"),
        (
            {"running": True, "models": [model("a"), model("b", "failed", 0, "it hangs"), model("c", "starting", 1)]},
            [entry("of an earlier time")],
            "b version 1 is failed, 0 of 2 processes ready: it hangs; c version 1 is starting, 1 of 2 processes ready",
        ),
        (
            {"running": True, "models": [model("a")]},
            [],
            "not everything is ready; on the host, `modelhost status` says what is missing",
        ),
        ({"running": True, "models": [], "reason": "control does not answer"}, [], "control does not answer"),
    ],
)
def test_why_a_host_is_not_ready(state: dict[str, Any], journal: list[str], why: str) -> None:
    assert rolling.why_not_ready(state, journal) == why


@pytest.mark.parametrize(("chars", "shown"), [(1, 1), (2000, 2000), (2001, 2000), (100_000, 2000)])
def test_the_end_of_what_a_service_said_is_shown(chars: int, shown: int) -> None:
    line = "x" * (chars - 1) + "."
    assert rolling.why_not_ready({"running": False}, [entry(line)]) == SAID + line[-shown:]
