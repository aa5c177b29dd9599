"""The modules on real hosts; some of them run by Ansible, with this machine's own Python."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hosts import CHECKOUT, RunningHost, until
from versions import let_load, watched, write_versions

from host.control.status import VersionState

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MakeHost = Callable[..., RunningHost]

LIMIT_S = 120.0
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Give a directory for what Ansible keeps."""
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as path:
        yield Path(path)


class Operator:
    """Runs modules on a host."""

    def __init__(self, host: RunningHost, home: Path) -> None:
        self.host = host
        self._home = home
        self.command = host.directory / "modelhost"
        self._calls = host.directory / "calls"
        code = f'echo "$1" >>{self._calls}\nPYTHONPATH={CHECKOUT} exec {sys.executable} -P -m host.cli "$@"'
        self.command.write_text(f"#!/bin/sh\n{code}\n")
        self.command.chmod(0o755)
        self.config = host.directory / "modelhost.toml"
        self.config.write_text(f'repository = "{host.repository}"\nrun_dir = "{host.run_dir.root}"\n')

    def run(self, *words: str) -> str:
        """Run one of Ansible's programs; what it said."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:], "-i", "localhost,", "-c", "local"],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd=self._home,
            env={
                **os.environ,
                "ANSIBLE_HOME": str(self._home),
                "ANSIBLE_LIBRARY": str(CHECKOUT / "ansible" / "library"),
                "ANSIBLE_MODULE_UTILS": str(CHECKOUT / "ansible" / "module_utils"),
                "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
                "ANSIBLE_NOCOLOR": "1",
            },
        )
        return done.stdout + done.stderr

    def ad_hoc(self, name: str, *flags: str, **options: Any) -> dict[str, Any]:
        """Run a module through Ansible; its result, and all that was said as `said`."""
        arguments = json.dumps({"command": str(self.command), "config": str(self.config), **options})
        said = self.run("ansible", "localhost", "-m", name, "-a", arguments, *flags)
        found = re.search(r"^localhost \| (\w+)!? => (?=\{)", said, re.MULTILINE)
        assert found is not None, said
        result, _ = json.JSONDecoder().raw_decode(said, found.end())
        return {**result, "failed": found[1] == "FAILED", "said": said}

    def module(self, name: str, **options: Any) -> dict[str, Any]:
        """Run a module in a process of its own; its result."""
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / "tests" / "ansible" / "module_runs.py"), name],
            input=json.dumps({"command": str(self.command), "config": str(self.config), **options}),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def apply(self, text: str, *, check: bool = False, **options: Any) -> dict[str, Any]:
        return self.module("modelhost_deployment", deployment=text, check_mode=check, **options)

    def calls(self, word: str) -> int:
        """How often one of modelhost's commands was called."""
        return self._calls.read_text().split().count(word) if self._calls.exists() else 0

    def info(self) -> dict[str, Any]:
        return self.module("modelhost_info")


@pytest.fixture
def operate(home: Path) -> Callable[[RunningHost], Operator]:
    """Give a way to run modules on a host."""
    return lambda host: Operator(host, home)


Operate = Callable[[RunningHost], Operator]


def deployment(**models: tuple[str, int]) -> str:
    """A deployment file: name to version and processes."""
    return "".join(
        f'[[models]]\nname = "{name}"\nversion = "{version}"\nprocesses = {processes}\n'
        for name, (version, processes) in models.items()
    )


def everything(host: RunningHost) -> tuple[object, ...]:
    """What must not change unless something was changed."""
    text = host.deployment_file.read_bytes() if host.deployment_file.exists() else None
    history = host.run_dir.history
    return text, host.pids(), history.read_bytes() if history.exists() else None


def versions(result: dict[str, Any], key: str = "states") -> list[tuple[str, str, str, int]]:
    return [(one["name"], one["version"], one["state"], one["ready"]) for one in result[key]]


def start(make_host: MakeHost, repository: Path, text: str) -> RunningHost:
    host = make_host(repository)
    host.deployment_file.write_text(text)
    host.start()
    return host


