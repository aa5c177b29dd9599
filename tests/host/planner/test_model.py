"""What a fleet's file may say, and what is wrong with others."""

from __future__ import annotations

from typing import Any

import pytest

from host.planner.model import HOSTS_MAX, MODELS_MAX, Survive, read_fleet
from host.protocol.errors import ConfigError

MODEL = {"name": "churn", "requests_per_s": 1200, "cpu_us_per_row": 310.5, "memory": "512MiB"}
HOST = {"name": "h1.example.com", "cores": 16, "memory": "64GiB", "zone": "a", "tags": ["large"]}


def problems(**document: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_fleet("fleet.toml", {"models": [MODEL], "hosts": [HOST], **document})
    return "\n".join(caught.value.problems)


def test_reads_models_and_hosts() -> None:
    fleet = read_fleet("fleet.toml", {"survive": "zone", "models": [MODEL], "hosts": [HOST]})
    assert fleet.survive is Survive.ZONE
    assert fleet.models[0].work_cores == pytest.approx(0.3726)
    assert fleet.models[0].hosts_min == 2
    assert fleet.hosts[0].cores == 15
    assert fleet.hosts[0].memory_bytes == 63 << 30
    assert fleet.models[0].allows(fleet.hosts[0])


def test_hosts_have_what_most_have() -> None:
    fleet = read_fleet(
        "fleet.toml",
        {
            "models": [MODEL],
            "host_defaults": {"cores": 8, "memory": "16GiB", "reserved_cores": 2},
            "hosts": [{"name": "h1"}, {"name": "h2", "cores": 4}],
        },
    )
    assert [host.cores for host in fleet.hosts] == [6, 2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"requests_per_s": -1}, "models[0].requests_per_s: expected a number >= 0"),
        ({"requests_per_s": "many"}, 'models[0].requests_per_s: expected a number >= 0 and <= 1e+12, received "many"'),
        ({"requests_per_s": float("nan")}, "requests_per_s: expected a number"),
        ({"requests_per_s": True}, "requests_per_s: expected a number"),
        ({"requests_per_s": 1e12}, "requests_per_s: expected work for at most 35,000 cores"),
        ({"cpu_us_per_row": None}, "cpu_us_per_row: expected a number"),
        ({"memory": "big"}, 'memory: expected a size such as "512MiB", received "big"'),
        ({"cpus": 0}, "cpus: expected a whole number >= 1"),
        ({"hosts_min": 0}, "hosts_min: expected a whole number >= 1"),
        ({"zones_min": 0}, "zones_min: expected a whole number >= 1"),
        ({"only": ["gpu"]}, 'model churn: expected the name or a tag of a host, received "gpu"'),
        ({"name": "../churn"}, "models[0].name: expected the name of a model"),
        ({"colour": "red"}, "models[0].colour: unknown key"),
    ],
)
def test_names_what_is_wrong_with_a_model(changes: dict[str, Any], expected: str) -> None:
    assert expected in problems(models=[{**MODEL, **changes}])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "../../etc/passwd"}, "hosts[0].name: expected the name of a host"),
        ({"name": ".."}, "hosts[0].name: expected the name of a host"),
        ({"cores": 0.5}, "hosts[0].reserved_cores: expected at most its cores (0.5)"),
        ({"memory": None}, "hosts[0].memory: expected a size"),
        ({"memory": "1MiB"}, "hosts[0].reserved_memory: expected at most its memory"),
        ({"closed": "no"}, "hosts[0].closed: expected true or false"),
        ({"rack": 4}, "hosts[0].rack: unknown key"),
    ],
)
def test_names_what_is_wrong_with_a_host(changes: dict[str, Any], expected: str) -> None:
    assert expected in problems(hosts=[{**HOST, **changes}])


@pytest.mark.parametrize("memory", [None, "big", -1])
def test_what_is_wrong_with_memory_is_told_once(memory: object) -> None:
    assert len(problems(hosts=[{**HOST, "memory": memory}]).splitlines()) == 1


def test_names_are_there_once() -> None:
    assert 'models: expected every name once, received "churn"' in problems(models=[MODEL, MODEL])
    assert 'hosts: expected every name once, received "h1.example.com"' in problems(hosts=[HOST, HOST])


def test_there_is_something_to_plan() -> None:
    assert "models: expected at least one" in problems(models=[])
    assert "hosts: expected at least one" in problems(hosts=[])
    assert "hosts: expected tables" in problems(hosts=[3])
    assert 'survive: expected one of "none", "host", "zone"' in problems(survive="rack")
    assert "host_defaults: expected a table" in problems(host_defaults=3)


def test_sizes_are_bounded() -> None:
    assert f"models: expected at most {MODELS_MAX}" in problems(models=[MODEL] * (MODELS_MAX + 1))
    assert f"hosts: expected at most {HOSTS_MAX}" in problems(hosts=[HOST] * (HOSTS_MAX + 1))
    most = [{**HOST, "name": f"h{number}"} for number in range(HOSTS_MAX)]
    assert len(read_fleet("fleet.toml", {"models": [MODEL], "hosts": most}).hosts) == HOSTS_MAX
