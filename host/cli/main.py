"""`modelhost`: finds the command, runs it, and turns errors into messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

import host
from host.protocol.errors import ConfigError, HostError

COMMANDS: Final = {
    "up": ("host.cli.up", "Run the host: front, control and every model's processes."),
    "down": ("host.cli.down", "Stop the host of a run directory."),
    "apply": ("host.cli.apply", "Make a running host what its deployment file says."),
    "scale": ("host.cli.scale", "Change how many processes models have."),
    "rollback": ("host.cli.rollback", "Take a canary away, or go back to the version before."),
    "promote": ("host.cli.promote", "Have a canary answer all requests."),
    "history": ("host.cli.history", "Show who changed what of what should run."),
    "drain": ("host.cli.drain", "Say that the host is not ready, and serve on."),
    "status": ("host.cli.status", "Show what should run and what does."),
    "doctor": ("host.cli.doctor", "Check a host end to end, and say what to do."),
    "restart": ("host.cli.restart", "Restart a model's processes one by one."),
    "predict": ("host.cli.predict", "Send an inference request to the running host."),
    "logs": ("host.cli.logs", "Show the logs of the host's processes."),
    "check": ("host.cli.check", "Say everything that is wrong with packages and configuration."),
    "pack": ("host.cli.pack", "Make one archive of a package, with checksums."),
    "add": ("host.cli.add", "Verify archives and unpack them into the repository."),
    "gc": ("host.cli.gc", "Remove versions and environments that nothing needs."),
    "build": ("host.cli.build", "Make the environments that models ask for, before they run."),
    "features": ("host.cli.features", "Load features into their stores, read and compare them."),
    "plan": ("host.cli.plan", "Say which models run on which hosts of a fleet."),
    "new": ("host.cli.new", "Write a model package to start from."),
    "try": ("host.cli.try_package", "Run one package in a real worker, without a host."),
    "config": ("host.cli.config", "Show every setting and where it came from."),
    "render": ("host.cli.render", "Show supervisord's configuration, as up would write it."),
}
"""Name to module, with a function `command` in it, and to the line in the list of commands."""

EXIT_FAILED: Final = 1
EXIT_OPERATOR: Final = 2
EXIT_INTERRUPTED: Final = 130


class LazyCommands(click.Group):
    """Imports a command's module when it is asked for: `modelhost --help` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)  # noqa: S101 - a test asks for every one
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(host.__version__, prog_name="modelhost")
def cli() -> None:
    """Serve models on this machine, each in processes of its own.

    Exit codes: 0 done, 1 the host could not do it or is not as it should be, 2 something here has to be changed
    first.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    try:
        code = cli.main(args=arguments, prog_name="modelhost", standalone_mode=False)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        return EXIT_OPERATOR
    except HostError as error:
        click.echo(f"modelhost: {error}", err=True)
        return EXIT_FAILED
    except click.ClickException as error:
        error.show()
        return EXIT_OPERATOR
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        code = EXIT_FAILED
    finally:
        _flush()
    return code if isinstance(code, int) else 0


def _flush() -> None:
    """Write what is left to say, unless whoever read it (`| head`) has enough: the work was done all the same."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end, and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
