"""The servers that are compared: how each starts, where it answers, on which CPUs it runs; and starting it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
REPOSITORY = ROOT / "model_repository"
READY_S = 90.0
END_S = 20.0
FRONT_CPU, WORKER_CPU = 0, 1
"""What reads HTTP has a CPU, the model the other, where a server lets itself be divided so."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Command = Callable[[int, Path], list[str]]
"""Port and a directory of its own to the command line."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server in one setting."""

    name: str
    setting: str
    command: Command
    path: str
    environ: dict[str, str] = field(default_factory=dict)
    body: Callable[[bytes], bytes] = bytes
    """From the Open Inference Protocol's document to what this server takes."""
    pins: tuple[tuple[str, int], ...] = ()
    """Part of a command line to CPU; processes that match none run on both."""
    headers: tuple[str, ...] = ()
    announces: bytes = b""
    """What it prints once it has started, where answering a first request is not the end of that."""


def peer_python(peer: str) -> str:
    """The interpreter of a peer's environment."""
    return str(ROOT / ".venv" / f"bench-{peer}" / "bin" / "python")


def peer_program(peer: str, program: str) -> str:
    """A program of a peer's environment."""
    return str(ROOT / ".venv" / f"bench-{peer}" / "bin" / program)


class Running:
    """A server that was started, with all its processes."""

    def __init__(self, server: Server, port: int, process: subprocess.Popen[bytes]) -> None:
        self.server = server
        self.port = port
        self.process = process

    def pids(self) -> dict[int, str]:
        """Every process of it with its command line: descendants, and who shares its session."""
        parents, sessions, commands = {}, {}, {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            pid = int(path.name)
            parents[pid], sessions[pid], commands[pid] = int(fields[1]), int(fields[3]), command
        mine = {pid for pid, session in sessions.items() if session == self.process.pid}
        grew = True
        while grew:
            children = {pid for pid, parent in parents.items() if parent in mine}
            grew = not children <= mine
            mine |= children
        return {pid: commands[pid] for pid in mine}

    def option(self, name: str) -> str:
        """The value of a command line option of the form `--name=value`. Raises `KeyError`."""
        options = (str(part).removeprefix("--").partition("=") for part in cast("list[str]", self.process.args))
        return {key: value for key, _, value in options}[name]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes since their start."""
        ticks = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += sum(map(int, fields[11:13]))
        return ticks / _TICKS_PER_S

    def rss_bytes(self, part: str) -> int:
        """Resident bytes of the processes whose command line has that part."""
        pages = 0
        for pid, command in self.pids().items():
            if part in command:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def pin(self) -> None:
        """Put its processes where its setting says."""
        for pid, command in self.pids().items():
            for part, cpu in self.server.pins:
                if part in command:
                    for thread in Path(f"/proc/{pid}/task").glob("[0-9]*"):
                        os.sched_setaffinity(int(thread.name), {cpu})
                    break


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(server: Server, request: bytes, content_type: str = "application/json") -> Iterator[Running]:
    """Start a server, wait until it answers `request`, and end it and all that it started."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mh-") as directory, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            server.command(port, Path(directory)),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", **server.environ},
            cwd=PEERS,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        started = Running(server, port, process)
        try:
            try:
                _wait_until_ready(started, request, content_type)
                _wait_until_said(log.fileno(), server.announces)
            except TimeoutError:
                said = _said(log.fileno()).decode(errors="replace")[-2000:]
                raise SystemExit(f"{server.name}: not ready (exit code {process.poll()})\n{said}") from None
            started.pin()
            yield started
        finally:
            _end(started)


