"""How the Cassandra store talks to a cluster: a small seam, and a module for each driver behind it.

A driver knows nothing of views and keys. What it raises is one of two words; the store says of which read it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

Statement = Any
"""What a driver made of a statement's text; only that driver knows what it is."""

POINT_ROWS: Final = 2
"""How many rows of a point read are fetched at most: one, and one to see that it is not the only one."""

RECONNECT_FIRST_S: Final = 0.25
RECONNECT_MAX_S: Final = 5.0
"""After a node is lost it is tried again after these times, doubled from try to try."""

HEARTBEAT_S: Final = 2
"""An idle connection is asked for a sign of life so often, and has so long to give it. A frozen node is found so."""


class DriverError(Exception):
    """Base of what drivers raise; foreign errors are mapped where they arise, and are the cause."""


class Unanswered(DriverError):
    """No node gave an answer, or not the one that was asked for; another try may succeed."""


class Refused(DriverError):
    """The cluster, or the driver before it, does not take the statement or its values."""


class Driver(Protocol):
    """One connection to a cluster. Methods are called from one event loop.

    Every one may be cancelled, which is how callers end a wait: `timeout_s` is when the driver itself lets go of a
    request that nobody waits for any more.
    """

    undecoded: frozenset[str]
    """CQL types whose values the driver cannot read."""

    async def connect(self, timeout_s: float) -> None:
        """Connect; afterwards it reconnects by itself. Raises `Unanswered`; may be called again then."""
        ...

    async def prepare(self, statement: str, timeout_s: float) -> Statement:
        """Let the cluster prepare a statement, which can be run twice without harm. Raises `DriverError`."""
        ...

    async def read(self, statement: Statement, values: Sequence[Any], timeout_s: float) -> Sequence[Sequence[Any]]:
        """Run a prepared point read; `POINT_ROWS` rows at most. Raises `DriverError`."""
        ...

    async def execute(
        self, statement: Statement | str, values: Sequence[Any], timeout_s: float
    ) -> Sequence[Sequence[Any]]:
        """Run a prepared statement, or a text without values; all rows. Raises `DriverError`."""
        ...

    async def close(self) -> None:
        """Let go of every connection and thread; what runs is answered with an error."""
        ...
