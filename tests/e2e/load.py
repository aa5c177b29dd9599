"""Requests at a constant rate, whatever becomes of them: a process of its own, run in a fleet's controller.

    python load.py TARGETS.json RECORDS.jsonl      # until SIGTERM

Open loop: a request is sent when its time has come, also if none before it was answered. So a server that stands still
for a second shows as 200 late requests, not as one. Nothing is sent twice. traffic.py starts this and reads what it
writes: one line for each request, when it is over.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import aiohttp

END_LIMIT_S: Final = 30.0
"""How long requests that are on their way may take once no more are sent."""
HOST_HEADER: Final = "X-Served-By"
"""In which a balancer may say which host has answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to ask, and how often."""

    name: str
    url: str
    body: str | None = None
    """JSON to POST; without it the request is a GET."""
    rate: float = 200.0
    """Requests a second."""
    timeout_s: float = 10.0
    reuse_connections: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, when it was over. Times are those of the machine's monotonic clock, in seconds."""

    target: str
    planned_s: float
    sent_s: float
    done_s: float
    status: int | None
    """None: no answer, and `error` says why."""
    error: str | None
    version: str | None
    """The model's version, as the answer says."""
    host: str | None
    """Who has answered, if the balancer says it."""


async def ask(session: aiohttp.ClientSession, target: Target, planned_s: float) -> Request:
    """Send one request and say what became of it."""
    sent_s = time.monotonic()
    status, error, version, host = None, None, None, None
    try:
        method = "GET" if target.body is None else "POST"
        async with session.request(method, target.url, data=target.body) as response:
            content = await response.read()
            status = response.status
            host = response.headers.get(HOST_HEADER)
        version, refusal = told(content)
        if status != 200:
            error = f"{status}: {refusal or content[:200].decode(errors='replace')}"
    except Exception as failure:  # whatever it was: a request that is not in the records would be no failure
        status, error = None, f"{type(failure).__name__}: {failure}"
    return Request(
        target=target.name,
        planned_s=planned_s,
        sent_s=sent_s,
        done_s=time.monotonic(),
        status=status,
        error=error,
        version=version,
        host=host,
    )


def told(content: bytes) -> tuple[str | None, str | None]:
    """Read the model's version and the error, if there is one, from an answer in JSON."""
    try:
        document: Any = json.loads(content)
    except ValueError:
        return None, None
    if not isinstance(document, dict):
        return None, None
    version, error = document.get("model_version"), document.get("error")
    return (None if version is None else str(version)), (None if error is None else str(error))


async def keep_asking(target: Target, end: asyncio.Event, records: TextIO) -> None:
    """Send a target's requests on time until the end, and wait for those on their way."""
    connector = aiohttp.TCPConnector(limit=0, force_close=not target.reuse_connections)
    headers = {"Content-Type": "application/json"} if target.body is not None else {}
    timeout = aiohttp.ClientTimeout(total=target.timeout_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        on_their_way: set[asyncio.Task[Request]] = set()

        def over(task: asyncio.Task[Request]) -> None:
            on_their_way.discard(task)
            records.write(json.dumps(asdict(task.result())) + "\n")
            records.flush()

        start_s, number = time.monotonic(), 0
        while not end.is_set():
            planned_s = start_s + number / target.rate
            if (left_s := planned_s - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(end.wait(), left_s)
                except TimeoutError:
                    pass
                continue
            task = asyncio.create_task(ask(session, target, planned_s))
            on_their_way.add(task)
            task.add_done_callback(over)
            number += 1
            await asyncio.sleep(0)
        if on_their_way:
            await asyncio.wait(on_their_way, timeout=END_LIMIT_S)


async def main(targets: Sequence[Target], records: TextIO) -> None:
    """Ask all targets until SIGTERM."""
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    await asyncio.gather(*(keep_asking(target, end, records) for target in targets))


if __name__ == "__main__":
    chosen = [Target(**target) for target in json.loads(Path(sys.argv[1]).read_text())]
    with Path(sys.argv[2]).open("w") as output:
        asyncio.run(main(chosen, output))
