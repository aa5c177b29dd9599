"""`python -m host.front`: one front process, as supervisord starts it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import uvloop

from host.front.server import FrontOptions, serve_front
from host.protocol import logs
from host.protocol.errors import ConfigError, HostError
from host.protocol.process import die_with_parent


def main() -> int:
    """Run a front; exit code 0 after a drain, 1 if it cannot listen, 2 if the run directory is wrong."""
    parser = argparse.ArgumentParser(prog="modelhost-front", description="One front process of a host.")
    parser.add_argument("--run-dir", type=Path, required=True, help="run directory of the host")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on (default %(default)s)")
    parser.add_argument("--index", type=int, default=0, help="number of this front, for its log")
    parser.add_argument("--max-body-bytes", type=int, default=64 << 20, help="largest body (default %(default)s)")
    parser.add_argument("--max-connections", type=int, default=4096, help="connections (default %(default)s)")
    parser.add_argument("--keepalive-s", type=float, default=75.0, help="idle connections close (default %(default)s)")
    parser.add_argument("--drain-s", type=float, default=10.0, help="time to finish requests (default %(default)s)")
    parser.add_argument("--access-log", type=float, default=0.0, help="share of requests logged (default %(default)s)")
    parser.add_argument("--otlp-endpoint", help="collector that gets traces (default: none)")
    parser.add_argument(
        "--trace-sample", type=float, default=0.0, help="share of traced requests (default %(default)s)"
    )
    parser.add_argument("--no-fast-lane", action="store_true", help="serve everything through aiohttp (to compare)")
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error (default %(default)s)")
    parser.add_argument(
        "--log-format", default=logs.TEXT, choices=logs.FORMATS, help="how log lines are written (default %(default)s)"
    )
    options = parser.parse_args()
    die_with_parent()
    logs.configure(f"front:{options.index}", options.log_level, options.log_format)
    front = FrontOptions(
        run_dir=options.run_dir,
        index=options.index,
        address=options.address,
        port=options.port,
        max_body_bytes=options.max_body_bytes,
        max_connections=options.max_connections,
        keepalive_s=options.keepalive_s,
        drain_s=options.drain_s,
        log_format=options.log_format,
        access_log=options.access_log,
        otlp_endpoint=options.otlp_endpoint,
        trace_sample=options.trace_sample,
        fast_lane=not options.no_fast_lane,
    )
    try:
        uvloop.run(serve_front(front))
    except ConfigError as error:
        logging.error("%s", error)
        return 2
    except HostError as error:
        logging.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
