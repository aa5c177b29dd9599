"""A store that goes away under load: what is cached answers on, the rest by policy, and everything else as before."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from cassandra_nodes import CassandraNodes
from delaying_proxy import DelayingProxy
from features import ECHO, PATIENT, VIEW, ask_for, fill, user_row, write_echo, write_features, write_plain
from hosts import PATIENCE, Host, RunningHost, tensors, until
from packages import write_package

from feature_io.client import ask_all
from host.config.features import read_features
from host.isolation.backoff import SHORT_LIFE_S
from host.protocol.messages import Operation

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

HOT: Final = 20
"""Users that are asked for all the time, and so cached."""
DEADLINE_MS: Final = 5000
SLACK_S: Final = 3.0
"""Of a busy machine, beyond the deadline."""
BACK_MAX_S: Final = 2.0 * PATIENCE
"""From the end of a feature process to the next one that serves, where no others take the processors."""
DELAY_S: Final = 3.0
"""Longer than the view's patience."""

STORE: Final = """
[stores.main]
kind = "cassandra"
contact_points = ["{address}"]
port = {port}
connect_timeout_ms = 3000
"""
OPTIONS: Final = 'keyspace = "outage"\ntimeout_ms = 1000\nttl_s = 0.5\nstale_s = 0.1\nnegative_ttl_s = 0.1\n'
STRICT: Final = OPTIONS + 'unavailable = "refuse"\n'


class Load:
    """Clients that ask without a pause, a thread each, and what they got."""

    def __init__(self, host: Host, *, store: bool = True) -> None:
        """`store`: ask for what is not cached, too."""
        self._host = host
        self._store = store
        self._stop = threading.Event()
        self._cold = itertools.count(1_000_000)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.seen: dict[str, Counter[str]] = {}
        self.total: dict[str, Counter[str]] = {}
        """Never forgotten."""
        self.without_retry_after = 0
        self.longest_s: dict[str, float] = {}
        self.errors: list[str] = []

    def add(self, name: str, model: str, request: Callable[[], dict[str, Any]]) -> None:
        """One more client."""
        thread = threading.Thread(target=self._run, args=(name, model, request))
        self._threads.append(thread)
        thread.start()

    def forget(self) -> None:
        """Count from here."""
        with self._lock:
            self.seen, self.longest_s = {}, {}

    def counted(self) -> dict[str, Counter[str]]:
        """What came back since, by client."""
        with self._lock:
            return {name: Counter(counts) for name, counts in self.seen.items()}

    def _run(self, name: str, model: str, request: Callable[[], dict[str, Any]]) -> None:
        connection = self._host.connect()
        headers = {"Content-Type": "application/json", "Request-Timeout-Ms": str(DEADLINE_MS)}
        try:
            while not self._stop.is_set():
                body = json.dumps(request()).encode()
                begun_s = time.monotonic()
                connection.request("POST", f"/v2/models/{model}/infer", body, headers)
                answer = connection.getresponse()
                document = json.loads(answer.read())
                took_s = time.monotonic() - begun_s
                what = str(answer.status) if answer.status != 200 else self._source(document)
                with self._lock:
                    for counts in (self.seen, self.total):
                        counts.setdefault(name, Counter())[what] += 1
                    self.without_retry_after += answer.status == 503 and "Retry-After" not in answer.headers
                    self.longest_s[name] = max(took_s, self.longest_s.get(name, 0.0))
                if answer.status == 503:
                    # As the answer asks, but sooner.
                    self._stop.wait(0.01)
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            self.errors.append(f"{name}: {error!r}")
        finally:
            connection.close()

    @staticmethod
    def _source(document: dict[str, Any]) -> str:
        statuses = document.get("parameters", {}).get("feature_status", {})
        return "+".join(sorted({status for found in statuses.values() for status in found})) or "200"

    def cold(self) -> dict[str, Any]:
        """A request for somebody who was never asked for."""
        return ask_for(next(self._cold), parameters={"feature_status": True})

    def __enter__(self) -> Load:
        hot = itertools.cycle(range(HOT))
        self.add("cached", "echo", lambda: ask_for(next(hot), parameters={"feature_status": True}))
        if self._store:
            self.add("cold", "echo", self.cold)
            self.add("strict", "strict", self.cold)
        self.add("plain", "plain", lambda: tensors(x=("FP64", [1, 1], [1.0])))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_MS / 1000 + 10)
        assert not any(thread.is_alive() for thread in self._threads)


