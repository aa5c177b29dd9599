"""Generated requests against both lanes: the same bytes to a front as it is, and to one that has only aiohttp.

    python tests/integration/lanes.py --requests 1000000 --seed 1

Every case is a connection with one to eight requests, valid ones and others, cut into packets anywhere. The two
fronts share their workers; answers must be equal in status, body and what the headers say about them. A case that
differs is tried again by itself, because a busy machine may answer 503 or 504; one that differs always is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import psutil
import uvloop
from hosts import HandHost, until
from packages import write_package

from host.protocol.documents import encode_document
from host.protocol.messages import Encoding

CASE_LIMIT_S = 5.0
CONCURRENT = 48
TRIES = 8
TIMEOUT_MS = 1000
MODEL = """
import numpy as np

class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        x = inputs["x"]
        return {"y": x * 2.0, "wide": np.repeat(x, 40, axis=1).astype(np.float32)}
"""
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""Sent at the end of each case: whoever has answered everything closes the connection."""
OPEN, SLOW = "/v2/models/lanes/infer", "/v1/models/lanes:predict"


def write_model(repository: Path) -> None:
    """The model that is asked."""
    write_package(
        repository,
        "lanes",
        MODEL,
        inputs=[("x", "INT64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1]), ("wide", "FP32", [-1, 40])],
        limits={"timeout_ms": TIMEOUT_MS, "max_queue": 4096},
    )


# -- cases ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """What one connection sends, packet by packet."""

    packets: tuple[bytes, ...]
    requests: int
    waits: bool = False
    """Its last request may ask for more bytes than ever come."""


def document(rnd: random.Random) -> tuple[bytes, list[tuple[str, str]]]:
    """A body, right or wrong, and the headers that go with it."""
    rows = rnd.choice((1, 1, 1, 1, 2, 5, 40))
    values = [rnd.randrange(-1000, 1000) for _ in range(rows)]
    tensor: dict[str, object] = {"name": "x", "shape": [rows, 1], "datatype": "INT64", "data": values}
    request: dict[str, object] = {"inputs": [tensor]}
    if rnd.random() < 0.7:
        request["outputs"] = [{"name": "y"}]
    if rnd.random() < 0.1:
        request["id"] = "an id"
    if rnd.random() < 0.05:
        request["parameters"] = {"timeout": rnd.choice((5_000_000, 10**15, -1, "1", None, 2.5))}
    kind = rnd.random()
    if kind < 0.6:
        return json.dumps(request).encode(), []
    if kind < 0.68:
        return encode_document(request, Encoding.MSGPACK), [("Content-Type", "application/msgpack")]
    if kind < 0.76:
        raw = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps(request).encode()
        length = len(head) + rnd.choice((0, 0, 0, 1, -1, 10**6))
        return head + raw, [("Inference-Header-Content-Length", str(length))]
    if kind < 0.80:
        return gzip.compress(json.dumps(request).encode(), mtime=0), [("Content-Encoding", "gzip")]
    if kind < 0.84:
        return json.dumps({"instances": [[value] for value in values]}).encode(), []
    if kind < 0.96:
        body = bytearray(json.dumps(request).encode())
        for _ in range(rnd.randrange(1, 4)):
            body[rnd.randrange(len(body))] = rnd.randrange(256)
        return bytes(body), []
    return rnd.choice((b"", b"{}", b"[]", b"null", b"\x00", b"{" * 50)), []


PATHS = (
    *[OPEN] * 12,
    "/v2/models/lanes/versions/1/infer",
    SLOW,
    "/v2/models/lanes/infer?a=b",
    "/v2/models/l%61nes/infer",
    "/v2/models/lanes/versions/2/infer",
    "/v2/models/other/infer",
    "/v2//models/lanes/infer",
    "/v2/models/lanes/infer/",
    "/v2/models/lanes/infer#here",
    "http://x/v2/models/lanes/infer",
    "*",
    "/v2/models/lanes/\xe9",
    "/v2/models/lanes/in fer",
    "/v2/health/live",
    "/v2/models/lanes",
)
HEADERS = (
    ("Content-Type", "application/json"),
    ("Content-Type", "application/json; charset=utf-8"),
    ("Content-Type", "text/html"),
    ("content-type", "application/octet-stream"),
    ("Accept", "application/json"),
    ("Accept", "application/msgpack"),
    ("Accept", "*/*"),
    ("Accept", "application/msgpack;q=0.5, application/json;q=0.4"),
    ("Accept-Encoding", "gzip, deflate"),
    ("Accept-Encoding", "identity"),
    ("Accept-Encoding", "gzip;q=0"),
    ("Connection", "keep-alive"),
    ("Connection", "close"),
    ("Connection", "Keep-Alive, x"),
    ("Connection", "upgrade"),
    ("Upgrade", "websocket"),
    ("Expect", "100-continue"),
    ("Expect", "something"),
    ("Request-Timeout-Ms", "900"),
    ("Request-Timeout-Ms", "0"),
    ("Request-Timeout-Ms", "-1"),
    ("Request-Timeout-Ms", "1e3"),
    ("Request-Timeout-Ms", "99999999999"),
    ("X-Request-Id", "given-1"),
    ("X-Request-Id", "not given"),
    ("X-Request-Id", ""),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("Inference-Header-Content-Length", "x"),
    ("Transfer-Encoding", "chunked"),
    ("Transfer-Encoding", "identity"),
    ("Content-Length", "5"),
    ("TE", "trailers"),
    ("X-Long", "a" * 3000),
    ("X-Longer", "a" * 9000),
    ("X-Empty", ""),
    ("X-Tab", "a\tb"),
    ("X-Bytes", "\xff\x80"),
    ("X-Control", "a\x01b"),
    ("Bad Name", "x"),
    ("", "x"),
    ("Host", "y"),
    ("Cookie", "a=b; c=d"),
    ("User-Agent", "lanes/1.0"),
)
LENGTHS = ("{}", "{}", "+{}", "-{}", "0{}", " {} ", "{}.0", "0x{:x}", "{}, {}", "", "99999999999999999999", "\uff11")
ENDS = ("\n", "\r", "\r\r\n", "\r\n ", "\r\n\t")


def head_of(rnd: random.Random, length: int, headers: list[tuple[str, str]], strange: bool) -> bytes:
    """A request's head; `strange`: something about it may be wrong."""
    method, version, path = "POST", "HTTP/1.1", OPEN
    size = str(length)
    lines = [("Host", "x"), *headers]
    if strange:
        path = rnd.choice(PATHS)
        if rnd.random() < 0.1:
            method = rnd.choice(("GET", "PUT", "post", "OPTIONS", "POST ", "P\x00ST", "BREW"))
        if rnd.random() < 0.05:
            version = rnd.choice(("HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/1.1 ", "http/1.1", "HTTP/9", ""))
        lines += rnd.sample(HEADERS, rnd.choice((0, 1, 1, 2, 3)))
        if rnd.random() < 0.1:
            size = rnd.choice(LENGTHS).format(length, length)
        if rnd.random() < 0.03:
            lines = lines[1:]
    lines.append(("Content-Length", size))
    if strange:
        rnd.shuffle(lines)
    text = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in lines)]
    if strange and rnd.random() < 0.05:
        position = rnd.randrange(len(text))
        text[position] = text[position].replace(": ", rnd.choice((":", " : ", ":  ", ":\t")), 1)
    joined = "\r\n".join(text)
    if strange and rnd.random() < 0.05:
        joined = joined.replace("\r\n", rnd.choice(ENDS), 1)
    return (joined + "\r\n\r\n").encode("latin-1", "replace")


