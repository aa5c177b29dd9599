"""Tables for people and documents for scripts."""

from __future__ import annotations

from typing import Any, Final

import click
import msgspec
from rich.console import Console, RenderableType
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

_UNLIMITED_COLUMNS: Final = 1000
"""Width of what is no terminal: nothing is cut for a file or a pipe."""


def plain(text: str) -> Text:
    """Text as it is, such as a model's message: no markup, no emoji, and nothing that moves the cursor."""
    return Text("".join(char if char.isprintable() else repr(char)[1:-1] for char in text))


class PlainTable(Table):
    """A table whose texts are shown as they are; one with a style, or of several lines, is given as `Text`."""

    def add_row(
        self, *renderables: RenderableType | None, style: StyleType | None = None, end_section: bool = False
    ) -> None:
        """Add a row."""
        cells = (plain(one) if isinstance(one, str) else one for one in renderables)
        super().add_row(*cells, style=style, end_section=end_section)


def make_table(*columns: str, title: str | None = None) -> PlainTable:
    """A table without lines."""
    table = PlainTable(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(plain(column), overflow="fold")
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
