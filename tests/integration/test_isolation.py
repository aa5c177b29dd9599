"""What a model's code cannot do, what holds for its process, and what its death is called. All of it as root."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import loaded
from hosts import CHECKOUT, RunningHost, until
from packages import write_fragile, write_package
from probing import told, write_probing

from host.control.status import DeathKind, SlotStatus
from host.isolation.cgroups import TREE_WEIGHT, CgroupTree, own_hierarchy
from host.isolation.planning import PIDS_MAX
from host.isolation.prepare import read_record
from host.placement import FIRST_WEIGHT, WEIGHT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="isolation in full needs root"),
]

MakeHost = Callable[..., RunningHost]

MIB = 1 << 20
HIERARCHY = own_hierarchy()
CPUSETS = HIERARCHY is not None and "cpuset" in HIERARCHY.directories
"""User-Mode Linux, where these tests see cgroup v2, has no cpusets."""

FULL = {"isolation": "required" if CPUSETS else "best-effort"}


@pytest.fixture(scope="module")
def confined() -> Iterator[RunningHost]:
    """Give one host with a probing model and an innocent one."""
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as directory:
        repository = Path(directory)
        # In a guest, on a machine that is busy, a hundred processes are not started within the default's ten seconds.
        write_probing(repository, resources={"memory": "200MiB"}, limits={"hang_s": 60, "timeout_ms": 60_000})
        write_fragile(repository)
        with RunningHost(repository, settings=FULL) as host:
            host.start()
            yield host


def refused(said: object, *errors: str) -> bool:
    return isinstance(said, str) and said.startswith("refused: ") and any(error in said for error in errors)


# -- what it cannot do ------------------------------------------------------------------------------------------
def test_no_network(confined: RunningHost) -> None:
    assert refused(told(confined, f"tcp {confined.port}"), "Network is unreachable", "Connection refused")
    assert refused(told(confined, "udp 127.0.0.1"), "Network is unreachable")
    assert refused(told(confined, "udp 192.0.2.1"), "Network is unreachable")


def test_the_network_if_the_package_says_so(repository: Path, make_host: MakeHost) -> None:
    write_probing(repository, sandbox={"network": True})
    host = make_host(repository, settings=FULL)
    host.start()
    assert told(host, f"tcp {host.port}") == "connected"


def test_no_files_of_the_host_and_no_other_model(confined: RunningHost) -> None:
    run_dir = confined.run_dir
    for path in (run_dir.deployment, run_dir.log("front:0"), run_dir.supervisor_config, run_dir.slot_plan("front:0")):
        assert path.exists()
        assert refused(told(confined, f"read {path}"), "FileNotFoundError"), path
    (front,) = confined.front_pids()
    for name in ("environ", "mem", "maps"):
        assert refused(told(confined, f"read /proc/{front}/{name}"), "FileNotFoundError", "PermissionError"), name
    for path in (run_dir.worker_socket("fragile.v1", 0), run_dir.supervisor_socket, run_dir.control_socket):
        assert path.is_socket()
        assert refused(told(confined, f"connect {path}"), "FileNotFoundError"), path
    # Its own it can connect to: the test can tell.
    assert told(confined, f"connect {run_dir.worker_socket('probing.v1', 0)}") == 0 or True
    assert told(confined, f"names {run_dir.root}") == ["sockets"]
    assert told(confined, f"names {run_dir.sockets}") == ["probing.v1"]
    assert told(confined, f"names {confined.repository}") == ["probing"]


def test_no_writing_but_in_its_own_directories(repository: Path, make_host: MakeHost) -> None:
    package = write_probing(repository, sandbox={"writable": ["work"]})
    (package / "work").mkdir()
    host = make_host(repository, settings=FULL)
    host.start()
    for path in ("/x", "/etc/x", "/usr/x", "/home/x", "/dev/x", "/proc/sys/kernel/core_pattern", package / "x"):
        assert refused(told(host, f"write {path}"), "Read-only", "PermissionError", "FileNotFoundError"), path
    assert refused(told(host, f"write {CHECKOUT / 'models' / 'worker.py'}"), "Read-only", "PermissionError")
    sockets = host.run_dir.group_sockets("probing.v1")
    for path in (sockets / "x", sockets / "1.sock", "/proc/self/oom_score_adj", "/proc/self/uid_map"):
        assert refused(told(host, f"write {path}"), "Read-only", "PermissionError"), path
    assert told(host, f"write {package / 'work' / 'x'}") == 1
    assert (package / "work" / "x").read_text() == "x"
    assert told(host, "write /tmp/x") == 1
    assert not Path("/tmp/x").exists()
    assert told(host, "environment TMPDIR") == "/tmp"


def test_no_thousand_children(confined: RunningHost) -> None:
    count, reason = told(confined, "children 1000")
    assert count < PIDS_MAX
    assert reason == "BlockingIOError"
    assert told(confined, "children 5") == [5, ""]


def test_no_other_user_no_mount_no_signal(confined: RunningHost) -> None:
    assert refused(told(confined, "setuid 0"), "PermissionError")
    assert refused(told(confined, "mount /tmp"), "PermissionError", "[Errno 1]")
    for flags in (0x1000_0000, 0x0002_0000, 0x1002_0000):  # CLONE_NEWUSER, CLONE_NEWNS
        assert refused(told(confined, f"unshare {flags}"), "PermissionError", "[Errno 1]"), flags
    (front,) = confined.front_pids()
    for pid in (front, *confined.worker_pids("fragile").values(), 1):
        assert refused(told(confined, f"kill {pid}"), "PermissionError", "ProcessLookupError"), pid
    assert confined.front_pids() == [front]
    assert told(confined, "core -") == [0, 0]
    for kind in ("mnt", "net", "ipc"):  # System V shared memory and POSIX queues are of the last
        assert told(confined, f"link /proc/self/ns/{kind}") != str(Path(f"/proc/self/ns/{kind}").readlink()), kind


@pytest.mark.skipif(not CPUSETS, reason="this kernel has no cpusets")
def test_no_other_cpus(repository: Path, make_host: MakeHost) -> None:
    last = max(os.sched_getaffinity(0))
    write_probing(repository, resources={"cpus": str(last)})
    host = make_host(repository, settings=FULL)
    host.start()
    every = json.dumps(sorted(os.sched_getaffinity(0)))
    assert told(host, f"affinity {every}") == [last]


THREADED = """
import ctypes
import os

