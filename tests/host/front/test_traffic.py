"""How requests are shared over a model's versions: the shares, and keys that stay where they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from host.config.deployment import DeployedModel, Deployment
from host.front.catalog import Catalog
from host.front.traffic import NO_CANARY, SLOTS, Traffic, slot_of, traffic_of
from host.protocol.messages import Limits
from host.protocol.types import Signature, TensorSpec

TENSOR = TensorSpec("x", "FP64", (-1, 1))
SIGNATURE = Signature((TENSOR,), (TENSOR,))


def version(number: int, **more: Any) -> DeployedModel:
    return DeployedModel(
        name="m",
        version=str(number),
        processes=1,
        package=f"/m/{number}",
        platform="python",
        signature=SIGNATURE,
        limits=Limits(),
        **{"default": number == 1} | more,
    )


def shared(*percents: int) -> Traffic:
    canaries = [version(number, canary_percent=percent) for number, percent in enumerate(percents, 2)]
    traffic = traffic_of([version(1), *canaries])
    assert traffic is not None
    return traffic


PERCENTS = st.lists(st.integers(1, 99), min_size=1, max_size=5).filter(lambda percents: sum(percents) <= 99)


@given(PERCENTS)
def test_every_canary_owns_its_share_of_the_slots_exactly(percents: Sequence[int]) -> None:
    traffic = shared(*percents)
    owned = Counter(traffic.canary_of(slot) for slot in range(SLOTS))
    assert owned.pop(NO_CANARY) == SLOTS - sum(percents) * SLOTS // 100
    assert owned == {position: percent * SLOTS // 100 for position, percent in enumerate(percents)}


@given(st.lists(st.integers(1, 99), min_size=1, max_size=2), st.data())
def test_raising_a_share_moves_slots_from_the_default_alone(percents: list[int], data: st.DataObject) -> None:
    assume(sum(percents) < 99)
    position = data.draw(st.integers(0, len(percents) - 1))
    more = data.draw(st.integers(1, 99 - sum(percents)))
    before = shared(*percents)
    percents[position] += more
    after = shared(*percents)
    for slot in range(SLOTS):
        was, becomes = before.canary_of(slot), after.canary_of(slot)
        assert becomes == was or (was, becomes) == (NO_CANARY, position)


@given(st.text(min_size=1))
def test_a_key_has_one_slot_and_no_key_none(key: str) -> None:
    key = key.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    traffic = shared(5)
    assert traffic.sticky_slot(key) == slot_of("m", key)
    assert 0 <= slot_of("m", key) < SLOTS
    assert traffic.sticky_slot("") is traffic.sticky_slot(None) is None


def test_slots_of_keys_are_the_same_for_ever() -> None:
    """Another rule would move the keys of every host that is brought up to date."""
    assert [slot_of("churn", key) for key in ("1", "2", "user-4711", "\udce9")] == [714, 7640, 9320, 3511]


@pytest.mark.parametrize("form", ["{}", "user-{:08d}", "{:x}{:x}", "0000{}@example.org"])
def test_keys_that_resemble_each_other_are_spread_evenly(form: str) -> None:
    count = 50_000
    traffic = shared(5, 20)
    owners = Counter(traffic.canary_of(slot_of("m", form.format(number, number))) for number in range(count))
    assert owners[0] / count == pytest.approx(0.05, abs=0.005)
    assert owners[1] / count == pytest.approx(0.20, abs=0.01)


def test_not_the_same_users_are_first_for_every_model() -> None:
    keys = [str(number) for number in range(2000)]
    first = {key for key in keys if slot_of("a", key) < SLOTS // 10}
    second = {key for key in keys if slot_of("b", key) < SLOTS // 10}
    assert len(first & second) < len(first) / 4


def test_what_a_shadow_gets() -> None:
    traffic = traffic_of([version(1), version(2, shadow_percent=30)])
    assert traffic is not None
    assert (traffic.canaries, traffic.canary_of(0)) == ((), NO_CANARY)
    assert (traffic.copied_slots, shared(5).copied_slots) == (3000, 0)


def test_a_catalog_shares_only_paths_without_a_version() -> None:
    catalog = Catalog(Deployment((version(1), version(2, canary_percent=5), version(3, shadow_percent=100))))
    traffic = catalog.traffic("m")
    assert traffic is not None
    assert catalog.find("m") is traffic.default
    assert [one.version for one in traffic.canaries] == ["2"]
    assert traffic.shadow is catalog.find("m", "3")
    assert [catalog.traffic("m", number) for number in "123"] == [None] * 3
    assert catalog.traffic("other") is None


def test_versions_without_shares_need_no_choice() -> None:
    assert Catalog(Deployment((version(1), version(2)))).traffic("m") is None
