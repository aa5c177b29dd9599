"""Which requests get a line, what is in it, and that nothing waits for it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import select
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from host.front.access_log import (
    FAILURES_PER_S,
    WAITING_MAX,
    Access,
    AccessLog,
    StandardError,
    error_code,
    known_method,
)
from host.protocol.documents import error_document
from host.protocol.errors import QueueFull
from host.protocol.messages import Encoding

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def access(status: int = 200, **named: Any) -> Access:
    given = {"method": "POST", "route": "/v2/models/{model}/infer", "in_bytes": 12, "out_bytes": 345} | named
    return Access(received_ns=time.monotonic_ns() - 1_500_000, status=status, **given)


WHOLE = access(503, model="churn", version="3", slot=1, code="QUEUE_FULL", request_id="abc", traceparent=PARENT)


class Rig:
    """A log, and what it wrote."""

    def __init__(self, share: float, log_format: str = "json", draw: Callable[[], float] = random.random) -> None:
        self.pieces: list[bytes] = []
        self.room = True
        self.wrote = asyncio.Event()
        self.now_ns = time.monotonic_ns()
        loop = asyncio.get_running_loop()
        self.log = AccessLog(loop, "front:0", log_format, share, self._write, draw, lambda: self.now_ns)

    def _write(self, lines: bytes) -> bool:
        if self.room:
            self.pieces.append(lines)
        self.wrote.set()
        return self.room

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in b"".join(self.pieces).splitlines()]

    def answer(self, status: int = 200) -> None:
        """As both lanes do."""
        self.log.countdown -= 1
        if self.log.countdown < 0 or status >= 500:
            self.log.note(access(status))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 200)])
async def test_none_or_all(share: float, expected: int) -> None:
    rig = Rig(share)
    for _ in range(200):
        rig.answer()
    assert rig.pieces == []  # nothing is written while answers go out
    rig.log.close()
    assert len(rig.lines) == expected


async def test_a_share_is_drawn_as_if_each_request_were() -> None:
    dice = random.Random(5)  # noqa: S311 - a sequence that is the same each time
    gaps = []
    rig = Rig(0.25, draw=dice.random)
    for _ in range(4000):
        gaps.append(rig.log.countdown)
        rig.log.countdown = -1
        rig.log.note(access())
    assert 2.8 < sum(gaps) / len(gaps) < 3.2  # three of four are skipped
    assert 0.22 < gaps.count(0) / len(gaps) < 0.28


@pytest.mark.parametrize("failures", [0, 1, FAILURES_PER_S, FAILURES_PER_S + 1, 5 * FAILURES_PER_S])
async def test_failures_are_told_of_and_bounded(failures: int) -> None:
    rig = Rig(0.0)
    for _ in range(failures):
        rig.answer(503)
    rig.log.close()
    told = [line["left_out"] for line in rig.lines if "left_out" in line]
    assert len(rig.lines) - len(told) == min(failures, FAILURES_PER_S)
    assert told == ([failures - FAILURES_PER_S] if failures > FAILURES_PER_S else [])


async def test_the_next_second_has_its_own_lines() -> None:
    rig = Rig(0.0)
    for _ in range(3):
        rig.now_ns += 1_000_000_000
        for _ in range(FAILURES_PER_S + 1):
            rig.answer(503)
        rig.log.close()
    assert len([line for line in rig.lines if "left_out" not in line]) == 3 * FAILURES_PER_S
    assert [line["left_out"] for line in rig.lines if "left_out" in line] == [1, 1, 1]


async def test_lines_wait_a_moment_and_go_together() -> None:
    rig = Rig(1.0)
    for _ in range(3):
        rig.answer()
    async with asyncio.timeout(30):
        await rig.wrote.wait()
    assert len(rig.pieces) == 1
    assert len(rig.lines) == 3


async def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    rig = Rig(1.0)
    rig.room = False
    for _ in range(3 * WAITING_MAX):
        rig.answer()
    async with asyncio.timeout(30):
        await rig.wrote.wait()
    assert rig.pieces == []
    rig.room = True
    rig.log.close()
    assert [line["left_out"] for line in rig.lines if "left_out" in line] == [2 * WAITING_MAX]
    assert len(rig.lines) == WAITING_MAX + 1
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in rig.pieces)


async def test_a_line_of_json() -> None:
    rig = Rig(0.0)
    rig.log.note(WHOLE)
    rig.log.close()
    [line] = rig.lines
    assert line.pop("duration_s") > 0.001
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "process": "front:0",
        "logger": "modelhost.access",
        "message": "POST /v2/models/{model}/infer 503",
        "model": "churn",
        "version": "3",
        "slot": 1,
        "request_id": "abc",
        "trace_id": PARENT[3:35],
        "method": "POST",
        "route": "/v2/models/{model}/infer",
        "status": 503,
        "in_bytes": 12,
        "out_bytes": 345,
        "code": "QUEUE_FULL",
    }


async def test_a_line_of_text() -> None:
    rig = Rig(0.0, "text")
    rig.log.note(WHOLE)
    rig.log.note(access(500, route="", method="_OTHER"))
    rig.log.close()
    first, second = b"".join(rig.pieces).decode().splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO front:0 request abc \(trace 0af7651916cd43dd8448eb211c80319c\): "
        r"POST /v2/models/\{model\}/infer churn\.v3:1 503 QUEUE_FULL [\d.]+ ms, 12 bytes in, 345 out",
        first,
    )
    assert " INFO front:0 _OTHER - 500 " in second


def test_codes_of_errors() -> None:
    error = QueueFull("full")
    for encoding in Encoding:
        assert error_code(503, error_document(error, encoding)) == "QUEUE_FULL"
    assert error_code(200, error_document(error, Encoding.JSON)) == ""
    for body in (b"", b"{}", b"{", b"\x1f\x8b", b"[1]", b'{"code": 5}'):
        assert error_code(500, body) == ""


def test_methods() -> None:
    assert known_method("POST") == "POST"
    assert known_method("marker") == "_OTHER"


def test_a_full_pipe_is_not_waited_for_and_takes_whole_lines() -> None:
    reading, writing = os.pipe()
    output = StandardError(f"/proc/self/fd/{writing}")
    line = b"x" * (select.PIPE_BUF - 1) + b"\n"
    try:
        written = 0
        while output.write(line):
            written += 1
        assert written > 0
        assert os.get_blocking(writing)  # whoever else writes there waits as before
        assert os.read(reading, len(line)) == line
        assert output.write(line)
        assert not output.write(line)
        os.close(reading)
        assert output.write(line)  # nobody reads: nothing to wait for
    finally:
        os.close(writing)
        output.close()


def test_a_socket_takes_no_access_log_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        output = StandardError(f"/proc/self/fd/{ours.fileno()}")
        assert output.write(b"line\n")
        assert [record.getMessage() for record in caplog.records] == [
            "no access log: standard error: No such device or address"
        ]
        output.close()
