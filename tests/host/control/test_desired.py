"""What a change of the deployment file changes, in words."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from host.config.deployment import DeployedModel, Deployment
from host.control.desired import _altered, _entry_of, differences_of
from host.protocol.messages import Limits
from host.protocol.package import Resources, Sandbox
from host.protocol.types import Signature, TensorSpec

MIB = 1 << 20
MODEL = DeployedModel(
    name="churn",
    version="3",
    processes=2,
    package="/models/churn/3",
    platform="python",
    signature=Signature((), ()),
    limits=Limits(),
    resources=Resources(memory_bytes=512 * MIB, cpus=1, threads=1),
)
OTHER = replace(MODEL, name="other", version="1")


def with_resources(**changes: Any) -> DeployedModel:
    return replace(MODEL, resources=replace(MODEL.resources, **changes))


def lines(before: list[DeployedModel], after: list[DeployedModel]) -> list[str]:
    return list(differences_of(Deployment(tuple(before)), Deployment(tuple(after))))


def test_the_same_has_no_differences() -> None:
    assert lines([], []) == []
    assert lines([MODEL, OTHER], [MODEL, OTHER]) == []
    assert lines([MODEL, OTHER], [OTHER, MODEL]) == []


CHANGES = {
    "processes 2 -> 4": replace(MODEL, processes=4),
    "memory 512 MiB -> 1,024 MiB": with_resources(memory_bytes=1024 * MIB),
    "cpus 1 -> 2-3": with_resources(cpus="2-3"),
    "threads 1 -> 8": with_resources(threads=8),
    "not the default any more": replace(MODEL, default=False),
}


@pytest.mark.parametrize("line", CHANGES)
def test_every_number_that_changes_is_named(line: str) -> None:
    assert lines([MODEL, OTHER], [CHANGES[line], OTHER]) == [f"churn: {line}"]


def test_a_version_becomes_the_default() -> None:
    assert lines([replace(MODEL, default=False)], [MODEL]) == ["churn: the default now"]


def test_another_maximum_is_named() -> None:
    four = replace(MODEL, slots=4)
    assert lines([four], [replace(MODEL, slots=6)]) == ["churn: max_processes 4 -> 6"]
    assert lines([four], [MODEL]) == ["churn: max_processes 4 -> 2"]
    assert lines([four], [replace(four, processes=3)]) == ["churn: processes 2 -> 3"]


def test_bounds_of_a_scaled_model_are_named() -> None:
    scaled = replace(MODEL, processes=1, min_processes=1, max_processes=4)
    assert lines([MODEL], [scaled]) == ["churn: processes 2 -> 1 to 4"]
    assert lines([scaled], [replace(scaled, max_processes=6)]) == ["churn: processes 1 to 4 -> 1 to 6"]
    assert lines([scaled], [replace(scaled, processes=0, min_processes=0)]) == ["churn: processes 1 to 4 -> 0 to 4"]
    assert lines([scaled], [MODEL]) == ["churn: processes 1 to 4 -> 2"]
    assert lines([], [scaled]) == ["churn: version 3 added (1 to 4 processes, 512 MiB each)"]
    assert _entry_of(scaled, [scaled]) == {"name": "churn", "version": "3", "min_processes": 1, "max_processes": 4}


def test_a_maximum_that_was_not_there_is_named() -> None:
    """Else `apply` says that nothing changes, and the host keeps what it had."""
    assert lines([MODEL], [replace(MODEL, slots=4)]) != []


@pytest.mark.parametrize("more_bytes", [1, 1000, MIB // 2])
def test_a_memory_limit_that_changes_by_little_is_a_difference(more_bytes: int) -> None:
    assert lines([MODEL], [with_resources(memory_bytes=512 * MIB + more_bytes)]) != []


def test_a_version_follows_another() -> None:
    assert lines([MODEL], [replace(MODEL, version="4")]) == ["churn: version 3 -> 4"]
    assert lines([MODEL], [replace(MODEL, version="4", processes=3)]) == ["churn: version 3 -> 4, processes 2 -> 3"]


def test_models_come_and_go() -> None:
    assert lines([MODEL], [OTHER]) == [
        "churn: version 3 removed",
        "other: version 1 added (2 processes, 512 MiB each)",
    ]


def test_versions_come_and_go_beside_others() -> None:
    trial = replace(MODEL, version="4", default=False)
    assert lines([MODEL], [MODEL, trial]) == [
        "churn: version 4 added (2 processes, 512 MiB each, not the default)",
    ]
    assert lines([MODEL, trial], [MODEL]) == ["churn: version 4 removed"]
    assert lines([MODEL, trial], [replace(MODEL, default=False), replace(trial, default=True, processes=3)]) == [
        "churn: version 3 not the default any more, version 4 processes 2 -> 3, version 4 the default now",
    ]
    assert lines([MODEL, trial], [replace(MODEL, version="5")]) == [
        "churn: version 3 removed, version 4 removed, version 5 added (2 processes, 512 MiB each)",
    ]
    assert lines([MODEL, trial], [MODEL, replace(trial, version="5")]) == ["churn: version 4 -> 5"]


def test_every_change_of_a_line_stands_in_it() -> None:
    after = replace(
        MODEL, processes=3, slots=5, resources=Resources(memory_bytes=MIB, cpus=2, threads=4), default=False
    )
    assert lines([replace(MODEL, slots=4)], [after]) == [
        "churn: processes 2 -> 3, max_processes 4 -> 5, memory 512 MiB -> 1 MiB, cpus 1 -> 2, threads 1 -> 4, "
        "not the default any more"
    ]


# -- packages -------------------------------------------------------------------------------------------------
SPEC = TensorSpec("x", "FP64", (-1, 1))


@pytest.mark.parametrize(
    "after",
    [
        replace(MODEL, package="/elsewhere/churn/3"),
        replace(MODEL, platform="onnx"),
        replace(MODEL, signature=Signature((SPEC,), ())),
        replace(MODEL, limits=Limits(timeout_ms=5)),
        replace(MODEL, sandbox=Sandbox(network=True)),
        replace(MODEL, python="/environments/a/bin/python"),
    ],
)
def test_a_version_whose_package_was_changed_is_refused(after: DeployedModel) -> None:
    [problem] = _altered((MODEL, OTHER), Deployment((OTHER, after)))
    assert problem == (
        "churn version 3: expected the package that runs, received one that was changed: a version stays as it is; "
        "hand the change over as another version"
    )


def test_what_a_deployment_says_of_a_version_may_change() -> None:
    for after in (*CHANGES.values(), replace(MODEL, slots=4), replace(MODEL, version="4", package="/models/churn/4")):
        assert list(_altered((MODEL,), Deployment((after,)))) == []


# -- a file for a host that runs without one ------------------------------------------------------------------
def test_an_entry_says_what_runs() -> None:
    assert _entry_of(MODEL, [MODEL, OTHER]) == {"name": "churn", "version": "3", "processes": 2}
    more = replace(MODEL, slots=4, default=False)
    assert _entry_of(more, [more, replace(MODEL, version="4")]) == {
        "name": "churn", "version": "3", "processes": 2, "max_processes": 4, "default": False,
    }  # fmt: skip
