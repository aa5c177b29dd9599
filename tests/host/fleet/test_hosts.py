"""Variables and facts of a host, and plain values out of a framework's."""

from __future__ import annotations

from typing import Any

import pytest

from host.fleet.hosts import FRONTS, PORT, FleetHost, read_fleet_host
from host.fleet.plain import DEPTH_MAX, plain

FACTS = {"memtotal_mb": 4096}


def read(variables: dict[str, Any], facts: dict[str, Any]) -> tuple[FleetHost, list[str]]:
    """A host called h1, and what is wrong with it."""
    problems: list[str] = []
    return read_fleet_host("h1", variables, facts, problems), problems


def test_without_variables_and_facts_a_host_is_called_by_its_name() -> None:
    assert read({}, {}) == (FleetHost(name="h1", address="h1", port=PORT, fronts=FRONTS), [])


@pytest.mark.parametrize(
    ("variables", "facts", "address"),
    [
        ({"modelhost_address": "10.0.0.9", "ansible_host": "192.0.2.1"}, FACTS, "10.0.0.9"),
        ({"ansible_host": "192.0.2.1"}, FACTS, "192.0.2.1"),
        ({"modelhost_address": "0.0.0.0", "ansible_host": "192.0.2.1"}, FACTS, "192.0.2.1"),  # noqa: S104
        ({"modelhost_address": "::"}, {}, "h1"),
    ],
)
def test_where_a_host_is_reached(variables: dict[str, Any], facts: dict[str, Any], address: str) -> None:
    host, _ = read(variables, facts)
    assert host.address == address


@pytest.mark.parametrize(
    ("said", "facts", "expected"),
    [
        ("2GiB", FACTS, (2 << 30, "modelhost_host_memory")),
        (1 << 30, {}, (1 << 30, "modelhost_host_memory")),
        (None, FACTS, (4 << 30, "the fact memtotal_mb")),
        ("", FACTS, (4 << 30, "the fact memtotal_mb")),
        (None, {}, (None, "")),
    ],
)
def test_how_much_memory_it_has(said: Any, facts: dict[str, Any], expected: tuple[int | None, str]) -> None:
    host, _ = read({"modelhost_host_memory": said}, facts)
    assert (host.memory_bytes, host.memory_source) == expected


@pytest.mark.parametrize(
    ("port", "fits"), [(0, False), (1, True), ("8080", True), (65535, True), (65536, False), (True, False)]
)
def test_ports(port: Any, fits: bool) -> None:
    host, problems = read({"modelhost_port": port}, {})
    assert host.port == (int(port) if fits else PORT)
    expected = "host h1: modelhost_port: expected a whole number >= 1 and <= 65535, received "
    assert [problem.startswith(expected) for problem in problems] == ([] if fits else [True])


def test_every_problem_of_a_host_at_once() -> None:
    host, problems = read(
        {
            "modelhost_port": "http",
            "modelhost_zone": "a\nb",
            "modelhost_fronts": 65,
            "modelhost_host_memory": "lots",
            "modelhost_address": 7,
        },
        {},
    )
    assert host == FleetHost(name="h1", address="h1", memory_source="modelhost_host_memory")
    assert [problem.split(": ")[1] for problem in problems] == [
        "modelhost_address",
        "modelhost_host_memory",
        "modelhost_port",
        "modelhost_zone",
        "modelhost_fronts",
    ]


class Text(str):
    """A text that carries something."""

    __slots__ = ("tag",)


class Number(int):
    """A number that carries something."""


def test_plain_values_are_of_builtin_types() -> None:
    made = plain({Text("a"): [Number(1), Text("x"), None, True, 1.5, (Text("y"),)]})
    assert made == {"a": [1, "x", None, True, 1.5, ["y"]]}
    assert type(next(iter(made))) is str
    assert [type(one) for one in made["a"]] == [int, str, type(None), bool, float, list]


@pytest.mark.parametrize("excess", [0, 1])
def test_so_deep_and_no_deeper(excess: int) -> None:
    value: Any = 1
    for _ in range(DEPTH_MAX + excess):
        value = [value]
    if excess:
        with pytest.raises(ValueError, match=f"at most {DEPTH_MAX} deep"):
            plain(value)
    else:
        assert plain(value) == value
