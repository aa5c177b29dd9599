"""Features in an SQLite file of this host, read by a few threads.

**Batches.** Reads that arrive in one turn of the event loop, or while every thread is busy, go to a thread together and
come back together: one hop there and one back for many keys.

**Other processes.** While it is written to, a file is in WAL mode, so that a writer, even one that holds its lock for
long, does not keep readers waiting; the last writer leaves that mode when it closes. Readers never make a file. A file
that is replaced by another one (renamed over it) is noticed at the next batch. What SQLite asks of whoever does that
holds here too: nobody may be writing to the old file, and the new one should not be in WAL mode, because what lies
beside the old one would be taken for its own. A file that was made here is fit for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from feature_io.stores import BadRow, Key, Row, StoreBusy, StoreUnavailable, TableMismatch
from feature_io.stores.sql import ddl, from_sqlite, mismatches, quoted, select, to_sqlite, upsert
from host.config.features import FeatureView, SqliteStore

logger = logging.getLogger("modelhost.features")

WAITING_MAX: Final = 4096
"""Reads that wait for a thread; one more is refused at once."""

BATCH_MAX: Final = 64
"""Reads that go to a thread together: their neighbours wait for the whole batch, and other threads want some too."""

STEPS: Final = 10_000
"""SQLite's instructions between two looks at the clock; a read by a whole key takes some twenty."""

BUSY_PAUSE_S: Final = 0.002
"""Between two tries to read a file that another process has locked."""

JOIN_LIMIT_S: Final = 5.0
"""How long `close` waits for threads; they are daemons, so that one whose disk does not answer holds no exit up."""

_READ_ONLY_CODES: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
_BUSY_CODES: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class _Read:
    """One key on its way."""

    __slots__ = ("deadline_s", "error", "future", "key", "reader", "row", "timer")

    def __init__(
        self, reader: SqliteViewReader, key: Key, deadline_s: float, future: asyncio.Future[Row | None]
    ) -> None:
        self.reader = reader
        self.key = key
        self.deadline_s = deadline_s
        self.future = future
        self.row: Row | None = None
        self.error: Exception | None = None
        self.timer: asyncio.TimerHandle | None = None


class SqliteViewReader:
    """Reads one view."""

    def __init__(self, store: SqliteFeatureStore, view: FeatureView) -> None:
        self.view = view
        self.statement = select(view)
        self._store = store
        self._convert = [
            (place, convert) for place, convert in enumerate(from_sqlite(view)) if convert is not None
        ]  # fmt: skip

    async def read(self, key: Key, timeout_s: float) -> Row | None:
        """One entity's row, or None. Raises `StoreUnavailable`, `StoreBusy`, `BadRow`."""
        return await self._store.submit(self, key, timeout_s)

    def row(self, found: list[Row]) -> Row | None:
        """What the statement found, as `Row` says. Raises `BadRow`. Called by the threads."""
        if not found:
            return None
        if len(found) > 1:
            raise BadRow(f"view {self.view.name}: expected one row for a key, received several: its key is not unique")
        if not self._convert:
            return found[0]
        row = list(found[0])
        for place, convert in self._convert:
            if row[place] is not None:
                row[place] = convert(row[place])
        return tuple(row)


