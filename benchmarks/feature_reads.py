"""Features in real Cassandra: how fast they are read, and what its loss costs models that need none.

    .venv/dev/bin/python benchmarks/feature_reads.py --only reads outage

One node on this machine, which takes much of its CPU: only ratios of one run mean something.

reads: uncached point reads through the feature service, beside the bare driver, all in turns. The bare driver is
cassandra-driver with callbacks, in one process, as many reads in flight. The service is asked by another process, over
its socket, as a front asks it.

outage: a model without features under an open loop, while another one is asked for entities that are not cached: with
the store well, and with the store frozen. Cassandra gives way to everything else, as on a host of its own: the smallest
weight of CPU in a cgroup (nice does nothing between sessions where the kernel groups them by itself).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integration")]

import uvloop  # noqa: E402
from cassandra_nodes import CassandraNodes  # noqa: E402
from features import write_echo, write_plain  # noqa: E402
from hosts import RunningHost  # noqa: E402

from benchmarks.openloop import Outcome, open_loop, post, quantile  # noqa: E402
from feature_io.stores import make_store  # noqa: E402
from host.config.deployment import DeployedModel, Deployment, write_deployment  # noqa: E402
from host.config.features import Features, parse_features, read_features  # noqa: E402
from host.config.run_dir import FEATURES_GROUP, RunDirectory  # noqa: E402
from host.isolation.cgroups import own_hierarchy  # noqa: E402
from host.protocol.frames import FrameDecoder, Kind  # noqa: E402
from host.protocol.messages import Limits, Operation, RequestHead, read_responses, request_frames  # noqa: E402
from host.protocol.sockets import SOCKET_READY  # noqa: E402
from host.protocol.types import Signature, TensorSpec  # noqa: E402

ENTITIES = 100_000
IN_FLIGHT = 32
FRAMES = 20_000
"""Requests that are asked in turn; more than are in flight, so that none is asked twice at once."""
WARM_UP_READS = 20_000
"""Cassandra's own JIT needs about so many."""
ROUNDS = 5
LIMIT_S = 60.0
KEYSPACE, TABLE = "bench", "users"
COLUMNS = [f"f{number}" for number in range(10)]
MODEL = DeployedModel(
    name="bench",
    version="1",
    processes=1,
    package="/bench/1",
    platform="python",
    signature=Signature((TensorSpec("features", "FP64", (-1, 10), tuple(f"{TABLE}.{name}" for name in COLUMNS)),), ()),
    limits=Limits(),
)
DRIVERS = ("aiocassandra", "acsylla")
ROWS = (1, 16)
"""Of a request; the second as in a batch."""
BARE = "cassandra-driver, tuples"
DEFAULT = "cassandra-driver"


def features_for(nodes: CassandraNodes, driver: str) -> Features:
    """One view of ten features, with that driver."""
    columns = [{"name": f"f{number}", "datatype": "FP64"} for number in range(10)]
    store = {"kind": "cassandra", "driver": driver, "contact_points": list(nodes.contact_points), "port": nodes.port}
    view = {"name": TABLE, "keyspace": KEYSPACE, "keys": [{"column": "id", "datatype": "INT64"}], "columns": columns}
    view["timeout_ms"] = 10_000
    return parse_features({"stores": {"main": store}, "views": [view]}, Path("/features.toml"))


async def fill(features: Features) -> None:
    """Write the entities."""
    store = make_store(features.stores[0])
    await store.open(LIMIT_S)
    try:
        await store.create(features.views[0], LIMIT_S)
        for start in range(0, ENTITIES, 5000):
            rows = [((n,), tuple(n * 1.5 + column for column in range(10))) for n in range(start, start + 5000)]
            await store.write(features.views[0], rows, LIMIT_S)
    finally:
        await store.close()


