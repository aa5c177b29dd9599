"""How soon a model gets the processes that its load asks for, and gives them back. A scenario of `scenarios.py`.

The model works a fixed time for each row (it sleeps), so that its capacity is known. The load is an open loop: nothing,
twice what one process can do, nothing.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.counting import scrape, series
from benchmarks.openloop import open_loop, post
from benchmarks.servers import Running, modelhost, running

MODEL: Final = "worked"
PATH: Final = f"/v2/models/{MODEL}/infer"
ROW_S: Final = 0.02
CAPACITY_PER_S: Final = 1 / ROW_S
LOAD_S: Final = 20.0
QUIET_S: Final = 3.0
"""Without load, before it comes."""
PROCESSES_MAX: Final = 4
LOOK_S: Final = 0.02
BACK_LIMIT_S: Final = 240.0
"""docs/autoscaling.md: a minute without need for the first step down, half a minute for each that follows."""

TOML: Final = """runtime = "python"
[[inputs]]
name = "x"
datatype = "FP64"
shape = [-1, 1]
[[outputs]]
name = "y"
datatype = "FP64"
shape = [-1, 1]
[limits]
timeout_ms = 20000
max_queue = 2000
"""
CODE: Final = f"""import time

class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        time.sleep({ROW_S} * len(inputs["x"]))
        return {{"y": inputs["x"] * 2}}
"""
DEPLOYMENT: Final = f"""[[models]]
name = "{MODEL}"
min_processes = 1
max_processes = {PROCESSES_MAX}
"""
BODY: Final = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,1],"data":[1.0]}]}'

History = list[tuple[float, int]]
"""When (monotonic seconds) so many processes were ready; an entry for each change."""


def scaling(say: Callable[[str], None]) -> dict[str, Any]:
    """One burst of twice a process's capacity: processes over time, and what clients got."""
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        package = Path(directory) / MODEL / "1"
        package.mkdir(parents=True)
        (package / "model.toml").write_text(TOML)
        (package / "model.py").write_text(CODE)
        server = modelhost(MODEL, PATH, repository=Path(directory), deployment=DEPLOYMENT)
        with running(replace(server, pins=()), BODY) as started:
            found = _burst(started, say)
    say(f"scaling: {found}")
    return found


def _burst(started: Running, say: Callable[[str], None]) -> dict[str, Any]:
    control = Path(started.option("run-dir")) / "control.sock"
    history: History = []
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(control, history, stop))
    watcher.start()
    try:
        time.sleep(QUIET_S)
        before = [count for _, count in history]
        begun_s = time.monotonic()
        outcome = open_loop(started.port, [post(PATH, BODY)], 2 * CAPACITY_PER_S, LOAD_S)
        ended_s = time.monotonic()
        say(f"scaling: {LOAD_S:g} s of load: {outcome.describe()}; waiting for one process again")
        while history[-1][1] > 1 and time.monotonic() - ended_s < BACK_LIMIT_S:
            time.sleep(0.1)
    finally:
        stop.set()
        watcher.join()
    since = [(at_s - begun_s, count) for at_s, count in history if at_s >= begun_s]
    return {
        "capacity_per_s": CAPACITY_PER_S,
        "offered_per_s": outcome.rate,
        "before": before,
        "loaded_s": _loaded_s(started),
        "second_ready_s": next((round(at_s, 2) for at_s, count in since if count >= 2), None),
        "most": max((count for _, count in since), default=1),
        "back_s": round(history[-1][0] - ended_s, 1) if history[-1][1] == 1 else None,
        "history": [[round(at_s, 2), count] for at_s, count in since],
        "requests": outcome.sent,
        "failed": outcome.sent - outcome.statuses[200],
        "load": {"seconds": LOAD_S, **outcome.describe()},
    }


def _watch(control: Path, history: History, stop: threading.Event) -> None:
    while not stop.wait(LOOK_S):
        count = sum(int(float(number)) for _, number in series(scrape(control), "modelhost_workers_ready"))
        if not history or history[-1][1] != count:
            history.append((time.monotonic(), count))


def _loaded_s(started: Running) -> list[float]:
    """From its start to its being ready, of each process, as it says in its log."""
    logs = sorted((Path(started.option("run-dir")) / "logs").glob(f"{MODEL}.*.log"))
    times = re.findall(r"ready: .*loaded in (\d+) ms, warm and proven in (\d+) ms", "".join(map(Path.read_text, logs)))
    return [round((int(loaded) + int(proven)) / 1000, 3) for loaded, proven in times]