class SqliteFeatureStore:
    """One file."""

    def __init__(self, config: SqliteStore) -> None:
        self._name = config.name
        self._path = Path(config.path)
        self._waiting: deque[_Read] = deque()
        self._scheduled = False
        self._closed = False
        self._stop = threading.Event()
        self._threads = [_ReaderThread(self, number) for number in range(config.concurrency)]
        self._idle: list[_ReaderThread] = []
        self._worker: _Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- Store ------------------------------------------------------------------------------------------------
    async def open(self, timeout_s: float) -> None:
        """Start the threads. A file that is not there is found out by `reader`."""
        self._check_open()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            for thread in self._threads:
                thread.start()
                self._idle.append(thread)

    async def reader(self, view: FeatureView, timeout_s: float) -> SqliteViewReader:
        """Compare the view with its table. Raises `TableMismatch`, `StoreUnavailable`."""
        await self._run(lambda deadline_s: self._check(view, deadline_s), timeout_s)
        return SqliteViewReader(self, view)

    async def write(self, view: FeatureView, rows: Sequence[tuple[Key, Row]], timeout_s: float) -> None:
        """Insert or replace rows, all or none. Raises `StoreUnavailable`, `BadRow`."""
        await self._run(lambda deadline_s: self._write(view, rows, deadline_s), timeout_s)

    def ddl(self, view: FeatureView) -> list[str]:
        """The statement that makes the view's table."""
        return ddl(view)

    async def create(self, view: FeatureView, timeout_s: float) -> None:
        """Make the file and the table, where they are not there. Raises `StoreUnavailable`."""
        await self._run(lambda deadline_s: self._create(view, deadline_s), timeout_s)

    async def close(self) -> None:
        """End the threads; what still waits is told so."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        error = StoreUnavailable(f"store {self._name} is closed")
        for read in self._waiting:
            _fail(read, error)
        self._waiting.clear()
        for thread in self._threads:
            for read in thread.batch:
                _fail(read, error)
        threads: list[threading.Thread] = []
        for thread in self._threads if self._loop is not None else []:
            thread.batches.put(None)
            threads.append(thread)
        if self._worker is not None:
            self._worker.jobs.put(None)
            threads.append(self._worker)
        await asyncio.to_thread(_join, threads, time.monotonic() + JOIN_LIMIT_S)

    # -- reading, on the event loop ---------------------------------------------------------------------------
    def submit(self, reader: SqliteViewReader, key: Key, timeout_s: float) -> asyncio.Future[Row | None]:
        """Put a read among those that wait for a thread. Raises `StoreUnavailable`, `StoreBusy`."""
        loop = self._loop
        if loop is None or self._closed:
            raise StoreUnavailable(f"store {self._name} is {'closed' if self._closed else 'not open'}")
        if len(self._waiting) >= WAITING_MAX:
            raise StoreBusy(f"store {self._name}: {WAITING_MAX} reads wait already")
        future: asyncio.Future[Row | None] = loop.create_future()
        read = _Read(reader, key, time.monotonic() + timeout_s, future)
        read.timer = loop.call_later(timeout_s, self._expire, read, timeout_s)
        self._waiting.append(read)
        if not self._scheduled and self._idle:
            self._scheduled = True
            loop.call_soon(self._dispatch)
        return future

    def _dispatch(self) -> None:
        """Give what waits to threads that are idle."""
        self._scheduled = False
        while self._waiting and self._idle and not self._closed:
            batch: list[_Read] = []
            while self._waiting and len(batch) < BATCH_MAX:
                read = self._waiting.popleft()
                if not read.future.done():
                    batch.append(read)
                elif read.timer is not None:
                    read.timer.cancel()
            if batch:
                thread = self._idle.pop()
                thread.batch = batch
                thread.batches.put(batch)

    def _answer(self, thread: _ReaderThread) -> None:
        """Hand a batch's results to whoever still waits for them."""
        batch, thread.batch = thread.batch, []
        for read in batch:
            if read.timer is not None:
                read.timer.cancel()
            if read.future.done():
                continue
            if read.error is not None:
                read.future.set_exception(read.error)
            else:
                read.future.set_result(read.row)
        self._idle.append(thread)
        self._dispatch()

    def _expire(self, read: _Read, timeout_s: float) -> None:
        _fail(read, StoreUnavailable(f"store {self._name}: no answer within {timeout_s * 1000:.0f} ms"))

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"store {self._name} is closed")

    # -- reading, in a thread ---------------------------------------------------------------------------------
    def run_batch(self, connection: _Connection, batch: list[_Read]) -> None:
        """Read a batch's keys, one after the other; errors go with the keys that have them."""
        try:
            connection.refresh()
        except sqlite3.Error as error:
            _fail_all(batch, self._unavailable(error))
            return
        except StoreUnavailable as error:
            _fail_all(batch, error)
            return
        for read in batch:
            if read.future.done():
                continue
            try:
                read.row = read.reader.row(self._select(connection, read))
            except (BadRow, StoreUnavailable) as error:
                read.error = error
            except sqlite3.Error as error:
                read.error = self._unavailable(error)
            except UnicodeEncodeError:
                read.error = BadRow(f"view {read.reader.view.name}: a key is not Unicode")

    def _select(self, connection: _Connection, read: _Read) -> list[Row]:
        """Raises `sqlite3.Error` and `StoreUnavailable`, after the read's deadline at the latest."""
        connection.limit(read.deadline_s, read.future.done)
        while True:
            try:
                return connection.select(read.reader.statement, read.key)
            except sqlite3.OperationalError as error:
                if _code(error) not in _BUSY_CODES or self._stop.wait(BUSY_PAUSE_S) or connection.is_over():
                    raise

    def connect(self) -> sqlite3.Connection:
        """Open the file to read it. Raises `sqlite3.Error`."""
        uri = f"file:{quote(str(self._path))}?mode=ro"
        connection = _connect(uri)
        try:
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
        except sqlite3.OperationalError as error:
            code = _code(error)
            if code in _BUSY_CODES:
                return connection
            connection.close()
            if code not in _READ_ONLY_CODES or _has_wal(self._path):
                raise
            # WAL mode, and a directory where this user cannot make the file that readers share: nobody writes here.
            connection = _connect(f"{uri}&immutable=1")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def identity(self) -> tuple[int, int]:
        """Which file it is. Raises `StoreUnavailable` if there is none."""
        try:
            state = os.stat(self._path)  # noqa: PTH116 - a thread's, once a batch
        except OSError as error:
            raise StoreUnavailable(f"store {self._name}: {self._path}: {error.strerror}") from error
        return state.st_dev, state.st_ino

    def stopped(self) -> bool:
        """Whether the store is being closed."""
        return self._stop.is_set()

    def hand_back(self, thread: _ReaderThread) -> None:
        """Have the event loop take the thread's results; it may be gone at the very end."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(self._answer, thread)
            except RuntimeError:  # closed in between
                pass

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailable:
        if _code(error) == sqlite3.SQLITE_INTERRUPT:
            return StoreUnavailable(f"store {self._name}: no answer in time")
        wrapped = StoreUnavailable(f"store {self._name}: {self._path}: {error}")
        wrapped.__cause__ = error
        return wrapped

    # -- everything else, in one thread more -------------------------------------------------------------------
    async def _run(self, job: Callable[[float], None], timeout_s: float) -> None:
        """Run a job in the thread that writes. Raises what it raises, and `StoreUnavailable` when time is over."""
        self._check_open()
        if self._worker is None:
            self._worker = _Worker(f"features-{self._name}-writer")
            self._worker.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        deadline_s = time.monotonic() + timeout_s
        self._worker.jobs.put((lambda: job(deadline_s), loop, future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise StoreUnavailable(f"store {self._name}: no answer within {timeout_s:.3g} s") from None
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _check(self, view: FeatureView, deadline_s: float) -> None:
        where = f"view {view.name}: {self._path}"
        if not self._path.is_file():
            raise TableMismatch(
                f"{where}: expected an SQLite file, received none: "
                f"make it with: modelhost features create {view.name} --apply"
            )
        try:
            with closing(self.connect()) as connection:
                connection.execute(f"PRAGMA busy_timeout = {_left_ms(deadline_s)}")
                found = connection.execute(f"PRAGMA table_info({quoted(view.table)})").fetchall()
        except sqlite3.DatabaseError as error:
            if _code(error) != sqlite3.SQLITE_NOTADB:
                raise
            raise TableMismatch(f"{where}: expected an SQLite file, received another") from error
        problems = list(mismatches(view, {name.casefold(): declared for _, name, declared, *_ in found}))
        if problems:
            raise TableMismatch(*(f"{where}: {problem}" for problem in problems))

    def _create(self, view: FeatureView, deadline_s: float) -> None:
        with self._writing(deadline_s) as connection:
            for statement in self.ddl(view):
                connection.execute(statement)

    def _write(self, view: FeatureView, rows: Sequence[tuple[Key, Row]], deadline_s: float) -> None:
        if not rows:
            return
        values = to_sqlite(view, rows)
        with self._writing(deadline_s) as connection:
            try:
                connection.executemany(upsert(view), values)
            except sqlite3.IntegrityError as error:
                raise BadRow(f"view {view.name}: {error}") from error

    def _writing(self, deadline_s: float) -> _Transaction:
        assert self._worker is not None  # noqa: S101 - we run in it
        if self._worker.connection is None:
            self._worker.connection = self._connect_to_write(deadline_s)
        return _Transaction(self._worker.connection, deadline_s, self.stopped)

    def _connect_to_write(self, deadline_s: float) -> sqlite3.Connection:
        connection = _connect(f"file:{quote(str(self._path))}?mode=rwc")
        try:
            connection.execute(f"PRAGMA busy_timeout = {_left_ms(deadline_s)}")
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection


# -- threads ----------------------------------------------------------------------------------------------------------
class _ReaderThread(threading.Thread):
    """Takes batches, one by one."""

    def __init__(self, store: SqliteFeatureStore, number: int) -> None:
        super().__init__(name=f"features-reader-{number}", daemon=True)
        self.batches: queue.SimpleQueue[list[_Read] | None] = queue.SimpleQueue()
        self.batch: list[_Read] = []
        """What it reads; the event loop's."""
        self._store = store

    def run(self) -> None:
        """Read until there is nothing more to come."""
        connection = _Connection(self._store)
        while (batch := self.batches.get()) is not None:
            try:
                self._store.run_batch(connection, batch)
            except Exception as error:
                # A defect: these reads fail, and the thread goes on.
                logger.exception("store: a batch of %d reads failed", len(batch))
                _fail_all(batch, StoreUnavailable(f"the store failed: {error}"))
            self._store.hand_back(self)
        connection.close()


