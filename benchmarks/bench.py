"""Side by side in one run: modelhost and other servers, the same model, the same rows, the same loads.

    make bench                                       # every server and scenario, some 15 minutes
    make bench ARGS="--only modelhost mosec"         # some servers
    make bench ARGS="--only rows64 --quick"          # a scenario, shortly

Figures of different machines or runs do not compare: the machine may be shared. What compares is the ratio of servers
that took turns within one run. Servers run one after the other (they would take each other's CPU), in rounds; the
medians of the rounds are shown. What reads HTTP has one CPU, the model's process and wrk share the other, where a
server lets itself be divided so; a server that gains by it may use both (its setting says so). The scenario `beside`
has wrk on the CPU of what reads HTTP instead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from benchmarks.load import Measured, measure
from benchmarks.report import Result
from benchmarks.servers import (
    FRONT_CPU,
    MODEL_FILE,
    ONNX_FILE,
    REPOSITORY,
    ROOT,
    WORKER_CPU,
    Server,
    fastapi,
    lightgbm_servers,
    modelhost,
    mosec_servers,
    running,
)

BINARY_ROWS, BINARY_COLUMNS = 64, 4096
"""One MiB of FP32."""

SUMS_TOML = """runtime = "python"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [-1, 4096]
[[outputs]]
name = "sum"
datatype = "FP32"
shape = [-1, 1]
"""
SUMS_CODE = """class Model:
    def load(self, package):
        pass

    def predict(self, inputs):
        return {"sum": inputs["x"].sum(axis=1, keepdims=True)}
