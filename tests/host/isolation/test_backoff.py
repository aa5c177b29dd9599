"""A slot that dies young waits, twice as long each time; one that served is back at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.isolation.backoff import (
    FREE_LIVES,
    PAUSE_MAX_S,
    SHORT_LIFE_S,
    LastEnd,
    Lives,
    next_life,
    pause_s,
    read_lives,
    write_lives,
)


def test_the_first_short_lives_are_free_and_then_the_pause_doubles() -> None:
    assert [pause_s(count) for count in range(FREE_LIVES + 1)] == [0.0] * (FREE_LIVES + 1)
    assert [pause_s(FREE_LIVES + count) for count in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause_s(10**9) == PAUSE_MAX_S


def test_a_crash_loop() -> None:
    lives, now_s, waited = None, 1000.0, []
    for _ in range(8):
        lives = next_life(lives, LastEnd(None), now_s)
        waited.append(lives.begins_s - now_s)
        now_s = lives.begins_s + 0.5
    assert waited == [0, 0, 0, 0, 1, 2, 4, 8]
    assert lives is not None
    assert (lives.short, lives.since_s) == (7, 1000.0)


@pytest.mark.parametrize(
    ("ready_s", "now_s", "short"),
    [
        (None, 2000.0, 1),  # loaded for long, and never served
        (1000.0, 1000.0 + SHORT_LIFE_S - 0.01, 1),
        (1000.0, 1000.0 + SHORT_LIFE_S, 0),
        (1500.0, 1501.0, 1),  # loaded for long, served a second
        (990.0, 2000.0, 1),  # the socket of the life before
    ],
)
def test_how_long_it_served_counts(ready_s: float | None, now_s: float, short: int) -> None:
    assert next_life(Lives(1000.0), LastEnd(ready_s), now_s).short == short


def test_a_long_life_ends_the_count() -> None:
    lives = Lives(1000.0, short=9, since_s=10.0)
    assert next_life(lives, LastEnd(1001.0), 1100.0) == Lives(1100.0)
    assert next_life(lives, LastEnd(None, drained=True), 1001.0) == Lives(1001.0)


@given(st.floats(0, 1e10), st.integers(0, 10**6), st.floats(0, 1e10), st.none() | st.floats(0, 1e10))
def test_nothing_waits_longer_than_the_longest_pause(
    begins_s: float, short: int, now_s: float, ready_s: float | None
) -> None:
    lives = next_life(Lives(begins_s, short, begins_s), LastEnd(ready_s), now_s)
    assert 0 <= lives.begins_s - now_s <= PAUSE_MAX_S + 1e-5


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.v1:0.lives"
    assert read_lives(path) is None
    lives = Lives(12.5, 3, 1.25)
    write_lives(path, lives)
    assert read_lives(path) == lives
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["a", 1, 2]', "[1, 2, 3, 4]", "null"])
def test_what_cannot_be_read_is_a_fresh_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.lives"
    path.write_text(text)
    assert read_lives(path) is None
