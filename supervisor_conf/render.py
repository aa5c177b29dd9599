"""Settings and deployment to supervisord's configuration. Pure: values in, texts out.

Every path in the run directory is written as `%(here)s/...`: supervisord and supervisorctl put the directory of
the file there, whatever characters it has, and the same text works wherever the run directory lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host.config.deployment import DeployedModel, Deployment
from host.config.run_dir import FEATURES_GROUP, RunDirectory, group_name
from host.config.settings import HostSettings

STOP_MARGIN_S: Final = 5
"""What a process gets beyond its drain before supervisord kills it."""

WORKER_PRIORITY: Final = 100
FEATURES_PRIORITY: Final = 100
CONTROL_PRIORITY: Final = 200
FRONT_PRIORITY: Final = 900
"""supervisord starts the lowest first and stops the highest first: the front comes last and goes first."""

WORKER_START_S: Final = 2
"""A worker that dies sooner is restarted with a growing pause. A later death is a restart at once, so this is
longer than it takes to find out that a package does not load."""

START_RETRIES: Final = 20
"""With pauses of 1, 2, 3 ... seconds: gives up after some three and a half minutes."""

EVENT_BUFFER: Final = 4096
"""State changes kept while control restarts; at a start every slot has two of them."""

HEAP_KEPT_BYTES: Final = 32 * 1024 * 1024
"""What glibc keeps of freed memory instead of giving it back: a process that handles bodies of a megabyte would
otherwise fault in the same pages for every request, which costs more than reading them (docs/adr/0009). 32 MiB is
also the most that glibc takes as its threshold of single mappings (mallopt(3), M_MMAP_THRESHOLD)."""

LOG_MAX_SIZE: Final = "10MB"
LOG_BACKUPS: Final = 3
"""Of each process: 40 MB at most, which is some 200,000 lines."""

_NOTHING: Final = "%(here).0s"
_FILES_MIN: Final = 1024
_FILES_SPARE: Final = 256
_LOG_LEVELS: Final = {"debug": "debug", "info": "info", "warning": "warn", "error": "error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Interpreters and code, as absolute paths."""

    host_python: Path
    """Runs the front and control."""
    model_python: Path
    """Runs the workers of models without an environment of their own."""
    code_root: Path
    """The directory that holds the packages `host`, `feature_io` and `models`."""


def render(settings: HostSettings, deployment: Deployment, programs: Programs) -> dict[str, str]:
    """Write the files of a run directory: name relative to it -> text."""
    sections = [
        _supervisord(settings, deployment),
        *(_workers(settings, model, programs) for model in deployment.models),
        *([_features(settings, programs)] if deployment.features.views else []),
        _control(settings, programs),
        _fronts(settings, programs),
    ]
    return {RunDirectory(settings.run_dir).supervisor_config.name: "\n".join(sections)}


def open_files(settings: HostSettings, deployment: Deployment) -> int:
    """How many files one process of the host may have open: a front's connections, all workers, and some more."""
    workers = sum(model.declared for model in deployment.models)
    features = settings.feature_processes if deployment.features.views else 0
    return max(_FILES_MIN, settings.max_connections + workers + features + _FILES_SPARE)


def stop_wait_s(drain_s: float) -> int:
    """Seconds between TERM and KILL, whole as supervisord wants them."""
    return math.ceil(drain_s) + STOP_MARGIN_S


def literal(text: str) -> str:
    """Write a text so that supervisord reads it as it is: it cuts values at ` ;` and ` #`, then expands `%`.

    `%(here).0s` expands to no characters, and stands between a space and a sign that would begin a comment.
    """
    escaped = text.replace("%", "%%")
    for sign in ";#":
        escaped = escaped.replace(sign, f"{_NOTHING}{sign}")
    return escaped + _NOTHING if escaped[-1:].isspace() else escaped


def argument(text: str) -> str:
    """Write one word of a `command`, which supervisord splits like a shell after that."""
    quoted = text.replace("'", "'\"'\"'")
    return f"'{literal(quoted)}'"


def _words(*words: str | int | float | Path) -> str:
    """Join a command; plain words stay as they are, for the reader."""
    texts = (str(word) for word in words)
    return " ".join(text if _is_plain(text) else argument(text) for text in texts)