"""


@dataclass(frozen=True)
class Scenario:
    """What is asked of whom."""

    name: str
    title: str
    servers: Callable[[Path], list[Server]]
    write: Callable[[Path], Path]
    connections: tuple[int, ...]
    content_type: str = "application/json"
    load_cpu: int = WORKER_CPU
    """Where wrk runs."""


def request_lines(name: str, datatype: str, rows: list[list[float]], rows_each: int) -> list[str]:
    """Requests of so many rows each, all rows in turn."""
    lines = []
    for start in range(0, len(rows) - rows_each + 1, rows_each):
        part = rows[start : start + rows_each]
        data = [value for row in part for value in row]
        tensor = {"name": name, "shape": [len(part), len(part[0])], "datatype": datatype, "data": data}
        lines.append(json.dumps({"inputs": [tensor]}))
    return lines


def cancer_rows(rows_each: int) -> Callable[[Path], Path]:
    """The data set of the LightGBM model."""

    def write(directory: Path) -> Path:
        from sklearn.datasets import load_breast_cancer

        file = directory / "rows.jsonl"
        file.write_text("\n".join(request_lines("features", "FP64", load_breast_cancer().data.tolist(), rows_each)))
        return file

    return write


def digit_rows(directory: Path) -> Path:
    """The data set of the ONNX model."""
    from sklearn.datasets import load_digits

    file = directory / "rows.jsonl"
    file.write_text("\n".join(request_lines("image", "FP32", load_digits().data.tolist(), 1)))
    return file


def binary_body(directory: Path) -> Path:
    """A JSON head and one MiB behind it, as tritonclient writes it."""
    import numpy as np

    raw = np.random.default_rng(0).random((BINARY_ROWS, BINARY_COLUMNS), dtype=np.float32).tobytes()
    file = directory / "request.bin"
    file.write_bytes(binary_head() + raw)
    return file


def binary_head() -> bytes:
    """The JSON part."""
    size = BINARY_ROWS * BINARY_COLUMNS * 4
    tensor = {"name": "x", "shape": [BINARY_ROWS, BINARY_COLUMNS], "datatype": "FP32"}
    return json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()


def binary_servers(directory: Path) -> list[Server]:
    """modelhost with a model of its own, and FastAPI."""
    from dataclasses import replace

    package = directory / "models" / "sums" / "1"
    package.mkdir(parents=True)
    (package / "model.toml").write_text(SUMS_TOML)
    (package / "model.py").write_text(SUMS_CODE)
    path, headers = "/v2/models/sums/infer", (f"Inference-Header-Content-Length: {len(binary_head())}",)
    own = modelhost("sums", path, repository=directory / "models")
    return [replace(own, headers=headers), replace(fastapi("fastapi_app:app", path, {}), headers=headers)]


LOADS = (1, 8, 32, 128)
CANCER = "/v2/models/breast_cancer/infer"
DIGITS = "/v2/models/digits/infer"
SCENARIOS = (
    Scenario(
        "lightgbm",
        "LightGBM, 200 trees x 63 leaves, one row of 30 features, JSON",
        lambda _: lightgbm_servers(),
        cancer_rows(1),
        LOADS,
    ),
    Scenario(
        "beside",
        "The same, wrk on the CPU of what reads HTTP instead of the model's",
        lambda _: [modelhost("breast_cancer", CANCER), *mosec_servers()],
        cancer_rows(1),
        LOADS,
        load_cpu=FRONT_CPU,
    ),
    Scenario(
        "fronts",
        "The same, one front against two (the whole machine has two CPUs)",
        lambda _: [modelhost("breast_cancer", CANCER), modelhost("breast_cancer", CANCER, fronts=2)],
        cancer_rows(1),
        (128,),
    ),
    Scenario(
        "rows64",
        "LightGBM, 64 rows a request",
        lambda _: [modelhost("breast_cancer", CANCER), fastapi("fastapi_app:app", CANCER, MODEL_FILE)],
        cancer_rows(64),
        (1, 8, 32),
    ),
    Scenario(
        "onnx",
        "ONNX (digits), one image of 64 pixels, JSON",
        lambda _: [modelhost("digits", DIGITS), fastapi("fastapi_app:app", DIGITS, ONNX_FILE)],
        digit_rows,
        (1, 32, 128),
    ),
    Scenario(
        "binary",
        "One MiB of FP32 as binary tensor data",
        binary_servers,
        binary_body,
        (1, 8),
        "application/octet-stream",
    ),
)


def run_scenario(scenario: Scenario, options: argparse.Namespace, wanted: set[str]) -> list[Result]:
    """Measure every wanted server of a scenario, in rounds."""
    rounds: dict[tuple[str, int], list[Measured]] = {}
    settings: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="mh-") as work:
        bodies = scenario.write(Path(work))
        first = bodies.read_bytes() if bodies.suffix == ".bin" else bodies.read_bytes().split(b"\n", 1)[0]
        servers = [s for s in scenario.servers(Path(work)) if not wanted or peer_name(s.name) in wanted]
        steps = len(servers) * options.rounds
        for turn in range(options.rounds):
            for position, server in enumerate(servers):
                settings[server.name] = server.setting
                progress(scenario.name, turn * len(servers) + position, steps, server.name)
                with running(server, first, scenario.content_type) as started:
                    load = partial(
                        measure, started, bodies, content_type=scenario.content_type, load_cpu=scenario.load_cpu
                    )
                    load(32, seconds=min(2.0, options.seconds))
                    for connections in options.connections or scenario.connections:
                        figure = load(connections, seconds=options.seconds)
                        rounds.setdefault((server.name, connections), []).append(figure)
        progress(scenario.name, steps, steps, "done")
    return [
        Result(scenario=scenario.title, server=name, setting=settings[name], connections=load, rounds=tuple(figures))
        for (name, load), figures in rounds.items()
    ]


def peer_name(server: str) -> str:
    """`mosec (64, 1 ms)` is wanted as `mosec`, `Ray Serve` as `ray`."""
    return re.split(r"[ ,(]", server.lower())[0]


def progress(scenario: str, done: int, steps: int, now: str) -> None:
    """One line on stderr that is written over."""
    filled = 30 * done // max(1, steps)
    print(f"\r\033[K{scenario:9} [{'#' * filled}{'.' * (30 - filled)}] {done}/{steps} {now}", end="", file=sys.stderr)
    if done == steps:
        print(file=sys.stderr)


def versions() -> dict[str, str]:
    """What is compared, from each environment."""
    found = {"lightgbm": importlib.metadata.version("lightgbm")}
    for environment in sorted((ROOT / ".venv").glob("bench-*")):
        peer = environment.name.removeprefix("bench-")
        lock = (ROOT / "requirements" / f"{environment.name}.txt").read_text()
        match = re.search(rf"^{peer}(?:\[.*\])?==(\S+)", lock, re.MULTILINE)
        found[peer] = match[1] if match else "?"
    return found


def main() -> int:
    """Measure and report."""
    names = [scenario.name for scenario in SCENARIOS]
    peers = sorted({peer_name(server.name) for server in lightgbm_servers()})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=[*names, *peers], metavar="NAME",
                        help=f"scenarios ({', '.join(names)}), servers ({', '.join(peers)}); default all")  # fmt: skip
    parser.add_argument("--connections", type=int, nargs="+", help="loads instead of the scenario's own")
    parser.add_argument("--seconds", type=float, default=4, help="length of one measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the servers take turns (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of one second: whether it works")
    parser.add_argument("--out", type=Path, default=report.OUT,
                        help="directory of RESULTS.md, results.json and results.png (default %(default)s)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the raw figures instead of tables")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    for program in ("wrk", "taskset"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program}: not found (apt-get install wrk util-linux)")
    if not (REPOSITORY / "breast_cancer" / "1" / "model.txt").exists():
        raise SystemExit("the bundled models are not trained yet: `make run` does it")
    wanted = {name for name in options.only if name in peers}
    scenarios = [s for s in SCENARIOS if s.name in options.only or not set(options.only) & set(names)]
    if wanted and not set(options.only) & set(names):
        scenarios = [scenario for scenario in scenarios if scenario.name == "lightgbm"]
    try:
        by_scenario = {scenario.title: run_scenario(scenario, options, wanted) for scenario in scenarios}
    except (KeyboardInterrupt, subprocess.CalledProcessError) as error:
        print(f"\n{error or 'interrupted'}: everything that was started has been ended", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    results = [result for part in by_scenario.values() for result in part]
    raw = report.origin("benchmarks/bench.py") | {"versions": versions(), "results": [asdict(r) for r in results]}
    tables = "\n".join(report.markdown(title, part) for title, part in by_scenario.items())
    print(json.dumps(raw, indent=1) if options.json else tables)
    report.write(options.out, report.BENCH_FILE, raw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
