"""The checker finds what is wrong, each rule by itself."""

from __future__ import annotations

import math

import pytest
from fleets import MIB, fitting_fleets, make_fleet, make_host, make_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from host.planner.check import violations
from host.planner.model import MOST, Fleet, Placement, PlannedModel, Survive
from host.planner.occupancy import Occupancy
from host.planner.plan import make_plan

HOSTS = [make_host("h1", zone="a"), make_host("h2", zone="b"), make_host("h3", zone="b", tags=frozenset({"large"}))]


def texts(fleet: Fleet, placement: Placement) -> list[str]:
    return [str(violation) for violation in violations(fleet, placement)]


def test_nothing_is_wrong() -> None:
    fleet = make_fleet([make_model("churn", 0.9)], HOSTS)
    assert texts(fleet, {"churn": {"h1": 1, "h2": 1}}) == []


@pytest.mark.parametrize(
    ("model", "counts", "expected"),
    [
        (make_model("churn"), {}, "model churn: processes: expected at least 1, received 0"),
        (make_model("churn"), {"h1": 2}, "model churn: hosts: expected at least 2, received 1"),
        (make_model("churn"), {"h2": 1, "h3": 1}, "model churn: zones: expected at least 2, received 1"),
        (
            make_model("churn", only=frozenset({"large"}), zones_min=1),
            {"h2": 1, "h3": 1},
            "model churn, host h2: host: expected one that `only` and `never` allow, received h2",
        ),
        (
            make_model("churn", never=frozenset({"h1"}), zones_min=1),
            {"h1": 1, "h3": 1},
            "model churn, host h1: host: expected one that `only` and `never` allow, received h1",
        ),
        (make_model("churn", cpus=9), {"h1": 1, "h2": 1}, "model churn, host h1: cpus: expected at most 8, received 9"),
        (
            make_model("churn", memory_bytes=16385 * MIB),
            {"h1": 1, "h2": 1},
            "host h1: memory: expected at most 17179869184 bytes, received 17180917760 bytes",
        ),
        (
            make_model("churn", 1.7),
            {"h1": 1, "h2": 1},
            "model churn: processes busy: expected at most 80%, received 85.0%",
        ),
        (
            make_model("churn", 0.91),
            {"h1": 1, "h2": 1},
            "model churn when host h1 is lost: processes busy: expected at most 90%, received 91.0%",
        ),
        (make_model("churn"), {"h9": 1}, "model churn, host h9: host: expected one of the fleet, received another"),
        (make_model("churn"), {"h1": 0}, "model churn, host h1: processes: expected 1 to 256, received 0"),
        (make_model("churn"), {"h1": 257}, "model churn, host h1: processes: expected 1 to 256, received 257"),
    ],
)  # fmt: skip
def test_names_the_rule(model: object, counts: dict[str, int], expected: str) -> None:
    assert expected in texts(make_fleet([model], HOSTS), {"churn": counts})  # type: ignore[list-item]


def test_a_model_that_nobody_knows() -> None:
    fleet = make_fleet([make_model("churn")], HOSTS)
    assert texts(fleet, {"digits": {"h1": 1}}) == ["model digits: model: expected one of the fleet, received another"]


def test_hosts_carry_what_another_one_carried() -> None:
    """Eight processes on two hosts keep 6 of 8 cores busy, on each; with one lost the other has 12 to carry."""
    models = [make_model(f"m{number}", 3.0, cpus=4) for number in range(4)]
    placement = {model.name: {"h1": 1, "h2": 1} for model in models}
    found = texts(make_fleet(models, HOSTS), placement)
    assert "host h2 when host h1 is lost: cores busy: expected at most 7.200, received 12.000" in found
    assert not [line for line in found if "when" not in line]
    assert texts(make_fleet(models, HOSTS, Survive.NONE), placement) == []


def test_a_zone_takes_all_of_its_hosts_along() -> None:
    model = make_model("churn", 1.7)
    placement = {"churn": {"h1": 1, "h2": 1, "h3": 1}}
    assert texts(make_fleet([model], HOSTS), placement) == []
    assert texts(make_fleet([model], HOSTS, Survive.ZONE), placement) == [
        "model churn when zone b is lost: processes busy: expected at most 90%, received 170.0%"
    ]


# -- a packer that is broken on purpose ------------------------------------------------------------------------------
ON_TWO = {"h1": 1, "h2": 1}
MANY = [make_model(f"m{number}", 0.8) for number in range(20)]
BROKEN = [
    (("_rule",), [make_model("here", only=frozenset({"large"}), zones_min=1, hosts_min=1)], {"h1": 2}, "host"),
    (("_rule",), [make_model("churn", 0.8)], {"h2": 1, "h3": 1}, "zones"),
    (("_room",), [make_model(f"m{number}", memory_bytes=6000 * MIB) for number in range(3)], ON_TWO, "memory"),
    (("_room", "_loss_here", "_loss_elsewhere"), MANY, ON_TWO, "cores busy"),
    (("_spread",), [make_model("churn", 4.0)], {"h1": 3, "h2": 3}, "processes busy"),
    (("_loss_here", "_loss_elsewhere"), MANY[:10], ON_TWO, "cores busy"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "models", "present", "what"), BROKEN)
def test_finds_what_a_packer_does_wrong_that_leaves_a_rule_out(
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[str, ...],
    models: list[PlannedModel],
    present: dict[str, int],
    what: str,
) -> None:
    """The whole packer makes something that holds of what is there; without a part it keeps it, and that is found."""
    fleet = make_fleet(models, [*HOSTS, make_host("h4", zone="a", tags=frozenset({"large"}))])
    placement = {model.name: present for model in models}
    plan = make_plan(fleet, placement)
    assert not plan.unplaced
    assert violations(fleet, plan.placement) == []
    for part in parts:
        monkeypatch.setattr(Occupancy, part, lambda *given: None)
    plan = make_plan(fleet, placement)
    assert what in {violation.what for violation in violations(fleet, plan.placement)}


@settings(deadline=None, max_examples=100)
@given(st.data(), fitting_fleets(models_max=5, hosts_max=4))
def test_finds_each_change_that_breaks_a_plan(data: st.DataObject, fleet: Fleet) -> None:
    plan = make_plan(fleet)
    assume(not plan.unplaced)
    model = data.draw(st.sampled_from(fleet.models))
    host = data.draw(st.sampled_from(fleet.hosts))
    fits = plan.placement[model.name]
    total = sum(fits.values())

    def finds(counts: dict[str, int]) -> bool:
        return bool(violations(fleet, {**plan.placement, model.name: counts}))

    assert finds({})
    full = 1 + host.memory_bytes // model.memory_bytes
    if full <= 256:
        assert finds({**fits, host.name: full})
    if host.closed:
        assert finds({**fits, host.name: 1})
    if fleet.survive is not Survive.NONE:
        assert finds({host.name: total})
    # As many as would be just too few to carry the work, spread as they were.
    few = math.floor(model.work_cores / (MOST.busy * model.cpus) - 1e-6)
    if 0 < few < total:
        left = dict(fits)
        for name in list(left):
            taken = min(left[name], max(0, sum(left.values()) - few))
            left[name] -= taken
        assert finds({name: count for name, count in left.items() if count})
