"""Real hosts for tests, each in a directory of its own and on a free port."""

from __future__ import annotations

import http.client
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from host.cli.status import fetch_status
from host.config.deployment import load_deployment, write_deployment
from host.config.run_dir import RunDirectory, group_name
from host.control.status import HostStatus, SlotStatus
from host.protocol.errors import HostError
from host.protocol.package import Package, read_package
from host.supervisor import SupervisorClient, SupervisorUnreachable

CHECKOUT = Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("PATIENCE", "1"))
"""How much slower than usual this machine may be: a virtual one in a process is."""

START_LIMIT_S = 90.0 * PATIENCE
STOP_LIMIT_S = 30.0 * PATIENCE
CALL_LIMIT_S = 45.0 * PATIENCE
WAIT_LIMIT_S = 30.0
"""For what takes a moment: on a busy machine a process may stand still for seconds, several times."""

Result = TypeVar("Result")


def until(look: Callable[[], Result], what: str, limit_s: float = WAIT_LIMIT_S) -> Result:
    """Look again and again until it gives something true; fail with `what` if it has not within the limit."""
    deadline = time.monotonic() + limit_s * PATIENCE
    while True:
        looked_s = time.monotonic()
        if found := look():
            return found
        now_s = time.monotonic()
        assert now_s < deadline, f"not within {limit_s} s: {what}"
        # Whoever waits leaves the processors to those that are waited for, also where a look takes a while.
        time.sleep(min(0.05, max(0.002, now_s - looked_s)))


def supervisord_answers(path: Path) -> bool:
    """Whether supervisord answers on a socket: it makes it before it listens."""
    try:
        SupervisorClient(path).processes()
    except SupervisorUnreachable:
        return False
    return True


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


