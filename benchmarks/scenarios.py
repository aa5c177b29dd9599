"""What happens past the limits: overload, neighbours that flood, leak or burn, workers that are killed. One run.

And what fetched features cost.

    .venv/bench/bin/python benchmarks/scenarios.py --only overload noisy kill leak burn weight rollouts \
        scaling features counting observed

Requests come in an open loop (`openloop.py`). The model `slow` takes 2 ms a row whatever the batch (it sleeps), so that
neither the front nor the generator is the limit; `breast_cancer` is the bundled LightGBM model.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import counting, features, neighbours, report
from benchmarks.bench import cancer_rows
from benchmarks.observed import observed
from benchmarks.openloop import open_loop, post, quantile
from benchmarks.rollouts import rollouts
from benchmarks.scaling import scaling
from benchmarks.servers import FRONT_CPU, REPOSITORY, Running, modelhost, running

SLOW_TOML = """runtime = "python"
[[inputs]]
name = "x"
datatype = "FP64"
shape = [-1, 1]
[[outputs]]
name = "y"
datatype = "FP64"
shape = [-1, 1]
"""
SLOW_CODE = """import time

class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        time.sleep(0.002 * len(inputs["x"]))
        return {"y": inputs["x"]}
"""
SLOW_PATH, LIGHTGBM_PATH = "/v2/models/slow/infer", "/v2/models/breast_cancer/infer"
SLOW_BODY = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,1],"data":[1.0]}]}'
SLOW = post(SLOW_PATH, SLOW_BODY)
SLOW_CAPACITY = 500.0
ROUNDS = 3
NOISY_RATES = (5_000, 10_000, 15_000, 20_000)
"""The highest goodput of these counts as the capacity: beyond, the generator's own lateness would be measured."""
DEADLINE_MS = 1000


@contextmanager
def host(models: str, workers: int = 1) -> Iterator[Running]:
    """A host with these models: the front on one CPU, the workers on the other, the generator on either."""
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        repository = Path(directory)
        shutil.copytree(REPOSITORY / "breast_cancer", repository / "breast_cancer")
        package = repository / "slow" / "1"
        package.mkdir(parents=True)
        (package / "model.toml").write_text(SLOW_TOML)
        (package / "model.py").write_text(SLOW_CODE)
        first, path = (SLOW_BODY, SLOW_PATH) if models.startswith("slow") else (lightgbm_bodies()[0], LIGHTGBM_PATH)
        with running(modelhost(models, path, repository=repository, workers=workers), first) as started:
            yield started


def lightgbm_bodies() -> list[bytes]:
    """The data set, a request a row."""
    with tempfile.TemporaryDirectory() as directory:
        return cancer_rows(1)(Path(directory)).read_bytes().split(b"\n")


def lightgbm_requests() -> list[bytes]:
    """The same as whole requests."""
    return [post(LIGHTGBM_PATH, body) for body in lightgbm_bodies()]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


