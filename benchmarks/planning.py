"""The planner on fleets that are made up: hosts against the lower bound, time, survival, and what small changes move.

    .venv/dev/bin/python benchmarks/planning.py                       # 500 models on 1,000 hosts
    .venv/dev/bin/python benchmarks/planning.py --seeds 5 --survive zone
    .venv/dev/bin/python benchmarks/planning.py --memory 3 --fill 0.5 # as full of memory as of work
    PLANNER/bin/python benchmarks/planning.py --solver small          # beside CP-SAT; needs ortools (docs/adr/0032)

A fleet has Zipf demand, log-normal costs and processes of 256 MiB to 8 GiB (times `--memory`); hosts of three sizes
with 2, 4 or 8 GiB a core in three zones; one model in ten may run on some hosts only. The same seed makes the same
fleet.
Ends with 1 if a plan takes 60 s, or more than 5 % over the lower bound on hosts, breaks a rule or a loss, or if a
change of demand by 1 % moves 2 % of the processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from host.planner.check import violations
from host.planner.demand import left_at_least, needs_of
from host.planner.explain import changes_of, effort_of
from host.planner.model import MOST, TARGET, Fleet, Placement, PlannedHost, PlannedModel, Survive
from host.planner.plan import make_plan

GIB = 1 << 30
MEMORY_GIB = (0.25, 0.5, 1, 2, 4, 8)
MEMORY_WEIGHTS = (20, 25, 20, 15, 12, 8)
HOST_CORES = {"small": 16, "medium": 32, "large": 64}
HOST_WEIGHTS = (30, 50, 20)
GIB_A_CORE = (2, 4, 8)
GIB_A_CORE_WEIGHTS = (25, 50, 25)
ZONES = ("a", "b", "c")


def make_fleet(models: int, hosts: int, seed: int, *, fill: float, survive: Survive, memory: float = 1.0) -> Fleet:
    """Make up a fleet whose models keep so much of the target share of all cores busy."""
    draw = random.Random(seed)  # noqa: S311 - the same again, not unguessable
    made_hosts = []
    for number in range(hosts):
        size = draw.choices(list(HOST_CORES), HOST_WEIGHTS)[0]
        memory_gib = HOST_CORES[size] * draw.choices(GIB_A_CORE, GIB_A_CORE_WEIGHTS)[0]
        zone = ZONES[number % len(ZONES)]
        made_hosts.append(
            PlannedHost(
                name=f"h{number:04}",
                cores=HOST_CORES[size] - 1.0,
                memory_bytes=(memory_gib - 2) * GIB,
                zone=zone,
                tags=frozenset({size, f"zone-{zone}"}),
            )
        )
    ranks = list(range(1, models + 1))
    draw.shuffle(ranks)
    works = [draw.lognormvariate(math.log(300), 0.8) / rank for rank in ranks]
    cores = fill * TARGET.busy * sum(host.cores for host in made_hosts)
    made_models = []
    for number, work in enumerate(works):
        cost_us = min(50_000.0, max(20.0, draw.lognormvariate(math.log(400), 1.0)))
        rule = draw.random()
        made_models.append(
            PlannedModel(
                name=f"m{number:03}",
                version="1",
                requests_per_s=work / sum(works) * cores / cost_us * 1e6,
                rows_per_request=1.0,
                cpu_us_per_row=cost_us,
                memory_bytes=int(draw.choices(MEMORY_GIB, MEMORY_WEIGHTS)[0] * memory * GIB),
                cpus=1,
                hosts_min=1 if survive is Survive.NONE else 2,
                zones_min=None,
                only=frozenset({"large", "medium"}) if rule < 0.05 else frozenset(),
                never=frozenset({"zone-a"}) if 0.05 <= rule < 0.1 and survive is not Survive.ZONE else frozenset(),
            )
        )
    return Fleet(models=tuple(made_models), hosts=tuple(made_hosts), survive=survive)


def with_demand(fleet: Fleet, factor: Callable[[int], float]) -> Fleet:
    """The same fleet with other request rates."""
    models = [
        replace(model, requests_per_s=model.requests_per_s * factor(number))
        for number, model in enumerate(fleet.models)
    ]
    return replace(fleet, models=tuple(models))


def measured(fleet: Fleet, present: Placement | None = None) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Plan, check, and say what it took."""
    began, began_cpu = time.monotonic(), time.process_time()
    plan = make_plan(fleet, present)
    plan_s, plan_cpu_s = time.monotonic() - began, time.process_time() - began_cpu
    broken = violations(fleet, plan.placement)
    check_s = time.monotonic() - began - plan_s
    processes = sum(sum(counts.values()) for counts in plan.placement.values())
    effort = effort_of(changes_of(fleet, present or {}, plan.placement))
    row = {
        "plan_s": round(plan_s, 2),
        "plan_cpu_s": round(plan_cpu_s, 2),
        "check_s": round(check_s, 2),
        "processes": processes,
        "hosts": plan.hosts_used,
        "bound": plan.bound.hosts,
        "bound_by": plan.bound.why,
        "over_bound": round(plan.hosts_used / plan.bound.hosts - 1, 4),
        "unplaced": sum(one.processes for one in plan.unplaced),
        "violations": len(broken),
        "started": effort.started,
        "stopped": effort.stopped,
        "moved": effort.moved,
        "moved_share": round(effort.moved / max(1, processes), 5),
        "touched_share": round(max(effort.started, effort.stopped) / max(1, processes), 5),
    }
    return row, plan.placement


