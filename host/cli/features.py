"""`modelhost features`: handed over to `feature_io.cli`, which is another program: `host` imports nothing of it."""

from __future__ import annotations

import os
import sys

import click


@click.command(
    "features",
    context_settings={"ignore_unknown_options": True, "help_option_names": [], "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Load, read and compare features."""
    sys.stdout.flush()
    sys.stderr.flush()
    # In this process's place: its standard streams, its exit code, and Ctrl-C are the command's own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "feature_io.cli", *arguments])  # noqa: S606