# -- overload -------------------------------------------------------------------------------------------------
def overload(seconds: float) -> dict[str, Any]:
    """From half to three times the capacity, then LightGBM at the highest rate that the generator reaches."""
    found: dict[str, Any] = {}
    with host("slow") as started:
        open_loop(started.port, [SLOW], SLOW_CAPACITY, 3)
        rows = []
        for factor in (0.5, 1.0, 1.5, 2.0, 3.0):
            before = started.rss_bytes("host.front")
            outcome = open_loop(started.port, [SLOW], factor * SLOW_CAPACITY, seconds)
            after = started.rss_bytes("host.front")
            rows.append({"load": factor, **outcome.describe(), "front_rss_kib": [before >> 10, after >> 10]})
            say(f"overload: slow, {factor:g}x: {rows[-1]}")
        found["slow"] = rows
    requests = lightgbm_requests()
    rates = (10_000, 20_000, 25_000, 27_500, 30_000, 33_000)
    rounds: dict[int, list[dict[str, Any]]] = {rate: [] for rate in rates}
    with host("breast_cancer") as started:
        open_loop(started.port, requests, 5000, 3)
        # The generator takes most of a CPU here, and from whom varies: rates take turns, and the median counts.
        for _, rate in itertools.product(range(ROUNDS), rates):
            before = started.rss_bytes("host.front")
            outcome = open_loop(started.port, requests, rate, min(seconds, 5))
            after = started.rss_bytes("host.front")
            row = {"load": rate, **outcome.describe(), "front_rss_kib": [before >> 10, after >> 10]}
            rounds[rate].append(row)
            say(f"overload: LightGBM, {rate}/s: {row}")
    found["lightgbm"] = [sorted(rows, key=_goodput)[ROUNDS // 2] for rows in rounds.values()]
    return found


def _goodput(row: dict[str, Any]) -> float:
    return float(row["goodput_per_s"])


# -- a noisy neighbour -------------------------------------------------------------------------------------------
def noisy(seconds: float, pairs: int = 7) -> dict[str, Any]:
    """LightGBM at a third of its capacity, alone and beside a model that is flooded at three times its own.

    The flood comes from another process, and its model runs on another CPU: what is shared is the front.
    """
    requests = lightgbm_requests()
    found = []
    with host("breast_cancer slow") as started, ProcessPoolExecutor(1, get_context("spawn")) as other_process:
        for pid, command in started.pids().items():
            if "by_path.py" in command and "/slow/" in command:
                os.sched_setaffinity(pid, {FRONT_CPU})
        capacity = max(open_loop(started.port, requests, rate, 2).goodput for rate in NOISY_RATES)
        rate = capacity / 3
        for pair in range(pairs):
            alone = open_loop(started.port, requests, rate, seconds)
            flood = other_process.submit(open_loop, started.port, [SLOW], 3 * SLOW_CAPACITY, seconds)
            beside = open_loop(started.port, requests, rate, seconds)
            flooding = flood.result()
            alone_ms, beside_ms = quantile(alone.admitted_ms, 0.99), quantile(beside.admitted_ms, 0.99)
            found.append(
                {
                    "alone_p99_ms": round(alone_ms, 2),
                    "beside_p99_ms": round(beside_ms, 2),
                    "ratio": round(beside_ms / alone_ms, 2),
                    "errors": beside.sent - beside.statuses[200],
                    "flood": flooding.describe(),
                }
            )
            say(f"noisy: pair {pair + 1} of {pairs}: {found[-1]}")
    return {
        "rate_per_s": round(rate),
        "pairs": found,
        "median_ratio": statistics.median(pair["ratio"] for pair in found),
        "errors": sum(pair["errors"] for pair in found),
    }


# -- killing ----------------------------------------------------------------------------------------------------
def workers_of(started: Running) -> dict[int, int]:
    """Slot to pid."""
    found = {}
    for pid, command in started.pids().items():
        match = re.search(r"by_path\.py .*--slot (\d+)", command)
        if match:
            found[int(match[1])] = pid
    return found


async def closed_loop(
    port: int, requests: list[bytes], stop: asyncio.Event, seen: list[tuple[float, int]], errors: Counter[str]
) -> None:
    """One connection that asks without a pause and notes when it got what."""
    turn = 0
    while not stop.is_set():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not stop.is_set():
                turn += 1
                writer.write(requests[turn % len(requests)])
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                status = int(head[9:12])
                if status == 503 and b"Retry-After" not in head:
                    status = -503
                seen.append((time.monotonic(), status))
                if status != 200:
                    errors[json.loads(body)["code"]] += 1
                    await asyncio.sleep(0.01)
        except (OSError, asyncio.IncompleteReadError) as error:
            errors[repr(error)] += 1
            seen.append((time.monotonic(), 0))
        finally:
            writer.close()


async def under_load(started: Running, requests: list[bytes], kills: int, every_s: float) -> dict[str, Any]:
    """Kill workers in turn, every so many seconds, under 16 connections."""
    stop = asyncio.Event()
    seen: list[tuple[float, int]] = []
    errors: Counter[str] = Counter()
    clients = [asyncio.create_task(closed_loop(started.port, requests, stop, seen, errors)) for _ in range(16)]
    await asyncio.sleep(1)
    recoveries = []
    for number in range(kills):
        workers = sorted(workers_of(started).items())
        if not workers:
            raise SystemExit(f"kill: no worker {every_s:g} s after kill {number}")
        killed_s = time.monotonic()
        os.kill(workers[number % len(workers)][1], signal.SIGKILL)
        await asyncio.sleep(every_s)
        failed = [at for at, status in seen if at > killed_s and status != 200]
        back = next((at for at, status in seen if failed and at > failed[-1] and status == 200), None)
        if failed:
            recoveries.append(round((back or time.monotonic()) - killed_s, 2))
        say(f"kill: {number + 1} of {kills}: {len(seen):,} answers, {len(failed)} not 200 since")
    stop.set()
    await asyncio.gather(*clients)
    statuses: dict[str, int] = {}
    for _, status in seen:
        statuses[str(status)] = statuses.get(str(status), 0) + 1
    return {"kills": kills, "statuses": statuses, "errors": dict(errors), "seconds_to_the_next_200": recoveries}


def kill(seconds: float) -> dict[str, Any]:
    """One of two workers every 3 s for a minute, then the only one."""
    requests = lightgbm_requests()
    found = {}
    for workers, kills, every_s in ((2, max(2, int(seconds * 2)), 3.0), (1, 3, 8.0)):
        with host("breast_cancer", workers) as started:
            found[f"{workers} workers"] = asyncio.run(under_load(started, requests, kills, every_s))
    return found


SCENARIOS: dict[str, Callable[[float], dict[str, Any]]] = {
    "overload": overload,
    "noisy": noisy,
    "kill": kill,
    "leak": partial(neighbours.leak, say=say),
    "burn": partial(neighbours.burn, say=say),
    "weight": partial(neighbours.weight, say=say),
    "rollouts": lambda seconds: rollouts(seconds, lightgbm_bodies(), say),
    "features": partial(features.cached, say=say),
    "scaling": lambda _: scaling(say),
    "counting": lambda _: counting.counting(say),
    "observed": lambda seconds: observed(seconds, lightgbm_bodies(), say),
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="default all")
    parser.add_argument("--seconds", type=float, default=10, help="length of one measurement (default %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=counting.REQUESTS, help="requests that `counting` counts (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=report.OUT, help="directory of RESULTS.md (default %(default)s)")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    try:
        for name in options.only:
            if name == "counting":
                found[name] = counting.counting(say, options.requests)
            else:
                found[name] = SCENARIOS[name](options.seconds)
    except KeyboardInterrupt:
        say("interrupted: everything that was started has been ended")
        return 130
    print("\n".join(report.scenario_table(name, figures) for name, figures in found.items()))
    report.write(options.out, report.SCENARIOS_FILE, {**report.origin("benchmarks/scenarios.py"), "scenarios": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
