"""Side by side in one run: the bundled LightGBM model in modelhost, and in process under FastAPI and uvicorn.

    make bench            # both servers start, take turns under wrk, and stop; a table is printed

Figures of different machines or runs do not compare: the machine may be shared. What compares is the ratio of two
servers that took turns within one run, so that is what stands in the last column.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = ROOT / "model_repository"
PATH = "/v2/models/breast_cancer/infer"
READY_S = 60.0


@contextmanager
def server(command: list[str], ready_url: str, environ: dict[str, str] | None = None) -> Iterator[None]:
    """Run a server until the block ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env={**os.environ, **(environ or {})}, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_ready(ready_url, process)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Ask until the server answers 200, or is over."""
    limit = time.monotonic() + READY_S
    while time.monotonic() < limit and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"{url}: not ready (exit code {process.poll()})")


def measure(port: int, connections: int, seconds: int, rows: Path, wrk_cpus: str | None) -> dict[str, Any]:
    """One wrk run."""
    pin = ["taskset", "-c", wrk_cpus] if wrk_cpus else []
    command = [*pin, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(ROOT / "benchmarks" / "rows.lua")]
    command += [f"http://127.0.0.1:{port}", "--", PATH, str(rows)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(said.splitlines()[-1]))


def write_rows(path: Path) -> None:
    """Every row of the data set as one request."""
    from sklearn.datasets import load_breast_cancer

    with path.open("w") as file:
        for row in load_breast_cancer().data.tolist():
            tensor = {"name": "features", "shape": [1, 30], "datatype": "FP64", "data": row}
            file.write(json.dumps({"inputs": [tensor]}) + "\n")


def row_of(name: str, connections: int, runs: list[dict[str, Any]], base_rate: float) -> str:
    """A line of the table: medians over the rounds."""
    rate = statistics.median(run["requests"] / run["seconds"] for run in runs)
    p50 = statistics.median(run["p50_ms"] for run in runs)
    p99 = statistics.median(run["p99_ms"] for run in runs)
    errors = sum(run["errors"] for run in runs)
    ratio = f"{rate / base_rate:.2f}x" if base_rate else "1x"
    return f"| {connections} | {name} | {rate:,.0f}/s | {p50:.2f} ms | {p99:.2f} ms | {errors} | {ratio} |"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32], help="loads (default 1 32)")
    parser.add_argument("--seconds", type=int, default=5, help="length of one measurement (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the servers take turns (default 3)")
    parser.add_argument("--wrk-cpus", help="pin wrk to these CPUs (taskset -c)")
    parser.add_argument("--json", type=Path, help="write the raw figures here")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk: not found (apt-get install wrk)")
    bench = ROOT / ".venv" / "bench" / "bin"
    modelhost = [str(ROOT / ".venv" / "bin" / "modelhost"), "up"]
    raw: dict[str, Any] = {"machine": platform.platform(), "cpus": os.cpu_count(), "command": sys.argv, "runs": []}
    with tempfile.TemporaryDirectory(prefix="mh-") as work:
        rows = Path(work) / "rows.jsonl"
        write_rows(rows)
        peer = [str(bench / "uvicorn"), "fastapi_peer:app", "--app-dir", str(ROOT / "benchmarks"), "--port", "18091"]
        peer += ["--log-level", "warning", "--no-access-log"]
        (Path(work) / "deployment.toml").write_text('[[models]]\nname = "breast_cancer"\nprocesses = 1\n')
        modelhost += ["--port", "18090", "--run-dir", f"{work}/run", "--repository", str(REPOSITORY)]
        modelhost += ["--deployment", f"{work}/deployment.toml"]
        modelhost += ["--model-python", str(ROOT / ".venv" / "model-env" / "bin" / "python")]
        model_file = str(REPOSITORY / "breast_cancer" / "1" / "model.txt")
        with (
            server(modelhost, "http://127.0.0.1:18090/v2/health/ready"),
            server(peer, "http://127.0.0.1:18091/openapi.json", {"MODEL_FILE": model_file}),
        ):
            ports = {"FastAPI + uvicorn, in process": 18091, "modelhost, one front, one worker": 18090}
            for port in ports.values():
                measure(port, 32, 2, rows, options.wrk_cpus)
            for turn in range(options.rounds):
                for connections in options.connections:
                    for name, port in ports.items():
                        run = measure(port, connections, options.seconds, rows, options.wrk_cpus)
                        raw["runs"].append({"server": name, "connections": connections, "round": turn, **run})
                        print(f"round {turn + 1}/{options.rounds}  {connections:4} connections  {name:34} "
                              f"{run['requests'] / run['seconds']:9,.0f}/s", file=sys.stderr)  # fmt: skip
    print("| connections | server | requests | p50 | p99 | errors | ratio |\n|---|---|---|---|---|---|---|")
    for connections in options.connections:
        base = 0.0
        for name in ports:
            runs = [run for run in raw["runs"] if run["server"] == name and run["connections"] == connections]
            print(row_of(name, connections, runs, base))
            base = base or statistics.median(run["requests"] / run["seconds"] for run in runs)
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
