"""`modelhost drain`: have the host say that it is not ready while it serves."""

from __future__ import annotations

import click

from host.cli.options import load, settings_options


@click.command("drain")
@click.option("--off", is_flag=True, help="be ready again")
@settings_options("run_dir")
def command(off: bool, config_file: str | None, **flags: str | None) -> int:
    """Have the host answer that it is not ready, and serve on: a load balancer then sends it nothing new.

    Until `modelhost drain --off`, or until the host is started again.
    """
    import msgspec

    from host.cli.changes import RunningState
    from host.config.deployment import write_deployment
    from host.config.history import add_to_history, change_of
    from host.config.run_dir import RunDirectory

    state = RunningState(RunDirectory(load(config_file, flags).settings.run_dir))
    with state.lock():
        before = state.desired()
        if before.draining == (not off):
            click.echo("nothing to change")
            return 0
        after = msgspec.structs.replace(before, draining=not off, generation=before.generation + 1)
        write_deployment(state.run_dir.deployment, after)
        what = "drain --off" if off else "drain"
        add_to_history(state.run_dir.history, change_of(what, after, ["ready again" if off else "draining"]))
    state.wait_until_routed(after.generation)
    click.echo("ready again" if off else "draining: the host says that it is not ready, and serves")
    return 0
