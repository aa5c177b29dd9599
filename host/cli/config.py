"""`modelhost config`: every setting, its value and where that came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from host.cli.options import load, settings_options
from host.config.settings import SETTINGS, LoadedSettings


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="write a JSON document")
@settings_options()
def command(as_json: bool, config_file: str | None, **flags: str | None) -> None:
    """Show every setting, its value, and where the value came from."""
    from host.cli.printing import make_table, print_json, print_table

    loaded = load(config_file, flags)
    if as_json:
        print_json(document(loaded))
        return
    table = make_table("setting", "value", "from")
    for setting in SETTINGS:
        value = plain(getattr(loaded.settings, setting.name))
        table.add_row(setting.name, "-" if value is None else str(value), loaded.sources[setting.name].name)
    print_table(table)


def document(loaded: LoadedSettings) -> dict[str, Any]:
    """What `--json` writes."""
    return {
        "file": plain(loaded.file),
        "deployment_file": plain(loaded.deployment_file),
        "settings": {
            setting.name: {
                "value": plain(getattr(loaded.settings, setting.name)),
                "source": loaded.sources[setting.name].kind.value,
                "from": loaded.sources[setting.name].name,
            }
            for setting in SETTINGS
        },
    }


def plain(value: Any) -> Any:
    """A value for JSON: paths become texts, whole seconds whole numbers."""
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
