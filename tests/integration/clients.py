"""Clients that keep asking while something happens to the host, and compare every answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from hosts import CALL_LIMIT_S, Host, tensors, until


def doubled(*values: float) -> dict[str, object]:
    """A request to a model that doubles whole numbers."""
    return tensors(x=("INT64", [len(values), 1], list(values)))


@dataclass
class Load:
    """What a number of clients saw while something happened."""

    answered: int = 0
    failed: list[str] = field(default_factory=list)
    progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def more(self, count: int) -> None:
        """Wait until so many more requests have been answered."""
        wanted = self.answered + count
        async with self.progress:
            await self.progress.wait_for(lambda: self.answered >= wanted)


@asynccontextmanager
async def loaded(host: Host, model: str, clients: int = 16) -> AsyncIterator[Load]:
    """Keep so many clients asking `model`, each with numbers of its own, and compare every answer."""
    load, stop = Load(), asyncio.Event()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        value = 1_000_000 * (number + 1)
        while not stop.is_set():
            value += 1
            try:
                async with session.post(f"{host.url}/v2/models/{model}/infer", json=doubled(value)) as response:
                    document = await response.json()
                right = response.status == 200 and document["outputs"][0]["data"] == [2.0 * value]
            except (aiohttp.ClientError, TimeoutError) as error:
                load.failed.append(repr(error))
                continue
            if not right:
                load.failed.append(f"{response.status} {document}")
                continue
            async with load.progress:
                load.answered += 1
                load.progress.notify_all()

    timeout = aiohttp.ClientTimeout(total=CALL_LIMIT_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        tasks = [asyncio.create_task(client(session, number)) for number in range(clients)]
        try:
            yield load
        finally:
            stop.set()
            await asyncio.gather(*tasks)


async def off_loop(look: Callable[[], object], what: str) -> object:
    return await asyncio.to_thread(until, look, what, 30.0)
