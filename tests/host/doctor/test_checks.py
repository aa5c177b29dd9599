"""Facts in, findings out: each check at each level, and at its limits."""

from __future__ import annotations

import dataclasses
from typing import Final

import pytest

from host.cli.listeners import ListeningProcess
from host.doctor.checks import (
    INODES_LOW,
    SPACE_LOW_BYTES,
    SPACE_NONE_BYTES,
    check_clock,
    check_configuration,
    check_disk,
    check_environments,
    check_isolation,
    check_limits,
    check_memory,
    check_ports,
    check_sockets,
)
from host.doctor.facts import (
    ClockFacts,
    ConfigurationFacts,
    DiskFacts,
    EnvironmentFacts,
    IsolationFacts,
    LimitFacts,
    MemoryFacts,
    PathFacts,
    PortFacts,
    Room,
    SocketFacts,
    SpaceFacts,
)
from host.doctor.findings import Finding, Level

GIB: Final = 1 << 30
MIB: Final = 1 << 20
OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL


def levels(findings: list[Finding]) -> list[Level]:
    """Their levels; what is not ok says what to do, and only that."""
    assert all(bool(one.what_to_do) == (one.level is not OK) for one in findings)
    return [one.level for one in findings]


def test_configuration_is_one_finding_for_each_problem() -> None:
    facts = ConfigurationFacts(source="d.toml", problems=(), versions=2, processes=3)
    assert levels(check_configuration(facts)) == [OK]
    problems = ("/r/m/1/model.toml: runtime: expected one", "nothing to split")
    found = check_configuration(dataclasses.replace(facts, problems=problems))
    assert levels(found) == [FAIL, FAIL]
    assert [(one.subject, one.what) for one in found] == [
        ("/r/m/1/model.toml", "runtime: expected one"),
        ("d.toml", "nothing to split"),
    ]


def test_environments_are_built_and_start() -> None:
    good = EnvironmentFacts(python="/e/bin/python", models=("churn",), built=True, problem="", took_s=0.2)
    unbuilt = dataclasses.replace(good, built=False)
    broken = dataclasses.replace(good, problem="No module named 'numpy'")
    shared = dataclasses.replace(broken, models=())
    found = check_environments([good, unbuilt, broken, shared])
    assert levels(found) == [OK, FAIL, FAIL, FAIL]
    assert found[1].what_to_do == "modelhost build churn"
    assert "numpy" in found[2].what
    assert "model_python" in found[3].what_to_do
    assert check_environments([]) == []


def test_ports_without_a_host() -> None:
    facts = PortFacts(address="127.0.0.1", port=8080, running=False, bind_problem="")
    assert levels(check_ports(facts)) == [OK]
    taken = check_ports(dataclasses.replace(facts, bind_problem="address already in use by pid 7 (nginx)"))
    assert levels(taken) == [FAIL]
    assert taken[0].subject == "127.0.0.1 port 8080"
    assert "pid 7" in taken[0].what


def test_ports_of_a_host() -> None:
    facts = PortFacts(
        address="0.0.0.0",  # noqa: S104 - a value to show
        port=80,
        running=True,
        bind_problem="",
        fronts=("front:0", "front:1"),
    )
    assert levels(check_ports(facts)) == [OK]
    assert check_ports(facts)[0].what == "front:0, front:1 listens, and nobody else"
    deaf = check_ports(dataclasses.replace(facts, deaf=("front:1",)))
    assert levels(deaf) == [FAIL]
    assert deaf[0].what_to_do.endswith("modelhost restart front")
    assert levels(check_ports(dataclasses.replace(facts, others=(ListeningProcess(9, "nc"),)))) == [WARN]


