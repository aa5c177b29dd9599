"""`modelhost scale`: change how many processes models have."""

from __future__ import annotations

import click

from host.cli.options import load, settings_options


@click.command("scale")
@click.argument("wanted", metavar="MODEL[.vVERSION]=N ...", nargs=-1, required=True)
@click.option("--wait", is_flag=True, help="return when the host is so; ends with 1 and the reason if it cannot be")
@click.option("--dry-run", is_flag=True, help="check everything and show what would change")
@click.option("--json", "as_json", is_flag=True, help="write the outcome as a document")
@settings_options("run_dir")
def command(
    wanted: tuple[str, ...], wait: bool, dry_run: bool, as_json: bool, config_file: str | None, **flags: str | None
) -> int:
    """Give models another number of processes: in the deployment file, then on the host.

    Only processes that are added or taken away start or stop. Without a version: that of requests without one.
    """
    from host.cli.changes import RunningState, finish
    from host.cli.edits import parse_scale, scaled
    from host.config.run_dir import RunDirectory

    numbers = parse_scale(wanted)
    state = RunningState(RunDirectory(load(config_file, flags).settings.run_dir))
    with state.lock():
        text = scaled(state.text(), state.desired(), numbers)
        change = state.change(text, f"scale {' '.join(wanted)}", dry_run=dry_run, retry=False)
    return finish(state, change, wait=wait, as_json=as_json, dry_run=dry_run)
