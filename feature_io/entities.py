"""The entities of one view: the cache first, then one read for each key, however many ask for it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from feature_io.breaker import Breaker
from feature_io.cache import JITTER, Age, Cache, Packed
from feature_io.completion import Found, Source
from feature_io.stores import BadRow, Key, Row, StoreBusy, StoreUnavailable, ViewReader
from feature_io.values import Packer
from host.config.features import FeatureView
from host.protocol.counters import VIEW, Words, private_counters
from host.protocol.latency import LatencyHistogram

logger = logging.getLogger("modelhost.features")

COMPLAINT_S: Final = 1.0
"""A view's failures are logged at most so often."""

_NS_PER_S: Final = 1e9
_NOWHERE: Final = Found(Source.NOWHERE, None)


_FRESH: Final = VIEW.at("fresh")
_STALE: Final = VIEW.at("stale")
_NEGATIVE: Final = VIEW.at("negative")
_PRESENT: Final = VIEW.at("present")
_ABSENT: Final = VIEW.at("absent")
_UNAVAILABLE: Final = VIEW.at("unavailable")
_QUERIES: Final = VIEW.at("queries")
_JOINED: Final = VIEW.at("joined")
_FAILURES: Final = VIEW.at("failures")
_BAD_ROWS: Final = VIEW.at("bad_rows")
_REFUSED: Final = VIEW.at("refused")
_QUERY_NS: Final = VIEW.at("query_ns")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewCounters:
    """What happened to the keys that were asked for, since the host started."""

    present: int
    cached: int
    stale: int
    missing: int
    unavailable: int
    queries: int
    """Reads sent to the store."""
    joined: int
    """Asked for while their read was on its way."""
    failures: int
    bad_rows: int
    refused: int
    """Reads that the circuit breaker kept from the store."""
    query_s: float