def test_ansible_runs_them_with_a_difference_of_the_file(
    repository: Path, make_host: MakeHost, operate: Operate
) -> None:
    write_versions(repository, ["1", "2"])
    host = start(make_host, repository, deployment(versioned=("1", 1)))
    ansible, text = operate(host), deployment(versioned=("2", 1))
    before = everything(host)
    foretold = ansible.ad_hoc("modelhost_deployment", "--check", "--diff", deployment=text)
    assert everything(host) == before
    done = ansible.ad_hoc("modelhost_deployment", "--diff", deployment=text)
    for result in (foretold, done):
        assert (result["failed"], result["changed"]) == (False, True), result["said"]
        assert result["differences"] == ["versioned: version 1 -> 2"]
        assert f"--- before: {host.deployment_file}\n" in result["said"]
        assert '-version = "1"\n+version = "2"\n' in result["said"]
    info = ansible.ad_hoc("modelhost_info", "--check")
    assert versions(info, "models") == [("versioned", "2", "serving", 1)]
    refused = ansible.ad_hoc("modelhost_deployment", deployment="nonsense")
    assert refused["failed"] and "not TOML" in refused["msg"]


def test_check_mode_says_exactly_what_happens_then(repository: Path, make_host: MakeHost, operate: Operate) -> None:
    write_versions(repository, ["1", "2"])
    write_versions(repository, ["1"], name="other")
    text = deployment(versioned=("1", 1), other=("1", 1))
    host = start(make_host, repository, text)
    ansible = operate(host)
    others = host.worker_pids_of("other.v1")
    for following in (
        deployment(versioned=("2", 1), other=("1", 1)),
        deployment(versioned=("2", 2), other=("1", 1)),
        "# a comment\n" + deployment(versioned=("2", 2), other=("1", 1)),
    ):
        before = everything(host)
        foretold = ansible.apply(following, check=True)
        assert everything(host) == before
        done = ansible.apply(following)
        assert not done["failed"], done["msg"]
        assert done["changed"] and foretold["changed"]
        for key in ("differences", "generation", "previous", "file", "diff"):
            assert done[key] == foretold[key], key
        assert (done["previous"], done["diff"]["after"]) == (text, following)
        assert host.deployment_file.read_text() == following
        assert stat.S_IMODE(host.deployment_file.stat().st_mode) == 0o644
        before = everything(host)
        for check in (False, True):
            again = ansible.apply(following, check=check)
            assert (again["failed"], again["changed"], again["differences"]) == (False, False, [])
        assert everything(host) == before
        text = following
    assert versions(done) == [("versioned", "2", "serving", 2), ("other", "1", "serving", 1)]
    assert done["generation"] == 2  # a comment is none
    info = ansible.info()
    assert versions(info, "models") == versions(done)
    assert (info["running"], info["ready"], info["settled"], info["generation"]) == (True, True, True, 2)
    assert {pid for model in info["models"] for pid in model["pids"]} == {
        *host.worker_pids_of("versioned.v2").values(),
        *others.values(),
    }
    assert host.worker_pids_of("other.v1") == others


async def test_what_fails_is_served_by_the_old_version_and_previous_brings_it_back(
    repository: Path, make_host: MakeHost, operate: Operate
) -> None:
    write_versions(repository, ["1", "2"], fault="golden")
    old, new = deployment(versioned=("1", 1)), deployment(versioned=("2", 1))
    host = start(make_host, repository, old)
    ansible = operate(host)
    with ThreadPoolExecutor(1) as pool:
        async with watched(host, clients=2) as watch:
            pids = host.worker_pids_of("versioned.v1")
            failed = await off(pool, ansible.apply, new)
            assert (failed["failed"], failed["changed"], failed["converged"]) == (True, True, False)
            assert "versioned version 2: " in failed["msg"] and "what was served before is served on" in failed["msg"]
            assert "golden" in failed["reasons"]["versioned version 2"]
            assert failed["previous"] == old
            assert versions(failed) == [("versioned", "2", "failed", 0), ("versioned", "1", "replaced", 1)]
            # Once more: it is tried again, and check mode knows.
            assert (await off(pool, ansible.apply, new, check=True))["changed"]
            again = await off(pool, ansible.apply, new)
            assert (again["failed"], again["changed"], again["retried"], again["differences"]) == (True, True, True, [])
            back = await off(pool, ansible.apply, failed["previous"])
            assert (back["failed"], back["changed"], back["converged"]) == (False, True, True)
    assert watch.failed == []
    assert set(watch.counts) == {"1"}
    assert host.worker_pids_of("versioned.v1") == pids
    assert host.deployment_file.read_text() == old
    assert versions(ansible.info(), "models") == [("versioned", "1", "serving", 1)]


