"""One store's connection, from the first try to the end: opened, its views checked, and again when that failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from feature_io.entities import Entities
from feature_io.stores import Store, StoreUnavailable, TableMismatch
from host.protocol.counters import STORE, Words

logger = logging.getLogger("modelhost.features")

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 5.0
"""Pauses between tries double from the first to the longest."""

_CONNECTED: Final = STORE.at("connected")
OPEN_TIMEOUT_S: Final = 10.0
CHECK_TIMEOUT_S: Final = 5.0


class StoreConnection:
    """Gives the views of one store their readers, as soon as it can and as often as it takes."""

    def __init__(
        self, name: str, store: Store, views: Sequence[Entities], changed: Callable[[], None], words: Words
    ) -> None:
        """`changed` is called when what keeps a view from being read has changed; `words`: where it counts."""
        self._words = words
        self._name = name
        self._store = store
        self._views = views
        self._changed = changed
        self.mismatches: dict[str, str] = {}
        """Views that do not fit their tables, and why."""
        self.tried = asyncio.Event()
        """The first try is over, however it went."""

    async def run(self) -> None:
        """Connect and check until every view can be read; until cancelled, where that never comes."""
        pause_s, opened = FIRST_PAUSE_S, False
        while True:
            try:
                if not opened:
                    await self._store.open(OPEN_TIMEOUT_S)
                    opened = True
                if await self._check():
                    self._words[_CONNECTED] = 1
                    logger.info("store %s: connected, %d views checked", self._name, len(self._views))
                    return
            except StoreUnavailable as error:
                logger.warning("store %s: %s; next try in %.2g s", self._name, error, pause_s)
            except Exception:
                logger.exception("store %s: cannot be opened; next try in %.2g s", self._name, pause_s)
            finally:
                self.tried.set()
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _check(self) -> bool:
        """Check every view that has no reader yet; whether all have one now. Raises `StoreUnavailable`."""
        for entities in self._views:
            if entities.reader is not None:
                continue
            name = entities.view.name
            # Whatever else the check raises leaves the last finding as it was told.
            before = self.mismatches.get(name)
            try:
                entities.reader = await self._store.reader(entities.view, CHECK_TIMEOUT_S)
                self.mismatches.pop(name, None)
            except TableMismatch as error:
                self.mismatches[name] = "; ".join(error.problems)
                if self.mismatches[name] != before:
                    logger.error("view %s cannot be read: %s", name, self.mismatches[name])
            if self.mismatches.get(name) != before:
                self._changed()
        return not self.mismatches

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()