class Entities:
    """One view. Everything happens on one event loop."""

    def __init__(
        self,
        view: FeatureView,
        place: int,
        cache: Cache,
        breaker: Breaker,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        words: Words | None = None,
    ) -> None:
        """`place`: the view's among all, which keeps its entries in the one cache apart from others'.

        `words`: where it counts, by the layout `VIEW`; None: where nobody else sees it.
        """
        self.view = view
        self.reader: ViewReader | None = None
        """None while the store has not been connected, or the table does not fit."""
        self._words = private_counters(VIEW) if words is None else words
        self._query = LatencyHistogram(self._words, _QUERY_NS)
        self._place = place
        self._cache = cache
        self._breaker = breaker
        self._clock, self._wall = clock, wall
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self.timeout_s = view.timeout_ms / 1000
        """A read ends within it, whatever the store does."""
        self._packers = [Packer(column) for column in view.columns]
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that all of it runs on; looked up once, because CPython 3.11 makes a system call each time."""
        self._reads: dict[Key, asyncio.Task[Found]] = {}
        self._running: set[asyncio.Task[Found]] = set()
        self._generation = 0
        """Counts invalidations: what was read before one is not kept after it."""
        self._complained_s = float("-inf")

    @property
    def counters(self) -> ViewCounters:
        """What has been counted until now."""
        words = self._words
        return ViewCounters(
            present=words[_PRESENT],
            cached=words[_FRESH],
            stale=words[_STALE],
            missing=words[_NEGATIVE] + words[_ABSENT],
            unavailable=words[_UNAVAILABLE],
            queries=words[_QUERIES],
            joined=words[_JOINED],
            failures=words[_FAILURES],
            bad_rows=words[_BAD_ROWS],
            refused=words[_REFUSED],
            query_s=words[_QUERY_NS] / _NS_PER_S,
        )

    # -- what is known ----------------------------------------------------------------------------------------
    def known(self, key: Key, now_s: float) -> Found | None:
        """What the cache can answer with at once; a stale row is read anew meanwhile."""
        entry = self._cache.get((self._place, key))
        if entry is None:
            return None
        if now_s < entry.fresh_until_s:
            row = entry.row
            if row is None:
                self._words[_NEGATIVE] += 1
                return Found(Source.MISSING, None)
            self._words[_FRESH] += 1
            return Found(Source.CACHE, row)
        age = entry.age(now_s)
        if age is Age.STALE:
            if key not in self._reads:
                self._start(key)
            if entry.row is None:
                self._words[_NEGATIVE] += 1
                return Found(Source.MISSING, None)
            self._words[_STALE] += 1
            return Found(Source.STALE, entry.row)
        if age is Age.GONE:
            self._cache.remove((self._place, key))
        return None

    def _in_need(self, key: Key) -> Found:
        """What there is when the store fails."""
        entry = self._cache.get((self._place, key))
        if entry is None or entry.age(self._clock()) is Age.GONE:
            self._words[_UNAVAILABLE] += 1
            return _NOWHERE
        self._words[_STALE] += 1
        return Found(Source.STALE if entry.row is not None else Source.MISSING, entry.row)

    # -- reading ----------------------------------------------------------------------------------------------
    def read(self, key: Key) -> asyncio.Task[Found] | Found:
        """Read from the store, together with everyone else who wants it now; at once what there is if that is no use.

        The task never fails, and ends within the view's `timeout_ms`. It must not be cancelled: others may wait for it.
        """
        task = self._reads.get(key)
        if task is not None:
            self._words[_JOINED] += 1
            return task
        if self.reader is None or not self._breaker.allows(self._clock()):
            self._words[_REFUSED] += 1
            return self._in_need(key)
        return self._start(key, allowed=True)

    def late(self, key: Key) -> Found:
        """What there is for a request that cannot wait for the store any longer."""
        return self._in_need(key)

    def _start(self, key: Key, *, allowed: bool = False) -> asyncio.Task[Found]:
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = loop.create_task(self._read(key, allowed=allowed))
        self._reads[key] = task
        self._running.add(task)
        task.add_done_callback(lambda _: self._finished(key, task))
        return task

    def _finished(self, key: Key, task: asyncio.Task[Found]) -> None:
        self._running.discard(task)
        if self._reads.get(key) is task:
            del self._reads[key]

    async def _read(self, key: Key, *, allowed: bool) -> Found:
        reader, breaker = self.reader, self._breaker
        if reader is None or not (allowed or breaker.allows(self._clock())):
            self._words[_REFUSED] += 1
            return self._in_need(key)
        begun_s, generation = self._clock(), self._generation
        self._words[_QUERIES] += 1
        try:
            row = await reader.read(key, self.timeout_s)
            breaker.succeeded()
            packed = self._packed(row)
        except StoreBusy as error:
            breaker.gave_up()
            self._complain(error)
            return self._in_need(key)
        except StoreUnavailable as error:
            breaker.failed(self._clock())
            self._words[_FAILURES] += 1
            self._complain(error)
            return self._in_need(key)
        except BadRow as error:
            breaker.succeeded()
            self._words[_BAD_ROWS] += 1
            self._complain(error)
            return self._in_need(key)
        except asyncio.CancelledError:
            breaker.gave_up()
            raise
        except Exception:
            # A defect of a store, or of its driver: this entity is not known, and everything else goes on.
            breaker.failed(self._clock())
            self._words[_FAILURES] += 1
            logger.exception("view %s: a read failed", self.view.name)
            return self._in_need(key)
        finally:
            self._query.add(max(0, int((self._clock() - begun_s) * _NS_PER_S)))
        if generation == self._generation:
            self._keep(key, packed)
        if packed is None:
            self._words[_ABSENT] += 1
            return Found(Source.MISSING, None)
        self._words[_PRESENT] += 1
        return Found(Source.STORE, packed)

    def _packed(self, row: Row | None) -> Packed | None:
        """A store's row as it is cached; None as well if it is too old. Raises `BadRow`."""
        if row is None:
            return None
        if self.view.max_age_s:
            changed_s = row[len(self._packers)]
            if changed_s is None or self._wall() - changed_s > self.view.max_age_s:
                return None
        return tuple(
            [None if value is None else packer.pack(value) for packer, value in zip(self._packers, row, strict=False)]
        )

    def _keep(self, key: Key, row: Packed | None) -> None:
        view, now_s = self.view, self._clock()
        ttl_s = (view.ttl_s if row is not None else view.negative_ttl_s) * (1 - JITTER * self._rng.random())
        fresh_s = now_s + ttl_s
        self._cache.put(
            (self._place, key),
            row,
            fresh_until_s=fresh_s,
            stale_until_s=fresh_s + (view.stale_s if ttl_s else 0),
            gone_at_s=fresh_s + max(view.stale_s, view.stale_if_error_s),
        )

    # -- the rest ---------------------------------------------------------------------------------------------
    def invalidate(self, key: Key | None) -> int:
        """Forget one entity, or all; how many were known. Whoever asks from now on gets what the store has now."""
        self._generation += 1
        self._reads.clear()
        if key is not None:
            return int(self._cache.remove((self._place, key)))
        ours = [one for one in self._cache if isinstance(one, tuple) and one[0] == self._place]
        return sum(self._cache.remove(one) for one in ours)

    async def close(self) -> None:
        """End every read."""
        reads = list(self._running)
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    def _complain(self, error: Exception) -> None:
        now_s = self._clock()
        if now_s - self._complained_s >= COMPLAINT_S:
            self._complained_s = now_s
            logger.warning("%s", error)
