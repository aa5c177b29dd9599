"""Options that commands share: which features.toml is meant."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from host.config.features import Features, read_features
from host.config.settings import FEATURES_FILE, load_settings
from host.protocol.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])


def features_options(function: Function) -> Function:
    """Add `--features` and `--config`; `read_chosen` reads what they name."""
    function = click.option(
        "--config", "config_file", metavar="FILE", help="settings file (default: ./modelhost.toml)"
    )(function)
    return click.option(
        "--features",
        "features_file",
        metavar="PATH",
        help=f"the file with stores and views (default: the setting `features`, else {FEATURES_FILE} beside the "
        "settings file or in the model repository)",
    )(function)


def read_chosen(features_file: str | None, config_file: str | None) -> tuple[Path, Features]:
    """Find and read features.toml. Raises `ConfigError`."""
    if features_file is not None:
        path: Path | None = Path.cwd() / features_file
    else:
        config = Path(config_file) if config_file is not None else None
        path = load_settings(config, {}, os.environ, Path.cwd()).settings.features
    if path is None:
        raise ConfigError(
            f"expected {FEATURES_FILE} beside the settings file or in the model repository, or --features PATH, "
            "received none"
        )
    return path, read_features(path)