class Host:
    """The packages of a repository, or some of them, and the processes that serve them. Starting is the subclasses'."""

    def __init__(
        self,
        repository: Path,
        *,
        models: Sequence[str] | None = None,
        fronts: int = 1,
        processes: Mapping[str, int] | None = None,
    ) -> None:
        self.repository = repository
        self.directory = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
        self.run_dir = RunDirectory(self.directory / "run")
        self.packages: dict[str, Package] = {}
        for directory in sorted(repository.glob("*/*")):
            if directory.is_dir() and (models is None or directory.parent.name in models):
                package = read_package(directory)
                self.packages[package.name] = package
        self._processes = dict(processes or {})
        self._fronts = fronts
        # Bound and never listening: nobody else gets the port, and the fronts share it.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]
        self._admin_reservation = socket.socket()
        self._admin_reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._admin_reservation.bind(("127.0.0.1", 0))
        self.admin_port: int = self._admin_reservation.getsockname()[1]

    @property
    def tree(self) -> str:
        """The name of its cgroups."""
        return f"modelhost-{zlib.crc32(os.fsencode(self.run_dir.root)):08x}"

    def cgroups(self, below: str = "") -> list[Path]:
        """Its cgroups, one in each hierarchy, or what is `below` them. Those of others come and go meanwhile."""
        trees = [Path(where) / self.tree for where, names, _ in os.walk("/sys/fs/cgroup") if self.tree in names]
        return [path for tree in trees for path in tree.glob(below)] if below else trees

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

    def group(self, model: str) -> str:
        """The model's group of processes."""
        return group_name(model, self.packages[model].version)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop everything and assert that nothing is left of it: no process, no socket, no listener."""
        try:
            self._stop()
            self.assert_nothing_left()
        except BaseException:
            sys.stderr.write(self.logs())
            raise
        finally:
            self.kill_all()
            self._reservation.close()
            self._admin_reservation.close()
            shutil.rmtree(self.directory)

    def _stop(self) -> None:
        raise NotImplementedError

    def assert_nothing_left(self) -> None:
        """No process that knows the directory, no socket in it, no listener on the port."""
        assert self.pids() == {}
        assert [path for path in self.directory.rglob("*") if path.is_socket()] == []
        assert [path.name for path in self.run_dir.sockets.glob("*/*")] == []
        assert self.cgroups() == []
        for port in (self.port, self.admin_port):
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0

    # -- what runs ----------------------------------------------------------------------------------------
    def pids(self) -> dict[int, list[str]]:
        """Every living process that has the run directory in its command line, found in /proc."""
        found = {}
        root = str(self.directory).encode()
        for path in [one / "cmdline" for one in Path("/proc").glob("[0-9]*")]:
            try:
                words = path.read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if any(root in word for word in words):
                found[int(path.parent.name)] = [word.decode() for word in words]
        return found

    def kill_all(self) -> None:
        """Kill every process of the host; one that ends by itself meanwhile is as good."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def worker_pids(self, model: str) -> dict[int, int]:
        """Slot to pid of a model's workers."""
        return self.worker_pids_of(self.group(model))

    def worker_pids_of(self, group: str) -> dict[int, int]:
        """Slot to pid of a model version's workers."""
        sockets = {str(self.run_dir.worker_socket(group, slot)): slot for slot in range(256)}
        return {sockets[word]: pid for pid, words in self.pids().items() for word in words if word in sockets}

    def front_pids(self) -> list[int]:
        """The fronts' pids."""
        return [pid for pid, words in self.pids().items() if "host.front" in words]

    def is_ready(self, model: str = "") -> bool:
        """Ask the host, or it about one model."""
        try:
            return self.call("GET", f"/v2/models/{model}/ready" if model else "/v2/health/ready").status == 200
        except OSError:
            return False

    def joined(self, front: int = 0) -> int:
        """How often a worker has joined a front since the run directory was made."""
        return self.log(f"front:{front}").count(" joined ")

    def log(self, program: str) -> str:
        """What a process has logged, by its program name: `churn.v3:0`, `front:0`."""
        try:
            return self.run_dir.log(program).read_text()
        except FileNotFoundError:
            return ""

    def logs(self) -> str:
        """All logs, for a failing test."""
        return "".join(f"\n--- {path.name}\n{path.read_text()}" for path in sorted(self.run_dir.logs.glob("*")))

    # -- requests -----------------------------------------------------------------------------------------
    def connect(self) -> http.client.HTTPConnection:
        """Open a connection, with a limit on everything."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=CALL_LIMIT_S)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPConnection:
        """Send a request on a connection of its own; `read_answer` reads the answer later, and that closes it."""
        connection = self.connect()
        given = {"Connection": "close", **(headers or {})}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            given.setdefault("Content-Type", "application/json")
        connection.request(method, path, body=body, headers=given)
        return connection

    def call(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and read its answer; a dict travels as JSON."""
        connection = self.send(method, path, body, headers)
        try:
            return read_answer(connection)
        finally:
            connection.close()

    def admin(self, path: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Answer:
        """Ask control on its TCP port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=CALL_LIMIT_S)
        try:
            connection.request(method, path, headers={"Connection": "close", **(headers or {})})
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


class RunningHost(Host):
    """A host under `modelhost up`: supervisord, control, fronts and workers."""

    def __init__(
        self,
        repository: Path,
        *,
        settings: Mapping[str, object] | None = None,
        starter: Sequence[str] = (),
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """`prefix`: a command that runs modelhost's, as `nice` does; `starter`: one before that, for `up` only."""
        super().__init__(repository, **options)
        self._starter = tuple(starter)
        self._prefix = tuple(prefix)
        self._settings = dict(settings or {})
        self._up: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> str:
        """Start everything; back with what `up` said when it says that it is ready. `arguments`: more for it."""
        deployment = self.deployment_file
        if not deployment.exists():
            deployment.write_text(
                "".join(f'[[models]]\nname = "{name}"\nprocesses = {self.processes(name)}\n' for name in self.packages)
            )
        flags = {
            "repository": self.repository,
            "run-dir": self.run_dir.root,
            "deployment": deployment,
            "port": self.port,
            "admin-port": self.admin_port,
            "fronts": self._fronts,
            **self._settings,
        }
        self._up = subprocess.Popen(
            [
                *(*self._starter, *self._prefix, sys.executable, "-P", "-m", "host.cli", "up"),
                *(f"--{name}={value}" for name, value in flags.items()),
                *arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        said = self._read_until("ready: ")
        assert f"ready: {self.url}\n" in said, said + self.logs()
        return said

    @property
    def up_pid(self) -> int:
        """The process of `modelhost up`."""
        assert self._up is not None
        return self._up.pid

    @property
    def deployment_file(self) -> Path:
        """The host's deployment.toml."""
        return self.directory / "deployment.toml"

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin one of modelhost's commands for this host, and do not wait for it."""
        return subprocess.Popen(
            [*self._prefix, sys.executable, "-P", "-m", "host.cli", *arguments, f"--run-dir={self.run_dir.root}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of modelhost's commands for this host."""
        return subprocess.run(
            [*self._prefix, sys.executable, "-P", "-m", "host.cli", *arguments, f"--run-dir={self.run_dir.root}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            check=False,
        )

    def supervisorctl(self, *words: str) -> None:
        """Run it, as an operator does."""
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.run_dir.supervisor_config)]
        subprocess.run([*command, *words], check=True, capture_output=True, timeout=STOP_LIMIT_S)

    def status(self) -> HostStatus:
        """What control says, as soon as one is there."""

        def fetched() -> bytes | None:
            try:
                return fetch_status(self.run_dir)
            except HostError:
                return None

        return msgspec.json.decode(until(fetched, "control answers") or b"", type=HostStatus)

    def slot(self, program: str) -> SlotStatus:
        """What control says of one process."""
        status = self.status()
        slots = [*(slot for model in status.models for slot in model.slots), *status.host]
        return next(slot for slot in slots if slot.name == program)

    def _read_until(self, word: str) -> str:
        assert self._up is not None and self._up.stdout is not None
        said = ""
        with selectors.DefaultSelector() as selector:
            selector.register(self._up.stdout, selectors.EVENT_READ)
            while word not in said:
                assert selector.select(START_LIMIT_S), f"nothing more from modelhost up:\n{said}{self.logs()}"
                part = os.read(self._up.stdout.fileno(), 65536)
                if not part:
                    break
                said += part.decode()
        return said

    def wait_for_end(self) -> int:
        """Wait until `up` ends by itself; give its exit code. `stop` then only looks at what is left."""
        assert self._up is not None and self._up.stdout is not None
        code = self._up.wait(STOP_LIMIT_S)
        self._up.stdout.close()
        self._up = None
        return code

    def _stop(self) -> None:
        if self._up is None:
            return
        if self._up.poll() is None:
            self._up.send_signal(signal.SIGINT)
        said, _ = self._up.communicate(timeout=STOP_LIMIT_S)
        assert self._up.returncode == 0, said
        assert b"stopped" in said

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of the host's processes and wait for its end. It is not our child."""
        assert pid in self.pids()
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, number)
            assert select.select([descriptor], [], [], STOP_LIMIT_S)[0], f"pid {pid} does not end"
        finally:
            os.close(descriptor)


class HandHost(Host):
    """Workers and fronts started one by one, with nobody to start them again."""

    def __init__(self, repository: Path, **options: Any) -> None:
        super().__init__(repository, **options)
        run_dir = self.run_dir
        for directory in (run_dir.root, run_dir.sockets, run_dir.fronts, run_dir.logs, run_dir.counters):
            directory.mkdir()
        for model in self.packages:
            self.run_dir.group_sockets(self.group(model)).mkdir()
        deployment = load_deployment(repository, None, self.directory / "environments")
        for path in (self.run_dir.deployment, self.run_dir.routing):
            write_deployment(path, deployment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: set[str] = set()

    def start_worker(self, model: str, slot: int = 0, python: Path | None = None) -> subprocess.Popen[bytes]:
        """Start one worker, by path as supervisord does, and do not wait for it."""
        group = self.group(model)
        arguments = ["-I", "-u", str(CHECKOUT / "models" / "by_path.py"), "--slot", str(slot)]
        arguments += ["--package", str(self.repository / model / self.packages[model].version)]
        arguments += ["--socket", str(self.run_dir.worker_socket(group, slot))]
        return self._spawn(f"{group}:{slot}", [str(python or sys.executable), *arguments])

    def start_front(self, index: int = 0, *flags: str, port: int | None = None) -> subprocess.Popen[bytes]:
        """Start one front, and do not wait for it."""
        arguments = ["-P", "-m", "host.front", "--run-dir", str(self.run_dir.root), *flags]
        arguments += ["--port", str(port or self.port), "--index", str(index)]
        return self._spawn(f"front:{index}", [sys.executable, *arguments])

    def serves(self, workers: int) -> bool:
        """Whether a front listens, and so many workers have joined it: they do so a moment before it listens."""
        with socket.socket() as probe:
            return self.joined() == workers and probe.connect_ex(("127.0.0.1", self.port)) == 0

    def started(self, prefix: str) -> list[subprocess.Popen[bytes]]:
        """The processes whose program names begin so."""
        return [process for program, process in self._running.items() if program.startswith(prefix)]

    def _spawn(self, program: str, command: list[str]) -> subprocess.Popen[bytes]:
        with self.run_dir.log(program).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            )
        self._running[program] = process
        return process

    def _stop(self) -> None:
        for prefix in ("front:", ""):
            for process in self.started(prefix):
                process.terminate()
            for process in self.started(prefix):
                process.wait(STOP_LIMIT_S)
        for program in self._killed | {name for name, process in self._running.items() if process.returncode}:
            # Nobody else cleans up after a worker that died.
            group, _, slot = program.partition(":")
            self.run_dir.group_sockets(group).joinpath(f"{slot}.sock").unlink(missing_ok=True)

    def kill(self, program: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process by its program name, and wait for its end."""
        process = self._running.pop(program)
        self._killed.add(program)
        process.send_signal(number)
        process.wait(STOP_LIMIT_S)
