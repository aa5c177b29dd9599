"""A fleet on its way: what leaves a host, whose new hosts are left out, what balancers do meanwhile."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from inventories import Shelf, fleet_of, inventory, layer, package

from host.fleet.transition import between, meanwhile, stranded

# -- what leaves ---------------------------------------------------------------------------------------------------
PRESENT = """# by hand
[[models]]
name = "churn"
version = "2"

[[models]]  # on its way out
name = 'old "x"'
version = "1"
min_processes = 2
max_processes = 4
memory = "1GiB"
cpus = "0-3"
threads = 2
default = true
sticky_header = "X-User"

[[models]]
name = 'old "x"'
version = "2"
judge = {window_s = 60, requests = 100}
canary_percent = 5

[[models]]
name = "other"

  [models.judge]
  window_s = 2.5
"""


def deployed(text: str) -> dict[str, Any]:
    """A fleet in which this is to run on h1."""
    return {"hosts": {"h1": {"deployment": text}}}


CHURN = '[[models]]\nname = "churn"\nversion = "3"\n'


def test_what_leaves_a_host_goes_on_with_all_that_is_said_of_it() -> None:
    said = meanwhile(deployed(CHURN), "h1", PRESENT)
    assert tomllib.loads(said)["models"] == tomllib.loads(CHURN)["models"] + tomllib.loads(PRESENT)["models"][1:]
    assert meanwhile(deployed(CHURN), "h1", said) == said


def test_what_leaves_stands_behind_what_the_host_should_run() -> None:
    fleet = fleet_of(
        inventory(
            layer("host h1", "h1", churn={"version": "3"}, churn__4={"canary_percent": 5, "judge": {"window_s": 60}})
        )
    )
    both = tomllib.loads(meanwhile(fleet, "h1", PRESENT))
    wanted = tomllib.loads(fleet["hosts"]["h1"]["deployment"])
    assert both["models"] == wanted["models"] + tomllib.loads(PRESENT)["models"][1:]


def test_everything_may_leave() -> None:
    nothing = fleet_of(inventory(layer("host h1", "h1")))
    assert tomllib.loads(nothing["hosts"]["h1"]["deployment"]) == {"models": []}
    assert tomllib.loads(meanwhile(nothing, "h1", PRESENT)) == tomllib.loads(PRESENT)


@pytest.mark.parametrize(
    "present",
    [
        "",
        "# nothing\n",
        "models = []\n",
        '[[models]]\nname = "churn"\nversion = "1"\n',
        "no toml",
        "models = 3",
        "models = [3]",
        '[models]\nname = "old"\n',
        '[[models]]\nversion = "1"\n',
        "[[models]]\nname = 3\n",
    ],
)
def test_nothing_leaves(present: str) -> None:
    assert meanwhile(deployed(CHURN), "h1", present) == CHURN


def test_models_in_one_line_leave_as_well() -> None:
    present = 'models = [{name = "old", version = "1", judge = {window_s = 1}}, {name = "churn"}]\n'
    both = tomllib.loads(meanwhile(deployed(CHURN), "h1", present))["models"]
    assert both == tomllib.loads(CHURN)["models"] + tomllib.loads(present)["models"][:1]


# -- who is left out -----------------------------------------------------------------------------------------------
MOVED = {"models": {"churn": {"hosts": {"h2": {}, "h3": {}}}}}


@pytest.mark.parametrize(
    ("deployments", "taking_part", "expected"),
    [
        ({"h1": CHURN}, ["h1", "h3"], []),
        ({"h1": CHURN}, ["h1"], ["churn leaves h1, and h2, h3, where it should run, is left out"]),
        ({"h1": "models = []\n"}, ["h1"], []),
        ({"h2": CHURN}, ["h2"], []),
        ({"h1": CHURN.replace("churn", "gone")}, ["h1"], []),
        ({}, [], []),
    ],
    ids=["one is there", "none is there", "nothing leaves", "it stays", "it leaves the fleet", "no host"],
)
def test_models_whose_new_hosts_are_left_out(
    deployments: dict[str, str], taking_part: list[str], expected: list[str]
) -> None:
    assert stranded(MOVED, deployments, taking_part) == expected


# -- balancers meanwhile -------------------------------------------------------------------------------------------
def of_version(version: str) -> dict[str, Any]:
    shelf = Shelf()
    for said, retry, timeout_ms in (("2", True, 1_000), ("3", False, 500), ("4", True, 3_000)):
        limits = {"retry": retry, "timeout_ms": timeout_ms}
        shelf.contents["churn", said] = package("churn", said, limits=limits)
    shelf.contents["churn", "5"] = None
    return fleet_of(inventory(layer("host h1", "h1", churn={"version": version, "processes": 1})), shelf)


@pytest.mark.parametrize(
    ("before", "after", "retry", "timeout_ms"),
    [("2", "2", True, 1_000), ("2", "3", False, 1_000), ("3", "4", False, 3_000), ("2", "5", False, None)],
)
def test_both_versions_are_served_rightly(before: str, after: str, retry: bool, timeout_ms: int | None) -> None:
    made = between(of_version(before), of_version(after), "churn")
    assert made["models"]["churn"] == of_version(before)["models"]["churn"] | {"retry": retry, "timeout_ms": timeout_ms}
    assert made["hosts"] == of_version(before)["hosts"]
