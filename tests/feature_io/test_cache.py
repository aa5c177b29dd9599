"""The cache: bounded in bytes whatever happens, and not emptied by a scan."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_io.cache import Age, Cache, Entry, Packed, entry_bytes

ROW: Packed = (b"12345678", None, b"")


def put(cache: Cache, key: Hashable, row: Packed | None = ROW, now_s: float = 0.0) -> None:
    cache.put(key, row, fresh_until_s=now_s + 10, stale_until_s=now_s + 15, gone_at_s=now_s + 100)


def capacity(entries: int, row: Packed | None = ROW) -> int:
    return entries * entry_bytes((0, (0,)), row)


def key(number: int) -> Hashable:
    return (0, (number,))


@pytest.mark.parametrize(
    ("now_s", "age"),
    [(0, Age.FRESH), (9.99, Age.FRESH), (10, Age.STALE), (14.99, Age.STALE), (15, Age.IF_ERROR), (100, Age.GONE)],
)
def test_an_entry_ages(now_s: float, age: Age) -> None:
    cache = Cache(capacity(1))
    put(cache, key(1))
    entry = cache.get(key(1))
    assert entry is not None
    assert entry.age(now_s) is age


@pytest.mark.parametrize("entries", [0, 1, 2, 100])
def test_capacity_is_kept_at_its_edges(entries: int) -> None:
    cache = Cache(capacity(entries))
    for number in range(1, entries + 2):
        put(cache, key(number))
    assert len(cache) == entries
    assert cache.size_bytes == len(cache) * entry_bytes(key(1), ROW)
    assert cache.evictions == (1 if entries else 0)


def test_a_row_larger_than_the_cache_is_not_kept_and_forgets_the_old_one() -> None:
    cache = Cache(capacity(2))
    put(cache, key(1))
    put(cache, key(1), (b"x" * 100_000,))
    assert cache.get(key(1)) is None
    assert cache.size_bytes == 0


def test_that_there_is_no_row_is_remembered_too() -> None:
    cache = Cache(capacity(2))
    put(cache, key(1), None)
    entry = cache.get(key(1))
    assert entry is not None
    assert entry.row is None


def test_a_scan_does_not_displace_what_is_asked_for_again() -> None:
    cache = Cache(capacity(1000))
    popular = range(500)
    for _ in range(3):
        for number in popular:
            if cache.get(key(number)) is None:
                put(cache, key(number))
    for number in range(10_000, 60_000):  # fifty times the cache, each once
        put(cache, key(number))
    kept = sum(cache.get(key(number)) is not None for number in popular)
    assert kept == len(popular)


def test_what_comes_back_soon_after_its_eviction_goes_to_the_main_queue() -> None:
    cache = Cache(capacity(10))
    for number in range(11):
        put(cache, key(number))
    evicted = next(number for number in range(11) if cache.get(key(number)) is None)
    put(cache, key(evicted))
    entry = cache.get(key(evicted))
    assert entry is not None
    assert entry.in_main


def test_removing_many_keeps_no_dead_entries_for_long() -> None:
    cache = Cache(capacity(100_000))
    for number in range(20_000):
        put(cache, key(number))
        cache.remove(key(number))
    queued = [entry for entry in (*cache._small, *cache._main) if isinstance(entry, Entry)]
    assert len(queued) <= 1025
    assert (len(cache), cache.size_bytes) == (0, 0)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["put", "get", "remove"]), st.integers(0, 30), st.integers(0, 400)), max_size=200
)


@settings(max_examples=200)
@given(ACTIONS, st.integers(0, 8000))
def test_bytes_are_bounded_and_counted_whatever_happens(
    actions: list[tuple[str, int, int]], capacity_bytes: int
) -> None:
    cache = Cache(capacity_bytes)
    model: dict[Hashable, Packed] = {}
    for action, number, size in actions:
        if action == "put":
            model[key(number)] = (b"x" * size,)
            put(cache, key(number), model[key(number)])
        elif action == "remove":
            cache.remove(key(number))
            model.pop(key(number), None)
        else:
            entry = cache.get(key(number))
            assert entry is None or entry.row == model[key(number)]
        entries = [entry for one in cache if (entry := cache._entries[one])]
        assert cache.size_bytes == sum(entry.size_bytes for entry in entries) <= capacity_bytes
        assert cache._small_bytes == sum(entry.size_bytes for entry in entries if not entry.in_main)
        alive = [entry.key for entry in (*cache._small, *cache._main) if not entry.dead]
        assert sorted(map(repr, alive)) == sorted(map(repr, cache))
