"""Batches: what may be joined, in which order, and how large."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from models.batching import Backlog


@dataclass(frozen=True)
class Waiting:
    name: str
    rows: int = 1
    join_key: Hashable = True


def backlog(max_batch_rows: int, *calls: tuple[int, Waiting]) -> Backlog[Waiting]:
    made: Backlog[Waiting] = Backlog(max_batch_rows)
    for connection, call in calls:
        made.add(connection, [call])
    return made


def names(batch: list[Waiting]) -> str:
    return "".join(call.name for call in batch)


def test_everything_that_waits_is_one_batch() -> None:
    made = backlog(8, (1, Waiting("a")), (1, Waiting("b")), (2, Waiting("c")))
    assert sorted(names(made.take())) == ["a", "b", "c"]
    assert not made
    assert made.rows == 0


def test_batch_holds_its_limit_of_rows_exactly() -> None:
    made = backlog(4, (1, Waiting("a", 3)), (1, Waiting("b", 1)), (1, Waiting("c", 1)))
    assert names(made.take()) == "ab"
    assert names(made.take()) == "c"


def test_call_that_does_not_fit_keeps_its_connections_order() -> None:
    made = backlog(4, (1, Waiting("a", 3)), (1, Waiting("b", 2)), (1, Waiting("c", 1)), (2, Waiting("d", 1)))
    assert names(made.take()) == "ad"
    assert names(made.take()) == "bc"


def test_connections_take_turns() -> None:
    flood = [(1, Waiting(f"{number}")) for number in range(6)]
    made = backlog(2, *flood, (2, Waiting("x")), (3, Waiting("y")))
    assert names(made.take()) == "0x"
    assert "y" in names(made.take())


def test_calls_of_other_shapes_are_not_joined() -> None:
    made = backlog(
        8, (1, Waiting("a", join_key=(3,))), (1, Waiting("b", join_key=(4,))), (2, Waiting("c", join_key=(3,)))
    )
    assert names(made.take()) == "ac"
    assert names(made.take()) == "b"


def test_call_that_joins_nobody_runs_alone() -> None:
    made = backlog(8, (1, Waiting("a", join_key=None)), (1, Waiting("b")), (2, Waiting("c", join_key=None)))
    assert [names(made.take()) for _ in range(3)] == ["a", "c", "b"]


def test_calls_of_a_lost_connection_are_forgotten() -> None:
    made = backlog(8, (1, Waiting("a", 3)), (2, Waiting("b")))
    made.drop(1)
    made.drop(99)
    assert made.rows == 1
    assert names(made.take()) == "b"


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.sampled_from([True, "other", None])), max_size=30),
)
def test_every_call_runs_once_in_its_connections_order(max_rows: int, calls: list[tuple[int, int, Hashable]]) -> None:
    made: Backlog[Waiting] = Backlog(max_rows)
    arrived: dict[int, list[str]] = {}
    for number, (connection, rows, key) in enumerate(calls):
        name = f"{connection}.{number}"
        arrived.setdefault(connection, []).append(name)
        made.add(connection, [Waiting(name, min(rows, max_rows), key)])
    taken: dict[int, list[str]] = {}
    while made:
        batch = made.take()
        assert batch
        assert sum(call.rows for call in batch) <= max_rows
        assert len({call.join_key for call in batch}) == 1
        assert batch[0].join_key is not None or len(batch) == 1
        for call in batch:
            taken.setdefault(int(call.name.split(".")[0]), []).append(call.name)
    assert taken == arrived
    assert made.rows == 0
