"""`modelhost restart`: start processes again, one after the other, and forget that they were failing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from host.cli.options import load, settings_options
from host.protocol.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from host.cli.changes import RunningState
    from host.config.run_dir import RunDirectory
    from host.control.status import HostStatus, SlotStatus

_LOOK_S: Final = 0.05
_MARGIN_S: Final = 15.0


@click.command("restart")
@click.argument("names", metavar="NAME ...", nargs=-1, required=True)
@click.option(
    "--in-place", is_flag=True, help="without one process more meanwhile: on a host that has no memory for it"
)
@settings_options("run_dir", "drain_s")
def command(names: tuple[str, ...], in_place: bool, config_file: str | None, **flags: str | None) -> int:
    """Restart processes one by one: each is ready before the next one stops.

    NAME is a model ("churn"), one version ("churn.v3"), one process ("churn.v3:0"), or what serves them: "front",
    "features", "control". A model has one process more until it is done, so no request fails, even if it has only one;
    of the others the same holds with two or more of a kind. So another release of modelhost takes over on a host that
    runs: install it, then restart front, features, control and every model. A slot that backs off because its
    processes died soon starts at once.
    """
    from host.cli.changes import RunningState
    from host.config.run_dir import RunDirectory

    settings = load(config_file, flags).settings
    run_dir = RunDirectory(settings.run_dir)
    state = RunningState(run_dir)
    status = state.status()
    slots = chosen(status, names)
    groups = {slot.name.partition(":")[0] for model in status.models for slot in model.slots}
    workers: dict[str, list[SlotStatus]] = {}
    for slot in slots:
        group = slot.name.partition(":")[0]
        if group in groups:
            workers.setdefault(group, []).append(slot)
            continue
        click.echo(f"{slot.name}: restarting ...")
        _restart(run_dir, slot, settings.drain_s + _MARGIN_S)
        click.echo(f"{slot.name}: ready")
    what = " ".join(["restart", *names, *(["--in-place"] if in_place else [])])
    for group, some in workers.items():
        click.echo(f"{group}: restarting ...")
        _restart_workers(state, group, some, what, in_place)
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


def _restart_workers(state: RunningState, group: str, slots: Sequence[SlotStatus], what: str, in_place: bool) -> None:
    """Have control replace processes of a version, and wait until their successors serve. Raises `HostError`."""
    for slot in slots:
        state.run_dir.slot_lives(slot.name).unlink(missing_ok=True)
    with state.lock():
        try:
            change = state.restart(group, [number_of(slot) for slot in slots], what, in_place=in_place)
        except ConfigError as error:
            hint = f"{group} has one process more while it restarts; --in-place does without it"
            raise ConfigError(*error.problems, *([] if in_place else [hint])) from None
    deadline = time.monotonic() + change.wait_limit_s
    left = {slot.name: slot for slot in slots}
    while left:
        now = {name: one for names, one in _slots(state.status()) for name in names if name == one.name}
        for name, slot in list(left.items()):
            if name not in now:
                raise HostError(f"{name} is gone: another change has taken it away; see modelhost history")
            if now[name].ready and now[name].pid != slot.pid:
                click.echo(f"{name}: ready")
                del left[name]
            elif _died_since(slot, now[name]) or time.monotonic() > deadline:
                raise _not_ready(state.run_dir, slot, now[name], change.wait_limit_s)
        time.sleep(_LOOK_S)


def number_of(slot: SlotStatus) -> int:
    """Of a worker's slot: 0 of `churn.v3:0`."""
    return int(slot.name.partition(":")[2])


def _died_since(before: SlotStatus, now: SlotStatus) -> bool:
    return sum(now.deaths.values()) > sum(before.deaths.values())


def _not_ready(run_dir: RunDirectory, before: SlotStatus, now: SlotStatus | None, limit_s: float) -> HostError:
    reason = f"not within {limit_s:.0f} s"
    if now is not None and now.last_exit is not None and _died_since(before, now):
        reason = now.last_exit.reason
    return HostError(f"{before.name} is not ready: {reason}; its log: {run_dir.log(before.name)}")


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
    client.call("startProcess", slot.name, False)
    deadline = time.monotonic() + limit_s
    while True:
        status = msgspec.json.decode(fetch_status(run_dir), type=HostStatus)
        now = next((one for _, one in _slots(status) if one.name == slot.name), None)
        if now is not None and now.ready and now.pid != slot.pid and _serves(run_dir, slot.name):
            return
        if now is None or _died_since(slot, now) or time.monotonic() > deadline:
            raise _not_ready(run_dir, slot, now, limit_s)
        time.sleep(_LOOK_S)
