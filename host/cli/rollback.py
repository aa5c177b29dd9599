"""`modelhost rollback`: go back to the version that a model had before."""

from __future__ import annotations

import click

from host.cli.options import load, settings_options


@click.command("rollback")
@click.argument("model", metavar="MODEL")
@click.option("--to", "version", metavar="VERSION", help="go to this version instead")
@click.option("--wait", is_flag=True, help="return when the host is so; ends with 1 and the reason if it cannot be")
@click.option("--dry-run", is_flag=True, help="check everything and show what would change")
@click.option("--json", "as_json", is_flag=True, help="write the outcome as a document")
@settings_options("run_dir")
def command(
    model: str,
    version: str | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
    config_file: str | None,
    **flags: str | None,
) -> int:
    """Take a model's canary away; without one, serve the version that was served before this one.

    In the deployment file, then on the host. Which version that was stands in `modelhost history`.
    """
    from host.cli.changes import RunningState, finish
    from host.cli.edits import rolled_back
    from host.config.history import read_history
    from host.config.run_dir import RunDirectory

    state = RunningState(RunDirectory(load(config_file, flags).settings.run_dir))
    with state.lock():
        text = rolled_back(state.text(), state.desired(), read_history(state.run_dir.history), model, version)
        change = state.change(text, f"rollback {model}", dry_run=dry_run, retry=False)
    return finish(state, change, wait=wait, as_json=as_json, dry_run=dry_run)