@pytest.mark.parametrize(("setting", "level"), [("best-effort", WARN), ("required", FAIL)])
def test_isolation_that_is_missing(setting: str, level: Level) -> None:
    facts = IsolationFacts(setting=setting, cgroup_version=2, cgroup="/sys/fs/cgroup/m", missing=())
    assert levels(check_isolation(facts)) == [OK, OK]
    user = dataclasses.replace(facts, missing=("a user of each model's own: not root",))
    assert levels(check_isolation(user)) == [level, OK]
    nothing = dataclasses.replace(facts, cgroup_version=0, missing=("cgroups: no memory controller is mounted",))
    found = check_isolation(nothing)
    assert levels(found) == [level]
    assert (found[0].subject, found[0].what) == ("cgroups", "not allowed here: no memory controller is mounted")


def test_isolation_of_a_process_outside_its_cgroup() -> None:
    facts = IsolationFacts(setting="best-effort", cgroup_version=1, cgroup="/c", missing=(), outside=("m.v1:0",))
    found = check_isolation(facts)
    assert found[0].level is FAIL
    assert (found[0].subject, found[0].what_to_do) == ("m.v1:0", "modelhost restart m.v1:0")


LIMITS: Final = LimitFacts(open_files_needed=5000, open_files_allowed=None, open_files_in_force={}, rooms=())


@pytest.mark.parametrize(("allowed", "level"), [(0, FAIL), (4999, FAIL), (5000, OK), (5001, OK), (None, OK)])
def test_limits_of_open_files(allowed: int | None, level: Level) -> None:
    assert levels(check_limits(dataclasses.replace(LIMITS, open_files_allowed=allowed))) == [level]


@pytest.mark.parametrize(("in_force", "level"), [(4999, FAIL), (5000, OK)])
def test_limits_in_force(in_force: int, level: Level) -> None:
    found = check_limits(dataclasses.replace(LIMITS, open_files_in_force={"front:0": in_force}))
    assert levels(found) == [level]


@pytest.mark.parametrize(
    ("used", "needed", "level"),
    [(0, 0, OK), (80, 10, OK), (80, 11, WARN), (95, 0, WARN), (90, 10, WARN), (90, 11, FAIL), (100, 0, FAIL)],
)
def test_limits_have_room(used: int, needed: int, level: Level) -> None:
    room = Room(name="kernel.pid_max", counted="threads", limit=100, used=used, needed=needed)
    found = check_limits(dataclasses.replace(LIMITS, rooms=(room,)))
    assert levels(found)[1:] == [level]
    assert found[1].subject == "kernel.pid_max"


@pytest.mark.parametrize(
    ("mode", "uid", "bad"),
    [
        (0o600, 0, 0),
        (0o400, 0, 0),
        (0o000, 1_900_000_007, 0),
        (0o601, 0, 1),
        (0o666, 0, 1),
        (0o600, 1000, 1),
        (0o660, 1000, 2),
    ],
)
def test_sockets_are_nobody_elses(mode: int, uid: int, bad: int) -> None:
    run = PathFacts(path="/run/m", mode=0o700, uid=0)
    socket = PathFacts(path="/run/m/sockets/a.v1/0.sock", mode=mode, uid=uid)
    users = range(1_900_000_000, 1_900_000_010)
    found = check_sockets(SocketFacts(run_dir="/run/m", paths=(run, socket), owner=0, model_users=users))
    assert levels(found) == [FAIL] * bad or (not bad and levels(found) == [OK])
    assert not bad or found[0].subject == socket.path


def test_the_run_directory_is_no_models() -> None:
    run = PathFacts(path="/run/m", mode=0o700, uid=1_900_000_001)
    users = range(1_900_000_000, 1_900_000_010)
    assert levels(check_sockets(SocketFacts(run_dir="/run/m", paths=(run,), owner=0, model_users=users))) == [FAIL]
    assert levels(check_sockets(SocketFacts(run_dir="/run/m", paths=(), owner=0, model_users=users))) == [OK]


@pytest.mark.parametrize(("synchronised", "level"), [(True, OK), (False, WARN), (None, OK)])
def test_clock(synchronised: bool | None, level: Level) -> None:
    assert levels(check_clock(ClockFacts(synchronised=synchronised, max_error_s=0.01))) == [level]


