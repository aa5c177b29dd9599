"""The loop of a load, with a store that fails when the test wants it to."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from feature_io.loading import load as loading
from feature_io.loading.files import BadLine, open_source
from feature_io.loading.load import Plan, Summary, load
from feature_io.loading.pace import Pace
from feature_io.loading.progress import Position, begin, progress_path, read_progress, resumed
from feature_io.loading.verify import compare, sample
from feature_io.stores import BadRow, Key, Row, Store, StoreUnavailable, ViewReader
from host.config.features import FeatureColumn, FeatureView, KeyColumn
from host.protocol.errors import ConfigError

LIMIT_S = 20.0
VIEW = FeatureView(
    name="v",
    store="s",
    keyspace=None,
    table="t",
    keys=(KeyColumn(column="id", datatype="INT64", input="id"),),
    columns=(FeatureColumn(name="x", datatype="FP64"), FeatureColumn(name="y", datatype="FP64")),
)


class FakeStore:
    """Rows in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.batches: list[int] = []
        self.fail_times = 0
        """So many writes more do not get through."""
        self.refused: set[Key] = set()
        self.on_write: Callable[[], object] = lambda: None

    async def open(self, timeout_s: float) -> None: ...

    async def reader(self, view: FeatureView, timeout_s: float) -> ViewReader:
        return self

    async def read(self, key: Key, timeout_s: float) -> Row | None:
        return self.rows.get(key)

    async def write(self, view: FeatureView, rows: Sequence[tuple[Key, Row]], timeout_s: float) -> None:
        self.on_write()
        if self.fail_times:
            self.fail_times -= 1
            raise StoreUnavailable("out for lunch")
        for key, _ in rows:
            if key in self.refused:
                raise BadRow(f"{key} is refused")
        self.batches.append(len(rows))
        self.rows.update(rows)

    def ddl(self, view: FeatureView) -> list[str]:
        return []

    async def create(self, view: FeatureView, timeout_s: float) -> None: ...

    async def close(self) -> None: ...


class Told:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.bad: list[BadLine] = []
        self.lines: list[int] = []
        self.waits: list[float] = []

    def rejected(self, bad: BadLine) -> None:
        self.bad.append(bad)

    def advanced(self, position: Position, rows: int, bad: int) -> None:
        self.lines.append(position.line)

    def waiting(self, error: Exception, pause_s: float) -> None:
        self.waits.append(pause_s)


def write_csv(directory: Path, count: int, bad: Sequence[int] = ()) -> Path:
    """Write rows 0 to count - 1, of which some are bad; row n is line n + 2."""
    path = directory / "rows.csv"
    path.write_text("id,x,y\n" + "".join(f"{n},{'?' if n in bad else n / 2},\n" for n in range(count)))
    return path


