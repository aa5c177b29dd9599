"""A whole fleet: what each host gets, and every problem of all of them at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inventories import Shelf, fleet_of, inventory, layer, package, problems_of

from host.config.deployment import load_deployment
from host.config.deployment_file import read_entries
from host.fleet.evaluation import PROBLEMS_MAX, grouped
from host.planner.model import HOSTS_MAX

GIB = 1 << 30
MIB = 1 << 20


def test_what_playbooks_get() -> None:
    fleet = fleet_of(
        inventory(
            layer("group all", "h1 h2", churn={"version": "3", "processes": 2}),
            layer("host h1", "h1", churn={"processes": 4}, churn__4={"canary_percent": 5}),
            h1={"zone": "a", "port": 8000},
        )
    )
    assert fleet["hosts"]["h1"] == {
        "address": "h1",
        "port": 8000,
        "zone": "a",
        "models": {
            "churn": {"name": "churn", "version": "3", "processes": 4, "default": True},
            "churn@4": {"name": "churn", "version": "4", "canary_percent": 5, "default": False, "processes": 1},
        },
        "packages": [
            {
                "file": f"/packages/churn-{version}.tar",
                "name": "churn",
                "version": version,
                "sha256": "0" * 64,
                "directory": f"churn/{version}",
            }
            for version in ("3", "4")
        ],
        "deployment": "# What runs on this host. Change it, then: modelhost apply\n\n"
        '[[models]]\nname = "churn"\nversion = "3"\nprocesses = 4\n\n'
        '[[models]]\nname = "churn"\nversion = "4"\ncanary_percent = 5\n',
    }
    assert fleet["models"] == {
        "churn": {
            "versions": ["3", "4"],
            "default": "3",
            "hosts": {"h1": {"processes": 4, "version": "3"}, "h2": {"processes": 2, "version": "3"}},
            "retry": True,
            "timeout_ms": 1000,
        }
    }
    assert fleet["notes"] == []


def test_the_package_says_what_the_inventory_does_not() -> None:
    shelf = Shelf()
    shelf.contents["slow", "1"] = package(
        "slow", "1", limits={"retry": False, "timeout_ms": 9000}, scale={"processes": 3}
    )
    fleet = fleet_of(inventory(layer("host h1", "h1", slow={"version": "1"})), shelf)
    assert fleet["models"]["slow"]["hosts"] == {"h1": {"processes": 3, "version": "1"}}
    assert fleet["models"]["slow"]["retry"] is False
    assert fleet["models"]["slow"]["timeout_ms"] == 9000


@pytest.mark.parametrize(
    ("scale", "said", "counts"),
    [
        ({"processes": 3}, {}, {"processes": 3}),
        ({"min": 2, "max": 5}, {}, {"min_processes": 2, "max_processes": 5}),
        ({"min": 2, "max": 5}, {"max_processes": 9}, {"min_processes": 2, "max_processes": 9}),
        ({"min": 2, "max": 5}, {"processes": 4}, {"processes": 4}),
        ({"processes": 3}, {"min_processes": 0, "max_processes": 2}, {"min_processes": 0, "max_processes": 2}),
        (None, {}, {}),
        (None, {"processes": 2}, {"processes": 2}),
        (None, {"min_processes": 0, "max_processes": 2}, {"min_processes": 0, "max_processes": 2}),
    ],
)
def test_what_is_computed_of_a_model_stands_in_the_document_of_its_host(
    scale: dict[str, int] | None, said: dict[str, int], counts: dict[str, int]
) -> None:
    shelf = Shelf()
    shelf.contents["slow", "1"] = None if scale is None else package("slow", "1", scale=scale)
    fleet = fleet_of(inventory(layer("host h1", "h1", slow={"version": "1", **said})), shelf)
    entry = fleet["hosts"]["h1"]["models"]["slow"]
    assert entry == {"name": "slow", "version": "1", "default": True, **counts}


def test_what_nobody_has_looked_into_is_not_repeated_and_not_counted() -> None:
    shelf = Shelf()
    shelf.contents["churn", "3"] = None
    fleet = fleet_of(inventory(layer("host h1", "h1", churn={"version": "3"}), h1={"memory_bytes": GIB}), shelf)
    assert fleet["models"]["churn"]["retry"] is False
    assert fleet["models"]["churn"]["timeout_ms"] is None
    assert fleet["hosts"]["h1"]["packages"][0]["uri"] == "/packages/churn-3.tar"
    (note,) = fleet["notes"]
    assert note.startswith("churn version 3: its package is not here")


def test_the_default_of_most_hosts_is_the_models() -> None:
    fleet = fleet_of(
        inventory(
            layer("group all", "h1 h2 h3", churn={"version": "3"}),
            layer("host h1", "h1", churn={"version": "2"}),
        )
    )
    assert fleet["models"]["churn"]["default"] == "3"
    assert fleet["models"]["churn"]["hosts"]["h1"] == {"processes": 1, "version": "2"}


# -- second versions --------------------------------------------------------------------------------------
def test_the_entry_without_at_is_the_default_however_high_the_other_is() -> None:
    fleet = fleet_of(inventory(layer("host h1", "h1", churn={"version": "3"}, churn__4={})))
    defaults = {key: entry["default"] for key, entry in fleet["hosts"]["h1"]["models"].items()}
    assert defaults == {"churn": True, "churn@4": False}
    assert fleet["models"]["churn"]["default"] == "3"


def test_a_second_version_may_be_said_to_be_the_default() -> None:
    fleet = fleet_of(inventory(layer("host h1", "h1", churn={"version": "4"}, churn__3={"default": True})))
    assert fleet["models"]["churn"]["default"] == "3"


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ({"churn__4": {}}, "modelhost_models.churn@4: expected churn there too, beside which it runs, found none"),
        ({"churn": {"version": "3", "default": True}, "churn__4": {"default": True}}, "received it for 3, 4"),
        ({"churn": {"version": "3"}, "churn__3": {}}, "models: churn version 3: expected once, received twice"),
        (
            {"churn": {"version": "2"}, "churn__3": {"canary_percent": 50}, "churn__4": {"canary_percent": 50}},
            "expected canary_percent of at most 99 for all versions together, received 50 + 50",
        ),
        ({"churn": {"version": "3", "default": False}}, "expected one version that is the default"),
    ],
)
def test_what_contradicts_itself_on_a_host(models: dict[str, Any], expected: str) -> None:
    problems = problems_of(inventory(layer("group all", "h1 h2", **models)))
    assert problems[0].startswith("hosts h1, h2: ")
    assert expected in problems[0]
    assert {problem.partition(":")[0] for problem in problems} == {"hosts h1, h2"}


# -- problems ---------------------------------------------------------------------------------------------
def test_every_problem_at_once_with_who_said_it() -> None:
    problems = problems_of(
        inventory(
            layer("group all", "h1 h2", chrun={"version": "3"}, digits={"version": "9", "processes": 257}),
            layer("host h2", "h2", digits={"judge": {"windows": 1}}),
        )
    )
    assert problems == [
        "group all (group/all.yml:2): modelhost_models.chrun: expected a model of which there is an archive in "
        '/packages, received "chrun"; did you mean "churn"?',
        "group all (group/all.yml:3): modelhost_models.digits.version: expected a version of which there is an archive "
        'in /packages: 1, received "9"',
        "group all (group/all.yml:3): modelhost_models.digits.processes: expected a whole number >= 1 and <= 256, "
        "received 257",
        "host h2 (host/h2.yml:2): modelhost_models.digits.judge.window_s: expected a whole number >= 1 and <= 86400, "
        "received nothing",
        "host h2 (host/h2.yml:2): modelhost_models.digits.judge.windows: unknown key; expected one of window_s, "
        "min_requests, max_failed_percent, max_slowdown, promote",
        "host h2 (host/h2.yml:2): modelhost_models.digits.judge: expected it with canary_percent, received it alone",
    ]


def test_a_version_that_nobody_says() -> None:
    (problem,) = problems_of(inventory(layer("host h1", "h1", churn={"processes": 2})))
    assert problem == (
        'host h1: modelhost_models.churn.version: expected a version such as "3", found none; '
        "the model is said by host h1 (host/h1.yml:2)"
    )


@pytest.mark.parametrize(("processes", "fits"), [(0, False), (1, True), (256, True), (257, False)])
def test_processes_within_bounds(processes: int, fits: bool) -> None:
    read = inventory(layer("host h1", "h1", churn={"version": "3", "processes": processes}))
    assert (not problems_of(read)) is fits


@pytest.mark.parametrize(("spare_bytes", "fits"), [(-1, False), (0, True), (1, True)])
def test_memory_of_all_processes(spare_bytes: int, fits: bool) -> None:
    """Two processes of 1 GiB by the inventory, one of 512 MiB by its package, three fronts and control."""
    needed = 2 * GIB + 512 * MIB + 3 * 256 * MIB + 64 * MIB
    host = {"memory_bytes": needed + spare_bytes, "memory_source": "modelhost_host_memory", "fronts": 3}
    churn = {"version": "3", "processes": 2, "memory": "1GiB"}
    problems = problems_of(inventory(layer("host h1", "h1", churn=churn, digits={"version": "1"}), h1=host))
    assert (not problems) is fits
    if not fits:
        assert problems == [
            "host h1: memory: expected limits of at most 3,392 MiB in all (modelhost_host_memory), received "
            "churn 3 2 x 1,024 MiB + digits 1 1 x 512 MiB + front 3 x 256 MiB + control 1 x 64 MiB = 3,392 MiB"
        ]


def test_memory_is_not_checked_where_it_is_not_known() -> None:
    assert not problems_of(inventory(layer("host h1", "h1", churn={"version": "3", "memory": "900GiB"})))


def test_so_many_hosts_and_no_more() -> None:
    names = [f"h{number}" for number in range(HOSTS_MAX + 1)]
    assert not problems_of(inventory(layer("group all", " ".join(names[:-1]), churn={"version": "3"})))
    (problem,) = problems_of(inventory(layer("group all", " ".join(names), churn={"version": "3"})))
    assert problem.startswith(f"expected at most {HOSTS_MAX} hosts")


def test_problems_that_hosts_share_are_one_line() -> None:
    assert grouped(["host a: x", "y", "host b: x", "y", "host c: z"]) == ["hosts a, b: x", "y", "host c: z"]
    many = [f"host h{number}: x" for number in range(7)]
    assert grouped(many) == ["hosts h0, h1, h2, h3, h4 and 2 more: x"]


@pytest.mark.parametrize("count", [0, 1, PROBLEMS_MAX, PROBLEMS_MAX + 1])
def test_so_many_problems_are_shown(count: int) -> None:
    lines = grouped(str(number) for number in range(count))
    assert len(lines) == count
    assert (lines[-1:] == ["and 1 more"]) is (count > PROBLEMS_MAX)


# -- there and back ---------------------------------------------------------------------------------------
ENTRY = st.fixed_dictionaries(
    {"version": st.sampled_from(["2", "3", "4"])},
    optional={
        "processes": st.integers(1, 256),
        "memory": st.sampled_from(["256MiB", "1GiB", 1 << 28]),
        "cpus": st.integers(1, 4) | st.just("0-1"),
        "threads": st.integers(1, 8),
        "sticky_header": st.just("X-User-Id"),
    },
)
SECOND = st.fixed_dictionaries(
    {},
    optional={
        "canary_percent": st.integers(1, 99),
        "processes": st.integers(1, 9),
        "judge": st.fixed_dictionaries(
            {"window_s": st.integers(1, 600)}, optional={"max_slowdown": st.floats(0, 9), "promote": st.booleans()}
        ),
        "shadow_percent": st.integers(1, 100),
        "shadow_tolerance": st.floats(0, 0.5),
        "default": st.booleans(),
    },
)


@given(churn=ENTRY, second=st.none() | SECOND, digits=ENTRY)
@settings(max_examples=200, deadline=None)
def test_the_file_is_what_a_host_reads(
    churn: dict[str, Any], second: dict[str, Any] | None, digits: dict[str, Any]
) -> None:
    models = {"churn": churn, "digits": digits, **({} if second is None else {"churn__9": second})}
    read = inventory(layer("host h1", "h1", **models))
    shelf = Shelf(churn=("2", "3", "4", "9"), digits=("2", "3", "4"))
    if problems_of(read, shelf):
        return
    text = fleet_of(read, shelf)["hosts"]["h1"]["deployment"]
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "deployment.toml"
        path.write_text(text)
        problems: list[str] = []
        entries = read_entries(path, problems)
    assert problems == []
    assert [(entry.name, entry.version) for entry in entries] == [
        ("churn", churn["version"]),
        *([] if second is None else [("churn", "9")]),
        ("digits", digits["version"]),
    ]
    assert entries[0].processes == churn.get("processes")
    assert entries[0].cpus == churn.get("cpus")
    if second is not None and second.get("judge"):
        assert entries[1].judge is not None
        assert entries[1].judge.window_s == second["judge"]["window_s"]


def test_a_host_runs_what_the_file_says(tmp_path: Path) -> None:
    """Through `load_deployment`, with packages in a repository: the same default, the same numbers."""
    from archives import write_doubling

    for version in ("3", "4"):
        write_doubling(tmp_path / "repository", "churn", version)
    fleet = fleet_of(inventory(layer("host h1", "h1", churn={"version": "3", "processes": 2}, churn__4={"threads": 2})))
    path = tmp_path / "deployment.toml"
    path.write_text(fleet["hosts"]["h1"]["deployment"])
    models = load_deployment(tmp_path / "repository", path, tmp_path / "environments").models
    assert [(model.version, model.processes, model.default, model.resources.threads) for model in models] == [
        ("3", 2, True, 1),
        ("4", 1, False, 2),
    ]
