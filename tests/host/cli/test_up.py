"""A real host: `modelhost up` with supervisord, front, control and workers, and everything that can happen to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hosts import supervisord_answers

ROOT = Path(__file__).parents[3]
LIMIT_S = 30.0

pytestmark = pytest.mark.integration


def until(look: Callable[[], Any], what: str) -> Any:
    """Look again and again until it is true; fail after the limit."""
    deadline = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.01)
    return found


class HostUnderTest:
    """One run directory, its commands, and what runs there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.repository = directory / "models"
        self.run_dir = directory / "run"
        # Bound and never listening: nobody else gets the port, and the fronts share it.
        self.reservation = socket.socket()
        self.reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.reservation.bind(("127.0.0.1", 0))
        self.port: int = self.reservation.getsockname()[1]
        (directory / "modelhost.toml").write_text(
            f'repository = "models"\nport = {self.port}\nadmin_port = 0\ndrain_s = 3\n'
        )
        self.new("line", "python")

    def new(self, name: str, runtime: str) -> None:
        """Make a package. Its requests have more time than usual: how long they take is not what this is about."""
        assert self.command("new", name, "--runtime", runtime)[0] == 0
        toml = self.repository / name / "1" / "model.toml"
        text = toml.read_text()
        assert "timeout_ms = 1000 " in text
        toml.write_text(text.replace("timeout_ms = 1000 ", "timeout_ms = 20000 "))

    @property
    def package(self) -> Path:
        return self.repository / "line" / "1"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command and do not wait for it."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("MODELHOST_")}
        return subprocess.Popen(
            [sys.executable, "-m", "host.cli", *arguments],
            cwd=self.directory,
            env=env | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def command(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command: code, output, messages."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=LIMIT_S)
        # A model's own traceback, from its log, is indented.
        assert not any(line.startswith("Traceback") for line in err.splitlines())
        return process.returncode, out, err

    def up(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a host in the foreground and wait until it says that it is ready."""
        process = self.start("up", *arguments)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("processes: "):
                return process
        _, err = process.communicate(timeout=LIMIT_S)
        raise AssertionError(f"{''.join(lines)}{err}")

    def ended(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        """Wait for the end of `up`."""
        out, err = process.communicate(timeout=LIMIT_S)
        return process.returncode, out, err

    def status(self) -> dict[str, Any]:
        """The status document."""
        document: dict[str, Any] = json.loads(self.command("status", "--json")[1])
        return document

    def slots(self) -> dict[str, dict[str, Any]]:
        """Every process of the status, by name."""
        document = self.status()
        slots = [slot for model in document["models"] for slot in model["slots"]]
        return {slot["name"]: slot for slot in (*slots, *document["host"])}

    def pids(self) -> dict[int, str]:
        """Every living process that knows the run directory."""
        found = {}
        for path in [one / "cmdline" for one in Path("/proc").glob("[0-9]*")]:
            try:
                words = path.read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(str(self.run_dir) in word for word in words):
                found[int(path.parent.name)] = " ".join(words)
        return found

    def ready(self) -> bool:
        """Whether the front says so."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def assert_nothing_left(self) -> None:
        """No process, no socket, no pid file, no listener."""
        assert self.pids() == {}
        left = [path for path in self.directory.rglob("*") if path.is_socket() or path.suffix == ".pid"]
        assert left == []
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", self.port)) != 0


@pytest.fixture
def host(short: Path) -> Iterator[HostUnderTest]:
    host = HostUnderTest(short)
    yield host
    for pid in host.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    host.command("down")
    host.reservation.close()


def test_up_serves_and_ctrl_c_leaves_nothing(host: HostUnderTest) -> None:
    process = host.up()
    slots = host.slots()
    assert {name: slot["state"] for name, slot in slots.items()} == {
        "line.v1:0": "RUNNING",
        "front:0": "RUNNING",
        "control": "RUNNING",
    }
    request = '{"inputs": [{"name": "speed", "shape": [1, 1], "datatype": "FP64", "data": [10]}]}'
    (host.directory / "request.json").write_text(request)
    code, out, _ = host.command("predict", "line", "-i", "request.json", "--json")
    assert code == 0
    assert json.loads(out)["outputs"][0]["data"] == [pytest.approx(21.744992700729928)]
    code, out, _ = host.command("predict", "line", "-i", "request.json", "--msgpack")
    assert (code, "21.74499" in out) == (0, True)
    code, _, err = host.command("predict", "nobody", "-i", "request.json")
    assert (code, "UNKNOWN_MODEL" in err) == (1, True)
    assert "ready: python" in host.command("logs", "line")[1]
    assert host.command("status")[0] == 0
    supervisorctl = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(host.run_dir / "supervisord.conf")]
    shown = subprocess.run([*supervisorctl, "status"], capture_output=True, text=True, check=False).stdout
    assert [line.split()[:2] for line in shown.splitlines()] == [
        ["control", "RUNNING"],
        ["front:0", "RUNNING"],
        ["line.v1:0", "RUNNING"],
    ]
    for path in (host.run_dir, host.run_dir / "supervisor.sock", host.run_dir / "control.sock"):
        assert path.stat().st_mode & 0o077 == 0
    process.send_signal(signal.SIGINT)
    code, out, err = host.ended(process)
    assert (code, err) == (0, "")
    assert out.splitlines()[-2:] == ["draining ... (again to stop at once)", "stopped"]
    host.assert_nothing_left()


def test_the_curl_command_works(host: HostUnderTest) -> None:
    process = host.start("up")
    assert process.stdout is not None
    command = next(line for line in process.stdout if line.startswith("  curl "))
    answer = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert json.loads(answer.stdout)["model_name"] == "line"
    process.terminate()
    assert host.ended(process)[0] == 0
    host.assert_nothing_left()


def test_a_request_in_hand_is_answered_before_the_host_stops(host: HostUnderTest) -> None:
    at_work = host.package / "work" / "at_work"
    at_work.parent.mkdir()
    with (host.package / "model.toml").open("a") as file:
        file.write('\n[sandbox]\nwritable = ["work"]\n')
    with (host.package / "model.py").open("a") as file:
        file.write(
            "\nimport time\n"
            "predict = Model.predict\n"
            "def slowly(self, inputs):\n"
            "    if (inputs['speed'] == 7).any():\n"
            "        (self.package / 'work' / 'at_work').touch()\n"
            "        time.sleep(0.5)\n"
            "    return predict(self, inputs)\n"
            "load = Model.load\n"
            "def remembering(self, package):\n"
            "    self.package = package\n"
            "    load(self, package)\n"
            "Model.load, Model.predict = remembering, slowly\n"
        )
    process = host.up("--drain-s", "60")
    request = '{"inputs": [{"name": "speed", "shape": [1, 1], "datatype": "FP64", "data": [7]}]}'
    (host.directory / "request.json").write_text(request)
    asking = host.start("predict", "line", "-i", "request.json", "--json")
    until(at_work.exists, "the model is at work")
    process.send_signal(signal.SIGINT)
    code, out, err = host.ended(asking)
    assert (code, err) == (0, "")
    assert json.loads(out)["model_name"] == "line"
    assert host.ended(process)[0] == 0
    host.assert_nothing_left()


def test_a_detached_host_goes_on_until_down(host: HostUnderTest) -> None:
    code, out, err = host.command("up", "--detach", "--fronts", "2")
    assert (code, err) == (0, "")
    assert "running in the background" in out
    assert host.ready()
    assert set(host.slots()) == {"line.v1:0", "front:0", "front:1", "control"}
    code, _, err = host.command("up")
    assert (code, f"a host already runs in {host.run_dir} (pid " in err) == (1, True)
    code, out, _ = host.command("down")
    assert (code, out.splitlines()[-1]) == (0, "stopped")
    host.assert_nothing_left()
    assert host.command("down") == (0, f"no host runs in {host.run_dir}\n", "")
    assert "stopped" in (host.run_dir / "logs" / "up.log").read_text()


def test_down_stops_a_host_in_the_foreground(host: HostUnderTest) -> None:
    process = host.up()
    assert host.command("down")[0] == 0
    assert host.ended(process)[0] == 0
    host.assert_nothing_left()


def test_a_killed_worker_is_back_and_counted(host: HostUnderTest) -> None:
    process = host.up()
    before = host.slots()["line.v1:0"]
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: host.slots()["line.v1:0"]["restarts"] == 1 and host.status()["ready"], "the worker is back")
    after = host.slots()["line.v1:0"]
    assert after["pid"] != before["pid"]
    assert after["since"] > before["since"]
    assert after["last_exit"]["reason"]
    until(host.ready, "the front is ready again")
    process.terminate()
    assert host.ended(process)[0] == 0
    host.assert_nothing_left()


def test_a_killed_control_is_back_and_status_waits_for_it(host: HostUnderTest) -> None:
    process = host.up()
    os.kill(host.slots()["control"]["pid"], signal.SIGKILL)
    assert host.status()["running"]
    until(lambda: host.status()["ready"], "control knows the workers again")
    process.terminate()
    assert host.ended(process)[0] == 0
    host.assert_nothing_left()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import os; os._exit(7)", "line.v1:0 ended while it started"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "line.v1:0 ended while it started"),
    ],
)
def test_a_model_that_does_not_load_stops_the_start_with_its_reason(host: HostUnderTest, code: str, what: str) -> None:
    with (host.package / "model.py").open("a") as file:
        file.write(f"\n{code}\n")
    returned, out, err = host.command("up")
    assert returned == 1
    assert what in err
    assert f"{host.run_dir}/logs/line.v1:0.log" in err
    assert out.splitlines()[-1] == "stopped"
    host.assert_nothing_left()
    assert host.command("up", "--detach")[0] == 1
    host.assert_nothing_left()


