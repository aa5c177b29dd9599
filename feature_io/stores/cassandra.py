"""Features in Cassandra, over either driver (`feature_io.stores.drivers`).

The store knows views: it checks them against their tables, bounds how much is in flight, gives every read its time, and
says of which view and key something failed. The driver knows the cluster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from feature_io.patience import Patience
from feature_io.stores import BadRow, Key, Row, StoreBusy, StoreUnavailable, TableMismatch
from feature_io.stores.cql import COLUMNS, KEYSPACE, RowCodec, TableColumn, ddl, insert, mismatches, select
from feature_io.stores.drivers import Driver, DriverError, Refused, Statement
from host.config.features import CassandraStore, FeatureView
from host.protocol.errors import ConfigError

logger = logging.getLogger("modelhost.stores.cassandra")

WRITES: Final = 64
"""Rows in flight of one `write`, unless the store is given less."""

GRACE_S: Final = 0.05
"""How much longer than a reader its driver waits: the reader's clock decides, and the driver's lets go of the rest."""

_KEY_CHARS: Final = 200
"""How much of a key an error shows."""


class CassandraFeatureStore:
    """A `Store`."""

    def __init__(self, config: CassandraStore) -> None:
        """Raises `ConfigError` if the driver is not installed. Connects to nothing yet."""
        self.config = config
        self._driver = _make_driver(config)
        self._is_open = False
        self._slots = asyncio.Semaphore(config.concurrency)
        self._waiting = 0
        self._patience = Patience()
        """With everything that runs: closing ends it."""
        self._writers: dict[str, tuple[FeatureView, RowCodec, Statement]] = {}
        """By view; the last one of that name."""

    async def open(self, timeout_s: float) -> None:
        """Connect to the first contact point that answers."""
        if self._is_open:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._driver.connect(timeout_s)
        except (DriverError, TimeoutError) as error:
            points = ", ".join(f"{point}:{self.config.port}" for point in self.config.contact_points)
            said = str(error) or f"no answer within {timeout_s * 1000:.0f} ms"
            raise StoreUnavailable(f"store {self.config.name}: {points}: {said}") from error
        self._is_open = True

    async def reader(self, view: FeatureView, timeout_s: float) -> CassandraReader:
        """Compare the view with its table, and prepare the statement."""
        where = f"view {view.name}"
        async with self._errors(where, timeout_s):
            codec = await self._codec(view, timeout_s)
            statement = await self._driver.prepare(select(view), timeout_s)
        return CassandraReader(self, view, codec, statement)

    async def write(self, view: FeatureView, rows: Sequence[tuple[Key, Row]], timeout_s: float) -> None:
        """Insert every row, some at a time; nothing is sent if one of them is bad. Null deletes what was there."""
        async with self._errors(f"view {view.name}", timeout_s):
            codec, statement = await self._writer(view, timeout_s)
            inserts = iter([(key, self._encoded(view, codec, key, row)) for key, row in rows])

            async def work() -> None:
                for key, values in inserts:
                    async with self._slots:
                        try:
                            await self._driver.execute(statement, values, timeout_s)
                        except DriverError as error:
                            # The table may be another one by now: the next write looks at it.
                            self._writers.pop(view.name, None)
                            kind = BadRow if isinstance(error, Refused) else StoreUnavailable
                            raise kind(f"{self._place(view, key)}: {error}") from error

            await _all(*(work() for _ in range(min(len(rows), WRITES, self.config.concurrency))))

    def ddl(self, view: FeatureView) -> list[str]:
        """A keyspace of one replica, and the table. Where the keyspace exists it is left as it is."""
        return ddl(view)

    async def create(self, view: FeatureView, timeout_s: float) -> None:
        """Run `ddl`: a keyspace that does not exist is made with `SimpleStrategy` and one replica, for trying out."""
        async with self._errors(f"view {view.name}", timeout_s):
            for statement in ddl(view):
                await self._driver.execute(statement, (), timeout_s)

    async def close(self) -> None:
        """End what runs (it fails with `StoreUnavailable`), then let go of the cluster."""
        self._is_open = False
        self._writers.clear()
        self._patience.end()
        try:
            # Whoever was told sees it first: it lets go of what the driver would wait for.
            await asyncio.sleep(0)
            await self._driver.close()
        except Exception:
            # Nobody can act on it, and closing must go on.
            logger.exception("store %s: closing", self.config.name)

    async def read(self, reader: CassandraReader, key: Key, timeout_s: float) -> Row | None:
        """What readers call."""
        values = reader.codec.key(key)
        if values is None:
            return None
        if self._waiting >= self.config.max_waiting and self._slots.locked():
            place = self._place(reader.view, key)
            raise StoreBusy(f"{place}: {self.config.concurrency} reads in flight, and {self._waiting} wait")
        # `_errors` and `_slots` spelled out: this is the way of every read.
        try:
            with self._patience.limit(timeout_s):
                self._waiting += 1
                try:
                    await self._slots.acquire()
                finally:
                    self._waiting -= 1
                try:
                    if not self._is_open:
                        raise StoreUnavailable(f"{self._place(reader.view, key)}: the store is not open")
                    rows = await self._driver.read(reader.statement, values, timeout_s + GRACE_S)
                finally:
                    self._slots.release()
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._place(reader.view, key)}: {self._overdue(timeout_s)}") from error
        except DriverError as error:
            raise StoreUnavailable(f"{self._place(reader.view, key)}: {error}") from error
        if not rows:
            return None
        if len(rows) > 1:
            raise BadRow(f"{self._place(reader.view, key)}: expected one row, received more")
        return reader.codec.decode(rows[0])

    # -- inside -----------------------------------------------------------------------------------------------------
    async def _codec(self, view: FeatureView, timeout_s: float) -> RowCodec:
        """Fetch the table's columns and compare. Asked of the cluster each time: tables change."""
        statement = await self._driver.prepare(COLUMNS, timeout_s)
        rows = await self._driver.execute(statement, (view.keyspace, view.table), timeout_s)
        table = [TableColumn(*row) for row in rows]
        where = f"store {self.config.name}: view {view.name}"
        if not table:
            statement = await self._driver.prepare(KEYSPACE, timeout_s)
            if not await self._driver.execute(statement, (view.keyspace,), timeout_s):
                raise TableMismatch(f"{where}: expected the keyspace {view.keyspace} of {view.table}, received none")
            raise TableMismatch(f"{where}: expected the table {view.keyspace}.{view.table}, received none")
        problems = mismatches(view, table, self._driver.undecoded, self.config.driver)
        if problems:
            raise TableMismatch(*(f"store {self.config.name}: {problem}" for problem in problems))
        return RowCodec(view, table)

    async def _writer(self, view: FeatureView, timeout_s: float) -> tuple[RowCodec, Statement]:
        known = self._writers.get(view.name)
        if known is None or known[0] != view:
            codec = await self._codec(view, timeout_s)
            known = (view, codec, await self._driver.prepare(insert(view), timeout_s))
            self._writers[view.name] = known
        return known[1], known[2]

    def _encoded(self, view: FeatureView, codec: RowCodec, key: Key, row: Row) -> tuple[Any, ...]:
        try:
            return codec.row(key, row)
        except BadRow as error:
            raise BadRow(f"{self._place(view, key)}: {error}") from error

    def _place(self, view: FeatureView, key: Key) -> str:
        text = repr(key[0] if len(key) == 1 else key)
        return f"store {self.config.name}: view {view.name}, key {text:.{_KEY_CHARS}}"

    def _overdue(self, timeout_s: float) -> str:
        return f"no answer within {timeout_s * 1000:.0f} ms" if self._is_open else "the store was closed"

    @asynccontextmanager
    async def _errors(self, where: str, timeout_s: float) -> AsyncIterator[None]:
        """Give what happens within its time, and drivers' errors their place."""
        place = f"store {self.config.name}: {where}"
        if not self._is_open:
            raise StoreUnavailable(f"{place}: the store is not open")
        try:
            with self._patience.limit(timeout_s):
                yield
        except TimeoutError as error:
            raise StoreUnavailable(f"{place}: {self._overdue(timeout_s)}") from error
        except DriverError as error:
            raise StoreUnavailable(f"{place}: {error}") from error


class CassandraReader:
    """A `ViewReader`."""

    def __init__(self, store: CassandraFeatureStore, view: FeatureView, codec: RowCodec, statement: Statement) -> None:
        self.view = view
        self.codec = codec
        self.statement = statement
        self._store = store

    def read(self, key: Key, timeout_s: float) -> Coroutine[Any, Any, Row | None]:
        """One entity's row."""
        return self._store.read(self, key, timeout_s)


async def _all(*works: Any) -> None:
    """Run them together; the first error ends all of them, and is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _make_driver(config: CassandraStore) -> Driver:
    try:
        if config.driver == "acsylla":
            from feature_io.stores.drivers.acsylla_driver import AcsyllaDriver

            return AcsyllaDriver(config)
        from feature_io.stores.drivers.aiocassandra_driver import AiocassandraDriver

        return AiocassandraDriver(config)
    except ImportError as error:
        extra = "acsylla" if config.driver == "acsylla" else "cassandra"
        raise ConfigError(
            f"store {config.name}: driver {config.driver} is not installed ({error}): pip install 'modelhost[{extra}]'"
        ) from error
