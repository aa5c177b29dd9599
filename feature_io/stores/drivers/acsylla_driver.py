"""acsylla over DataStax's C++ driver: several times as many reads for the CPU, without TLS (docs/adr/0020).

What it does otherwise than it should is guarded here and nowhere else:

- the session's request timeout does not end requests to a frozen node: every statement has one of its own, and callers
  have the loop's clock beside it;
- `decimal`, `varint` and `vector` come as null: `undecoded` names them, and views with such columns are refused;
- a value of another type is sent as it is: callers check values before they bind them;
- a cluster's sockets for waking the loop are never closed, and its threads live as long as any prepared statement:
  `close` finds the ones and empties the others.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import weakref
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import acsylla
from acsylla import errors

from feature_io.stores.drivers import (
    HEARTBEAT_S,
    POINT_ROWS,
    RECONNECT_FIRST_S,
    RECONNECT_MAX_S,
    DriverError,
    Refused,
    Statement,
    Unanswered,
)
from host.config.features import CassandraStore

logger = logging.getLogger("modelhost.stores.acsylla")

SPECULATIVE_ATTEMPTS: Final = 2
"""How many more replicas are asked, one after the other, when a read takes long."""

CLOSE_LIMIT_S: Final = 15.0
"""How long `close` waits for requests to end; after it they are left to themselves, and that is logged."""

SETTLE_S: Final = 0.1
"""Between the end of a session and freeing it."""

_QUEUE: Final = 8192
"""The driver's own default of requests that wait for its thread."""

_REFUSALS: Final = (
    errors.CassErrorServerAlreadyExists,
    errors.CassErrorServerConfigError,
    errors.CassErrorServerInvalidQuery,
    errors.CassErrorServerSyntaxError,
    errors.CassErrorServerUnauthorized,
    TypeError,
    ValueError,
    OverflowError,
)


class AcsyllaDriver:
    """A `Driver`."""

    undecoded: frozenset[str] = frozenset({"decimal", "varint", "vector"})

    def __init__(self, config: CassandraStore) -> None:
        self._config = config
        self._cluster: Any = None
        self._session: Any = None
        self._prepared: weakref.WeakSet[_Prepared] = weakref.WeakSet()
        self._late: set[asyncio.Task[None]] = set()
        """Openings that were given up: closed when they are through."""

    async def connect(self, timeout_s: float) -> None:
        """Connect; one cluster for every try."""
        try:
            if self._cluster is None:
                self._cluster = acsylla.create_cluster(**cluster_arguments(self._config, timeout_s))
            opening = asyncio.ensure_future(self._cluster.create_session())
            try:
                self._session = await asyncio.shield(opening)
            except asyncio.CancelledError:
                late = asyncio.ensure_future(_close_late(opening))
                self._late.add(late)
                late.add_done_callback(self._late.discard)
                raise
        except Exception as error:
            raise mapped(error) from error

    async def prepare(self, statement: str, timeout_s: float) -> Statement:
        """Prepare it."""
        if self._session is None:
            raise Unanswered("not connected")
        try:
            prepared = _Prepared(await self._session.create_prepared(statement, timeout=timeout_s))
        except Exception as error:
            raise mapped(error) from error
        self._prepared.add(prepared)
        return prepared

    def read(
        self, statement: Statement, values: Sequence[Any], timeout_s: float
    ) -> Coroutine[Any, Any, Sequence[Sequence[Any]]]:
        """Read one page of `POINT_ROWS` rows."""
        return self._run(statement, values, timeout_s, POINT_ROWS)

    def execute(
        self, statement: Statement | str, values: Sequence[Any], timeout_s: float
    ) -> Coroutine[Any, Any, Sequence[Sequence[Any]]]:
        """Run it unpaged."""
        return self._run(statement, values, timeout_s, None)

    async def close(self) -> None:
        """Close the session, then what its cluster leaves behind."""
        cluster, session = self._cluster, self._session
        self._cluster = self._session = None
        if cluster is None:
            return
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                if session is not None:
                    await session.close()
                await asyncio.gather(*self._late)
        except (TimeoutError, errors.CassException) as error:
            # Its threads may still write to the sockets: those stay.
            logger.warning("the driver did not close: %r", error)
            return
        sockets = wake_up_sockets(cluster)
        for one in sockets:
            asyncio.get_running_loop().remove_reader(one)
        # The C++ driver says that it is closed a moment before its threads have left the session, and freeing it under
        # their feet aborts the process ("pure virtual method called": seen once in some 2,000 times). Nothing tells.
        await asyncio.sleep(SETTLE_S)
        # With the last reference the driver's threads end, and only then nobody writes to the sockets any more.
        for prepared in self._prepared:
            prepared.statement = None
        del cluster, session
        for one in sockets:
            one.close()

    async def _run(
        self, statement: Statement | str, values: Sequence[Any], timeout_s: float, page_rows: int | None
    ) -> Sequence[Sequence[Any]]:
        if self._session is None:
            raise Unanswered("not connected")
        try:
            if isinstance(statement, str):
                bound = acsylla.create_statement(statement, timeout=timeout_s)
            else:
                bound = statement.statement.bind(values, page_size=page_rows, timeout=timeout_s)
                bound.set_is_idempotent(True)
            result = await self._session.execute(bound)
            return [row.as_tuple() for row in result.all()] if result.count() else ()
        except Exception as error:
            raise mapped(error) from error


