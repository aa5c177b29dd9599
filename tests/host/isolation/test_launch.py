"""What the launcher opens for the process that it becomes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.isolation.launch import Launcher
from host.isolation.plan import plain_plan
from host.protocol.given import COUNTERS_VARIABLE


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Put back what the launcher sets for good."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def launched(counters: str) -> dict[str, str]:
    """What a process sees whose plan has no other step."""
    launcher = Launcher(plain_plan("m.v1:0", required=True)._replace(counters=counters))
    launcher.isolate()
    assert launcher.failures == []
    return launcher.environment({})


def test_the_file_of_counters_is_open_for_the_command(tmp_path: Path) -> None:
    descriptor = int(launched(str(tmp_path / "counted"))[COUNTERS_VARIABLE])
    assert os.get_inheritable(descriptor)
    os.close(descriptor)
    assert (tmp_path / "counted").stat().st_mode & 0o777 == 0o600


def test_a_process_without_one_gets_none() -> None:
    assert launched("") == {}


def test_a_file_that_cannot_be_opened_keeps_nothing_from_starting(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launched(str(tmp_path / "none" / "counted")) == {}
    expected = f"launcher: what m.v1:0 does is not counted: {tmp_path}/none/counted: No such file or directory\n"
    assert capfd.readouterr().err == expected
