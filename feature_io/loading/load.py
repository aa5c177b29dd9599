"""Loading one file into one view: read, check, write, remember; batch by batch."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Protocol

import msgspec

from feature_io.loading.cells import Bad
from feature_io.loading.files import BadLine, Batch, Source
from feature_io.loading.pace import Pace
from feature_io.loading.progress import Position, Progress, is_unchanged, remove_progress, write_progress
from feature_io.stores import BadRow, Key, Row, Store, StoreUnavailable
from host.config.features import FeatureView
from host.protocol.errors import ConfigError

BATCH_ROWS: Final = 10_000
"""More rows make a transaction no cheaper; fewer lose less when a load is ended."""

SMALL_BATCH_ROWS: Final = 2_000
"""For stores that write rows one by one: so many are soon out when a load is ended."""

WRITE_TIMEOUT_S: Final = 60.0
TRIES: Final = 5
"""Of one batch, when the store does not answer; the same rows again do no harm."""
FIRST_PAUSE_S: Final = 0.5


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is to be done."""

    view: FeatureView
    file: Path
    source: Source
    progress: Progress
    """Where it begins."""
    max_bad: int
    """Rows that may be left out; one more ends the load."""
    pace: Pace
    batch_rows: int = BATCH_ROWS
    keep_progress: bool = True
    rejects: IO[str] | None = None


@dataclass(slots=True)
class Summary:
    """How it went."""

    rows: int
    """That the store has, those of an interrupted load before this one included."""
    bad: int
    position: Position
    complete: bool = False
    interrupted: bool = False
    written: int = 0
    """Rows of this load alone."""
    took_s: float = 0.0
    all_null: list[str] = field(default_factory=list)
    """Columns that were null in every row: perhaps the file calls them something else."""


class Watcher(Protocol):
    """Who is told how it goes."""

    def rejected(self, bad: BadLine) -> None:
        """A row was left out."""
        ...

    def advanced(self, position: Position, rows: int, bad: int) -> None:
        """A batch is done."""
        ...

    def waiting(self, error: Exception, pause_s: float) -> None:
        """The store did not take a batch, and is asked again."""
        ...


async def load(plan: Plan, store: Store | None, watcher: Watcher, stop: asyncio.Event) -> Summary:
    """Load the rest of a file, until its end or until `stop` is set. Without a store the file is only checked.

    Raises `ConfigError` if the file cannot be read on, `StoreUnavailable` when the store has not taken a batch in
    several tries; what was loaded before is remembered.
    """
    begun_s = time.monotonic()
    loader = _Loader(plan, store, watcher, stop)
    try:
        for batch in plan.source.batches(plan.progress.position, plan.pace.batch_rows(plan.batch_rows)):
            if not await loader.take(batch):
                break
            await asyncio.sleep(0)  # signals are heard between batches
            if stop.is_set():
                loader.summary.interrupted = True
                break
        else:
            loader.summary.complete = True
    finally:
        loader.summary.took_s = time.monotonic() - begun_s
    if loader.summary.complete:
        if not is_unchanged(plan.progress, plan.file):
            raise ConfigError(f"{plan.file}: changed while it was loaded: load it again")
        loader.summary.all_null = loader.all_null()
        if plan.keep_progress:
            remove_progress(plan.file)
    return loader.summary


