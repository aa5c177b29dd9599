"""What a bad request or a bad moment may cost: itself, and nobody else."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clients import doubled, loaded, off_loop
from hosts import HandHost, RunningHost, read_answer, until
from packages import Gate, write_fragile, write_gated, write_package

from host.isolation.backoff import SHORT_LIFE_S

pytestmark = pytest.mark.integration

MakeHost = Callable[..., RunningHost]
MakeHandHost = Callable[..., HandHost]

CRASHING = '''
import ctypes
import itertools

class Model:
    """Doubles; 13 is read as an address (segmentation fault), 14 loops for ever in C and holds the lock."""

    def load(self, package):
        pass

    def predict(self, inputs):
        if 13 in inputs["x"]:
            ctypes.string_at(13)
        if 14 in inputs["x"]:
            sum(itertools.repeat(0))
        return {"y": inputs["x"] * 2.0}
'''


def write_crashing(repository: Path, **limits: int) -> None:
    write_package(
        repository,
        "crashing",
        CRASHING,
        inputs=[("x", "INT64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1])],
        limits=limits,
    )


async def test_a_poison_request_costs_two_workers_and_nobody_an_answer(repository: Path, make_host: MakeHost) -> None:
    write_crashing(repository, timeout_ms=10_000)
    host = make_host(repository, processes={"crashing": 3})
    await asyncio.to_thread(host.start)
    before = set(host.worker_pids("crashing").values())
    async with asyncio.timeout(60), loaded(host, "crashing") as load:
        await load.more(200)
        answer = await asyncio.to_thread(host.infer, "crashing", doubled(13), X_Request_Id="the-poison")
        await load.more(200)
    assert answer.error == (502, "POISON_REQUEST")
    assert load.failed == []
    await off_loop(lambda: len(host.worker_pids("crashing")) == 3, "both are back")
    assert len(before - set(host.worker_pids("crashing").values())) == 2
    # The log says which request it was, and by what body it is known again.
    assert re.search(r"ERROR front:0 request the-poison: .*2 workers died.*sha256 [0-9a-f]{64}", host.log("front:0"))


def test_a_model_that_hangs_in_native_code_is_dumped_and_replaced(repository: Path, make_host: MakeHost) -> None:
    write_crashing(repository, timeout_ms=30_000, hang_s=1, max_batch_rows=1)
    host = make_host(repository, processes={"crashing": 1})
    host.start()
    for _ in range(6):
        (pid,) = host.worker_pids("crashing").values()
        joined, start = host.joined(), time.monotonic()
        host.kill(pid)
        until(lambda: host.joined() > joined and host.is_ready("crashing"), "a killed worker is replaced")  # noqa: B023
        killed_s = time.monotonic() - start
        time.sleep(SHORT_LIFE_S)  # workers that die younger are held back in the end
        (pid,) = host.worker_pids("crashing").values()
        joined, start = host.joined(), time.monotonic()
        answer = host.infer("crashing", doubled(14))
        answered_s = time.monotonic() - start
        # Not at its deadline, but when its worker was ended; by 502 if another one was there by then.
        assert answer.status in (502, 503)
        assert answered_s >= 1
        until(lambda: host.joined() > joined and host.is_ready("crashing"), "the worker is replaced")  # noqa: B023
        replaced_s = time.monotonic() - start
        assert host.worker_pids("crashing") != {0: pid}
        # On a busy machine it is measured again; one where a start takes so long has that time.
        limit_s = 1 + max(2.0, 1 + killed_s)
        if answered_s < 2 and replaced_s < limit_s:
            break
        time.sleep(SHORT_LIFE_S)
    assert answered_s < 2
    assert replaced_s < limit_s
    log = host.log("crashing.v1:0")
    assert "most recent call first" in log
    assert re.search(r'model\.py", line \d+ in predict', log)
    assert host.infer("crashing", doubled(15)).document["outputs"][0]["data"] == [30.0]


async def test_a_stopped_worker_gets_nothing_new(repository: Path, make_hand_host: MakeHandHost) -> None:
    write_fragile(repository, timeout_ms=1000)
    host = make_hand_host(repository)
    workers = [host.start_worker("fragile", slot) for slot in range(2)]
    host.start_front()
    await off_loop(lambda: host.serves(2), "two workers")
    clients = 8
    async with asyncio.timeout(60), loaded(host, "fragile", clients=clients) as load:
        for _ in range(5):
            await load.more(200)
            before = len(load.failed)
            os.kill(workers[0].pid, signal.SIGSTOP)
            try:
                # Whoever was with it waits for its deadline, once; nobody follows.
                while len(load.failed) == before:
                    await load.more(50)
                await load.more(1000)
            finally:
                os.kill(workers[0].pid, signal.SIGCONT)
            await load.more(200)
            failed = load.failed[before:]
            late = [failure for failure in failed if failure.startswith("504 ") and "DEADLINE_EXCEEDED" in failure]
            # Where the machine was too busy for others as well, there were more: then it is tried again.
            if len(failed) <= clients and late == failed:
                break
    assert len(failed) <= clients
    assert late == failed


def test_the_death_of_every_worker_is_a_503_with_retry_after(repository: Path, make_hand_host: MakeHandHost) -> None:
    package = write_gated(repository, max_batch_rows=1, max_queue=64)
    host = make_hand_host(repository)
    for slot in range(2):
        host.start_worker("gated", slot)
    host.start_front()
    until(lambda: host.serves(2), "two workers")
    gate = Gate(package)
    sent = [host.send("POST", "/v2/models/gated/infer", one(value)) for value in range(1, 5)]
    running = {gate.entered().values[0] for _ in range(2)}
    # Each worker runs one and has one waiting.
    host.kill("gated.v1:0")
    host.kill("gated.v1:1")
    answers = [read_answer(connection) for connection in sent]
    assert {answer.status for answer in answers} == {503}
    assert len(running) == 2
    assert all(answer.headers["retry-after"] for answer in answers)
    gate.remove()


def one(value: float) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 1], "data": [value]}]}