def cases(seed: int) -> Iterator[Case]:
    """Give cases without end, always the same for a seed."""
    rnd = random.Random(seed)  # noqa: S311 - a seed that says all is the point
    while True:
        count = rnd.choice((1, 1, 2, 3, 4, 8))
        data = b""
        waits = False
        for _ in range(count):
            body, headers = document(rnd)
            strange = rnd.random() < 0.35
            request = head_of(rnd, len(body), headers, strange) + body
            if rnd.random() < 0.03:
                flipped = bytearray(request)
                flipped[rnd.randrange(len(flipped))] = rnd.randrange(256)
                request, waits = bytes(flipped), True
            if rnd.random() < 0.01:
                request, waits = request[: rnd.randrange(len(request))], True
            waits = waits or strange
            data += request
        data += LAST
        cuts = sorted(rnd.sample(range(1, len(data)), rnd.choice((0, 0, 0, 1, 2, 5))))
        ends = [*cuts, len(data)]
        packets = tuple(data[start:end] for start, end in zip([0, *cuts], ends, strict=True))
        yield Case(packets, count, waits)


def every_split(seed: int) -> Iterator[Case]:
    """Some cases of two requests, each cut in two at every offset."""
    rnd = random.Random(seed)  # noqa: S311 - a seed that says all is the point
    for strange in (False, False, True, True):
        data = b""
        for _ in range(2):
            body, headers = document(rnd)
            data += head_of(rnd, len(body), headers, strange) + body
        data += LAST
        for offset in range(1, len(data)):
            yield Case((data[:offset], data[offset:]), 2, strange)


