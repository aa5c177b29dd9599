"""Flags that commands share: every setting is one, made from the table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from host.config.settings import CONFIG_FILE, SETTINGS, Kind, LoadedSettings, Setting, load_settings

Function = TypeVar("Function", bound=Callable[..., Any])

_METAVARS = {
    Kind.ADDRESS: "ADDRESS",
    Kind.INTEGER: "N",
    Kind.SECONDS: "SECONDS",
    Kind.SIZE: "SIZE",
    Kind.PATH: "PATH",
    Kind.CHOICE: "CHOICE",
    Kind.SHARE: "SHARE",
    Kind.URL: "URL",
}


def settings_options(*names: str) -> Callable[[Function], Function]:
    """Add `--config` and the flags of some settings, or of all; `load` reads what was given."""

    def decorate(function: Function) -> Function:
        chosen = [setting for setting in SETTINGS if not names or setting.name in names]
        for setting in reversed(chosen):
            function = _option(setting)(function)
        return click.option(
            "--config", "config_file", metavar="FILE", help=f"settings file (default: ./{CONFIG_FILE} if it is there)"
        )(function)

    return decorate


def load(config_file: str | None, flags: dict[str, str | None]) -> LoadedSettings:
    """Resolve the settings of this process. Raises `ConfigError`."""
    given = {name: value for name, value in flags.items() if value is not None}
    return load_settings(Path(config_file) if config_file else None, given, os.environ, Path.cwd())


def _option(setting: Setting) -> Callable[[Function], Function]:
    default = "" if setting.default is None else f" (default {setting.default})"
    return click.option(setting.flag, setting.name, metavar=_METAVARS[setting.kind], help=setting.help + default)
