"""Files that are there as a whole or not at all, and that belong to whom their directory belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from host.config.files import open_lock, write_atomically


def test_a_file_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"\x00\n")
    assert path.read_bytes() == b"\x00\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_is_replaced_and_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old, and longer")
    with path.open("rb") as reader:
        write_atomically(path, b"new", 0o644)
        assert reader.read() == b"old, and longer"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_an_earlier_writer_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "a"
    (tmp_path / ".a.new").write_bytes(b"half of somethi")
    (tmp_path / ".a.new").chmod(0o444)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208 - names only


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a"
    (path / "full").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_atomically(path, b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a", b"new")


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / ".a.new").symlink_to(tmp_path / "other")
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "other").read_bytes() == b"precious"
    assert not (tmp_path / "a").is_symlink()


def test_a_lock_is_made_once(tmp_path: Path) -> None:
    for _ in range(2):
        os.close(open_lock(tmp_path / "lock"))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileNotFoundError):
        open_lock(tmp_path / "no" / "lock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_makes_belongs_to_whom_the_directory_belongs_to(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65533)
    write_atomically(tmp_path / "a", b"new")
    write_atomically(tmp_path / "given", b"new", owner=(65532, 65531))
    write_atomically(tmp_path / "kept", b"new", owner=(0, 0))
    os.close(open_lock(tmp_path / "lock"))
    (tmp_path / "there").touch()
    os.close(open_lock(tmp_path / "there"))
    found = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in tmp_path.iterdir()}
    assert found == {
        "a": (65534, 65533),
        "given": (65532, 65531),
        "kept": (0, 0),
        "lock": (65534, 65533),
        "there": (0, 0),
    }
