"""The host's CPUs and memory, read from a tree of files as Linux has them."""

from __future__ import annotations

from pathlib import Path

from host.isolation.topology import read_cpus, read_memory_bytes
from host.placement import Cpu


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_siblings_share_a_core_and_nodes_are_told_apart(tmp_path: Path) -> None:
    for number, siblings in ((0, "0,4"), (1, "1,5"), (4, "0,4"), (5, "1,5")):
        write(tmp_path, f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", siblings + "\n")
    write(tmp_path, "sys/devices/system/node/node0/cpulist", "0,4\n")
    write(tmp_path, "sys/devices/system/node/node1/cpulist", "1,5\n")
    assert read_cpus(tmp_path, frozenset({0, 1, 4, 5})) == (
        Cpu(number=0, core=0, node=0),
        Cpu(number=1, core=1, node=1),
        Cpu(number=4, core=0, node=0),
        Cpu(number=5, core=1, node=1),
    )
    assert [cpu.number for cpu in read_cpus(tmp_path, frozenset({4}))] == [4]


def test_a_kernel_that_does_not_say(tmp_path: Path) -> None:
    assert read_cpus(tmp_path, frozenset({2, 3})) == (Cpu(number=2, core=2, node=0), Cpu(number=3, core=3, node=0))


def test_memory(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:        1000 kB\nMemFree:  5 kB\n")
    assert read_memory_bytes(tmp_path) == 1000 * 1024
    assert 0 < read_memory_bytes(Path("/")) < 1 << 50
