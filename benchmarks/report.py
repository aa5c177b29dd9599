"""Figures to a Markdown table, a JSON file and a plot."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Measured


@dataclass(frozen=True, kw_only=True)
class Result:
    """All rounds of one server at one load of a scenario."""

    scenario: str
    server: str
    setting: str
    connections: int
    rounds: tuple[Measured, ...]

    def median(self, figure: str) -> float:
        """The median over the rounds."""
        return float(statistics.median(getattr(run, figure) for run in self.rounds))


def best_of_each(results: Sequence[Result]) -> list[Result]:
    """A server that ran in several settings is represented at each load by the best one: its name stops at `(`."""
    best: dict[tuple[str, int], Result] = {}
    for result in results:
        key = (result.server.partition(" (")[0], result.connections)
        if key not in best or result.median("requests_per_s") > best[key].median("requests_per_s"):
            best[key] = result
    return list(best.values())


def markdown(scenario: str, results: Sequence[Result]) -> str:
    """One table of a scenario: a line for each load and server, modelhost's rate as a multiple of it."""
    lines = [
        f"## {scenario}",
        "",
        "| connections | server | requests/s | p50 | p99 | CPU a request | errors | modelhost is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for connections in sorted({result.connections for result in results}):
        here = [result for result in best_of_each(results) if result.connections == connections]
        own = next((result.median("requests_per_s") for result in here if result.server == "modelhost"), 0.0)
        for result in sorted(here, key=lambda result: -result.median("requests_per_s")):
            rate = result.median("requests_per_s")
            errors = sum(run.errors for run in result.rounds)
            lines.append(
                f"| {connections} | {result.server} | {rate:,.0f} | {result.median('p50_ms'):.2f} ms "
                f"| {result.median('p99_ms'):.2f} ms | {result.median('cpu_us'):,.0f} us | {errors} "
                f"| {own / rate:.2f}x |"
            )
    return "\n".join(lines) + "\n"


def settings(results: Sequence[Result]) -> str:
    """How each server was set."""
    named = {result.server: result.setting for result in results}
    return "\n".join(f"- {name}: {setting}" for name, setting in named.items()) + "\n"


def machine() -> dict[str, Any]:
    """Where this ran."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if "model name" in line), platform.machine())
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.split()[1]) / 2**20, 1),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def document(results: Sequence[Result], command: str, versions: dict[str, str]) -> dict[str, Any]:
    """Everything, for scripts."""
    return {
        "machine": machine(),
        "versions": versions,
        "command": command,
        "results": [asdict(result) for result in results],
    }


def plot(results: Sequence[Result], file: Path) -> None:
    """Requests per second over connections, one line a server, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=120)
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in best_of_each(results):
        name = result.server.partition(" (")[0]
        lines.setdefault(name, []).append((result.connections, result.median("requests_per_s")))
    for name, points in lines.items():
        points.sort()
        own = name == "modelhost"
        loads, rates = zip(*points, strict=True)
        axes.plot(loads, rates, marker="o", linewidth=3 if own else 1.5, label=name, zorder=3 if own else 2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({result.connections for result in results})
    axes.set_xticks(ticks, [str(load) for load in ticks])
    axes.set_xlabel("connections")
    axes.set_ylabel("requests a second")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(frameon=False)
    axes.set_title("LightGBM, one row of 30 features, JSON")
    figure.tight_layout()
    figure.savefig(file)
