"""One model in one process: load, warm up, prove the golden cases, listen, serve, drain.

    python -m models.worker --package DIR --socket PATH [--slot N]

supervisord runs it through `by_path.py` in the model's own interpreter. The socket appears only when the model
can serve; SIGTERM answers what was received and ends.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from host.protocol import logs
from host.protocol.counters import WORKER, Words, map_counters
from host.protocol.errors import ConfigError, GoldenFailure
from host.protocol.given import given_counters
from host.protocol.messages import Hello
from host.protocol.package import Package, golden_cases, read_package
from host.protocol.process import EXIT_CONFIG, EXIT_GOLDEN, die_with_parent, settle_memory
from host.protocol.sockets import given_socket

logger = logging.getLogger("modelhost.worker")

BODY_MAX_BYTES: Final = 64 * 1024 * 1024
DRAIN_S: Final = 10.0

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def _nothing() -> None:
    pass


def main(arguments: Sequence[str] | None = None, before_load: Callable[[], None] = _nothing) -> int:
    """Run a worker; the exit code is 0 after a drain, 1 if the model raised while it loaded, 2 if the package
    is wrong, 3 if a golden case failed.

    `before_load` is called when all of modelhost's own code is imported and none of the model's is.
    """
    options = _parser().parse_args(arguments)
    die_with_parent()
    lines = logs.configure(
        f"{options.socket.parent.name}:{options.socket.stem}",
        options.log_level,
        options.log_format,
        model=options.package.parent.name,
        version=options.package.name,
        slot=options.slot,
    )
    try:
        return _serve(options, before_load, lines)
    except ConfigError as error:
        for problem in error.problems:
            logger.error("%s", problem)
        return EXIT_GOLDEN if isinstance(error, GoldenFailure) else EXIT_CONFIG
    except Exception:
        logger.exception("%s: the model did not load", options.package)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modelhost-worker", description="Serve one model on one Unix socket.")
    parser.add_argument("--package", type=Path, required=True, help="directory <name>/<version> with model.toml")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket that appears when the model serves")
    parser.add_argument("--slot", type=int, default=0, help="number of this process among the model's")
    parser.add_argument(
        "--body-max-bytes", type=int, default=BODY_MAX_BYTES, help="largest request body (default %(default)s)"
    )
    parser.add_argument(
        "--drain-s", type=float, default=DRAIN_S, help="seconds to answer what was received (default %(default)s)"
    )
    parser.add_argument("--log-level", default="info", help="debug, info, warning or error (default %(default)s)")
    parser.add_argument(
        "--log-format", default=logs.TEXT, choices=logs.FORMATS, help="how log lines are written (default %(default)s)"
    )
    return parser


def _serve(options: argparse.Namespace, before_load: Callable[[], None], lines: logs.Lines) -> int:
    start = time.perf_counter()
    # Before any code of the model's: it never has a descriptor with which the file could be made larger.
    words = _own_counters()
    package = read_package(options.package)
    prepare_libraries(package.resources.threads)
    # Only now: these import numpy and the model's library, which read the caps when they are imported.
    from models.golden import run_golden_cases, warm_up
    from models.runtimes import import_loader
    from models.server import Server
    from models.service import Service
    from models.watchdog import Watchdog

    listener = given_socket()
    watchdog = Watchdog()
    watchdog.start(package.limits.startup_s)
    cases = golden_cases(options.package)
    load = import_loader(package)
    before_load()
    runtime = load(options.package.absolute(), package)
    service = Service(package, runtime, words)
    lines.context = service.running_requests
    loaded = time.perf_counter()
    warm_up(service)
    run_golden_cases(service, cases)
    ready = time.perf_counter()
    hello = _hello(package, options.slot, runtime.version)
    server = Server(service, hello, options.socket, options.body_max_bytes, listener)
    signal.set_wakeup_fd(server.wakeup_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    watchdog.stop()
    service.guard(watchdog)
    settle_memory()
    server.listen()
    logger.info(
        "ready: %s, loaded in %.0f ms, warm and proven in %.0f ms",
        runtime.version,
        1000 * (loaded - start),
        1000 * (ready - loaded),
    )
    server.serve(options.drain_s)
    logger.info("stopped")
    return 0


def _own_counters() -> Words | None:
    """The slot's words, if the launcher left its file; a worker that cannot have them serves on."""
    descriptor = given_counters()
    if descriptor is None:
        return None
    try:
        return map_counters(descriptor, WORKER)
    except OSError as error:
        logger.error("what this process does is not counted: %s", error.strerror)
        return None
    finally:
        os.close(descriptor)


def prepare_libraries(threads: int) -> None:
    """Bound the thread pools of numerical libraries, unless the environment already says how many.

    And keep onnxruntime from reporting its use to its maker, which newer versions do unless told not to.
    """
    for variable in _THREAD_VARIABLES:
        os.environ.setdefault(variable, str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _hello(package: Package, slot: int, runtime_version: str) -> Hello:
    return Hello(
        model_name=package.name,
        model_version=package.version,
        slot=slot,
        pid=os.getpid(),
        platform=package.platform,
        signature=package.signature,
        limits=package.limits,
        runtime_version=runtime_version,
    )


if __name__ == "__main__":
    sys.exit(main())
