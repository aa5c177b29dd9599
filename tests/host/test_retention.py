"""Which versions go: never a deployed one, never one of the newest, never one made by hand unless asked to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from host.retention import StoredVersion, unneeded_versions


def stored(*versions: str, model: str = "m", added: bool = True) -> list[StoredVersion]:
    return [StoredVersion(model, version, added) for version in versions]


def removed(versions: list[StoredVersion], kept: set[tuple[str, str]], newest: int, by_hand: bool = False) -> list[str]:
    return [one.version for one in unneeded_versions(versions, kept, newest, by_hand=by_hand)]


def test_the_newest_stay_in_natural_order() -> None:
    versions = stored("9", "10", "8", "1.10", "1.9")
    assert removed(versions, set(), 2) == ["1.9", "1.10", "8"]
    assert removed(versions, set(), 0) == ["1.9", "1.10", "8", "9", "10"]
    assert removed(versions, set(), 1) == ["1.9", "1.10", "8", "9"]
    assert removed(versions, set(), 4) == ["1.9"]
    assert removed(versions, set(), 5) == removed(versions, set(), 6) == []


def test_what_is_kept_stays_beside_the_newest() -> None:
    assert removed(stored("1", "2", "3", "4"), {("m", "1"), ("other", "2")}, 2) == ["2"]
    assert removed(stored("1", "2"), {("m", "1")}, 0) == ["2"]


def test_what_was_made_by_hand_stays_and_counts_among_the_newest() -> None:
    versions = [*stored("1", "3"), *stored("2", "4", added=False)]
    assert removed(versions, set(), 1) == ["1", "3"]
    assert removed(versions, set(), 1, by_hand=True) == ["1", "2", "3"]


def test_models_are_counted_apart() -> None:
    versions = [*stored("1", "2", model="b"), *stored("1", "2", "3", model="a")]
    gone = unneeded_versions(versions, set(), 1, by_hand=False)
    assert [(one.name, one.version) for one in gone] == [("a", "1"), ("a", "2"), ("b", "1")]


VERSION = st.tuples(st.sampled_from("ab"), st.integers(1, 12).map(str))


@given(st.dictionaries(VERSION, st.booleans()), st.sets(VERSION), st.integers(0, 4), st.booleans())
def test_nothing_that_is_needed_goes_and_the_rest_does(
    versions: dict[tuple[str, str], bool], kept: set[tuple[str, str]], newest: int, by_hand: bool
) -> None:
    everything = [StoredVersion(name, version, added) for (name, version), added in versions.items()]
    gone = unneeded_versions(everything, kept, newest, by_hand=by_hand)
    for one in everything:
        newer = [name for name, version in versions if name == one.name and int(version) > int(one.version)]
        stays = (one.name, one.version) in kept or len(newer) < newest or not (one.added or by_hand)
        assert (one in gone) is not stays
