"""On recorded trees of cgroups and /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from host.control.metrics.facts import SlotUsage, UsageReader
from host.isolation.cgroups import CgroupTree

V2 = {
    "memory.current": "1000\n",
    "memory.max": "2000\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1\nnr_periods 9\nnr_throttled 3\nthrottled_usec 250000\n",
}
V1_MEMORY = {"memory.usage_in_bytes": "1000\n", "memory.limit_in_bytes": "2000\n"}
V1_CPU = {"cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 250000000\n"}
EXPECTED = SlotUsage(memory_bytes=1000, memory_limit_bytes=2000, cpu_s=1.5, throttled=3, throttled_s=0.25)


def write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)


def write_process(proc: Path, pid: int, cpu_s: float) -> None:
    fields = ["S", *["0"] * 10, str(int(cpu_s * os.sysconf("SC_CLK_TCK"))), *["0"] * 9, "7", "0"]
    write(proc / str(pid), {"stat": f"{pid} (a) b) {' '.join(fields)}\n"})


def test_version_2(tmp_path: Path) -> None:
    write(tmp_path / "churn.v3" / "0", V2)
    reader = UsageReader(CgroupTree(2, {"memory": tmp_path, "cpu": tmp_path}), tmp_path)
    assert reader.read({"churn.v3:0": 5, "churn.v3:1": 0}) == {"churn.v3:0": EXPECTED}


@pytest.mark.parametrize("limit", ["max\n", ""])
def test_without_a_limit(tmp_path: Path, limit: str) -> None:
    write(tmp_path / "front" / "0", V2 | {"memory.max": limit})
    reader = UsageReader(CgroupTree(2, {"memory": tmp_path, "cpu": tmp_path}), tmp_path)
    assert reader.read({"front:0": 5})["front:0"].memory_limit_bytes == 0


def test_version_1_with_both_cpu_controllers_in_one_place(tmp_path: Path) -> None:
    write(tmp_path / "memory" / "churn.v3" / "0", V1_MEMORY)
    write(tmp_path / "cpu" / "churn.v3" / "0", V1_CPU | {"cpuacct.usage": "1500000000\n"})
    reader = UsageReader(CgroupTree(1, {"memory": tmp_path / "memory", "cpu": tmp_path / "cpu"}), tmp_path)
    assert reader.read({"churn.v3:0": 5}) == {"churn.v3:0": EXPECTED}


def test_cpu_time_that_the_kernel_does_not_add_up_is_that_of_all_lives(tmp_path: Path) -> None:
    write(tmp_path / "memory" / "churn.v3" / "0", V1_MEMORY)
    write(tmp_path / "cpu" / "churn.v3" / "0", V1_CPU)
    reader = UsageReader(CgroupTree(1, {"memory": tmp_path / "memory", "cpu": tmp_path / "cpu"}), tmp_path)

    def cpu_s(pid: int) -> float:
        return reader.read({"churn.v3:0": pid})["churn.v3:0"].cpu_s

    write_process(tmp_path, 5, 1.5)
    assert reader.read({"churn.v3:0": 5}) == {"churn.v3:0": EXPECTED}
    assert cpu_s(5) == 1.5
    write_process(tmp_path, 6, 0.25)
    assert cpu_s(0) == 1.5, "between two lives"
    assert cpu_s(6) == 1.75
    write_process(tmp_path, 6, 0.5)
    assert cpu_s(6) == 2.0
    assert cpu_s(7) == 2.0, "it has just gone"


def test_without_cgroups(tmp_path: Path) -> None:
    reader = UsageReader(None, tmp_path)
    assert reader.read({"churn.v3:0": 5, "churn.v3:1": 0}) == {}
    write_process(tmp_path, 5, 1.0)
    [(program, usage)] = reader.read({"churn.v3:0": 5}).items()
    assert program == "churn.v3:0"
    assert usage == SlotUsage(7 * os.sysconf("SC_PAGE_SIZE"), 0, 1.0, 0, 0.0)
    reader.read({})
    assert reader.read({"churn.v3:0": 5})["churn.v3:0"].cpu_s == 1.0, "what is not asked for is forgotten"
