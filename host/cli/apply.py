"""`modelhost apply`: make a host what its deployment file says."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from host.cli.options import load, settings_options

if TYPE_CHECKING:
    from host.cli.changes import Outcome, RunningState
    from host.config.settings import LoadedSettings
    from host.protocol.errors import ConfigError, HostError

TEXT_MAX_BYTES: Final = 4 << 20
"""Of a deployment file that is handed over; 256 models with every key take some 100 KiB."""

_STANDARD_INPUT: Final = Path("-")


@click.command("apply")
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@click.option("--wait", is_flag=True, help="return when the host is so; ends with 1 and the reason if it cannot be")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="with --wait: at most so long (default: as long as everything that starts may take)",
)
@click.option("--dry-run", is_flag=True, help="check everything and show what would change")
@click.option(
    "--allow-stopped", is_flag=True, help="with FILE: if no host runs, check it as up does, for the next start"
)
@click.option("--json", "as_json", is_flag=True, help="write the outcome as a document, also if it is refused")
@settings_options("run_dir")
def command(
    file: Path | None,
    wait: bool,
    timeout_s: float | None,
    dry_run: bool,
    allow_stopped: bool,
    as_json: bool,
    config_file: str | None,
    **flags: str | None,
) -> int:
    """Make the running host what its deployment file says, without a failed request.

    Everything is checked before anything changes. A new version is started beside the old one, and served when all of
    its processes have loaded, warmed up and reproduced their golden cases; then the old one finishes what it has and
    stops. If the new one fails, it is removed, and the old one is served on. With FILE (- for standard input): that
    becomes the host's deployment file first. Applying a file twice changes nothing; what had failed, or was stopped
    with supervisorctl, is started again.
    """
    from host.cli.main import EXIT_FAILED
    from host.protocol.errors import ConfigError, HostError

    try:
        loaded = load(config_file, flags)
        given = None if file is None else _read(file)
        if allow_stopped and given is not None and not _is_running(loaded):
            outcome = _apply_stopped(loaded, given, dry_run=dry_run)
            if outcome.error and not as_json:
                raise HostError(outcome.error)
            _show(outcome, as_json=as_json, dry_run=dry_run)
            return EXIT_FAILED if outcome.error else 0
        what = "apply" if file in (None, _STANDARD_INPUT) else f"apply {file.name}"
        return _apply(loaded, given, what, wait=wait, timeout_s=timeout_s, dry_run=dry_run, as_json=as_json)
    except (ConfigError, HostError) as error:
        if not as_json:
            raise
        return _refused(error)


def _apply(
    loaded: LoadedSettings,
    given: str | None,
    what: str,
    *,
    wait: bool,
    timeout_s: float | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Apply the text that is given, or the deployment file as it is, to the host that runs."""
    from host.cli.changes import RunningState, finish
    from host.config.run_dir import RunDirectory

    state = RunningState(RunDirectory(loaded.settings.run_dir))
    with state.lock():
        previous, text = _texts(state, given)
        change = state.change(text, what, dry_run=dry_run, retry=state.needs_retry())
    return finish(state, change, wait=wait, as_json=as_json, dry_run=dry_run, timeout_s=timeout_s, previous=previous)


def _texts(state: RunningState, given: str | None) -> tuple[str | None, str]:
    """The deployment file as it was, and as it is to be. Raises `ConfigError`."""
    from host.protocol.errors import ConfigError

    if given is None:
        text = state.text()
        return text, text
    try:
        return state.text(), given
    except ConfigError:  # what cannot be read is no reason against what can
        return None, given


def _is_running(loaded: LoadedSettings) -> bool:
    from host.cli.preflight import holder_pid
    from host.config.run_dir import RunDirectory

    return holder_pid(RunDirectory(loaded.settings.run_dir)) is not None


def _read(file: Path) -> str:
    """Raises `ConfigError`."""
    from host.protocol.errors import ConfigError

    try:
        if file == _STANDARD_INPUT:
            data = sys.stdin.buffer.read(TEXT_MAX_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(TEXT_MAX_BYTES + 1)
        if len(data) > TEXT_MAX_BYTES:
            raise ConfigError(f"{file}: expected a deployment file of at most {TEXT_MAX_BYTES} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error


def _apply_stopped(loaded: LoadedSettings, text: str, *, dry_run: bool) -> Outcome:
    """Check a deployment as `up` does, and make it the file that the next one reads.

    If a host was started meanwhile, the outcome says so as its error. Raises `ConfigError`.
    """
    from host.cli.changes import Outcome
    from host.cli.preflight import make_plan
    from host.config.deployment import Deployment, load_deployment
    from host.config.deployment_file import draft_of, write_deployment_file
    from host.config.run_dir import RunDirectory
    from host.control.desired import change_lock, differences_of
    from host.protocol.errors import ConfigError

    file, settings = loaded.deployment_file, loaded.settings
    run_dir = RunDirectory(settings.run_dir)
    with change_lock(run_dir) if run_dir.root.is_dir() else nullcontext():
        try:
            held = file.read_bytes() if file.is_file() else None
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
        with draft_of(file, text) as draft:
            after = make_plan(replace(loaded, settings=replace(settings, deployment=draft))).deployment
        before = Deployment()
        if held is not None:
            try:
                before = load_deployment(settings.repository, file, settings.environments, settings.features)
            except ConfigError:  # what was wrong is no reason against what is right
                before = Deployment()
        written = held != text.encode()
        is_running = False
        if written and not dry_run:
            write_deployment_file(file, text)
            is_running = _is_running(loaded)
    return Outcome(
        running=is_running,
        file=str(file),
        previous=None if held is None else held.decode(errors="replace"),
        changed=written,
        written=written,
        generation=0,
        differences=tuple(differences_of(before, after)),
        converged=None,
        error="a host was started meanwhile, perhaps with the file as it was: apply it again" if is_running else "",
    )


def _show(outcome: Outcome, *, as_json: bool, dry_run: bool) -> None:
    """What came of it where no host runs."""
    from host.cli.printing import print_json

    if as_json:
        print_json(outcome)
        return
    click.echo("\n".join(outcome.differences) or "nothing to change")
    if outcome.written and not dry_run:
        click.echo("no host runs; this is what modelhost up will run")


def _refused(error: ConfigError | HostError) -> int:
    """Say it as a document; the exit code is the same as without one."""
    from host.cli.changes import Outcome
    from host.cli.main import EXIT_FAILED, EXIT_OPERATOR
    from host.cli.printing import print_json
    from host.cli.status import NotRunning
    from host.protocol.errors import ConfigError

    refused = isinstance(error, ConfigError)
    print_json(
        Outcome(
            running=not isinstance(error, NotRunning),
            changed=False,
            generation=0,
            differences=(),
            converged=None,
            problems=error.problems if isinstance(error, ConfigError) else (),
            error="" if refused else str(error),
        )
    )
    return EXIT_OPERATOR if refused else EXIT_FAILED
