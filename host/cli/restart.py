"""`modelhost restart`: start processes again, one after the other, and forget that they were failing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from host.cli.options import load, settings_options
from host.protocol.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from host.config.run_dir import RunDirectory
    from host.control.status import HostStatus, SlotStatus

_LOOK_S: Final = 0.05
_MARGIN_S: Final = 15.0


@click.command("restart")
@click.argument("names", metavar="NAME ...", nargs=-1, required=True)
@settings_options("run_dir", "drain_s")
def command(names: tuple[str, ...], config_file: str | None, **flags: str | None) -> int:
    """Restart processes one by one: each is ready before the next one stops.

    NAME is a model ("churn"), one version ("churn.v3"), one process ("churn.v3:0"), or what serves them: "front",
    "features", "control". With two or more of a kind no request fails; so another release of modelhost takes over on a
    host that runs: install it, then restart front, features, control and every model. A slot that backs off because its
    processes died soon starts at once.
    """
    import msgspec

    from host.cli.status import fetch_status
    from host.config.deployment import read_deployment
    from host.config.run_dir import RunDirectory, group_name
    from host.control.status import HostStatus

    settings = load(config_file, flags).settings
    run_dir = RunDirectory(settings.run_dir)
    status = msgspec.json.decode(fetch_status(run_dir), type=HostStatus)
    slots = chosen(status, names)
    models = read_deployment(run_dir.deployment).models
    startup_s = {group_name(model.name, model.version): model.limits.startup_s for model in models}
    for slot in slots:
        click.echo(f"{slot.name}: restarting ...")
        limit_s = startup_s.get(slot.name.partition(":")[0], 0) + settings.drain_s + _MARGIN_S
        _restart(run_dir, slot, limit_s)
        click.echo(f"{slot.name}: ready")
    return 0


def chosen(status: HostStatus, names: Sequence[str]) -> list[SlotStatus]:
    """The slots that the names mean. Raises `ConfigError` for a name that means none."""
    found: dict[str, SlotStatus] = {}
    problems: list[str] = []
    for name in names:
        some = [slot for names, slot in _slots(status) if name in names]
        if not some:
            known = ", ".join(dict.fromkeys(names[0] for names, _ in _slots(status)))
            problems.append(f"expected a model, version or process of this host ({known}), received {name!r}")
        found.update((slot.name, slot) for slot in some)
    if problems:
        raise ConfigError(*problems)
    return list(found.values())


def _serves(run_dir: RunDirectory, program: str) -> bool:
    """Whether a front listens: it makes its socket for control after that. Others are what control says."""
    group, _, index = program.partition(":")
    return group != "front" or run_dir.front_socket(int(index)).exists()


def _slots(status: HostStatus) -> Iterator[tuple[tuple[str, ...], SlotStatus]]:
    """Every process, with the names that mean it."""
    for model in status.models:
        for slot in model.slots:
            yield (model.name, slot.name.partition(":")[0], slot.name), slot
    for slot in status.host:
        yield (slot.name.partition(":")[0], slot.name), slot


def _restart(run_dir: RunDirectory, slot: SlotStatus, limit_s: float) -> None:
    """Stop one process and wait until its successor serves. Raises `HostError`."""
    import msgspec

    from host.cli.status import fetch_status
    from host.control.status import HostStatus
    from host.supervisor import FAULT_NOT_RUNNING, SupervisorClient, SupervisorFault

    client = SupervisorClient(run_dir.supervisor_socket, timeout_s=limit_s)
    try:
        client.call("stopProcess", slot.name)
    except SupervisorFault as fault:
        if fault.code != FAULT_NOT_RUNNING:
            raise
    run_dir.slot_lives(slot.name).unlink(missing_ok=True)
    client.call("startProcess", slot.name, False)
    deadline = time.monotonic() + limit_s
    while True:
        status = msgspec.json.decode(fetch_status(run_dir), type=HostStatus)
        now = next((one for _, one in _slots(status) if one.name == slot.name), None)
        if now is not None and now.ready and now.pid != slot.pid and _serves(run_dir, slot.name):
            return
        died = now is not None and sum(now.deaths.values()) > sum(slot.deaths.values())
        if now is None or died or time.monotonic() > deadline:
            reason = (
                now.last_exit.reason if now is not None and died and now.last_exit else f"not within {limit_s:.0f} s"
            )
            raise HostError(f"{slot.name} is not ready: {reason}; its log: {run_dir.log(slot.name)}")
        time.sleep(_LOOK_S)