# -- answers ----------------------------------------------------------------------------------------------
Seen = tuple[object, ...]
_COMPARED = ("content-type", "content-encoding", "vary", "inference-header-content-length", "allow", "server")


class Connection(asyncio.Protocol):
    """Sends a case and keeps what comes back."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def ask(port: int, case: Case) -> tuple[list[Seen], bool]:
    """Send a case; give the answers, and whether the front closed the connection."""
    loop = asyncio.get_running_loop()
    plain, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    transport = cast("asyncio.Transport", plain)
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for packet in case.packets:
            if transport.is_closing():
                break
            transport.write(packet)
            if len(case.packets) > 1:
                # Lets the loop send this packet before the next one is written.
                await asyncio.sleep(0)
        async with asyncio.timeout(CASE_LIMIT_S):
            await connection.closed
        closed = True
    except TimeoutError:
        closed = False
    finally:
        transport.abort()
    return answers(bytes(connection.received)), closed


def answers(data: bytes) -> list[Seen]:
    """Take answers apart and keep what must be equal."""
    seen: list[Seen] = []
    while data:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if not separator:
            return [*seen, ("cut", data)]
        first, *lines = head.decode("latin-1").split("\r\n")
        if not first.startswith("HTTP/"):
            return [*seen, ("unreadable", data)]
        status = int(first.split(" ")[1])
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if status == 100:
            data = rest
            continue
        if "content-length" not in headers:
            return [*seen, ("no length", data)]
        size = int(headers["content-length"])
        body = rest[:size]
        given = headers.get("x-request-id", "")
        kept = [headers.get(name) for name in _COMPARED]
        seen.append((status, body, given if given.startswith("given") else "", "retry-after" in headers, *kept))
        data = rest[size:]
    return seen


def same(fast: tuple[list[Seen], bool], other: tuple[list[Seen], bool]) -> bool:
    """Whether two lanes said the same.

    aiohttp forgets the requests that it parsed out of a packet which is not HTTP further on (or goes on after
    `Connection: close`), and answers 400 for all of it: how many that are depends on the packets, and the fast lane has
    answered its own by then. So behind such a 400 one's answers may be the beginning of the other's.
    """
    if fast == other:
        return True
    if not (fast[1] and other[1]):
        return False
    mine, theirs = (answers[:-1] if _is_not_http(answers) else answers for answers in (fast[0], other[0]))
    if len(mine) == len(fast[0]) and len(theirs) == len(other[0]):
        return False
    common = min(len(mine), len(theirs))
    return mine[:common] == theirs[:common]


def _is_not_http(answers: list[Seen]) -> bool:
    return bool(answers) and answers[-1][0] == 400 and b"not a valid HTTP request" in cast("bytes", answers[-1][1])


def shown(lane: str, said: tuple[list[Seen], bool]) -> str:
    """What a lane said, in few words."""
    end = "closed" if said[1] else "left open"
    return "\n".join([f"  {lane}, {end}:", *(f"    {str(answer)[:200]}" for answer in said[0])])


@dataclass
class Outcome:
    """What a run came to."""

    requests: int = 0
    cases: int = 0
    statuses: Counter[object] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)
    open_ended: int = 0
    again: int = 0


async def compare(ports: tuple[int, int], case: Case, outcome: Outcome) -> None:
    """Try one case on both fronts, again and again while they differ, up to `TRIES` times."""
    for attempt in range(TRIES):
        fast, other = await asyncio.gather(ask(ports[0], case), ask(ports[1], case))
        if same(fast, other):
            break
        outcome.again += 1
        await asyncio.sleep(0.05 * attempt)
    else:
        outcome.different.append(f"sent {case.packets!r}\n{shown('fast lane', fast)}\n{shown('aiohttp', other)}")
    outcome.cases += 1
    outcome.requests += case.requests
    outcome.open_ended += not fast[1]
    outcome.statuses.update(answer[0] for answer in fast[0])


async def run(ports: tuple[int, int], source: Iterator[Case], requests: int, progress: bool = False) -> Outcome:
    """Compare cases until so many requests were sent, or the source ends."""
    outcome, start, shown = Outcome(), time.monotonic(), 0.0

    async def client() -> None:
        nonlocal shown
        for case in source:
            await compare(ports, case, outcome)
            if progress and time.monotonic() - shown > 1:
                shown = time.monotonic()
                rate = outcome.requests / (shown - start)
                print(f"\r{outcome.requests:,} requests, {rate:,.0f}/s, {len(outcome.different)} different ", end="",
                      file=sys.stderr, flush=True)  # fmt: skip
            if outcome.requests >= requests:
                return

    await asyncio.gather(*(client() for _ in range(CONCURRENT)))
    return outcome


# -- two fronts -----------------------------------------------------------------------------------------------
class TwoFronts:
    """Two workers behind a front as it is and one that has only aiohttp."""

    def __init__(self, host: HandHost) -> None:
        self._host = host
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", 0))
        other_port: int = self._reservation.getsockname()[1]
        self.ports = host.port, other_port
        for slot in range(2):
            host.start_worker("lanes", slot)
        self.fronts = [host.start_front(0), host.start_front(1, "--no-fast-lane", port=other_port)]
        for front in (0, 1):
            until(lambda front=front: host.log(f"front:{front}").count("joined") == 2, "two workers", 30.0)
        until(lambda: all(self.listens(port) for port in self.ports), "both listen", 30.0)
        self.files_at_rest = self.held()[1] + 1
        """One more: a connection that tells whether the front listens may still be closing."""

    @staticmethod
    def listens(port: int) -> bool:
        """Whether somebody listens there."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def close(self) -> None:
        """Give the second port back."""
        self._reservation.close()

    def held(self) -> tuple[int, int]:
        """Resident bytes and open files of the front with the fast lane."""
        process = psutil.Process(self.fronts[0].pid)
        return process.memory_info().rss, process.num_fds()

    def settle(self) -> int:
        """Wait until the last connections are gone; give the open files that are left, at rest as at the start."""
        until(lambda: self.held()[1] <= self.files_at_rest, "connections are closed")
        return self.held()[1]


