"""host_vars are read, and written without touching anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fleets import make_fleet, make_host, make_model

from host.planner.inventory import (
    Entries,
    Present,
    models_text,
    parse_yaml,
    planned_entries,
    read_host_vars,
    read_listing,
    read_own_entries,
    with_models,
    without_beside,
    write_host_vars,
)
from host.protocol.errors import ConfigError

FLEET = make_fleet([make_model("churn"), make_model("digits")], [make_host("h1"), make_host("h2"), make_host("h3")])
VAULT = "from_vault: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3031\n"


def write(inventory: Path, name: str, text: str) -> Path:
    path = inventory / "host_vars" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_reads_what_hosts_run(tmp_path: Path) -> None:
    write(tmp_path, "h1.yml", f"{VAULT}modelhost_models:\n  churn: {{version: '3', processes: 4}}\n")
    write(tmp_path, "h2/models.yaml", "modelhost_models: {churn: {processes: 1}, digits: {processes: 2}}\n")
    write(tmp_path, "h3.yml", "---\n")
    write(tmp_path, "balancer.yml", "ansible_host: 10.0.0.1\n")
    present = read_host_vars(tmp_path, FLEET)
    assert present.placement == {"churn": {"h1": 4, "h2": 1}, "digits": {"h2": 2}}
    assert present.entries["h1"] == {"churn": {"version": "3", "processes": 4}}


def test_an_inventory_without_host_vars_runs_nothing(tmp_path: Path) -> None:
    assert read_host_vars(tmp_path, FLEET).placement == {}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("h1.yml", "modelhost_models: [churn]\n", "modelhost_models: expected models, received ['churn']"),
        ("h1.yml", "- 1\n", "expected variables, received [1]"),
        ("h1.yml", "a: {\n", "not YAML"),
        ("h1.yml", "a: !!python/object/apply:os.getcwd []\n", "not YAML"),
        ("h1.yml", "modelhost_models: {other: {processes: 1}}\n", "models.other: expected a model of the fleet"),
        ("h1.yml", "modelhost_models: {churn: {}}\n", "churn.processes: expected a whole number >= 1 and <= 256"),
        ("h1.yml", "modelhost_models: {churn: {processes: 257}}\n", "and <= 256, received 257"),
        ("h1.yml", "modelhost_models: {churn: {processes: 0}}\n", "and <= 256, received 0"),
        ("h9.yml", "modelhost_models: {churn: {processes: 1}}\n", "expected a host of the fleet, received h9"),
    ],
)  # fmt: skip
def test_names_file_and_key(tmp_path: Path, name: str, text: str, expected: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(ConfigError) as caught:
        read_host_vars(tmp_path, FLEET)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_reads_what_ansible_lists(tmp_path: Path) -> None:
    path = tmp_path / "listing.json"
    path.write_text(json.dumps({"_meta": {"hostvars": {"h1": {"modelhost_models": {"churn": {"processes": 2}}}}}}))
    assert read_listing(path, FLEET).placement == {"churn": {"h1": 2}}
    for text in ("[]", "{}", "nothing", '{"_meta": {"hostvars": []}}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="expected what `ansible-inventory --list` prints"):
            read_listing(path, FLEET)


def test_only_files_that_change_are_written_and_only_their_models(tmp_path: Path) -> None:
    before = (
        "# by hand\nansible_host: 10.0.0.1\n\nmodelhost_models:\n  # all of them\n"
        f"  churn: {{processes: 4, memory: 1GiB}}\n\n# the rest\n{VAULT}"
    )
    first = write(tmp_path, "h1.yml", before)
    first.chmod(0o640)
    write(tmp_path, "h2.yml", "modelhost_models: {churn: {version: '2', processes: 1}}\n")
    present = read_host_vars(tmp_path, FLEET)
    planned = planned_entries(FLEET, present, {"churn": {"h1": 3, "h2": 1, "h3": 1}, "digits": {"h3": 2}})
    written = write_host_vars(tmp_path, present.entries, planned)
    assert sorted(path.name for path in written) == ["h1.yml", "h3.yml"]
    assert first.read_text() == before.replace("  # all of them\n", "").replace(
        "churn: {processes: 4, memory: 1GiB}", 'churn: {processes: 3, memory: "1GiB"}'
    )
    assert first.stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "host_vars" / "h3.yml").read_text() == (
        '---\nmodelhost_models:\n  churn: {version: "2", processes: 1}\n  digits: {version: "1", processes: 2}\n'
    )
    again = read_host_vars(tmp_path, FLEET)
    assert write_host_vars(tmp_path, again.entries, planned) == []


def test_a_directory_of_a_host_gets_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "h1/main.yml", "ansible_host: 10.0.0.1\n")
    present = read_host_vars(tmp_path, FLEET)
    (path,) = write_host_vars(tmp_path, present.entries, {"h1": {"churn": {"processes": 1}}})
    assert path == tmp_path / "host_vars" / "h1" / "modelhost_models.yml"


MODELS = "modelhost_models: {churn: {processes: 2}}\n"


@pytest.mark.parametrize("name", ["h1", "h1.yml", "h1.yaml", "h1/a", "h1/a.yaml", "h1/deeper/a.yml"])
def test_variables_are_found_where_ansible_finds_them(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, MODELS)
    if "/" in name:
        write(tmp_path, "h1/b.json", '{"other": {"modelhost_models": 1}}')
        for unread in ("h1/.a.yml", "h1/a.yml~", "h1/a.txt", "h1/deeper.d/a.yml"):
            write(tmp_path, unread, MODELS)
    for unread in ("h1.yml.bak", "h1.yml~", ".h1.yml"):
        write(tmp_path, unread, MODELS)
    present = read_host_vars(tmp_path, FLEET)
    assert present.placement == {"churn": {"h1": 2}}
    planned = planned_entries(FLEET, present, {"churn": {"h1": 3}})
    assert write_host_vars(tmp_path, present.entries, planned) == [path]
    assert read_host_vars(tmp_path, FLEET).placement == {"churn": {"h1": 3}}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["h1.json"], "h1.json: expected a file that ends in .yml or .yaml, received JSON"),
        (["h9.json"], "h9.json: expected a file that ends in .yml or .yaml, received JSON"),
        (["h1.yml", "h1.yaml"], "h1.yml: expected one file or directory for a host, because .* found h1.yaml too"),
        (["h1", "h1.json", "h1.yml"], "h1: expected one file or directory .* found h1.yml, h1.json too"),
        (["h1/a.yml", "h1.yml"], "h1: expected one file or directory .* found h1.yml too"),
        (["h1/a.yml", "h1/b"], "h1: expected modelhost_models in one file, .* found it in a.yml, b"),
        (["h1/a/b.yml", "h1/c.json"], "h1: expected modelhost_models in one file, .* found it in a/b.yml, c.json"),
        (["h1/a.json"], "h1/a.json: expected modelhost_models in a file that ends in .yml or .yaml, found it in JSON"),
    ],
)
def test_what_ansible_reads_otherwise_is_refused(tmp_path: Path, names: list[str], expected: str) -> None:
    for name in names:
        write(tmp_path, name, '{"modelhost_models": {"churn": {"processes": 2}}}')
    with pytest.raises(ConfigError, match=f"{tmp_path}/host_vars/{expected}"):
        read_host_vars(tmp_path, FLEET)
    with pytest.raises(ConfigError, match=f"{tmp_path}/host_vars/{expected}"):
        write_host_vars(tmp_path, {}, {names[0][:2]: {"churn": {"processes": 1}}})


def test_json_of_other_hosts_is_their_own_matter(tmp_path: Path) -> None:
    write(tmp_path, "balancer.json", '{"ansible_host": "10.0.0.1"}')
    assert read_host_vars(tmp_path, FLEET).placement == {}
    write(tmp_path, "h1.json", "{}")  # a file that ends in .yml would hide it
    with pytest.raises(ConfigError, match=r"h1\.json: expected a file that ends in \.yml"):
        read_host_vars(tmp_path, FLEET)


@pytest.mark.parametrize(
    "text",
    [
        "{modelhost_models: {churn: {processes: 1}}}\n",
        "modelhost_models: {}\nmodelhost_models: {}\nb: 1\n",
        "modelhost_models: {churn:\n{processes: 1}}\n",
    ],
)
def test_what_cannot_be_replaced_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        with_models(text, {"churn": {"processes": 2}}, "h1.yml")


def test_an_entry_that_is_no_plain_value_is_refused() -> None:
    for text in (
        "modelhost_models: {churn: {processes: 1, key: !vault x}}\n",
        "modelhost_models: {churn: {day: 2026-11-26}}\n",
    ):
        entries = parse_yaml(text, "h1.yml")["modelhost_models"]
        with pytest.raises(ConfigError, match="cannot be replaced"):
            with_models(text, entries, "h1.yml")


@pytest.mark.parametrize(
    "entries",
    [{}, {"churn": {"processes": 1, "cpus": "2-3", "x": [None, True, 1.5, {"on": "é: # 😀"}]}, "3": {}, "yes": {}}],
)
def test_what_is_written_is_read(entries: dict[str, dict[str, object]]) -> None:
    assert parse_yaml(models_text(entries), "") == {"modelhost_models": entries}
    assert parse_yaml(with_models("", entries, ""), "") == {"modelhost_models": entries}
    assert parse_yaml(with_models("a: 1", entries, ""), "") == {"a": 1, "modelhost_models": entries}


def test_a_second_version_stays_and_its_memory_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        "h1.yml",
        "modelhost_models:\n  churn: {version: 3, processes: 4}\n"
        "  churn@4: {canary_percent: 5, processes: 2, memory: 1GiB}\n  digits@2: {processes: 1}\n",
    )
    present = read_host_vars(tmp_path, FLEET)
    assert present.placement == {"churn": {"h1": 4}}
    assert [host.memory_bytes >> 20 for host in without_beside(FLEET, present).hosts] == [16384 - 2560, 16384, 16384]
    planned = planned_entries(FLEET, present, {"churn": {"h1": 3, "h2": 1}, "digits": {"h1": 1}})
    assert planned["h1"] == {
        "churn": {"version": 3, "processes": 3},
        "digits": {"version": "1", "processes": 1},
        "churn@4": {"canary_percent": 5, "processes": 2, "memory": "1GiB"},
        "digits@2": {"processes": 1},
    }
    assert planned["h2"] == {"churn": {"version": "3", "processes": 1}}


def test_a_second_version_is_not_left_alone(tmp_path: Path) -> None:
    """The playbooks would refuse that; every host and key is named. One that is the default needs nothing beside it."""
    write(tmp_path, "h1.yml", "modelhost_models: {churn: {processes: 4}, churn@4: {processes: 2}}\n")
    write(tmp_path, "h2.yml", "modelhost_models: {churn: null, churn@4: {processes: 2}, digits@2: {processes: 1}}\n")
    write(tmp_path, "h3.yml", "modelhost_models: {churn@4: {processes: 2, default: true}, digits@2: null}\n")
    with pytest.raises(ConfigError) as caught:
        planned_entries(FLEET, read_host_vars(tmp_path, FLEET), {})
    assert [problem.partition(": expected")[0] for problem in caught.value.problems] == [
        "host h1: modelhost_models.churn@4",
        "host h2: modelhost_models.churn@4",
        "host h2: modelhost_models.digits@2",
    ]
    assert "expected churn there too, beside which it runs" in str(caught.value)
    assert "take churn@4 out first, or keep the host open" in str(caught.value)


def test_a_second_version_of_a_group_is_not_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    models = {"churn": {"processes": 2}, "churn@4": {"processes": 1}}
    default = {**models, "churn@4": {"processes": 1, "default": True}}
    path.write_text(json.dumps({"hosts": {"h1": {"models": models}, "h2": {"models": default}}}))
    present = read_listing(path, FLEET)
    with pytest.raises(ConfigError, match=r"h1: modelhost_models\.churn@4: expected churn") as caught:
        planned_entries(FLEET, present, {}, {})
    assert len(caught.value.problems) == 1
    own: dict[str, Entries] = {"h1": {"churn@4": None}}
    assert planned_entries(FLEET, present, {}, own)["h1"] == {"churn": None, "churn@4": None}


def test_a_key_that_nobody_quoted_is_no_second_version(tmp_path: Path) -> None:
    fleet = make_fleet([make_model("3")], [make_host("h1")])
    write(tmp_path, "h1.yml", "modelhost_models: {3: {processes: 1}}\n")
    planned = planned_entries(fleet, read_host_vars(tmp_path, fleet), {"3": {"h1": 1}})
    assert planned["h1"] == {"3": {"version": "1", "processes": 1}}


def test_of_versions_that_as_many_hosts_have_the_higher_one_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "h1.yml", "modelhost_models: {churn: {version: '9', processes: 1}}\n")
    write(tmp_path, "h2.yml", "modelhost_models: {churn: {version: '10', processes: 1}}\n")
    planned = planned_entries(FLEET, read_host_vars(tmp_path, FLEET), {"churn": {"h3": 1}})
    assert planned["h3"] == {"churn": {"version": "10", "processes": 1}}


def test_a_model_that_is_taken_away_is_not_there_and_stays_away(tmp_path: Path) -> None:
    write(tmp_path, "h1.yml", "modelhost_models:\n  churn: null\n  digits: null\n")
    present = read_host_vars(tmp_path, FLEET)
    assert present.placement == {}
    planned = planned_entries(FLEET, present, {"churn": {"h1": 1}})
    assert planned["h1"] == {"churn": {"version": "1", "processes": 1}, "digits": None}
    (path,) = write_host_vars(tmp_path, present.entries, planned)
    assert path.read_text() == 'modelhost_models:\n  churn: {version: "1", processes: 1}\n  digits: null\n'


def test_what_groups_say_is_not_said_again(tmp_path: Path) -> None:
    """Only what differs from the merged entries goes into a host's own file, and keys of groups stay theirs."""
    write(tmp_path, "h1.yml", "modelhost_models: {churn: {memory: 1GiB}}\n")
    churn = {"version": "3", "processes": 2, "memory": "1GiB"}
    path = tmp_path / "fleet.json"
    path.write_text(
        json.dumps({"hosts": {name: {"models": {"churn": churn, "digits": {"processes": 1}}} for name in ("h1", "h2")}})
    )
    present = read_listing(path, FLEET)
    own = read_own_entries(tmp_path, FLEET)
    assert own == {"h1": {"churn": {"memory": "1GiB"}}}
    placement = {"churn": {"h1": 2, "h2": 3, "h3": 1}, "digits": {"h1": 1}}
    assert planned_entries(FLEET, present, placement, own) == {
        "h1": {"churn": {"memory": "1GiB", "processes": 2}},
        "h2": {"churn": {"processes": 3}, "digits": None},
        "h3": {"churn": {"version": "3", "processes": 1}},
    }
    assert planned_entries(FLEET, present, present.placement, {}) == {"h1": {}, "h2": {}, "h3": {}}


def test_what_a_group_may_say_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, "h1.yml", "modelhost_models: {churn: {memory: 1GiB}}\n")
    with pytest.raises(ConfigError, match=r"churn\.processes: .*if a group says it: --present"):
        read_host_vars(tmp_path, FLEET)
    write(tmp_path, "h1.yml", "modelhost_models: {churn: 3}\n")
    with pytest.raises(ConfigError, match="churn: expected a table, received 3"):
        read_own_entries(tmp_path, FLEET)


def test_present_is_empty_where_nothing_is_said() -> None:
    assert planned_entries(FLEET, Present({}, {}), {}) == {"h1": {}, "h2": {}, "h3": {}}
