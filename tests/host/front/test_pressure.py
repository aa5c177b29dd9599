"""How busy a thread is, by what the kernel counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from host.front.pressure import LOOK_NS, Pressure, read_schedstat, spent_by_this_thread

LIMIT_S: Final = 30.0


def test_the_share_of_the_time_between_two_looks() -> None:
    spent = iter([500, 500 + LOOK_NS // 4, 500 + LOOK_NS // 4, 10**12])
    pressure = Pressure(lambda: next(spent))
    begin = 10**15
    assert pressure.share(begin) == 0.0  # nothing to compare with
    assert pressure.share(begin + LOOK_NS - 1) == 0.0  # too early
    assert pressure.share(begin + LOOK_NS) == 0.25
    assert pressure.share(begin + LOOK_NS + 1) == 0.25
    assert pressure.share(begin + 3 * LOOK_NS) == 0.0
    assert pressure.share(begin + 4 * LOOK_NS) == 1.0  # two clocks never agree quite


def test_what_the_kernel_writes() -> None:
    assert read_schedstat(b"569212375 444592723 6768\n") == 1_013_805_098


@pytest.mark.parametrize("text", [None, "", "1 2", "a b c"])
def test_without_the_kernels_help_only_running_counts(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "schedstat"
    if text is not None:
        path.write_text(text)
    assert spent_by_this_thread(path) is time.thread_time_ns


def until(enough: Callable[[float], bool], pressure: Pressure, use_time: Callable[[], None]) -> None:
    """Use time until the share of it that counts is as it should be: once, since who else computes here counts too."""
    deadline = time.monotonic() + LIMIT_S
    pressure.share(time.monotonic_ns())
    while True:
        use_time()
        share = pressure.share(time.monotonic_ns())
        if enough(share):
            return
        assert time.monotonic() < deadline, share


def test_a_thread_that_works_is_busy_and_one_that_sleeps_is_not() -> None:
    def work() -> None:
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass

    pressure = Pressure()
    until(lambda share: share > 0.5, pressure, work)
    until(lambda share: share < 0.5, pressure, lambda: time.sleep(0.1))
