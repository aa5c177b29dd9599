"""`modelhost history`: who changed what."""

from __future__ import annotations

import time

import click

from host.cli.options import load, settings_options


@click.command("history")
@click.option("--json", "as_json", is_flag=True, help="write every change as a document")
@settings_options("run_dir")
def command(as_json: bool, config_file: str | None, **flags: str | None) -> None:
    """Show the last 50 changes of what the host should run: when, who and what, the newest last."""
    from rich.text import Text

    from host.cli.printing import make_table, plain, print_json, print_table
    from host.config.history import read_history
    from host.config.run_dir import RunDirectory

    changes = read_history(RunDirectory(load(config_file, flags).settings.run_dir).history)
    if as_json:
        print_json(changes)
        return
    if not changes:
        click.echo("no change has been made yet")
        return
    table = make_table("when", "who", "what", "changed")
    for change in changes:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.at))
        table.add_row(when, change.who, change.what, Text("\n").join(map(plain, change.differences or ("nothing",))))
    print_table(table)
