"""Features on a real Cassandra, over both drivers: what every store must do, and what is Cassandra's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cassandra_nodes import CassandraNodes
from contract import FLOATS, INTEGERS, StoreContract

from feature_io.stores.cassandra import CassandraFeatureStore
from host.config.features import CassandraStore, FeatureView

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

OPEN_LIMIT_S = 20.0


class CassandraBench:
    """One node for the contract."""

    keyspace: str | None = "contract"
    keeps_nan = True

    def __init__(self, nodes: CassandraNodes, driver: str) -> None:
        self.nodes = nodes
        self.driver = driver
        self.stores: list[CassandraFeatureStore] = []

    def config(self, **options: Any) -> CassandraStore:
        """Give a configuration of the nodes."""
        return CassandraStore(
            name="store",
            contact_points=self.nodes.contact_points,
            port=self.nodes.port,
            driver=self.driver,
            **options,
        )

    async def open(self, **options: Any) -> CassandraFeatureStore:
        """Give an open store, which is closed after the test."""
        store = CassandraFeatureStore(self.config(**options))
        self.stores.append(store)
        await store.open(OPEN_LIMIT_S)
        return store

    @asynccontextmanager
    async def stalled(self, view: FeatureView) -> AsyncIterator[None]:
        """Freeze the node."""
        self.nodes.nodes[0].freeze()
        try:
            yield
        finally:
            self.nodes.nodes[0].thaw()

    async def close(self) -> None:
        """Close every store."""
        for store in self.stores:
            await store.close()


@pytest.fixture
async def aiocassandra(cassandra: CassandraNodes) -> AsyncIterator[CassandraBench]:
    made = CassandraBench(cassandra, "aiocassandra")
    yield made
    await made.close()


@pytest.fixture
async def acsylla(cassandra: CassandraNodes) -> AsyncIterator[CassandraBench]:
    made = CassandraBench(cassandra, "acsylla")
    yield made
    await made.close()


class TestAiocassandra(StoreContract):
    @pytest.fixture
    async def bench(self, aiocassandra: CassandraBench) -> CassandraBench:
        return aiocassandra


class TestAcsylla(StoreContract):
    """A UINT64 to its bounds needs `varint`, which acsylla does not read: those views are refused."""

    @pytest.fixture
    async def bench(self, acsylla: CassandraBench) -> CassandraBench:
        return acsylla

    @pytest.mark.parametrize("datatype", [one for one in INTEGERS if one != "UINT64"])
    async def test_whole_numbers_to_their_bounds(self, bench: CassandraBench, datatype: str) -> None:
        await super().test_whole_numbers_to_their_bounds(bench, datatype)

    @pytest.mark.parametrize("datatype", ["BOOL", *(one for one in INTEGERS if one != "UINT64"), *FLOATS, "BYTES"])
    async def test_lists_of_every_datatype(self, bench: CassandraBench, datatype: str) -> None:
        await super().test_lists_of_every_datatype(bench, datatype)