@pytest.fixture
def outage(
    cassandra: CassandraNodes, repository: Path, make_host: Callable[..., RunningHost]
) -> Iterator[tuple[RunningHost, DelayingProxy]]:
    """Give a host whose store is a node behind a network that can be made slow."""
    node = cassandra.nodes[0]
    write_echo(repository)
    write_plain(repository)
    write_package(
        repository,
        "strict",
        ECHO,
        inputs=[("x", "FP64", [-1, 1]), ("stats", "FP64", [-1, 2], ["strict.karma", "strict.age"])],
        outputs=[("y", "FP64", [-1, 1]), ("stats_back", "FP64", [-1, 2])],
        limits={"timeout_ms": 5000},
        resources={"memory": "256MiB"},
    )
    with DelayingProxy(cassandra.contact_points[0], cassandra.port) as proxy:
        path = repository / "features.toml"
        age = "default = 30.0"
        views = VIEW.format(view=OPTIONS, age=age) + VIEW.format(view=STRICT, age=age).replace(
            'name = "users"', 'name = "strict"', 1
        )
        path.write_text(STORE.format(address=cassandra.contact_points[0], port=proxy.port) + views)
        rows = {(number,): user_row(number) for number in range(HOT)}
        asyncio.run(fill(read_features(path), rows))
        host = make_host(repository, settings={"features": path})
        host.start()
        yield host, proxy
    assert node.pid


@contextmanager
def gone(cassandra: CassandraNodes, proxy: DelayingProxy, how: str) -> Iterator[None]:
    """Within, the store does not answer in time."""
    node = cassandra.nodes[0]
    match how:
        case "killed":
            node.kill()
            try:
                yield
            finally:
                cassandra.start_node(node)
        case "frozen":
            node.freeze()
            try:
                yield
            finally:
                node.thaw()
        case "slow":
            proxy.delay_s = DELAY_S
            try:
                yield
            finally:
                proxy.delay_s = 0.0


def assert_in_time(load: Load) -> None:
    assert not load.errors
    late = {name: took for name, took in load.longest_s.items() if took > DEADLINE_MS / 1000 * PATIENCE + SLACK_S}
    assert not late, f"deadline {DEADLINE_MS} ms: {late}"


def until_well(load: Load, limit_s: float = 180.0) -> None:
    """Wait until every client gets what it gets from a healthy store, and nothing else any more."""
    healthy = {"cached": {"cached", "present", "stale"}, "cold": {"missing"}, "strict": {"missing"}, "plain": {"200"}}

    def well() -> bool:
        load.forget()
        until(lambda: len(load.counted()) == len(healthy), "every client gets something", 30)
        until(lambda: all(sum(counts.values()) >= 2 * HOT for counts in load.counted().values()), "some answers", 30)
        return all(set(counts) <= healthy[name] for name, counts in load.counted().items())

    until(well, "the store is back", limit_s)


