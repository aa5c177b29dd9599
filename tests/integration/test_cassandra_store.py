"""The contract of every store, on a real Cassandra over both drivers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cassandra_nodes import CassandraNodes
from cassandra_stores import CassandraBench, benched
from contract import FLOATS, INTEGERS, StoreContract

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


class TestAiocassandra(StoreContract):
    @pytest.fixture
    async def bench(self, cassandra: CassandraNodes) -> AsyncIterator[CassandraBench]:
        async with benched(cassandra, "aiocassandra") as bench:
            yield bench


class TestAcsylla(StoreContract):
    """A UINT64 to its bounds needs `varint`, which acsylla does not read: those views are refused."""

    @pytest.fixture
    async def bench(self, cassandra: CassandraNodes) -> AsyncIterator[CassandraBench]:
        async with benched(cassandra, "acsylla") as bench:
            yield bench

    @pytest.mark.parametrize("datatype", [one for one in INTEGERS if one != "UINT64"])
    async def test_whole_numbers_to_their_bounds(self, bench: CassandraBench, datatype: str) -> None:
        await super().test_whole_numbers_to_their_bounds(bench, datatype)

    @pytest.mark.parametrize("datatype", ["BOOL", *(one for one in INTEGERS if one != "UINT64"), *FLOATS, "BYTES"])
    async def test_lists_of_every_datatype(self, bench: CassandraBench, datatype: str) -> None:
        await super().test_lists_of_every_datatype(bench, datatype)
