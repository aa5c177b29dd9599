"""Where cgroups are, from what the kernel writes about mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from host.isolation.cgroups import CgroupError, CgroupTree, Hierarchy, Leaf, Limits, find_hierarchy

V1_MOUNTS = """\
24 1 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
25 1 0:23 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
26 1 0:24 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
27 1 0:25 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,cpuset
28 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
29 1 0:27 / / rw - ext4 /dev/vda rw
"""
V1_OWN = "9:memory:/a/b\n8:pids:/docker/abc/x\n7:cpu,cpuacct:/\n6:cpuset:/\n0::/\n"


def test_version_1_with_its_controllers_here_and_there() -> None:
    found = find_hierarchy(V1_MOUNTS, V1_OWN)
    assert found is not None
    assert found.version == 1
    assert found.directories == {
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "memory": Path("/sys/fs/cgroup/memory/a/b"),
        "pids": Path("/sys/fs/cgroup/pids/x"),
        "cpuset": Path("/sys/fs/cgroup/with space"),
    }
    assert found.at("/modelhost").directories["memory"] == Path("/sys/fs/cgroup/memory/modelhost")


def test_version_2_if_it_has_the_memory_controller(tmp_path: Path) -> None:
    mounts = f"30 1 0:28 / {tmp_path} rw - cgroup2 cgroup2 rw,nsdelegate\n"
    own = "0::/system.slice/modelhost.service\n"
    (tmp_path / "cgroup.controllers").write_text("cpu io pids\n")
    assert find_hierarchy(mounts, own) is None
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = find_hierarchy(mounts + V1_MOUNTS, own)
    assert found is not None
    assert found.version == 2
    assert set(found.directories.values()) == {tmp_path / "system.slice/modelhost.service"}
    assert {"memory", "cpuset", "cpu", "pids"} <= found.directories.keys()


@pytest.mark.parametrize(("mounts", "own"), [("", ""), ("", V1_OWN), (V1_MOUNTS.splitlines()[0] + "\n", V1_OWN)])
def test_no_memory_controller_is_none(mounts: str, own: str) -> None:
    assert find_hierarchy(mounts, own) is None


def v2_tree(top: Path) -> CgroupTree:
    return CgroupTree.below(Hierarchy(2, dict.fromkeys(("memory", "pids", "cpu"), top), {}), "t")


def test_a_tree_has_the_controllers_that_there_are(tmp_path: Path) -> None:
    tree = v2_tree(tmp_path)
    assert tree.controllers == ("memory", "cpu", "pids")
    assert tree.leaf("a.v1", "0").path == tmp_path / "t" / "a.v1" / "0"


def test_what_is_not_there_counts_as_empty(tmp_path: Path) -> None:
    leaf = v2_tree(tmp_path).leaf("a.v1", "0")
    assert leaf.pids() == []
    assert leaf.counters() == (0, 0)
    assert leaf.limits() == Limits(0, 0, 0, "")
    assert leaf.kill() == 0
    v2_tree(tmp_path).remove()


def test_version_2_limits_as_they_are_written(tmp_path: Path) -> None:
    directory = tmp_path / "leaf"
    directory.mkdir()
    files = (
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "pids.max",
        "cpu.weight",
        "cpuset.cpus",
        "cgroup.procs",
    )
    for name in files:
        (directory / name).write_text("")
    leaf = Leaf(2, dict.fromkeys(("memory", "pids", "cpu", "cpuset"), directory))
    leaf.make(Limits(1 << 28, 128, 250, "0-1"))
    assert [(directory / name).read_text() for name in files[:6]] == [str(1 << 28), "0", "1", "128", "250", "0-1"]
    assert leaf.limits()[:3] == (1 << 28, 128, 250)
    leaf.make(Limits(0, 0, 100, ""))
    leaf.join(os.getpid())
    assert (directory / "cgroup.procs").read_text() == str(os.getpid())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "leaf"
    with pytest.raises(CgroupError, match=r"leaf/memory\.max: cannot be set to '268435456': No such file"):
        Leaf(2, {"memory": directory}).make(Limits(1 << 28, 0, 100, ""))
    with pytest.raises(CgroupError, match=r"cgroup\.procs: cannot be set"):
        Leaf(2, {"memory": directory}).join(1)
