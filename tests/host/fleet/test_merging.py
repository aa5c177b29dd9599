"""Layers merge model by model and key by key, as Ansible orders them; what each says is read once, with its place."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inventories import below, fleet_of, inventory, layer, problems_of

from host.config.deployment_file import ENTRY_KEYS, read_entry
from host.fleet.layers import KEYS, Layer, read_layer, read_version
from host.fleet.merging import merge_layers
from host.planner.model import MODELS_MAX
from host.protocol.errors import ConfigError
from host.protocol.schema import TableReader


def test_later_layers_win_key_by_key() -> None:
    merged = below(
        layer("group all", "h1 h2", churn={"version": "2", "processes": 1, "memory": "1GiB"}),
        layer("group large", "h1", churn={"version": "3"}, digits={"version": "1"}),
        layer("host h1", "h1", churn={"processes": 8}),
    )
    assert merged["h1"]["churn"].values == {"version": "3", "processes": 8, "memory": "1GiB"}
    assert merged["h1"]["churn"].sources["version"].origin == "group large"
    assert merged["h2"]["churn"].values == {"version": "2", "processes": 1, "memory": "1GiB"}
    assert list(merged["h2"]) == ["churn"]


def test_null_takes_away_a_model_or_a_key_and_a_later_layer_brings_it_back() -> None:
    merged = below(
        layer("group all", "h1 h2 h3", churn={"version": "2", "processes": 4}),
        layer("host h1", "h1", churn=None),
        layer("host h2", "h2", churn={"processes": None}),
        layer("host h3 a", "h3", churn=None),
        layer("host h3 b", "h3", churn={"version": "3"}),
    )
    assert merged["h1"] == {}
    assert merged["h2"]["churn"].values == {"version": "2"}
    assert merged["h3"]["churn"].values == {"version": "3"}


KEY_VALUES = st.dictionaries(st.sampled_from(["processes", "threads", "cpus"]), st.integers(1, 9) | st.none())
MODELS = st.dictionaries(st.sampled_from(["a", "b", "a@2"]), KEY_VALUES | st.none())


@given(st.lists(MODELS, max_size=5))
def test_merging_is_what_a_plain_loop_over_the_layers_says(layers_say: list[dict[str, Any]]) -> None:
    expected: dict[str, dict[str, Any]] = {}
    for models in layers_say:
        for key, values in models.items():
            if values is None:
                expected.pop(key, None)
            else:
                expected.setdefault(key, {}).update(values)
    expected = {key: {k: v for k, v in values.items() if v is not None} for key, values in expected.items()}
    layers = [layer(f"group g{number}", "h", **models) for number, models in enumerate(layers_say)]
    merged = merge_layers(["h"], [read_layer(one, []) for one in layers])["h"]
    assert {key: entry.values for key, entry in merged.items()} == expected
    assert all(entry.sources.keys() == entry.values.keys() for entry in merged.values())


@pytest.mark.parametrize(("value", "version"), [("3", "3"), (3, "3"), ("1.10", "1.10"), ("2024-05", "2024-05")])
def test_a_version_is_a_text_or_a_whole_number(value: object, version: str) -> None:
    assert read_version(value) == version


@pytest.mark.parametrize("value", [1.10, True, "", "a b", [], {}, "x" * 65, -1])
def test_other_versions_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="expected"):
        read_version(value)


def test_a_version_with_a_point_is_to_be_quoted() -> None:
    (problem,) = problems_of(inventory(layer("group all", "h1 h2", churn={"version": 1.10})))
    assert problem == (
        "group all (group/all.yml:2): modelhost_models.churn.version: expected a version in quotes, "
        'such as "1.1" (without them YAML makes 1.10 the number 1.1), received the number 1.1'
    )


def test_an_unknown_key_names_the_nearest_one_and_its_place() -> None:
    (problem,) = problems_of(inventory(layer("group all", "h1", churn={"version": "3", "process": 2})))
    assert problem == (
        "group all (group/all.yml:2): modelhost_models.churn: expected keys of [[models]] but name, "
        'received "process"; did you mean "processes"?'
    )


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ("churn", "modelhost_models: expected models by name"),
        ({"churn": "3"}, "modelhost_models.churn: expected keys such as"),
        ({"churn": []}, "modelhost_models.churn: expected keys such as"),
        ({3: {}}, "modelhost_models: expected the name of a model, received 3"),
        ({"a b": {}}, "modelhost_models: a b: model name: expected letters"),
        ({"churn@": {}}, "modelhost_models: churn@: model version: expected letters"),
        ({"churn@1@2": {}}, "modelhost_models: churn@1@2: model version: expected letters"),
        ({"stats": {}}, "reserved"),
        ({"churn@4": {"version": "3"}}, "modelhost_models.churn@4.version: expected none, because its key says 4"),
        ({"churn": {1: 2}}, "received 1"),
        ({f"m{number}": {} for number in range(MODELS_MAX + 1)}, f"at most {MODELS_MAX} models"),
    ],
)
def test_what_is_no_entry_is_refused_where_it_stands(models: Any, expected: str) -> None:
    problems: list[str] = []
    read_layer(said(models), problems)
    (problem,) = problems
    assert problem.startswith("host h1")
    assert expected in problem


def said(models: Any) -> Layer:
    """A host's own layer."""
    return Layer(origin="host h1", hosts=("h1",), models=models)


def test_a_layer_may_say_nothing_and_so_many_models_but_no_more() -> None:
    problems: list[str] = []
    assert read_layer(said(None), problems).entries == {}
    assert len(read_layer(said({f"m{number}": {} for number in range(MODELS_MAX)}), problems).entries) == MODELS_MAX
    assert not problems


def test_its_own_version_may_stand_in_a_second_versions_entry() -> None:
    problems: list[str] = []
    assert read_layer(said({"churn@4": {"version": 4}}), problems).entries == {"churn@4": {}}
    assert not problems


def test_keys_are_those_of_the_deployment_file() -> None:
    problems: list[str] = []
    table = TableReader("x", dict.fromkeys(KEYS) | {"name": "churn", "nonsense": 1}, problems)
    read_entry("x", table)
    table.finish()
    assert set(problems[-1].rpartition("expected one of ")[2].split(", ")) == set(ENTRY_KEYS)


def test_a_model_on_no_host_is_a_problem_wherever_it_is_said() -> None:
    source = layer("group models_old", "", churn={"version": "3"})
    (problem,) = problems_of(inventory(source, layer("host h1", "h1", digits={"version": "1"})))
    assert problem == (
        "group models_old (group/models_old.yml:2): modelhost_models.churn: "
        "expected a host of the group modelhost that runs it, found none"
    )


def test_a_model_that_every_host_takes_away_is_on_no_host() -> None:
    (problem,) = problems_of(
        inventory(
            layer("group all", "h1 h2", churn={"version": "3"}, digits={"version": "1"}),
            layer("host h1", "h1", churn=None),
            layer("host h2", "h2", churn=None),
        )
    )
    assert problem.endswith("it is taken away (null) by host h1 (host/h1.yml:2), host h2 (host/h2.yml:2)")


def test_null_for_what_nobody_else_says_is_no_problem() -> None:
    assert not problems_of(inventory(layer("host h1", "h1", churn=None, digits={"version": "1"})))


def test_a_host_without_models_is_told_so_and_noted() -> None:
    fleet = fleet_of(inventory(layer("host h1", "h1", digits={"version": "1"}), h2={}))
    assert tomllib.loads(fleet["hosts"]["h2"]["deployment"]) == {"models": []}
    assert fleet["notes"] == ["host h2: runs no model"]
