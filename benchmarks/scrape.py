"""What a scrape of a large host costs: 50 models with 4 processes each, two fronts, features for 5 of them; made up.

    .venv/dev/bin/python benchmarks/scrape.py [--profile]

The run directory's counters and a cgroup tree as v2 has it are written once, in memory (/dev/shm) where there is any;
what control knows is made by the functions that make it on a host. What is timed is all that a scrape does between its
request and its answer, and its parts. supervisord and HTTP are not in it: a scrape asks nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from host.config.deployment import DeployedModel, Deployment
from host.control.compare import compare, plans_of
from host.control.metrics.exposition import negotiated, text_of
from host.control.metrics.facts import Facts, Known, UsageReader, pids_of
from host.control.metrics.families import families
from host.control.metrics.scrape import Metrics
from host.control.reconcile import Memory
from host.control.status import Readiness
from host.isolation.cgroups import CgroupTree
from host.protocol.counters import FEATURES, FRONT, STORE, VIEW, WORKER, Layout, open_counters, read_counters
from host.protocol.latency import LatencyHistogram
from host.protocol.messages import Limits
from host.protocol.types import Signature
from host.supervisor import ProcessInfo, ProcessState

MODELS = 50
SLOTS = 4
FRONTS = 2
ROUNDS = 60


class MadeUpHost:
    """Files and state of a host that never ran."""

    def __init__(self, directory: Path) -> None:
        self.counters = directory / "counters"
        self.counters.mkdir(mode=0o700)
        self.models = tuple(
            DeployedModel(
                name=f"model-{number:02d}",
                version="3",
                processes=SLOTS,
                package="/nowhere",
                platform="lightgbm",
                signature=Signature(inputs=(), outputs=()),
                limits=Limits(),
            )
            for number in range(MODELS)
        )
        self.featured = {model.group for model in self.models[::10]}
        """The versions whose inputs are fetched."""
        self.programs = [program for model in self.models for program in model.programs()]
        self.own = [*(f"front:{index}" for index in range(FRONTS)), "control", "features:0"]
        self.tree = CgroupTree(2, {"memory": directory / "cgroup", "cpu": directory / "cgroup"})
        for program in (*self.programs, *self.own):
            group, _, slot = program.partition(":")
            leaf = directory / "cgroup" / group / (slot or "0")
            leaf.mkdir(parents=True)
            (leaf / "memory.current").write_text("123456789\n")
            (leaf / "memory.max").write_text("536870912\n")
            cpu = {"usage_usec": 123456, "user_usec": 100000, "system_usec": 23456}
            cpu |= {"nr_periods": 0, "nr_throttled": 0, "throttled_usec": 0}
            (leaf / "cpu.stat").write_text("".join(f"{name} {number}\n" for name, number in cpu.items()))
        for index in range(FRONTS):
            for group in ("", *(model.group for model in self.models)):
                self._write(FRONT, f"front:{index}", group)
        for program in self.programs:
            self._write(WORKER, program, program.partition(":")[0])
        self._write(FEATURES, "features:0", "")
        for view in range(5):
            self._write(VIEW, "features:0", f"view{view}")
        self._write(STORE, "features:0", "profiles")

    def _write(self, layout: Layout, writer: str, group: str) -> None:
        words = open_counters(self.counters, layout, writer, group)
        for name in layout.values:
            words[layout.at(name)] = random.randrange(1 << 30)  # noqa: S311 - made up
        for name in layout.histograms:
            if name == "features_ns" and group not in self.featured:
                continue
            histogram = LatencyHistogram(words, layout.at(name))
            for _ in range(2000):
                histogram.add(int(random.lognormvariate(14.5, 1.0)))  # around 2 ms

    def known(self) -> Known:
        """As control makes it for a scrape."""
        deployment = Deployment(models=self.models)
        processes = [
            ProcessInfo(
                group=program.partition(":")[0],
                name=program.partition(":")[2] or program,
                state=ProcessState.RUNNING,
                pid=1,
                start_s=1,
                stop_s=0,
                exit_status=0,
                spawn_error="",
            )
            for program in (*self.programs, *self.own)
        ]
        readiness = {one.program: Readiness(ready=True, pid=1, since=1.0) for one in processes}
        status = compare(plans_of(deployment, deployment, Memory()), processes, readiness, {}, time.time())
        return Known(
            status=status,
            deaths={program: {"oom": 1} for program in self.programs},
            starts=dict.fromkeys(self.programs, 2),
        )


class Times:
    """How long something took, each time, on the clock and on the CPU."""

    def __init__(self) -> None:
        self._elapsed: list[float] = []
        self._cpu: list[float] = []

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Time what happens within."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        yield
        self._elapsed.append((time.perf_counter() - begin) * 1000)
        self._cpu.append((time.process_time() - cpu_begin) * 1000)

    def __str__(self) -> str:
        elapsed, cpu = sorted(self._elapsed), sorted(self._cpu)
        late = elapsed[int(len(elapsed) * 0.95)]
        return (
            f"{statistics.median(elapsed):6.1f} ms median, {late:6.1f} ms p95, {elapsed[0]:6.1f} ms least; "
            f"on the CPU {statistics.median(cpu):6.1f} ms median, {cpu[0]:6.1f} ms least"
        )


def milliseconds(work: Callable[[], object]) -> Times:
    """Do something `ROUNDS` times."""
    times = Times()
    for _ in range(ROUNDS):
        with times.taken():
            work()
    return times


def main() -> None:
    """Print what each part takes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", action="store_true", help="say where the time goes, too")
    options = parser.parse_args()
    memory = Path("/dev/shm")  # noqa: S108 - made unique below
    directory = Path(tempfile.mkdtemp(prefix="mh-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        measure(MadeUpHost(directory), profile=options.profile)
    finally:
        shutil.rmtree(directory)


def measure(made_up: MadeUpHost, *, profile: bool) -> None:
    """Time the parts, and then the whole."""
    known = made_up.known()
    reader, pids = UsageReader(made_up.tree), pids_of(known.status)
    counters = read_counters(made_up.counters, print)
    facts = Facts(known=known, counters=counters, usage=reader.read(pids))
    content_type = negotiated("")
    text = text_of(families(facts), content_type)
    lines = len(text.splitlines())
    print(f"{MODELS * SLOTS} slots, {len(counters)} files, {lines} lines, {len(text):,} bytes")
    print("what control knows  ", milliseconds(made_up.known))
    print("counters            ", milliseconds(lambda: read_counters(made_up.counters, print)))
    print("cgroups             ", milliseconds(lambda: reader.read(pids)))
    print("families            ", milliseconds(lambda: list(families(facts))))
    made = list(families(facts))
    print("text                ", milliseconds(lambda: text_of(made, content_type)))

    async def now() -> Known:
        return made_up.known()

    async def scrapes() -> Times:
        metrics = Metrics(now, made_up.counters, made_up.tree)
        times = Times()
        for _ in range(ROUNDS):
            with times.taken():
                await metrics.scrape("")
        return times

    print("a scrape            ", asyncio.run(scrapes()))
    if profile:
        with cProfile.Profile() as profiler:
            for _ in range(10):
                read_counters(made_up.counters, print)
                reader.read(pids)
                text_of(families(facts), content_type)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
