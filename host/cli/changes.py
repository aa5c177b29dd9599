"""Changing what a running host should run: say what differs, and wait until the host is so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import click
import msgspec

from host.cli.preflight import holder_pid
from host.cli.status import NotRunning, fetch_status
from host.config.run_dir import RunDirectory
from host.control.desired import Change, DesiredState
from host.control.status import HostStatus, ModelStatus, VersionState
from host.protocol.errors import HostError

ROUTED_S: Final = 10.0
"""Control acts on a change at once; this is for one that is being started again."""

_LOOK_S: Final = 0.1


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a change: the document of `--json`."""

    changed: bool
    generation: int
    differences: tuple[str, ...]
    converged: bool | None
    """None: nobody waited."""
    failures: tuple[str, ...] = ()


class RunningState(DesiredState):
    """The desired state of a host that runs, and what has become of it."""

    def __init__(self, run_dir: RunDirectory) -> None:
        """Raises `HostError` if no host runs there."""
        if holder_pid(run_dir) is None:
            raise HostError(f"no host runs in {run_dir.root}; start it with: modelhost up")
        super().__init__(run_dir)

    def status(self) -> HostStatus:
        """What control says. Raises `HostError`."""
        return msgspec.json.decode(fetch_status(self.run_dir), type=HostStatus)

    def needs_retry(self) -> bool:
        """Whether something failed or was stopped by an operator, which the next generation starts again."""
        status = self.status()
        wanted = (model for model in status.models if model.state in (VersionState.SERVING, VersionState.FAILED))
        return any(
            model.state is VersionState.FAILED or any(slot.state == "STOPPED" for slot in model.slots)
            for model in wanted
        )

    def wait_until_routed(self, generation: int) -> None:
        """Wait until the fronts have been told of a generation. Raises `HostError` if that takes too long."""
        deadline = time.monotonic() + ROUTED_S
        while self.status().generation < generation or not self.status().settled:
            if time.monotonic() > deadline:
                raise HostError("control does not act on the change; see modelhost status")
            time.sleep(_LOOK_S)


# -- waiting --------------------------------------------------------------------------------------------------
def wait_until_settled(state: RunningState, change: Change, report: Callable[[str], None]) -> list[str]:
    """Wait until the host is as it should be; return what failed, with the last lines of its log.

    Raises `HostError` if it takes too long, or another change came between.
    """
    deadline = time.monotonic() + change.wait_limit_s
    told: dict[str, str] = {}
    while True:
        try:
            status = state.status()
        except NotRunning:
            raise
        except HostError:  # control or supervisord is being started again
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)
            continue
        if status.generation > change.generation:
            raise HostError("another change has replaced this one; see modelhost history")
        if status.generation == change.generation:
            for model in status.models:
                group, words = f"{model.name} version {model.version}", _progress(model)
                if told.get(group) != words:
                    told[group] = words
                    report(f"{group}: {words}")
            if status.settled:
                failures = [_failure(model) for model in status.models if model.state is VersionState.FAILED]
                if failures or _all_ready(status):
                    return failures
        if time.monotonic() > deadline:
            raise HostError(f"not done after {change.wait_limit_s:.0f} s; see modelhost status")
        time.sleep(_LOOK_S)


def _all_ready(status: HostStatus) -> bool:
    return all(model.ready >= model.wanted for model in status.models if model.state is VersionState.SERVING)


def _progress(model: ModelStatus) -> str:
    match model.state:
        case VersionState.STARTING:
            return f"{model.ready} of {model.wanted} ready"
        case VersionState.SERVING:
            return "serving" if model.ready >= model.wanted else f"serving, {model.ready} of {model.wanted} ready"
        case VersionState.FAILED:
            return "given up"
        case VersionState.REPLACED:
            return "serving until its successor is ready"
        case VersionState.LEAVING:
            return "finishing what it has"


def _failure(model: ModelStatus) -> str:
    lines = "".join(f"\n  {line}" for line in model.log)
    return f"{model.name} version {model.version}: {model.reason}{lines}"


def finish(state: RunningState, change: Change, *, wait: bool, as_json: bool, dry_run: bool = False) -> int:
    """Say what changes, wait if that was asked for, and return the exit code."""
    from host.cli.printing import print_json

    changed = bool(change.differences)
    if not as_json:
        click.echo("\n".join(change.differences) or "nothing to change")
    failures: list[str] = []
    converged = None
    if wait and not dry_run:
        try:
            failures = wait_until_settled(state, change, lambda text: None if as_json else click.echo(text))
        except KeyboardInterrupt:
            if not as_json:
                click.echo("\nnot waiting any more; the change goes on: modelhost status")
            raise
        converged = not failures
    if as_json:
        print_json(
            Outcome(
                changed=changed,
                generation=change.generation,
                differences=change.differences,
                converged=converged,
                failures=tuple(failures),
            )
        )
    elif failures:
        raise HostError("\n".join([*failures, "what was served before is served on"]))
    elif wait and not dry_run:
        click.echo("done")
    elif changed and not dry_run:
        click.echo("the host makes it so; see: modelhost status")
    return 1 if failures else 0