class _Loader:
    """What is known between batches."""

    def __init__(self, plan: Plan, store: Store | None, watcher: Watcher, stop: asyncio.Event) -> None:
        self._plan = plan
        self._store = store
        self._watcher = watcher
        self._stop = stop
        self._now_s = time.time()
        start = plan.progress
        self.summary = Summary(rows=start.rows, bad=start.bad, position=start.position)
        self._seen: set[str] = set()

    async def take(self, batch: Batch) -> bool:
        """Write a batch and remember it; False if there were too many bad rows, or the load was stopped before."""
        plan, summary = self._plan, self.summary
        bad: Bad = {}
        rows = plan.source.reader.read(batch.columns, bad, self._now_s) if batch.lines else []
        lines = [line for place, line in enumerate(batch.lines) if place not in bad] if bad else batch.lines
        left_out = batch.bad + [BadLine(batch.lines[place], reason) for place, reason in bad.items()]
        # Told before it is decided whether they are too many: whoever has to correct the file wants to see them.
        if summary.bad + len(left_out) <= plan.max_bad:
            pause_s = plan.pace.pause_s(time.monotonic())
            if pause_s and await _set_within(self._stop, pause_s):
                summary.interrupted = True
                return False
            began_s = time.monotonic()
            left_out += await self._write(rows, lines)
            plan.pace.wrote(len(rows), began_s)
        left_out.sort()
        for one in left_out:
            self._watcher.rejected(one)
        summary.bad += len(left_out)
        if summary.bad > plan.max_bad:
            return False
        self._reject(left_out)
        self._note_nulls(rows)
        count = len(batch.lines) + len(batch.bad) - len(left_out)
        summary.rows += count
        summary.written += count
        summary.position = batch.end
        self._remember()
        self._watcher.advanced(batch.end, summary.rows, summary.bad)
        return True

    async def _write(self, rows: Sequence[tuple[Key, Row]], lines: Sequence[int]) -> list[BadLine]:
        """Write rows; those that the store itself refuses are found by halving, and returned."""
        if not rows or self._store is None:
            return []
        try:
            await self._write_with_patience(rows)
        except BadRow as error:
            if len(rows) == 1:
                return [BadLine(lines[0], str(error))]
            half = len(rows) // 2
            first = await self._write(rows[:half], lines[:half])
            return first + await self._write(rows[half:], lines[half:])
        return []

    async def _write_with_patience(self, rows: Sequence[tuple[Key, Row]]) -> None:
        assert self._store is not None  # noqa: S101 - asked before
        unique = list(dict(rows).items())  # of several rows with one key the last one counts, in whatever order they go
        pause_s = FIRST_PAUSE_S
        for tries_left in range(TRIES - 1, -1, -1):
            try:
                return await self._store.write(self._plan.view, unique, WRITE_TIMEOUT_S)
            except StoreUnavailable as error:
                if not tries_left or self._stop.is_set():
                    raise
                self._watcher.waiting(error, pause_s)
                await _set_within(self._stop, pause_s)
                pause_s *= 2

    def _reject(self, left_out: Sequence[BadLine]) -> None:
        if self._plan.rejects is not None:
            for one in left_out:
                self._plan.rejects.write(json.dumps({"line": one.line, "reason": one.reason}) + "\n")
            self._plan.rejects.flush()

    def _remember(self) -> None:
        plan, summary = self._plan, self.summary
        if plan.keep_progress:
            try:
                now = {"position": summary.position, "rows": summary.rows, "bad": summary.bad}
                write_progress(plan.file, msgspec.structs.replace(plan.progress, **now))
            except OSError as error:
                raise ConfigError(
                    f"{error.filename}: the progress cannot be written: {error.strerror}; --no-progress does without"
                ) from error

    def _note_nulls(self, rows: Sequence[tuple[Key, Row]]) -> None:
        """Look for a value in each column that has had none so far."""
        for place, column in enumerate(self._plan.view.columns):
            if column.name not in self._seen and any(row[place] is not None for _, row in rows):
                self._seen.add(column.name)

    def all_null(self) -> list[str]:
        """Columns in which no row of this load had a value."""
        if not self.summary.written:
            return []
        return [column.name for column in self._plan.view.columns if column.name not in self._seen]


async def _set_within(stop: asyncio.Event, pause_s: float) -> bool:
    """Whether the event is set before the pause is over."""
    try:
        async with asyncio.timeout(pause_s):
            await stop.wait()
    except TimeoutError:
        return False
    return True
