"""A real host for tests: worker and front processes in a run directory of their own, on a free port."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from host.config.deployment import DeployedModel, Deployment, write_deployment
from host.config.run_dir import RunDirectory, group_name
from host.protocol.package import Package, read_package

CHECKOUT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0
CALL_LIMIT_S = 15.0

Result = TypeVar("Result")


def until(look: Callable[[], Result], what: str, limit_s: float = 10.0) -> Result:
    """Look again and again until it gives something true; fail with `what` if it has not within the limit."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.002)
    return found


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and code of an error in JSON; it must be one, whole and in the right form."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.document) == {"error", "code"}, self.document
        assert self.document["error"]
        return self.status, self.document["code"]


def read_answer(connection: http.client.HTTPConnection) -> Answer:
    """Read the answer to the request that was sent on a connection."""
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def parsed_answers(data: bytes) -> list[Answer]:
    """Take apart what came on a plain socket: whole answers with a Content-Length, one after the other."""
    answers = []
    while data:
        head, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, data
        status, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        size = int(headers["content-length"])
        assert len(rest) >= size, data
        answers.append(Answer(int(status.split(" ")[1]), headers, rest[:size]))
        data = rest[size:]
    return answers


def tensors(**values: tuple[str, Sequence[int], list[Any]]) -> dict[str, Any]:
    """An inference request: name to datatype, shape, data."""
    return {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": list(shape), "data": data}
            for name, (datatype, shape, data) in values.items()
        ]
    }


