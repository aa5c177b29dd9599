"""Who changed what: the last changes, and what a model had before."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.config.deployment import DeployedModel, Deployment
from host.config.history import (
    KEPT,
    Change,
    Version,
    add_to_history,
    change_of,
    note_start,
    read_history,
    version_before,
)
from host.protocol.errors import ConfigError
from host.protocol.messages import Limits
from host.protocol.types import Signature


def change(number: int, *versions: Version) -> Change:
    return Change(
        at=float(number), who="ada", what="apply", generation=number, differences=("churn: …",), models=versions
    )


def served(*numbers: str) -> list[Change]:
    """Give a history of one model that had these versions one after the other."""
    return [change(at, Version("churn", number, 1, True)) for at, number in enumerate(numbers)]


def deployed(number: str, *, processes: int = 1, default: bool = True) -> DeployedModel:
    return DeployedModel(
        name="churn",
        version=number,
        processes=processes,
        package="/p",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(),
        default=default,
    )


# -- the file -------------------------------------------------------------------------------------------------
def test_there_is_no_history_before_the_first_change(tmp_path: Path) -> None:
    assert read_history(tmp_path / "history.jsonl") == []


@pytest.mark.parametrize(("changes", "first"), [(1, 0), (KEPT - 1, 0), (KEPT, 0), (KEPT + 1, 1), (KEPT + 2, 2)])
def test_the_last_fifty_changes_are_kept_the_oldest_first(tmp_path: Path, changes: int, first: int) -> None:
    path = tmp_path / "history.jsonl"
    assert KEPT == 50
    for number in range(changes):
        add_to_history(path, change(number))
    assert [one.generation for one in read_history(path)] == list(range(first, changes))
    assert len(path.read_bytes().splitlines()) == changes - first


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    one = change(1, Version("churn", "3", 2, True), Version("churn", "4\n", 1, False))
    add_to_history(path, one)
    assert read_history(path) == [one]


@pytest.mark.parametrize("line", [b"{", b"{}", b"", b"\xff", b'{"at": "x"}', b"[]"])
def test_a_file_that_is_no_history_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "history.jsonl"
    add_to_history(path, change(1))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ConfigError, match=f"{path}: not a history of changes: "):
        read_history(path)
    with pytest.raises(ConfigError):
        add_to_history(path, change(2))
    assert path.read_bytes().endswith(line + b"\n")


def test_a_history_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: not a history of changes: "):
        read_history(tmp_path)


# -- a change -------------------------------------------------------------------------------------------------
def test_a_change_says_what_runs_from_then_on_and_who_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.delenv("SUDO_USER", raising=False)
    deployment = Deployment((deployed("3", processes=2, default=False),), generation=4)
    made = change_of("scale churn=2", deployment, ["churn: processes 1 -> 2"])
    assert (made.who, made.what, made.generation) == ("root", "scale churn=2", 4)
    assert made.differences == ("churn: processes 1 -> 2",)
    assert made.models == (Version("churn", "3", 2, False),)
    assert made.at > 1.7e9


@pytest.mark.parametrize(("sudo", "who"), [("ada", "ada (as root)"), ("root", "root"), ("", "root")])
def test_who_stands_behind_sudo_is_named(monkeypatch: pytest.MonkeyPatch, sudo: str, who: str) -> None:
    monkeypatch.setenv("LOGNAME", "root")
    monkeypatch.setenv("SUDO_USER", sudo)
    assert change_of("apply", Deployment(), []).who == who


def test_a_start_is_a_change_only_if_something_else_runs_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    starts = [deployed("1"), deployed("1"), deployed("2"), deployed("2", processes=2), deployed("2", processes=2)]
    for model in starts:
        note_start(path, Deployment((model,)))
    history = read_history(path)
    assert [(one.what, one.differences) for one in history] == [
        ("up", ("churn: version 1",)),
        ("up", ("churn: version 2",)),
        ("up", ("churn: version 2",)),
    ]
    assert version_before(history, "churn", "2") == "1"


def test_the_first_change_after_a_start_can_be_rolled_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    note_start(path, Deployment((deployed("1"),)))
    add_to_history(path, change_of("apply", Deployment((deployed("2"),), generation=1), []))
    assert version_before(read_history(path), "churn", "2") == "1"


# -- what was before ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("numbers", "before"),
    [
        ("", None),
        ("3", None),
        ("33", None),
        ("12", "1"),
        ("123", "2"),
        ("122", "1"),  # scaled since then
        ("1232", "3"),  # rolled back: another rollback undoes it
        ("12323", "2"),
        ("1231", "3"),
        ("124", "2"),
    ],
)
def test_the_version_before_is_the_last_other_one(numbers: str, before: str | None) -> None:
    current = numbers[-1:] or "3"
    assert version_before(served(*numbers), "churn", current) == before


def test_rollbacks_go_back_and_forth_between_the_last_two() -> None:
    history = served("1", "2", "3")
    seen = []
    for _ in range(4):
        target = version_before(history, "churn", history[-1].models[0].version)
        assert target is not None
        history += served(target)
        seen.append(target)
    assert seen == ["2", "3", "2", "3"]


def test_a_version_that_the_history_does_not_end_with_is_looked_for() -> None:
    """The file was changed while the host was down."""
    assert version_before(served("1", "2", "3"), "churn", "2") == "1"
    assert version_before(served("1", "2", "3"), "churn", "1") is None
    assert version_before(served("1", "2", "3"), "churn", "9") is None


def test_only_this_models_default_versions_count() -> None:
    history = [
        change(1, Version("other", "8", 1, True), Version("churn", "1", 1, True)),
        change(2, Version("churn", "5", 1, False), Version("churn", "2", 1, True)),
        change(3, Version("other", "9", 1, True)),
        change(4, Version("churn", "3", 1, True)),
    ]
    assert version_before(history, "churn", "3") == "2"
    assert version_before(history, "other", "9") == "8"
    assert version_before(history, "nobody", "1") is None
