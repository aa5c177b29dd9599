"""`modelhost up`: run the host, in the foreground or detached."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from host.cli.options import load, settings_options

if TYPE_CHECKING:
    from host.cli.preflight import Plan

_READY: Final = b"r"


@click.command("up")
@click.option("-d", "--detach", is_flag=True, help="return when the host is ready, and leave it running")
@settings_options()
def command(detach: bool, config_file: str | None, **flags: str | None) -> int:
    """Run the host until Ctrl-C or `modelhost down`: front, control and every model's processes.

    Says when everything is ready. If a model does not start, says why, stops the rest and ends with 1.
    """
    from host.cli.preflight import make_plan, prepare_run_dir

    loaded = load(config_file, flags)
    plan = make_plan(loaded)
    prepare_run_dir(plan.run_dir)
    if detach:
        return _detach(plan)
    return _run(plan, lambda: None)


def _run(plan: Plan, when_ready: Callable[[], None]) -> int:
    import asyncio

    from host.cli.preflight import RunLock, check_port, clear_leftovers, remove_sockets
    from host.cli.running import RunningHost
    from host.isolation.prepare import clear, prepare

    def ready() -> None:
        _announce(plan)
        when_ready()

    async def run() -> None:
        await RunningHost(plan, os.environ, _say).run(ready)

    with RunLock(plan.run_dir):
        clear_leftovers(plan.run_dir)
        check_port(plan.settings.address, plan.settings.port)
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


def _detach(plan: Plan) -> int:
    """Run in a child that leaves the terminal once it is ready; until then its messages are ours."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(theirs)
        if os.read(ours, 1) == _READY:
            where = shlex.quote(str(plan.run_dir.root))
            click.echo(f"running in the background (pid {pid}); stop it with: modelhost down --run-dir {where}")
            return 0
        _, status = os.waitpid(pid, 0)
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

    return _run(plan, leave_terminal)


def _announce(plan: Plan) -> None:
    from host.cli.example import base_url, curl_command
    from host.cli.printing import make_table, table_text

    table = make_table("model", "version", "processes", "platform", "path")
    for model in plan.deployment.models:
        path = f"/v2/models/{model.name}" + ("" if model.default else f"/versions/{model.version}")
        table.add_row(model.name, model.version, str(model.processes), model.platform, f"{path}/infer")
    _say(
        f"\n{table_text(table)}\nready: {base_url(plan.settings)}\n\n"
        f"try it:\n  {curl_command(plan.settings, plan.deployment.models[0], plan.run_dir.root / 'example.json')}\n\n"
        f"processes: {_supervisorctl()} -c {shlex.quote(str(plan.run_dir.supervisor_config))} status\n"
    )


def _supervisorctl() -> str:
    """The one that was installed with us, which need not be on the PATH."""
    beside = Path(sys.executable).with_name("supervisorctl")
    return shlex.quote(str(beside)) if beside.exists() else "supervisorctl"