# -- the bare driver ------------------------------------------------------------------------------------------------
class BareDriver:
    """cassandra-driver alone: a callback sends the next read."""

    def __init__(self, nodes: CassandraNodes, *, tuples: bool = True) -> None:
        """`tuples`: rows as tuples, which is twice as fast as its default, a class made for each answer."""
        from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
        from cassandra.policies import RoundRobinPolicy
        from cassandra.query import named_tuple_factory, tuple_factory

        factory = tuple_factory if tuples else named_tuple_factory
        profile = ExecutionProfile(load_balancing_policy=RoundRobinPolicy(), row_factory=factory)
        self._cluster = Cluster(
            list(nodes.contact_points),
            port=nodes.port,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            protocol_version=5,
        )
        self._session = self._cluster.connect()
        columns = ", ".join(f"f{number}" for number in range(10))
        self._statement = self._session.prepare(f"SELECT {columns} FROM {KEYSPACE}.{TABLE} WHERE id = ?")  # noqa: S608

    def reads_per_s(self, seconds: float) -> float:
        """Read for so long."""
        end_s = time.monotonic() + seconds
        counts = itertools.count()
        done = threading.Semaphore(0)
        failures: list[Exception] = []

        def send(_: Any = None) -> None:
            if time.monotonic() >= end_s:
                done.release()
                return
            next(counts)
            future = self._session.execute_async(self._statement, (random.randrange(ENTITIES),))  # noqa: S311
            future.add_callbacks(send, fail)

        def fail(error: Exception) -> None:
            failures.append(error)
            done.release()

        begun_s = time.monotonic()
        for _ in range(IN_FLIGHT):
            send()
        for _ in range(IN_FLIGHT):
            assert done.acquire(timeout=LIMIT_S)
        assert not failures, failures[0]
        return next(counts) / (time.monotonic() - begun_s)

    def close(self) -> None:
        """Let go of it."""
        self._cluster.shutdown()


