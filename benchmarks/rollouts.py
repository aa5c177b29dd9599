"""What clients see while versions change, processes come and fronts are restarted. A scenario of `scenarios.py`."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.load import Measured, measure
from benchmarks.servers import REPOSITORY, ROOT, WORKER_CPU, Running, modelhost, running

MODEL = "breast_cancer"
PATH = f"/v2/models/{MODEL}/infer"
CONNECTIONS = 32
FRONTS = 2
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("version 1 -> 2", ("rollback", MODEL, "--to", "2", "--wait")),
    ("version 2 -> 3", ("rollback", MODEL, "--to", "3", "--wait")),
    ("rollback to 2", ("rollback", MODEL, "--wait")),
    ("1 -> 4 processes", ("scale", f"{MODEL}=4", "--wait")),
    ("4 -> 2 processes", ("scale", f"{MODEL}=2", "--wait")),
    ("both fronts restarted, one by one", ("restart", "front")),
)


def rollouts(seconds: float, bodies: list[bytes], say: Callable[[str], None]) -> dict[str, Any]:
    """Each step under wrk, beside the same seconds without one."""
    found = []
    with tempfile.TemporaryDirectory(prefix="mh-") as directory, ThreadPoolExecutor(1) as pool:
        repository = Path(directory)
        for version in ("1", "2", "3"):
            shutil.copytree(REPOSITORY / MODEL / "1", repository / MODEL / version)
        file = repository / ".bodies"
        file.write_bytes(b"\n".join(bodies))
        server = replace(modelhost(MODEL, PATH, repository=repository, fronts=FRONTS), pins=())
        with running(server, bodies[0]) as started:
            _command(started, "rollback", MODEL, "--to", "1", "--wait")
            _load(started, file, 3)
            for name, words in STEPS:
                still = _load(started, file, seconds)
                loading: Future[Measured] = pool.submit(_load, started, file, seconds)
                took_s = _command(started, *words)
                beside = loading.result()
                found.append(
                    {
                        "step": name,
                        "took_s": round(took_s, 2),
                        "requests": round(beside.requests_per_s * seconds),
                        "failed": beside.errors,
                        "still_p99_ms": round(still.p99_ms, 2),
                        "p99_ms": round(beside.p99_ms, 2),
                    }
                )
                say(f"rollouts: {found[-1]}")
    return {"connections": CONNECTIONS, "fronts": FRONTS, "steps": found, "failed": sum(one["failed"] for one in found)}


def _load(started: Running, bodies: Path, seconds: float) -> Measured:
    return measure(started, bodies, CONNECTIONS, seconds=seconds, content_type="application/json", load_cpu=WORKER_CPU)


def _command(started: Running, *words: str) -> float:
    """Run one of modelhost's commands for the host; how long it took."""
    run_dir = next(
        match[1] for command in started.pids().values() if (match := re.search(r"--run-dir=(\S+)", command)) is not None
    )
    program = ROOT / ".venv" / "bin" / "modelhost"
    begun = time.perf_counter()
    done = subprocess.run(
        [str(program), *words, f"--run-dir={run_dir}"], check=False, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        raise SystemExit(f"modelhost {' '.join(words)}: {done.stderr}")
    return time.perf_counter() - begun
