"""Whoever watches is told what changes, and nobody is waited for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from statuses import NOW, death, host, model, replace, slot, traffic

from host.config.run_dir import RunDirectory
from host.control.probe import WorkerProbe
from host.control.status import HostStatus, SlotStatus
from host.control.watching import BEHIND_MAX, CLIENTS_MAX, Subscription, TooManyClients, Watcher
from host.protocol.errors import HostError

LIMIT_S = 30.0


class Told:
    """A host whose state the test says."""

    def __init__(self, directory: Path) -> None:
        self.status: HostStatus | None = host(model(traffic=traffic(answered=10)))
        self.looks = 0
        run_dir = RunDirectory(directory)
        run_dir.sockets.mkdir()
        self.watcher = Watcher(run_dir, self._look, WorkerProbe(run_dir.sockets), tuple)

    async def _look(self) -> HostStatus:
        self.looks += 1
        if self.status is None:
            raise HostError("supervisord does not answer")
        return aged(self.status)

    def becomes(self, status: HostStatus | None) -> None:
        self.status = status
        self.watcher.notice()


def aged(status: HostStatus) -> HostStatus:
    """With processes that began at one time, whenever one looks."""

    def begun(slots: tuple[SlotStatus, ...]) -> tuple[SlotStatus, ...]:
        return tuple(replace(one, uptime_s=time.time() - NOW if one.pid else 0.0) for one in slots)

    models = tuple(replace(one, slots=begun(one.slots)) for one in status.models)
    return replace(status, models=models, host=begun(status.host))


@asynccontextmanager
async def running(told: Told) -> AsyncIterator[Watcher]:
    task = asyncio.create_task(told.watcher.run())
    try:
        yield told.watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def next_of(subscription: Subscription, kind: str) -> Any:
    """The next message of a kind."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            data = await subscription.next(LIMIT_S)
            name, body, *_ = data.decode().split("\n")
            if name == f"event: {kind}":
                return json.loads(body.removeprefix("data: "))


async def test_a_client_gets_what_is_known_and_then_what_changes(tmp_path: Path) -> None:
    told = Told(tmp_path)
    async with running(told) as watcher:
        first = watcher.subscribe()
        assert (await next_of(first, "events"))["all"] is True
        assert (await next_of(first, "status"))["ready"] is True
        assert (await next_of(first, "point"))["models"]["churn.v3"]["waiting"] == 0
        told.becomes(host(model(slots=(slot(pid=0, last_exit=death(), deaths={"signal": 1}),))))
        news = await next_of(first, "events")
        assert (news["all"], [one["what"] for one in news["events"]]) == (False, ["death", "host"])
        assert (await next_of(first, "status"))["ready"] is False
        late = watcher.subscribe()
        assert (await next_of(late, "status"))["ready"] is False
        assert [one["what"] for one in (await next_of(late, "events"))["events"]] == ["death", "host"]


async def test_points_come_once_a_second_and_make_history(tmp_path: Path) -> None:
    told = Told(tmp_path)
    async with running(told) as watcher:
        subscription = watcher.subscribe()
        points = [await next_of(subscription, "point") for _ in range(3)]
        assert points[2]["at"] - points[1]["at"] > 0.9
        assert len(watcher.history.document(["churn.v3"])["churn.v3"]["at"]) >= 2


async def test_what_does_not_change_is_not_told(tmp_path: Path) -> None:
    told = Told(tmp_path)
    async with running(told) as watcher:
        subscription = watcher.subscribe()
        await next_of(subscription, "status")
        await next_of(subscription, "point")
        for _ in range(3):
            told.watcher.notice()
            data = await subscription.next(LIMIT_S)
            assert data.startswith(b"event: point")


async def test_it_says_so_when_it_cannot_look_and_shows_what_it_saw_last(tmp_path: Path) -> None:
    told = Told(tmp_path)
    async with running(told) as watcher:
        subscription = watcher.subscribe()
        await next_of(subscription, "status")
        told.becomes(None)
        seen = await next_of(subscription, "status")
        assert (seen["problem"], seen["ready"], len(seen["models"])) == ("supervisord does not answer", False, 1)
        told.becomes(host(model()))
        assert (await next_of(subscription, "status"))["problem"] == ""


def test_so_many_may_watch_and_no_more(tmp_path: Path) -> None:
    watcher = Told(tmp_path).watcher
    subscriptions = [watcher.subscribe() for _ in range(CLIENTS_MAX)]
    with pytest.raises(TooManyClients):
        watcher.subscribe()
    watcher.unsubscribe(subscriptions[0])
    watcher.subscribe()


@pytest.mark.parametrize(("messages", "lost"), [(0, False), (1, False), (BEHIND_MAX, False), (BEHIND_MAX + 1, True)])
async def test_who_is_too_far_behind_is_lost(messages: int, lost: bool) -> None:
    subscription = Subscription()
    for _ in range(messages):
        subscription.put(b"data")
    assert subscription.lost is lost
