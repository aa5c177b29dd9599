"""A real HAProxy with the configuration that the role writes, fake hosts behind it, and load. Nothing needs root."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from hosts import RunningHost, until
from roles import ANSIBLE, PLAYBOOK_LIMIT_S, changed_tasks, run_playbook

REQUIRED = os.environ.get("CI_REQUIRE_HAPROXY") == "1"
RELOAD = "haproxy_reload.py"
CALL_LIMIT_S = 10.0
STOP_LIMIT_S = 10.0

_WRITTEN: dict[str, dict[str, str]] = {}
"""What the role wrote for some models, hosts and settings, with names in place of ports and directory."""

_NUMBERS = itertools.count()
"""Of requests, those of all loads."""


def program() -> str:
    """HAProxy's path; skips the test where there is none and none must be."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if found is None:
        reason = "haproxy is not installed (Debian: haproxy)"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class FakeHost:
    """One host: its process, and what it was asked for."""

    def __init__(self, name: str, models: Sequence[str], directory: Path) -> None:
        self.name = name
        self.models = tuple(models)
        self._log = directory / f"{name}.log"
        self._reserve()
        self._process: subprocess.Popen[bytes] | None = None

    def move(self) -> None:
        """Start it anew on another port."""
        self.stop()
        self._reserve()
        self.start()

    def _reserve(self) -> None:
        # Bound and never listening: nobody else gets the port while the host is dead.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]

    def start(self) -> None:
        """Start it; back when it listens."""
        script = Path(__file__).with_name("fake_front.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(script), self.name, str(self.port), str(self._log), *self.models],
            stdin=subprocess.DEVNULL,
        )
        until(self._listens, f"{self.name} listens")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def send_signal(self, number: int) -> None:
        """Send its process a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it as a machine dies whose kernel lives on: connections are reset, new ones refused."""
        self.send_signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(STOP_LIMIT_S)

    def stop(self) -> None:
        """End it, whatever it does."""
        if self._process is not None:
            self.kill()
        self._reservation.close()

    def asked(self) -> list[tuple[float, str, str, bool]]:
        """Each request for a model: when (monotonic), its id, the model, and whether the host has that."""
        try:
            lines = self._log.read_text().splitlines()
        except FileNotFoundError:
            return []
        words = [line.split(" ") for line in lines]
        return [(float(when), request, model, known == "known") for when, request, model, known in words]


@dataclass
class Outcome:
    """What became of a request."""

    request: str
    began_s: float
    took_s: float
    status: int
    """0: no answer at all."""
    host: str = ""


