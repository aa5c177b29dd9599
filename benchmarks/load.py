"""Closed loops: wrk with a number of connections, and what the server's processes spent meanwhile."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import ROOT, Running

SCRIPT = ROOT / "benchmarks" / "rows.lua"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of wrk."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: float
    """CPU of all the server's processes, a request."""


def measure(
    server: Running, bodies: Path, connections: int, *, seconds: float, content_type: str, load_cpu: int
) -> Measured:
    """Load a server with so many connections, each with one request at a time."""
    before_s = server.cpu_s()
    command = ["taskset", "-c", str(load_cpu), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s"]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{server.port}", "--", server.server.path, str(bodies)]
    command += [content_type, *server.server.headers]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    spent_s = server.cpu_s() - before_s
    run = json.loads(said.splitlines()[-1])
    return Measured(
        requests_per_s=run["requests"] / run["seconds"],
        p50_ms=run["p50_ms"],
        p99_ms=run["p99_ms"],
        errors=run["errors"],
        cpu_us=1e6 * spent_s / max(1, run["requests"]),
    )