class _Connection:
    """A thread's own connection: opened when it is needed, and again when the file is another one."""

    def __init__(self, store: SqliteFeatureStore) -> None:
        self._store = store
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._identity: tuple[int, int] | None = None
        self._deadline_s = 0.0
        self._given_up: Callable[[], bool] = bool

    def refresh(self) -> None:
        """Be connected to the file that is there now. Raises `sqlite3.Error`, `StoreUnavailable`."""
        identity = self._store.identity()
        if identity != self._identity:
            self.close()
            self._connection = self._store.connect()
            self._connection.set_progress_handler(self.is_over, STEPS)
            self._cursor = self._connection.cursor()
            self._identity = identity

    def limit(self, deadline_s: float, given_up: Callable[[], bool]) -> None:
        """Say when the next statement is to be given up."""
        self._deadline_s, self._given_up = deadline_s, given_up

    def is_over(self) -> bool:
        """Whether nobody waits for the statement any more. SQLite asks this while it works."""
        return self._given_up() or time.monotonic() >= self._deadline_s or self._store.stopped()

    def select(self, statement: str, key: Key) -> list[Row]:
        """Run a statement. Raises `sqlite3.Error`."""
        assert self._cursor is not None  # noqa: S101 - refreshed before
        return self._cursor.execute(statement, key).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._cursor = self._identity = None


