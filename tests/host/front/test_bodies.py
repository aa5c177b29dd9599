"""The budget of bodies: a limit for all, a share for each model."""

from __future__ import annotations

import pytest

from host.front.bodies import MODEL_SHARE, BodyBudget
from host.protocol.errors import Overloaded

LIMIT = 4 * MODEL_SHARE


def test_a_model_may_hold_its_share_and_no_byte_more() -> None:
    budget = BodyBudget(LIMIT)
    budget.take(0, "a")
    budget.take(4, "a")
    with pytest.raises(Overloaded, match=r"for this model 4 bytes .* 1 more would exceed its limit of 4"):
        budget.take(1, "a")
    budget.take(4, "b")
    budget.give_back(1, "a")
    budget.take(1, "a")
    assert budget.held_bytes == 8


def test_all_together_may_hold_the_limit_and_no_byte_more() -> None:
    budget = BodyBudget(LIMIT)
    for owner in range(MODEL_SHARE):
        budget.take(4, owner)
    with pytest.raises(Overloaded, match=f"holds {LIMIT} bytes"):
        budget.take(1, "another")
    assert budget.held_bytes == LIMIT


def test_nothing_is_remembered_of_who_gave_all_back() -> None:
    budget = BodyBudget(LIMIT)
    budget.take(3, "a")
    budget.give_back(3, "a")
    budget.give_back(0, "never seen")
    assert budget.held_bytes == 0
    assert budget._held_by == {}
