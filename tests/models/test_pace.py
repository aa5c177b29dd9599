"""The cost of batches: lines, too little evidence, and outliers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.pace import FEW_BATCHES, Pace


def after(*batches: tuple[int, int]) -> tuple[int, int]:
    pace = Pace()
    for rows, ns in batches:
        pace.learn(rows, ns)
    return pace.estimate_ns()


def test_says_nothing_before_it_has_seen_a_few() -> None:
    assert after() == (0, 0)
    assert after(*[(1, 1000)] * (FEW_BATCHES - 1)) == (0, 0)
    assert after(*[(1, 1000)] * FEW_BATCHES) == (1000, 0)


def test_batches_of_one_size_say_nothing_about_rows() -> None:
    assert after(*[(64, 5000)] * 100) == (5000, 0)


@pytest.mark.parametrize(("batch_ns", "row_ns"), [(0, 2_000_000), (50_000_000, 0), (300_000, 7_000)])
def test_finds_the_line(batch_ns: int, row_ns: int) -> None:
    found = after(*[(rows, batch_ns + row_ns * rows) for rows in (1, 5, 17, 2, 33, 9, 64, 1, 128, 40)])
    assert found == (pytest.approx(batch_ns, abs=row_ns * 0.01 + 10), pytest.approx(row_ns, rel=0.01, abs=10))


def test_one_slow_batch_is_believed_in_part() -> None:
    batch_ns, row_ns = after(*[(1, 100_000), (2, 110_000)] * 20, (2, 500_000_000))
    assert batch_ns + 200 * row_ns < 15_000_000


def test_a_model_that_became_slower_is_found_out() -> None:
    batch_ns, row_ns = after(*[(1, 1_000), (2, 2_000)] * 20, *[(1, 1_000_000), (2, 2_000_000)] * 40)
    assert 800_000 < batch_ns + row_ns < 1_200_000


@given(st.lists(st.tuples(st.integers(1, 512), st.integers(0, 10**11)), max_size=60))
def test_never_negative_and_never_more_than_was_seen(batches: list[tuple[int, int]]) -> None:
    batch_ns, row_ns = after(*batches)
    assert batch_ns >= 0
    assert row_ns >= 0
    assert batch_ns + row_ns <= max((ns for _, ns in batches), default=0) + 1
