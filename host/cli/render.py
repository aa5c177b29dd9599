"""`modelhost render`: supervisord's configuration, as `up` would write it."""

from __future__ import annotations

from pathlib import Path

import click

from host.cli.options import load, settings_options
from host.protocol.errors import ConfigError


@click.command("render")
@click.option("-o", "--output", metavar="DIR", help="write the files there instead of showing them")
@settings_options()
def command(output: str | None, config_file: str | None, **flags: str | None) -> None:
    """Show the files that up writes for supervisord, and start nothing."""
    from host.cli.preflight import make_plan
    from supervisor_conf.render import render

    plan = make_plan(load(config_file, flags))
    files = render(plan.settings, plan.deployment, plan.programs)
    for name, text in files.items():
        if output is None:
            click.echo(text, nl=False)
            continue
        path = Path(output) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        except OSError as error:
            raise ConfigError(f"--output: {path}: cannot be written: {error.strerror}") from error
        click.echo(str(path))
