"""`python -m host.control`: the control process, as supervisord starts it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import uvloop

from host.control.server import ControlOptions, serve_control
from host.protocol import logs
from host.protocol.errors import ConfigError, HostError
from host.protocol.process import die_with_parent


def main() -> int:
    """Run control; exit code 0 when told to stop, 2 if the run directory is wrong."""
    parser = argparse.ArgumentParser(prog="modelhost-control", description="The control process of a host.")
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory of the host")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.add_argument(
        "--log-format", default=logs.TEXT, choices=logs.FORMATS, help="how log lines are written (default %(default)s)"
    )
    parser.add_argument("--events", action="store_true", help="supervisord's events come on standard input")
    options = parser.parse_args()
    die_with_parent()
    logs.configure("control", options.log_level, options.log_format)
    try:
        uvloop.run(serve_control(ControlOptions(run_dir=options.run_dir, events=options.events)))
    except (ConfigError, HostError) as error:
        logging.error("%s", error)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