# -- the service ------------------------------------------------------------------------------------------------------
@contextmanager
def service(features: Features) -> Iterator[Path]:
    """A feature process without a cache; gives its socket."""
    with tempfile.TemporaryDirectory(prefix="mh-") as directory:
        run_dir = RunDirectory(Path(directory))
        for path in (run_dir.group_sockets(FEATURES_GROUP), run_dir.counters):
            path.mkdir(parents=True)
        for path in (run_dir.deployment, run_dir.routing):
            write_deployment(path, Deployment((MODEL,), features))
        command = [sys.executable, "-P", "-m", "feature_io", "--run-dir", directory, "--cache-bytes", "1"]
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
        path = run_dir.worker_socket(FEATURES_GROUP, 0)
        try:
            limit_s = time.monotonic() + LIMIT_S
            while not (path.exists() and path.stat().st_mode & 0o777 == SOCKET_READY):
                assert time.monotonic() < limit_s
                assert process.poll() is None
                time.sleep(0.05)
            yield path
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def _frames(seconds: float, rows: int) -> list[bytes]:
    """Requests for entities at random, as a front sends them; made beforehand, for the asker takes time as well."""
    now_ns = time.monotonic_ns()
    frames = []
    for sequence in range(FRAMES // rows):
        deadline_ns = now_ns + int((seconds + LIMIT_S) * 1e9)
        keys = random.sample(range(ENTITIES), rows)
        document = {"inputs": [{"name": "id", "datatype": "INT64", "shape": [rows], "data": keys}]}
        body, model = json.dumps(document).encode(), f"{MODEL.name}.v{MODEL.version}"
        frames.append(
            request_frames([RequestHead(sequence, Operation.INFER, now_ns, deadline_ns, model=model, body=body)])
        )
    return frames


class _Asker(asyncio.Protocol):
    """So many reads at a time, in requests of so many rows, until the time is over."""

    def __init__(self, seconds: float, rows: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.count = 0
        self._seconds = seconds
        self._end_s = 0.0
        self._in_flight = 0
        self._decoder = FrameDecoder(1 << 20)
        self._rows = rows
        self._frames = itertools.cycle(_frames(seconds, rows))
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._end_s = time.monotonic() + self._seconds
        for _ in range(IN_FLIGHT // self._rows):
            self._send()

    def _send(self) -> None:
        self._in_flight += 1
        self._transport.write(next(self._frames))

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.kind != Kind.RESPONSE:
                continue
            [head] = read_responses(frame)
            assert head.status == 200, head.body
            self.count += self._rows
            self._in_flight -= 1
            if time.monotonic() < self._end_s:
                self._send()
            elif not self._in_flight:
                self.done.set_result(None)


def service_reads_per_s(path: Path, seconds: float, rows: int = 1) -> float:
    """Ask a feature process for so long."""

    async def ask() -> float:
        asker = _Asker(seconds, rows)
        begun_s = time.monotonic()
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: asker, str(path))
        async with asyncio.timeout(seconds + LIMIT_S):
            await asker.done
        transport.close()
        return asker.count / (time.monotonic() - begun_s)

    return uvloop.run(ask())


def reads(seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything in turns; medians."""
    with CassandraNodes(1) as nodes:
        say("starting Cassandra ...")
        nodes.start()
        say(f"writing {ENTITIES:,} rows ...")
        asyncio.run(fill(features_for(nodes, DRIVERS[1])))
        bare, default = BareDriver(nodes), BareDriver(nodes, tuples=False)
        try:
            with service(features_for(nodes, DRIVERS[0])) as first, service(features_for(nodes, DRIVERS[1])) as second:
                ways: dict[str, Callable[[float], float]] = {BARE: bare.reads_per_s, DEFAULT: default.reads_per_s}
                for (driver, path), rows in itertools.product(zip(DRIVERS, (first, second), strict=True), ROWS):
                    ways[f"{driver}, {rows} rows"] = partial(service_reads_per_s, path, rows=rows)
                warm = 0.0
                while warm < WARM_UP_READS:
                    for way in ways.values():
                        warm += 2 * way(2.0)
                found: dict[str, list[float]] = {name: [] for name in ways}
                for turn in range(rounds):
                    for name, way in ways.items():
                        found[name].append(way(seconds))
                    last = {name: round(rates[-1]) for name, rates in found.items()}
                    say(f"round {turn + 1} of {rounds}: {last}")
        finally:
            bare.close()
            default.close()

    def ratios(base: str) -> dict[str, float]:
        return {
            name: round(statistics.median(mine / other for mine, other in zip(rates, found[base], strict=True)), 2)
            for name, rates in found.items()
        }

    return {
        "reads_per_s": {name: round(statistics.median(rates)) for name, rates in found.items()},
        "ratio_to_default": ratios(DEFAULT),
        "ratio_to_tuples": ratios(BARE),
    }


# -- an outage --------------------------------------------------------------------------------------------------------
PLAIN_RATE, FEATURE_RATE = 2000.0, 300.0
OUTAGE_FEATURES = """
[stores.main]
kind = "cassandra"
contact_points = {points}
port = {port}

[[views]]
name = "users"
keyspace = "bench"
table = "outage"
timeout_ms = 200

[[views.keys]]
column = "user_id"
datatype = "INT64"

[[views.columns]]
name = "karma"
datatype = "FP64"
default = 0.5

[[views.columns]]
name = "age"
datatype = "FP64"
default = 30.0
"""


def cold_requests(count: int) -> list[bytes]:
    """Requests for entities that nobody has asked for."""
    requests = []
    for _ in range(count):
        number = random.randrange(1 << 40)  # noqa: S311
        inputs = [
            {"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [1.0]},
            {"name": "user_id", "datatype": "INT64", "shape": [1], "data": [number]},
        ]
        requests.append(post("/v2/models/echo/infer", json.dumps({"inputs": inputs}).encode()))
    return requests


def feature_load(port: int, seconds: float) -> Outcome:
    """Ask for cold entities; run in a process of its own."""
    return open_loop(port, cold_requests(int(FEATURE_RATE * seconds) + 1), FEATURE_RATE, seconds)


async def _make_table(features: Features) -> None:
    store = make_store(features.stores[0])
    await store.open(LIMIT_S)
    try:
        await store.create(features.views[0], LIMIT_S)
    finally:
        await store.close()


@contextmanager
def giving_way(pid: int) -> Iterator[None]:
    """Let a process run when nothing else does. Raises `OSError` where that is not ours to do."""
    hierarchy = own_hierarchy()
    assert hierarchy is not None, "this needs cgroups that we may write to"
    cgroup = hierarchy.directories["cpu"] / f"modelhost-bench-{pid}"
    name, least = ("cpu.weight", 1) if hierarchy.version == 2 else ("cpu.shares", 2)
    cgroup.mkdir()
    try:
        (cgroup / name).write_text(str(least))
        (cgroup / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with suppress(OSError):  # it has ended
            (cgroup.parent / "cgroup.procs").write_text(str(pid))
        cgroup.rmdir()


def outage(seconds: float, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Pairs: the store well, the store frozen."""
    plain = [post("/v2/models/plain/infer", b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,1],"data":[1.0]}]}')]
    repository = Path(tempfile.mkdtemp(prefix="mh-"))
    pairs = []
    try:
        write_echo(repository)
        write_plain(repository)
        with (
            CassandraNodes(1) as nodes,
            ProcessPoolExecutor(1, get_context("spawn")) as other_process,
            ExitStack() as stack,
        ):
            say("starting Cassandra ...")
            nodes.start()
            path = repository / "features.toml"
            path.write_text(OUTAGE_FEATURES.format(points=json.dumps(list(nodes.contact_points)), port=nodes.port))
            asyncio.run(_make_table(read_features(path)))
            with RunningHost(repository, settings={"features": path}) as host:
                host.start()

                def beside(for_s: float) -> tuple[Outcome, Outcome]:
                    load = other_process.submit(feature_load, host.port, for_s)
                    return open_loop(host.port, plain, PLAIN_RATE, for_s), load.result()

                beside(WARM_UP_READS / FEATURE_RATE)
                stack.enter_context(giving_way(nodes.nodes[0].pid))
                beside(seconds)
                for pair in range(rounds):
                    well, _ = beside(seconds)
                    nodes.nodes[0].freeze()
                    try:
                        lost, fetched = beside(seconds)
                    finally:
                        nodes.nodes[0].thaw()
                    well_ms, lost_ms = quantile(well.admitted_ms, 0.99), quantile(lost.admitted_ms, 0.99)
                    pairs.append(
                        {
                            "well_p99_ms": round(well_ms, 2),
                            "lost_p99_ms": round(lost_ms, 2),
                            "ratio": round(lost_ms / well_ms, 2),
                            "errors": lost.sent - lost.statuses[200],
                            "fetched": fetched.describe()["statuses"],
                            "fetched_p99_ms": fetched.describe()["admitted_p99_ms"],
                        }
                    )
                    say(f"outage: pair {pair + 1} of {rounds}: {pairs[-1]}")
                    beside(3.0)
    finally:
        shutil.rmtree(repository)
    return {"pairs": pairs, "median_ratio": statistics.median(pair["ratio"] for pair in pairs)}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = {"reads": reads, "outage": outage}
    parser.add_argument("--only", nargs="+", choices=ways, default=list(ways), help="default all")
    parser.add_argument("--seconds", type=float, default=8, help="length of one measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default %(default)s")
    options = parser.parse_args()
    for name in options.only:
        found = ways[name](options.seconds, options.rounds, lambda text: print(text, file=sys.stderr, flush=True))
        print(json.dumps({name: found}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
