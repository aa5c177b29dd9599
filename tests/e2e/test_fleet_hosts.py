"""The hosts that the tests of a fleet stand on: real enough to believe, and gone without a trace."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from fleet import CommandFailed, Fleet, clean_up, left_overs
from load import Target
from traffic import Traffic

pytestmark = [pytest.mark.integration, pytest.mark.e2e]

HERE = Path(__file__).parent
NOT_A_MODEL = """\
import http.server, json

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"model_version": "7"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Served-By", "h2")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""

LIMITS_ITS_CHILD = """\
import pathlib, subprocess, sys

lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
mine = next(line.split(":")[2] for line in lines if line.split(":")[1] == "memory")
child = pathlib.Path("/sys/fs/cgroup/memory" + mine, "child")
child.mkdir()
(child / "memory.limit_in_bytes").write_text("32M")
(child / "cgroup.procs").write_text("0")
code = subprocess.run([sys.executable, "-c", "bytearray(200 << 20)"]).returncode
assert code == -9, code
assert "oom_kill 1" in (child / "memory.oom_control").read_text()
"""


def play(fleet: Fleet, tasks: Sequence[Mapping[str, object]], hosts: str = "all") -> str:
    """Run a playbook of these tasks; give what it says."""
    path = fleet.directory / "play.yml"
    path.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": tasks}]))
    return fleet.run_in_controller(["ansible-playbook", "-i", fleet.inventory, path], limit_s=180).stdout


# -- what they are --------------------------------------------------------------------------------------------------
def test_every_host_runs_systemd_and_all_of_its_units(fleet: Fleet) -> None:
    for host in fleet.addresses:
        assert fleet.ssh(host, ["systemctl", "is-system-running"]).stdout == "running\n"
        assert fleet.ssh(host, ["hostname"]).stdout == f"{host}\n"


def test_ansible_reaches_every_host(fleet: Fleet) -> None:
    said = fleet.run_in_controller(["ansible", "-i", fleet.inventory, "all", "-m", "ansible.builtin.ping"]).stdout
    assert said.count('"ping": "pong"') == len(fleet.addresses)
    said = fleet.run_in_controller(["ansible-inventory", "-i", fleet.inventory, "--list"]).stdout
    groups = json.loads(said)
    assert groups["modelhost"]["hosts"] == ["h1", "h2", "h3"]
    assert groups["haproxy"]["hosts"] == ["balancer"]
    zones = {name: variables.get("modelhost_zone") for name, variables in groups["_meta"]["hostvars"].items()}
    assert zones == {"h1": "a", "h2": "b", "h3": "c", "balancer": None}


def test_ansible_finds_the_default_address(fleet: Fleet) -> None:
    argv: list[str | Path] = [
        "ansible",
        "-i",
        fleet.inventory,
        "h2",
        "-m",
        "ansible.builtin.setup",
        "-a",
        "filter=ansible_default_ipv4",
    ]
    assert f'"address": "{fleet.addresses["h2"]}"' in fleet.run_in_controller(argv).stdout


def test_hosts_see_each_other_and_nothing_else(fleet: Fleet) -> None:
    connect = "import socket, sys; socket.create_connection((sys.argv[1], 22), 5)"
    fleet.ssh("h1", ["python3", "-c", connect, "h3"])
    refused = fleet.ssh("h1", ["python3", "-c", connect, "192.0.2.1"], check=False)  # TEST-NET-1
    assert re.search("No route to host|Network is unreachable", refused.stderr), refused.stderr


def test_a_limit_of_memory_kills(fleet: Fleet) -> None:
    argv = ["systemd-run", "--wait", "--collect", "--quiet", "--property=MemoryMax=64M", "--property=MemorySwapMax=0"]
    fleet.ssh("h1", [*argv, "python3", "-c", "bytearray(32 << 20)"])
    too_much = fleet.ssh("h1", [*argv, "--unit=glutton", "python3", "-c", "bytearray(200 << 20)"], check=False)
    assert too_much.returncode != 0
    # On cgroup v1 systemd cannot say why.
    assert "glutton.service: Main process exited, code=killed, status=9/KILL" in fleet.journal("h1", "glutton")