class Report:
    """Prints a line for each plan, and keeps what is not as it should be."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def show(self, what: str, row: dict[str, Any]) -> None:
        """One line."""
        print(f"{what:28}", json.dumps(row), flush=True)
        limits = {"plan_s": 60, "unplaced": 0, "violations": 0}
        if what == "fresh":
            limits["over_bound"] = 0.05
        elif "1 %" in what:
            limits["touched_share"] = 0.02
        self.wrong += [f"{what}: {key} {row[key]}, at most {most}" for key, most in limits.items() if row[key] > most]


def scenarios(report: Report, fleet: Fleet, seed: int, steps: int) -> None:
    """A fresh plan, and what small changes move."""
    row, placement = measured(fleet)
    report.show("fresh", row)
    draw = random.Random(seed)  # noqa: S311
    noise = [draw.uniform(0.99, 1.01) for _ in fleet.models]
    few = set(draw.sample(range(len(fleet.models)), max(1, len(fleet.models) // 20)))
    work = [model.work_cores for model in fleet.models]
    more = 1 + 0.01 * sum(work) / sum(work[number] for number in few)
    used = next(iter(next(iter(placement.values()))))
    changes: dict[str, Fleet] = {
        "the same": fleet,
        "all + 1 %": with_demand(fleet, lambda number: 1.01),
        "all - 1 %": with_demand(fleet, lambda number: 0.99),
        "each within 1 %": with_demand(fleet, lambda number: noise[number]),
        f"+ 1 %, few {more - 1:+.0%}": with_demand(fleet, lambda number: more if number in few else 1.0),
        "a used host leaves": replace(
            fleet, hosts=tuple(replace(host, closed=host.closed or host.name == used) for host in fleet.hosts)
        ),
    }
    for what, changed in changes.items():
        report.show(what, measured(changed, placement)[0])
    for how, least, most in (("up", 1.01, 1.01), ("around", 0.99, 1.01)):
        chained, there = fleet, placement
        for step in range(steps):
            factors = [draw.uniform(least, most) for _ in fleet.models]
            chained = with_demand(chained, lambda number, factors=factors: factors[number])  # type: ignore[misc]
            row, there = measured(chained, there)
            report.show(f"1 % {how}: step {step + 1}", row)


# -- beside a solver --------------------------------------------------------------------------------------------
def solved(fleet: Fleet, limit_s: float, present: Placement | None = None) -> dict[str, Any]:
    """The fewest hosts by CP-SAT; with a present placement the fewest stopped processes, then the fewest hosts.

    Of an easier problem: what hosts carry after a loss is left out, which is a product of two unknowns. So what it
    proves is a lower bound for ours too, and what it finds need not survive: `violations` says.
    """
    from ortools.sat.python import cp_model

    began = time.monotonic()
    shares = TARGET if present is None else MOST
    needs = needs_of(fleet, {name: sum(counts.values()) for name, counts in (present or {}).items()})
    model = cp_model.CpModel()
    used = [model.new_bool_var("") for _ in fleet.hosts]
    counts, stopped = [], []
    for need in needs:
        most = need.processes
        if fleet.survive is not Survive.NONE:
            most -= left_at_least(need.model, shares.after_loss)
        row = [model.new_int_var(0, most if number in need.hosts else 0, "") for number in range(len(fleet.hosts))]
        model.add(sum(row) == need.processes)
        if most * (need.model.hosts_min - 1) >= need.processes:
            there = [model.new_bool_var("") for _ in row]
            for count, is_there in zip(row, there, strict=True):
                model.add(count >= 1).only_enforce_if(is_there)
            model.add(sum(there) >= need.model.hosts_min)
        for number, host in enumerate(fleet.hosts):
            before = (present or {}).get(need.model.name, {}).get(host.name, 0)
            if before:
                model.add_hint(row[number], before)
                less = model.new_int_var(0, before, "")
                model.add(less >= before - row[number])
                stopped.append(less)
        counts.append(row)
    loads = [math.floor(need.load_cores * 1e6) for need in needs]
    sizes = [need.model.memory_bytes >> 20 for need in needs]
    for number, host in enumerate(fleet.hosts):
        column = [row[number] for row in counts]
        cores = math.floor(shares.busy * host.cores * 1e6)
        model.add(cp_model.LinearExpr.weighted_sum(column, loads) <= cores * used[number])
        model.add(cp_model.LinearExpr.weighted_sum(column, sizes) <= (host.memory_bytes >> 20) * used[number])
    model.minimize(sum(used) + (len(used) + 1) * sum(stopped))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 1
    build_s = time.monotonic() - began
    status = solver.solve(model)
    row = {"status": solver.status_name(status), "s": round(time.monotonic() - began, 2), "build_s": round(build_s, 2)}
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return row
    placement = {
        need.model.name: {
            host.name: solver.value(count) for host, count in zip(fleet.hosts, row, strict=True) if solver.value(count)
        }
        for need, row in zip(needs, counts, strict=True)
    }
    row |= {"hosts": sum(map(solver.value, used)), "stopped": sum(map(solver.value, stopped))}
    if present is None:
        row["proven"] = math.ceil(solver.best_objective_bound - 1e-6)
    return row | {"violations": len(violations(fleet, placement))}


def beside_solver(sizes: Sequence[tuple[int, int]], fills: Sequence[float], given: argparse.Namespace) -> None:
    """The same fleets by both: placed anew, and after 1 % more demand."""
    for models, hosts in sizes:
        for seed, fill in itertools.product(range(given.seed, given.seed + given.seeds), fills):
            fleet = make_fleet(models, hosts, seed, fill=fill, survive=Survive(given.survive), memory=given.memory)
            grown = with_demand(fleet, lambda number: 1.01)
            ours, placement = measured(fleet)
            more = measured(grown, placement)[0]
            for what, row, theirs in (
                ("fresh", ours, solved(fleet, given.limit)),
                ("+ 1 %", more, solved(grown, given.limit, placement)),
            ):
                kept = {key: row[key] for key in ("hosts", "bound", "plan_s", "stopped", "unplaced", "violations")}
                print(f"{models} x {hosts}, seed {seed}, fill {fill:g}, {what}")
                print(f"    ours   {json.dumps(kept)}\n    CP-SAT {json.dumps(theirs)}", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fill", type=float, default=0.85)
    parser.add_argument("--survive", choices=[one.value for one in Survive], default="host")
    parser.add_argument("--memory", type=float, default=1.0, help="so many times the memory of each process")
    parser.add_argument("--steps", type=int, default=0, help="so many changes of 1 %% in a row, up and then around")
    parser.add_argument("--solver", choices=["small", "given"], help="beside CP-SAT: small fleets, or that given")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds that the solver has for each fleet")
    given = parser.parse_args()
    survive = Survive(given.survive)
    if given.solver:
        small = [(5, 6), (10, 10), (20, 20), (50, 60)]
        beside_solver(
            small if given.solver == "small" else [(given.models, given.hosts)],
            (0.6, 0.9) if given.solver == "small" else (given.fill,),
            given,
        )
        return
    report = Report()
    for seed in range(given.seed, given.seed + given.seeds):
        print(
            f"-- {given.models} models, {given.hosts} hosts, seed {seed}, fill {given.fill:g}, "
            f"memory x {given.memory:g}, survive {survive.value}"
        )
        fleet = make_fleet(given.models, given.hosts, seed, fill=given.fill, survive=survive, memory=given.memory)
        scenarios(report, fleet, seed, given.steps)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    for line in report.wrong:
        print(f"not as it should be: {line}")
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
