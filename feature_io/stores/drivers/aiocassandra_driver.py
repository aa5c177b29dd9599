"""aiocassandra over cassandra-driver: pure Python above, TLS, every type (docs/adr/0020).

aiocassandra is archived. Its faults are known, and guarded here and nowhere else:

- an answer that comes as its read is given up meets a future that is done: `_Answer` does not mind;
- every read hops through a thread of the loop's default executor, which others fill, and back: it is run in place;
- `execute_future` gives the first page and says nothing of more: point reads fetch `POINT_ROWS` rows, everything else
  is asked for unpaged;
- `execute_futures`, its paging, does not run on Python 3.10 and newer: it is not used;
- a session belongs to the loop it was wrapped in: that is done inside the running one.

Connecting, preparing and closing block: one thread more does them, in turn.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from aiocassandra import aiosession
from cassandra import ConsistencyLevel, ProtocolVersion, RequestValidationException
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, Session
from cassandra.policies import (
    ConstantSpeculativeExecutionPolicy,
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    NoSpeculativeExecutionPolicy,
    TokenAwarePolicy,
)
from cassandra.query import PreparedStatement, SimpleStatement, tuple_factory

from feature_io.stores.drivers import (
    HEARTBEAT_S,
    POINT_ROWS,
    RECONNECT_FIRST_S,
    RECONNECT_MAX_S,
    Refused,
    Statement,
    Unanswered,
)
from feature_io.stores.drivers.loop_connection import LoopConnection
from host.config.features import CassandraStore, Tls

logger = logging.getLogger("modelhost.stores.aiocassandra")

SPECULATIVE_ATTEMPTS: Final = 2
"""How many more replicas are asked, one after the other, when a read takes long."""

CLOSE_LIMIT_S: Final = 15.0
"""How long `close` waits for the driver's threads; what hangs longer is left to itself, and logged."""

Result = TypeVar("Result")


class AiocassandraDriver:
    """A `Driver`."""

    undecoded: frozenset[str] = frozenset()

    def __init__(self, config: CassandraStore) -> None:
        self._config = config
        self._session: Any = None
        self._blocking: ThreadPoolExecutor | None = None

    async def connect(self, timeout_s: float) -> None:
        """Connect in a thread. One that is given up closes what it has opened, whenever it has."""
        if self._blocking is None:
            self._blocking = ThreadPoolExecutor(1, "cassandra-blocking")
        connection_class = LoopConnection.on_loop(asyncio.get_running_loop())
        opening = self._blocking.submit(open_session, self._config, timeout_s, connection_class)
        try:
            session = await _answer(opening)
        except BaseException:
            opening.add_done_callback(_shut_down)
            raise
        self._session = aiosession(session, loop=_Loop(asyncio.get_running_loop()))
        self._session._asyncio_fut_factory = _Answer

    async def prepare(self, statement: str, timeout_s: float) -> Statement:
        """Prepare in the thread that may block: `prepare_future` would hold one of those that read."""
        if self._blocking is None or self._session is None:
            raise Unanswered("not connected")
        prepared: PreparedStatement = await _answer(self._blocking.submit(self._session.prepare, statement))
        prepared.is_idempotent = True
        return prepared

    async def read(self, statement: Statement, values: Sequence[Any], timeout_s: float) -> Sequence[Sequence[Any]]:
        """Read one page of `POINT_ROWS` rows."""
        statement.fetch_size = POINT_ROWS
        return await self._run(statement, values, timeout_s)

    async def execute(
        self, statement: Statement | str, values: Sequence[Any], timeout_s: float
    ) -> Sequence[Sequence[Any]]:
        """Run it unpaged."""
        if isinstance(statement, str):
            statement = SimpleStatement(statement)
        statement.fetch_size = None
        return await self._run(statement, values, timeout_s)

    async def close(self) -> None:
        """Shut the cluster down, then the threads."""
        blocking, session = self._blocking, self._session
        self._blocking = self._session = None
        if blocking is None:
            return
        # Behind whatever the thread still does: an opening that was given up is closed before.
        last = blocking.submit(shut_down, session.cluster) if session is not None else blocking.submit(lambda: None)
        closed, _ = await asyncio.wait({asyncio.wrap_future(last)}, timeout=CLOSE_LIMIT_S)
        if not closed or (error := closed.pop().exception()) is not None:
            logger.warning("the driver did not close: %r", error if last.done() else f"{CLOSE_LIMIT_S:.0f} s are over")
        # The thread has nothing left to do, or hangs: then nobody waits for it.
        blocking.shutdown(wait=last.done(), cancel_futures=last.done())

    async def _run(self, statement: Any, values: Sequence[Any], timeout_s: float) -> Sequence[Sequence[Any]]:
        if self._session is None:
            raise Unanswered("not connected")
        try:
            rows: Sequence[Sequence[Any]] | None = await self._session.execute_future(
                statement, values or None, timeout=timeout_s
            )
        except Exception as error:
            raise mapped(error) from error
        return rows or ()


