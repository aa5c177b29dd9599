"""`modelhost plan`: which models run on which hosts of a fleet, written into an inventory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from host.protocol.errors import ConfigError, HostError

if TYPE_CHECKING:
    from host.planner.explain import Change
    from host.planner.inventory import Present
    from host.planner.model import Fleet, Placement
    from host.planner.pack import Plan

_CHANGES_SHOWN = 40


@click.command("plan")
@click.argument("fleet_file", metavar="FLEET", type=click.Path(path_type=Path))
@click.option(
    "--inventory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="an Ansible inventory: its host_vars say what runs, and are written",
)
@click.option(
    "--present",
    "listing",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="what runs, with all layers merged: the fact modelhost_fleet; the output of `ansible-inventory --list`, which "
    "has only the last layer's variable, will do where no two layers have it",
)
@click.option("--repack", is_flag=True, help="place everything anew, however much moves")
@click.option("--dry-run", is_flag=True, help="show what would change, and write nothing")
@click.option("--explain", is_flag=True, help="show every model and every host")
@click.option("--json", "as_json", is_flag=True, help="write the plan as a document")
def command(
    fleet_file: Path,
    inventory: Path | None,
    listing: Path | None,
    repack: bool,
    dry_run: bool,
    explain: bool,
    as_json: bool,
) -> int:
    """Say how many processes of each model run on which host, and write it into host_vars.

    FLEET is a TOML or YAML file with models (demand, memory, rules) and hosts (cores, memory, zone). The plan
    survives the loss of any one host, uses few hosts, and moves as little as possible of what runs. If something does
    not fit, it says why, writes nothing, and ends with 1.

    \b
    survive = "host"            # what may be lost: "host", "zone", "none"
    [[models]]
    name = "churn"
    version = "3"
    requests_per_s = 1200       # at its busiest
    cpu_us_per_row = 310
    memory = "512MiB"           # of one process
    [[hosts]]
    name = "h1.example.com"
    cores = 32
    memory = "128GiB"
    zone = "a"

    docs/fleet.md has all keys.
    """
    from host.planner.check import violations
    from host.planner.explain import changes_of
    from host.planner.plan import make_plan

    fleet = _fleet(fleet_file)
    present = _present(inventory, listing, fleet)
    placement: Placement = {}
    if present is not None:
        from host.planner.inventory import without_beside

        fleet, placement = without_beside(fleet, present), present.placement
    plan = make_plan(fleet, placement, repack=repack)
    if not plan.unplaced and (broken := violations(fleet, plan.placement)):
        raise HostError("the plan does not hold:\n" + "\n".join(map(str, broken)))
    changes = changes_of(fleet, placement, plan.placement)
    if present is not None and not placement and not as_json:
        click.echo(f"nothing runs yet by {listing or inventory}")
    _show(fleet, plan, changes, explain=explain, as_json=as_json)
    if present is not None:
        from host.planner.inventory import notes

        for line in notes(fleet, present, plan.placement):
            click.echo(f"note: {line}", err=True)
    if plan.unplaced:
        return 1
    if inventory is not None and present is not None:
        from host.planner.inventory import planned_entries, read_own_entries, write_host_vars

        own = read_own_entries(inventory, fleet) if present.merged else present.entries
        planned = planned_entries(fleet, present, plan.placement, own)
        if dry_run:
            return 0
        written = write_host_vars(inventory, own, planned)
        if not as_json:
            click.echo(f"written: {len(written)} file{'s'[: len(written) != 1]} in {inventory / 'host_vars'}")
    return 0


def _fleet(path: Path) -> Fleet:
    """Read the file of a fleet by its name's ending. Raises `ConfigError`."""
    from host.planner.model import read_fleet
    from host.protocol.package import read_toml

    if path.suffix == ".toml":
        return read_fleet(str(path), read_toml(path))
    if path.suffix not in (".yml", ".yaml"):
        raise ConfigError(f"{path}: expected a file that ends in .toml, .yml or .yaml")
    _need_yaml()
    from host.planner.inventory import read_yaml

    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected models and hosts")
    return read_fleet(str(path), document)


def _present(inventory: Path | None, listing: Path | None, fleet: Fleet) -> Present | None:
    if inventory is None and listing is None:
        return None
    _need_yaml()
    from host.planner.inventory import read_host_vars, read_listing

    if listing is not None:
        return read_listing(listing, fleet)
    assert inventory is not None  # noqa: S101 - for mypy
    return read_host_vars(inventory, fleet)


def _need_yaml() -> None:
    try:
        import yaml  # noqa: F401
    except ImportError:
        raise HostError("YAML needs the extra: pip install 'modelhost[fleet]'") from None


def _show(fleet: Fleet, plan: Plan, changes: list[Change], *, explain: bool, as_json: bool) -> None:
    from host.planner.explain import plan_document, summary_lines, unplaced_lines

    if as_json:
        from host.cli.printing import print_json

        print_json(plan_document(fleet, plan, changes))
        return
    for line in summary_lines(fleet, plan, changes):
        click.echo(line)
    for one in plan.unplaced:
        for line in unplaced_lines(fleet, one):
            click.echo(line)
    if explain:
        _print_tables(fleet, plan)
    shown = changes if explain else changes[:_CHANGES_SHOWN]
    if shown:
        _print_rows("what changes", ("MODEL", "HOST", "BEFORE", "AFTER"), shown)
    if len(shown) < len(changes):
        click.echo(f"and {len(changes) - len(shown)} more: --explain")


def _print_tables(fleet: Fleet, plan: Plan) -> None:
    from host.cli.printing import size_text
    from host.planner.explain import model_rows

    _print_rows(
        "models",
        ("MODEL", "CORES", "PROCESSES", "HOSTS", "ZONES", "BUSY", "WITH A LOSS", "AS MANY BECAUSE"),
        (
            (
                row.model,
                f"{row.busy_cores:.2f}",
                row.processes,
                row.hosts,
                row.zones,
                f"{row.busy_share:.0%}",
                f"{row.lost_share:.0%}",
                row.why,
            )
            for row in model_rows(fleet, plan)
        ),
    )
    _print_rows(
        "hosts",
        ("HOST", "ZONE", "PROCESSES", "CORES BUSY", "WITH A LOSS", "MEMORY"),
        (
            (
                host.name,
                host.zone,
                load.processes,
                f"{load.busy_cores:.2f} of {host.cores:g}",
                f"{load.busy_cores + load.extra_cores:.2f}" + (f" ({load.lost})" if load.lost else ""),
                f"{size_text(load.memory_bytes)} of {size_text(host.memory_bytes)}",
            )
            for host, load in zip(fleet.hosts, plan.loads.values(), strict=True)
        ),
    )


def _print_rows(title: str, columns: tuple[str, ...], rows: Any) -> None:
    from host.cli.printing import make_table, print_table

    table = make_table(*columns, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    click.echo()
    print_table(table)
