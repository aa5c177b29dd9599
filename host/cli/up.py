"""`modelhost up`: run the host, in the foreground or detached."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from host.cli.options import load, settings_options

if TYPE_CHECKING:
    from host.cli.preflight import Plan
    from host.config.settings import HostSettings

_READY: Final = b"r"


@click.command("up")
@click.option("-d", "--detach", is_flag=True, help="return when the host is ready, and leave it running")
@click.option("-k", "--keep-going", is_flag=True, help="serve what starts, and go on trying the rest (for services)")
@settings_options()
def command(detach: bool, keep_going: bool, config_file: str | None, **flags: str | None) -> int:
    """Run the host until Ctrl-C or `modelhost down`: front, control and every model's processes.

    Says when everything is ready. If a model does not start, says why, stops the rest and ends with 1; with
    --keep-going it serves the others.
    """
    from host.cli.preflight import make_plan, prepare_run_dir

    loaded = load(config_file, flags)
    plan = make_plan(loaded)
    prepare_run_dir(plan.run_dir)
    if detach:
        return _detach(plan, keep_going)
    return _run(plan, keep_going, lambda: None)


def _run(plan: Plan, keep_going: bool, when_ready: Callable[[], None]) -> int:
    import asyncio

    from host.cli.preflight import RunLock, check_ports, clear_leftovers, remove_sockets
    from host.cli.running import RunningHost
    from host.isolation.prepare import clear, prepare

    def ready() -> None:
        _announce(plan)
        when_ready()

    async def run() -> None:
        await RunningHost(plan, os.environ, _say, keep_going=keep_going).run(ready)

    with RunLock(plan.run_dir):
        clear_leftovers(plan.run_dir)
        check_ports(plan.settings)
        programs = plan.programs
        try:
            _say_missing(
                prepare(plan.settings, plan.deployment, plan.grants, programs.code_root, programs.model_python)
            )
            asyncio.run(run())
        finally:
            clear(plan.run_dir)
            remove_sockets(plan.run_dir)
    return 0


def _say_missing(missing: tuple[str, ...]) -> None:
    """What the models are not kept from on this host."""
    if missing:
        _say("isolation: this host does not allow" + "".join(f"\n  {one}" for one in missing))


def _say(text: str) -> None:
    """Report; a terminal or reader that is gone must not keep the host from stopping."""
    try:
        click.echo(text)
    except OSError:
        pass


def _detach(plan: Plan, keep_going: bool) -> int:
    """Run in a child that leaves the terminal once it is ready; until then its messages are ours."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(theirs)
        try:
            is_ready = os.read(ours, 1) == _READY
            status = 0 if is_ready else os.waitpid(pid, 0)[1]
        except KeyboardInterrupt:
            _interrupt(pid)
            raise
        finally:
            os.close(ours)
        if is_ready:
            where = shlex.quote(str(plan.run_dir.root))
            click.echo(f"running in the background (pid {pid}); stop it with: modelhost down --run-dir {where}")
            return 0
        # What went wrong has been said by the child.
        sys.stdout.flush()
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF or 1)
    os.close(ours)
    os.setsid()

    def leave_terminal() -> None:
        _say(f"messages go to {plan.run_dir.log('up')}")
        log = os.open(plan.run_dir.log("up"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.write(theirs, _READY)
        os.close(theirs)

    return _run(plan, keep_going, leave_terminal)


def _interrupt(pid: int) -> None:
    """Hand Ctrl-C on to the child, which has left our session, as often as it comes; then wait for its end.

    How long that takes at most is up to the child, as in the foreground.
    """
    while True:
        try:
            os.kill(pid, signal.SIGINT)
            os.waitpid(pid, 0)
        except KeyboardInterrupt:
            continue
        except (ProcessLookupError, ChildProcessError):  # it came when the child had just ended
            pass
        return


def _announce(plan: Plan) -> None:
    from host.cli.example import base_url, curl_command
    from host.cli.printing import make_table, table_text

    table = make_table("model", "version", "processes", "platform", "path")
    models, example = plan.deployment.models, ""
    if models:
        example = f"try it:\n  {curl_command(plan.settings, models[0], plan.run_dir.root / 'example.json')}\n\n"
    for model in models:
        path = f"/v2/models/{model.name}" + ("" if model.default else f"/versions/{model.version}")
        table.add_row(model.name, model.version, str(model.processes), model.platform, f"{path}/infer")
    _say(
        f"\n{table_text(table) if models else 'no model is to run'}\nready: {base_url(plan.settings)}\n"
        f"{_admin(plan.settings)}\n"
        f"{example}"
        f"processes: {_supervisorctl()} -c {shlex.quote(str(plan.run_dir.supervisor_config))} status\n"
    )


def _admin(settings: HostSettings) -> str:
    """Where metrics and status are, if anywhere on the network."""
    from host.cli.example import admin_url

    if not settings.admin_port:
        return ""
    url = admin_url(settings)
    return f"status page: {url}/\nmetrics: {url}/metrics\n"


def _supervisorctl() -> str:
    """The one that was installed with us, which need not be on the PATH."""
    beside = Path(sys.executable).with_name("supervisorctl")
    return shlex.quote(str(beside)) if beside.exists() else "supervisorctl"
