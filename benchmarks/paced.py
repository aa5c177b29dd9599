"""A fixed number of connections at a fixed rate: what one request takes while a server is not full.

A closed loop without pauses measures 32 / rate, whatever a request costs; and the loops of asyncio count in whole
milliseconds, so that requests leave in bursts of all that fall into one. `select` counts in microseconds.
"""

from __future__ import annotations

import select
import socket
import statistics
import time
from collections import deque
from collections.abc import Sequence

ANSWER_LIMIT_S = 15.0
_RECEIVED_MAX = 1 << 16


class _Connection:
    """One request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.scheduled_s = 0.0
        self._answer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, request: bytes, scheduled_s: float) -> None:
        """Send the next one."""
        self.scheduled_s, self._answer = scheduled_s, b""
        self.socket.sendall(request)

    def is_answered(self) -> bool:
        """Take what has come. Raises `AssertionError` if it is not an answer 200."""
        received = self.socket.recv(_RECEIVED_MAX)
        assert received, "the server closed the connection"
        self._answer += received
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not end:
            return False
        assert head.startswith(b"HTTP/1.1 200"), self._answer
        length = head.split(b"Content-Length: ", 1)[1].split(b"\r", 1)[0]
        return len(body) >= int(length)


def paced_ms(port: int, requests: Sequence[bytes], rate: float, seconds: float, connections: int) -> list[float]:
    """Send `rate` requests a second, the given ones in turn; milliseconds from when each was due to its answer.

    One that finds no connection free waits for one, and its time counts.
    """
    total = int(rate * seconds)
    free = [_Connection(port) for _ in range(connections)]
    everyone = list(free)
    busy: set[_Connection] = set()
    due: deque[int] = deque()
    taken_ms: list[float] = []
    number, start_s = 0, time.perf_counter() + 0.01
    try:
        while len(taken_ms) < total:
            now_s = time.perf_counter()
            assert now_s < start_s + seconds + ANSWER_LIMIT_S, f"{total - len(taken_ms)} answers are missing"
            while number < total and start_s + number / rate <= now_s:
                due.append(number)
                number += 1
            while due and free:
                one, connection = due.popleft(), free.pop()
                connection.send(requests[one % len(requests)], start_s + one / rate)
                busy.add(connection)
            next_s = start_s + number / rate if number < total else now_s + 1
            for connection in select.select(list(busy), [], [], max(0.0, next_s - time.perf_counter()))[0]:
                if connection.is_answered():
                    taken_ms.append(1000 * (time.perf_counter() - connection.scheduled_s))
                    busy.discard(connection)
                    free.append(connection)
    finally:
        for connection in everyone:
            connection.socket.close()
    return taken_ms


def median_ms(port: int, requests: Sequence[bytes], rate: float, seconds: float, connections: int) -> float:
    """The median of `paced_ms`."""
    return statistics.median(paced_ms(port, requests, rate, seconds, connections))