def test_a_unit_with_delegation_limits_its_own_children(fleet: Fleet) -> None:
    argv = ["systemd-run", "--wait", "--collect", "--quiet", "--unit=parent", "--property=Delegate=yes"]
    done = fleet.ssh("h2", [*argv, "python3", "-c", LIMITS_ITS_CHILD], check=False)
    assert done.returncode == 0, fleet.journal("h2", "parent")


def test_kernel_settings_take_and_the_machine_keeps_its_own(fleet: Fleet) -> None:
    shared = Path("/proc/sys/vm/overcommit_memory")
    before = shared.read_text()
    other = "2" if before.strip() != "2" else "0"
    fleet.ssh("h1", ["sysctl", "-w", f"vm.overcommit_memory={other}", "net.core.somaxconn=7777"])
    read = ["sysctl", "-n", "vm.overcommit_memory", "net.core.somaxconn"]
    assert fleet.ssh("h1", read).stdout.split() == [other, "7777"]
    assert fleet.ssh("h2", read).stdout.split()[0] == before.strip()
    assert shared.read_text() == before
    assert Path("/proc/sys/net/core/somaxconn").read_text() != "7777\n"


# -- what they get --------------------------------------------------------------------------------------------------
def test_debian_packages_are_installed_as_from_a_mirror(fleet: Fleet) -> None:
    assert fleet.ssh("h1", ["python3", "-m", "ensurepip", "--version"], check=False).returncode != 0, "not bare"
    install = {"ansible.builtin.apt": {"name": ["python3-venv", "libgomp1"], "update_cache": True}}
    assert "changed=1" in play(fleet, [install], "h1")
    assert "changed=0" in play(fleet, [install], "h1")
    assert "changed=1" in play(fleet, [{"ansible.builtin.apt": {"name": "haproxy", "update_cache": True}}], "haproxy")
    assert fleet.ssh("balancer", ["systemctl", "is-active", "haproxy"]).stdout == "active\n"


# -- power and traffic ----------------------------------------------------------------------------------------------
def test_power_goes_without_a_goodbye_and_comes_back_with_the_same_disk(fleet: Fleet) -> None:
    fleet.ssh("h3", ["sh", "-c", "echo kept >/srv/file; logger --tag test before-the-cut; journalctl --sync"])
    start_s = time.monotonic()
    fleet.power_off("h3")
    assert time.monotonic() - start_s < 15
    assert not fleet.is_on("h3")
    with pytest.raises(CommandFailed, match=r"No route to host|timed out"):
        fleet.ssh("h3", ["true"])
    assert "before-the-cut" in fleet.journal("h3")
    fleet.power_on("h3")
    assert fleet.ssh("h3", ["cat", "/srv/file"]).stdout == "kept\n"
    assert "before-the-cut" in fleet.journal("h3")


def test_traffic_shows_what_became_of_each_request(fleet: Fleet) -> None:
    unit = ["systemd-run", "--quiet", "--unit=served", "--property=TimeoutStopSec=1"]
    fleet.ssh("h2", [*unit, "python3", "-c", NOT_A_MODEL])
    uri = f"http://{fleet.addresses['h2']}:8080/v2/models/served/infer"
    up = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], b'{}', timeout=1)"
    deadline = time.monotonic() + 30
    while fleet.run_in_controller([sys.executable, "-c", up, uri], check=False).returncode != 0:
        assert time.monotonic() < deadline
    with Traffic(fleet, [Target(name="served", url=uri, body="{}", rate=100.0, timeout_s=10.0)]) as traffic:
        traffic.wait_for(lambda request: request.version == "7" and request.host == "h2", "an answer")
        stopped_s = time.monotonic()
        fleet.ssh("h2", ["systemctl", "kill", "--signal=KILL", "served"])
        failed = traffic.wait_for(lambda request: request.status is None, "a failure")
        report = traffic.stop()
    # One that was on its way when the server was killed has failed by that, whenever it was sent.
    assert failed.error is not None and failed.done_s > stopped_s
    assert not [request for request in report.failures if request.done_s < stopped_s], report
    # Each says why. How the kernel ends what the killed one had open (a reset, an end, refused) is its own affair.
    assert failed in report.failures
    assert all(request.status is None and request.error for request in report.failures), report
    for error in {str(request.error) for request in report.failures}:
        assert f"x {error}" in str(report), report
    # None of what was planned was left out, however late it was sent.
    planned_s = sorted(request.planned_s for request in report.requests)
    assert len(planned_s) == pytest.approx(1 + 100 * (planned_s[-1] - planned_s[0]))
    sent_s = sorted(request.sent_s for request in report.requests)
    intervals, took_s = len(sent_s) - 1, sent_s[-1] - sent_s[0]
    assert 90 < intervals / took_s < 110 or report.lag_s > 0.05 * took_s, report


