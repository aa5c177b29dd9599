"""From three bare hosts to a fleet that serves, and what operators do to it, under load: the playbooks as they are.

The tests of this module follow each other on one fleet: `a` runs on h1 and h2, `b` on h2 and h3.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import BALANCER, HOSTS, Fleet
from load import Request
from operating import AGREE_LIMIT_S, Operator
from traffic import Report, Traffic

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

RATE: float = 100.0
"""Requests a second for each of two models."""

PLACEMENT = {
    "h1": {"a": {"version": "1", "processes": 2}, "alone": {"version": "1"}},
    "h2": {"a": {"version": "1", "processes": 2}, "b": {"version": "1", "processes": 1}},
    "h3": {"b": {"version": "1", "processes": 1}},
}
"""Two models, neither on every host, and one that runs nowhere else."""


@pytest.fixture(scope="module")
def operator(fleet: Fleet) -> Operator:
    """Give an inventory for the bare fleet."""
    operator = Operator(fleet)
    operator.add_packages("a", ["1"])
    operator.add_packages("a", ["2"], timeout_ms=20_000)
    operator.add_packages("b", ["1"])
    operator.add_packages("alone", ["1", "2"])
    operator.place(**PLACEMENT)
    return operator


@pytest.fixture
def traffic(operator: Operator, served: None) -> Iterator[Traffic]:
    """Give load on both models, 200 requests a second together."""
    targets = [operator.target(model, RATE) for model in "ab"]
    with Traffic(operator.fleet, targets) as running:
        yield running


@pytest.fixture(scope="module")
def served(operator: Operator) -> None:
    """See to it that the fleet serves, if no test before has done that."""
    if not operator.fleet.ssh("h1", ["ls", "/opt"]).stdout:
        operator.play("site.yml")


def tell(text: str) -> None:
    """Show a figure to whoever runs the tests with -s."""
    sys.stdout.write(f"{text}\n")


def versions(report: Report, model: str) -> list[str | None]:
    """The versions that answered, in the order in which each was first seen."""
    return list(dict.fromkeys(request.version for request in report.of(model).requests))


def balanced(operator: Operator, model: str) -> list[str]:
    """What the balancer is told of a model."""
    lines = operator.fleet.ssh(BALANCER, ["cat", "/etc/haproxy/haproxy.cfg"]).stdout.splitlines()
    if f"backend model_{model}" not in lines:
        return []
    after = lines[lines.index(f"backend model_{model}") + 1 :]
    return [line.strip() for line in after[: next((n for n, line in enumerate(after) if line[:1].isalpha()), None)]]


def processes(operator: Operator, *models: str) -> dict[tuple[str, str], list[int]]:
    """Host and model to pids."""
    return {(host, model): operator.pids(host, model) for host in HOSTS for model in models}


def found_wrong(operator: Operator, host: str) -> list[dict[str, Any]]:
    """What `modelhost doctor` finds on a host; again while it is something that a busy machine may be to blame for."""
    deadline = time.monotonic() + AGREE_LIMIT_S
    while True:
        report = json.loads(operator.on(host, "doctor", "--json").stdout)
        found = [one for one in report["findings"] if one["level"] != "ok" and one["check"] != "clock"]
        if not found or time.monotonic() > deadline:
            return found


# -- from bare hosts ------------------------------------------------------------------------------------------------
def test_an_inventory_that_is_wrong_touches_nothing(operator: Operator) -> None:
    operator.place(h1={"a": {"version": "7", "processes": 2}, "c": {"version": "1"}})
    played = operator.play("site.yml", ok=False)
    assert "h1" in played.said and "a" in played.said and "7" in played.said
    assert set(played.changed.values()) == {0}
    assert operator.fleet.ssh("h1", ["ls", "/opt"]).stdout == ""
    operator.place(**PLACEMENT)


def test_check_mode_of_bare_hosts_says_what_they_would_get(operator: Operator) -> None:
    played = operator.play("site.yml", "--check", "--diff")
    assert set(played.changed) == {*HOSTS, BALANCER}
    assert all(count > 0 for count in played.changed.values())
    assert "HAProxy would be installed" in played.said
    assert operator.fleet.ssh("h1", ["ls", "/opt"]).stdout == ""


def test_from_bare_hosts_to_serving(operator: Operator) -> None:
    began_s = time.monotonic()
    played = operator.play("site.yml")
    tell(f"site.yml, from bare hosts to serving: {played.took_s:.1f} s")
    assert all(count > 0 for count in played.changed.values())
    assert {host: operator.running(host) for host in HOSTS} == {
        "h1": {"a": "1", "alone": "1"},
        "h2": {"a": "1", "b": "1"},
        "h3": {"b": "1"},
    }
    again = operator.play("site.yml", "--diff")
    tell(f"the second time: {again.took_s:.1f} s; both: {time.monotonic() - began_s:.1f} s")
    assert set(again.changed) == {*HOSTS, BALANCER}
    assert set(again.changed.values()) == {0}, again.said


def test_hosts_are_what_the_role_says(operator: Operator, served: None) -> None:
    for host in HOSTS:
        assert found_wrong(operator, host) == []
        status = json.loads(operator.on(host, "status", "--isolation", "--json").stdout)
        assert status["missing"] == []
        listening = operator.fleet.ssh(host, ["ss", "-Hltn"]).stdout
        addresses = {line.split()[3].rpartition(":")[0] for line in listening.splitlines() if ":80" in line.split()[3]}
        assert addresses == {operator.fleet.addresses[host], "127.0.0.1"}, listening
        assert operator.fleet.ssh(host, ["systemctl", "is-enabled", "modelhost"]).stdout.strip() == "enabled"


def test_check_mode_says_what_would_change_and_changes_nothing(operator: Operator, served: None) -> None:
    before = {host: operator.models(host) for host in HOSTS}
    operator.place(**{**PLACEMENT, "h3": {"b": {"version": "1", "processes": 3}}})
    played = operator.play("site.yml", "--check", "--diff")
    operator.place(**PLACEMENT)
    assert played.changed["h3"] == 1
    assert played.changed["h1"] == played.changed["h2"] == 0
    assert "+processes = 3" in played.said
    for host in HOSTS:
        assert [(one["version"], one["wanted"]) for one in operator.models(host)] == [
            (one["version"], one["wanted"]) for one in before[host]
        ]


def test_a_change_of_one_model_brings_nothing_else_and_leaves_nobody_out(operator: Operator, served: None) -> None:
    before = balanced(operator, "b")
    operator.place(h3={"a": {"version": "1", "processes": 1}})
    moved = operator.play("scale.yml", ok=False, model="a", processes=3, host="h1")
    assert "Run site.yml first" in moved.said and "balancer does not have what the inventory says" in moved.said
    operator.place(**PLACEMENT)
    limited = operator.play("deploy_model.yml", "--limit", "h1", ok=False, model="a", version="2")
    assert "balancer, h2: left out by --limit" in limited.said
    assert set(moved.changed.values()) == set(limited.changed.values()) == {0}
    assert balanced(operator, "b") == before
    assert not operator.changes.exists()


# -- who gets requests ------------------------------------------------------------------------------------------------
def test_no_request_comes_to_a_host_without_the_model(operator: Operator, traffic: Traffic) -> None:
    first = traffic.wait_for(lambda request: request.target == "b", "an answer of b")
    traffic.wait_for(lambda request: request.planned_s > first.planned_s + 3, "load")
    report = traffic.stop()
    assert not report.failures, report
    assert set(report.of("a").count(lambda request: request.host)) == {"h1", "h2"}
    assert set(report.of("b").count(lambda request: request.host)) == {"h2", "h3"}
    for host, others in (("h1", "b"), ("h3", "a")):
        metrics = operator.fleet.ssh(host, ["python3", "-c", FETCH.format(url="http://127.0.0.1:8081/metrics")]).stdout
        assert f'model="{others}"' not in metrics


FETCH = "import urllib.request; print(urllib.request.urlopen('{url}').read().decode())"


def share(report: Report, model: str, host: str) -> float:
    """The share of a model's answers that came from a host."""
    counts = report.of(model).count(lambda request: request.host)
    return counts[host] / sum(counts.values())


