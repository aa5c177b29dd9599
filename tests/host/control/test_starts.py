from __future__ import annotations

from pathlib import Path

from host.control.starts import Starts


def test_starts_outlive_control(tmp_path: Path) -> None:
    starts = Starts(tmp_path)
    assert starts.of("churn.v3:0") == 0
    starts.count("churn.v3:0")
    starts.count("churn.v3:0")
    starts.count("front:0")
    again = Starts(tmp_path)
    again.count("churn.v3:0")
    assert (again.of("churn.v3:0"), again.of("front:0"), again.of("churn.v3:1")) == (3, 1, 0)


def test_starts_of_a_version_that_is_gone_are_forgotten(tmp_path: Path) -> None:
    starts = Starts(tmp_path)
    for program in ("churn.v3:0", "churn.v3:1", "churn.v30:0", "front:0"):
        starts.count(program)
    starts.forget("churn.v3")
    assert [starts.of(program) for program in ("churn.v3:0", "churn.v30:0", "front:0")] == [0, 1, 1]


def test_a_directory_that_is_not_there_costs_only_the_count(tmp_path: Path) -> None:
    starts = Starts(tmp_path / "nothing")
    starts.count("front:0")
    assert starts.of("front:0") == 1
