"""Canaries and shadows on a real host: the shares, keys that stay, and originals that do not feel their shadows."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import aiohttp
import msgspec
import pytest
from clients import loaded, off_loop
from hosts import CALL_LIMIT_S, RunningHost, tensors, until
from packages import write_package
from versions import watched, write_versions

from host.front.state import FrontState, ShadowState, VersionState
from host.front.traffic import SLOTS_PER_PERCENT, slot_of
from host.protocol.latency import Latencies, merged, quantile_ns
from host.unix_http import get

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MakeHost = Callable[..., RunningHost]

REQUEST = json.dumps(tensors(x=("INT64", [1, 1], [7]))).encode()
BUSY_LIMIT_S = 90.0
"""For what a busy machine lets happen now and then only."""
AIOHTTP_LANE = {"TE": "trailers"}
"""Nothing that the fast lane takes."""

SHADOWED = '''
import ctypes
import time


class Model:
    """Doubles, but for what a file beside it says; warm-up is all zeros."""

    def load(self, package):
        self.behaviour = package / "behaviour"

    def predict(self, inputs):
        x = inputs["x"]
        behaviour = self.behaviour.read_text() if x.any() and self.behaviour.exists() else ""
        if behaviour == "hang":
            time.sleep(600)
        if behaviour == "slow":
            time.sleep(1.0)
        if behaviour == "crash":
            ctypes.string_at(13)
        if behaviour == "raise":
            raise ValueError("no")
        return {"y": x * (2.5 if behaviour == "different" else 2.0)}
'''


def write_shadowed(repository: Path, behaviour: str) -> None:
    """Version 1 doubles; version 2 should."""
    for version in ("1", "2"):
        package = write_package(
            repository,
            "doubler",
            SHADOWED,
            version=version,
            inputs=[("x", "INT64", [-1, 1])],
            outputs=[("y", "FP64", [-1, 1])],
            # A process that only stands still, as any may, is not to be taken for one that hangs.
            limits={"timeout_ms": 2000, "hang_s": 1}
            if behaviour == "hang" and version == "2"
            else {"timeout_ms": 10_000},
        )
    (package / "behaviour").write_text(behaviour)


def deploy(host: RunningHost, model: str, *entries: str) -> None:
    """Write the deployment file: version 1 with the first entry's keys, version 2 with the second's, ..."""
    host.deployment_file.write_text(
        "".join(
            f'[[models]]\nname = "{model}"\nversion = "{number}"\n{keys}\n' for number, keys in enumerate(entries, 1)
        )
    )


async def applied(host: RunningHost) -> str:
    """Apply the file and wait."""
    done: subprocess.CompletedProcess[str] = await asyncio.to_thread(host.command, "apply", "--wait")
    assert done.returncode == 0, done.stderr + host.logs()
    return done.stdout


async def states(host: RunningHost, fronts: int = 1) -> list[FrontState]:
    """What the fronts say."""
    answers = [await get(host.run_dir.front_socket(index), "/state", CALL_LIMIT_S) for index in range(fronts)]
    return [msgspec.json.decode(answer, type=FrontState) for answer in answers]


async def all_have_joined(host: RunningHost, since: Sequence[int], workers: int) -> None:
    """Wait until every worker has joined every front: one that has no canary yet lets the default version answer."""
    for front, before in enumerate(since):
        await off_loop(
            lambda front=front, before=before: host.joined(front) >= before + workers, f"front {front} has them all"
        )


async def version_states(host: RunningHost, group: str, fronts: int = 1) -> list[VersionState]:
    return [state.versions[group] for state in await states(host, fronts)]


async def copies(host: RunningHost) -> ShadowState:
    """What became of the copies for the shadow of `doubler`."""
    [state] = await version_states(host, "doubler.v2")
    return state.shadow or ShadowState(sent=0, shed=0, failed=0, skipped=0, compared=0, equal=0, different=0)


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=CALL_LIMIT_S)
    )


async def version_of(http: aiohttp.ClientSession, host: RunningHost, headers: Mapping[str, str] | None = None) -> str:
    """Which version answers one request."""
    given = {"Content-Type": "application/json", **(headers or {})}
    async with http.post(f"{host.url}/v2/models/versioned/infer", data=REQUEST, headers=given) as response:
        document = await response.json()
    assert response.status == 200, document
    assert document["outputs"][0]["data"] == [int(document["model_version"])]
    return str(document["model_version"])


async def versions_of_keys(host: RunningHost, keys: Sequence[str]) -> dict[str, set[str]]:
    """Which versions answer requests with each key: four each, on new connections, through both lanes."""
    found: dict[str, set[str]] = {}
    for turn in range(4):
        lane = AIOHTTP_LANE if turn % 2 else {}
        async with session() as http:
            for key in keys:
                # A connection for each: the kernel spreads them over the fronts.
                headers = {"X-User-Id": key, "Connection": "close"} if turn == 3 else {"X-User-Id": key}
                found.setdefault(key, set()).add(await version_of(http, host, headers | lane))
    return found


async def test_five_percent_are_five_percent(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository, fronts=2)
    deploy(host, "versioned", "processes = 1", "canary_percent = 5")
    host.start()
    await all_have_joined(host, [0, 0], 2)
    answered: Counter[str] = Counter()

    async def client(http: aiohttp.ClientSession, headers: Mapping[str, str]) -> None:
        for _ in range(625):
            answered[await version_of(http, host, headers)] += 1

    async with session() as http:
        await asyncio.gather(*(client(http, AIOHTTP_LANE if number % 4 == 0 else {}) for number in range(16)))
    assert answered.total() == 10_000
    assert answered["2"] / 10_000 == pytest.approx(0.05, abs=0.01)
    for version, count in answered.items():
        counted = await version_states(host, f"versioned.v{version}", 2)
        latencies: Latencies = merged(one.latency for one in counted)
        assert latencies.count == sum(one.answered for one in counted) == count
        assert sum(one.failed for one in counted) == 0
        median_ns = quantile_ns(latencies, 0.5)
        assert median_ns is not None
        assert 10_000 < median_ns < latencies.sum_ns
    # A version in the path is that version.
    for version in ("1", "2", "1"):
        path = f"/v2/models/versioned/versions/{version}/infer"
        assert {host.call("POST", path, REQUEST).document["model_version"] for _ in range(5)} == {version}


async def test_a_key_keeps_its_version(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository, fronts=2)
    sticky = 'sticky_header = "X-User-Id"'
    deploy(host, "versioned", sticky, "canary_percent = 30")
    host.start()
    await all_have_joined(host, [0, 0], 2)
    keys = [f"user-{number}" for number in range(50)]
    at_30 = await versions_of_keys(host, keys)
    assert at_30 == {
        key: {"2" if slot_of("versioned", key) < 30 * SLOTS_PER_PERCENT else "1"} for key in keys
    }  # and never both
    joined = [host.joined(0), host.joined(1)]
    for front in ("front:0", "front:1"):
        await asyncio.to_thread(host.supervisorctl, "restart", front)
    await all_have_joined(host, joined, 2)
    await off_loop(host.is_ready, "the fronts are back")
    assert await versions_of_keys(host, keys) == at_30
    deploy(host, "versioned", sticky, "canary_percent = 60")
    assert "version 2 canary_percent 30 -> 60" in await applied(host)
    at_60 = await versions_of_keys(host, keys)
    assert all(len(versions) == 1 for versions in at_60.values())
    moved = {(*at_30[key], *at_60[key]) for key in keys if at_30[key] != at_60[key]}
    assert moved == {("1", "2")}


async def test_a_canary_without_workers_costs_no_request(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"], predict_s=0.002)
    host = make_host(repository)
    deploy(host, "versioned", "processes = 1", "canary_percent = 50")
    host.start()
    async with watched(host) as watch:
        await watch.more(100)
        for _ in range(3):
            [pid] = host.worker_pids_of("versioned.v2").values()
            await asyncio.to_thread(host.kill, pid)
            await watch.more(100)
            await off_loop(lambda: host.slot("versioned.v2:0").ready, "the canary is back")
            await watch.more(100)
        await asyncio.to_thread(host.supervisorctl, "stop", "versioned.v2:0")
        before = watch.counts["2"]
        await watch.more(200)
        assert watch.counts["2"] <= before + 8  # what was on its way
        assert host.is_ready()
        assert host.call("POST", "/v2/models/versioned/versions/2/infer", REQUEST).error == (503, "MODEL_NOT_READY")
        await asyncio.to_thread(host.supervisorctl, "start", "versioned.v2:0")
        await off_loop(lambda: host.slot("versioned.v2:0").ready, "the canary is back")
        before, deadline = watch.counts["2"], time.monotonic() + BUSY_LIMIT_S
        # That control sees it ready does not say that the front has it, too.
        while watch.counts["2"] == before and time.monotonic() < deadline:
            await watch.more(200)
        assert watch.counts["2"] > before
    assert watch.failed == []


async def test_a_canary_comes_and_goes_under_load(repository: Path, make_host: MakeHost) -> None:
    write_versions(repository, ["1", "2"])
    host = make_host(repository, fronts=2)
    deploy(host, "versioned", "processes = 2")
    host.start()
    workers = host.worker_pids_of("versioned.v1")
    async with watched(host) as watch:
        await watch.more(200)
        assert set(watch.counts) == {"1"}
        deploy(host, "versioned", "processes = 2", "canary_percent = 20")
        assert "canary of 20 %" in await applied(host)
        await watch.more(500)
        deadline = time.monotonic() + BUSY_LIMIT_S
        while not watch.counts["2"] and time.monotonic() < deadline:
            await watch.more(50)
        assert 0 < watch.counts["2"] < watch.counts["1"]
        deploy(host, "versioned", "processes = 2")
        await applied(host)
        gone = watch.counts["2"]
        await watch.more(200)
        assert watch.counts["2"] <= gone + 8
    assert watch.failed == []
    assert host.worker_pids_of("versioned.v1") == workers
    until(lambda: host.worker_pids_of("versioned.v2") == {}, "the canary is removed")
    assert all("versioned.v2" not in state.versions for state in await states(host, 2))


@pytest.mark.parametrize("behaviour", ["", "different", "slow", "hang", "crash", "raise"])
async def test_originals_do_not_feel_their_shadow(behaviour: str, repository: Path, make_host: MakeHost) -> None:
    write_shadowed(repository, behaviour)
    host = make_host(repository)
    deploy(host, "doubler", "processes = 1", "shadow_percent = 100")
    host.start()
    began = time.monotonic()
    workers = host.worker_pids_of("doubler.v1")
    counted = await copies(host)
    async with loaded(host, "doubler", clients=8) as load:
        for _ in range(6):
            await load.more(200)
            await asyncio.sleep(0.3)  # so that the shadow gets further than the first copies
            counted = await copies(host)
    loads = [load]
    # A front that waits for a CPU makes no copies. Where others take the CPUs, some come of a client that asks alone.
    while not has_shown_itself(counted, behaviour) and time.monotonic() < began + BUSY_LIMIT_S:
        async with loaded(host, "doubler", clients=1) as load:
            await load.more(50)
            await asyncio.sleep(0.3)
            counted = await copies(host)
        loads.append(load)
    answered = sum(load.answered for load in loads)
    assert [load.failed for load in loads] == [[]] * len(loads)
    [original] = await version_states(host, "doubler.v1")
    assert (original.answered, original.failed) == (answered, 0)
    assert host.worker_pids_of("doubler.v1") == workers
    assert counted.sent > 0
    assert counted.sent + counted.shed <= answered
    if behaviour == "":
        assert counted.equal == counted.compared > 100
        assert counted.failed == counted.different == 0
    elif behaviour == "different":
        assert counted.different == counted.compared > 100
        [first, *_] = [line for line in host.log("front:0").splitlines() if "answers otherwise" in line]
        assert "shadow doubler.v2 answers otherwise than doubler.v1: output 'y'[0]: " in first
        # One a second at most.
        assert host.log("front:0").count("answers otherwise") <= 1 + time.monotonic() - began
    else:
        assert counted.different == counted.equal == 0 or behaviour == "slow"
        assert behaviour == "raise" or counted.shed > counted.sent
    if behaviour in ("crash", "raise", "hang"):
        assert counted.failed > 0


def has_shown_itself(counted: ShadowState, behaviour: str) -> bool:
    """Whether so many copies have been made that it can be said what becomes of them."""
    if behaviour in ("", "different"):
        return counted.compared > 100
    return counted.sent > 0 and (behaviour == "slow" or counted.failed > 0)


async def test_a_shadow_comes_and_goes_under_load(repository: Path, make_host: MakeHost) -> None:
    write_shadowed(repository, "")
    host = make_host(repository)
    deploy(host, "doubler", "processes = 1")
    host.start()
    async with loaded(host, "doubler", clients=8) as load:
        await load.more(100)
        deploy(host, "doubler", "processes = 1", "shadow_percent = 50\nshadow_tolerance = 1e-3")
        assert "shadow of 50 %" in await applied(host)
        await load.more(500)
        [original] = await version_states(host, "doubler.v1")
        counted = await copies(host)
        assert 0 < counted.sent + counted.shed < original.answered
        deadline = time.monotonic() + BUSY_LIMIT_S
        # A front that waits for a CPU makes no copies.
        while not counted.sent and time.monotonic() < deadline:
            await load.more(200)
            counted = await copies(host)
        assert counted.sent > 0
        assert host.call("POST", "/v2/models/doubler/versions/2/infer", REQUEST).document["model_version"] == "2"
        deploy(host, "doubler", "processes = 1")
        await applied(host)
        await load.more(100)
    assert load.failed == []
    until(lambda: host.worker_pids_of("doubler.v2") == {}, "the shadow is removed")