@pytest.mark.parametrize("how", ["killed", "frozen", "slow"])
def test_a_store_that_goes_away(cassandra: CassandraNodes, outage: tuple[RunningHost, DelayingProxy], how: str) -> None:
    host, proxy = outage
    with Load(host) as load:
        until_well(load)
        assert_in_time(load)
        load.forget()
        with gone(cassandra, proxy, how):
            # Until what was cached is past its time, and the circuit has opened.
            until(lambda: load.counted().get("cached", {}).get("stale", 0) >= 50, "stale rows are served")
            until(lambda: load.counted().get("cold", {}).get("unavailable", 0) >= 50, "defaults are served")
            until(lambda: load.counted().get("strict", {}).get("503", 0) >= 50, "strict views refuse")
            seen = load.counted()
            assert_in_time(load)
            load.forget()
        assert set(seen["cached"]) <= {"cached", "present", "stale"}, seen
        assert set(seen["cold"]) <= {"missing", "unavailable"}, seen
        assert set(seen["strict"]) <= {"missing", "503"}, seen
        assert set(seen["plain"]) == {"200"}, seen
        until_well(load)
        assert_in_time(load)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_feature_process_under_load(
    repository: Path, make_host: Callable[..., RunningHost], processes: int
) -> None:
    write_echo(repository)
    write_plain(repository)
    settings = {"features": write_features(repository, view=PATIENT), "feature-processes": processes}
    host = make_host(repository, settings=settings)
    host.start()
    with Load(host, store=False) as load:
        until(lambda: sum(load.counted().get("cached", Counter()).values()) >= 100, "some answers")
        load.forget()
        back_s: list[float] = []
        while len(back_s) < 3 or (min(back_s) > BACK_MAX_S and len(back_s) < 9):  # on a busy machine it is tried again
            time.sleep(SHORT_LIFE_S)  # those that die younger are held back
            slot = f"features:{len(back_s) % processes}"
            pid, joined, killed_s = host.slot(slot).pid, host.joined(), time.monotonic()
            host.kill(pid)
            # For control and for the front, which each have a connection of their own.
            until(lambda: host.slot(slot).ready and host.slot(slot).pid != pid, "the process is back")  # noqa: B023
            until(lambda: host.joined() > joined, "the front has it back")  # noqa: B023
            back_s.append(time.monotonic() - killed_s)
            load.forget()
            until(lambda: load.counted().get("cached", {}).get("cached", 0) >= 10, "features are read again")
        assert_in_time(load)
    print(f"{processes} processes: back after", *(f"{one:.2f}" for one in back_s), "s")  # noqa: T201 - for the log
    assert min(back_s) < BACK_MAX_S
    total = load.total
    assert set(total["plain"]) == {"200"}, total
    assert set(total["cached"]) <= {"cached", "present", *(["503"] if processes == 1 else [])}, total
    assert load.without_retry_after == 0


def footprint(host: Host) -> dict[str, int]:
    """What a feature process holds."""
    process = psutil.Process(host.slot("features:0").pid)  # type: ignore[attr-defined]
    [statistics] = ask_all(host.run_dir.root, Operation.STATISTICS, b"")
    return {"files": process.num_fds(), "threads": process.num_threads(), "tasks": statistics["in_flight"]}


CYCLES: Final = ("frozen", "slow", "killed", "frozen", "slow", "frozen", "slow", "killed", "frozen", "slow")


def test_ten_outages_leave_nothing(cassandra: CassandraNodes, outage: tuple[RunningHost, DelayingProxy]) -> None:
    host, proxy = outage
    pid = host.slot("features:0").pid
    with Load(host) as load:
        until_well(load)
        with gone(cassandra, proxy, "frozen"):  # the driver makes some things only when they are first needed
            until(lambda: load.counted().get("strict", {}).get("503", 0) >= 10, "the store is gone")
        until_well(load)
    before = footprint(host)
    for how in CYCLES:
        with Load(host) as load:
            until_well(load)
            load.forget()
            with gone(cassandra, proxy, how):
                until(lambda: load.counted().get("strict", {}).get("503", 0) >= 10, "the store is gone")
            until_well(load)
    assert host.slot("features:0").pid == pid

    def settled() -> bool:
        after = footprint(host)
        return (
            after["files"] <= before["files"] + 2 and after["threads"] <= before["threads"] + 2 and not after["tasks"]
        )

    until(settled, f"as before: {before}, not {footprint(host)}", 30)
