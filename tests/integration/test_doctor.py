"""`modelhost doctor` on real hosts: all is well, then one fault each; it says what, where and what to do, in time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from cassandra_nodes import CassandraNodes
from features import write_echo, write_features
from hosts import CHECKOUT, PATIENCE, RunningHost, until
from packages import UNHURRIED, write_package, write_texts
from versions import write_versions

from host.cli.preflight import supervisor_pid
from host.isolation.prepare import interpreter_directories

pytestmark = pytest.mark.integration

LIMIT_S: Final = 30.0
"""Of the whole command, whatever is frozen."""

USER: Final = 1_800_000_002

DOUBLE = """
class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {"y": 2 * inputs["x"]}
"""


CLUSTER = """
[stores.cluster]
kind = "cassandra"
contact_points = ["{address}"]
port = {port}
driver = "{driver}"
"""


def golden(expected: float) -> str:
    """A recorded case: twice 21."""
    case = {
        "name": "twice 21",
        "request": {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [21.0]}]},
        "response": {"outputs": [{"name": "y", "datatype": "FP64", "shape": [1, 1], "data": [expected]}]},
    }
    return json.dumps({"cases": [case]})


def write_double(repository: Path, processes: int = 2) -> Path:
    """A model with a golden case."""
    package = write_package(
        repository,
        "double",
        DOUBLE,
        inputs=[("x", "FP64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1])],
        limits=UNHURRIED,
        processes=processes,
        resources={"memory": "256MiB"},
    )
    (package / "golden.json").write_text(golden(42.0))
    return package


class Report:
    """What one run of the doctor said."""

    def __init__(self, done: subprocess.CompletedProcess[str], took_s: float) -> None:
        assert done.stderr == "", done.stderr
        self.code = done.returncode
        self.took_s = took_s
        self.document: dict[str, Any] = json.loads(done.stdout)
        assert took_s < LIMIT_S * PATIENCE, self.document["groups"]

    def bad(self, level: str = "fail") -> list[dict[str, str]]:
        """The findings of a level."""
        return [one for one in self.document["findings"] if one["level"] == level]

    def only(self, group: str, level: str = "fail") -> dict[str, str]:
        """The one finding of a group and a level."""
        found = [one for one in self.bad(level) if one["check"] == group]
        assert len(found) == 1, self.document["findings"]
        assert found[0]["what_to_do"]
        return found[0]


def examine(host: RunningHost, *arguments: str) -> Report:
    """Run the doctor on a host."""
    begun_s = time.monotonic()
    done = host.command("doctor", "--json", *arguments)
    return Report(done, time.monotonic() - begun_s)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Within, a process does not run."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def double(repository: Path, make_host: Callable[..., RunningHost]) -> RunningHost:
    """Give a host of two workers of one model, and a model without golden cases."""
    write_double(repository)
    write_texts(repository)
    host = make_host(repository, models=["double", "texts"])
    host.start()
    return host


def test_says_that_a_healthy_host_is_well(double: RunningHost) -> None:
    # What a machine of tests may lack.
    lacking = {"clock", "isolation", "disk", "memory", "limits"}

    def well() -> Report | None:
        one = examine(double)
        return one if one.code == 0 and {found["check"] for found in one.bad("warn")} <= lacking else None

    # Control says so a moment after `up` does, and a worker that stands still is a warning.
    report = until(well, "all is well", LIMIT_S)
    assert report is not None
    assert report.bad() == []
    groups = [one["group"] for one in report.document["groups"]]
    assert len(groups) == 14
    said = {one["subject"]: one["what"] for one in report.document["findings"] if one["check"] == "models"}
    assert said["double version 1"].startswith("answers its golden case 'twice 21' in ")
    assert said["texts version 1"].startswith("answers zeros (it has no golden case to compare with) in ")
    text = double.command("doctor", "--only", "models", "--only", "fronts")
    assert text.returncode == 0
    assert "all is well" in text.stdout
    assert text.stderr == ""


def test_asks_one_model_that_has_to_be_served(double: RunningHost) -> None:
    def asked_for_texts() -> int:
        (stats,) = double.call("GET", "/v2/models/texts/stats").document["model_stats"]
        return int(stats["inference_count"])

    for name in ("double", "double.v1"):
        report = examine(double, "--only", "models", "--model", name)
        assert (report.code, [one["subject"] for one in report.document["findings"]]) == (0, ["double version 1"])
    before = asked_for_texts()
    report = examine(double, "--only", "models", "--model", "double", "--model", "double.v2")
    assert report.code == 1
    assert report.only("models")["subject"] == "double.v2"
    assert report.only("models")["what"] == "is not served by this host"
    assert asked_for_texts() == before


def test_names_a_worker_that_is_frozen(double: RunningHost) -> None:
    pid = double.worker_pids("double")[1]
    with frozen(pid):
        report = examine(double, "--only", "models")
    assert report.code == 1
    # Its neighbour may have got the request, or it did: then that was too late.
    found = report.bad()[0]
    assert found["subject"] == f"double.v1:1 (pid {pid})"
    assert "is stopped" in found["what"]
    assert all(one["subject"] == "double version 1" and " 504 " in one["what"] for one in report.bad()[1:])
    assert f"kill -CONT {pid}" in found["what_to_do"]


def test_names_a_front_and_control_that_are_frozen(double: RunningHost) -> None:
    (front,) = double.front_pids()
    control = double.slot("control").pid
    with frozen(front), frozen(control):
        report = examine(double)
    assert report.code == 1
    found = {(one["check"], one["subject"]): one for one in report.bad()}
    assert f"kill -CONT {front}" in found["fronts", f"front:0 (pid {front})"]["what_to_do"]
    assert f"kill -CONT {control}" in found["control", f"control (pid {control})"]["what_to_do"]
    assert "no answer within" in found["models", "double version 1"]["what"]


def test_names_a_supervisord_that_is_frozen(double: RunningHost) -> None:
    pid = supervisor_pid(double.run_dir)
    assert pid is not None
    with frozen(pid):
        report = examine(double)
    assert report.code == 1
    found = report.only("supervisord")
    assert found["subject"] == f"supervisord (pid {pid})"
    assert "is stopped" in found["what"]
    assert f"kill -CONT {pid}" in found["what_to_do"]
    assert "supervisord does not answer" in report.only("control")["what"]
    assert {one["check"] for one in report.bad()} == {"supervisord", "control"}  # the rest serves on


def test_names_what_an_operator_did_behind_its_back(double: RunningHost) -> None:
    double.supervisorctl("stop", "double.v1:1")
    until(lambda: double.slot("double.v1:1").state == "STOPPED", "it is stopped")
    found = examine(double, "--only", "supervisord").only("supervisord")
    assert (found["subject"], found["what"]) == ("double.v1:1", "is STOPPED: an operator stopped it")
    assert "modelhost restart double.v1:1" in found["what_to_do"]


def test_names_a_socket_that_others_can_reach(double: RunningHost) -> None:
    double.run_dir.control_socket.chmod(0o666)
    report = examine(double, "--only", "sockets")
    found = report.only("sockets")
    assert report.code == 1
    assert found["subject"] == str(double.run_dir.control_socket)
    assert found["what"] == "mode 0666: expected nothing for group and others (0600)"
    assert f"chmod 0600 {double.run_dir.control_socket}" in found["what_to_do"]
    double.run_dir.control_socket.chmod(0o600)
    assert examine(double, "--only", "sockets").code == 0


def test_names_a_model_that_answers_otherwise_than_its_package_says(double: RunningHost) -> None:
    golden_file = double.repository / "double" / "1" / "golden.json"
    golden_file.write_text(golden(43.0))
    report = examine(double, "--only", "models")
    found = report.only("models")
    assert report.code == 1
    assert found["subject"] == "double version 1"
    expected = "answers otherwise than its golden case 'twice 21': output 'y': expected 43.0, received 42.0 (element 0)"
    assert found["what"].startswith(expected)
    assert "modelhost rollback double" in found["what_to_do"]


def test_names_a_view_whose_store_is_gone(repository: Path, make_host: Callable[..., RunningHost]) -> None:
    write_echo(repository)
    path = write_features(repository)
    host = make_host(repository, settings={"features": path})
    host.start()
    until(lambda: examine(host, "--only", "stores").code == 0, "the view can be read", LIMIT_S)
    (pid,) = [one for one, words in host.pids().items() if "feature_io" in words]
    with frozen(pid):
        report = examine(host, "--only", "stores")
    found = {one["subject"]: one["what"] for one in report.bad()}
    assert f"features:0 (pid {pid})" in found
    assert found["view users in store main"].startswith("can be read, and the host does not read it: ")
    (repository / "features.sqlite").unlink()
    report = examine(host)
    found = report.only("stores")
    assert report.code == 1
    assert found["subject"] == "view users in store main"
    assert "features.sqlite" in found["what"]
    assert "[stores.main]" in found["what_to_do"]


def test_names_a_version_that_was_given_up(repository: Path, make_host: Callable[..., RunningHost]) -> None:
    write_versions(repository, ["1", "2"], fault="raise")
    host = make_host(repository)
    host.deployment_file.write_text('[[models]]\nname = "versioned"\nversion = "1"\n')
    host.start()
    host.deployment_file.write_text('[[models]]\nname = "versioned"\nversion = "2"\n')
    assert host.command("apply").returncode == 0

    def given_up() -> Report | None:
        report = examine(host, "--only", "control", "--only", "models")
        return report if any("given up" in one["what"] for one in report.bad()) else None

    report = until(given_up, "version 2 is given up", LIMIT_S)
    assert report is not None
    found = report.only("control")
    assert found["subject"] == "versioned version 2"
    assert "modelhost restart versioned" in found["what_to_do"]
    # Version 1 goes on.
    answered = [one for one in report.document["findings"] if one["check"] == "models"]
    assert [one["level"] for one in answered if one["subject"] == "versioned version 1"] == ["ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_an_ordinary_user(repository: Path) -> None:
    repository.chmod(0o755)
    write_double(repository)
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as work:
        shown = [*interpreter_directories(sys.executable), str(CHECKOUT), str(repository)]
        ordinary = [sys.executable, str(CHECKOUT / "tests/integration/ordinary.py"), str(USER), work, *shown, "--"]
        with RunningHost(repository, prefix=ordinary) as host:
            os.chown(host.directory, USER, USER)
            host.start()
            report = until(lambda: (one := examine(host)).code == 0 and one, "all is well", LIMIT_S)
            assert isinstance(report, Report)
            missing = {one["subject"] for one in report.bad("warn") if one["check"] == "isolation"}
            assert "a user of each model's own" in missing
            # Root sees all of it, and takes nothing amiss; another user says whom to ask as.
            as_root = subprocess.run(
                [sys.executable, "-P", "-m", "host.cli", "doctor", "--json", f"--run-dir={host.run_dir.root}"],
                capture_output=True,
                text=True,
                timeout=60,
                cwd=host.directory,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                check=False,
            )
            assert Report(as_root, 0.0).bad() == []
            host.directory.chmod(0o755)
            other = [str(USER + 1) if word == str(USER) else word for word in ordinary]
            flags = (f"--run-dir={host.run_dir.root}", f"--repository={repository}")
            as_other = subprocess.run(
                [*other, sys.executable, "-P", "-m", "host.cli", "doctor", "--only", "configuration", *flags],
                capture_output=True,
                text=True,
                timeout=60,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                check=False,
            )
            assert as_other.returncode == 1, as_other.stderr
            assert f"cannot be looked into by uid {USER + 1}" in as_other.stdout
            assert f"uid {USER}" in as_other.stdout


# -- without a host ---------------------------------------------------------------------------------------------------
def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor where no host runs."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "host.cli", "doctor", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        check=False,
    )


def test_checks_a_host_that_does_not_run_and_leaves_nothing(repository: Path) -> None:
    write_double(repository)
    tree = f"modelhost-{zlib.crc32(os.fsencode(repository / 'run')):08x}"
    # Bound and never listening: the doctor, which asks as the host does, may have the port, and nobody else.
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        flags = ("--repository", str(repository), "--run-dir", str(repository / "run"), "--port", str(port))
        done = run(repository, "--json", *flags)
    report = Report(done, 0.0)
    assert report.bad() == []
    assert done.returncode == 0
    assert {path.name for path in repository.iterdir()} == {"double"}
    assert not any(tree in names for _, names, _ in os.walk("/sys/fs/cgroup"))


def test_names_who_has_the_port(repository: Path) -> None:
    write_double(repository)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ("--repository", str(repository), "--run-dir", str(repository / "run"), "--port", str(port))
        done = run(repository, "--only", "ports", *flags)
    assert done.returncode == 1
    assert f"127.0.0.1 port {port}: address already in use by pid {os.getpid()}" in done.stdout
    assert "-> stop that process, or choose another port" in done.stdout
    assert "1 of 1 groups fail" in done.stdout


def test_names_what_is_wrong_with_the_configuration(repository: Path) -> None:
    (write_double(repository) / "model.py").unlink()
    done = run(repository, "--only", "configuration", "--repository", str(repository))
    assert done.returncode == 1
    assert f'{repository}/double/1/model.toml: runtime "python": expected the file model.py, found none' in done.stdout


@pytest.mark.parametrize("driver", ["aiocassandra", "acsylla"])
def test_names_a_view_whose_cluster_is_frozen(repository: Path, cassandra: CassandraNodes, driver: str) -> None:
    write_echo(repository)
    node = cassandra.nodes[0]
    keyspace = f'keyspace = "doctor_{driver}"'
    store = CLUSTER.format(address=cassandra.contact_points[0], port=cassandra.port, driver=driver)
    path = write_features(repository, store, keyspace)
    flags = ("--only", "stores", "--json", "--repository", str(repository), f"--features={path}")
    for _ in range(5):
        report = Report(run(repository, *flags), 0.0)
        if not report.bad():  # else something else had the processors while it connected
            break
    assert report.bad() == []
    node.freeze()
    try:
        begun_s = time.monotonic()
        done = run(repository, *flags)
        report = Report(done, time.monotonic() - begun_s)
    finally:
        node.thaw()
    assert done.returncode == 1
    found = report.only("stores")
    assert found["subject"] == "view users in store cluster"
    assert "[stores.cluster]" in found["what_to_do"]


def test_says_on_a_terminal_what_it_is_at(repository: Path) -> None:
    write_double(repository)
    ours, theirs = os.openpty()
    said = b""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "host.cli", "doctor", "--only", "clock", "--repository", str(repository)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
            cwd=repository,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            check=False,
        )
    finally:
        os.close(theirs)
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # a terminal's way to say that nobody writes to it any more
        pass
    finally:
        os.close(ours)
    assert done.returncode == 0
    assert b"7 of 14: clock ..." in said
    assert said.endswith(b"\r\x1b[K")  # nothing of it stays


@pytest.mark.parametrize(
    "arguments", [["--only", "nonsense"], ["--port", "zero"], ["--config", "/nonexistent.toml"], ["more"]]
)
def test_wrong_arguments_are_2(repository: Path, arguments: list[str]) -> None:
    assert run(repository, *arguments).returncode == 2


def test_a_broken_settings_file_is_a_finding(repository: Path) -> None:
    (repository / "modelhost.toml").write_text('port = "no"\n')
    done = run(repository)
    assert done.returncode == 1
    assert "modelhost.toml: port: expected a whole number" in done.stdout
