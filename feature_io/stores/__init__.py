"""Where features are kept. One protocol, one contract suite (`tests/feature_io/contract.py`), one module for each kind.

Times are seconds of the caller's patience: whatever a store does ends by then, with a row or an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from host.config.features import CassandraStore, FeatureView, SqliteStore
from host.config.features import Store as StoreConfig
from host.protocol.errors import ConfigError, ModelhostError

Key = tuple[int | str, ...]
"""One value for each key column, as requests carry them: a UUID is its text in lower case."""

Row = tuple[Any, ...]
"""One raw value for each of the view's columns, in order, then the freshness column's if it has one.

None is null. Scalars are `bool`, `int`, `float`, `str` or `bytes`; lists and vectors are lists of those; a blob is
`bytes`; the freshness is seconds since the epoch (`float`). `feature_io.values` checks them against the view.
"""


class StoreUnavailable(ModelhostError):
    """The store did not answer in time, or not at all; another try may succeed."""


class StoreBusy(StoreUnavailable):
    """More reads wait than the store is given; nothing was sent. It says nothing about the store's health."""


class BadRow(ModelhostError):
    """The store answered with what the view cannot be: several rows for one key, a value of another type."""


class TableMismatch(ConfigError):
    """The view does not fit its table: it is missing, or a column is missing or of another type."""


class ViewReader(Protocol):
    """Reads one view."""

    async def read(self, key: Key, timeout_s: float) -> Row | None:
        """One entity's row, or None if it is not there.

        Raises `StoreUnavailable` (after `timeout_s` at the latest; `StoreBusy` at once), `BadRow`. May be cancelled.
        """
        ...


class Store(Protocol):
    """One store. Methods are called from one event loop."""

    async def open(self, timeout_s: float) -> None:
        """Connect. Raises `StoreUnavailable`; may be called again then. Afterwards it reconnects by itself."""
        ...

    async def reader(self, view: FeatureView, timeout_s: float) -> ViewReader:
        """Check a view against its table, and prepare reading it. Raises `TableMismatch`, `StoreUnavailable`."""
        ...

    async def write(self, view: FeatureView, rows: Sequence[tuple[Key, Row]], timeout_s: float) -> None:
        """Insert or replace rows: all of them, or (SQLite) none. Raises `StoreUnavailable`, `BadRow`.

        After `StoreUnavailable` rows may be there all the same: in Cassandra those that were on their way, in SQLite
        all of them if their commit had begun in time.
        """
        ...

    def ddl(self, view: FeatureView) -> list[str]:
        """The statements that would make the view's table, one by one, without a final semicolon."""
        ...

    async def create(self, view: FeatureView, timeout_s: float) -> None:
        """Run `ddl`. What exists is left as it is. Raises `StoreUnavailable`."""
        ...

    async def close(self) -> None:
        """Let go of every connection and thread. Never raises."""
        ...


def make_store(config: StoreConfig) -> Store:
    """The store for a configuration. Raises `ConfigError` if what it needs is not installed."""
    match config:
        case SqliteStore():
            from feature_io.stores.sqlite import SqliteFeatureStore

            return SqliteFeatureStore(config)
        case CassandraStore():
            from feature_io.stores.cassandra import CassandraFeatureStore

            return CassandraFeatureStore(config)
