"""Noticing that a file was replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from host.config.files import write_atomically
from host.config.watch import replacements

LIMIT_S = 30.0


async def following(path: Path) -> AsyncIterator[None]:
    """Give the notices of a file once nothing can be missed any more."""
    notices = replacements(path)
    await noticed(notices)
    return notices


async def noticed(notices: AsyncIterator[None]) -> None:
    async with asyncio.timeout(LIMIT_S):
        await anext(notices)


async def test_the_first_notice_comes_before_any_change(tmp_path: Path) -> None:
    await noticed(replacements(tmp_path / "not yet there"))


async def test_every_way_to_write_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    notices = await following(path)
    write_atomically(path, b"1")
    await noticed(notices)
    path.write_bytes(b"2")
    await noticed(notices)
    path.unlink()
    write_atomically(path, b"3")
    await noticed(notices)


async def test_other_files_of_its_directory_are_not_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    notices = await following(path)
    waiting = asyncio.ensure_future(anext(notices))
    write_atomically(tmp_path / "b", b"1")
    (tmp_path / "a.bak").write_bytes(b"1")
    (tmp_path / "a").mkdir()
    # What comes later is noticed later: once this is, the others have been passed over.
    async with asyncio.timeout(LIMIT_S):
        others = await following(tmp_path / "c")
        (tmp_path / "c").touch()
        await noticed(others)
    assert not waiting.done()
    path.rmdir()
    path.touch()
    async with asyncio.timeout(LIMIT_S):
        await waiting


async def test_changes_that_nobody_asked_for_yet_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "a"
    notices = await following(path)
    for number in range(3):
        write_atomically(path, b"%d" % number)
    for _ in range(3):
        await noticed(notices)


async def test_its_directory_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await noticed(replacements(tmp_path / "no" / "a"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        await noticed(replacements(tmp_path / "file" / "a"))
