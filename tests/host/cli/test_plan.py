"""`modelhost plan`: output, files, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

FLEET = """
[[models]]
name = "churn"
version = "3"
requests_per_s = 2000
cpu_us_per_row = 700
memory = "512MiB"

[[models]]
name = "digits"
requests_per_s = 100
cpu_us_per_row = 2000
memory = "1GiB"

[host_defaults]
cores = 8
memory = "16GiB"

[[hosts]]
name = "h1"
zone = "a"
[[hosts]]
name = "h2"
zone = "b"
[[hosts]]
name = "h3"
zone = "c"
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Give the file of a fleet."""
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


def test_writes_host_vars_and_then_nothing_more(run: Run, fleet: Path, tmp_path: Path) -> None:
    shown = run("plan", fleet, "--inventory", "inventory", "--dry-run")
    assert shown.code == 0
    assert "any one host may be lost" in shown.out
    assert not (tmp_path / "inventory").exists()
    done = run("plan", fleet, "--inventory", "inventory")
    assert done.code == 0
    files = sorted((tmp_path / "inventory" / "host_vars").iterdir())
    assert f"written: {len(files)} files" in done.out
    assert any('churn: {version: "3", processes: ' in path.read_text() for path in files)
    again = run("plan", fleet, "--inventory", "inventory")
    assert again.code == 0
    assert "0 processes to start, 0 to stop" in again.out
    assert "written: 0 files" in again.out


def test_the_document_says_everything(run: Run, fleet: Path) -> None:
    document = json.loads(run("plan", fleet, "--json").out)
    assert document["fits"] is True
    assert sum(document["placement"]["churn"].values()) == document["models"][0]["processes"] == 3
    assert {host["host"] for host in document["hosts"]} == {"h1", "h2", "h3"}
    assert document["processes_started"] == 5


def test_explains_every_model_and_host(run: Run, fleet: Path) -> None:
    out = run("plan", fleet, "--explain").out
    assert "2 have to be left when a host is lost" in out
    assert "WITH A LOSS" in out


def test_what_does_not_fit_is_told_and_nothing_is_written(run: Run, fleet: Path, tmp_path: Path) -> None:
    fleet.write_text(FLEET.replace('"1GiB"', '"40GiB"'))
    done = run("plan", fleet, "--inventory", "inventory")
    assert done.code == 1
    assert "model digits: 2 of 2 processes fit nowhere" in done.out
    assert "3 hosts: memory; least on h1: 26,112.0 MiB missing" in done.out
    assert not (tmp_path / "inventory").exists()
    document = json.loads(run("plan", fleet, "--json").out)
    assert document["fits"] is False
    assert document["unplaced"][0]["why"] == ["3 hosts: memory; least on h1: 26,112.0 MiB missing"]


def test_notes_say_what_nobody_knows_or_says_otherwise(run: Run, fleet: Path, tmp_path: Path) -> None:
    host = tmp_path / "inventory" / "host_vars" / "h1.yml"
    host.parent.mkdir(parents=True)
    host.write_text(
        "modelhost_models:\n  churn: {version: '3', processes: 1, memory: 1GiB}\n  churn@4: {processes: 1}\n"
    )
    done = run("plan", fleet, "--inventory", "inventory")
    assert done.code == 0
    assert 'note: churn: planned with 512 MiB of memory a process; host h1 says "1GiB"' in done.err
    assert "note: digits: no version is known; a group must say it for h2, h3, or the fleet's file" in done.err
    assert "churn@4: {processes: 1}" in host.read_text()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_plan_that_leaves_a_second_version_alone_is_refused(
    run: Run, fleet: Path, tmp_path: Path, dry: list[str]
) -> None:
    fleet.write_text(FLEET.replace('name = "h1"', 'name = "h1"\nclosed = true'))
    host = tmp_path / "inventory" / "host_vars" / "h1.yml"
    host.parent.mkdir(parents=True)
    host.write_text("modelhost_models: {churn: {version: '3', processes: 1}, churn@4: {processes: 1}}\n")
    before = host.read_text()
    done = run("plan", fleet, "--inventory", "inventory", *dry)
    assert done.code == 2
    assert "host h1: modelhost_models.churn@4: expected churn there too, beside which it runs" in done.err
    assert [path.name for path in host.parent.iterdir()] == ["h1.yml"]
    assert host.read_text() == before


def test_yaml_says_the_same(run: Run, fleet: Path, tmp_path: Path) -> None:
    import tomllib

    other = tmp_path / "fleet.yml"
    other.write_text(json.dumps(tomllib.loads(FLEET)))
    assert run("plan", other, "--json").out == run("plan", fleet, "--json").out


def test_what_ansible_lists_is_what_runs(run: Run, fleet: Path, tmp_path: Path) -> None:
    churn = {"churn": {"version": "3", "processes": 1, "memory": "1GiB"}}
    listing = {"_meta": {"hostvars": {name: {"modelhost_models": churn} for name in ("h1", "h2", "h3")}}}
    (tmp_path / "listing.json").write_text(json.dumps(listing))
    done = run("plan", fleet, "--present", "listing.json", "--inventory", "inventory")
    assert done.code == 0
    assert "2 processes to start, 0 to stop" in done.out
    assert len(list((tmp_path / "inventory" / "host_vars").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("fleet.json", "{}", "expected a file that ends in .toml, .yml or .yaml"),
        ("fleet.yml", "[]", "expected models and hosts"),
        ("fleet.yml", "a: {", "not YAML"),
        ("other.toml", "survive = 3", "survive: expected one of"),
    ],
)
def test_wrong_files_are_named(run: Run, tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text)
    done = run("plan", name)
    assert done.code == 2
    assert expected in done.err
    assert name in done.err


def test_no_file_at_all(run: Run) -> None:
    done = run("plan", "none.yml")
    assert done.code == 2
    assert "none.yml: expected a file, found none" in done.err