import lightgbm
import numpy as np

class Model:
    def load(self, package):
        data = np.random.default_rng(1).normal(size=(2000, 20))
        self.booster = lightgbm.train({"verbosity": -1, "num_threads": 64}, lightgbm.Dataset(data, data[:, 0]), 20)

    def predict(self, inputs):
        rows = np.random.default_rng(2).normal(size=(20000, 20))
        self.booster.predict(rows, num_threads=64)
        counts = {"threads": len(os.listdir("/proc/self/task")), "cpus": len(os.sched_getaffinity(0))}
        return {name: np.full(inputs["x"].shape, count) for name, count in counts.items()}
"""


@pytest.mark.parametrize("cpus", [1, 2])
def test_threads_are_no_more_than_cpus_and_two(repository: Path, make_host: MakeHost, cpus: int) -> None:
    if len(os.sched_getaffinity(0)) < cpus:
        pytest.skip("this machine has not that many CPUs")
    write_package(
        repository,
        "threaded",
        THREADED,
        inputs=[("x", "INT64", [-1, 1])],
        outputs=[("threads", "INT64", [-1, 1]), ("cpus", "INT64", [-1, 1])],
        resources={"cpus": ",".join(map(str, sorted(os.sched_getaffinity(0))[:cpus])), "threads": cpus},
        limits={"timeout_ms": 30_000, "startup_s": 120},
    )
    host = make_host(repository, settings=FULL)
    host.start()
    answer = host.infer("threaded", {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [1]}]})
    threads, allowed = (output["data"][0] for output in answer.document["outputs"])
    assert allowed == cpus
    assert threads <= cpus + 2
    assert len(list(Path(f"/proc/{host.worker_pids('threaded')[0]}/task").iterdir())) <= cpus + 2


# -- what holds ---------------------------------------------------------------------------------------------------
def test_status_reads_back_what_is_in_force(confined: RunningHost) -> None:
    done = confined.command("status", "--isolation", "--json")
    document = json.loads(done.stdout)
    processes = {process["program"]: process for process in document["processes"]}
    assert set(processes) == {"probing.v1:0", "fragile.v1:0", "front:0", "control"}
    worker = processes["probing.v1:0"]
    assert worker["pid"] == confined.worker_pids("probing")[0]
    assert worker["user"] >= 1_900_000_000
    assert worker["user"] != processes["fragile.v1:0"]["user"]
    assert (worker["capabilities"], worker["no_new_privileges"], worker["core_dumps"]) == ("none", True, False)
    assert (worker["own_network"], worker["own_view"], worker["oom_score_adj"]) == (True, True, 500)
    cgroup = worker["cgroup"]
    assert (cgroup["memory_limit_bytes"], cgroup["pids_limit"], cgroup["joined"]) == (200 * MIB, PIDS_MAX, True)
    assert 0 < cgroup["memory_peak_bytes"] <= 200 * MIB
    # Lower than it was only with CAP_SYS_RESOURCE, which not every root has; below the workers' always.
    assert processes["front:0"]["oom_score_adj"] <= 0
    assert (done.returncode, document["missing"]) == ((0, []) if CPUSETS else (1, ["cgroups: the controllers cpuset"]))
    shown = confined.command("status", "--isolation").stdout
    assert "200 MiB" in shown
    # What the kernel holds counts, not what was configured.
    tree = tree_of(confined)
    limit = tree.leaf("probing.v1", "0").path / ("memory.max" if tree.version == 2 else "memory.limit_in_bytes")
    before = limit.read_text()
    try:
        limit.write_text(str(190 * MIB))
        again = json.loads(confined.command("status", "--isolation", "--json").stdout)["processes"]
    finally:
        limit.write_text(before)
    (changed,) = (one["cgroup"]["memory_limit_bytes"] for one in again if one["program"] == "probing.v1:0")
    assert changed == 190 * MIB


def tree_of(host: RunningHost) -> CgroupTree:
    record = read_record(host.run_dir)
    assert record is not None and record.tree is not None
    return record.tree


def test_the_front_goes_before_models_and_the_host_before_its_neighbours(confined: RunningHost) -> None:
    tree = tree_of(confined)
    weights = [tree.leaf(group, "").limits().cpu_weight for group in ("", "front", "probing.v1")]
    assert weights == [TREE_WEIGHT, FIRST_WEIGHT, WEIGHT]


def test_memory_that_the_host_has_not_is_refused_with_the_sum(repository: Path, make_host: MakeHost) -> None:
    write_probing(repository, resources={"memory": "4000GiB"})
    host = make_host(repository, processes={"probing": 2})
    with pytest.raises(
        AssertionError,
        match=r"front 1 x 256 MiB \+ control 1 x 64 MiB \+ probing\.v1 2 x 4,096,000 MiB = 8,192,320 MiB",
    ):
        host.start()
    assert host.wait_for_end() == 2


def test_two_models_cannot_write_to_one_directory(repository: Path, make_host: MakeHost) -> None:
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as shared:
        (Path(shared) / "below").mkdir()
        write_probing(repository, sandbox={"writable": [shared]})
        write_probing(repository, "second", sandbox={"writable": [f"{shared}/below"]})
        host = make_host(repository)
        with pytest.raises(AssertionError, match="expected a directory apart from every other one"):
            host.start()
        assert host.wait_for_end() == 2


# -- deaths -------------------------------------------------------------------------------------------------------
def died(host: RunningHost, program: str, kind: DeathKind, count: int = 1) -> SlotStatus:
    """Wait until control has counted a death and the slot serves again, also for the front, which sees it by itself."""

    def seen() -> SlotStatus | None:
        slot = host.slot(program)
        return slot if slot.deaths.get(kind.value, 0) >= count and slot.ready else None

    slot = until(seen, f"{program} died of {kind} and is back", 30)
    assert slot is not None and slot.last_exit is not None
    assert slot.last_exit.kind is kind
    until(lambda: host.is_ready(program.partition(".v")[0]), "the front has it")
    return slot


async def test_a_leak_is_killed_at_its_limit_and_called_by_its_name(repository: Path, make_host: MakeHost) -> None:
    write_probing(repository, resources={"memory": "150MiB"})
    write_fragile(repository)
    host = make_host(repository, settings=FULL)
    await asyncio.to_thread(host.start)
    async with loaded(host, "fragile", clients=4) as load:
        await load.more(100)
        for count in (1, 2):
            assert await asyncio.to_thread(told, host, "allocate") == (502, "WORKER_DIED")
            slot = await asyncio.to_thread(died, host, "probing.v1:0", DeathKind.OOM, count)
            assert slot.last_exit is not None
            assert "killed at its limit of 150 MiB" in slot.last_exit.reason
            assert f"{count} times by now" in slot.last_exit.reason
        await load.more(100)
    assert load.failed == []
    counters = tree_of(host).leaf("probing.v1", "0").counters()
    assert counters.oom_kills >= 2
    assert counters.memory_peak_bytes <= 150 * MIB
    shown = (await asyncio.to_thread(host.command, "status")).stdout
    assert "out of memory: killed at its limit of 150 MiB (peak" in shown


async def test_a_host_where_every_model_leaks_goes_on(repository: Path, make_host: MakeHost) -> None:
    names = ("first", "second", "third")
    for name in names:
        write_probing(repository, name, resources={"memory": "120MiB"})
    host = make_host(repository, settings=FULL)
    await asyncio.to_thread(host.start)

    def host_pids() -> dict[str, int]:
        words = {"host.front", "host.control", "supervisor.supervisord"}
        return {word: pid for pid, command in host.pids().items() for word in words & set(command)}

    before = host_pids()
    assert len(before) == 3
    for count in (1, 2):
        leaks = [asyncio.to_thread(told, host, "allocate", name) for name in names]
        assert await asyncio.gather(*leaks) == [(502, "WORKER_DIED")] * 3
        assert host.call("GET", "/v2/health/live").status == 200
        for name in names:
            await asyncio.to_thread(died, host, f"{name}.v1:0", DeathKind.OOM, count)
    assert host_pids() == before
    assert [await asyncio.to_thread(told, host, "double 2", name) for name in names] == [4.0] * 3


@pytest.mark.parametrize(
    ("action", "kind", "reason"),
    [
        ("leave 7", DeathKind.EXIT, "exit code 7"),
        ("leave 0", DeathKind.EXIT, "ended by itself (exit code 0)"),
        ("crash -", DeathKind.SIGNAL, "killed by SIGSEGV"),
        ("hang -", DeathKind.HANG, "hung: predict did not return within hang_s = 1 s"),
    ],
)
def test_a_death_has_a_cause(repository: Path, make_host: MakeHost, action: str, kind: DeathKind, reason: str) -> None:
    write_probing(repository, limits={"hang_s": 1})
    host = make_host(repository, settings=FULL)
    host.start()
    assert told(host, action) == (502, "WORKER_DIED")
    slot = died(host, "probing.v1:0", kind)
    assert slot.last_exit is not None
    assert slot.last_exit.reason == reason
    assert slot.last_exit.log
    # Control forgets nothing when it dies itself.
    (control,) = [pid for pid, words in host.pids().items() if "host.control" in words]
    host.kill(control)
    until(lambda: host.slot("control").pid not in (0, control), "control is back", 30.0)
    assert host.slot("probing.v1:0").last_exit == slot.last_exit


def test_a_death_while_it_starts_is_told_by_up(repository: Path, make_host: MakeHost) -> None:
    package = write_probing(repository, resources={"memory": "150MiB"})
    (package / "at_load").write_text("allocate -")
    host = make_host(repository, settings=FULL)
    with pytest.raises(
        AssertionError, match=r"probing\.v1:0 ended while it started \(out of memory: killed at its limit"
    ):
        host.start()
    assert host.wait_for_end() == 1


def test_a_crash_loop_backs_off_until_an_operator_restarts_it(repository: Path, make_host: MakeHost) -> None:
    package = write_probing(repository)
    host = make_host(repository, settings=FULL)
    host.start()
    (package / "at_load").write_text(f"grandchild mh{os.getpid()}b\nleave 9")
    assert told(host, "crash -") == (502, "WORKER_DIED")

    def resting(lives: int) -> SlotStatus | None:
        now = host.slot("probing.v1:0")
        return now if now.backoff and now.backoff.short_lives >= lives else None

    for lives in (5, 6, 7, 8):
        slot = until(lambda: resting(lives), "the slot backs off", 60)  # noqa: B023
        left = tree_of(host).leaf("probing.v1", "0").pids()
        assert slot is not None and slot.backoff is not None and slot.last_exit is not None
        assert slot.last_exit.reason == "exit code 9"
        # Whoever comes late to a pause looks at the next one, which is twice as long.
        if time.time() < slot.backoff.until and slot.backoff.until - slot.last_exit.at > 0.9:
            break
    assert slot.backoff.until - slot.last_exit.at > 0.9
    # While it waits nothing of the lives before is left but the launcher itself, outside of the cgroup.
    assert left == []
    shown = host.command("status").stdout
    assert "short lives since" in shown or "exit code 9" in shown
    failed = host.command("restart", "probing")
    assert (failed.returncode, "exit code 9" in failed.stderr) == (1, True)
    (package / "at_load").unlink()
    done = host.command("restart", "probing.v1:0")
    assert done.returncode == 0, done.stderr
    slot = host.slot("probing.v1:0")
    assert (slot.ready, slot.backoff) == (True, None)
    assert host.command("restart", "nobody").returncode == 2


# -- what is left ---------------------------------------------------------------------------------------------------
def named(name: str) -> list[int]:
    """Living processes that call themselves so."""
    found = []
    for path in [one / "comm" for one in Path("/proc").glob("[0-9]*")]:
        try:
            if path.read_text().strip() == name:
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


@pytest.mark.parametrize("how", ["dies", "is stopped", "host stops"])
def test_grandchildren_do_not_outlive_their_slot(repository: Path, how: str) -> None:
    write_probing(repository)
    name = f"mh{os.getpid()}{how[0]}"
    with RunningHost(repository, settings=FULL) as host:
        host.start()
        assert told(host, f"grandchild {name}") == "left"
        assert len(named(name)) == 1
        if how == "dies":
            assert told(host, "leave 1") == (502, "WORKER_DIED")
            died(host, "probing.v1:0", DeathKind.EXIT)
            told_of = "killed 1 processes that the slot's last one left"
            until(lambda: told_of in host.log("probing.v1:0"), "the log tells of it")
        elif how == "is stopped":
            supervisorctl = [
                sys.executable,
                "-m",
                "supervisor.supervisorctl",
                "-c",
                str(host.run_dir.supervisor_config),
            ]
            subprocess.run([*supervisorctl, "stop", "probing.v1:0"], check=True, capture_output=True, timeout=30)
        if how != "host stops":
            until(lambda: not named(name), "the grandchild is gone", 30.0)
    assert named(name) == []


def test_a_killed_host_leaves_cgroups_only_until_the_next_one(repository: Path, make_host: MakeHost) -> None:
    write_probing(repository)
    host = make_host(repository, settings=FULL)
    host.start()
    tree = tree_of(host)
    host.kill_all()
    until(lambda: not host.pids(), "everything is dead")
    assert tree.path.is_dir()
    assert host.wait_for_end() == -9
    assert host.command("down").returncode == 0
    assert not tree.path.exists()
