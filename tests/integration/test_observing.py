"""What control sees of the load of real workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from clients import off_loop
from hosts import HandHost, tensors
from packages import UNHURRIED, Gate, write_gated, write_package

from host.control.observe import Observation, Reading, observe
from host.control.probe import WorkerProbe

pytestmark = pytest.mark.integration

MakeHandHost = Callable[..., HandHost]

STEADY = """
import time
import numpy as np

class Model:
    '''Takes 20 ms, and says how long it has worked in all.'''

    def load(self, package):
        self.worked_s = 0.0

    def predict(self, inputs):
        begin_s = time.perf_counter()
        time.sleep(0.02)
        self.worked_s += time.perf_counter() - begin_s
        return {"worked_s": np.full((1, 1), self.worked_s)}
"""
PREDICT_S = 0.02
READ_LIMIT_S = 10.0
TRIES = 5


@asynccontextmanager
async def probed(host: HandHost, program: str) -> AsyncIterator[WorkerProbe]:
    """Watch a host as control does, from the moment on when a worker is ready."""
    probe = WorkerProbe(host.run_dir.sockets)
    task = asyncio.create_task(probe.run())
    try:
        await off_loop(lambda: program in probe.readiness and host.is_ready(), f"{program} is ready")
        yield probe
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_busy_share_is_that_of_the_model(repository: Path, make_hand_host: MakeHandHost) -> None:
    write_package(
        repository,
        "steady",
        STEADY,
        inputs=[("x", "INT64", [-1, 1])],
        outputs=[("worked_s", "FP64", [-1, 1])],
        limits=UNHURRIED | {"max_batch_rows": 1},
    )
    host = make_hand_host(repository)
    host.start_worker("steady")
    host.start_front()
    await off_loop(lambda: host.is_ready("steady"), "it is ready")
    url = f"{host.url}/v2/models/steady/infer"
    async with probed(host, "steady.v1:0") as probe, aiohttp.ClientSession() as session:

        async def ask() -> float:
            async with session.post(url, json=tensors(x=("INT64", [1, 1], [1]))) as response:
                assert response.status == 200
                return float((await response.json())["outputs"][0]["data"][0])

        async def look(before: dict[str, Reading]) -> tuple[Observation, dict[str, Reading]]:
            return observe(before, await probe.read(["steady.v1:0"], READ_LIMIT_S), wanted=1)

        async def compare(every_s: float) -> tuple[Observation, float, float]:
            """Ask for two seconds; give what was seen, and by the model's own clock its share and its mean time."""
            earlier_s, requests, waited_s = await ask(), 0, 0.0
            _, before = await look({})
            begin_s = next_s = time.monotonic()
            while next_s < begin_s + 2.0:
                await asyncio.sleep(next_s - time.monotonic())
                asked_s = time.monotonic()
                worked_s = await ask()
                waited_s += time.monotonic() - asked_s
                requests += 1
                next_s = max(next_s + every_s, time.monotonic())
            await asyncio.sleep(next_s - time.monotonic())
            took_s = time.monotonic() - begin_s
            seen, _ = await look(before)
            model_s = worked_s - earlier_s
            assert (seen.ready, seen.requests) == (1, requests)
            # A request waits before its batch and not in it: no longer than its client did beyond what the model took.
            assert seen.queue_wait_s <= (waited_s - model_s) / requests
            return seen, model_s / took_s, model_s / requests

        for every_s in (0.1, 0.04, PREDICT_S):
            for _ in range(TRIES):
                seen, share, predict_s = await compare(every_s)
                # Where the worker stood still beside the model, it was busy longer than the model was.
                if share > 0.1 and (seen.busy, seen.request_s) == pytest.approx((share, predict_s), rel=0.1):
                    break
            assert share > 0.1
            assert seen.busy == pytest.approx(share, rel=0.1)
            assert seen.request_s == pytest.approx(predict_s, rel=0.1)


async def test_a_worker_in_a_batch_is_silent_and_counted_as_busy(
    repository: Path, make_hand_host: MakeHandHost
) -> None:
    gate = Gate(write_gated(repository))
    host = make_hand_host(repository)
    host.start_worker("gated")
    host.start_front()
    await off_loop(lambda: host.is_ready("gated"), "it is ready")
    programs = ["gated.v1:0"]
    async with probed(host, programs[0]) as probe:
        begin_s = time.monotonic()
        _, first = observe({}, await probe.read(programs, READ_LIMIT_S), wanted=1)
        asking = asyncio.create_task(asyncio.to_thread(host.infer, "gated", tensors(x=("FP64", [1, 1], [1.0]))))
        await asyncio.to_thread(gate.entered)
        entered_s = time.monotonic()
        seen, kept = observe(first, await probe.read(programs, 0.3), wanted=1)
        assert (seen.ready, seen.busy, seen.requests) == (1, 1.0, 0)
        waited_s = time.monotonic() - entered_s
        gate.remove()
        assert (await asking).status == 200
        readings = await probe.read(programs, READ_LIMIT_S)
        took_s = time.monotonic() - begin_s
        seen, _ = observe(kept, readings, wanted=1)
        assert seen.requests == 1
        # It was in the batch at least while it stood at the gate, which is most of the time on a quiet machine.
        assert waited_s / took_s <= seen.busy <= 1.0
        assert 0.29 <= waited_s <= seen.request_s <= took_s