def test_scaling_on_one_host_shifts_the_weight(operator: Operator, traffic: Traffic) -> None:
    others = processes(operator, "b")
    there = set(operator.pids("h1", "a"))
    haproxy = operator.fleet.ssh(BALANCER, ["pgrep", "haproxy"]).stdout
    began_s = time.monotonic()
    played = operator.play("scale.yml", model="a", processes=4, host="h1")
    scaled_s = time.monotonic()
    traffic.wait_for(lambda request: request.target == "a" and request.planned_s > scaled_s + 3, "load")
    report = traffic.stop()
    assert not report.failures, report
    assert played.changed["h1"] > 0 and played.changed.get("h2", 0) == 0
    assert share(report.between(0, began_s), "a", "h1") == pytest.approx(1 / 2, abs=0.1)
    assert share(report.between(scaled_s), "a", "h1") == pytest.approx(2 / 3, abs=0.05)
    assert there < set(operator.pids("h1", "a"))
    assert len(operator.pids("h1", "a")) == 4
    assert processes(operator, "b") == others
    assert operator.fleet.ssh(BALANCER, ["pgrep", "haproxy"]).stdout == haproxy, "it was reloaded"
    assert yaml.safe_load(operator.changes.read_text())["modelhost_changes"]["a"]["processes"]["h1"]["to"] == 4
    operator.play("status.yml")