@dataclass
class Load:
    """Clients that keep their connections and ask one request after the other, each with an id of its own."""

    port: int
    path: str
    clients: int = 4
    pause_s: float = 0.01
    body: bytes = b'{"inputs": []}'
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Ask all the time."""
        threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def _ask(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_LIMIT_S)
            request = f"{self.path}-{next(_NUMBERS)}"
            began_s = time.monotonic()
            try:
                connection.request("POST", self.path, self.body, {"X-Request-Id": request})
                response = connection.getresponse()
                status, body = response.status, response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                connection = None
                status, body = 0, b""
            host = json.loads(body).get("host", "") if status == 200 else ""
            self.outcomes.append(Outcome(request, began_s, time.monotonic() - began_s, status, host))
            self._stop.wait(self.pause_s)
        if connection is not None:
            connection.close()

    def wait_for(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.outcomes) + count
        until(lambda: len(self.outcomes) >= wanted, f"{count} more answers", 30.0)

    def failed(self) -> list[Outcome]:
        """What was not answered with 200."""
        return [one for one in list(self.outcomes) if one.status != 200]

    def shares(self, since_s: float = 0.0) -> Counter[str]:
        """Host to requests that it answered, of those that began after a time."""
        return Counter(one.host for one in list(self.outcomes) if one.began_s >= since_s)


class Balancer:
    """HAProxy in a directory, with what the role wrote there."""

    def __init__(self, directory: Path, hosts: Mapping[str, FakeHost | RunningHost], models: Mapping[str, Any]) -> None:
        self._binary = program()
        self.directory = directory
        self.models: dict[str, Any] = json.loads(json.dumps(models))
        self.hosts = dict(hosts)
        self.settings: dict[str, Any] = {}
        # Bound and never listening: nobody else gets the ports, also while HAProxy does not run. It shares them.
        self._reservations = [self._reserved(), self._reserved()]
        self.port, self.statistics_port = (int(one.getsockname()[1]) for one in self._reservations)
        self.socket = directory / "admin.sock"
        self.state_dir = directory / "state"
        self._process: subprocess.Popen[bytes] | None = None
        role = "    - ansible.builtin.import_role: {name: haproxy, tasks_from: %s}\n      tags: [%s]\n"
        (directory / "play.yml").write_text(
            "- hosts: localhost\n  connection: local\n  gather_facts: false\n  tasks:\n"
            + role % ("main", "main")
            + role % ("update", "never, update")
            + role % ("configure", "never, configure")
        )

    def _reserved(self) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(("127.0.0.1", 0))
        return made

    def __enter__(self) -> Self:
        self._prepare()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it for good: its ports are anybody's."""
        try:
            self.stop()
        finally:
            for reservation in self._reservations:
                reservation.close()

    def _prepare(self) -> None:
        """Put the role's files there, as a first run leaves them. Ansible writes them once for all tests."""
        own = {
            "<directory>": str(self.directory),
            **{f"<{name}>": f"127.0.0.1:{host.port}" for name, host in self.hosts.items()},
            "<clients>": f"127.0.0.1:{self.port}",
            "<statistics>": f"127.0.0.1:{self.statistics_port}",
        }
        key = json.dumps([self.models, self.settings, sorted(self.hosts)])
        if key not in _WRITTEN:
            self.play("--tags", "configure")
            texts = {path.name: path.read_text() for path in self.config.parent.iterdir()}
            for name, value in own.items():
                texts = {file: text.replace(value, name) for file, text in texts.items()}
            _WRITTEN[key] = texts
        self.config.parent.mkdir(mode=0o755, exist_ok=True)
        for file, text in _WRITTEN[key].items():
            for name, value in own.items():
                text = text.replace(name, value)
            (self.config.parent / file).write_text(text)
            (self.config.parent / file).chmod(0o644)
        libexec = self.directory / "libexec"
        libexec.mkdir(mode=0o755)
        copied = shutil.copyfile(ANSIBLE / "roles" / "haproxy" / "files" / RELOAD, libexec / RELOAD)
        copied.chmod(0o644)

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.directory / "etc" / "haproxy.cfg"

    @property
    def pid(self) -> int:
        """The master's."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it as its unit does; back when every server's state is known."""
        shutil.rmtree(self.state_dir, ignore_errors=True)
        self.state_dir.mkdir()
        shutil.copyfile(self.config, self.state_dir / "loaded.cfg")
        with (self.directory / "haproxy.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "-W", "-f", str(self.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self._answers, "HAProxy answers")
        self.wait_checked()

    def wait_checked(self) -> None:
        """Wait until each server was checked once."""
        until(lambda: all(row["check_status"] not in ("INI", "") for row in self.servers()), "servers are checked")

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log()
        try:
            return bool(self.call("show info"))
        except OSError:
            return False

    def stop(self) -> None:
        """End it and its workers, with nothing left."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it said."""
        return (self.directory / "haproxy.log").read_text()

    def call(self, command: str) -> str:
        """Ask its runtime socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CALL_LIMIT_S)
            connection.connect(str(self.socket))
            connection.sendall(command.encode() + b"\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
        return answer.decode()

    def worker(self) -> int:
        """The pid of the worker that has the socket."""
        return int(next(line for line in self.call("show info").splitlines() if line.startswith("Pid: "))[5:])

    def servers(self) -> list[dict[str, str]]:
        """Rows of `show stat` that are servers."""
        header, *lines = self.call("show stat").strip().splitlines()
        columns = header.removeprefix("# ").split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines]
        return [row for row in rows if row["svname"] not in ("FRONTEND", "BACKEND")]

    def status(self, backend: str, server: str) -> str:
        """`UP`, `DOWN`, `DRAIN`, `MAINT` and the like."""
        return next(row["status"] for row in self.servers() if (row["pxname"], row["svname"]) == (backend, server))

    def sessions(self, backend: str, server: str) -> int:
        """Requests that a server has."""
        found = (row for row in self.servers() if (row["pxname"], row["svname"]) == (backend, server))
        return int(next(found)["scur"])

    def weight(self, backend: str, server: str) -> int:
        """What a server is weighed with."""
        return int(self.call(f"get weight {backend}/{server}").partition(" ")[0])

    def module(self, *, check: bool = False, **parameters: Any) -> dict[str, Any]:
        """Run the module haproxy_server as Ansible does on the balancer; back with its result."""
        arguments = {"socket": str(self.socket), "_ansible_check_mode": check, **parameters}
        done = subprocess.run(
            [sys.executable, str(ANSIBLE / "library" / "haproxy_server.py")],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            timeout=PLAYBOOK_LIMIT_S,
            check=False,
        )
        result: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == 0, result
        return result

    def variables(self) -> dict[str, Any]:
        """The role's, for a directory and a user without rights."""
        script = self.directory / "libexec" / RELOAD
        reload = [sys.executable, "-I", str(script), "PID", str(self.config), str(self.socket), str(self.state_dir)]
        if self._process is not None:
            reload[3] = str(self.pid)
        return {
            "ansible_python_interpreter": sys.executable,
            "haproxy_fleet": {
                "hosts": {name: {"address": "127.0.0.1", "port": host.port} for name, host in self.hosts.items()},
                "models": self.models,
            },
            "haproxy_install": False,
            "haproxy_binary": self._binary,
            "haproxy_service_managed": False,
            "haproxy_reload_argv": reload if self._process is not None else [],
            "haproxy_user": "",
            "haproxy_chroot": "",
            "haproxy_log": "",
            "haproxy_address": "127.0.0.1",
            "haproxy_port": self.port,
            "haproxy_stats_port": self.statistics_port,
            "haproxy_config_dir": str(self.directory / "etc"),
            "haproxy_libexec_dir": str(self.directory / "libexec"),
            "haproxy_socket": str(self.socket),
            "haproxy_state_dir": str(self.state_dir),
            **self.settings,
        }

    def play(self, *arguments: str, fails: bool = False) -> str:
        """Run the role as it stands in the inventory now; back with what Ansible says."""
        return run_playbook(self.directory, self.variables(), *arguments, fails=fails)

    def changed(self, *arguments: str) -> set[str]:
        """Run the role; back with the names of the tasks that changed something."""
        return changed_tasks(self.play(*arguments))


def ask(port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Any:
    """Ask once, on a connection of its own: status, headers (lower case) and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_LIMIT_S)
    try:
        connection.request(method, path, body or None, dict(headers or {}))
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()