async def _answer(future: Future[Result]) -> Result:
    """Wait for a thread; when the wait is cancelled it goes on, unless it has not begun."""
    try:
        return await asyncio.wrap_future(future)
    except Exception as error:
        raise mapped(error) from error


class _Loop:
    """What aiocassandra asks of its loop, for less.

    Sending a read binds values and appends to a queue, so it runs in place: the driver waits only for a free stream of
    a connection, of which each has 32,768, more than a store has in flight. And most answers come on the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()

    def run_in_executor(self, _: None, function: Callable[[], Any]) -> _Done:
        """Run it now."""
        return _Done(function())

    def call_soon_threadsafe(self, answer: Callable[[Any], None], result: Any) -> None:
        """Take an answer now, or have the loop take one that a thread of the driver's brings."""
        if threading.get_ident() == self._thread:
            answer(result)
        else:
            self._loop.call_soon_threadsafe(answer, result)


class _Done:
    """What can be awaited, and is there already."""

    __slots__ = ("_result",)

    def __init__(self, result: Any) -> None:
        self._result = result

    def __await__(self) -> Generator[None, None, Any]:
        yield from ()
        return self._result


class _Answer(asyncio.Future[Any]):
    """A future that may be answered too late: the reader is gone, and nobody is told."""

    def set_result(self, result: Any) -> None:
        """Set it, unless it is cancelled or answered."""
        if not self.done():
            super().set_result(result)

    def set_exception(self, error: type | BaseException) -> None:
        """Set it, unless it is cancelled or answered."""
        if not self.done():
            super().set_exception(error)


def mapped(error: Exception) -> Unanswered | Refused:
    """One of the driver's many errors as one of ours. It also raises bare built-in ones, so none is left out."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, RequestValidationException | TypeError | ValueError):
        return Refused(text)
    return Unanswered(text)


# -- what blocks: in a thread ---------------------------------------------------------------------------------------
def open_session(config: CassandraStore, timeout_s: float, connection_class: type[LoopConnection]) -> Session:
    """Resolve the contact points and connect to the first that answers. Raises whatever the driver does."""
    cluster = Cluster(**cluster_arguments(config, timeout_s), connection_class=connection_class)
    try:
        return cluster.connect()
    except BaseException:
        shut_down(cluster)
        raise


def shut_down(cluster: Cluster) -> None:
    """Shut a cluster down, and close the connections that it forgets: those of pools that it was about to make."""
    try:
        cluster.shutdown()
    finally:
        cluster.connection_class.end_all()


def cluster_arguments(config: CassandraStore, timeout_s: float) -> dict[str, Any]:
    """The driver's arguments for a configuration. Reads the files that it names; raises `OSError`."""
    connect_s = min(timeout_s, config.connect_timeout_ms / 1000)
    speculative_s = config.speculative_after_ms / 1000
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(config.local_datacenter or "")),
        consistency_level=ConsistencyLevel.name_to_value[config.consistency],
        request_timeout=connect_s,
        row_factory=tuple_factory,
        speculative_execution_policy=(
            ConstantSpeculativeExecutionPolicy(speculative_s, SPECULATIVE_ATTEMPTS)
            if speculative_s
            else NoSpeculativeExecutionPolicy()
        ),
    )
    password = None if config.password_file is None else read_password(Path(config.password_file))
    return {
        "contact_points": list(config.contact_points),
        "port": config.port,
        # The newest, 5, has checksums of its own below those of TCP and TLS; in Python they are 7 % of a read.
        "protocol_version": ProtocolVersion.V4,
        "execution_profiles": {EXEC_PROFILE_DEFAULT: profile},
        "auth_provider": None if password is None else PlainTextAuthProvider(config.username, password),
        "ssl_context": None if config.tls is None else tls_context(config.tls),
        "connect_timeout": connect_s,
        "control_connection_timeout": connect_s,
        # By itself it gives up after 64 tries.
        "reconnection_policy": ExponentialReconnectionPolicy(RECONNECT_FIRST_S, RECONNECT_MAX_S, max_attempts=None),
        "idle_heartbeat_interval": HEARTBEAT_S,
        "idle_heartbeat_timeout": HEARTBEAT_S,
        # One frozen node would hold up every preparation; a node that lacks a statement asks for it.
        "prepare_on_all_hosts": False,
        "monitor_reporting_enabled": False,
        "application_name": "modelhost",
    }


def read_password(path: Path) -> str:
    """The first line of a file."""
    return path.read_text().partition("\n")[0]


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Trust this authority and no other. With `check_hostname` a certificate names its node's IP address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = tls.check_hostname
    context.load_verify_locations(tls.ca)
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context


def _shut_down(opening: Future[Session]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        shut_down(opening.result().cluster)
