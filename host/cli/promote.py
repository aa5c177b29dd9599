"""`modelhost promote`: a canary becomes the version that is served."""

from __future__ import annotations

import click

from host.cli.options import load, settings_options


@click.command("promote")
@click.argument("model", metavar="MODEL")
@click.option("--wait", is_flag=True, help="return when the host is so; ends with 1 and the reason if it cannot be")
@click.option("--dry-run", is_flag=True, help="check everything and show what would change")
@click.option("--json", "as_json", is_flag=True, help="write the outcome as a document")
@settings_options("run_dir")
def command(model: str, wait: bool, dry_run: bool, as_json: bool, config_file: str | None, **flags: str | None) -> int:
    """Have a model's canary answer all requests: in the deployment file, then on the host.

    It gets the processes of the version that it replaces, which is stopped once they are ready.
    """
    from host.cli.changes import RunningState, finish
    from host.cli.edits import promoted
    from host.config.run_dir import RunDirectory

    state = RunningState(RunDirectory(load(config_file, flags).settings.run_dir))
    with state.lock():
        text = promoted(state.text(), state.desired(), model)
        change = state.change(text, f"promote {model}", dry_run=dry_run, retry=False)
    return finish(state, change, wait=wait, as_json=as_json, dry_run=dry_run)