# -- another version -----------------------------------------------------------------------------------------------
def test_a_new_version_comes_without_a_failed_request(operator: Operator, traffic: Traffic) -> None:
    others = processes(operator, "b")
    played = operator.play("deploy_model.yml", model="a", version="2", soak_s=5)
    traffic.wait_for(lambda request: request.target == "a", "one more answer")
    report = traffic.stop()
    tell(f"deploy_model.yml: {played.took_s:.1f} s; {report}")
    assert not report.failures, report
    assert versions(report, "a") == ["1", "2"]
    assert processes(operator, "b") == others
    assert operator.running("h1") == {"a": "2", "alone": "1"}
    assert operator.running("h2") == {"a": "2", "b": "1"}
    # The time that a request has is the package's.
    assert any(line.startswith("timeout server 21000ms") for line in balanced(operator, "a"))
    assert any(line.startswith("timeout server 11000ms") for line in balanced(operator, "b"))
    operator.play("status.yml")


def test_a_model_on_one_host_gets_its_version_without_a_failed_request(operator: Operator, served: None) -> None:
    """It stays in the balancer, for there is no other host; the host itself loses nothing."""
    with Traffic(operator.fleet, [operator.target("alone", RATE)]) as traffic:
        operator.play("deploy_model.yml", model="alone", version="2", soak_s=1)
        report = traffic.stop()
    assert not report.failures, report
    assert versions(report, "alone") == ["1", "2"]


def test_a_bad_version_stops_at_the_first_host(operator: Operator, traffic: Traffic) -> None:
    """One that does not reproduce its golden case; other ways to be bad: tests/integration/test_rollouts.py."""
    operator.add_packages("a", ["3"], fault="golden")
    text = operator.changes.read_text()
    before = processes(operator, "a", "b")
    played = operator.play("deploy_model.yml", ok=False, model="a", version="3", soak_s=2)
    report = traffic.stop()
    assert not report.failures, report
    assert set(versions(report, "a")) == {"2"}
    assert "h1 is back on what it ran before" in played.said
    assert "golden case" in played.said
    assert processes(operator, "a", "b") == before
    assert operator.changes.read_text() == text
    status = operator.play("status.yml")
    assert "<-" not in status.said


def test_a_version_that_fails_under_load_is_taken_back(operator: Operator, served: None) -> None:
    """It loads and reproduces its golden case; each third request fails. The first host has it while it is watched."""
    operator.add_packages("a", ["5"], failing_each=3)
    with Traffic(operator.fleet, [operator.target("a", 200.0)]) as traffic:
        played = operator.play("deploy_model.yml", ok=False, model="a", version="5", soak_s=20)
        traffic.wait_for(lambda request: request.version == "2", "an answer of the version before")
        report = traffic.stop()
    assert "h1 is back on what it ran before" in played.said
    assert "failed" in played.said
    assert {request.host for request in report.failures} <= {"h1"}
    assert operator.running("h2")["a"] == "2"
    operator.play("status.yml")


def test_back_to_the_version_before(operator: Operator, traffic: Traffic) -> None:
    operator.play("rollback.yml", model="a", soak_s=1)
    report = traffic.stop()
    assert not report.failures, report
    assert operator.running("h1") == {"a": "1", "alone": "2"}
    assert operator.running("h2") == {"a": "1", "b": "1"}
    assert any(line.startswith("timeout server 11000ms") for line in balanced(operator, "a"))
    operator.play("status.yml")


# -- another release ------------------------------------------------------------------------------------------------
def test_modelhost_itself_is_upgraded_under_load(operator: Operator, traffic: Traffic) -> None:
    operator.write("group_vars/modelhost/release.yml", modelhost_version=operator.wheels.next_version)
    refused = operator.play("upgrade.yml", ok=False)
    assert "no other host serves model_alone/h1 now" in refused.said
    assert "h1 is back on what it was before" in refused.said
    played = operator.play("upgrade.yml", outage=True)
    report = traffic.stop()
    tell(f"upgrade.yml: {played.took_s:.1f} s; {report}")
    assert not report.failures, report
    for host in HOSTS:
        current = operator.fleet.ssh(host, ["readlink", "/opt/modelhost/current"]).stdout
        assert f"/{operator.wheels.next_version}-" in current


