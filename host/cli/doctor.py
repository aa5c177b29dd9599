"""`modelhost doctor`: check a host end to end; say what is wrong, where, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from host.cli.options import load, settings_options
from host.doctor.findings import Group
from host.protocol.errors import ConfigError, HostError

if TYPE_CHECKING:
    from rich.text import Text

    from host.cli.printing import PlainTable
    from host.config.settings import LoadedSettings
    from host.doctor.examination import Examined
    from host.doctor.findings import Finding, Level

_CLEAR_LINE: Final = "\r\x1b[K"


@click.command("doctor")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([group.value for group in Group]),
    metavar="GROUP",
    help="look only at this group; may be given several times: " + ", ".join(group.value for group in Group),
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="of the models look only at this one (churn) or this version (churn.v3), which must be served; several times",
)
@click.option("--verbose", is_flag=True, help="show what is as it should be, too")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@settings_options()
def command(
    only: Sequence[str],
    models: Sequence[str],
    verbose: bool,
    as_json: bool,
    config_file: str | None,
    **flags: str | None,
) -> int:
    """Check a host end to end: what it is made of, what this machine allows, and, if it runs, every part of it, down
    to one request for each model version. Say what is wrong and what to do.

    A host that runs in the run directory is checked with the settings that it was started with. Changes nothing.
    Ends with 1 if something fails; warnings alone are no failure.
    """
    from host.cli.printing import print_json
    from host.doctor.findings import Level, worst

    groups = [Group(name) for name in only]
    examined = _examine(_load(config_file, flags), groups, models)
    level = worst(finding for one in examined for finding in one.findings)
    if as_json:
        print_json(document(examined))
    else:
        _print(examined, verbose=verbose)
    return 1 if level is Level.FAIL else 0


def _load(config_file: str | None, flags: dict[str, str | None]) -> LoadedSettings | ConfigError:
    """The settings, or what is wrong with their file. Raises `ConfigError` for what is wrong on the command line."""
    if config_file is not None and not Path(config_file).is_file():
        raise ConfigError(f"--config: expected a file, found none: {config_file}")
    try:
        return load(config_file, flags)
    except ConfigError as error:
        given = [problem for problem in error.problems if problem.startswith("command line: ")]
        if given:
            raise ConfigError(*given) from error
        return error


def _examine(loaded: LoadedSettings | ConfigError, groups: Sequence[Group], models: Sequence[str]) -> list[Examined]:
    from host.doctor.checks import check_configuration
    from host.doctor.examination import LIMIT_S, Examination, Examined, within
    from host.doctor.facts import ConfigurationFacts
    from host.doctor.target import find_target

    if isinstance(loaded, ConfigError):
        facts = ConfigurationFacts(source="settings", problems=loaded.problems, versions=0, processes=0)
        return [Examined(group=Group.CONFIGURATION, findings=tuple(check_configuration(facts)), took_s=0.0)]
    try:
        target = within(LIMIT_S, lambda: find_target(loaded))
    except TimeoutError:
        where = f"{loaded.settings.run_dir} or {loaded.settings.repository}"
        raise HostError(f"{where} cannot be read within {LIMIT_S:.0f} s: its disk or file system hangs") from None
    begin, end = _progress()
    try:
        return list(Examination(target, models).run(groups, begin))
    finally:
        end()


def _progress() -> tuple[Callable[[Group], None], Callable[[], None]]:
    """A line that says what is being looked at, on a terminal; nothing of it stays."""
    if not sys.stderr.isatty():
        return (lambda _: None), (lambda: None)
    places = {group: place for place, group in enumerate(Group, 1)}

    def begin(group: Group) -> None:
        click.echo(f"{_CLEAR_LINE}{places[group]} of {len(places)}: {group.value} ...", err=True, nl=False)

    return begin, lambda: click.echo(_CLEAR_LINE, err=True, nl=False)


def document(examined: Sequence[Examined]) -> dict[str, Any]:
    """What `--json` writes."""
    from host.doctor.findings import worst

    return {
        "level": worst(finding for one in examined for finding in one.findings).value,
        "groups": [
            {"group": one.group.value, "level": worst(one.findings).value, "seconds": round(one.took_s, 3)}
            for one in examined
        ],
        "findings": [finding for one in examined for finding in one.findings],
    }


def _print(examined: Sequence[Examined], *, verbose: bool) -> None:
    """One line for each group that is well; of the others every finding that is not, with what to do below it."""
    from host.cli.printing import make_table, print_table
    from host.doctor.findings import Level, worst

    table = make_table("", "", "")
    table.show_header = False
    for one in examined:
        bad = [finding for finding in one.findings if finding.level is not Level.OK]
        shown = list(one.findings) if verbose else bad
        if not shown:
            table.add_row(one.group.value, _word(Level.OK), _summary(one.findings))
        for place, finding in enumerate(shown):
            _add(table, one.group.value if place == 0 else "", finding)
    print_table(table)
    counts = dict.fromkeys(Level, 0)
    for one in examined:
        counts[worst(one.findings)] += 1
    failing, warning = counts[Level.FAIL], counts[Level.WARN]
    if failing or warning:
        click.echo(f"\n{failing} of {len(examined)} groups fail, {warning} more have warnings")
    else:
        click.echo("\nall is well")


def _add(table: PlainTable, group: str, finding: Finding) -> None:
    table.add_row(group, _word(finding.level), f"{finding.subject}: {finding.what}")
    if finding.what_to_do:
        table.add_row("", "", f"-> {finding.what_to_do}")


def _summary(findings: Sequence[Finding]) -> str:
    """The one finding of a group that is well, or how many they are."""
    if len(findings) == 1:
        return f"{findings[0].subject}: {findings[0].what}"
    return f"{len(findings)} checked: {', '.join(finding.subject for finding in findings[:4])}" + (
        ", ..." if len(findings) > 4 else ""
    )


def _word(level: Level) -> Text:
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    return Text(level.value, style=colours[level.value])
