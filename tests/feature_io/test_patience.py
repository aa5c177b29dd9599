"""A limit for a wait does what `asyncio.timeout` does, and one timer is enough for all."""

from __future__ import annotations

import asyncio

import pytest

from feature_io.patience import Limit, Patience


async def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError), Patience().limit(0.001):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)


@pytest.mark.parametrize("timeout_s", [0.0, 60.0])
async def test_what_does_not_wait_is_left_alone(timeout_s: float) -> None:
    with Patience().limit(timeout_s):
        pass
    await asyncio.sleep(0.001)


async def test_errors_pass_through() -> None:
    with pytest.raises(KeyError), Patience().limit(60):
        raise KeyError


async def test_it_can_be_ended_by_others() -> None:
    with pytest.raises(TimeoutError), Patience().limit(60) as limit:
        asyncio.get_running_loop().call_soon(limit.end)
        await asyncio.Event().wait()


async def test_what_is_ended_twice_is_ended_once() -> None:
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(TimeoutError), Patience().limit(60) as limit:
        limit.end()
        limit.end()
        await asyncio.Event().wait()
    assert task.cancelling() == 0
    limit.end()
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_whoever_cancels_the_task_gets_a_cancelled_task() -> None:
    async def wait(timeout_s: float) -> None:
        with Patience().limit(timeout_s):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait(60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_its_time_is_over_it_stays_cancelled() -> None:
    started: list[Limit] = []

    async def wait() -> None:
        with Patience().limit(60) as limit:
            started.append(limit)
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    started[0].end()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_limits_nest() -> None:
    with pytest.raises(TimeoutError), Patience().limit(0.001), Patience().limit(60):
        await asyncio.Event().wait()
    with Patience().limit(60), pytest.raises(TimeoutError), Patience().limit(0.001):
        await asyncio.Event().wait()


def test_it_needs_a_task() -> None:
    async def outside() -> None:
        asyncio.get_running_loop().call_soon(lambda: errors.append(attempt()))
        await asyncio.sleep(0)

    def attempt() -> str:
        try:
            Patience().limit(1)
        except RuntimeError as error:
            return str(error)
        return ""

    errors: list[str] = []
    asyncio.run(outside())
    assert errors == ["a limit for a wait needs a task that waits"]


async def test_many_limits_have_one_timer_and_each_its_own_time() -> None:
    patience, loop = Patience(), asyncio.get_running_loop()
    ended: dict[float, float] = {}

    async def wait(timeout_s: float) -> None:
        begun_s = loop.time()
        try:
            with patience.limit(timeout_s):
                await asyncio.Event().wait()
        except TimeoutError:
            ended[timeout_s] = loop.time() - begun_s

    # Later ones first: a shorter one moves the timer. A loop that is late ends several at once, in any order.
    waits = [asyncio.create_task(wait(timeout_s)) for timeout_s in (60.0, 0.08, 0.05, 0.02)]
    await asyncio.wait(waits[1:])
    assert ended.keys() == {0.02, 0.05, 0.08}
    assert all(took_s >= timeout_s for timeout_s, took_s in ended.items())
    assert len(patience) == 1
    patience.end()
    await waits[0]
    assert 60.0 in ended and len(patience) == 0


async def test_after_its_end_it_begins_anew() -> None:
    patience = Patience()
    patience.end()
    with patience.limit(60):
        pass
    patience.end()
    with pytest.raises(TimeoutError), patience.limit(0.001):
        await asyncio.Event().wait()


def test_one_after_the_other_on_two_loops() -> None:
    patience = Patience()

    async def wait() -> None:
        with pytest.raises(TimeoutError), patience.limit(0.001):
            await asyncio.Event().wait()
        patience.end()

    asyncio.run(wait())
    asyncio.run(wait())