def space(free: int, total: int = 100 * GIB, inodes: int = 10**6, purpose: str = "run_dir") -> SpaceFacts:
    return SpaceFacts(
        purpose=purpose, path="/p", free_bytes=free, total_bytes=total, free_inodes=inodes, total_inodes=10**7
    )


def disk(one: SpaceFacts, logs: int = 0, most: int = 0) -> DiskFacts:
    return DiskFacts(spaces=(one,), logs="/p/logs", logs_bytes=logs, logs_max_bytes=most)


@pytest.mark.parametrize(
    ("free", "level"),
    [
        (0, FAIL),
        (SPACE_NONE_BYTES - 1, FAIL),
        (SPACE_NONE_BYTES, WARN),
        (SPACE_LOW_BYTES - 1, WARN),
        (SPACE_LOW_BYTES, OK),
    ],
)
def test_disk_has_room(free: int, level: Level) -> None:
    assert levels(check_disk(disk(space(free))))[0] is level
    # A full repository stops no host.
    elsewhere = levels(check_disk(disk(space(free, purpose="repository"))))[0]
    assert elsewhere is (WARN if level is FAIL else level)


@pytest.mark.parametrize(("inodes", "level"), [(0, FAIL), (1, WARN), (INODES_LOW - 1, WARN), (INODES_LOW, OK)])
def test_disk_has_inodes(inodes: int, level: Level) -> None:
    found = check_disk(disk(space(50 * GIB, inodes=inodes)))
    assert found[0].level is level
    assert level is OK or "inodes" in found[0].what


def test_disk_that_counts_no_inodes() -> None:
    assert levels(check_disk(disk(dataclasses.replace(space(50 * GIB), free_inodes=0, total_inodes=0))))[0] is OK


def test_disk_has_room_for_the_logs() -> None:
    small = space(2 * GIB, total=4 * GIB)
    assert levels(check_disk(disk(small, logs=GIB, most=3 * GIB))) == [OK, OK]
    assert levels(check_disk(disk(small, logs=GIB, most=3 * GIB + 1))) == [OK, WARN]
    old = check_disk(disk(small, logs=GIB + 1, most=40 * MIB))
    assert levels(old) == [OK, WARN]
    assert "run no more" in old[1].what_to_do


MEMORY: Final = MemoryFacts(
    total_bytes=10 * GIB,
    available_bytes=8 * GIB,
    swap_total_bytes=2 * GIB,
    swap_used_bytes=0,
    granted_bytes=4 * GIB,
    running=False,
    commit_left_bytes=None,
)


def memory(**changes: object) -> dict[str, Level]:
    found = check_memory(dataclasses.replace(MEMORY, **changes))  # type: ignore[arg-type]
    levels(found)
    return {one.subject: one.level for one in found}


def test_memory_that_is_promised_is_there() -> None:
    assert memory() == {"limits of models": OK, "available": OK, "swap": OK}
    assert memory(granted_bytes=10 * GIB + 1)["limits of models"] is FAIL
    assert memory(granted_bytes=8 * GIB)["limits of models"] is OK
    assert memory(granted_bytes=8 * GIB + 1)["limits of models"] is WARN
    # What runs has taken its part already.
    assert memory(granted_bytes=8 * GIB + 1, running=True)["limits of models"] is OK


def test_memory_that_is_left() -> None:
    assert memory(available_bytes=GIB // 2, running=True)["available"] is OK
    assert memory(available_bytes=GIB // 2 - 1, running=True)["available"] is WARN
    assert memory(swap_used_bytes=GIB)["swap"] is OK
    assert memory(swap_used_bytes=GIB + 1)["swap"] is WARN


def test_memory_that_the_kernel_counts_strictly() -> None:
    name = "vm.overcommit_memory"
    assert name not in memory(commit_left_bytes=4 * GIB)
    assert memory(commit_left_bytes=4 * GIB - 1)[name] is WARN
    assert name not in memory(commit_left_bytes=0, running=True)
