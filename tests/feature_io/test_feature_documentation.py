"""docs/features.md: its features.toml is one, and its tables are those of the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from feature_io.loading.files import FORMATS
from host.config.features import (
    CassandraStore,
    FeatureColumn,
    FeatureView,
    KeyColumn,
    SqliteStore,
    parse_features,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "features.md").read_text()


def table(heading: str) -> dict[str, str]:
    """First to second cell of the table after a line: key and default."""
    text = PAGE[PAGE.index(heading) :].split("\n|---", 1)[1].split("\n\n", 1)[0]
    rows = {}
    for line in text.splitlines()[1:]:
        first, second = line.strip("| ").split(" | ")[:2]
        for name in re.findall(r"`([^`]+)`", first):
            rows[name] = second.strip()
    return rows


def fields(kind: type[msgspec.Struct]) -> dict[str, object]:
    """Names and defaults."""
    return {field.name: field.default for field in msgspec.structs.fields(kind)}


def test_the_example_is_a_features_toml() -> None:
    text = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    features = parse_features(tomllib.loads(text), Path("/etc/features.toml"))
    assert [view.name for view in features.views] == ["user_stats", "prices"]
    assert [store.name for store in features.stores] == ["local", "cluster"]


def test_every_key_is_in_its_table() -> None:
    views = table("Keys of `[[views]]`")
    assert views.keys() == (fields(FeatureView).keys() - {"keys", "columns"}) | {"[[views.keys]]", "[[views.columns]]"}
    assert table("Keys of `[[views.keys]]`").keys() == fields(KeyColumn).keys()
    assert table("Keys of `[[views.columns]]`").keys() == fields(FeatureColumn).keys() - {"required"}
    assert table('Keys of `[stores.NAME]` with `kind = "sqlite"`').keys() == fields(SqliteStore).keys() - {"name"}
    assert table('Keys of `[stores.NAME]` with `kind = "cassandra"`').keys() == fields(CassandraStore).keys() - {"name"}


def test_defaults_are_the_codes() -> None:
    tables: dict[str, type[msgspec.Struct]] = {
        "Keys of `[[views]]`": FeatureView,
        'Keys of `[stores.NAME]` with `kind = "sqlite"`': SqliteStore,
        'Keys of `[stores.NAME]` with `kind = "cassandra"`': CassandraStore,
    }
    for heading, kind in tables.items():
        defaults = fields(kind)
        for name, shown in table(heading).items():
            value = re.fullmatch(r'`"?([^`"]*)"?`', shown)
            if value is not None:
                assert value[1] == str(defaults[name]), name


def test_formats_are_listed() -> None:
    for ends in FORMATS.values():
        assert "| " + ", ".join(f"`{end}`" for end in ends) + " |" in PAGE
