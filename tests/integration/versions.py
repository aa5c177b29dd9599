"""A model in several versions, each of which answers with its number; and clients that watch which one answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from hosts import CALL_LIMIT_S, Host, tensors
from packages import write_package

VERSIONED = '''
import ctypes
import itertools
import time

VERSION = {version}
CALLS = itertools.count(1)


class Model:
    """Answers with its version."""

    def load(self, package):
        fault = package / "fault"
        kind = fault.read_text() if fault.exists() else ""
        if kind == "crash":
            ctypes.string_at(13)
        if kind == "raise":
            raise ValueError("no such weights")
        if kind == "hang":
            time.sleep(600)
        while kind == "wait" and fault.exists():
            time.sleep(0.01)
        if kind == "memory":
            held = []
            while True:
                held.append(bytearray(8 << 20))

    def predict(self, inputs):
        time.sleep({predict_s})
        if {failing_each} and next(CALLS) % {failing_each} == 0:
            raise ValueError("unlucky")
        return {{"version": inputs["x"] * 0 + VERSION}}
'''


def write_versions(
    repository: Path,
    versions: Sequence[str],
    name: str = "versioned",
    *,
    fault: str = "",
    predict_s: float = 0.0,
    failing_each: int = 0,
    timeout_ms: int = 10_000,
) -> None:
    """Write packages of these versions, numbers all. `fault`: what the last one does at load; "golden" is one too.

    "wait": it waits until the test lets it go on (`let_load`).
    `failing_each`: 10 lets each tenth request to a process of the last one fail; not its few calls at the start.
    """
    for version in versions:
        directory = write_package(
            repository,
            name,
            VERSIONED.format(
                version=version,
                predict_s=predict_s,
                failing_each=failing_each if version == versions[-1] else 0,
            ),
            version=version,
            inputs=[("x", "INT64", [-1, 1])],
            outputs=[("version", "INT64", [-1, 1])],
            limits={
                "max_batch_rows": 1 if failing_each else 256,
                # Only one that hangs shall be given up for the time that it takes: a busy machine may take long, too.
                "startup_s": 3 if fault == "hang" and version == versions[-1] else 60,
                "timeout_ms": timeout_ms,
            },
            resources={"memory": "128MiB"},
        )
        answer = int(version)
        if fault and version == versions[-1]:
            (directory / "fault").write_text(fault)
            answer += fault == "golden"
        request = tensors(x=("INT64", [1, 1], [1]))
        response = {"outputs": [{"name": "version", "datatype": "INT64", "shape": [1, 1], "data": [answer]}]}
        case = {"name": "its own number", "request": request, "response": response}
        (directory / "golden.json").write_text(json.dumps({"cases": [case]}))


def let_load(repository: Path, version: str, name: str = "versioned") -> None:
    """Let a version with the fault "wait" go on."""
    (repository / name / version / "fault").unlink()


BEAT_S = 0.02
LAG_MAX_S = 0.3
"""A front that stops gives idle clients half a second (`fast_lane.FAREWELL_S`). Those here ask again at once, unless
they stand still themselves."""


@dataclass
class Watch:
    """What a number of clients saw."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    """When each was asked and answered (seconds, monotonic), and the version that answered."""
    failed: list[str] = field(default_factory=list)
    lag_s: float = 0.0
    """How long the clients stood still at most."""
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def more(self, count: int) -> None:
        """Wait until so many more requests have been answered."""
        wanted = len(self.answers) + count
        async with self.progress:
            await self.progress.wait_for(lambda: len(self.answers) >= wanted)

    @property
    def was_late(self) -> bool:
        """Whether requests failed, and the clients stood still so long that their connections may have been closed."""
        return bool(self.failed) and self.lag_s > LAG_MAX_S

    @property
    def versions(self) -> list[str]:
        """The versions that answered, in the order in which each was first seen, runs of one counted once."""
        seen = [version for _, _, version in sorted(self.answers, key=lambda answer: answer[1])]
        return [version for version, before in zip(seen, ["", *seen], strict=False) if version != before]

    @property
    def counts(self) -> Counter[str]:
        """How many answers each version gave."""
        return Counter(version for _, _, version in self.answers)


@asynccontextmanager
async def watched(host: Host, model: str = "versioned", clients: int = 8) -> AsyncIterator[Watch]:
    """Keep so many clients asking, each on a connection of its own that it keeps."""
    watch, stop = Watch(), asyncio.Event()
    body = json.dumps(tensors(x=("INT64", [1, 1], [7]))).encode()
    headers = {"Content-Type": "application/json"}

    async def client(session: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            asked = time.monotonic()
            try:
                async with session.post(f"{host.url}/v2/models/{model}/infer", data=body, headers=headers) as response:
                    document = await response.json()
            except (aiohttp.ClientError, TimeoutError) as error:
                watch.failed.append(repr(error))
                continue
            answered = time.monotonic()
            if response.status != 200:
                watch.failed.append(f"{response.status} {document}")
                continue
            version = document["model_version"]
            if document["outputs"][0]["data"] != [int(version)]:
                watch.failed.append(f"not of version {version}: {document}")
            async with watch.progress:
                watch.answers.append((asked, answered, version))
                watch.progress.notify_all()

    async def beat() -> None:
        while not stop.is_set():
            begun = time.monotonic()
            await asyncio.sleep(BEAT_S)
            watch.lag_s = max(watch.lag_s, time.monotonic() - begun - BEAT_S)

    timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        tasks = [asyncio.create_task(beat()), *(asyncio.create_task(client(session)) for _ in range(clients))]
        try:
            yield watch
        finally:
            stop.set()
            await asyncio.gather(*tasks)
