"""When a store is left alone, and when it is tried again."""

from __future__ import annotations

import pytest

from feature_io.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker
from host.protocol.counters import STORE


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.allows(now_s)
        breaker.failed(now_s)
    return breaker


@pytest.mark.parametrize("failures", [0, 1, FAILURES - 1])
def test_a_few_failures_do_not_open_it(failures: int) -> None:
    breaker = Breaker()
    for _ in range(failures):
        breaker.failed(0.0)
    assert not breaker.is_open
    assert breaker.allows(0.0)


def test_whether_it_is_open_is_there_for_all_to_see() -> None:
    breaker = opened()
    assert (breaker.words[STORE.at("open")], breaker.words[STORE.at("openings")]) == (1, 1)
    assert breaker.allows(FIRST_PAUSE_S)
    breaker.failed(FIRST_PAUSE_S)
    assert (breaker.words[STORE.at("open")], breaker.words[STORE.at("openings")]) == (1, 1)
    breaker.succeeded()
    assert (breaker.words[STORE.at("open")], breaker.words[STORE.at("openings")]) == (0, 1)


def test_only_failures_in_a_row_count() -> None:
    breaker = Breaker()
    for _ in range(10 * FAILURES):
        breaker.failed(0.0)
        breaker.succeeded()
    assert not breaker.is_open


def test_open_lets_nothing_through_until_the_pause_is_over_and_then_one() -> None:
    breaker = opened()
    assert breaker.is_open
    assert not breaker.allows(FIRST_PAUSE_S * 0.99)
    assert breaker.allows(FIRST_PAUSE_S)
    assert not breaker.allows(FIRST_PAUSE_S)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.allows(FIRST_PAUSE_S)


def test_a_try_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now_s, pauses = opened(), 0.0, [FIRST_PAUSE_S]
    for _ in range(10):
        now_s = breaker.open_until_s
        assert breaker.allows(now_s)
        breaker.failed(now_s)
        pauses.append(breaker.open_until_s - now_s)
    assert pauses[:4] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S
    assert breaker.openings == 1


def test_reads_that_were_under_way_do_not_prolong_the_pause() -> None:
    breaker = opened()
    until_s = breaker.open_until_s
    for _ in range(100):
        breaker.failed(0.1)
    assert breaker.open_until_s == until_s


def test_a_try_that_was_given_up_leaves_it_to_the_next() -> None:
    breaker = opened()
    assert breaker.allows(FIRST_PAUSE_S)
    breaker.gave_up()
    assert breaker.allows(FIRST_PAUSE_S)