async def off(pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run something beside the event loop."""
    import asyncio

    return await asyncio.wrap_future(pool.submit(work, *arguments, **options))


PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - block:
        - name: Apply
          modelhost_deployment:
            deployment: "{{{{ lookup('ansible.builtin.file', '{new}', rstrip=false) }}}}"
            command: "{command}"
            config: "{config}"
          register: applied
      rescue:
        - name: Back
          modelhost_deployment:
            deployment: "{{{{ applied.previous }}}}"
            command: "{command}"
            config: "{config}"
"""


def test_a_play_rescues_itself(repository: Path, make_host: MakeHost, operate: Operate, home: Path) -> None:
    write_versions(repository, ["1", "2"], fault="crash")
    old = "# ours: {{ not a template }}\n" + deployment(versioned=("1", 1)) + "\n\n"
    host = start(make_host, repository, old)
    ansible = operate(host)
    new, play = home / "new.toml", home / "play.yml"
    new.write_text(deployment(versioned=("2", 1)))
    play.write_text(PLAY.format(new=new, command=ansible.command, config=ansible.config))
    said = ansible.run("ansible-playbook", str(play))
    assert "rescued=1" in said and "failed=0" in said, said
    assert host.deployment_file.read_text() == old
    assert [(one.version, one.state) for one in host.status().models] == [("1", VersionState.SERVING)]


def test_what_is_refused_changes_nothing(repository: Path, make_host: MakeHost, operate: Operate) -> None:
    write_versions(repository, ["1"])
    host = start(make_host, repository, deployment(versioned=("1", 1)))
    ansible = operate(host)
    before = everything(host)
    for text, problem in (
        (deployment(versioned=("9", 1)), "9"),
        (deployment(versioned=("1", 257)), "processes"),
        ("models = 3", "models"),
        ("[[models", "not TOML"),
        ("", "at least one [[models]] with a name"),
    ):
        for check in (False, True):
            result = ansible.apply(text, check=check)
            assert (result["failed"], result["changed"], len(result["problems"])) == (True, False, 1)
            assert problem in result["msg"] and str(host.deployment_file) in result["msg"]
    assert everything(host) == before


def test_a_host_that_does_not_run_gets_the_file_for_its_start(
    repository: Path, make_host: MakeHost, operate: Operate
) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository)
    ansible = operate(host)
    text = deployment(versioned=("1", 2))
    assert ansible.info()["running"] is False
    foretold = ansible.apply(text, check=True)
    assert (foretold["failed"], foretold["changed"], foretold["running"]) == (False, True, False)
    assert not host.deployment_file.exists()
    done = ansible.apply(text)
    assert done["differences"] == foretold["differences"] == ["versioned: version 1 added (2 processes, 128 MiB each)"]
    assert (done["changed"], done["running"], done["previous"], done["converged"]) == (True, False, None, None)
    assert ansible.apply(text)["changed"] is False
    refused = ansible.apply(deployment(versioned=("9", 1)))
    assert (refused["failed"], refused["changed"]) == (True, False)
    assert str(host.deployment_file) in refused["problems"][0]
    assert host.deployment_file.read_text() == text
    assert [path.name for path in host.directory.glob(".deployment*")] == []
    host.start()
    assert versions(ansible.info(), "models") == [("versioned", "1", "serving", 2)]
    assert ansible.apply(text)["changed"] is False
    # What ran is what comes after the next start, too.
    host.deployment_file.unlink()
    without_file = ansible.apply(deployment(versioned=("2", 2)))
    assert not without_file["failed"]
    assert 'version = "1"' in without_file["previous"]


def test_a_host_that_stops_meanwhile_is_told_of(repository: Path, make_host: MakeHost, operate: Operate) -> None:
    write_versions(repository, ["1", "2"], fault="wait")
    host = start(make_host, repository, deployment(versioned=("1", 1)))
    ansible = operate(host)
    with ThreadPoolExecutor(1) as pool:
        applying = pool.submit(ansible.apply, deployment(versioned=("2", 1)))
        until(lambda: host.worker_pids_of("versioned.v2"), "version 2 is begun", LIMIT_S)
        assert host.command("down").returncode == 0
        result = applying.result(LIMIT_S)
    assert (result["failed"], result["changed"], result["converged"]) == (True, True, False)
    assert result["running"] is False and "no host runs in" in result["msg"], result["msg"]
    assert host.wait_for_end() == 0