def test_a_wrong_golden_case_stops_the_start(host: HostUnderTest) -> None:
    golden = host.package / "golden.json"
    golden.write_text(golden.read_text().replace("61.0", "62.0"))
    returned, _, err = host.command("up")
    assert returned == 1
    assert "golden case 'two cars': output 'distance': expected 62.0" in err
    assert "line.v1:0 ended while it started (a golden case failed)" in err
    host.assert_nothing_left()


@pytest.mark.parametrize(("arguments", "expected"), [((), 0), (("--detach",), 130)])
def test_ctrl_c_while_starting_stops_cleanly(host: HostUnderTest, arguments: tuple[str, ...], expected: int) -> None:
    with (host.package / "model.py").open("a") as file:
        file.write("\nimport time; time.sleep(600)\n")
    process = host.start("up", *arguments)
    until(lambda: any("by_path" in words for words in host.pids().values()), "a worker loads")
    process.send_signal(signal.SIGINT)
    code, _, err = host.ended(process)
    assert (code, err.strip()) == (expected, "")  # click ends the line of a ^C
    host.assert_nothing_left()


def test_a_second_ctrl_c_hurries(host: HostUnderTest) -> None:
    with (host.package / "model.py").open("a") as file:
        # A model that keeps its worker from stopping, and a child of the model that outlives it.
        file.write(
            "\nimport signal, subprocess, sys, threading\n"
            "code = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)'\n"
            "subprocess.Popen([sys.executable, '-c', code, __file__])\n"
            "load = Model.load\n"
            "def stubborn(self, package):\n"
            "    load(self, package)\n"
            "    set_handler = signal.signal\n"
            "    signal.signal = lambda number, handler: set_handler(number, signal.SIG_IGN)\n"
            "Model.load = stubborn\n"
        )
    process = host.up("--drain-s", "600")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    until(lambda: "draining" in process.stdout.readline(), "draining")  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    code, out, _ = host.ended(process)
    assert (code, "stopping at once" in out) == (0, True)
    assert time.monotonic() - begun < LIMIT_S
    host.assert_nothing_left()
    assert not [words for words in processes() if str(host.package) in words]