class _Prepared:
    """A prepared statement, which keeps its session alive: the driver takes it away when it closes."""

    __slots__ = ("__weakref__", "statement")

    def __init__(self, statement: Any) -> None:
        self.statement = statement


async def _close_late(opening: asyncio.Future[Any]) -> None:
    """An opening cannot be cancelled. Its own limits, of connecting and resolving, end it."""
    try:
        session = await opening
        await session.close()
    except errors.CassException:
        pass


def mapped(error: Exception) -> DriverError:
    """One of the driver's many errors as one of ours. It also raises bare built-in ones, so none is left out."""
    text = f"{type(error).__name__}: {error}"
    return Refused(text) if isinstance(error, _REFUSALS) else Unanswered(text)


def cluster_arguments(config: CassandraStore, timeout_s: float) -> dict[str, Any]:
    """The driver's arguments for a configuration. Reads the file with the password; raises `OSError`."""
    connect_s = min(timeout_s, config.connect_timeout_ms / 1000)
    password = None
    if config.password_file is not None:
        password = Path(config.password_file).read_text().partition("\n")[0]
    return {
        "contact_points": list(config.contact_points),
        "port": config.port,
        "username": config.username,
        "password": password,
        "connect_timeout": connect_s,
        "request_timeout": connect_s,
        "consistency": acsylla.Consistency[config.consistency],
        "load_balance_dc_aware": config.local_datacenter,
        "queue_size_io": max(_QUEUE, config.concurrency),
        "exponential_reconnect_base_delay_ms": round(RECONNECT_FIRST_S * 1000),
        "exponential_reconnect_max_delay_ms": round(RECONNECT_MAX_S * 1000),
        "heartbeat_interval_sec": HEARTBEAT_S,
        "idle_timeout_sec": HEARTBEAT_S + 1,
        "speculative_execution_policy": (
            acsylla.SpeculativeExecutionPolicy(config.speculative_after_ms, SPECULATIVE_ATTEMPTS)
            if config.speculative_after_ms
            else None
        ),
        # Its errors say at every start that Cassandra has no shards; those of requests are raised.
        "log_level": "critical",
        "application_name": "modelhost",
    }


def wake_up_sockets(cluster: Any) -> list[socket.socket]:
    """The sockets that a cluster and its logger wake the loop with: no attribute leads to them."""
    owners = [cluster, *(one for one in gc.get_referents(cluster) if type(one).__name__ == "Logger")]
    return [one for owner in owners for one in gc.get_referents(owner) if isinstance(one, socket.socket)]
