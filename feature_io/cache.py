"""Rows of entities in memory, bounded in bytes. No clock and no I/O: times are given, in seconds of a monotonic clock.

Eviction is S3-FIFO (Yang, Zhang, Qiu, Yue, Vinayak: "FIFO queues are all you need for cache eviction", SOSP 2023): what
is new waits in a small queue, and only what is asked for again there comes to the main one, so a scan over entities
that are never seen again displaces nothing but other newcomers. A hit changes one small number and moves nothing.
"""

from __future__ import annotations

import enum
import sys
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final

from host.protocol.counters import FEATURES, Words, private_counters

Packed = tuple[bytes | None, ...]
"""One entity's features, each as `feature_io.values` packs it; None is null."""

SMALL_SHARE: Final = 0.1
"""Of the bytes, for newcomers (the paper's own figure)."""
FREQUENCY_MAX: Final = 3
ENTRY_BYTES: Final = 400
"""An entry, its key's tuple, its places in the dictionary and in a queue: measured with `tracemalloc`, rounded up."""
GHOSTS_MIN: Final = 1024
_DEAD_MIN: Final = 1024
_EVICTIONS: Final = FEATURES.at("evictions")
_ENTRIES: Final = FEATURES.at("entries")
_SIZE_BYTES: Final = FEATURES.at("size_bytes")
JITTER: Final = 0.1
"""A row's TTL is shortened by up to so much, so that rows which were read together are not read again together."""


class Age(enum.IntEnum):
    """What an entry is good for."""

    FRESH = 0
    STALE = 1
    """To be served, and read anew meanwhile."""
    IF_ERROR = 2
    """To be served if the store fails."""
    GONE = 3


@dataclass(slots=True, eq=False)
class Entry:
    """What is known of one entity: its row, or that it has none."""

    key: Hashable
    row: Packed | None
    fresh_until_s: float
    stale_until_s: float
    gone_at_s: float
    size_bytes: int
    frequency: int = 0
    in_main: bool = False
    dead: bool = False
    """Taken out, and still in its queue."""

    def age(self, now_s: float) -> Age:
        """What it is good for at a time."""
        if now_s < self.fresh_until_s:
            return Age.FRESH
        if now_s < self.stale_until_s:
            return Age.STALE
        return Age.IF_ERROR if now_s < self.gone_at_s else Age.GONE


class Cache:
    """Entries by key."""

    def __init__(self, capacity_bytes: int, words: Words | None = None) -> None:
        """`words`: where it counts, by the layout `FEATURES`; None: where nobody else sees it."""
        self._words = private_counters(FEATURES) if words is None else words
        self._words[FEATURES.at("capacity_bytes")] = capacity_bytes
        self.capacity_bytes = capacity_bytes
        self.size_bytes = 0
        self._small_bytes = 0
        self._entries: dict[Hashable, Entry] = {}
        self._small: deque[Entry] = deque()
        self._main: deque[Entry] = deque()
        self._ghosts: OrderedDict[Hashable, None] = OrderedDict()
        """Keys that were evicted from the small queue, the oldest first."""
        self._dead = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def evictions(self) -> int:
        """Entries that had to go for others."""
        return self._words[_EVICTIONS]

    def get(self, key: Hashable) -> Entry | None:
        """The entry of a key, whatever its age."""
        entry = self._entries.get(key)
        if entry is not None and entry.frequency < FREQUENCY_MAX:
            entry.frequency += 1
        return entry

    def put(
        self, key: Hashable, row: Packed | None, *, fresh_until_s: float, stale_until_s: float, gone_at_s: float
    ) -> None:
        """Remember a row, or that there is none. What is larger than the whole cache is not kept."""
        size_bytes = entry_bytes(key, row)
        entry = self._entries.get(key)
        if entry is not None:
            if size_bytes > self.capacity_bytes:
                self.remove(key)
                return
            self._count(entry, size_bytes - entry.size_bytes)
            entry.row, entry.size_bytes = row, size_bytes
            entry.fresh_until_s, entry.stale_until_s, entry.gone_at_s = fresh_until_s, stale_until_s, gone_at_s
        elif size_bytes <= self.capacity_bytes:
            entry = Entry(key, row, fresh_until_s, stale_until_s, gone_at_s, size_bytes)
            self._entries[key] = entry
            if key in self._ghosts:
                del self._ghosts[key]
                entry.in_main = True
            (self._main if entry.in_main else self._small).append(entry)
            self._count(entry, size_bytes)
        while self.size_bytes > self.capacity_bytes:
            self._evict()

    def remove(self, key: Hashable) -> bool:
        """Forget one key; whether it was known."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._count(entry, -entry.size_bytes)
        # Its place in the queue stays until the queue comes to it: finding it would be a search.
        entry.dead, entry.row = True, None
        self._dead += 1
        if self._dead > _DEAD_MIN and self._dead > len(self._entries):
            self._small = deque(one for one in self._small if not one.dead)
            self._main = deque(one for one in self._main if not one.dead)
            self._dead = 0
        return True

    def __iter__(self) -> Iterator[Hashable]:
        """Every key; the cache may change meanwhile."""
        return iter(list(self._entries))

    def _count(self, entry: Entry, more_bytes: int) -> None:
        self.size_bytes += more_bytes
        self._words[_SIZE_BYTES] = self.size_bytes
        self._words[_ENTRIES] = len(self._entries)
        if not entry.in_main:
            self._small_bytes += more_bytes

    def _evict(self) -> None:
        """Take one step: evict an entry, or move one on."""
        if self._small and (self._small_bytes > SMALL_SHARE * self.capacity_bytes or not self._main):
            entry = self._small.popleft()
            if entry.dead:
                self._dead -= 1
            elif entry.frequency > 1:
                self._small_bytes -= entry.size_bytes
                entry.in_main, entry.frequency = True, 0
                self._main.append(entry)
            else:
                self._drop(entry)
                self._ghosts[entry.key] = None
                while len(self._ghosts) > max(GHOSTS_MIN, len(self._entries)):
                    self._ghosts.popitem(last=False)
            return
        entry = self._main.popleft()
        if entry.dead:
            self._dead -= 1
        elif entry.frequency:
            entry.frequency -= 1
            self._main.append(entry)
        else:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._count(entry, -entry.size_bytes)
        self._words[_EVICTIONS] += 1


_NONE_BYTES: Final = sys.getsizeof(None)


def entry_bytes(key: Hashable, row: Packed | None) -> int:
    """What an entry costs in memory."""
    size = ENTRY_BYTES
    for part in key if isinstance(key, tuple) else (key,):
        size += sys.getsizeof(part)
    if row is not None:
        size += sys.getsizeof(row)
        size += sum(map(sys.getsizeof, row)) - _NONE_BYTES * row.count(None)
    return size
