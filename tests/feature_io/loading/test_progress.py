"""What a load leaves beside its file, and when it may go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from feature_io.loading import progress
from feature_io.loading.progress import Position
from host.config.features import FeatureColumn, FeatureView, KeyColumn
from host.protocol.errors import ConfigError


def view(name: str = "v", datatype: str = "FP64") -> FeatureView:
    return FeatureView(
        name=name,
        store="s",
        keyspace=None,
        table="t",
        keys=(KeyColumn(column="id", datatype="INT64", input="id"),),
        columns=(FeatureColumn(name="x", datatype=datatype),),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("id,x\n1,0.5\n")
    return path


def stopped(file: Path) -> progress.Progress:
    """Remember a load that came to line 2."""
    start = progress.begin(view(), file)
    one = progress.Progress(
        view=start.view, table=start.table, size_bytes=start.size_bytes, changed_ns=start.changed_ns, head=start.head,
        position=Position(offset=5, line=1), rows=7, bad=2,
    )  # fmt: skip
    progress.write_progress(file, one)
    return one


def test_what_is_written_is_read_and_removed(file: Path) -> None:
    assert progress.read_progress(file) is None
    one = stopped(file)
    assert progress.read_progress(file) == one
    assert progress.resumed(progress.begin(view(), file), progress.read_progress(file), file) == one
    assert sorted(path.name for path in file.parent.iterdir()) == ["rows.csv", "rows.csv.progress"]
    progress.remove_progress(file)
    progress.remove_progress(file)
    assert progress.read_progress(file) is None


def test_nothing_to_resume_is_said(file: Path) -> None:
    with pytest.raises(ConfigError, match="no load of this file was interrupted"):
        progress.resumed(progress.begin(view(), file), None, file)


@pytest.mark.parametrize("change", ["longer", "later", "head"])
def test_another_file_is_refused(file: Path, change: str) -> None:
    stopped(file)
    state = file.stat()
    if change == "longer":
        file.write_text("id,x\n1,0.5\n2,0.5\n")
    elif change == "head":
        file.write_text("id,x\n1,0.6\n")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(ConfigError, match="has changed since the load that is to be resumed"):
        progress.resumed(progress.begin(view(), file), progress.read_progress(file), file)


@pytest.mark.parametrize("other", [view("w"), view(datatype="FP32")])
def test_another_view_is_refused(file: Path, other: FeatureView) -> None:
    stopped(file)
    with pytest.raises(ConfigError, match="is of a load into view v"):
        progress.resumed(progress.begin(other, file), progress.read_progress(file), file)


def test_what_is_no_progress_is_refused(file: Path) -> None:
    progress.progress_path(file).write_text("{")
    with pytest.raises(ConfigError, match=r"rows\.csv\.progress: cannot be read: .*delete it"):
        progress.read_progress(file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        progress.begin(view(), tmp_path / "nothing.csv")
