"""What a process takes, as /proc says."""

from __future__ import annotations

import os
from pathlib import Path

from host.control.usage import usage_of


def test_a_process_without_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = ["S", *("0" for _ in range(10)), "150", "50", *("0" for _ in range(8)), "1000", "0"]
    (tmp_path / "7" / "stat").write_text(f"7 (a name) of its) {' '.join(fields)}\n")
    usage = usage_of(None, "churn.v3:0", 7, tmp_path)
    assert usage is not None
    ticks = os.sysconf("SC_CLK_TCK")
    assert (usage.cpu_s, usage.memory_bytes, usage.memory_limit_bytes) == (
        200 / ticks,
        1000 * os.sysconf("SC_PAGE_SIZE"),
        0,
    )


def test_this_very_process() -> None:
    usage = usage_of(None, "churn.v3:0", os.getpid())
    assert usage is not None
    assert usage.memory_bytes > 1 << 20
    assert usage.cpu_s > 0


def test_no_process(tmp_path: Path) -> None:
    assert usage_of(None, "churn.v3:0", 8, tmp_path) is None
