"""Text of models and operators in tables is shown as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from host.cli.doctor import _print as print_examined
from host.cli.predict import print_outputs
from host.cli.printing import make_table, table_text
from host.config.deployment import Deployment
from host.config.history import add_to_history, change_of
from host.doctor.examination import Examined
from host.doctor.findings import Group, fail, ok

HARD = [r"\[/INST]", r"\[red]", "[red]", "[/]", ":ok: :100:", r"a\\"]


@pytest.mark.parametrize("text", HARD)
def test_texts_are_shown_as_they_are(text: str) -> None:
    table = make_table(text, "b")
    table.add_row(text, Text("styled", style="red"))
    assert table_text(table).split() == [*text.split(), "b", *text.split(), "styled"]


def test_what_moves_the_cursor_is_shown() -> None:
    table = make_table("")
    table.add_row("a\x1b[2Jb\nc\t\udc80")
    table.add_row(Text("one\ntwo"))
    assert table_text(table).splitlines() == ["", r"a\x1b[2Jb\nc\t\udc80", "one", "two"]


@pytest.mark.parametrize("text", HARD)
def test_outputs(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = {"name": text, "datatype": "BYTES", "shape": [1], "data": [text]}
    print_outputs({"model_name": "m", "model_version": "1", "outputs": [output]})
    assert capsys.readouterr().out.splitlines() == ["m version 1", f"row  {text} BYTES [1]", f"0    {text}"]


@pytest.mark.parametrize("text", HARD)
def test_findings(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    findings = (fail(Group.MODELS, "m", text, text), ok(Group.MODELS, "n", "well"))
    print_examined([Examined(group=Group.MODELS, findings=findings, took_s=0)], verbose=True)
    assert capsys.readouterr().out.splitlines()[:3] == [
        f"models  fail  m: {text}",
        f"              -> {text}",
        "        ok    n: well",
    ]


@pytest.mark.parametrize("text", HARD)
def test_changes(run: Callable[..., Any], tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    add_to_history(tmp_path / "run" / "history.jsonl", change_of(f"apply {text}", Deployment(), ["one", "two"], "she"))
    shown = run("history", "--run-dir", "run").out.splitlines()
    assert [line.partition(" she ")[2].strip() or line.strip() for line in shown[1:]] == [f"apply {text}  one", "two"]
