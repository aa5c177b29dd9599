"""Figures to a page of Markdown tables, JSON files and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.load import Measured

OUT = Path("build") / "benchmarks"
BENCH_FILE, SCENARIOS_FILE, PLOT_FILE = "results.json", "scenarios.json", "results.png"


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
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "python": platform.python_version(),
    }


def origin(program: str) -> dict[str, Any]:
    """Where and how figures came about."""
    return {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join([program, *sys.argv[1:]]),
    }


def write(out: Path, file: str, document: dict[str, Any]) -> None:
    """Write the raw figures of one program, and make `RESULTS.md` anew of all that are there."""
    out.mkdir(parents=True, exist_ok=True)
    (out / file).write_text(json.dumps(document, indent=1) + "\n")
    if file == BENCH_FILE:
        first = results_of(document)[0].scenario
        plot([result for result in results_of(document) if result.scenario == first], out / PLOT_FILE)
    (out / "RESULTS.md").write_text(page(out))
    print(f"written: {out / 'RESULTS.md'}, {out / file}", file=sys.stderr)


def results_of(document: dict[str, Any]) -> list[Result]:
    """The results in a document that `write` wrote."""
    return [
        Result(**{**entry, "rounds": tuple(Measured(**figures) for figures in entry["rounds"])})
        for entry in document["results"]
    ]


def page(out: Path) -> str:
    """Everything that was measured, for people."""
    parts = ["# Results\n"]
    for file, tables in ((BENCH_FILE, bench_tables), (SCENARIOS_FILE, scenario_tables)):
        if (out / file).exists():
            document = json.loads((out / file).read_text())
            parts += [_origin_text(document), tables(document)]
    return "\n".join(parts)


def _origin_text(document: dict[str, Any]) -> str:
    found = document["machine"]
    text = (
        f"`{document['command']}`, {document['date']}: {found['cpus']} CPUs ({found['cpu']}), "
        f"{found['memory_gib']:g} GiB, Linux {found['kernel']}, {found['system']}, Python {found['python']}.\n"
    )
    if "versions" in document:
        text += "Versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + ".\n"
    return text


def bench_tables(document: dict[str, Any]) -> str:
    """One table a scenario, the plot, and how the servers were set."""
    results = results_of(document)
    scenarios = list(dict.fromkeys(result.scenario for result in results))
    parts = [f"![requests a second over connections]({PLOT_FILE})\n"]
    for scenario in scenarios:
        here = [result for result in results if result.scenario == scenario]
        parts.append(markdown(scenario, here))
        parts.append(settings_table(here))
    parts.append(f"## Settings\n\n{settings(results)}")
    return "\n".join(part for part in parts if part)


def settings_table(results: Sequence[Result]) -> str:
    """Requests a second of servers that ran in several settings, each at every load; empty if there are none."""
    names = list(dict.fromkeys(result.server for result in results))
    families = [name.partition(" (")[0] for name in names]
    several = [name for name, family in zip(names, families, strict=True) if families.count(family) > 1]
    if not several:
        return ""
    loads = sorted({result.connections for result in results})
    rate = {(result.server, result.connections): result.median("requests_per_s") for result in results}
    lines = [
        "Requests/s of one setting at every load:",
        "",
        "| server | " + " | ".join(f"{load} conn" for load in loads) + " |",
        "|---" * (1 + len(loads)) + "|",
    ]
    shown = [name for name in names if name == "modelhost" or name in several]
    lines += [f"| {name} | " + " | ".join(f"{rate[name, load]:,.0f}" for load in loads) + " |" for name in shown]
    return "\n".join([*lines, ""])


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


# -- past the limits -----------------------------------------------------------------------------------------
def scenario_tables(document: dict[str, Any]) -> str:
    """One section a scenario."""
    return "\n".join(scenario_table(name, figures) for name, figures in document["scenarios"].items())


def scenario_table(name: str, figures: dict[str, Any]) -> str:
    """The section of one scenario."""
    tables = {
        "overload": overload_table,
        "noisy": noisy_table,
        "kill": kill_table,
        "leak": leak_table,
        "burn": burn_table,
        "weight": weight_table,
        "rollouts": rollouts_table,
        "scaling": scaling_table,
        "features": features_table,
        "counting": counting_table,
        "observed": observed_table,
    }
    return tables[name](figures)


def overload_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = ["## Overload (open loop)", ""]
    for model, rows in found.items():
        peak = max(row["goodput_per_s"] for row in rows)
        lines += [
            f"{model}: goodput at the highest load is {100 * rows[-1]['goodput_per_s'] / peak:.1f} % of its peak.",
            "",
            "| load | sent/s | 200/s | p50, p99 of 200 | 503, p50 | 504 | generator late, p99 | front RSS |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            statuses = row["statuses"]
            rss = " -> ".join(f"{kib / 1024:.1f}" for kib in row["front_rss_kib"])
            lines.append(
                f"| {row['load']:g}{'x' if row['load'] < 100 else '/s'} | {row['sent_per_s']:,.0f} "
                f"| {row['goodput_per_s']:,.0f} | {row['admitted_p50_ms']:.1f}, {row['admitted_p99_ms']:.1f} ms "
                f"| {statuses.get('503', 0)}, {row['refused_p50_ms']:.1f} ms | {statuses.get('504', 0)} "
                f"| {row['generator_late_p99_ms']:.1f} ms | {rss} MiB |"
            )
        lines.append("")
    return "\n".join(lines)


def noisy_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "## A noisy neighbour",
        "",
        f"LightGBM at {found['rate_per_s']:,}/s (a third of the highest rate that was offered on time, which is the",
        "generator's and below the model's), alone and while `slow` is flooded at three times its capacity",
        f"through the same front. Median ratio of p99: **{found['median_ratio']:.2f}**, errors: {found['errors']}.",
        "",
        "| pair | p99 alone | p99 beside | ratio |",
        "|---|---|---|---|",
    ]
    for number, pair in enumerate(found["pairs"], 1):
        lines.append(f"| {number} | {pair['alone_p99_ms']} ms | {pair['beside_p99_ms']} ms | {pair['ratio']} |")
    return "\n".join([*lines, ""])


def kill_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "## Killed workers (kill -9 under 16 connections)",
        "",
        "| workers | kills | answers by status | errors | s until the next 200 |",
        "|---|---|---|---|---|",
    ]
    for name, figures in found.items():
        recoveries = ", ".join(map(str, figures["seconds_to_the_next_200"])) or "never without"
        lines.append(f"| {name} | {figures['kills']} | {figures['statuses']} | {figures['errors']} | {recoveries} |")
    return "\n".join([*lines, ""])


def leak_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "## A neighbour that leaks",
        "",
        "A model under wrk, alone and while another one on the front's CPU allocates until it is killed at",
        f"{found['memory_mib']} MiB, again and again.",
    ]
    for connections, figures in found["connections"].items():
        lines += [
            "",
            f"{connections} connections, {figures['oom_kills']} kills: median ratio of p99 "
            f"**{figures['median_ratio']:.2f}**, errors: {figures['errors']}.",
            "",
            "| pair | p99 alone | p99 beside | ratio | requests/s alone | beside | kills |",
            "|---|---|---|---|---|---|---|",
        ]
        for number, pair in enumerate(figures["pairs"], 1):
            cells = (
                f"{pair['alone_p99_ms']} ms",
                f"{pair['beside_p99_ms']} ms",
                pair["ratio"],
                f"{pair['alone_per_s']:,}",
                f"{pair['beside_per_s']:,}",
                pair["oom_kills"],
            )
            lines.append(f"| {number} | {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def burn_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    threads = max(pair["burning_threads"] for pair in found["pairs"])
    lines = [
        "## A neighbour that burns",
        "",
        "The time of one model's own work on its CPU, alone and while another one, on another CPU, runs LightGBM and",
        f"asks for 64 threads (it got {threads}). Median ratio: **{found['median_ratio']:.3f}**.",
        "",
        "| pair | alone | beside | ratio |",
        "|---|---|---|---|",
    ]
    for number, pair in enumerate(found["pairs"], 1):
        lines.append(f"| {number} | {pair['alone_ms']} ms | {pair['beside_ms']} ms | {pair['ratio']} |")
    return "\n".join([*lines, ""])


def rollouts_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "## Changes under load",
        "",
        f"LightGBM behind {found['fronts']} fronts, wrk with {found['connections']} connections throughout; each step "
        f"beside as many seconds without one. Failed requests in all: **{found['failed']}**.",
        "",
        "| step | takes | requests | failed | p99 before | p99 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['step']} | {one['took_s']} s | {one['requests']:,} | {one['failed']} "
        f"| {one['still_p99_ms']} ms | {one['p99_ms']} ms |"
        for one in found["steps"]
    ]
    return "\n".join([*lines, ""])


def scaling_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "## A model gets processes and gives them back",
        "",
        f"One process can do {found['capacity_per_s']:.0f} requests a second. From one moment to the next "
        f"{found['offered_per_s']:.0f} come, for {found['load']['seconds']:g} s, then none.",
        "",
        f"- second process ready after {found['second_ready_s']} s, of which it loaded for {max(found['loaded_s'])} s; "
        f"at most {found['most']}",
        f"- one process again {found['back_s']} s after the load",
        f"- {found['requests']:,} requests, {found['failed']} failed",
    ]
    return "\n".join([*lines, ""])


def weight_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "## What a worker weighs",
        "",
        "A worker with its runtime loaded and no model, while no other process shares anything with it.",
        "",
        "| runtime | resident | proportional set |",
        "|---|---|---|",
    ]
    for runtime, sizes in found["memory"].items():
        lines.append(f"| {runtime} | {sizes['rss_mb']} MB | {sizes['pss_mb']} MB |")
    launches = found["launch_ms"]
    lines += ["", "Starting `/usr/bin/true`, through the launcher and without it:", "", "| steps | ms |", "|---|---|"]
    lines += [f"| {'no launcher' if name == 'nothing' else name} | {took_ms} |" for name, took_ms in launches.items()]
    return "\n".join([*lines, ""])


def _both(figures: list[float]) -> str:
    """Of several rates."""
    return " and ".join(f"{figure:,g}" for figure in figures)


def features_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        "## Fetched features, all cached",
        "",
        "LightGBM, 30 features: in the request, and fetched from three views of ten by a key. The rate and the CPU of",
        f"all processes under 32 connections of wrk, the latency over 32 connections at {_both(found['rates_per_s'])}",
        f"requests/s. Medians: ratio of the rates **{found['median_ratio']:.2f}**,",
        f"**{found['median_more_cpu_us']:.1f} us** more CPU for a request, and at the median",
        f"**{_both(found['median_more_p50_ms'])} ms** more.",
        "",
        "| pair | given/s | fetched/s | ratio | more CPU | p50 given, ms | p50 fetched, ms | errors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, pair in enumerate(found["pairs"], 1):
        cells = (
            f"{pair['given_per_s']:,}",
            f"{pair['fetched_per_s']:,}",
            pair["ratio"],
            f"{pair['more_cpu_us']} us",
            _both(pair["given_p50_ms"]),
            _both(pair["fetched_p50_ms"]),
            pair["errors"],
        )
        lines.append(f"| {number} | {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def counting_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    statuses = ", ".join(f"{count:,} x {status}" for status, count in found["statuses"].items())
    lines = [
        "## What clients and `/metrics` count",
        "",
        f"{found['requests']:,} requests to three models behind two fronts in {found['seconds']:g} s,",
        f"{found['killed']} workers killed meanwhile: clients count {found['clients']:,} ({statuses};",
        f"{found['lost']} without an answer), `/metrics` says {found['metrics']:,}.",
        f"Models and statuses where they differ: {found['differences'] or 'none'}.",
    ]
    return "\n".join([*lines, ""])


def observed_table(found: dict[str, Any]) -> str:
    """The figures for people."""
    ratios = ", ".join(f"{one:.3f}" for one in found["ratios"])
    lines = [
        "## What being seen costs",
        "",
        f"{found['connections']} connections; a host with the access log as shipped, `/metrics` scraped",
        f"{found['scrapes']} times and a status page open, beside one without, in turns:",
        f"{found['unseen_per_s']:,} -> {found['seen_per_s']:,}/s, median ratio of {found['pairs']} pairs",
        f"**{found['ratio']:.3f}** ({ratios}).",
    ]
    return "\n".join([*lines, ""])