def test_traffic_to_a_host_without_power_is_not_answered(fleet: Fleet) -> None:
    uri = f"http://{fleet.addresses['h2']}:22/"
    fleet.power_off("h2")
    try:
        with Traffic(fleet, [Target(name="dark", url=uri, rate=10.0, timeout_s=0.5)]) as traffic:
            report = traffic.stop()
    finally:
        fleet.power_on("h2")
    assert report.failures == report.requests
    assert all(request.host is None and request.version is None for request in report.requests)


# -- what is left ---------------------------------------------------------------------------------------------------
def test_fleets_at_once_do_not_see_each_other_and_leave_nothing(fleet: Fleet) -> None:
    with Fleet(["h1"], balancer=False) as second:
        assert second.addresses["h1"] == fleet.addresses["h1"]
        second.ssh("h1", ["touch", "/srv/second"])
        assert fleet.ssh("h1", ["test", "-e", "/srv/second"], check=False).returncode == 1
        assert left_overs(second.name, second.directory, second.network_inodes())
    assert not left_overs(second.name, second.directory, set())
    assert fleet.ssh("h1", ["hostname"]).stdout == "h1\n"


def test_a_failing_test_leaves_nothing(image: None) -> None:
    second = Fleet(["h1"], balancer=False)
    with pytest.raises(CommandFailed, match=r"(?s)7 from .*\ntold you\n"), second:
        second.start_in_controller(["sleep", "1000"])
        second.ssh("h1", ["sh", "-c", "echo told you >&2; exit 7"])
    assert not left_overs(second.name, second.directory, set())


def test_a_command_past_its_limit_is_killed_with_all_it_started(fleet: Fleet) -> None:
    script = "echo so far; setsid sleep 1000 & exec setsid --wait sleep 2000"
    for limit_s in (0.5, 5.0, 20.0):
        start_s = time.monotonic()
        with pytest.raises(CommandFailed, match=rf"(?s)not done in {limit_s:g} s: sh -c ") as failure:
            fleet.run_in_controller(["sh", "-c", script], limit_s=limit_s)
        assert time.monotonic() - start_s < limit_s + 10
        # On a busy machine it may not even have begun to speak within the shortest.
        if "\nso far\n" in str(failure.value):
            break
    assert "\nso far\n" in str(failure.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_nothing(image: None, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, HERE / "try_fleet.py", "--hosts", "1", "--no-balancer"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = process.stdout.readline()
            assert line, f"it ended:\n{said}"
            said += line
        found = re.search(r"inventory: +(/\S+/(mh[0-9a-f]+)-fleet)/", said)
        assert found is not None, said
        directory, name = Path(found[1]), found[2]
        assert left_overs(name, directory, set())
        process.send_signal(number)
        code = process.wait(60)
    finally:
        process.kill()
        process.communicate()
    if number == signal.SIGKILL:
        assert left_overs(name, directory, set())
        clean_up()
    else:
        assert code == 0
    assert not left_overs(name, directory, set())
