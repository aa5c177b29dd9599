"""Whether `/metrics` says what clients saw: every request counted once, whoever is killed meanwhile.

A scenario of `scenarios.py`; tests/integration has a small one. Clients count statuses by model; the host's own counts,
summed over all fronts, must be the same ones. Standard library only.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.servers import Running, modelhost, running

REQUESTS: Final = 1_000_000
CONNECTIONS: Final = 32
KILL_EVERY_S: Final = 2.0
FRONTS: Final = 2
WORKERS: Final = 2
MODELS: Final = ("one", "two", "three")
_SETTLE_S: Final = 30.0

TOML = """runtime = "python"
[[inputs]]
name = "x"
datatype = "FP64"
shape = [-1, 1]
[[outputs]]
name = "y"
datatype = "FP64"
shape = [-1, 1]
"""
CODE = """class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""
BODY = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,1],"data":[1.0]}]}'

_SAMPLE: Final = re.compile(r"^(modelhost_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')

Counts = Counter[tuple[str, int]]
"""Model and status to requests."""


@dataclass
class Seen:
    """What clients saw."""

    counts: Counts = field(default_factory=Counter)
    lost: int = 0
    """Requests whose connection ended without an answer."""


async def ask(port: int, models: Sequence[str], requests: int, connections: int = CONNECTIONS) -> Seen:
    """Send so many requests to these models in turn, over so many connections, and count what comes back."""
    seen, left = Seen(), iter(range(requests))
    paths = {model: f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n".encode() for model in models}
    rest = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    whole = [(model, path + rest) for model, path in paths.items()]

    async def client() -> None:
        writer: asyncio.StreamWriter | None = None
        reader = asyncio.StreamReader()
        for number in left:
            model, request = whole[number % len(whole)]
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
            except (OSError, asyncio.IncompleteReadError):
                seen.lost += 1
                if writer is not None:
                    writer.close()
                writer = None
                continue
            seen.counts[model, int(head[9:12])] += 1
        if writer is not None:
            writer.close()

    async with asyncio.TaskGroup() as clients:
        for _ in range(connections):
            clients.create_task(client())
    return seen


def counted(text: str, models: Sequence[str]) -> Counts:
    """What an exposition says of these models' requests: by model and status, without zeros."""
    counts: Counts = Counter()
    for labels, number in series(text, "modelhost_requests_total"):
        if labels.get("model") in models and float(number):
            counts[labels["model"], int(labels["code"])] += int(float(number))
    return counts


def series(text: str, name: str) -> list[tuple[dict[str, str], str]]:
    """Labels and number of each series of a name."""
    return [(dict(_LABEL.findall(labels)), number) for one, labels, number in _SAMPLE.findall(text) if one == name]


def scrape(control_socket: Path, timeout_s: float = 10.0) -> str:
    """`GET /metrics` on control's Unix socket. Raises `OSError`."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(control_socket))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with sock.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    if b" 200 " not in head.splitlines()[0]:
        raise OSError(f"{control_socket}: expected 200, received {head[:100]!r}")
    return body.decode()


def differences(seen: Mapping[tuple[str, int], int], said: Mapping[tuple[str, int], int]) -> dict[str, list[int]]:
    """Where clients and host disagree: model and status to both counts."""
    keys = sorted({*seen, *said})
    return {
        f"{model} {status}": [seen.get((model, status), 0), said.get((model, status), 0)]
        for model, status in keys
        if seen.get((model, status), 0) != said.get((model, status), 0)
    }


async def kill_now_and_then(pids: Callable[[], Sequence[int]], every_s: float, stop: asyncio.Event) -> int:
    """Kill one of these processes every so often; how many were. Any two kills are `every_s` apart on average."""
    killed = 0
    while not stop.is_set():
        try:
            async with asyncio.timeout(random.uniform(0.5, 1.5) * every_s):  # noqa: S311 - which one does not matter
                await stop.wait()
        except TimeoutError:
            found = await asyncio.to_thread(pids)
            if found:
                try:
                    os.kill(random.choice(found), signal.SIGKILL)  # noqa: S311
                    killed += 1
                except ProcessLookupError:
                    pass
    return killed


async def ask_and_kill(
    port: int, models: Sequence[str], requests: int, pids: Callable[[], Sequence[int]], every_s: float
) -> tuple[Seen, int]:
    """Ask while somebody kills; what clients saw, and how many were killed."""
    stop = asyncio.Event()
    killer = asyncio.create_task(kill_now_and_then(pids, every_s, stop))
    try:
        seen = await ask(port, models, requests)
    finally:
        stop.set()
    return seen, await killer


# -- the scenario ---------------------------------------------------------------------------------------------
def counting(say: Callable[[str], None], requests: int = REQUESTS) -> dict[str, Any]:
    """Three models with two workers each behind two fronts; a worker is killed every two seconds."""
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        repository = Path(directory)
        for model in MODELS:
            package = repository / model / "1"
            package.mkdir(parents=True)
            (package / "model.toml").write_text(TOML)
            (package / "model.py").write_text(CODE)
        server = modelhost(
            " ".join(MODELS), f"/v2/models/{MODELS[0]}/infer", fronts=FRONTS, repository=repository, workers=WORKERS
        )
        with running(replace(server, pins=()), BODY) as started:
            return _counted(started, requests, say)


def _counted(started: Running, requests: int, say: Callable[[str], None]) -> dict[str, Any]:
    control = Path(started.option("run-dir")) / "control.sock"
    before = counted(scrape(control), MODELS)

    def workers() -> list[int]:
        return [pid for pid, command in started.pids().items() if "by_path.py" in command]

    begin = time.perf_counter()
    seen, killed = asyncio.run(ask_and_kill(started.port, MODELS, requests, workers, KILL_EVERY_S))
    took_s = time.perf_counter() - begin
    said = counted(scrape(control), MODELS)
    said.subtract(before)
    found = {
        "requests": requests,
        "seconds": round(took_s, 1),
        "killed": killed,
        "lost": seen.lost,
        "clients": sum(seen.counts.values()),
        "metrics": sum(said.values()),
        "statuses": {str(status): count for status, count in sorted(_by_status(seen.counts).items())},
        "differences": differences(seen.counts, said),
    }
    say(f"counting: {found}")
    return found


def _by_status(counts: Counts) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for (_, status), count in counts.items():
        statuses[status] += count
    return statuses
