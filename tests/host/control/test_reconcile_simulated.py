"""Reconciling over and over on a small host, whatever happens to it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st
from reconciling import PACE, STARTUP_S, V1, V2, version
from small_host import Host

from host.control.compare import plans_of
from host.control.reconcile import Pace, Route


# -- everything that may happen -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Edit:
    """Another desired state, by model and version: processes."""

    wanted: dict[tuple[str, str], int]


@dataclass(frozen=True)
class Happens:
    """Something else; `which`: of the processes that run, or of the actions of the next look."""

    what: str
    which: int = 0


VERSIONS = st.tuples(st.sampled_from("ab"), st.sampled_from("123"))
EDITS = st.builds(Edit, st.dictionaries(VERSIONS, st.integers(1, 3), max_size=4))
HAPPENS = st.builds(
    Happens,
    st.sampled_from(
        [
            *("retry", "drain", "control dies", "supervisord dies", "a process dies", "an operator stops"),
            *("restart", "restart in place"),
        ]
    ),
    st.integers(0, 7),
)
STORIES = st.lists(st.tuples(EDITS | HAPPENS, st.integers(0, 8)), max_size=12)
DOOMED = st.frozensets(VERSIONS.map(lambda one: f"{one[0]}.v{one[1]}"), max_size=2)


def happen(host: Host, event: Edit | Happens) -> None:
    match event:
        case Edit(wanted):
            host.edit([version(number, many, name=name, startup_s=120) for (name, number), many in wanted.items()])
        case Happens("retry"):
            host.edit(host.desired.models)
        case Happens("drain"):
            host.edit(host.desired.models, draining=not host.desired.draining)
        case Happens("control dies", which):
            host.look(dies_at=which)
        case Happens("supervisord dies"):
            host.supervisord_dies()
        case Happens(what, which):
            alive = host.alive()
            if alive:
                program = alive[which % len(alive)]
                if what.startswith("restart"):
                    host.restart(program, in_place=what.endswith("in place"))
                else:
                    (host.kill if what == "a process dies" else host.stop_by_hand)(program)


def told(
    story: Sequence[tuple[Edit | Happens, int]], doomed: frozenset[str], chance: random.Random, starting: int
) -> Host:
    """Give a host that has been through all of it, and has come to rest."""
    host = Host(chance, Pace(starting_max=starting, drain_s=6.0), doomed)
    for event, looks in story:
        happen(host, event)
        for _ in range(looks):
            if host.look():
                host.look()
            host.tick(chance.choice((0.01, 0.5, 1.0)))
    host.settle()
    return host


STOPPED_BY_HAND_MEANWHILE = [
    (Edit({("a", "2"): 1, ("a", "3"): 1}), 3),
    (Edit({("a", "1"): 1, ("a", "2"): 1}), 1),
    (Happens("an operator stops", 1), 0),
]


@given(story=STORIES, doomed=DOOMED, seed=st.integers(0, 2**32), starting=st.integers(2, 4))
@example(story=STOPPED_BY_HAND_MEANWHILE, doomed=frozenset(), seed=0, starting=2)
@settings(max_examples=200)
def test_whatever_happens_no_step_is_wrong_and_the_host_becomes_what_it_should_be(
    story: list[tuple[Edit | Happens, int]], doomed: frozenset[str], seed: int, starting: int
) -> None:
    host = told(story, doomed, random.Random(seed), starting)  # noqa: S311 - drawn by hypothesis
    host.check_converged()


@given(story=STORIES, doomed=DOOMED, seed=st.integers(0, 2**32))
@settings(max_examples=200)
def test_a_host_at_rest_says_so(story: list[tuple[Edit | Happens, int]], doomed: frozenset[str], seed: int) -> None:
    host = told(story, doomed, random.Random(seed), 2)  # noqa: S311 - drawn by hypothesis
    assert plans_of(host.desired, host.routed, host.memory).settled
    assert host.memory.unrouted == {}


# -- what has happened once -----------------------------------------------------------------------------------
def test_a_version_that_is_routed_after_all_is_not_remembered_as_unrouted() -> None:
    """Control died between remembering a shift and writing it, and the change was taken back: it looks 20 times/s."""
    host = Host(random.Random(0), pace=PACE)  # noqa: S311 - the same each time
    host.edit([V1])
    host.settle()
    host.edit([V2])
    while not any(isinstance(action, Route) for action in host.next_actions()):
        host.look()
        host.tick()
    host.look(dies_at=0)
    assert host.routed.models == (V1,)
    host.edit([V1])
    host.settle()
    assert host.memory.unrouted == {}


def test_a_version_that_waits_for_its_turn_is_not_given_up() -> None:
    """Two at a time take their whole `startup_s`: the last one begins after its own limit."""
    models = [version("1", 2, name=name) for name in "abcde"]
    host = Host(random.Random(0), pace=PACE, loading=(STARTUP_S - 1, STARTUP_S - 1))  # noqa: S311 - the same each time
    host.edit(models)
    for _ in range(5 * STARTUP_S):
        host.tick()
        host.look()
    assert host.memory.failed == {}
    assert host.routed.models == tuple(models)
