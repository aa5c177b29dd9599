"""An open loop: requests leave on schedule whether or not earlier ones were answered, and latency counts from then.

A closed loop slows down with the server and so hides an overload. Here an arrival that finds no free connection opens
another; what the generator itself is late by is reported, so that a figure which is the generator's is seen to be so.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import uvloop

CONNECTIONS_MAX = 3000


@dataclass
class Outcome:
    """What came of the arrivals of one run. Latencies in milliseconds, from the scheduled time."""

    rate: float
    seconds: float
    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    admitted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    """How long after its scheduled time a request left."""
    lost: int = 0
    """Connections that ended without an answer, and answers that never came."""

    @property
    def goodput(self) -> float:
        """Answers 200 a second."""
        return self.statuses[200] / self.seconds

    @property
    def reached(self) -> float:
        """Requests a second that were really sent."""
        return self.sent / self.seconds

    def describe(self) -> dict[str, float | int | dict[str, int]]:
        """The figures."""
        return {
            "offered_per_s": round(self.rate, 1),
            "sent_per_s": round(self.reached, 1),
            "goodput_per_s": round(self.goodput, 1),
            "admitted_p50_ms": round(quantile(self.admitted_ms, 0.5), 2),
            "admitted_p99_ms": round(quantile(self.admitted_ms, 0.99), 2),
            "refused_p50_ms": round(quantile(self.refused_ms, 0.5), 2),
            "generator_late_p99_ms": round(quantile(self.late_ms, 0.99), 2),
            "lost": self.lost,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which so large a part lies; 0 of nothing."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=1000, method="inclusive")[min(998, int(part * 1000) - 1)]


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self.transport: asyncio.Transport | None = None
        self.scheduled_s = 0.0
        self.busy = False
        self._head = b""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
            if self._missing <= 0:
                self._done()
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return
        start = self._head.index(b"Content-Length: ") + 16
        length = int(self._head[start : self._head.index(b"\r", start)])
        self._missing = length - (len(self._head) - end - 4)
        if self._missing <= 0:
            self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.busy:
            self._generator.outcome.lost += 1

    def send(self, request: bytes, scheduled_s: float) -> None:
        """Send the next one."""
        assert self.transport is not None
        self.busy, self.scheduled_s, self._head, self._missing = True, scheduled_s, b"", 0
        self.transport.write(request)

    def _done(self) -> None:
        self.busy = False
        self._missing = 0
        self._generator.answered(self, int(self._head[9:12]))


class _Generator:
    def __init__(self, port: int, requests: Sequence[bytes], rate: float, seconds: float) -> None:
        self.outcome = Outcome(rate, seconds)
        self._port = port
        self._requests = requests
        self._free: list[_Connection] = []
        self._all: list[_Connection] = []
        self._loop = asyncio.get_running_loop()

    def answered(self, connection: _Connection, status: int) -> None:
        latency_ms = (time.perf_counter() - connection.scheduled_s) * 1000
        self.outcome.statuses[status] += 1
        if status == 200:
            self.outcome.admitted_ms.append(latency_ms)
        elif status == 503:
            self.outcome.refused_ms.append(latency_ms)
        if connection.transport is not None:
            self._free.append(connection)

    async def _connect(self) -> _Connection:
        _, connection = await self._loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        self._all.append(connection)
        return connection

    async def run(self, ready_connections: int) -> Outcome:
        self._free += [await self._connect() for _ in range(ready_connections)]
        total = int(self.outcome.rate * self.outcome.seconds)
        start_s = time.perf_counter() + 0.01
        opening: set[asyncio.Task[None]] = set()
        number = 0
        while number < total:
            now_s = time.perf_counter()
            while number < total and start_s + number / self.outcome.rate <= now_s:
                scheduled_s = start_s + number / self.outcome.rate
                request = self._requests[number % len(self._requests)]
                number += 1
                while self._free and self._free[-1].transport is None:
                    self._free.pop()
                if self._free:
                    self._leave(self._free.pop(), request, scheduled_s)
                elif len(self._all) < CONNECTIONS_MAX:
                    task = self._loop.create_task(self._open_and_send(request, scheduled_s))
                    opening.add(task)
                    task.add_done_callback(opening.discard)
                else:
                    self.outcome.lost += 1
            await asyncio.sleep(max(0.0005, start_s + number / self.outcome.rate - time.perf_counter()))
        await asyncio.gather(*opening)
        limit_s = time.perf_counter() + 15
        while any(connection.busy for connection in self._all) and time.perf_counter() < limit_s:
            await asyncio.sleep(0.01)
        for connection in self._all:
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)
        return self.outcome

    async def _open_and_send(self, request: bytes, scheduled_s: float) -> None:
        self._leave(await self._connect(), request, scheduled_s)

    def _leave(self, connection: _Connection, request: bytes, scheduled_s: float) -> None:
        self.outcome.sent += 1
        self.outcome.late_ms.append((time.perf_counter() - scheduled_s) * 1000)
        connection.send(request, scheduled_s)


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def generate(port: int, requests: Sequence[bytes], rate: float, seconds: float, ready: int = 64) -> Outcome:
    """Offer `rate` requests a second, the given ones in turn."""
    return await _Generator(port, requests, rate, seconds).run(ready)


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Outcome:
    """The same, from a program without a loop."""
    return uvloop.run(generate(port, requests, rate, seconds))
