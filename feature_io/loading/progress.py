"""How far a load has come, in a small file beside the one that is loaded: `FILE.progress`.

It is replaced by renaming after each batch that the store has, so that it never says more than is true.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import msgspec

from host.config.features import FeatureView
from host.protocol.errors import ConfigError

HEAD_BYTES: Final = 1 << 16
"""What is looked at of a file, besides its size and the time of its last change, to tell another one."""


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a file the next row begins."""

    offset: int = 0
    """Bytes; rows, in a Parquet file. 0: at its first row, after what stands before that."""
    line: int = 0
    """Lines (rows, in a Parquet file) before it."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What the file beside says."""

    view: str
    table: str
    """A digest of the view's keys, columns and table."""
    size_bytes: int
    changed_ns: int
    head: str
    position: Position
    rows: int = 0
    """That the store has."""
    bad: int = 0
    """That were left out."""


def progress_path(file: Path) -> Path:
    """Where the progress of a file's load is kept."""
    return file.with_name(f"{file.name}.progress")


def begin(view: FeatureView, file: Path) -> Progress:
    """Progress of a load that has not begun. Raises `ConfigError` if the file cannot be read."""
    try:
        with file.open("rb") as opened:
            state = os.fstat(opened.fileno())
            head = hashlib.sha256(opened.read(HEAD_BYTES)).hexdigest()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    shape = msgspec.json.encode([view.store, view.keyspace, view.table, view.keys, view.columns, view.freshness_column])
    return Progress(
        view=view.name,
        table=hashlib.sha256(shape).hexdigest(),
        size_bytes=state.st_size,
        changed_ns=state.st_mtime_ns,
        head=head,
        position=Position(),
    )


def read_progress(file: Path) -> Progress | None:
    """What an earlier load left; None if it left nothing. Raises `ConfigError`."""
    path = progress_path(file)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Progress)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; delete it to load from the beginning") from error


def resumed(start: Progress, earlier: Progress | None, file: Path) -> Progress:
    """Where to go on. Raises `ConfigError` if there is nothing to go on with, or file or view are others."""
    again = "load from the beginning, without --resume"
    if earlier is None:
        raise ConfigError(f"{progress_path(file)}: is not there, so no load of this file was interrupted: {again}")
    if (earlier.size_bytes, earlier.changed_ns, earlier.head) != (start.size_bytes, start.changed_ns, start.head):
        raise ConfigError(f"{file}: has changed since the load that is to be resumed: {again}")
    if (earlier.view, earlier.table) != (start.view, start.table):
        raise ConfigError(
            f"{progress_path(file)}: is of a load into view {earlier.view}, whose table was another one: {again}"
        )
    return earlier


def is_unchanged(start: Progress, file: Path) -> bool:
    """Whether the file is still the one that a load began with."""
    try:
        state = file.stat()
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (start.size_bytes, start.changed_ns)


def write_progress(file: Path, progress: Progress) -> None:
    """Replace what is kept. Raises `OSError`."""
    path = progress_path(file)
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(msgspec.json.encode(progress))
    new.replace(path)


def remove_progress(file: Path) -> None:
    """Forget the load: it is done."""
    progress_path(file).unlink(missing_ok=True)
