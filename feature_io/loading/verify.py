"""A sample of a file, compared with what a store has."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from feature_io.loading.cells import Bad
from feature_io.loading.files import BadLine, Source
from feature_io.loading.progress import Position
from feature_io.plan import key_words
from feature_io.stores import Key, Row, ViewReader
from feature_io.values import pack, unpack
from host.config.features import FeatureColumn, FeatureView

BATCH_ROWS: Final = 10_000
AT_ONCE: Final = 64
"""Reads in flight."""
READ_TIMEOUT_S: Final = 10.0
DIFFERENCES_KEPT: Final = 20
FRESHNESS_MARGIN_S: Final = 0.001
"""Cassandra keeps milliseconds."""

_EVERYTHING: Final = Position()


@dataclass(slots=True)
class Comparison:
    """How many rows of the sample are in the store as they are in the file."""

    equal: int = 0
    different: int = 0
    missing: int = 0
    bad: int = 0
    """Rows of the whole file that no load would have taken."""
    differences: list[str] = field(default_factory=list)
    """The first ones, in words."""

    @property
    def as_it_should_be(self) -> bool:
        """All of the sample is there, and the same."""
        return not self.different and not self.missing


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row of the file."""

    line: int
    key: Key
    row: Row


def sample(source: Source, count: int, seed: int) -> tuple[list[Sampled], int]:
    """Some rows of a file, each with the same chance, and the number of bad ones. Reads all of it once.

    Of several rows with one key the last one is taken, because that is the one which a load leaves in the store.
    """
    rng = random.Random(seed)  # noqa: S311 - a sample
    chosen: list[Sampled] = []
    places: dict[Key, int] = {}
    seen = bad_rows = 0
    for sampled in _rows(source):
        if isinstance(sampled, BadLine):
            bad_rows += 1
            continue
        place = places.get(sampled.key)
        if place is not None:
            chosen[place] = sampled
            continue
        seen += 1
        if len(chosen) < count:
            places[sampled.key] = len(chosen)
            chosen.append(sampled)
        elif (place := rng.randrange(seen)) < count:
            del places[chosen[place].key]
            places[sampled.key] = place
            chosen[place] = sampled
    return chosen, bad_rows


def _rows(source: Source) -> Iterator[Sampled | BadLine]:
    for batch in source.batches(_EVERYTHING, BATCH_ROWS):
        yield from batch.bad
        bad: Bad = {}
        rows = source.reader.read(batch.columns, bad, float("nan")) if batch.lines else []
        yield from (BadLine(batch.lines[place], reason) for place, reason in bad.items())
        lines = (line for place, line in enumerate(batch.lines) if place not in bad)
        yield from (Sampled(line, key, row) for line, (key, row) in zip(lines, rows, strict=True))


async def compare(view: FeatureView, reader: ViewReader, rows: Sequence[Sampled]) -> Comparison:
    """Read the rows' entities, and compare. Raises `StoreUnavailable`, `BadRow`."""
    result = Comparison()
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        stored = await asyncio.gather(*(reader.read(one.key, READ_TIMEOUT_S) for one in some))
        for one, row in zip(some, stored, strict=True):
            _count(view, one, row, result)
    return result


def _count(view: FeatureView, one: Sampled, stored: Row | None, result: Comparison) -> None:
    here = f"line {one.line}: {key_words(view, one.key)}"
    if stored is None:
        result.missing += 1
        _keep(result, f"{here}: is not in the store")
        return
    differences = list(_differences(view, one.row, stored))
    if not differences:
        result.equal += 1
        return
    result.different += 1
    for words in differences:
        _keep(result, f"{here}: {words}")


def _keep(result: Comparison, words: str) -> None:
    if len(result.differences) < DIFFERENCES_KEPT:
        result.differences.append(words)


def _differences(view: FeatureView, wanted: Row, stored: Row) -> Iterator[str]:
    for column, one, other in zip(view.columns, wanted, stored, strict=False):
        if not _same(column, one, other):
            yield f"column {column.name}: file {_words(column, one)}, store {_words(column, other)}"
    if view.freshness_column is not None:
        one, other = wanted[len(view.columns)], stored[len(view.columns)]
        known = one is not None and other is not None
        # NaN: the file does not have the column.
        if one == one and (one != other if not known else abs(one - other) > FRESHNESS_MARGIN_S):
            yield f"column {view.freshness_column}: file {one}, store {other}"


def _same(column: FeatureColumn, one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    first, second = pack(column, one), pack(column, other)
    # -0.0 is 0.0, whatever its bytes are.
    return first == second or bool(unpack(column, first) == unpack(column, second))


def _words(column: FeatureColumn, value: Any) -> str:
    if value is None:
        return "null"
    text = repr(unpack(column, pack(column, value)))
    return text if len(text) <= 60 else f"{text[:60]}..."
