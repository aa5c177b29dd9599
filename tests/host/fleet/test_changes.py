"""The file of changes: read, written, one change more, put above the layers; conflicts name both places."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import Shelf, below, fleet_of, inventory, layer, problems_of

from host.fleet.changes import (
    Changes,
    ModelChange,
    ProcessesChange,
    changes_text,
    overlay,
    parse_changes,
    parse_request,
    with_request,
)
from host.protocol.errors import ConfigError
from host.protocol.package import PROCESSES_MAX

THREE = layer("group all", "h1 h2", churn={"version": "3", "processes": 2}, digits={"version": "1"})
FOUR = layer("group all", "h1 h2", churn={"version": "4", "processes": 2}, digits={"version": "1"})


def after(changes: Changes, *requests: dict[str, Any], said: Any = THREE) -> Changes:
    """The changes after some more, through the text of the file each time."""
    for request in requests:
        changes = with_request(changes, parse_request(request), below(said), "changes.yml")
        assert parse_changes(changes_text(changes), "changes.yml") == changes
    return changes


def deploy(version: Any) -> dict[str, Any]:
    return {"model": "churn", "version": version}


ROLLBACK = {"model": "churn", "rollback": True}


# -- the text ---------------------------------------------------------------------------------------------
def test_the_text_is_what_people_would_write() -> None:
    changes = after({}, deploy("4"), {"model": "churn", "processes": {"h1": 4}}, {"model": "digits", "removed": True})
    assert changes_text(changes).partition("---\n")[2] == (
        "modelhost_changes:\n"
        "  churn:\n"
        "    version: '4'\n"
        "    instead_of: '3'\n"
        "    processes:\n"
        "      h1:\n"
        "        to: 4\n"
        "        instead_of: 2\n"
        "  digits:\n"
        "    removed: true\n"
    )


VERSIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
COUNTS = st.integers(1, PROCESSES_MAX)
PROCESSES = st.dictionaries(
    st.from_regex(r"[a-z0-9][a-z0-9.-]{0,9}", fullmatch=True), st.builds(ProcessesChange, COUNTS, st.none() | COUNTS)
)
CHANGES = st.dictionaries(
    VERSIONS.filter(lambda name: name != "stats"),
    st.just(ModelChange(removed=True))
    | st.builds(ModelChange, version=VERSIONS, instead_of=VERSIONS, before=st.none() | VERSIONS, processes=PROCESSES)
    | st.builds(ModelChange, processes=PROCESSES.filter(bool)),
    max_size=4,
)


@given(CHANGES)
def test_what_is_written_is_read_back(changes: Changes) -> None:
    text = changes_text(changes)
    assert parse_changes(text, "changes.yml") == changes
    assert changes_text(parse_changes(text, "changes.yml")) == text


@pytest.mark.parametrize("text", ["", "---\n", "modelhost_changes:\n", "modelhost_changes: {}\n"])
def test_no_changes(text: str) -> None:
    assert parse_changes(text, "changes.yml") == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]", "expected the variable modelhost_changes and nothing else"),
        ("modelhost_changes: {}\nother: 1", "and nothing else"),
        ("{", "not YAML"),
        ("modelhost_changes: [1]", "expected models by name"),
        ("modelhost_changes: {3: {}}", "expected a name"),
        ("modelhost_changes: {churn: 3}", "modelhost_changes.churn: expected keys such as"),
        ("modelhost_changes: {churn: {versions: '4'}}", 'received "versions"; did you mean "version"?'),
        ("modelhost_changes: {churn: {version: 1.5, instead_of: '3'}}", "churn.version: expected a version in quotes"),
        ("modelhost_changes: {churn: {instead_of: '3'}}", "churn.version: expected a version beside instead_of"),
        ("modelhost_changes: {churn: {removed: 1}}", "churn.removed: expected true or false"),
        ("modelhost_changes: {churn: {removed: true, version: '3'}}", "expected removed alone"),
        ("modelhost_changes: {churn: {processes: {h1: 4}}}", "churn.processes.h1: expected to and instead_of"),
        ("modelhost_changes: {churn: {processes: {h1: {to: 0}}}}", "churn.processes.h1.to: expected a whole number"),
        ("modelhost_changes: {churn: {processes: {h1: {to: 257}}}}", "churn.processes.h1.to: expected a whole number"),
        ("modelhost_changes: {churn: {processes: {h1: {}}}}", "churn.processes.h1.to: expected a whole number"),
        ("modelhost_changes: {churn: {processes: 4}}", "churn.processes: expected at most"),
    ],
)
def test_what_is_no_change_is_refused(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_changes(text, "changes.yml")
    assert str(caught.value).startswith("changes.yml: ")
    assert expected in str(caught.value)


# -- one change more --------------------------------------------------------------------------------------
def test_a_version_remembers_what_the_layers_say() -> None:
    assert after({}, deploy(4)) == {"churn": ModelChange(version="4", instead_of="3")}


def test_what_the_layers_say_already_is_no_change() -> None:
    assert after({}, deploy("3")) == {}
    assert after({}, deploy("4"), deploy("3")) == {}


def test_rollback_goes_to_what_ran_before_and_then_to_what_the_layers_say() -> None:
    twice = after({}, deploy("4"), deploy("5"))
    assert twice == {"churn": ModelChange(version="5", instead_of="3", before="4")}
    assert after(twice, ROLLBACK) == {"churn": ModelChange(version="4", instead_of="3")}
    assert after(twice, ROLLBACK, ROLLBACK) == {}


def test_rollback_of_a_version_that_the_layers_say_by_now() -> None:
    changes = after({}, deploy("4"))
    assert after(changes, ROLLBACK, said=FOUR) == {"churn": ModelChange(version="3", instead_of="4")}


def test_deploying_the_same_again_keeps_where_a_rollback_goes() -> None:
    assert after({}, deploy("4"), deploy("5"), deploy("5"), ROLLBACK) == after({}, deploy("4"))


def test_rollback_without_a_version_before_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        after({}, ROLLBACK)
    assert str(caught.value) == (
        "change.rollback: expected a version of churn that ran before 3, changes.yml names none: "
        "say which one with version"
    )


def test_processes_remember_what_the_layers_say_and_keep_the_version() -> None:
    scaled = {"model": "churn", "processes": {"h1": 4}}
    changes = after({}, deploy("4"), scaled)
    assert changes["churn"] == ModelChange(version="4", instead_of="3", processes={"h1": ProcessesChange(4, 2)})
    assert after(changes, {"model": "churn", "processes": {"h1": 2}}) == after({}, deploy("4"))
    assert after({}, {"model": "digits", "processes": {"h2": 3}})["digits"].processes == {
        "h2": ProcessesChange(3, None)
    }


def test_removing_forgets_the_rest_and_a_version_brings_it_back() -> None:
    changes = after({}, deploy("4"), {"model": "churn", "removed": True})
    assert changes == {"churn": ModelChange(removed=True)}
    assert after(changes, deploy("4")) == {"churn": ModelChange(version="4", instead_of="3")}
    assert after(changes, deploy("3")) == {}


def test_what_was_removed_is_not_scaled() -> None:
    with pytest.raises(ConfigError, match=r"received churn, which was removed: deploy_model\.yml brings it back"):
        after({"churn": ModelChange(removed=True)}, {"model": "churn", "processes": {"h1": 4}})


def test_hosts_with_different_versions_are_for_the_inventory_to_change() -> None:
    changes: Changes = {}
    merged = below(THREE, layer("host h1", "h1", churn={"version": "2"}))
    with pytest.raises(ConfigError, match="expected one version of churn on all hosts, received 2 and 3"):
        with_request(changes, parse_request(deploy("4")), merged, "changes.yml")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("churn", "change: expected model and one of"),
        ({}, "change.model: expected the name of a model"),
        ({"model": "churn"}, "change: expected one of version, processes, removed, rollback beside model"),
        ({"model": "churn", "version": "3", "rollback": True}, "change: expected one of"),
        ({"model": "churn", "versions": "3", "rollback": True}, 'did you mean "version"?'),
        ({"model": "churn", "version": 1.1}, "change.version: expected a version in quotes"),
        ({"model": "churn", "processes": {"h1": 0}}, "change.processes.h1: expected a whole number >= 1"),
        ({"model": "churn", "processes": {"h1": 257}}, "change.processes.h1: expected a whole number >= 1"),
        ({"model": "churn", "processes": {}}, "change.processes: expected a number for each host"),
        ({"model": "churn", "processes": 4}, "change.processes: expected a number for each host"),
        ({"model": "churn", "removed": "yes"}, "change.removed: expected true"),
        ({"model": "chrun", "removed": True}, 'received chrun; did you mean "churn"?'),
        ({"model": "churn", "processes": {"h11": 1}}, 'received h11; did you mean "h1"?'),
    ],
)
def test_what_is_no_request_is_refused(request_: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        after({}, request_)
    assert expected in str(caught.value)


@pytest.mark.parametrize("count", [1, PROCESSES_MAX])
def test_processes_within_bounds(count: int) -> None:
    assert after({}, {"model": "churn", "processes": {"h1": count}})["churn"].processes["h1"].to == count


def test_what_is_not_said_may_be_null_or_false() -> None:
    request = parse_request({"model": "churn", "version": "4", "processes": None, "removed": False, "rollback": None})
    assert request.version == "4"


# -- the layer --------------------------------------------------------------------------------------------
def versions(changes: Changes, said: Any = THREE) -> dict[str, str]:
    fleet = fleet_of(inventory(said), changes=changes)
    return {name: host["models"]["churn"]["version"] for name, host in fleet["hosts"].items()}


def test_changes_win_over_every_layer() -> None:
    assert versions(after({}, deploy("4"))) == {"h1": "4", "h2": "4"}


def test_one_hosts_processes() -> None:
    overlaid = overlay(below(THREE), after({}, {"model": "churn", "processes": {"h1": 4}}), "changes.yml")
    assert [overlaid.hosts[host]["churn"].values["processes"] for host in ("h1", "h2")] == [4, 2]
    assert not overlaid.problems
    assert not overlaid.notes


def test_a_removed_model_is_nowhere_and_that_is_no_problem() -> None:
    second = layer("host h1", "h1", churn__4={"canary_percent": 5})
    overlaid = overlay(below(THREE, second), {"churn": ModelChange(removed=True)}, "changes.yml")
    assert [list(models) for models in overlaid.hosts.values()] == [["digits"], ["digits"]]
    assert not problems_of(inventory(THREE, second), changes={"churn": ModelChange(removed=True)})


def test_a_canary_that_is_deployed_is_no_second_version_any_more() -> None:
    second = layer("host h1", "h1", churn__4={"canary_percent": 5})
    fleet = fleet_of(inventory(THREE, second), changes=after({}, deploy("4")))
    assert list(fleet["hosts"]["h1"]["models"]) == ["churn", "digits"]


def test_an_edit_of_the_inventory_since_is_a_conflict_that_names_both_places() -> None:
    five = layer("group all", "h1 h2", churn={"version": "5", "processes": 2})
    (problem,) = problems_of(inventory(five), Shelf(churn=("4", "5")), changes=after({}, deploy("4")))
    assert problem == (
        'changes.yml: modelhost_changes.churn.version: expected group all (group/all.yml:2) to say the version "3", '
        'instead of which this says "4", or this one, received "5": remove the one that is out of date'
    )


def test_an_edit_of_the_processes_since_is_a_conflict() -> None:
    changes = after({}, {"model": "churn", "processes": {"h1": 4}})
    (problem,) = problems_of(inventory(THREE, layer("host h1", "h1", churn={"processes": 3})), changes=changes)
    assert problem == (
        "changes.yml: modelhost_changes.churn.processes.h1: expected host h1 (host/h1.yml:2) to say 2, "
        "instead of which this says 4, or this one, received 3: remove the one that is out of date"
    )


def test_a_version_that_cannot_be_read_is_one_problem_and_no_conflict() -> None:
    broken = layer("group all", "h1 h2", churn={"version": 1.1})
    (problem,) = problems_of(inventory(broken), changes={"churn": ModelChange(version="4", instead_of="3")})
    assert "expected a version in quotes" in problem


def test_what_the_layers_say_by_now_is_noted() -> None:
    changes = after({}, deploy("4"), {"model": "digits", "processes": {"h1": 4}})
    scaled = layer("host h1", "h1", digits={"processes": 4})
    assert fleet_of(inventory(FOUR, scaled), changes=changes)["notes"] == [
        "changes.yml: modelhost_changes.churn.version: modelhost_models says 4 too: this can be deleted",
        "changes.yml: modelhost_changes.digits.processes.h1: modelhost_models says 4 too: this can be deleted",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"chrun": ModelChange(version="4", instead_of="3")},
            'expected a model that a host runs; did you mean "churn"?',
        ),
        (
            {"churn": ModelChange(processes={"h11": ProcessesChange(1, 2)})},
            "expected a host that runs churn; did you mean",
        ),
        ({"churn": ModelChange(processes={"x": ProcessesChange(1, 2)})}, "found none: delete this if there is none"),
        ({"old": ModelChange(version="4", instead_of="3")}, "found none: delete this if there is none any more"),
    ],
)
def test_changes_of_what_is_not_there_are_problems(changes: Changes, expected: str) -> None:
    (problem,) = problems_of(inventory(THREE), changes=changes)
    assert expected in problem


def test_a_removed_model_that_nobody_says_any_more_is_noted() -> None:
    notes = fleet_of(inventory(THREE), changes={"old": ModelChange(removed=True)})["notes"]
    assert notes == ["changes.yml: modelhost_changes.old: nothing else says old any more: this can be deleted"]


def test_a_change_of_the_default_where_there_is_none() -> None:
    only = layer("group all", "h1", churn__4={"default": True})
    (problem,) = problems_of(inventory(only), changes={"churn": ModelChange(version="3", instead_of="2")})
    assert "expected a host that runs churn as its default version, found none" in problem


@given(st.lists(st.sampled_from(["2", "3", "4", "5", "rollback"]), max_size=8))
def test_after_any_changes_the_fleet_runs_what_was_asked_last(asked: list[str]) -> None:
    """A rollback undoes the deployment before it, as long as that is known."""
    changes: Changes = {}
    running = "3"
    for one in asked:
        try:
            changes = after(changes, ROLLBACK if one == "rollback" else deploy(one))
        except ConfigError:
            assert one == "rollback"
            continue
        overlaid = overlay(below(THREE), changes, "changes.yml")
        assert not overlaid.problems
        now = overlaid.hosts["h1"]["churn"].values["version"]
        assert now != running if one == "rollback" else now == one
        running = now