_Job = tuple[Callable[[], None], asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class _Worker(threading.Thread):
    """Writes, and looks at tables: one job after the other."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.connection: sqlite3.Connection | None = None

    def run(self) -> None:
        """Work until there is nothing more to come, then leave one file and no log beside it."""
        while (job := self.jobs.get()) is not None:
            work, loop, future = job
            error: BaseException | None = None
            try:
                if not future.done():
                    work()
            except Exception as raised:
                error = raised
            if not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(_settle, future, error)
                except RuntimeError:  # closed in between
                    pass
        if self.connection is not None:
            self._leave(self.connection)
            self.connection.close()

    @staticmethod
    def _leave(connection: sqlite3.Connection) -> None:
        """Leave the log empty; and if nobody else has the file open, leave WAL mode: such a file can replace another
        one under its readers, and be read where no file can be made beside it."""
        try:
            connection.execute("PRAGMA busy_timeout = 0")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:  # somebody reads just now, and goes on
            pass


class _Transaction:
    """All of a block, or none of it; the lock is waited for until the deadline.

    Raises `TimeoutError` instead of committing when the deadline is over: nobody waits any more, and who was told that
    the write failed shall not find it done. Only a commit that had begun in time may end after the deadline.
    """

    def __init__(self, connection: sqlite3.Connection, deadline_s: float, stopped: Callable[[], bool]) -> None:
        self._connection = connection
        self._deadline_s = deadline_s
        self._stopped = stopped

    def __enter__(self) -> sqlite3.Connection:
        connection = self._connection
        connection.execute(f"PRAGMA busy_timeout = {_left_ms(self._deadline_s)}")
        connection.execute("BEGIN IMMEDIATE")
        connection.set_progress_handler(self._is_over, STEPS)
        return connection

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._connection.set_progress_handler(None, 0)
        try:
            if error is None:
                if self._is_late():  # SQLite looks at the clock between its tries to get the lock, and tries once more
                    raise TimeoutError
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _is_over(self) -> bool:
        return self._is_late() or self._stopped()

    def _is_late(self) -> bool:
        return time.monotonic() >= self._deadline_s


def _connect(uri: str) -> sqlite3.Connection:
    # `isolation_level=None`: transactions begin and end where this module says so. A connection is used by its own
    # thread only, except that the last reference may be dropped by another.
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0, check_same_thread=False)


def _left_ms(deadline_s: float) -> int:
    return max(0, int((deadline_s - time.monotonic()) * 1000))


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; the upper bytes say more than is asked here. 0: the error is the module's own."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def _has_wal(path: Path) -> bool:
    try:
        return path.with_name(f"{path.name}-wal").stat().st_size > 0
    except OSError:
        return False


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)


def _fail(read: _Read, error: Exception) -> None:
    if read.timer is not None:
        read.timer.cancel()
    if not read.future.done():
        read.future.set_exception(error)


def _fail_all(batch: Iterable[_Read], error: Exception) -> None:
    for read in batch:
        read.error = error


def _join(threads: Iterable[threading.Thread], deadline_s: float) -> None:
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