def _wait_until_ready(started: Running, request: bytes, content_type: str) -> None:
    url = f"http://127.0.0.1:{started.port}{started.server.path}"
    headers = {"Content-Type": content_type, **dict(line.split(": ", 1) for line in started.server.headers)}
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit and started.process.poll() is None:
        try:
            asked = urllib.request.Request(url, started.server.body(request), headers)
            with urllib.request.urlopen(asked, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError


def _said(log: int) -> bytes:
    """What a server has printed so far; the descriptor is the server's too, so its place in the file stays."""
    return os.pread(log, 1 << 20, 0)


def _wait_until_said(log: int, text: bytes) -> None:
    limit = time.monotonic() + READY_S
    while text not in _said(log):
        if time.monotonic() > limit:
            raise TimeoutError
        time.sleep(0.1)


def _end(started: Running) -> None:
    mine = started.pids()
    started.process.terminate()
    try:
        started.process.wait(END_S)
    except subprocess.TimeoutExpired:
        started.process.kill()
        started.process.wait()
    for pid in mine.keys() & started.pids().keys() | (mine.keys() - {started.process.pid}):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") == mine[pid]:
                os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


# -- the servers ------------------------------------------------------------------------------------------
def modelhost(
    models: str,
    path: str,
    *,
    fronts: int = 1,
    repository: Path = REPOSITORY,
    workers: int = 1,
    deployment: str = "",
) -> Server:
    """modelhost as it is shipped: one setting for every load. `deployment`: its file, if it is more than `workers`."""

    def command(port: int, directory: Path) -> list[str]:
        (directory / "deployment.toml").write_text(
            deployment or "".join(f'[[models]]\nname = "{model}"\nprocesses = {workers}\n' for model in models.split())
        )
        flags = {
            "port": port,
            "run-dir": directory / "run",
            "repository": repository,
            "fronts": fronts,
            "admin-port": 0,
        }
        flags |= {"deployment": directory / "deployment.toml"}
        flags |= {"model-python": ROOT / ".venv" / "model-env" / "bin" / "python"}
        program = ROOT / ".venv" / "bin" / "modelhost"
        return [str(program), "up", *(f"--{name}={value}" for name, value in flags.items())]

    return Server(
        name="modelhost" if fronts == 1 else f"modelhost, {fronts} fronts",
        setting=f"as shipped: {fronts} front, {workers} worker",
        command=command,
        path=path,
        pins=(("host.front", FRONT_CPU), ("by_path.py", WORKER_CPU)),
        announces=b"\nready: ",
    )


MODEL_FILE = {"MODEL_FILE": str(REPOSITORY / "breast_cancer" / "1" / "model.txt")}
ONNX_FILE = {"ONNX_FILE": str(REPOSITORY / "digits" / "1" / "model.onnx")}


MOSEC_SETTINGS = ((1, 0), (8, 1), (16, 1), (32, 1), (64, 1), (128, 2))
"""`max_batch_size` and `max_wait_time` in ms: for each load one that suits it. A batch that fills goes at once, and
one that does not waits for the time, so no setting is good at every load."""


def mosec(batch: int, wait_ms: int) -> Server:
    """mosec in one of its settings."""
    return Server(
        name=f"mosec ({batch}, {wait_ms} ms)",
        setting=f"one worker, max_batch_size {batch}, max_wait_time {wait_ms} ms",
        command=lambda port, _: [
            peer_python("mosec"),
            "mosec_app.py",
            "--port",
            str(port),
            "--address",
            "127.0.0.1",
            "--timeout",
            "10000",
            "--log-level",
            "error",
        ],
        path="/inference",
        environ={**MODEL_FILE, "MAX_BATCH": str(batch), "MAX_WAIT_MS": str(wait_ms)},
        pins=(("spawn_main", WORKER_CPU), ("/mosec/bin/mosec", FRONT_CPU)),
    )


def mosec_servers() -> list[Server]:
    """mosec in all of its settings."""
    return [mosec(batch, wait_ms) for batch, wait_ms in MOSEC_SETTINGS]


def fastapi(app: str, path: str, environ: dict[str, str]) -> Server:
    """A FastAPI application under uvicorn, the model in its process."""
    return Server(
        name="FastAPI",
        setting="uvicorn with uvloop and httptools, the model in its process, no isolation",
        command=lambda port, _: [
            peer_program("fastapi", "uvicorn"),
            app,
            "--port",
            str(port),
            "--log-level",
            "error",
            "--no-access-log",
        ],
        path=path,
        environ=environ,
        pins=(("uvicorn", FRONT_CPU),),
    )


def lightgbm_servers() -> list[Server]:
    """All that serve the LightGBM model."""
    path = "/v2/models/breast_cancer/infer"
    return [
        modelhost("breast_cancer", path),
        *mosec_servers(),
        fastapi("fastapi_app:app", path, MODEL_FILE),
        Server(
            name="MLServer",
            setting="custom runtime, 1 parallel worker, adaptive batching (64, 1 ms), no metrics",
            command=lambda port, directory: [peer_python("mlserver"), "mlserver_app.py", str(directory), str(port)],
            path=path,
            environ={**MODEL_FILE, "PYTHONPATH": str(PEERS)},
        ),
        Server(
            name="LitServe",
            setting="one worker, batches (64, 1 ms), fast queue",
            command=lambda port, _: [peer_python("litserve"), "litserve_app.py", str(port)],
            path=path,
            environ=MODEL_FILE,
        ),
        Server(
            name="BentoML",
            setting="one worker, batchable (64), no access log, no metrics",
            command=lambda port, _: [
                peer_program("bentoml", "bentoml"),
                "serve",
                "bentoml_app:Model",
                "--port",
                str(port),
                "--host",
                "127.0.0.1",
            ],
            path="/infer",
            environ={**MODEL_FILE, "BENTOML_DO_NOT_TRACK": "1"},
        ),
        Server(
            name="Ray Serve",
            setting="one replica, @serve.batch (64, 1 ms), no access log",
            command=lambda port, _: [peer_python("ray"), "ray_app.py", str(port)],
            path="/",
            environ={**MODEL_FILE, "RAY_USAGE_STATS_ENABLED": "0"},
        ),
    ]