def main() -> int:
    """Run from the command line; exit code 1 if the lanes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the generator (default %(default)s)")
    options = parser.parse_args()
    repository = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    try:
        write_model(repository)
        with HandHost(repository) as host:
            fronts = TwoFronts(host)
            uvloop.run(run(fronts.ports, cases(options.seed + 1), 5000))
            before = fronts.held()[0], fronts.settle()
            start = time.monotonic()
            outcome = uvloop.run(run(fronts.ports, cases(options.seed), options.requests, progress=True))
            after = fronts.held()[0], fronts.settle()
            fronts.close()
            alive = [front.poll() for front in fronts.fronts]
    finally:
        shutil.rmtree(repository)
    for different in outcome.different[:20]:
        print(f"\n{different}")
    print(f"\n{outcome.requests:,} requests in {outcome.cases:,} connections, {time.monotonic() - start:.0f} s: "
          f"{len(outcome.different)} different, {outcome.again} tried again, {outcome.open_ended} left open; "
          f"answers {dict(sorted(outcome.statuses.items(), key=str))}; "
          f"resident {before[0] >> 10} -> {after[0] >> 10} KiB, open files {before[1]} -> {after[1]}; "
          f"fronts {'alive' if alive == [None, None] else alive}")  # fmt: skip
    return 1 if outcome.different or alive != [None, None] else 0


if __name__ == "__main__":
    sys.exit(main())
