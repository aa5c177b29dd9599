"""Changes of what should run, on a real host and under load: no request fails, whatever happens on the way."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from clients import off_loop
from hosts import HandHost, RunningHost, read_answer, tensors, until
from versions import watched, write_versions

from host.cli.listeners import listening_inodes
from host.config.history import read_history
from host.front.fast_lane import FAREWELL_S
from host.manifest import MANIFEST_FILE, encode_manifest, list_files, make_manifest
from host.protocol.package import read_package

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MakeHost = Callable[..., RunningHost]

ONE = tensors(x=("INT64", [1, 1], [1]))

TRIES = 5
"""How often a measurement is made again when this machine, and not the host, has spoilt it."""


def deploy(host: RunningHost, *models: tuple[str, str, int], more: str = "") -> None:
    """Write the deployment file: name, version, processes of each."""
    host.deployment_file.write_text(
        "".join(
            f'[[models]]\nname = "{name}"\nversion = "{version}"\nprocesses = {processes}\n{more}'
            for name, version, processes in models
        )
    )


def pid_of(host: RunningHost, word: str) -> int:
    """The process with a word in its command; not a fork of it that is about to become something else."""

    def found() -> int | None:
        pids = [pid for pid, words in host.pids().items() if word in words]
        return next((pid for pid in pids if parent_of(pid) not in pids), None)

    pid = until(found, f"{word} is there")
    assert pid is not None
    return pid


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


async def command(host: RunningHost, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(host.command, *arguments)


async def applied(host: RunningHost) -> subprocess.CompletedProcess[str]:
    done = await command(host, "apply", "--wait")
    assert done.returncode == 0, done.stderr + host.logs()
    return done


def groups(host: RunningHost) -> set[str]:
    """What supervisord, the cgroups, sockets and plans hold of model versions, and what of it differs."""
    status = host.status()
    shown = {slot.name.partition(":")[0] for model in status.models for slot in model.slots}
    sockets = {path.name for path in host.run_dir.sockets.iterdir()} - {"features"}
    plans = {path.name.partition(":")[0] for path in host.run_dir.slots.glob("*.v*.json")}
    cgroups = {path.name for path in host.cgroups("*.v*")}
    assert sockets == plans == shown, (sockets, plans, shown)
    assert not cgroups or cgroups == shown
    assert status.unwanted == ()
    return shown


def settled_versions(host: RunningHost) -> list[str] | None:
    """Which versions run once nothing is under way; a change that has only just been written is not yet known."""
    status = host.status()
    return [model.version for model in status.models] if status.settled else None


async def test_versions_follow_each_other_and_no_request_fails(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2", "3"])
    host = make_host(repository, fronts=2)
    deploy(host, ("versioned", "1", 2))
    host.start()
    limit_bytes = 128 << 20
    peak = 0
    loop = asyncio.get_running_loop()
    async with watched(host) as watch:
        shifts = [(loop.time(), "1")]
        await watch.more(200)
        for version in ("2", "3"):
            deploy(host, ("versioned", version, 2))
            said = (await applied(host)).stdout
            assert f"version {int(version) - 1} -> {version}" in said
            shifts.append((loop.time(), version))
            await watch.more(200)
            peak = max(peak, memory_limits_bytes(host))
        done = await command(host, "rollback", "versioned", "--wait")
        assert done.returncode == 0, done.stderr
        await watch.more(200)
    assert watch.failed == []
    assert watch.versions[0] == "1"
    assert watch.versions[-1] == "2"
    assert set(watch.counts) == {"1", "2", "3"}
    assert peak <= 4 * limit_bytes
    assert 'version = "2"' in host.deployment_file.read_text()
    assert groups(host) == {"versioned.v2"}
    # Both fronts change within a moment of each other, and no version comes back. An answer may be read late.
    asked_once_2_served = [version for asked, _, version in watch.answers if asked > shifts[1][0]]
    assert "1" not in asked_once_2_served


async def test_nothing_may_run_where_the_file_says_so(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository)
    host.deployment_file.write_text("models = []\n")
    host.start()
    path = "/v2/models/versioned/infer"

    async def asked() -> int:
        answer = await asyncio.to_thread(host.call, "POST", path, json.dumps(ONE).encode())
        return answer.status

    assert host.call("GET", "/v2/health/ready").status == 200
    assert await asked() == 404
    deploy(host, ("versioned", "1", 2))
    await applied(host)
    assert await asked() == 200
    host.deployment_file.write_text("models = []\n")
    await applied(host)
    assert (await asked(), groups(host)) == (404, set())
    assert (await command(host, "status")).returncode == 0
    assert (await command(host, "doctor")).returncode == 0


def memory_limits_bytes(host: RunningHost) -> int:
    """The sum of the limits in force of all workers."""
    return sum(int(path.read_text()) for path in host.cgroups("*.v*/*/memory.limit_in_bytes"))


FAULTS = {
    "crash": r"killed by SIGSEGV",
    "raise": r"exit code 1\n(.*\n)*.*no such weights",
    "hang": r"not ready within startup_s = 3 s",
    "memory": r"out of memory: killed at its limit of 128 MiB",
    "golden": r"a golden case failed\n(.*\n)*.*its own number",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_version_that_does_not_start_leaves_the_old_one_untouched(
    fault: str, repository: Path, make_host: MakeHost
) -> None:
    write_versions(repository, ["2", "3"], fault=fault)
    host = make_host(repository)
    deploy(host, ("versioned", "2", 2))
    host.start()
    before = host.worker_pids_of("versioned.v2")
    async with watched(host) as watch:
        deploy(host, ("versioned", "3", 2))
        done = await command(host, "apply", "--wait")
        await watch.more(50)
    assert done.returncode == 1, done.stdout
    assert re.search(f"versioned version 3: {FAULTS[fault]}", done.stderr), done.stderr
    assert watch.failed == []
    assert set(watch.counts) == {"2"}
    assert host.worker_pids_of("versioned.v2") == before
    until(lambda: not any(path.name == "versioned.v3" for path in host.run_dir.sockets.iterdir()), "it is removed")
    assert host.worker_pids_of("versioned.v3") == {}
    status = host.command("status")
    assert status.returncode == 1
    assert "given up" in status.stdout
    # What failed is tried again with the next apply, and a version that works ends it.
    deploy(host, ("versioned", "2", 2))
    assert (await command(host, "apply", "--wait")).returncode == 0
    assert host.command("status").returncode == 0
    assert host.worker_pids_of("versioned.v2") == before


async def test_a_version_with_wrong_checksums_is_refused(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["2", "3"])
    package = repository / "versioned" / "3"
    manifest = make_manifest(package, read_package(package), list_files(package, ()))
    (package / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    (package / "model.py").write_text((package / "model.py").read_text().replace("VERSION = 3", "VERSION = 4"))
    host = make_host(repository)
    deploy(host, ("versioned", "2", 2))
    host.start()
    before = host.pids()
    async with watched(host) as watch:
        deploy(host, ("versioned", "3", 2))
        done = await command(host, "apply", "--wait")
        await watch.more(50)
    assert (done.returncode, "model.py: sha256: expected " in done.stderr) == (2, True), done.stderr
    assert watch.failed == []
    assert set(watch.counts) == {"2"}
    assert groups(host) == {"versioned.v2"}
    assert before.keys() <= host.pids().keys()


async def test_scaling_touches_only_the_slots_that_change(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    write_versions(repository, ["1"], name="other")
    host = make_host(repository)
    deploy(host, ("versioned", "1", 1), ("other", "1", 2))
    host.start()
    others, first = host.worker_pids_of("other.v1"), host.worker_pids_of("versioned.v1")
    async with watched(host) as watch, watched(host, "other", 2) as other:
        await watch.more(50)
        assert (await command(host, "scale", "versioned=4", "--wait")).returncode == 0
        four = host.worker_pids_of("versioned.v1")
        await watch.more(50)
        assert (await command(host, "scale", "versioned=2", "--wait")).returncode == 0
        await off_loop(lambda: len(host.worker_pids_of("versioned.v1")) == 2, "two slots are left")
        two = host.worker_pids_of("versioned.v1")
        await watch.more(50)
    assert watch.failed == other.failed == []
    assert (first.keys(), four.keys(), two.keys()) == ({0}, {0, 1, 2, 3}, {0, 1})
    assert first.items() <= four.items()
    assert two.items() <= four.items()
    assert host.worker_pids_of("other.v1") == others
    assert "processes = 2" in host.deployment_file.read_text()


async def test_a_file_applied_twice_changes_nothing(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 2))
    host.start()
    before = host.pids()
    done = host.command("apply", "--wait", "--json")
    document = json.loads(done.stdout)
    assert [(one["name"], one["state"], one["ready"]) for one in document.pop("models")] == [
        ("versioned", "serving", 2)
    ]
    assert document == {
        "running": True, "changed": False, "written": False, "retried": False, "generation": 0, "differences": [],
        "converged": True, "failures": [], "problems": [], "error": "", "file": str(host.deployment_file),
        "previous": host.deployment_file.read_text(),
    }  # fmt: skip
    assert host.pids() == before
    assert [change.what for change in read_history(host.run_dir.history)] == ["up"]


async def test_what_an_operator_stopped_stays_so_until_the_next_apply(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 2))
    host.start()
    host.supervisorctl("stop", "versioned.v1:1")
    until(lambda: host.slot("versioned.v1:1").state == "STOPPED", "it is stopped")
    host.kill(pid_of(host, "host.control"))
    until(lambda: host.status().ready is False, "control is back")
    assert host.slot("versioned.v1:1").state == "STOPPED"
    assert host.command("apply", "--dry-run").stdout == "nothing to change\n"
    assert host.slot("versioned.v1:1").state == "STOPPED"
    assert host.command("apply", "--wait").returncode == 0
    assert host.slot("versioned.v1:1").ready


@pytest.mark.parametrize("victim", ["host.control", "supervisor.supervisord"])
async def test_a_rollout_is_finished_whoever_dies(victim: str, repository: Path, make_host: MakeHost) -> None:
    """At ten random points each: between the start of the change and some time after its end."""
    write_versions(repository, ["1", "2"])
    host = make_host(repository, settings={"drain-s": 2})
    deploy(host, ("versioned", "1", 2))
    host.start()
    chance = random.Random(7)  # noqa: S311 - any points will do, the same each time
    for turn in range(10):
        version = "2" if turn % 2 == 0 else "1"
        deploy(host, ("versioned", version, 2))
        done = host.command("apply")
        assert done.returncode == 0, done.stderr
        await asyncio.sleep(chance.uniform(0, 1.2))
        os.kill(pid_of(host, victim), signal.SIGKILL)
        if victim == "supervisor.supervisord":
            await asyncio.sleep(chance.uniform(0, 0.5))

        def converged(version: str = version) -> bool:
            status = host.status()
            return status.settled and status.ready and [one.version for one in status.models] == [version]

        await off_loop(converged, f"turn {turn}: version {version} is what runs")
        assert groups(host) == {f"versioned.v{version}"}
        workers = [words for words in host.pids().values() if any("by_path.py" in word for word in words)]
        assert len(workers) == 2, workers
        await off_loop(lambda: host.is_ready("versioned"), "the front serves")
        assert host.infer("versioned", ONE).document["model_version"] == version


async def test_a_front_is_restarted_and_no_request_fails(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository, fronts=2)
    deploy(host, ("versioned", "1", 2))
    host.start()
    for _ in range(TRIES):
        async with watched(host, clients=16) as watch:
            for front in ("front:0", "front:1", "front:0"):
                await watch.more(100)
                await asyncio.to_thread(host.supervisorctl, "restart", front)
                # For supervisord it runs once it has lived for a second, whether it listens by then or not.
                await off_loop(lambda: len(listening_inodes(host.port)) == 2, "both listen")
                await watch.more(100)
        if not watch.was_late:
            break
    assert watch.failed == []


def test_a_front_that_stands_still_while_it_stops_answers_what_came_meanwhile(
    repository: Path, make_hand_host: Callable[..., HandHost]
) -> None:
    write_versions(repository, ["1"])
    host = make_hand_host(repository)
    host.start_worker("versioned")
    for _ in range(TRIES):
        front = host.start_front()
        until(host.is_ready, "it is ready", 30)
        with closing(host.connect()) as connection:
            ask(connection)
            assert read_answer(connection).status == 200
            stopped, drained = time.monotonic(), host.log("front:0").count(" draining: ")
            front.send_signal(signal.SIGTERM)
            until(lambda: host.log("front:0").count(" draining: ") > drained, "it has begun to stop")  # noqa: B023
            time.sleep(FAREWELL_S / 10)
            front.send_signal(signal.SIGSTOP)
            was_in_time = time.monotonic() - stopped < FAREWELL_S / 2
            # One that was closed before the request came would say nothing.
            if was_in_time:
                ask(connection)
                time.sleep(FAREWELL_S)  # beyond the end of its farewell
            front.send_signal(signal.SIGCONT)
            if was_in_time:
                answer = read_answer(connection)
        assert front.wait(30) == 0
        if was_in_time:
            break
    assert was_in_time, "it could not be stopped in the middle of its farewell"
    assert answer.status == 200
    assert answer.headers["connection"] == "close"


def ask(connection: http.client.HTTPConnection) -> None:
    """Send a request and do not read its answer."""
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v2/models/versioned/infer", body=json.dumps(ONE), headers=headers)


async def test_everything_is_restarted_one_by_one_and_no_request_fails(repository: Path, make_host: MakeHost) -> None:
    """As when another release of modelhost takes over."""
    write_versions(repository, ["1"])
    host = make_host(repository, fronts=2)
    deploy(host, ("versioned", "1", 2))
    host.start()
    for _ in range(TRIES):
        before = set(host.pids())
        async with watched(host, clients=16) as watch:
            done = await command(host, "restart", "front", "control", "versioned")
            assert done.returncode == 0, done.stderr
            await watch.more(100)
        if not watch.was_late:
            break
    assert watch.failed == []
    assert len(before & set(host.pids())) == 2, "up and supervisord are what they were"


async def test_the_only_process_of_a_model_is_restarted_and_no_request_fails(
    repository: Path, make_host: MakeHost
) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 1))
    host.start()
    before = host.slot("versioned.v1:0").pid
    async with watched(host, clients=4) as watch:
        done = await command(host, "restart", "versioned")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "versioned.v1: restarting ...\nversioned.v1:0: ready\n"
        assert host.slot("versioned.v1:0").pid != before
        await off_loop(lambda: host.status().unwanted == (), "the process more is gone")
        await watch.more(50)
    assert watch.failed == []
    assert read_history(host.run_dir.history)[-1].what == "restart versioned"
    assert groups(host) == {"versioned.v1"}
    assert [slot.name for model in host.status().models for slot in model.slots] == ["versioned.v1:0"]
    with_room = host.command("restart", "versioned", "--in-place")
    assert with_room.returncode == 0, with_room.stderr


async def test_threads_change_with_a_restart_and_no_request_fails(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 2))
    host.start()
    before = {name: host.slot(name).pid for name in ("versioned.v1:0", "versioned.v1:1")}
    async with watched(host, clients=4) as watch:
        deploy(host, ("versioned", "1", 2), more="threads = 2")
        done = await applied(host)
        assert done.returncode == 0, done.stderr
        assert "threads 1 -> 2" in done.stdout
        for name, pid in before.items():
            now = host.slot(name).pid
            assert now != pid
            assert b"OMP_THREAD_LIMIT=2" in environment(now)
        await watch.more(50)
    assert watch.failed == []


async def test_a_host_that_drains_says_so_and_serves(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository)
    host.start()
    assert host.command("drain").returncode == 0
    assert not host.is_ready()
    assert host.infer("versioned", ONE).status == 200
    assert host.command("drain").stdout == "nothing to change\n"
    assert host.command("drain", "--off").returncode == 0
    assert host.is_ready()


async def test_a_host_that_stops_is_not_ready_for_its_grace_and_serves(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    for grace_s in (1, 5, 20):
        host = make_host(repository, settings={"grace-s": grace_s})
        host.start()
        down = host.begin("down", f"--grace-s={grace_s}")
        assert down.stdout is not None
        assert down.stdout.readline().startswith("draining ")
        begun = time.monotonic()
        until(lambda host=host: not host.is_ready(), "it says that it is not ready", 30)
        try:
            status = host.infer("versioned", ONE).status
        except OSError:
            status = 0
        took_s = time.monotonic() - begun
        assert down.wait(60) == 0
        down.communicate()
        # Once more, with a longer one, if the grace was over before it was asked.
        if status == 200 or took_s < 0.8 * grace_s:
            break
    assert status == 200


async def test_what_cannot_run_is_refused_before_anything_changes(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 1))
    host.start()
    before = host.pids()
    for text, words in (
        ('[[models]]\nname = "versioned"\nversion = "9"', 'expected a version of versioned: 1, 2, received "9"'),
        ('[[models]]\nname = "versioned"\nversion = "2"\nmemory = "4096GiB"', "memory: expected limits of at most"),
        ('[[models]]\nname = "versioned"\nprocesses = 0', "processes"),
        ("[[models]", "deployment.toml"),
        ('[[models]]\nname = "unknown"', "expected a model of"),
    ):
        host.deployment_file.write_text(text)
        done = host.command("apply", "--wait")
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert host.pids() == before
    assert [change.what for change in read_history(host.run_dir.history)] == ["up"]
    assert host.command("scale", "nobody=2").returncode == 2
    assert host.command("rollback", "versioned").returncode == 2


async def test_memory_and_cpus_change_while_the_processes_run(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 2))
    host.start()
    before = host.worker_pids_of("versioned.v1")
    limit_bytes = memory_limits_bytes(host)
    async with watched(host) as watch:
        deploy(host, ("versioned", "1", 2), more='memory = "192MiB"\n')
        assert "memory 128 MiB -> 192 MiB" in (await applied(host)).stdout
        await watch.more(50)
    assert watch.failed == []
    assert host.worker_pids_of("versioned.v1") == before
    assert (limit_bytes, memory_limits_bytes(host)) in ((256 << 20, 384 << 20), (0, 0))


async def test_a_model_comes_and_goes_while_the_host_runs(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1"])
    write_versions(repository, ["1"], name="other")
    host = make_host(repository)
    deploy(host, ("versioned", "1", 1))
    host.start()
    assert host.infer("other", ONE).status == 404
    async with watched(host) as watch:
        deploy(host, ("versioned", "1", 1), ("other", "1", 1))
        await applied(host)
        assert host.infer("other", ONE).status == 200
        deploy(host, ("versioned", "1", 1))
        await applied(host)
        assert host.infer("other", ONE).status == 404
    assert watch.failed == []
    assert groups(host) == {"versioned.v1"}


async def test_queued_requests_finish_on_their_version(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"], predict_s=0.2)
    host = make_host(repository)
    deploy(host, ("versioned", "1", 1))
    host.start()
    async with watched(host, clients=24) as watch:
        await watch.more(24)
        deploy(host, ("versioned", "2", 1))
        await applied(host)
        await watch.more(24)
    assert watch.failed == []
    assert watch.versions == ["1", "2"] or set(watch.versions) == {"1", "2"}


async def test_a_model_is_scaled_by_its_load_and_back(repository: Path, make_host: MakeHost) -> None:
    """One process makes 20 requests a second; eight clients ask for twice that and more."""
    write_versions(repository, ["1"], predict_s=0.05)
    host = make_host(repository)
    host.deployment_file.write_text(
        '[[models]]\nname = "versioned"\nversion = "1"\nmin_processes = 1\nmax_processes = 2\n'
    )
    host.start()
    first = host.worker_pids_of("versioned.v1")
    assert list(first) == [0]
    async with watched(host, clients=8) as watch:
        await off_loop(lambda: host.status().models[0].ready == 2, "a second process is ready")
        await watch.more(40)
    assert watch.failed == []
    assert first.items() <= host.worker_pids_of("versioned.v1").items()


async def test_a_model_without_a_process_starts_with_the_first_request(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"], timeout_ms=30_000)  # of which a start on a busy machine is a part
    host = make_host(repository)
    host.deployment_file.write_text(
        '[[models]]\nname = "versioned"\nversion = "1"\nmin_processes = 0\nmax_processes = 2\n'
    )
    host.start()
    assert host.worker_pids_of("versioned.v1") == {}
    assert host.is_ready("versioned")
    answers = await asyncio.gather(*(asyncio.to_thread(host.infer, "versioned", ONE) for _ in range(8)))
    assert [answer.status for answer in answers] == [200] * 8
    assert list(host.worker_pids_of("versioned.v1")) == [0]
    # A new version has to prove itself.
    host.deployment_file.write_text(host.deployment_file.read_text().replace('version = "1"', 'version = "2"'))
    await applied(host)
    assert host.infer("versioned", ONE).document["model_version"] == "2"


CANARY = """
[[models]]
name = "versioned"
version = "2"
canary_percent = 20
[models.judge]
window_s = {window_s}
min_requests = 50
max_failed_percent = 2
max_slowdown = 1000
promote = true
"""


async def test_a_canary_that_fails_is_rolled_back_by_itself(repository: Path, make_host: MakeHost) -> None:
    """A tenth of its requests fail: it is found out within its window, and the file says what happened."""
    write_versions(repository, ["1", "2"], failing_each=10)
    host = make_host(repository, fronts=2)
    deploy(host, ("versioned", "1", 2), more=CANARY.format(window_s=30))
    host.start()
    async with watched(host) as watch:
        await off_loop(lambda: "canary_percent" not in host.deployment_file.read_text(), "it is rolled back")
        await off_loop(lambda: settled_versions(host) == ["1"], "it has left")
    assert set(watch.counts) == {"1", "2"}
    # The canary has at most a fifth of them, and fails with a tenth of these.
    assert 0 < len(watch.failed) < 0.04 * len(watch.answers)
    assert groups(host) == {"versioned.v1"}
    last = read_history(host.run_dir.history)[-1]
    assert last.who == "control"
    assert "canary versioned.v2 rolled back" in last.what
    assert "requests failed" in last.what


async def test_a_canary_that_is_as_good_is_promoted_by_itself(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 2), more=CANARY.format(window_s=2))
    host.start()
    async with watched(host) as watch:
        await off_loop(lambda: "canary_percent" not in host.deployment_file.read_text(), "it is promoted")
        await off_loop(lambda: host.status().settled and len(host.status().models) == 1, "the old version has left")
    assert watch.failed == []
    assert groups(host) == {"versioned.v2"}
    assert [model.wanted for model in host.status().models] == [2]


async def test_a_canary_is_taken_away_or_promoted_by_hand(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository)
    deploy(host, ("versioned", "1", 1))
    host.start()
    canary = CANARY[: CANARY.index("[models.judge]")]
    async with watched(host) as watch:
        plain = host.deployment_file.read_text()
        host.deployment_file.write_text(plain + canary)
        await applied(host)
        assert groups(host) == {"versioned.v1", "versioned.v2"}
        await watch.more(200)
        assert (await command(host, "rollback", "versioned", "--wait")).returncode == 0
        assert host.deployment_file.read_text().strip() == plain.strip()
        assert groups(host) == {"versioned.v1"}
        host.deployment_file.write_text(plain + canary)
        await applied(host)
        assert (await command(host, "promote", "versioned", "--wait")).returncode == 0
        assert groups(host) == {"versioned.v2"}
        assert (await command(host, "promote", "versioned")).returncode == 2
    assert watch.failed == []
    assert set(watch.counts) == {"1", "2"}
