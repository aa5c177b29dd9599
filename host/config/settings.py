"""Settings of one host, from defaults, `modelhost.toml`, `MODELHOST_*` variables and flags, in rising order.

`SETTINGS` is the one table: the file's keys, the variables, the flags, `modelhost config` and
docs/configuration.md all come from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from host.config.setting_values import UnparsableError, a_number, a_path, a_url, an_address
from host.protocol.errors import ConfigError
from host.protocol.frames import BODY_LIMIT_BYTES
from host.protocol.logs import FORMATS, TEXT
from host.protocol.package import read_toml
from host.protocol.schema import TableReader, parse_bytes

CONFIG_FILE: Final = "modelhost.toml"
FEATURES_FILE: Final = "features.toml"
DEPLOYMENT_FILE: Final = "deployment.toml"
VARIABLE_PREFIX: Final = "MODELHOST_"
CONFIG_VARIABLE: Final = "MODELHOST_CONFIG"
"""Names the file; everything else with the prefix is a setting."""


OTLP_MISSING: Final = "otlp_endpoint: traces need pip install 'modelhost[otlp]'"

UIDS: Final = 1 << 20
"""How many user numbers are set aside for models: so many that two names seldom fall on one."""


class Kind(enum.Enum):
    """How a setting is written and read."""

    ADDRESS = "address"
    INTEGER = "integer"
    SECONDS = "seconds"
    SIZE = "size"
    PATH = "path"
    CHOICE = "choice"
    SHARE = "share"
    URL = "url"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table. Bounds are inclusive, in the setting's unit."""

    name: str
    kind: Kind
    default: str | int | float | None
    help: str
    minimum: int = 0
    maximum: int = 0
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable: `MODELHOST_PORT`."""
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The command-line flag: `--max-connections`."""
        return "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """What a value must be, for messages and the documentation."""
        match self.kind:
            case Kind.ADDRESS:
                return 'an IP address or "localhost"'
            case Kind.INTEGER:
                return f"a whole number from {self.minimum} to {self.maximum}"
            case Kind.SECONDS:
                return f"seconds, a number from {self.minimum} to {self.maximum}"
            case Kind.SIZE:
                return f'a size such as "64MiB", from {self.minimum} to {self.maximum} bytes'
            case Kind.PATH:
                return "a path (UTF-8, without control characters)"
            case Kind.CHOICE:
                return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
            case Kind.SHARE:
                return f"a share, a number from {self.minimum} to {self.maximum}"
            case Kind.URL:
                return "http:// or https:// with host, port and path, without user, password, query and fragment"


SETTINGS: Final = (
    Setting(
        name="address",
        kind=Kind.ADDRESS,
        default="127.0.0.1",
        help="address that the front listens on; 0.0.0.0 or :: lets other machines in",
    ),
    Setting(name="port", kind=Kind.INTEGER, default=8080, help="TCP port of the front", minimum=1, maximum=65535),
    Setting(
        name="fronts", kind=Kind.INTEGER, default=1, help="front processes sharing the port", minimum=1, maximum=64
    ),
    Setting(
        name="admin_address",
        kind=Kind.ADDRESS,
        default="127.0.0.1",
        help="address of the admin port; any other than this machine's own shows whoever reaches it everything "
        "about the host",
    ),
    Setting(
        name="admin_port",
        kind=Kind.INTEGER,
        default=8081,
        help="TCP port of metrics and status, another one than the front's; 0: none",
        minimum=0,
        maximum=65535,
    ),
    Setting(
        name="repository",
        kind=Kind.PATH,
        default="model_repository",
        help="directory of model packages: NAME/VERSION/model.toml",
    ),
    Setting(
        name="max_package_bytes",
        kind=Kind.SIZE,
        default="8GiB",
        help="largest package that `modelhost add` takes, as an archive and unpacked",
        minimum=1,
        maximum=1 << 44,
    ),
    Setting(
        name="run_dir",
        kind=Kind.PATH,
        default="run",
        help="directory of the host's sockets, logs and supervisord.conf, its owner's alone",
    ),
    Setting(
        name="deployment",
        kind=Kind.PATH,
        default=None,
        help=f"file that says what runs; unset: {DEPLOYMENT_FILE} beside {CONFIG_FILE} if it is there, "
        "else the highest version of every model in the repository",
    ),
    Setting(
        name="features",
        kind=Kind.PATH,
        default=None,
        help=f"file of feature views; unset: {FEATURES_FILE} beside {CONFIG_FILE} or in the repository if it is there, "
        "else none",
    ),
    Setting(
        name="feature_processes",
        kind=Kind.INTEGER,
        default=1,
        help="processes that read features, each with a cache of its own; none runs without views",
        minimum=1,
        maximum=64,
    ),
    Setting(
        name="feature_cache",
        kind=Kind.SIZE,
        default="256MiB",
        help="memory for rows of feature views, in each process that reads them",
        minimum=1,
        maximum=1 << 40,
    ),
    Setting(
        name="model_python",
        kind=Kind.PATH,
        default=None,
        help="Python interpreter that runs models without an environment of their own; "
        "unset: the one that runs modelhost",
    ),
    Setting(
        name="environments",
        kind=Kind.PATH,
        default="environments",
        help="directory of the models' own environments, which `modelhost build` makes",
    ),
    Setting(
        name="wheelhouse",
        kind=Kind.PATH,
        default=None,
        help="directory of wheels that environments are built from, without any index; unset: uv's own index",
    ),
    Setting(
        name="isolation",
        kind=Kind.CHOICE,
        default="best-effort",
        help="what happens where the host does not allow part of the models' isolation: start without it and say so, "
        "or refuse to start",
        choices=("best-effort", "required"),
    ),
    Setting(
        name="first_uid",
        kind=Kind.INTEGER,
        default=1_900_000_000,
        help=f"each model version runs as a user of its own, one of the {UIDS:,} numbers from this one on, "
        "if modelhost runs as root",
        minimum=1000,
        maximum=(1 << 31) - 1 - UIDS,
    ),
    Setting(
        name="cgroup",
        kind=Kind.PATH,
        default=None,
        help="cgroup below which the models' are made, as /proc/self/cgroup writes it; unset: modelhost's own, or on "
        "cgroup v2 the top if other processes are in that",
    ),
    Setting(
        name="max_body_bytes",
        kind=Kind.SIZE,
        default="64MiB",
        help="largest request body, after decompression",
        minimum=1,
        maximum=BODY_LIMIT_BYTES,
    ),
    Setting(
        name="max_connections",
        kind=Kind.INTEGER,
        default=4096,
        help="client connections of each front process; one more is answered 503",
        minimum=1,
        maximum=1_000_000,
    ),
    Setting(
        name="keepalive_s",
        kind=Kind.SECONDS,
        default=75,
        help="seconds after which an idle client connection is closed",
        minimum=1,
        maximum=86_400,
    ),
    Setting(
        name="grace_s",
        kind=Kind.SECONDS,
        default=0,
        help="seconds for which a host that stops serves on while it says that it is not ready: what a load balancer "
        "takes to notice",
        minimum=0,
        maximum=3600,
    ),
    Setting(
        name="drain_s",
        kind=Kind.SECONDS,
        default=10,
        help="seconds that requests in hand get to finish when the host stops",
        minimum=0,
        maximum=3600,
    ),
    Setting(
        name="log_level",
        kind=Kind.CHOICE,
        default="info",
        help="least severe message that the host's processes write to their logs",
        choices=("debug", "info", "warning", "error"),
    ),
    Setting(
        name="log_format",
        kind=Kind.CHOICE,
        default=TEXT,
        help="how the host's processes write their logs: lines for people, or one JSON object a line",
        choices=FORMATS,
    ),
    Setting(
        name="access_log",
        kind=Kind.SHARE,
        default=0.01,
        help="share of all requests that get a line in the front's log; those answered with a status of 500 or more "
        "always do",
        minimum=0,
        maximum=1,
    ),
    Setting(
        name="otlp_endpoint",
        kind=Kind.URL,
        default=None,
        help="collector that gets traces by OTLP over HTTP, such as http://127.0.0.1:4318; unset: there are none",
    ),
    Setting(
        name="trace_sample",
        kind=Kind.SHARE,
        default=0.01,
        help="share of the requests without a traceparent of their own that are traced; others say it themselves",
        minimum=0,
        maximum=1,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """Every setting, parsed. Paths are absolute."""

    address: str
    port: int
    fronts: int
    admin_address: str
    admin_port: int
    repository: Path
    max_package_bytes: int
    run_dir: Path
    deployment: Path | None
    features: Path | None
    feature_processes: int
    feature_cache: int
    model_python: Path | None
    environments: Path
    wheelhouse: Path | None
    isolation: str
    first_uid: int
    cgroup: Path | None
    max_body_bytes: int
    max_connections: int
    keepalive_s: float
    grace_s: float
    drain_s: float
    log_level: str
    log_format: str
    access_log: float
    otlp_endpoint: str | None
    trace_sample: float


class SourceKind(enum.Enum):
    """Where a value came from; a later one wins."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: the kind, and the file, variable or flag."""

    kind: SourceKind
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """Settings, where each came from, and the file that was read, if any."""

    settings: HostSettings
    sources: Mapping[str, Source]
    file: Path | None
    deployment_file: Path
    """The deployment file, there or not."""