def _is_plain(text: str) -> bool:
    return text != "" and all(char.isascii() and (char.isalnum() or char in "/._-:=+@,") for char in text)


def _section(name: str, lines: Iterable[tuple[str, object]]) -> str:
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines)


def _supervisord(settings: HostSettings, deployment: Deployment) -> str:
    return "\n".join(
        (
            "; Written by modelhost. To change it, change its settings and start the host again.",
            _section(
                "supervisord",
                (
                    ("nodaemon", "true"),
                    ("silent", "true"),
                    ("identifier", "modelhost"),
                    ("umask", "077"),
                    ("minfds", open_files(settings, deployment)),
                    ("logfile", "%(here)s/logs/supervisord.log"),
                    ("logfile_maxbytes", LOG_MAX_SIZE),
                    ("logfile_backups", LOG_BACKUPS),
                    ("loglevel", _LOG_LEVELS[settings.log_level]),
                    ("pidfile", "%(here)s/supervisord.pid"),
                    ("childlogdir", "%(here)s/logs"),
                    ("nocleanup", "true"),
                ),
            ),
            _section("unix_http_server", (("file", "%(here)s/supervisor.sock"), ("chmod", "0700"))),
            _section(
                "rpcinterface:supervisor",
                (("supervisor.rpcinterface_factory", "supervisor.rpcinterface:make_main_rpcinterface"),),
            ),
            _section(
                "rpcinterface:modelhost",
                (("supervisor.rpcinterface_factory", "supervisor_conf.deaths:make_interface"),),
            ),
            _section(
                "rpcinterface:slots",
                (("supervisor.rpcinterface_factory", "supervisor_conf.slots:make_interface"),),
            ),
            _section(
                "rpcinterface:fork",
                (("supervisor.rpcinterface_factory", "supervisor_conf.fork:make_interface"),),
            ),
            _section("supervisorctl", (("serverurl", "unix://%(here)s/supervisor.sock"),)),
        )
    )


def _workers(settings: HostSettings, model: DeployedModel, programs: Programs) -> str:
    group = group_name(model.name, model.version)
    sockets = str(RunDirectory(settings.run_dir).group_sockets(group)) + "/"
    command = _launcher(settings, programs, group, "%(process_num)d") + " "
    command += _words(
        model.python or programs.model_python,
        *("-I", "-u", "-X", "faulthandler"),
        programs.code_root / "models" / "by_path.py",
        *("--package", model.package),
    )
    # The word of the socket ends with what supervisord fills in, so it is joined by hand.
    command += f" --socket {_words(sockets)}%(process_num)d.sock --slot %(process_num)d "
    command += _words(
        *("--body-max-bytes", settings.max_body_bytes),
        *("--drain-s", f"{settings.drain_s:g}"),
        *_logging(settings),
    )
    return _section(
        f"program:{group}",
        (
            ("command", command),
            ("process_name", "%(process_num)d"),
            ("numprocs", model.declared),
            ("directory", "/"),
            _heap(),
            *_life(WORKER_PRIORITY, WORKER_START_S, settings.drain_s, autostart=False),
            *_log(f"{group}:%%(process_num)d"),
        ),
    )


def _features(settings: HostSettings, programs: Programs) -> str:
    command = _host_command(
        settings,
        programs,
        "feature_io",
        *("--cache-bytes", settings.feature_cache),
        *("--body-max-bytes", settings.max_body_bytes),
        *("--drain-s", f"{settings.drain_s:g}"),
        *_logging(settings),
    )
    launcher = _launcher(settings, programs, FEATURES_GROUP, "%(process_num)d")
    return _section(
        f"program:{FEATURES_GROUP}",
        (
            ("command", f"{launcher} {command} --index %(process_num)d"),
            ("process_name", "%(process_num)d"),
            ("numprocs", settings.feature_processes),
            _heap(),
            ("directory", literal(str(programs.code_root))),
            *_life(FEATURES_PRIORITY, 1, settings.drain_s),
            *_log(f"{FEATURES_GROUP}:%%(process_num)d"),
        ),
    )


