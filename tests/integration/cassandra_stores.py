"""Stores on real nodes, for the tests of either driver."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from cassandra_nodes import CassandraNodes
from features import opened
from hosts import PATIENCE

from feature_io.stores import Key, Row, StoreUnavailable, ViewReader
from feature_io.stores.cassandra import CassandraFeatureStore
from host.config.features import CassandraStore, FeatureView

LIMIT_S: Final = 20.0 * PATIENCE


class CassandraBench:
    """One node, or several, and stores of one driver: what the contract is run on."""

    keyspace: str | None = "contract"
    keeps_nan = True

    def __init__(self, nodes: CassandraNodes, driver: str) -> None:
        self.nodes = nodes
        self.driver = driver
        self.stores: list[CassandraFeatureStore] = []
        self.complaints: list[dict[str, Any]] = []
        """What reached the loop's exception handler: nothing may."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.complaints.append(context))

    def make(self, **options: Any) -> CassandraFeatureStore:
        """Give a store that is not open; it is closed after the test."""
        config = {"contact_points": self.nodes.contact_points, "port": self.nodes.port, **options}
        store = CassandraFeatureStore(CassandraStore(name="store", driver=self.driver, **config))
        self.stores.append(store)
        return store

    async def open(self, **options: Any) -> CassandraFeatureStore:
        """Give an open store."""
        store = self.make(**options)
        await opened(store)
        return store

    @asynccontextmanager
    async def stalled(self, view: FeatureView) -> AsyncIterator[None]:
        """Freeze the first node."""
        self.nodes.nodes[0].freeze()
        try:
            yield
        finally:
            self.nodes.nodes[0].thaw()

    async def close(self) -> None:
        """Close every store; nothing may have gone wrong unseen."""
        for store in self.stores:
            await store.close()
        assert not self.complaints, self.complaints


@asynccontextmanager
async def benched(nodes: CassandraNodes, driver: str) -> AsyncIterator[CassandraBench]:
    """Give a bench, and close its stores."""
    bench = CassandraBench(nodes, driver)
    try:
        yield bench
    finally:
        await bench.close()


async def eventually(reader: ViewReader, key: Key, timeout_s: float = 0.5) -> Row | None:
    """Read until the store answers, as a caller would, with a limit."""
    give_up_s = time.monotonic() + LIMIT_S
    while True:
        try:
            return await reader.read(key, timeout_s)
        except StoreUnavailable as error:
            if time.monotonic() > give_up_s:
                pytest.fail(f"the store does not come back: {error}")
            await asyncio.sleep(0.05)


async def settled(look: Any, wanted: Any, what: str) -> None:
    """Wait, with a limit, until a count is down to what it should be: driver's threads end on their own.

    A connection that cassandra-driver was making when it was closed is closed by the collector only.
    """
    give_up_s = time.monotonic() + LIMIT_S
    while look() > wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        assert time.monotonic() < give_up_s, f"{what}: {look()} instead of {wanted}: {threading.enumerate()}"
        await asyncio.sleep(0.02)


def thread_count() -> int:
    """Threads of this process, also those that Python does not know."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def descriptor_count() -> int:
    """Open files and sockets of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208
