"""A model's own page: packages, golden cases, deaths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from statuses import death

from host.config.deployment import DeployedModel
from host.config.features import FeatureColumn, Features, FeatureView, KeyColumn
from host.config.run_dir import RunDirectory
from host.control.deaths import SlotDeaths
from host.control.model_page import (
    CASE_MAX_BYTES,
    CASES_MAX,
    DEATHS_MAX,
    EXAMPLE_MAX_ELEMENTS,
    death_documents,
    example_request,
    golden_documents,
    model_document,
    stack_dump,
)
from host.control.news import Event, Severity
from host.protocol.messages import Limits
from host.protocol.types import Signature, TensorSpec

X = TensorSpec(name="x", datatype="FP64", shape=(-1, 2))


def deployed(package: Path, *inputs: TensorSpec) -> DeployedModel:
    return DeployedModel(
        name="churn",
        version="3",
        processes=2,
        package=str(package),
        platform="python",
        signature=Signature(inputs or (X,), (TensorSpec(name="y", datatype="FP64", shape=(-1, 1)),)),
        limits=Limits(),
    )


def write_cases(package: Path, *cases: dict[str, Any]) -> None:
    (package / "golden.json").write_text(json.dumps({"cases": cases}))


def case(name: str = "first", values: int = 2) -> dict[str, Any]:
    data = [1.5] * values
    return {
        "name": name,
        "request": {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, values], "data": data}]},
        "response": {"outputs": [{"name": "y", "datatype": "FP64", "shape": [1, 1], "data": [3.0]}]},
    }


def test_a_version_shows_its_signature_limits_and_golden_cases(tmp_path: Path) -> None:
    write_cases(tmp_path, case())
    document = model_document("churn", [deployed(tmp_path)], Features(), [])
    (version,) = document["versions"]
    assert version["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 2], "features": []}]
    assert (version["limits"]["timeout_ms"], version["processes"], version["own_environment"]) == (1000, 2, False)
    assert json.loads(version["golden"][0]["request"]) == case()["request"]
    assert json.loads(version["golden"][0]["response"])["outputs"][0]["data"] == [3.0]


def test_without_golden_cases_there_are_none(tmp_path: Path) -> None:
    assert golden_documents(tmp_path) == ([], "")


def test_damaged_golden_cases_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    (tmp_path / "golden.json").write_text("{")
    cases, problem = golden_documents(tmp_path)
    assert cases == []
    assert "golden.json" in problem


@pytest.mark.parametrize(("many", "problem"), [(1, ""), (CASES_MAX, ""), (CASES_MAX + 1, f"the first {CASES_MAX} of ")])
def test_so_many_cases_are_shown(tmp_path: Path, many: int, problem: str) -> None:
    write_cases(tmp_path, *(case(str(number)) for number in range(many)))
    cases, said = golden_documents(tmp_path)
    assert len(cases) == min(many, CASES_MAX)
    assert said.startswith(problem)


def test_a_large_case_is_named_and_not_shown(tmp_path: Path) -> None:
    write_cases(tmp_path, case(values=CASE_MAX_BYTES))
    ((large,), _) = golden_documents(tmp_path)
    assert (large["name"], large["request"]) == ("first", None)
    assert large["size_bytes"] > CASE_MAX_BYTES


def test_an_example_is_one_row_of_zeros() -> None:
    specs = [
        X,
        TensorSpec(name="word", datatype="BYTES", shape=(-1,)),
        TensorSpec(name="on", datatype="BOOL", shape=(1,)),
    ]
    assert json.loads(example_request(specs, Features()) or "") == {
        "inputs": [
            {"name": "x", "datatype": "FP64", "shape": [1, 2], "data": [0.0, 0.0]},
            {"name": "word", "datatype": "BYTES", "shape": [1], "data": [""]},
            {"name": "on", "datatype": "BOOL", "shape": [1], "data": [False]},
        ]
    }


def test_what_is_fetched_is_asked_for_by_its_keys() -> None:
    view = FeatureView(
        name="users",
        store="main",
        keyspace=None,
        table="users",
        keys=(KeyColumn(column="user_id", datatype="INT64", input="user_id"),),
        columns=(FeatureColumn(name="age", datatype="FP64", shape=(), default=0.0),),
    )
    specs = [TensorSpec(name="stats", datatype="FP64", shape=(-1, 1), features=("users.age",))]
    assert json.loads(example_request(specs, Features(views=(view,))) or "") == {
        "inputs": [{"name": "user_id", "datatype": "INT64", "shape": [1], "data": [0]}]
    }


@pytest.mark.parametrize("elements", [0, 1, EXAMPLE_MAX_ELEMENTS, EXAMPLE_MAX_ELEMENTS + 1])
def test_an_example_that_nobody_could_read_is_left_out(elements: int) -> None:
    found = example_request([TensorSpec(name="x", datatype="FP32", shape=(-1, elements))], Features())
    assert (found is None) == (elements > EXAMPLE_MAX_ELEMENTS)


DUMP = [
    "Thread 0x00007f01 [python] (most recent call first):",
    '  File "/m/model.py", line 7 in predict',
    "",
    "Current thread 0x00007f00 (most recent call first):",
    '  File "/m/server.py", line 3 in run',
]


def test_the_last_stacks_are_found_in_a_log() -> None:
    old = ["Current thread 0x0000dead (most recent call first):", '  File "old.py", line 1 in old']
    lines = [*old, "2026-11-26 10:00:00,000 INFO worker serving", *DUMP, "2026-11-26 10:00:01,000 INFO worker starting"]
    found = stack_dump(lines)
    assert found[-2:] == DUMP[-2:]
    assert "old" not in "".join(found)
    assert stack_dump(["no stacks", "here"]) == []


def test_deaths_are_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    run_dir = RunDirectory(tmp_path)
    run_dir.logs.mkdir()
    run_dir.log("churn.v3:0").write_text("\n".join([*DUMP, "2026-11-26 10:00:01,000 starting", "x" * 9999]))
    slots = {
        "churn.v3:0": SlotDeaths(counts={"hang": 1}, last=death()),
        "churn.v3:1": SlotDeaths(),
        "other.v1:0": SlotDeaths(counts={"signal": 1}, last=death()),
        "churn.vs.v1:0": SlotDeaths(counts={"signal": 1}, last=death()),
    }
    (one,) = death_documents("churn", {"churn.v3"}, [], slots, run_dir)
    assert (one["program"], one["counts"], one["at_death"]) == ("churn.v3:0", {"hang": 1}, ["the last line"])
    assert one["stacks"][-1] == DUMP[-1]
    assert max(map(len, one["log"])) == 400


def test_earlier_deaths_are_those_of_the_events_and_not_too_many(tmp_path: Path) -> None:
    events = [
        Event(
            at=float(at), severity=Severity.BAD, what="death", subject="churn.v3:0", model="churn", text="r", log=("l",)
        )
        for at in range(DEATHS_MAX + 5)
    ]
    found = death_documents("churn", {"churn.v3"}, events, {}, RunDirectory(tmp_path))
    assert [one["at"] for one in found] == [float(at) for at in range(DEATHS_MAX + 4, 4, -1)]
