"""`modelhost features check`: past the host, to the stores themselves."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from features import write_features

from feature_io.check import any_key
from feature_io.cli import main
from host.config.features import FeatureView, KeyColumn


def view(*datatypes: str) -> FeatureView:
    keys = tuple(KeyColumn(column=f"k{at}", datatype=kind, input=f"k{at}") for at, kind in enumerate(datatypes))
    return FeatureView(name="v", store="s", keyspace=None, table="t", keys=keys, columns=())


def test_any_key_is_of_its_types() -> None:
    for _ in range(100):
        small, large, text, identity = any_key(view("INT8", "INT64", "BYTES", "UUID"))
        assert isinstance(small, int) and 0 <= small < 1 << 7
        assert isinstance(large, int) and 0 <= large < 1 << 63
        assert isinstance(text, str) and text
        assert str(uuid.UUID(str(identity))) == identity


def test_a_store_that_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_features(tmp_path)
    assert main(["check", "--features", str(path)]) == 0
    assert capsys.readouterr().out.startswith("view users, store main: answers in ")
    assert main(["check", "users", "--json", "--features", str(path)]) == 0
    (one,) = json.loads(capsys.readouterr().out)["views"]
    assert (one["view"], one["store"], one["problem"]) == ("users", "main", "")


def test_a_store_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_features(tmp_path)
    (tmp_path / "features.sqlite").unlink()
    assert main(["check", "--features", str(path)]) == 1
    assert "features.sqlite" in capsys.readouterr().out
    assert not (tmp_path / "features.sqlite").exists()


def test_a_table_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_features(tmp_path)
    path.write_text(path.read_text().replace('name = "age"', 'name = "height"'))
    assert main(["check", "--features", str(path)]) == 1
    assert "height" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nobodys"], ["--timeout-s", "0"], ["--timeout-s", "601"]])
def test_wrong_arguments_are_2(tmp_path: Path, arguments: list[str]) -> None:
    assert main(["check", *arguments, "--features", str(write_features(tmp_path, rows=0))]) == 2
