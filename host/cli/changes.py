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


class VersionOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Where one model version stands, in short: `modelhost status` says more."""

    name: str
    version: str
    default: bool
    state: VersionState
    wanted: int
    ready: int
    pids: tuple[int, ...]
    reason: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a change, or was refused: the document of `--json`."""

    running: bool = True
    changed: bool
    """Whether the host is to run something else than before; of a host that does not run, whether the file changed."""
    written: bool = False
    """Whether the deployment file got other bytes."""
    retried: bool = False
    """Nothing differs, and what had failed or was stopped is started again."""
    generation: int
    differences: tuple[str, ...]
    converged: bool | None
    """None: nobody waited."""
    failures: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """Why it was refused: then nothing has changed. Exit code 2."""
    error: str = ""
    """What else went wrong; if `differences` are there, after the change was made known to the host, or its file was
    written. Exit code 1.
    """
    file: str = ""
    """The deployment file."""
    previous: str | None = None
    """What it held before; of a host that ran without one, a file that says what ran. None: nothing at all."""
    models: tuple[VersionOutcome, ...] = ()
    """As control saw them last."""


class RunningState(DesiredState):
    """The desired state of a host that runs, and what has become of it."""

    def __init__(self, run_dir: RunDirectory) -> None:
        """Raises `HostError` if no host runs there."""
        if holder_pid(run_dir) is None:
            raise NotRunning(f"no host runs in {run_dir.root}; start it with: modelhost up")
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
def wait_until_settled(
    state: RunningState, change: Change, report: Callable[[str], None], timeout_s: float | None = None
) -> list[str]:
    """Wait until the host is as it should be; return what failed, with the last lines of its log.

    `timeout_s`: at most so long, if that is less than the host may take. Raises `HostError` if it takes too long, or
    another change came between.
    """
    limit_s = min(change.wait_limit_s, timeout_s or change.wait_limit_s)
    deadline = time.monotonic() + limit_s
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
            raise HostError(f"not done after {limit_s:g} s, and going on; see modelhost status")
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


def finish(
    state: RunningState,
    change: Change,
    *,
    wait: bool,
    as_json: bool,
    dry_run: bool = False,
    timeout_s: float | None = None,
    previous: str | None = None,
) -> int:
    """Say what changes, wait if that was asked for, and return the exit code. Raises `HostError` unless `as_json`."""
    from host.cli.printing import print_json

    changed = bool(change.differences)
    if not as_json:
        click.echo("\n".join(change.differences) or "nothing to change")
    failures: list[str] = []
    error: HostError | None = None
    waited = wait and not dry_run
    if waited:
        try:
            report = (lambda _: None) if as_json else click.echo
            failures = wait_until_settled(state, change, report, timeout_s)
        except KeyboardInterrupt:
            if not as_json:
                click.echo("\nnot waiting any more; the change goes on: modelhost status")
            raise
        except HostError as problem:
            if not as_json:
                raise
            error = problem
    if as_json:
        print_json(
            Outcome(
                running=not isinstance(error, NotRunning),
                changed=changed,
                written=change.written,
                retried=change.retried,
                generation=change.generation,
                differences=change.differences,
                converged=not failures and error is None if waited else None,
                failures=tuple(failures),
                error=str(error or ""),
                file=str(state.file),
                previous=previous,
                models=_where_they_stand(state),
            )
        )
    elif failures:
        raise HostError("\n".join([*failures, "what was served before is served on"]))
    elif waited:
        click.echo("done")
    elif changed and not dry_run:
        click.echo("the host makes it so; see: modelhost status")
    return 1 if failures or error is not None else 0


def _where_they_stand(state: RunningState) -> tuple[VersionOutcome, ...]:
    try:
        models = state.status().models
    except HostError:  # nothing can be said of them
        return ()
    return tuple(
        VersionOutcome(
            name=model.name,
            version=model.version,
            default=model.default,
            state=model.state,
            wanted=model.wanted,
            ready=model.ready,
            pids=tuple(slot.pid for slot in model.slots if slot.pid),
            reason=model.reason,
        )
        for model in models
    )
