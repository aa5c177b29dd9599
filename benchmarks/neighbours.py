"""What one model's leak or burn costs another, and what a worker weighs. Scenarios of `scenarios.py`."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.load import Measured, measure
from benchmarks.servers import FRONT_CPU, READY_S, ROOT, WORKER_CPU, Running, modelhost, running
from host.isolation.cgroups import CgroupTree, own_hierarchy
from host.isolation.plan import CgroupPlan, SlotPlan, ViewPlan, write_plan
from host.isolation.prepare import interpreter_directories, launcher_path
from host.placement import cpu_set_text

TOML = """runtime = "python"
[[inputs]]
name = "x"
datatype = "FP64"
shape = [-1, 1]
[[outputs]]
name = "y"
datatype = "FP64"
shape = [-1, 1]
[resources]
memory = "{memory}"
cpus = "{cpus}"
[limits]
timeout_ms = 20000
max_batch_rows = 1
retry = false
"""
LEAK_CODE = """
import threading
import time

class Model:
    \"\"\"Allocates until it is killed, for as long as its package has a file `leak`.\"\"\"

    def load(self, package):
        threading.Thread(target=self.leak, args=(package / "leak",), daemon=True).start()

    def leak(self, sign):
        while not sign.exists():
            time.sleep(0.1)
        held = []
        while True:
            held.append(bytearray(4 << 20))

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""
MEASURED_CODE = """
import time

class Model:
    \"\"\"Some milliseconds of work that is always the same; answers how long it took, in seconds.\"\"\"

    def load(self, package):
        pass

    def predict(self, inputs):
        start = time.perf_counter()
        total = 0
        for number in range(100_000):
            total += number * number % 7
        return {"y": inputs["x"] * 0 + (time.perf_counter() - start)}
"""
BURN_CODE = """
import time
import lightgbm
import numpy as np

class Model:
    \"\"\"As many seconds as asked for of LightGBM with 64 threads.\"\"\"

    def load(self, package):
        data = np.random.default_rng(1).normal(size=(5000, 30))
        self.rows = data
        self.booster = lightgbm.train({"verbosity": -1, "num_threads": 1}, lightgbm.Dataset(data, data[:, 0]), 50)

    def predict(self, inputs):
        end = time.monotonic() + float(inputs["x"].max())
        while time.monotonic() < end:
            self.booster.predict(self.rows, num_threads=64)
        return {"y": inputs["x"]}
"""
BODY = '{{"inputs":[{{"name":"x","datatype":"FP64","shape":[1,1],"data":[{value}]}}]}}'
MEMORY_MIB = 256
PAIRS = 7
CONNECTIONS = (32, 4)


def package(repository: Path, name: str, code: str, cpus: int, memory_mib: int = MEMORY_MIB) -> None:
    """Write a package of the python runtime."""
    directory = repository / name / "1"
    directory.mkdir(parents=True)
    (directory / "model.toml").write_text(TOML.format(memory=f"{memory_mib}MiB", cpus=cpus))
    (directory / "model.py").write_text(code)


@contextmanager
def host(models: dict[str, tuple[str, int]]) -> Iterator[Running]:
    """A host with models of this name, code and CPU; nothing is moved after it has started."""
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        repository = Path(directory)
        for name, (code, cpu) in models.items():
            package(repository, name, code, cpu)
        first = next(iter(models))
        server = modelhost(" ".join(models), f"/v2/models/{first}/infer", repository=repository)
        with running(replace(server, pins=()), BODY.format(value=0.0).encode()) as started:
            yield started