def test_control_that_dies_meanwhile_is_waited_for(repository: Path, make_host: MakeHost, operate: Operate) -> None:
    write_versions(repository, ["1", "2"], fault="wait")
    host = start(make_host, repository, deployment(versioned=("1", 1)))
    ansible = operate(host)
    with ThreadPoolExecutor(1) as pool:
        applying = pool.submit(ansible.apply, deployment(versioned=("2", 1)))
        until(lambda: host.worker_pids_of("versioned.v2"), "version 2 is begun", LIMIT_S)
        host.kill(host.slot("control").pid)
        let_load(repository, "2")
        result = applying.result(LIMIT_S)
    assert not result["failed"], result["msg"]
    assert versions(result) == [("versioned", "2", "serving", 1)]


def test_control_that_is_frozen_is_told_of(repository: Path, make_host: MakeHost, operate: Operate) -> None:
    write_versions(repository, ["1", "2"])
    text = deployment(versioned=("1", 1))
    host = start(make_host, repository, text)
    ansible, control = operate(host), host.slot("control").pid
    os.kill(control, signal.SIGSTOP)
    try:
        info = ansible.info()
        result = ansible.apply(deployment(versioned=("2", 1)))
    finally:
        os.kill(control, signal.SIGCONT)
    assert (info["failed"], info["running"], info["models"]) == (False, True, [])
    assert "control does not answer" in info["reason"]
    assert (result["failed"], result["changed"], result["previous"]) == (True, False, text)
    assert "control does not answer" in result["msg"]
    assert host.deployment_file.read_text() == text
    assert ansible.info()["ready"]


def test_a_host_that_takes_too_long_goes_on(repository: Path, make_host: MakeHost, operate: Operate) -> None:
    write_versions(repository, ["1", "2"], fault="wait")
    host = start(make_host, repository, deployment(versioned=("1", 1)))
    ansible = operate(host)
    before, text = deployment(versioned=("1", 1)), deployment(versioned=("2", 1))
    for timeout_s in (2, 10, 30):
        late = ansible.apply(text, timeout_s=timeout_s)
        # On a busy machine the shortest may be over before anything is begun, or before the host is told.
        if late["changed"] and "2" in {model.version for model in host.status().models}:
            break
        host.deployment_file.write_text(before)
    assert (late["failed"], late["changed"], late["previous"]) == (True, True, before)
    assert late["converged"] is not True
    assert host.deployment_file.read_text() == text
    let_load(repository, "2")
    after = ansible.apply(text)
    assert (after["failed"], after["changed"], after["converged"]) == (False, False, True)
    assert versions(after) == [("versioned", "2", "serving", 1)]


async def test_the_gate_sees_requests_deaths_and_what_is_not_there(
    repository: Path, make_host: MakeHost, operate: Operate
) -> None:
    write_versions(repository, ["1", "2"], failing_each=10)
    host = start(make_host, repository, deployment(versioned=("1", 1)))
    ansible = operate(host)

    def gate(**options: Any) -> dict[str, Any]:
        return ansible.module("modelhost_gate", model="versioned", **options)

    with ThreadPoolExecutor(2) as pool:
        async with watched(host, clients=2) as watch:
            await watch.more(10)
            good = await off(pool, gate, soak_s=2, min_requests=10, min_requests_required=True)
            assert good["verdict"] == "passed", good
            assert good["smoke"][0]["what"].startswith("answers its golden case 'its own number'")
            assert good["window"]["requests"] >= 10 and good["window"]["p90_ms"] > 0
            looks = ansible.calls("status")
            # Only the death can fail it: until another process is there each request does.
            watching = pool.submit(gate, version="1", soak_s=60, smoke=False, max_failed_percent=100)
            # With the second look it has seen the first one's answer.
            await off(pool, until, lambda: ansible.calls("status") >= looks + 2, "it is watched", 30)
            (pid,) = host.worker_pids_of("versioned.v1").values()
            host.kill(pid, signal.SIGSEGV)
            dead = await off(pool, watching.result, LIMIT_S)
            assert dead["failed"] and "deaths of its processes: 1, " in dead["msg"] and "SIGSEGV" in dead["msg"]
        assert not ansible.apply(deployment(versioned=("2", 1)))["failed"]
        gone = gate(version="1")
        assert gone["failed"] and "versioned.v1: is not served by this host" in gone["msg"]
        reference = {**good["window"], "failed_percent": 1.0}
        async with watched(host, clients=2):
            bad = await off(pool, gate, version="2", soak_s=60, min_requests=50, reference=reference, smoke=False)
    assert bad["failed"], bad
    assert "requests failed, 1.0 % elsewhere" in bad["msg"]
    assert 5 < bad["window"]["failed_percent"] < 15
    assert bad["window"]["watched_s"] < 60