def test_an_upgrade_that_fails_leaves_the_release_before(operator: Operator, traffic: Traffic) -> None:
    """A setting that this machine cannot have: the host does not come back with it."""
    before = processes(operator, "a", "b")
    # What is broken is waited for in vain, all the time; the release before gets what it may need on a busy machine.
    ready_timeout_s = "{{ 10 if modelhost_failure is undefined else 60 }}"
    operator.write(
        "group_vars/modelhost/broken.yml",
        modelhost_admin_address="192.0.2.1",
        modelhost_ready_timeout_s=ready_timeout_s,
    )
    played = operator.play("upgrade.yml", ok=False, outage=True)
    (operator.directory / "group_vars/modelhost/broken.yml").unlink()
    report = traffic.stop()
    assert not report.failures, report
    assert "h1 is back on what it was before" in played.said
    reason = "its service said last: modelhost: cannot listen on 192.0.2.1 port 8081: cannot assign requested address"
    assert f"nothing more is changed. Every model is served: modelhost does not run: {reason}" in played.said
    assert {key: pids for key, pids in processes(operator, "a", "b").items() if key[0] != "h1"} == {
        key: pids for key, pids in before.items() if key[0] != "h1"
    }
    operator.play_until_ok("status.yml")  # the balancer has yet to see that h1 is up


# -- what happens by itself -----------------------------------------------------------------------------------------
def test_a_host_without_power(operator: Operator, traffic: Traffic) -> None:
    """Its models are served by others; it comes back without a hand."""
    operator.fleet.power_off("h1")
    off_s = time.monotonic()
    traffic.wait_for(lambda request: request.sent_s > off_s + 6, "load without the host", limit_s=30)
    assert "h1: cannot be reached" in operator.play("status.yml", ok=False).said
    text = operator.changes.read_text()
    for playbook, more in (("deploy_model.yml", {"version": "2", "soak_s": 1}), ("remove_model.yml", {})):
        stopped = operator.play(playbook, ok=False, model="a", **more)
        assert "h1: cannot be reached" in stopped.said
        assert operator.changes.read_text() == text, stopped.said
    assert operator.running("h2")["a"] == "1"
    operator.fleet.power_on("h1")
    traffic.wait_for(lambda request: request.host == "h1", "an answer of the host that is back", limit_s=90)
    report = traffic.stop()
    tell(f"power off: {report}")
    assert not report.failures, report
    assert {request.host for request in report.between(off_s + 4, off_s + 6).of("a").requests} == {"h2"}
    operator.play_until_ok("status.yml")  # h1 answers with its first processes; the others still load


def test_status_tells_what_is_not_as_it_should_be(operator: Operator, served: None, tmp_path: Path) -> None:
    operator.on("h3", "scale", "b=2", "--wait")
    document = tmp_path / "fleet.json"
    played = operator.play("status.yml", ok=False, json=document)
    assert "h3: b version 1 should have 1 processes, and has 2" in played.said
    assert json.loads(document.read_text())["drift"] == ["h3: b version 1 should have 1 processes, and has 2"]
    before = processes(operator, "a", "b")
    assert operator.play("site.yml").changed["h3"] > 0
    after = processes(operator, "a", "b")
    assert {key for key, pids in before.items() if after[key] != pids} == {("h3", "b")}
    operator.play("status.yml")


def test_a_model_moves_and_none_of_its_requests_fails(operator: Operator, traffic: Traffic) -> None:
    """By the inventory and site.yml: from h3 to h1. It goes on where it was until the balancer knows."""
    # "alone" goes on with what was deployed.
    operator.place(
        h1={**PLACEMENT["h1"], "b": {"version": "1", "processes": 1}}, h3={"a": {"version": "1", "processes": 1}}
    )
    operator.play("site.yml")
    moved_s = time.monotonic()
    traffic.wait_for(lambda request: request.sent_s > moved_s + 1, "load")
    report = traffic.stop()
    assert not report.failures, report
    assert set(report.between(moved_s).of("b").count(lambda request: request.host)) == {"h1", "h2"}
    assert operator.running("h3") == {"a": "1"}
    operator.play("status.yml")


def test_a_model_is_removed(operator: Operator, served: None) -> None:
    operator.play("remove_model.yml", model="b")
    assert [operator.running(host) for host in HOSTS] == [{"a": "1", "alone": "2"}, {"a": "1"}, {"a": "1"}]
    with Traffic(operator.fleet, [operator.target("b", 20.0)]) as traffic:
        gone: Request = traffic.wait_for(lambda request: request.target == "b", "an answer")
    assert gone.status == 404
    operator.play("status.yml")


def test_a_host_may_run_nothing(operator: Operator, served: None) -> None:
    operator.play("remove_model.yml", model="a")
    assert [operator.running(host) for host in HOSTS] == [{"alone": "2"}, {}, {}]
    assert "<-" not in operator.play("status.yml").said