def processes() -> list[str]:
    found = []
    for path in [one / "cmdline" for one in Path("/proc").glob("[0-9]*")]:
        try:
            found.append(path.read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue
    return found


def test_when_up_is_killed_everything_else_ends_and_the_next_up_works(host: HostUnderTest) -> None:
    process = host.up()
    process.kill()
    host.ended(process)
    process = host.up()
    assert host.status()["ready"]
    process.kill()
    host.ended(process)
    assert host.command("down")[0] == 0
    until(lambda: not host.pids(), "everything has ended")
    host.assert_nothing_left()


def test_a_killed_supervisord_is_started_again_but_not_for_ever(host: HostUnderTest) -> None:
    process = host.up()
    killed: set[int] = set()

    def next_pid() -> int:
        # As soon as it exists: until it has written its pid file it may take so long that six are not within 10 s.
        found = {pid for pid, words in host.pids().items() if "supervisor.supervisord" in words}
        return next((pid for pid in found - killed if _parent(pid) == process.pid), 0)

    def kill_next() -> None:
        if until(lambda: next_pid() or process.poll() is not None, "supervisord is there, or up has ended") is True:
            return
        if pid := next_pid():
            killed.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    kill_next()
    until(next_pid, "it is started again")
    until(host.ready, "the model is served again")
    while process.poll() is None:
        kill_next()
    code, out, err = host.ended(process)
    assert code == 1
    assert out.count("supervisord was killed by signal 9") >= 5
    assert "6 times within 10 s" in err
    host.assert_nothing_left()


def _parent(pid: int) -> int:
    """A process's parent; 0: it has gone. In `stat` it stands behind the name in parentheses and the state."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_a_supervisord_started_by_hand_is_left_alone(host: HostUnderTest) -> None:
    process = host.up()
    process.terminate()
    host.ended(process)
    config = str(host.run_dir / "supervisord.conf")
    by_hand = subprocess.Popen([sys.executable, "-m", "supervisor.supervisord", "-n", "-c", config], cwd="/")
    until(lambda: supervisord_answers(host.run_dir / "supervisor.sock"), "supervisord answers")
    code, _, err = host.command("up")
    assert (code, f"supervisorctl -c {config} shutdown" in err) == (1, True)
    assert by_hand.poll() is None
    assert host.command("down")[0] == 0
    by_hand.wait(LIMIT_S)
    host.assert_nothing_left()


def test_up_goes_on_when_nobody_reads_what_it_says(host: HostUnderTest) -> None:
    process = host.start("up")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    until(host.ready, "the front is ready")
    process.terminate()
    assert process.wait(LIMIT_S) == 0
    assert process.stderr is not None
    process.stderr.close()
    host.assert_nothing_left()


def test_logs_follow(host: HostUnderTest) -> None:
    process = host.up()
    following = host.start("logs", "line", "-f", "-n", "1")
    assert following.stdout is not None
    assert "ready: python" in following.stdout.readline()
    os.kill(host.slots()["line.v1:0"]["pid"], signal.SIGTERM)
    assert "stopped" in following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert host.ended(following)[0] == 130
    process.terminate()
    assert host.ended(process)[0] == 0
    host.assert_nothing_left()


# -- try --------------------------------------------------------------------------------------------------
def tries() -> set[Path]:
    return set(Path("/tmp").glob("modelhost-try-*"))


@pytest.mark.parametrize("runtime", ["python", "lightgbm", "onnx"])
def test_try_runs_a_new_package(host: HostUnderTest, runtime: str) -> None:
    if runtime != "python":
        pytest.importorskip(runtime)
    before = tries()
    host.new("m", runtime)
    code, out, err = host.command("try", "models/m/1", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["golden"] == [{"name": "two cars", "ok": True, "problem": None}]
    assert document["batch_rows"] == 256
    assert document["runtime"].startswith(runtime)
    for key in ("startup_ms", "first_ms", "median_ms", "rows_per_s", "memory_bytes", "memory_peak_bytes"):
        assert document[key] > 0
    request = '{"inputs": [{"name": "speed", "shape": [1, 1], "datatype": "FP64", "data": [10]}]}'
    (host.directory / "request.json").write_text(request.replace("FP64", "FP32" if runtime == "onnx" else "FP64"))
    code, out, _ = host.command("try", "models/m/1", "--input", "request.json")
    assert code == 0
    assert "golden cases: 1 of 1 reproduced" in out
    assert tries() == before


def test_try_says_why_a_package_does_not_work(host: HostUnderTest) -> None:
    before = tries()
    (host.directory / "request.json").write_text('{"inputs": []}')
    code, _, err = host.command("try", "models/line/1", "-i", "request.json")
    assert (code, "422 INVALID_INPUT" in err) == (1, True)
    golden = host.package / "golden.json"
    text = golden.read_text()
    golden.write_text(text.replace("61.0", "62.0"))
    code, _, err = host.command("try", "models/line/1")
    assert (code, "golden case 'two cars'" in err, "exit code 3" in err) == (1, True, True)
    golden.write_text(text)
    with (host.package / "model.py").open("a") as file:
        file.write("\nraise RuntimeError('no luck')\n")
    code, _, err = host.command("try", "models/line/1")
    assert (code, "RuntimeError: no luck" in err) == (1, True)
    (host.package / "model.py").write_text("import time\ntime.sleep(600)\n")
    toml = host.package / "model.toml"
    toml.write_text(toml.read_text().replace("startup_s = 60", "startup_s = 1"))
    code, _, err = host.command("try", "models/line/1")
    assert (code, "not ready after 1 s (limits.startup_s)" in err) == (1, True)
    assert host.command("try", "models/nothing/1")[0] == 2
    assert host.command("try", "models/line/1", "--model-python", "/nonexistent/python")[0] == 1
    assert tries() == before
    assert host.pids() == {}
