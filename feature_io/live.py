"""`modelhost features invalidate` and `stats`: commands that ask the feature processes of a running host."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from feature_io.client import ask_all
from host.config.settings import load_settings
from host.protocol.messages import Operation

Function = TypeVar("Function", bound=Callable[..., Any])

SHOWN: Final = ("present", "cached", "stale", "missing", "unavailable", "queries", "failures")


def _host_options(function: Function) -> Function:
    function = click.option("--json", "as_json", is_flag=True, help="write a JSON document")(function)
    function = click.option(
        "--config", "config_file", metavar="FILE", help="settings file (default: ./modelhost.toml)"
    )(function)
    return click.option("--run-dir", metavar="PATH", help="the host's run directory (default: as the settings say)")(
        function
    )


@click.command("invalidate", short_help="Make the running host forget what it has cached.")
@click.argument("view", required=False)
@click.argument("key", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="forget every view")
@_host_options
def invalidate(
    view: str | None,
    key: Sequence[str],
    everything: bool,
    run_dir: str | None,
    config_file: str | None,
    as_json: bool,
) -> None:
    """Make every feature process of the running host forget one entity of VIEW, all of VIEW, or everything (--all).

    Who asks afterwards gets what the store has then.
    """
    if (view is None) != everything:
        raise click.UsageError("expected VIEW, with the entity's KEY or without, or --all")
    document = {"view": view, "path": list(key) or None}
    answers = ask_all(_run_dir(run_dir, config_file), Operation.INVALIDATE_FEATURES, msgspec.json.encode(document))
    forgotten = added([answer["forgotten"] for answer in answers])
    if as_json:
        click.echo(msgspec.json.encode({"processes": len(answers), "forgotten": forgotten}).decode())
        return
    for name, count in forgotten.items():
        click.echo(f"{name}: {count:,} entities forgotten in {len(answers)} processes")


@click.command("stats", short_help="Show what the running host has read and cached.")
@_host_options
def stats(run_dir: str | None, config_file: str | None, as_json: bool) -> None:
    """Show what the feature processes of the running host have counted since the host started."""
    answers = ask_all(_run_dir(run_dir, config_file), Operation.STATISTICS, b"")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"processes": answers}), indent=2).decode())
        return
    for place, answer in enumerate(answers):
        cache = answer["cache"]
        shares = f"{cache['size_bytes'] / 2**20:,.1f} of {cache['capacity_bytes'] / 2**20:,.0f} MiB"
        click.echo(f"features:{place}: {cache['entries']:,} entities cached, {shares}, {cache['evictions']:,} evicted")
        for name, store in answer["stores"].items():
            state = "left alone for now, after failures" if store["open"] else "answers"
            click.echo(f"  store {name}: {state}; left alone {store['openings']} times")
        for name, counts in answer["views"].items():
            words = ", ".join(f"{counts[what]:,} {what}" for what in SHOWN)
            took_ms = 1000 * counts["query_s"] / counts["queries"] if counts["queries"] else 0.0
            click.echo(f"  view {name}: {words}; {took_ms:.2f} ms a query")


def added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The counts of several processes, by name."""
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return total


def _run_dir(run_dir: str | None, config_file: str | None) -> Path:
    flags = {} if run_dir is None else {"run_dir": run_dir}
    config = None if config_file is None else Path(config_file)
    return load_settings(config, flags, os.environ, Path.cwd()).settings.run_dir