class RunningHost:
    """A host that serves the packages of a repository, or some of them; `stop` asserts that nothing is left."""

    def __init__(
        self,
        repository: Path,
        *,
        models: Sequence[str] | None = None,
        fronts: int = 1,
        front_flags: Sequence[str] = (),
        processes: Mapping[str, int] | None = None,
    ) -> None:
        self.run_dir = RunDirectory(Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp")))
        self.run_dir.sockets.mkdir()
        self.run_dir.logs.mkdir()
        self.packages: dict[str, Package] = {}
        self.directories: dict[str, Path] = {}
        for directory in sorted(repository.glob("*/*")):
            if directory.is_dir() and (models is None or directory.parent.name in models):
                package = read_package(directory)
                self.packages[package.name] = package
                self.directories[package.name] = directory
        self._processes = dict(processes or {})
        self._fronts = fronts
        self._front_flags = list(front_flags)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # Bound and never listening: nobody else gets the port, and the fronts share it.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]

    @property
    def address(self) -> str:
        """Host and port, as clients write them."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where the host's paths begin."""
        return f"http://{self.address}"

    def processes(self, model: str) -> int:
        """How many workers a model has."""
        return self._processes.get(model, self.packages[model].scale.min_processes)

    # -- life ---------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.deploy()
        for name in self.packages:
            for slot in range(self.processes(name)):
                self.start_worker(name, slot)
        for index in range(self._fronts):
            self.start_front(index)
        self.wait_ready()

    def deploy(self) -> None:
        """Write the deployment that the fronts read."""
        deployment = Deployment(
            tuple(
                DeployedModel(
                    name=package.name,
                    version=package.version,
                    processes=self.processes(name),
                    package=str(self.directories[name]),
                    platform=package.platform,
                    signature=package.signature,
                    limits=package.limits,
                )
                for name, package in self.packages.items()
            )
        )
        write_deployment(self.run_dir.deployment, deployment)

    def start_worker(self, model: str, slot: int = 0) -> subprocess.Popen[bytes]:
        """Start one worker, by path as on a real host, and do not wait for it."""
        package, group = self.packages[model], self.group(model)
        return self._spawn(
            f"{group}:{slot}",
            [
                "-I",
                "-u",
                str(CHECKOUT / "models" / "by_path.py"),
                *("--package", str(self.directories[package.name])),
                *("--socket", str(self.run_dir.worker_socket(group, slot))),
                *("--slot", str(slot)),
            ],
        )

    def start_front(self, index: int = 0) -> subprocess.Popen[bytes]:
        """Start one front, and do not wait for it."""
        return self._spawn(
            f"front:{index}",
            [
                *("-P", "-m", "host.front", "--run-dir", str(self.run_dir.root)),
                *("--port", str(self.port), "--index", str(index)),
                *self._front_flags,
            ],
        )

    def _spawn(self, program: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with self.run_dir.log(program).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            )
        self._running[program] = process
        return process

    def wait_ready(self) -> None:
        """Wait until every front says that every model is ready; each front has connections of its own."""

        def ready() -> bool:
            for program, process in self._running.items():
                assert process.poll() is None, f"{program} ended with {process.returncode}:\n{self.log(program)}"
            joined = sum(self.log(f"front:{index}").count(" joined ") for index in range(self._fronts))
            return joined >= self._fronts * sum(map(self.processes, self.packages)) and self.is_ready()

        until(ready, f"ready: {self.logs()}", START_LIMIT_S)

    def is_ready(self, model: str = "") -> bool:
        """Ask the host, or it about one model."""
        try:
            return self.call("GET", f"/v2/models/{model}/ready" if model else "/v2/health/ready").status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Stop everything, fronts first, and assert that nothing is left of it."""
        try:
            for prefix in ("front:", ""):
                going = [process for program, process in self._running.items() if program.startswith(prefix)]
                for process in going:
                    process.terminate()
                for process in going:
                    process.wait(STOP_LIMIT_S)
            self.assert_nothing_left()
        except BaseException:
            sys.stderr.write(self.logs())
            raise
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()
            self._reservation.close()
            shutil.rmtree(self.run_dir.root)

    def assert_nothing_left(self) -> None:
        """No process that knows the run directory, no socket in it, no listener on the port."""
        assert self.pids() == {}
        assert [path for path in self.run_dir.root.rglob("*") if path.is_socket()] == []
        assert list(self.run_dir.sockets.iterdir()) == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0

    # -- what runs ----------------------------------------------------------------------------------------
    def group(self, model: str) -> str:
        """The model's group of processes."""
        return group_name(model, self.packages[model].version)

    def pids(self) -> dict[int, list[str]]:
        """Every living process that has the run directory in its command line, found in /proc."""
        found = {}
        root = str(self.run_dir.root).encode()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(root in word for word in words):
                found[int(path.parent.name)] = [word.decode() for word in words]
        return found

    def worker_pids(self, model: str) -> dict[int, int]:
        """Slot to pid of a model's workers."""
        sockets = {str(self.run_dir.worker_socket(self.group(model), slot)): slot for slot in range(256)}
        return {
            sockets[word]: pid for pid, words in self.pids().items() for word in words if word in sockets
        }

    def front_pids(self) -> list[int]:
        """The fronts' pids."""
        return [pid for pid, words in self.pids().items() if "host.front" in words]

    def kill(self, program: str, number: int = signal.SIGKILL) -> subprocess.Popen[bytes]:
        """Send a signal to a process by its program name, `churn.v3:0`, and wait for its end."""
        process = self._running.pop(program)
        process.send_signal(number)
        process.wait(STOP_LIMIT_S)
        return process

    def log(self, program: str) -> str:
        """What a process has logged."""
        return self.run_dir.log(program).read_text()

    def logs(self) -> str:
        """All logs, for a failing test."""
        return "".join(f"\n--- {path.name}\n{path.read_text()}" for path in sorted(self.run_dir.logs.iterdir()))

    # -- requests -----------------------------------------------------------------------------------------
    def connect(self) -> http.client.HTTPConnection:
        """Open a connection, with a limit on everything."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_LIMIT_S)

    def send(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPConnection:
        """Send a request on a connection of its own; `read_answer` reads the answer later."""
        connection = self.connect()
        given = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        connection.request(method, path, body=body, headers=given)
        return connection

    def call(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and read its answer; a dict travels as JSON."""
        connection = self.send(method, path, body, headers)
        try:
            return read_answer(connection)
        finally:
            connection.close()

    def infer(self, model: str, request: dict[str, Any] | bytes, **headers: str) -> Answer:
        """`POST /v2/models/{model}/infer`; underscores in names of headers stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.call("POST", f"/v2/models/{model}/infer", request, named)

    def raw(self, data: bytes, *, cut: bool = False) -> bytes:
        """Send bytes on a plain socket and read until the host closes. `cut`: stop sending for good before reading."""
        received = bytearray()
        with socket.create_connection(("127.0.0.1", self.port), timeout=CALL_LIMIT_S) as sock:
            try:
                sock.sendall(data)
                if cut:
                    sock.shutdown(socket.SHUT_WR)
                while part := sock.recv(65536):
                    received += part
            except (BrokenPipeError, ConnectionResetError):
                pass
        return bytes(received)
