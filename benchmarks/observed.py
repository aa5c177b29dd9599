"""What being seen costs: the access log, `/metrics` scraped and a page open, beside a host without.

A scenario of `scenarios.py`.

Both hosts run all the time, and are loaded in turns: each has the same front and worker CPU while the other one idles.
What is counted for the metrics cannot be switched off, and is in both.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.load import measure
from benchmarks.servers import WORKER_CPU, Running, Server, modelhost, running

MODEL = "breast_cancer"
PATH = f"/v2/models/{MODEL}/infer"
CONNECTIONS = 32
PAIRS = 7
SCRAPE_S = 5.0
"""Prometheus' own default is once a minute, and many take fifteen seconds."""

READ_S = 10.0
"""The page's stream says something at least so often."""


def observed(seconds: float, bodies: list[bytes], say: Callable[[str], None]) -> dict[str, Any]:
    """Requests/s with everything open, over those without, in turns."""
    ratios: list[float] = []
    rates: dict[str, list[float]] = {"unseen": [], "seen": []}
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        file = Path(directory) / "bodies"
        file.write_bytes(b"\n".join(bodies))
        port = _free_port()
        unseen, seen = (
            _flags(modelhost(MODEL, PATH), {"access-log": 0}),
            _flags(modelhost(MODEL, PATH), {"admin-port": port}),
        )
        with running(unseen, bodies[0]) as first, running(seen, bodies[0]) as second, _watched(port) as scrapes:
            for host in (first, second):
                _rate(host, file, 2)
            for number in range(PAIRS):
                both = [("unseen", first), ("seen", second)]
                for name, host in both if number % 2 == 0 else reversed(both):
                    rates[name].append(_rate(host, file, seconds))
                ratios.append(rates["seen"][-1] / rates["unseen"][-1])
                say(f"observed: {rates['unseen'][-1]:,.0f}/s unseen, {rates['seen'][-1]:,.0f}/s seen: {ratios[-1]:.3f}")
    return {
        "connections": CONNECTIONS,
        "pairs": PAIRS,
        "scrapes": len(scrapes),
        "unseen_per_s": round(statistics.median(rates["unseen"])),
        "seen_per_s": round(statistics.median(rates["seen"])),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def _flags(server: Server, flags: dict[str, int]) -> Server:
    return replace(
        server,
        command=lambda port, directory: [
            *(word for word in server.command(port, directory) if word.partition("=")[0][2:] not in flags),
            *(f"--{name}={value}" for name, value in flags.items()),
        ],
    )


def _rate(host: Running, bodies: Path, seconds: float) -> float:
    found = measure(host, bodies, CONNECTIONS, seconds=seconds, content_type="application/json", load_cpu=WORKER_CPU)
    if found.errors:
        raise SystemExit(f"observed: {found.errors} requests failed")
    return found.requests_per_s


@contextmanager
def _watched(port: int) -> Iterator[list[int]]:
    """Scrape and watch until the end; gives the scrapes' sizes. Raises what went wrong."""
    over = threading.Event()
    sizes: list[int] = []
    problems: list[Exception] = []

    def scrape() -> None:
        try:
            while not over.wait(SCRAPE_S):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=READ_S) as answer:
                    sizes.append(len(answer.read()))
        except OSError as error:
            problems.append(error)

    def watch() -> None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/events", timeout=READ_S * 2) as stream:
                while not over.is_set():
                    if not stream.readline():
                        raise OSError("the page's stream has ended")
        except OSError as error:
            if not over.is_set():
                problems.append(error)

    threads = [threading.Thread(target=scrape), threading.Thread(target=watch, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        yield sizes
    finally:
        over.set()
        threads[0].join()
    if problems:
        raise problems[0]
    if not sizes:
        raise SystemExit("observed: nothing was scraped: --seconds is too short")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
