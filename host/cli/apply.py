"""`modelhost apply`: make a running host what its deployment file says."""

from __future__ import annotations

from pathlib import Path

import click

from host.cli.options import load, settings_options


@click.command("apply")
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--wait", is_flag=True, help="return when the host is so; ends with 1 and the reason if it cannot be")
@click.option("--dry-run", is_flag=True, help="check everything and show what would change")
@click.option("--json", "as_json", is_flag=True, help="write the outcome as a document")
@settings_options("run_dir")
def command(
    file: Path | None, wait: bool, dry_run: bool, as_json: bool, config_file: str | None, **flags: str | None
) -> int:
    """Make the running host what its deployment file says, without a failed request.

    Everything is checked before anything changes. A new version is started beside the old one, and served when all of
    its processes have loaded, warmed up and reproduced their golden cases; then the old one finishes what it has and
    stops. If the new one fails, it is removed, and the old one is served on. With FILE: that becomes the host's
    deployment file first. Applying a file twice changes nothing; what had failed, or was stopped with supervisorctl, is
    started again.
    """
    from host.cli.changes import RunningState, finish
    from host.config.run_dir import RunDirectory
    from host.protocol.errors import ConfigError

    state = RunningState(RunDirectory(load(config_file, flags).settings.run_dir))
    what = "apply" if file is None else f"apply {file.name}"
    with state.lock():
        try:
            text = state.text() if file is None else file.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from error
        change = state.change(text, what, dry_run=dry_run, retry=state.needs_retry())
    return finish(state, change, wait=wait, as_json=as_json, dry_run=dry_run)
