"""A limit for a wait does what `asyncio.timeout` does."""

from __future__ import annotations

import asyncio

import pytest

from feature_io.patience import Patience


async def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError), Patience(0.001):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)


@pytest.mark.parametrize("timeout_s", [0.0, 60.0])
async def test_what_does_not_wait_is_left_alone(timeout_s: float) -> None:
    with Patience(timeout_s):
        pass
    await asyncio.sleep(0.001)


async def test_errors_pass_through() -> None:
    with pytest.raises(KeyError), Patience(60):
        raise KeyError


async def test_it_can_be_ended_by_others() -> None:
    with pytest.raises(TimeoutError), Patience(60) as patience:
        asyncio.get_running_loop().call_soon(patience.end)
        await asyncio.Event().wait()


async def test_whoever_cancels_the_task_gets_a_cancelled_task() -> None:
    async def wait(timeout_s: float) -> None:
        with Patience(timeout_s):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait(60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_its_time_is_over_it_stays_cancelled() -> None:
    started: list[Patience] = []

    async def wait() -> None:
        with Patience(60) as patience:
            started.append(patience)
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    started[0].end()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_limits_nest() -> None:
    with pytest.raises(TimeoutError), Patience(0.001), Patience(60):
        await asyncio.Event().wait()
    with Patience(60), pytest.raises(TimeoutError), Patience(0.001):
        await asyncio.Event().wait()


def test_it_needs_a_task() -> None:
    async def outside() -> None:
        asyncio.get_running_loop().call_soon(lambda: errors.append(attempt()))
        await asyncio.sleep(0)

    def attempt() -> str:
        try:
            Patience(1)
        except RuntimeError as error:
            return str(error)
        return ""

    errors: list[str] = []
    asyncio.run(outside())
    assert errors == ["a limit for a wait needs a task that waits"]