def _control(settings: HostSettings, programs: Programs) -> str:
    """Control is an event listener: supervisord tells it of every change of state, and it never asks in a loop."""
    options = (*_logging(settings), "--events")
    launcher = _launcher(settings, programs, "control", "")
    return _section(
        "eventlistener:control",
        (
            ("command", f"{launcher} {_host_command(settings, programs, 'host.control', *options)}"),
            ("events", "PROCESS_STATE"),
            ("buffer_size", EVENT_BUFFER),
            ("directory", literal(str(programs.code_root))),
            *_life(CONTROL_PRIORITY, 1, 0),
            ("stdout_logfile", "NONE"),
            ("stderr_logfile", "%%(here)s/logs/control.log"),
            ("stderr_logfile_maxbytes", LOG_MAX_SIZE),
            ("stderr_logfile_backups", LOG_BACKUPS),
        ),
    )


def _fronts(settings: HostSettings, programs: Programs) -> str:
    command = _host_command(
        settings,
        programs,
        "host.front",
        *("--address", settings.address),
        *("--port", settings.port),
        *("--max-body-bytes", settings.max_body_bytes),
        *("--max-connections", settings.max_connections),
        *("--keepalive-s", f"{settings.keepalive_s:g}"),
        *("--access-log", f"{settings.access_log:g}"),
        *(("--otlp-endpoint", settings.otlp_endpoint) if settings.otlp_endpoint is not None else ()),
        *("--trace-sample", f"{settings.trace_sample:g}"),
        *("--drain-s", f"{settings.drain_s:g}"),
        *_logging(settings),
    )
    return _section(
        "program:front",
        (
            (
                "command",
                f"{_launcher(settings, programs, 'front', '%(process_num)d')} {command} --index %(process_num)d",
            ),
            ("process_name", "%(process_num)d"),
            ("numprocs", settings.fronts),
            _heap(),
            ("directory", literal(str(programs.code_root))),
            *_life(FRONT_PRIORITY, 1, settings.drain_s),
            *_log("front:%%(process_num)d"),
        ),
    )


def _launcher(settings: HostSettings, programs: Programs, group: str, slot: str) -> str:
    """What runs first in every process, and then becomes its command: host/isolation/launch.py."""
    plans = _words(f"{RunDirectory(settings.run_dir).slots}/{group}")
    suffix = f":{slot}.json" if slot else ".json"
    launcher = programs.code_root / "host" / "isolation" / "launch.py"
    return f"{_words(programs.host_python, '-I', '-S', launcher)} {plans}{suffix} --"


def _host_command(settings: HostSettings, programs: Programs, module: str, *options: str | int) -> str:
    """Run one of the host's own modules. `-m` finds it in the program's directory, which is the code root."""
    return _words(programs.host_python, "-u", "-m", module, "--run-dir", settings.run_dir, *options)


def _logging(settings: HostSettings) -> tuple[str, ...]:
    return "--log-level", settings.log_level, "--log-format", settings.log_format


def _heap() -> tuple[str, object]:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return "environment", ",".join(f'{name}="{HEAP_KEPT_BYTES}"' for name in names)


def _life(priority: int, start_s: int, drain_s: float, *, autostart: bool = True) -> tuple[tuple[str, object], ...]:
    return (
        ("priority", priority),
        # Workers are started by control, which knows how many are wanted, and not all at once.
        ("autostart", "true" if autostart else "false"),
        ("autorestart", "true"),
        ("startsecs", start_s),
        ("startretries", START_RETRIES),
        ("stopsignal", "TERM"),
        ("stopwaitsecs", stop_wait_s(drain_s)),
        # TERM goes to the process alone, which drains; KILL also to what it started.
        ("stopasgroup", "false"),
        ("killasgroup", "true"),
    )


def _log(name: str) -> tuple[tuple[str, object], ...]:
    return (
        # supervisord expands the name of a log twice, hence %%.
        ("stdout_logfile", f"%%(here)s/logs/{name}.log"),
        ("stdout_logfile_maxbytes", LOG_MAX_SIZE),
        ("stdout_logfile_backups", LOG_BACKUPS),
        ("redirect_stderr", "true"),
    )