def make_plan(file: Path, *, resume: bool = False, max_bad: int = 0, rate: float | None = None) -> Plan:
    start = begin(VIEW, file)
    return Plan(
        view=VIEW,
        file=file,
        source=open_source(VIEW, file, None),
        progress=resumed(start, read_progress(file), file) if resume else start,
        max_bad=max_bad,
        pace=Pace(rate),
        batch_rows=10,
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses short."""
    monkeypatch.setattr(loading, "FIRST_PAUSE_S", 0.001)


async def run(plan: Plan, store: Store | None, told: Told | None = None, stop: asyncio.Event | None = None) -> Summary:
    async with asyncio.timeout(LIMIT_S):
        return await load(plan, store, told or Told(), stop or asyncio.Event())


async def test_a_whole_file_is_loaded_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file, store, told = write_csv(tmp_path, 35), FakeStore(), Told()
    summary = await run(make_plan(file), store, told)
    assert (summary.complete, summary.rows, summary.bad, summary.position.line) == (True, 35, 0, 36)
    assert store.rows == {(n,): (n / 2, None) for n in range(35)}
    assert store.batches == [10, 10, 10, 5]
    assert told.lines == [11, 21, 31, 36]
    assert summary.all_null == ["y"]
    assert not progress_path(file).exists()


@pytest.mark.parametrize(
    ("max_bad", "complete", "rows"), [(0, False, 10), (1, False, 10), (2, True, 33), (3, True, 33)]
)
async def test_bad_rows_are_left_out_up_to_the_limit(tmp_path: Path, max_bad: int, complete: bool, rows: int) -> None:
    file, store, told = write_csv(tmp_path, 35, bad=[12, 15]), FakeStore(), Told()
    plan = make_plan(file, max_bad=max_bad)
    plan.rejects = io.StringIO()
    summary = await run(plan, store, told)
    assert (summary.complete, summary.rows, summary.bad) == (complete, rows, 2)
    assert [bad.line for bad in told.bad] == [14, 17]
    assert told.bad[0].reason == 'column x: expected FP64, received "?"'
    assert (12,) not in store.rows
    assert len(store.rows) == rows
    if complete:
        lines = [json.loads(line) for line in plan.rejects.getvalue().splitlines()]
        assert lines == [{"line": bad.line, "reason": bad.reason} for bad in told.bad]


async def test_a_load_that_stopped_for_bad_rows_goes_on_with_a_higher_limit(tmp_path: Path) -> None:
    file, store = write_csv(tmp_path, 35, bad=[12]), FakeStore()
    assert not (await run(make_plan(file), store)).complete
    summary = await run(make_plan(file, resume=True, max_bad=1), store)
    assert (summary.complete, summary.rows, summary.bad, summary.written) == (True, 34, 1, 24)
    assert store.batches == [10, 9, 10, 5]


async def test_rows_that_only_the_store_refuses_are_found(tmp_path: Path) -> None:
    file, store, told = write_csv(tmp_path, 20), FakeStore(), Told()
    store.refused = {(3,), (4,), (17,)}
    summary = await run(make_plan(file, max_bad=3), store, told)
    assert (summary.complete, summary.rows, summary.bad) == (True, 17, 3)
    assert [bad.line for bad in told.bad] == [5, 6, 19]
    assert store.rows.keys() == {(n,) for n in range(20)} - store.refused


async def test_of_several_rows_with_one_key_the_last_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("id,x,y\n1,1,1\n2,2,2\n1,3,3\n")
    store = FakeStore()
    summary = await run(make_plan(file), store)
    assert summary.rows == 3
    assert store.rows == {(1,): (3.0, 3.0), (2,): (2.0, 2.0)}
    assert store.batches == [2]


async def test_a_store_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    file, store, told = write_csv(tmp_path, 20), FakeStore(), Told()
    store.fail_times = 4
    assert (await run(make_plan(file), store, told)).complete
    assert told.waits == [0.001, 0.002, 0.004, 0.008]
    store.fail_times = 5
    with pytest.raises(StoreUnavailable, match="out for lunch"):
        await run(make_plan(file), store, told)
    assert read_progress(file) is None


async def test_what_was_loaded_before_the_store_failed_is_remembered(tmp_path: Path) -> None:
    file, store = write_csv(tmp_path, 30), FakeStore()

    def fail_from_the_second_on() -> None:
        store.fail_times = 1 if store.batches else 0

    store.on_write = fail_from_the_second_on
    with pytest.raises(StoreUnavailable):
        await run(make_plan(file), store)
    store.on_write = lambda: None
    store.fail_times = 0
    summary = await run(make_plan(file, resume=True), store)
    assert (summary.rows, summary.written, store.batches) == (30, 20, [10, 10, 10])


async def test_stopping_finishes_the_batch_in_hand(tmp_path: Path) -> None:
    file, store, stop = write_csv(tmp_path, 35), FakeStore(), asyncio.Event()
    store.on_write = stop.set
    summary = await run(make_plan(file), store, stop=stop)
    assert (summary.interrupted, summary.complete, summary.rows) == (True, False, 10)
    left = read_progress(file)
    assert left is not None
    assert (left.rows, left.position.line) == (10, 11)
    store.on_write = lambda: None
    assert (await run(make_plan(file, resume=True), store)).rows == 35
    assert not progress_path(file).exists()


async def test_stopping_does_not_wait_for_the_pace(tmp_path: Path) -> None:
    file, store, stop = write_csv(tmp_path, 10), FakeStore(), asyncio.Event()
    store.on_write = lambda: asyncio.get_running_loop().call_later(0.01, stop.set)
    summary = await run(make_plan(file, rate=0.001), store, stop=stop)
    assert (summary.interrupted, summary.rows) == (True, 1)


async def test_checking_writes_nothing(tmp_path: Path) -> None:
    file, told = write_csv(tmp_path, 35, bad=[12, 30]), Told()
    plan = make_plan(file, max_bad=1000)
    plan.keep_progress = False
    summary = await run(plan, None, told)
    assert (summary.complete, summary.rows, summary.bad) == (True, 33, 2)
    assert [bad.line for bad in told.bad] == [14, 32]
    assert not progress_path(file).exists()


async def test_a_file_that_changes_meanwhile_is_said(tmp_path: Path) -> None:
    file, store = write_csv(tmp_path, 20), FakeStore()
    store.on_write = lambda: file.write_text(file.read_text() + "99,1,1\n")
    with pytest.raises(ConfigError, match="changed while it was loaded"):
        await run(make_plan(file), store)


# -- comparing --------------------------------------------------------------------------------------------------------
async def test_a_sample_is_compared(tmp_path: Path) -> None:
    file, store = write_csv(tmp_path, 50, bad=[7]), FakeStore()
    await run(make_plan(file, max_bad=1), store)
    source = open_source(VIEW, file, None)
    rows, bad = sample(source, 1000, seed=1)
    assert (len(rows), bad) == (49, 1)
    result = await compare(VIEW, store, rows)
    assert (result.equal, result.different, result.missing, result.as_it_should_be) == (49, 0, 0, True)
    store.rows[1,] = (9.5, None)
    store.rows[2,] = (1.0, 2.0)
    del store.rows[3,]
    result = await compare(VIEW, store, rows)
    assert (result.equal, result.different, result.missing, result.as_it_should_be) == (46, 2, 1, False)
    assert result.differences == [
        "line 3: id = 1: column x: file 0.5, store 9.5",
        "line 4: id = 2: column y: file null, store 2.0",
        "line 5: id = 3: is not in the store",
    ]


def test_a_sample_is_as_large_as_asked_and_the_same_for_a_seed(tmp_path: Path) -> None:
    source = open_source(VIEW, write_csv(tmp_path, 500), None)
    first, again, other = (sample(source, 20, seed)[0] for seed in (1, 1, 2))
    assert len({one.key for one in first}) == 20
    assert first == again != other


def test_every_row_has_its_chance(tmp_path: Path) -> None:
    source = open_source(VIEW, write_csv(tmp_path, 20), None)
    drawn = [one.line for seed in range(400) for one in sample(source, 5, seed)[0]]
    counts = [drawn.count(line) for line in range(2, 22)]
    assert min(counts) > 50
    assert max(counts) < 150


def test_of_several_rows_with_one_key_the_last_one_is_compared(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("id,x,y\n1,1,1\n2,2,2\n1,3,3\n")
    rows, _ = sample(open_source(VIEW, file, None), 10, seed=1)
    assert {one.key: one.row for one in rows} == {(1,): (3.0, 3.0), (2,): (2.0, 2.0)}


async def test_zero_is_zero_and_nan_is_nan(tmp_path: Path) -> None:
    file, store = tmp_path / "rows.csv", FakeStore()
    file.write_text("id,x,y\n1,-0.0,nan\n")
    store.rows[1,] = (0.0, math.nan)
    rows, _ = sample(open_source(VIEW, file, None), 10, seed=1)
    assert (await compare(VIEW, store, rows)).equal == 1
