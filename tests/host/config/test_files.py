"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from host.config.files import write_atomically


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