def resolve_settings(
    file_table: Mapping[str, Any],
    file_name: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    cwd: Path,
) -> tuple[HostSettings, dict[str, Source]]:
    """Merge the sources. Raises `ConfigError` with every problem of every source, overridden values included.

    Relative paths of a file, and the defaults beside it, start at its directory; those of variables and flags at
    `cwd`. Both must be absolute. An empty variable counts as unset.
    """
    problems: list[str] = []
    file_dir = file_name.parent if file_name is not None else cwd
    known_variables = [CONFIG_VARIABLE, *(setting.variable for setting in SETTINGS)]
    variables = {name: value for name, value in environ.items() if name.startswith(VARIABLE_PREFIX) and value}
    given_flags = {f"--{name.replace('_', '-')}": value for name, value in flags.items()}
    layers = (
        (SourceKind.FILE, TableReader(str(file_name or CONFIG_FILE), file_table, problems), "name", file_dir),
        (SourceKind.ENVIRONMENT, TableReader("environment", variables, problems), "variable", cwd),
        (SourceKind.FLAG, TableReader("command line", given_flags, problems), "flag", cwd),
    )
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for setting in SETTINGS:
        values[setting.name] = _default(setting, file_dir)
        sources[setting.name] = Source(SourceKind.DEFAULT, "default")
        for kind, reader, key_of, base in layers:
            key: str = getattr(setting, key_of)
            if not reader.has(key):
                continue
            raw = reader.take(key)
            try:
                values[setting.name] = _parse(setting, raw, base, environ, typed=kind is SourceKind.FILE)
            except UnparsableError:
                reader.problem(key, setting.expected, raw)
            sources[setting.name] = Source(kind, str(file_name) if kind is SourceKind.FILE else key)
    names = [setting.name for setting in SETTINGS]
    problems += _unknown(str(file_name or CONFIG_FILE), file_table, names, "key")
    problems += _unknown("environment", variables, known_variables, "variable")
    problems += _unknown("command line", given_flags, [setting.flag for setting in SETTINGS], "flag")
    if problems:
        raise ConfigError(*problems)
    settings = HostSettings(**values)
    if _ports_clash(settings):
        raise ConfigError(
            f"admin_port: expected another port than the front's, received {settings.admin_port} for both "
            f"({sources['port'].name}, {sources['admin_port'].name})"
        )
    return settings, sources


