"""Tables made and files loaded in one call, for scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from feature_io.loading.files import BadLine, open_source
from feature_io.loading.load import Plan, load
from feature_io.loading.pace import Pace
from feature_io.loading.progress import Position, begin
from feature_io.stores import BadRow, make_store
from host.config.features import read_features

TIMEOUT_S: Final = 30.0


def load_files(features_file: Path, files: Mapping[str, Path]) -> int:
    """Make the tables of views, and load a file into each; `files` is by the views' names. Returns the rows.

    Raises `ConfigError`, `StoreUnavailable`, and `BadRow` for the first row that does not fit.
    """
    return asyncio.run(_load_files(features_file, files))


async def _load_files(features_file: Path, files: Mapping[str, Path]) -> int:
    features = read_features(features_file)
    rows = 0
    for view in features.views:
        file = files.get(view.name)
        if file is None:
            continue
        store = make_store(features.store(view.store))
        try:
            await store.open(TIMEOUT_S)
            await store.create(view, TIMEOUT_S)
            plan = Plan(
                view=view,
                file=file,
                source=open_source(view, file, None),
                progress=begin(view, file),
                max_bad=0,
                pace=Pace(None),
                keep_progress=False,
            )
            rows += (await load(plan, store, _Strict(file), asyncio.Event())).rows
        finally:
            await store.close()
    return rows


class _Strict:
    """Takes no bad row."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def rejected(self, bad: BadLine) -> None:
        raise BadRow(f"{self._file} line {bad.line}: {bad.reason}")

    def advanced(self, position: Position, rows: int, bad: int) -> None:
        """Nobody watches."""

    def waiting(self, error: Exception, pause_s: float) -> None:
        """Nobody watches."""