def ask(port: int, model: str, value: float) -> tuple[int, float]:
    """One request; its status and the number in its answer."""
    url = f"http://127.0.0.1:{port}/v2/models/{model}/infer"
    request = urllib.request.Request(url, BODY.format(value=value).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return 200, json.loads(response.read())["outputs"][0]["data"][0]
    except urllib.error.HTTPError as error:
        error.read()
        return error.code, 0.0


def wait_until_ready(started: Running, model: str) -> None:
    """Until it answers again."""
    limit_s = time.monotonic() + READY_S
    while ask(started.port, model, 0.0)[0] != 200:
        if time.monotonic() > limit_s:
            raise TimeoutError(f"{model} is not ready after {READY_S:.0f} s")
        time.sleep(0.2)


def oom_kills(started: Running) -> int:
    """How often a worker of the host was killed at its limit since it started."""
    command = [ROOT / ".venv" / "bin" / "modelhost", "status", "--json", "--run-dir", started.option("run-dir")]
    status = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
    return sum(slot["deaths"].get("oom", 0) for model in status["models"] for slot in model["slots"])


# -- a leak -------------------------------------------------------------------------------------------------------
DOUBLE_CODE = """
class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {"y": 2 * inputs["x"]}
"""


def leak(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """A model under load, alone and while another one allocates until it is killed, again and again.

    The leaking one has the front's CPU, so that its burning and dying meets the front as well. It leaks by itself:
    whoever asked it to would take CPU from both.
    """
    found: dict[str, Any] = {}
    models = {"innocent": (DOUBLE_CODE, WORKER_CPU), "leaking": (LEAK_CODE, FRONT_CPU)}
    with host(models) as started, tempfile.NamedTemporaryFile("w") as bodies:
        sign = Path(started.option("repository")) / "leaking" / "1" / "leak"
        bodies.write("\n".join(BODY.format(value=value) for value in range(1, 200)))
        bodies.flush()

        def load(connections: int) -> Measured:
            path, kind = Path(bodies.name), "application/json"
            return measure(started, path, connections, seconds=seconds / 2, content_type=kind, load_cpu=WORKER_CPU)

        for connections in CONNECTIONS:
            load(connections)
            pairs = []
            for pair in range(PAIRS):
                alone = load(connections)
                deaths = oom_kills(started)
                sign.touch()
                beside = load(connections)
                sign.unlink()
                wait_until_ready(started, "leaking")
                pairs.append(
                    {
                        "alone_p99_ms": round(alone.p99_ms, 2),
                        "beside_p99_ms": round(beside.p99_ms, 2),
                        "ratio": round(beside.p99_ms / alone.p99_ms, 2),
                        "alone_per_s": round(alone.requests_per_s),
                        "beside_per_s": round(beside.requests_per_s),
                        "errors": beside.errors,
                        "oom_kills": oom_kills(started) - deaths,
                    }
                )
                say(f"leak: {connections} connections, pair {pair + 1} of {PAIRS}: {pairs[-1]}")
            found[str(connections)] = {
                "pairs": pairs,
                "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
                "errors": sum(pair["errors"] for pair in pairs),
                "oom_kills": sum(pair["oom_kills"] for pair in pairs),
            }
    return {"memory_mib": MEMORY_MIB, "connections": found}


# -- a burn -------------------------------------------------------------------------------------------------------
def burn(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The time that a model's own work takes on one CPU, while another asks for 64 OpenMP threads on the other."""
    found = []
    models = {"measured": (MEASURED_CODE, WORKER_CPU), "burning": (BURN_CODE, FRONT_CPU)}
    with host(models) as started, ProcessPoolExecutor(1, get_context("spawn")) as other_process:

        def work_ms() -> float:
            end = time.monotonic() + seconds / 2
            taken = []
            while time.monotonic() < end:
                taken.append(ask(started.port, "measured", 1.0)[1])
            return 1000 * statistics.median(taken)

        work_ms()
        for pair in range(PAIRS):
            alone_ms = work_ms()
            burning = other_process.submit(ask, started.port, "burning", seconds / 2 + 1)
            time.sleep(0.5)
            beside_ms = work_ms()
            threads = threads_of(started, "burning")
            status, _ = burning.result()
            found.append(
                {
                    "alone_ms": round(alone_ms, 3),
                    "beside_ms": round(beside_ms, 3),
                    "ratio": round(beside_ms / alone_ms, 3),
                    "burning_status": status,
                    "burning_threads": threads,
                }
            )
            say(f"burn: pair {pair + 1} of {PAIRS}: {found[-1]}")
    return {"pairs": found, "median_ratio": statistics.median(pair["ratio"] for pair in found)}


def threads_of(started: Running, model: str) -> int:
    """Threads of a model's worker."""
    for pid, command in started.pids().items():
        if "by_path.py" in command and f"/{model}/" in command:
            return len(list(Path(f"/proc/{pid}/task").iterdir()))
    return 0


# -- weight -------------------------------------------------------------------------------------------------------
WEIGHT_CODE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import models.worker
from models.golden import run_golden_cases
from models.server import Server
from models.service import Service
from models.watchdog import Watchdog
import models.runtimes.{runtime}
print(Path("/proc/self/smaps_rollup").read_text())
"""


def weight(seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Memory of one worker with its runtime loaded and no model, nothing of it shared; what its launcher takes."""
    python = ROOT / ".venv" / "model-env" / "bin" / "python"
    found = {}
    for runtime in ("lightgbm", "onnx", "python"):
        code = WEIGHT_CODE.format(root=str(ROOT), runtime=runtime)
        done = subprocess.run(
            [python, "-I", "-c", code], check=True, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}
        )
        sizes = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", done.stdout, re.MULTILINE))
        found[runtime] = {name.lower() + "_mb": round(int(kib) * 1024 / 1e6, 1) for name, kib in sizes.items()}
        say(f"weight: {runtime}: {found[runtime]}")
    return {"memory": found, "launch_ms": launch_ms(python)}


LAUNCHES = 21


def launch_ms(python: Path) -> dict[str, float]:
    """What the launcher adds to the start of a process, with every step and without the dearest ones; medians in ms."""
    hierarchy = own_hierarchy()
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        work = Path(directory)
        for name in ("view", "sockets"):
            (work / name).mkdir()
        tree = None if hierarchy is None else CgroupTree.below(hierarchy, work.name)
        if tree is not None:
            tree.make()
            tree.make_group("bench", 100)
        try:
            plan = _full_plan(work, python, tree)
            variants = {
                "everything": plan,
                "without a view": plan._replace(view=None),
                "without a network": plan._replace(network=True),
                "without a cgroup": plan._replace(cgroup=None),
                "no step at all": plan._replace(view=None, network=True, cgroup=None, user=None, confined=False),
            }
            taken: dict[str, list[float]] = {name: [] for name in ("nothing", *variants)}
            for _ in range(LAUNCHES):
                taken["nothing"].append(_took_ms(["/usr/bin/true"]))
                for name, variant in variants.items():
                    write_plan(work / "plan.json", variant)
                    launcher = [ROOT / ".venv/bin/python", "-I", "-S", launcher_path(ROOT), work / "plan.json", "--"]
                    taken[name].append(_took_ms([*map(str, launcher), "/usr/bin/true"]))
        finally:
            if tree is not None:
                tree.remove()
    return {name: round(statistics.median(times), 1) for name, times in taken.items()}


def _took_ms(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - begun)


def _full_plan(work: Path, python: Path, tree: CgroupTree | None) -> SlotPlan:
    """What a worker of a host is told."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    cgroup = None
    if tree is not None:
        directories = {name: str(top / "bench" / "0") for name, top in tree.tops.items()}
        cgroup = CgroupPlan(tree.version, directories, 1 << 29, 128, 100, cpu_set_text(cpus))
    code = (ROOT / "models", ROOT / "host" / "__init__.py", ROOT / "host" / "protocol")
    read_only = (*interpreter_directories(str(python)), *map(str, code))
    return SlotPlan(
        program="bench:0",
        required=True,
        cgroup=cgroup,
        cpus=cpus,
        threads=1,
        threads_max=1,
        oom_score_adj=500,
        open_files=4096,
        view=ViewPlan(str(work / "view"), read_only, (str(work / "sockets"),), 1 << 28),
        network=False,
        user=1_900_000_000,
        processes_max=128,
        confined=True,
        socket="",
    )
