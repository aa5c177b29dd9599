"""The file of changes on the controller, and what of an inventory cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from archives import packed, write_doubling
from inventories import layer

from host.fleet.controller import CHANGES_FILE, HostVariables, ReadInventory, read_fleet, recorded, write_recorded
from host.protocol.errors import ConfigError

FOUR = {"model": "churn", "version": "4"}
THREE = layer("group all", "h1 h2", churn={"version": "3"})


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages churn 3 and 4."""
    directory = tmp_path_factory.mktemp("packages")
    for version in ("3", "4"):
        source = write_doubling(tmp_path_factory.mktemp("source"), "churn", version)
        (directory / f"churn-{version}.tar").write_bytes(packed(source))
    return directory


def inventory(directory: Path | None, packages: Any, layers: Any = (THREE,), **more: Any) -> ReadInventory:
    """Of two hosts."""
    host = HostVariables(variables={}, facts={}, packages=packages and str(packages), checksums=None)
    return ReadInventory(
        hosts={"h1": host, "h2": host}, layers=list(layers), directory=directory, **{"changes_file": None, **more}
    )


def versions(read: ReadInventory, change: Any = None) -> dict[str, str]:
    return {name: host["models"]["churn"]["version"] for name, host in read_fleet(read, change)["hosts"].items()}


def test_a_change_is_a_what_if_until_it_is_written(tmp_path: Path, archives: Path) -> None:
    read = inventory(tmp_path, archives)
    assert versions(read, FOUR) == {"h1": "4", "h2": "4"}
    assert versions(read) == {"h1": "3", "h2": "3"}
    change = recorded(read, FOUR)
    assert change.path == tmp_path / CHANGES_FILE
    assert change.before == ""
    assert not change.path.exists()
    write_recorded(change)
    assert versions(read) == {"h1": "4", "h2": "4"}
    assert change.path.read_text() == change.after
    back = recorded(read, {"model": "churn", "rollback": True})
    assert back.before == change.after
    assert back.after.endswith("modelhost_changes: {}\n")


def test_what_changes_nothing_makes_no_file(tmp_path: Path, archives: Path) -> None:
    change = recorded(inventory(tmp_path, archives), {"model": "churn", "version": "3"})
    assert change.before == change.after == ""


def test_the_file_keeps_its_mode_and_is_written_through_a_link(tmp_path: Path, archives: Path) -> None:
    real = tmp_path / "real.yml"
    real.write_text("modelhost_changes: {}\n")
    real.chmod(0o600)
    (tmp_path / "link.yml").symlink_to(real)
    write_recorded(recorded(inventory(tmp_path, archives, changes_file="link.yml"), FOUR))
    assert "instead_of: '3'" in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link.yml").is_symlink()


def test_nothing_is_recorded_of_an_inventory_that_cannot_be_read(tmp_path: Path, archives: Path) -> None:
    broken = layer("group all", "h1 h2", churn={"version": 1.1})
    with pytest.raises(ConfigError) as caught:
        recorded(inventory(tmp_path, archives, [broken]), FOUR, ["known before"])
    assert [problem[:12] for problem in caught.value.problems] == ["known before", "group all (g"]


def test_without_a_directory_it_has_to_be_said_where(archives: Path) -> None:
    with pytest.raises(ConfigError, match="modelhost_changes_file: expected a path"):
        recorded(inventory(None, archives), FOUR)


@pytest.mark.parametrize("name", ["all", "all.yml", "all.yaml", "all.json"])
def test_a_file_that_ansible_would_stop_to_read_is_a_problem(tmp_path: Path, archives: Path, name: str) -> None:
    """Ansible reads `group_vars/all/` or `group_vars/all.yml`: writing the first hides the second."""
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars" / name).write_text("---\n")
    read = inventory(tmp_path, archives)
    assert versions(read) == {"h1": "3", "h2": "3"}
    for attempt in (read_fleet, recorded):
        with pytest.raises(ConfigError, match=f"{name}: expected no such file beside the directory"):
            attempt(read, FOUR)
    if name == "all":
        return
    (tmp_path / "group_vars" / "all").mkdir()
    with pytest.raises(ConfigError, match=f"move it to .*/group_vars/all/{name}"):
        read_fleet(read, None)
    assert versions(inventory(tmp_path, archives, changes_file="changes.yml"), FOUR) == {"h1": "4", "h2": "4"}


def test_a_broken_file_of_changes_and_everything_else_at_once(tmp_path: Path) -> None:
    (tmp_path / "changes.yml").write_text("{")
    with pytest.raises(ConfigError) as caught:
        read_fleet(inventory(tmp_path, None, [], changes_file="changes.yml"), None, ["known before"])
    problems = caught.value.problems
    assert problems[0] == "known before"
    assert "changes.yml: not YAML" in problems[1]
    assert problems[2].startswith("modelhost_packages: expected a directory of archives")


def test_a_file_of_changes_that_is_no_text(tmp_path: Path, archives: Path) -> None:
    (tmp_path / "changes.yml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"changes\.yml: not UTF-8"):
        read_fleet(inventory(tmp_path, archives, changes_file="changes.yml"), None)


def test_no_hosts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group modelhost: expected hosts that run models, found none"):
        read_fleet(ReadInventory(hosts={}, layers=[], directory=tmp_path, changes_file=None), None)


def test_hosts_have_their_packages_from_one_place(tmp_path: Path, archives: Path) -> None:
    read = inventory(tmp_path, archives)
    other = HostVariables(variables={}, facts={}, packages="/elsewhere", checksums=None)
    mixed = ReadInventory(hosts={**read.hosts, "h2": other}, layers=read.layers, directory=tmp_path, changes_file=None)
    with pytest.raises(ConfigError, match="expected the same for all hosts, received different ones for h1 and h2"):
        read_fleet(mixed, None)


@pytest.mark.parametrize("said", [["a"], {"a": 1}, 7, "a\nb"])
def test_paths_are_texts(tmp_path: Path, archives: Path, said: Any) -> None:
    host = HostVariables(variables={}, facts={}, packages=said, checksums=said)
    read = ReadInventory(hosts={"h1": host, "h2": host}, layers=[], directory=tmp_path, changes_file=said)
    with pytest.raises(ConfigError) as caught:
        read_fleet(read, None)
    assert [problem.partition(": expected a path or a URI")[0] for problem in caught.value.problems] == [
        "modelhost_changes_file",
        "hosts h1, h2: modelhost_packages",
        "hosts h1, h2: modelhost_packages_checksums",
    ]
    with pytest.raises(ConfigError, match="modelhost_changes_file: expected a path"):
        recorded(inventory(tmp_path, archives, changes_file=said), FOUR)


def test_relative_paths_begin_at_the_inventory(tmp_path: Path, archives: Path) -> None:
    (tmp_path / "packages").symlink_to(archives)
    assert versions(inventory(tmp_path, "packages")) == {"h1": "3", "h2": "3"}
