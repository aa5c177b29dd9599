"""What roll-outs say of a host that does not become ready."""

from __future__ import annotations

from typing import Any

import pytest
from module_runs import load

rolling = load("modelhost_rolling", "filter_plugins")
SAID = "modelhost does not run: its service said last: "


def model(name: str, state: str = "serving", ready: int = 2, reason: str = "") -> dict[str, Any]:
    """A version as `modelhost_info` tells of it."""
    return {"name": name, "version": "1", "state": state, "ready": ready, "wanted": 2, "reason": reason}


def test_well_is_what_all_processes_serve() -> None:
    models = [model("a"), model("b", ready=1), model("c", "failed", 0), model("d", "replaced")]
    assert rolling.well({"models": models}) == ["a@1"]
    assert rolling.well({}) == rolling.well({"models": None}) == []


@pytest.mark.parametrize(
    ("state", "said", "why"),
    [
        ({"running": False, "reason": "no host runs"}, [], "no host runs"),
        ({}, ["", " "], "it does not run"),
        (
            {"running": False, "reason": "no host runs"},
            ["modelhost: port 1: in use", "modelhost: port 1: in use\n", "modelhost: bye"],
            f"{SAID}modelhost: port 1: in use; modelhost: bye",
        ),
        (
            {"running": True, "models": [model("a"), model("b", "failed", 0, "it hangs"), model("c", "starting", 1)]},
            ["of an earlier time"],
            "b version 1 is failed, 0 of 2 processes ready: it hangs; c version 1 is starting, 1 of 2 processes ready",
        ),
        (
            {"running": True, "models": [model("a")]},
            [],
            "not everything is ready; on the host, `modelhost status` says what is missing",
        ),
    ],
)
def test_why_a_host_is_not_ready(state: dict[str, Any], said: list[str], why: str) -> None:
    assert rolling.why_not_ready(state, said) == why


@pytest.mark.parametrize(("chars", "shown"), [(1, 1), (2000, 2000), (2001, 2000), (100_000, 2000)])
def test_the_end_of_what_a_service_said_is_shown(chars: int, shown: int) -> None:
    line = "x" * (chars - 1) + "."
    assert rolling.why_not_ready({"running": False}, [line]) == SAID + line[-shown:]
