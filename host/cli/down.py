"""`modelhost down`: stop the host of a run directory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from host.cli.options import load, settings_options
from host.protocol.errors import HostError

if TYPE_CHECKING:
    from host.config.run_dir import RunDirectory

_LOOK_S: Final = 0.05
_LAST_BREATH_S: Final = 1.0
_MARGIN_S: Final = 20.0
"""Beyond two drains, the fronts' and the workers', before this command gives up waiting."""


@click.command("down")
@settings_options("run_dir", "grace_s", "drain_s")
def command(config_file: str | None, **flags: str | None) -> int:
    """Stop a host, in the foreground elsewhere or detached, as Ctrl-C does. Fine if none runs."""
    from host.cli.preflight import RunLock, holder_pid, remove_sockets
    from host.config.run_dir import RunDirectory
    from host.isolation.prepare import clear

    settings = load(config_file, flags).settings
    run_dir = RunDirectory(settings.run_dir)
    if not run_dir.lock.exists():
        click.echo(f"no host runs in {run_dir.root}")
        return 0
    pid = holder_pid(run_dir)
    if pid is not None:
        click.echo(f"draining the host in {run_dir.root} ...")
        _stop_holder(run_dir, settings.grace_s + 2 * settings.drain_s + _MARGIN_S)
    # From here on nobody starts a host in this directory.
    with RunLock(run_dir):
        stopped = _stop_supervisor(run_dir) or pid is not None
        clear(run_dir)
        remove_sockets(run_dir)
    click.echo("stopped" if stopped else f"no host runs in {run_dir.root}")
    return 0


def _stop_holder(run_dir: RunDirectory, limit_s: float) -> None:
    """Ask the `up` of a run directory to stop, once; wait until it lets go of the lock and is gone."""
    from host.cli.preflight import holder_pid

    deadline = time.monotonic() + limit_s
    asked = 0
    while (pid := holder_pid(run_dir)) is not None:
        # 0 is one that has not written its pid yet, or is about to end.
        if pid not in (0, asked):
            _terminate(pid)
            asked = pid
        if time.monotonic() > deadline:
            raise HostError(
                f"the host (pid {pid}) has not stopped after {limit_s:.0f} s; its messages: {run_dir.log('up')}"
            )
        time.sleep(_LOOK_S)
    # It lets go of the lock with its last breath. Under a parent that does not reap it, its entry stays for longer.
    deadline = min(deadline, time.monotonic() + _LAST_BREATH_S)
    while asked and Path(f"/proc/{asked}").exists() and time.monotonic() < deadline:
        time.sleep(_LOOK_S / 10)


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise HostError(f"the host (pid {pid}) is somebody else's: only they or root can stop it") from None


def _stop_supervisor(run_dir: RunDirectory) -> bool:
    """Stop a supervisord that runs without its `up`: that was killed, or somebody started it by hand."""
    from host.cli.preflight import OLD_SUPERVISOR_S, wait_for_old_supervisor
    from host.supervisor import SupervisorClient, SupervisorFault, SupervisorUnreachable

    client = SupervisorClient(run_dir.supervisor_socket)
    try:
        client.call("shutdown")
    except SupervisorUnreachable:
        return False
    except SupervisorFault:
        pass  # it is stopping already
    wait_for_old_supervisor(run_dir, OLD_SUPERVISOR_S)
    return True
