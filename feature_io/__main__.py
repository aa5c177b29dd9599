"""`python -m feature_io`: one feature process, as supervisord starts it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import uvloop

from feature_io.server import FeatureOptions, serve_features
from host.protocol import logs
from host.protocol.errors import ConfigError
from host.protocol.process import EXIT_CONFIG, die_with_parent


def main() -> int:
    """Run a feature process; exit code 0 after a drain, 2 if the run directory or a store's settings are wrong."""
    parser = argparse.ArgumentParser(prog="modelhost-features", description="One feature process of a host.")
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory of the host")
    parser.add_argument("--index", type=int, default=0, help="number of this process, for its socket and its log")
    parser.add_argument("--cache-bytes", type=int, default=256 << 20, help="memory for rows (default %(default)s)")
    parser.add_argument("--body-max-bytes", type=int, default=64 << 20, help="largest body (default %(default)s)")
    parser.add_argument("--drain-s", type=float, default=10.0, help="time to finish requests (default %(default)s)")
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error (default %(default)s)")
    parser.add_argument(
        "--log-format", default=logs.TEXT, choices=logs.FORMATS, help="how log lines are written (default %(default)s)"
    )
    options = parser.parse_args()
    die_with_parent()
    logs.configure(f"features:{options.index}", options.log_level, options.log_format)
    # The driver logs every attempt of every reconnection.
    logging.getLogger("cassandra").setLevel(max(logging.ERROR, logging.getLogger().level))
    try:
        uvloop.run(
            serve_features(
                FeatureOptions(
                    run_dir=options.run_dir,
                    index=options.index,
                    cache_bytes=options.cache_bytes,
                    body_max_bytes=options.body_max_bytes,
                    drain_s=options.drain_s,
                ),
                os.getpid(),
            )
        )
    except ConfigError as error:
        for problem in error.problems:
            logging.error("%s", problem)
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
