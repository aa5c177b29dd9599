"""Tables for people and documents for scripts."""

from __future__ import annotations

from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

_UNLIMITED_COLUMNS: Final = 1000
"""Width of what is no terminal: nothing is cut for a file or a pipe."""


def make_table(*columns: str, title: str | None = None) -> Table:
    """A table without lines."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def table_text(table: Table) -> str:
    """A table as text: as wide as the terminal, or as it needs for a file or a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_UNLIMITED_COLUMNS)
        for column in table.columns:
            column.no_wrap = True
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def print_table(table: Table) -> None:
    """Write a table to standard output."""
    click.echo(table_text(table), nl=False)


def print_json(document: Any) -> None:
    """Write a document to standard output, one field a line."""
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def size_text(size_bytes: int) -> str:
    """A size for people: `512 bytes`, `3.2 MiB`."""
    if size_bytes < 1 << 10:
        return f"{size_bytes} byte{'' if size_bytes == 1 else 's'}"
    size, units = float(size_bytes), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = ""
    while size >= 1 << 10 and (larger := next(units, "")):
        size, unit = size / (1 << 10), larger
    return f"{size:.1f} {unit}"
