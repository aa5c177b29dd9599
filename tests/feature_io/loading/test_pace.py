"""How fast rows may go out, with times that the test gives."""

from __future__ import annotations

import pytest

from feature_io.loading.pace import BATCHES_PER_S, Pace


def test_without_a_limit_nothing_waits() -> None:
    pace = Pace(None)
    assert pace.batch_rows(10_000) == 10_000
    pace.wrote(10_000, 5.0)
    assert pace.pause_s(5.0) == 0.0


@pytest.mark.parametrize(("rate", "rows"), [(0.5, 1), (1, 1), (40, 10), (4000, 1000), (1e9, 10_000)])
def test_batches_are_small_enough_for_an_even_flow(rate: float, rows: int) -> None:
    assert Pace(rate).batch_rows(10_000) == rows


def test_the_next_batch_waits_for_the_last_ones_share_of_time() -> None:
    pace = Pace(100.0)
    assert pace.pause_s(7.0) == 0.0
    pace.wrote(25, 7.0)
    assert pace.pause_s(7.1) == pytest.approx(0.15)
    assert pace.pause_s(7.25) == 0.0
    assert pace.pause_s(9.0) == 0.0


def test_what_was_not_used_is_not_made_up_for() -> None:
    pace = Pace(100.0)
    pace.wrote(25, 0.0)
    pace.wrote(25, 60.0)
    assert pace.pause_s(60.0) == pytest.approx(0.25)


@pytest.mark.parametrize("rate", [1.0, 130.0, 10_000.0])
@pytest.mark.parametrize("write_s", [0.0, 0.01, 0.4])
def test_no_more_rows_than_the_rate_ever(rate: float, write_s: float) -> None:
    pace, now_s, rows = Pace(rate), 100.0, 0
    batch = pace.batch_rows(10_000)
    while now_s < 130.0:
        now_s += pace.pause_s(now_s)
        pace.wrote(batch, now_s)
        rows += batch
        assert rows <= rate * (now_s - 100.0) + batch + 1e-6
        now_s += write_s
    if write_s < batch / rate:
        assert rows >= rate * 29.0, "and no fewer, if the store is fast enough"
    assert batch <= max(1, rate / BATCHES_PER_S)
