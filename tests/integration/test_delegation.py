"""cgroup v2 as a service manager hands it over: a cgroup with this host alone in it, root's or an ordinary user's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import RunningHost, until
from packages import write_fragile
from probing import told, write_probing
from test_ordinary_user import USER, OrdinaryHost

from host.control.status import DeathKind
from host.isolation.cgroups import own_hierarchy

HIERARCHY = own_hierarchy()

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0 or HIERARCHY is None or HIERARCHY.version != 2,
        reason="needs root and cgroup v2; test_cgroup_v2 runs it in a guest",
    ),
]


@pytest.fixture
def unit() -> Iterator[Path]:
    """Give a cgroup like a systemd unit's with Delegate=yes."""
    assert HIERARCHY is not None
    path = HIERARCHY.mounts["memory"] / f"unit-{os.getpid()}"
    path.mkdir()
    yield path
    until(lambda: not any((one / "cgroup.procs").read_text() for one in path.rglob("*") if one.is_dir()), "all is gone")
    for below in [*(one for one in path.rglob("*") if one.is_dir()), path]:
        below.rmdir()


def inside(unit: Path) -> tuple[str, ...]:
    """A command's beginning that runs it in the unit."""
    return ("/bin/sh", "-c", f'echo $$ >{unit}/cgroup.procs && exec "$@"', "sh")


def test_root_in_a_unit_keeps_to_it(repository: Path, unit: Path) -> None:
    write_probing(repository)
    with RunningHost(repository, starter=inside(unit)) as host:
        host.start()
        assert sorted(one.name for one in unit.iterdir() if one.is_dir()) == [host.tree, "supervisor"]
        (pid,) = host.worker_pids("probing").values()
        where = Path(f"/proc/{pid}/cgroup").read_text().strip()
        assert where == f"0::/{unit.name}/{host.tree}/probing.v1/0"
        for pid, words in host.pids().items():
            if "supervisor.supervisord" in words or "up" in words:
                assert Path(f"/proc/{pid}/cgroup").read_text().strip() == f"0::/{unit.name}/supervisor"


def test_an_ordinary_user_with_a_delegated_cgroup_has_limits_and_oom_kills(
    repository: Path, work: Path, unit: Path
) -> None:
    repository.chmod(0o755)
    write_probing(repository, resources={"memory": "150MiB"})
    write_fragile(repository)
    for path in (unit, *(unit / name for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"))):
        os.chown(path, USER, USER)
    with OrdinaryHost(repository, work, starter=inside(unit)) as host:
        host.start()
        document = json.loads(host.command("status", "--isolation", "--json").stdout)
        assert [text for text in document["missing"] if text.startswith("cgroups:")] in (
            [],
            ["cgroups: the controllers cpuset"],
        )
        (worker,) = (one for one in document["processes"] if one["program"] == "probing.v1:0")
        assert worker["cgroup"]["memory_limit_bytes"] == 150 << 20
        assert told(host, "allocate") == (502, "WORKER_DIED")
        until(lambda: host.slot("probing.v1:0").last_exit, "its death is known")
        last_exit = host.slot("probing.v1:0").last_exit
        assert last_exit is not None
        assert last_exit.kind is DeathKind.OOM


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory that is reachable for the ordinary user through its view only."""
    return tmp_path_factory.mktemp("work")