def load_settings(
    config: Path | None, flags: Mapping[str, str], environ: Mapping[str, str], cwd: Path
) -> LoadedSettings:
    """Find and read the file, and resolve. Raises `ConfigError`.

    The file is `config`, else the one that MODELHOST_CONFIG names, else ./modelhost.toml if it is there; one that
    is named must be there.
    """
    named = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    file = cwd / named if named is not None else cwd / CONFIG_FILE
    table: dict[str, Any] = {}
    present = named is not None or file.is_file()
    if present:
        table = read_toml(file)
    settings, sources = resolve_settings(table, file if present else None, environ, flags, cwd)
    base = file.parent if present else cwd
    defaults: tuple[tuple[str, list[Path]], ...] = (
        ("deployment", [base / DEPLOYMENT_FILE]),
        ("features", [base / FEATURES_FILE, settings.repository / FEATURES_FILE]),
    )
    for name, candidates in defaults:
        found = next((path for path in candidates if path.is_file()), None)
        if getattr(settings, name) is None and found is not None:
            given: dict[str, Any] = {name: found}
            settings = dataclasses.replace(settings, **given)
            sources[name] = Source(SourceKind.DEFAULT, f"default: {found.name} is there")
    return LoadedSettings(
        settings=settings,
        sources=sources,
        file=file if present else None,
        deployment_file=settings.deployment or base / DEPLOYMENT_FILE,
    )


def _ports_clash(settings: HostSettings) -> bool:
    """Whether front and admin port are one: of the same address, or of one that takes in the other."""
    addresses = {settings.address, settings.admin_address}
    wide = {"0.0.0.0", "::", "localhost"}  # noqa: S104 - compared, not bound
    return settings.admin_port == settings.port and (len(addresses) == 1 or bool(addresses & wide))


def nearest(name: str, known: list[str]) -> str:
    """` (did you mean "port"?)`, or nothing when no known name is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _unknown(where: str, given: Mapping[str, Any], known: list[str], what: str) -> list[str]:
    return [
        f"{where}: {name}: unknown {what}{nearest(name, known)}; expected one of {', '.join(known)}"
        for name in given
        if name not in known
    ]


def _default(setting: Setting, base: Path) -> Any:
    if setting.default is None:
        return None
    return _parse(setting, setting.default, base, {}, typed=True)


def _parse(setting: Setting, raw: object, base: Path, environ: Mapping[str, str], *, typed: bool) -> Any:
    """Read one value. `typed`: it comes from TOML, where a number is no string. Raises `UnparsableError`."""
    match setting.kind:
        case Kind.ADDRESS:
            return an_address(raw)
        case Kind.INTEGER:
            return _bounded(setting, a_number(raw, int, typed=typed))
        case Kind.SECONDS | Kind.SHARE:
            return _bounded(setting, a_number(raw, float, typed=typed))
        case Kind.SIZE:
            size = parse_bytes(raw) if isinstance(raw, str) else raw
            return _bounded(setting, a_number(size, int, typed=True))
        case Kind.PATH:
            return a_path(raw, base, environ)
        case Kind.CHOICE:
            if raw not in setting.choices:
                raise UnparsableError
            return raw
        case Kind.URL:
            return a_url(raw)


def _bounded(setting: Setting, value: float) -> int | float:
    # Written so that NaN, which compares false, is refused.
    if not setting.minimum <= value <= setting.maximum:
        raise UnparsableError
    return value
