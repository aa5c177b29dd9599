"""What is planned: the models with their demand, the hosts with their room, and the rules. Read once, then trusted."""

from __future__ import annotations

import enum
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from host.control.autoscale import DOWN_SHARE, TARGET_SHARE, UP_SHARE
from host.protocol.errors import ConfigError
from host.protocol.package import PROCESSES_MAX, RESERVED_NAMES, THREADS_MAX
from host.protocol.schema import TableReader
from host.protocol.types import NAME_MAX_CHARS, NAME_PATTERN

HOSTS_MAX: Final = 2_000
"""What is remembered of each pair of hosts takes 32 bytes at most: 128 MB."""
MODELS_MAX: Final = 5_000
MODEL_PROCESSES_MAX: Final = 100_000
"""Of one model, in the fleet."""
HOST_PROCESSES_MAX: Final = PROCESSES_MAX
"""Of one model on one host: what a host's deployment file takes."""
CORES_MAX: Final = 4_096
NUMBER_MAX: Final = 1e12

LOST_SHARE: Final = 0.9
"""How busy processes and hosts may be while another host is down, until it is back or somebody plans again: beyond
`UP_SHARE`, where queues begin, and below 1, where they grow without end."""
LOST_TARGET_SHARE: Final = 0.85
"""What a new process is placed for, so that the next small growth does not move it."""

Placement = Mapping[str, Mapping[str, int]]
"""Model to host to number of processes, each at least 1."""

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")
"""Also the name of a file."""


class Survive(enum.Enum):
    """What may be lost at any time, and every model still answers everything."""

    NONE = "none"
    HOST = "host"
    ZONE = "zone"
    """Any one zone, and any one host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How busy a process or host may be: of its cores, averaged."""

    busy: float
    after_loss: float


TARGET: Final = Shares(busy=TARGET_SHARE, after_loss=LOST_TARGET_SHARE)
"""What is placed anew is placed for this."""
MOST: Final = Shares(busy=UP_SHARE, after_loss=LOST_SHARE)
"""What is there may stay up to this, and every plan is checked against it."""
SPARE_SHARE: Final = DOWN_SHARE
"""A model keeps processes that it could do without until they are less busy than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """One model and what it needs."""

    name: str
    version: str | None
    requests_per_s: float
    rows_per_request: float
    cpu_us_per_row: float
    memory_bytes: int
    """Of one process: its limit."""
    cpus: int
    """Cores that one process can keep busy."""
    hosts_min: int
    zones_min: int | None
    """None: two, if its hosts are in two zones or more."""
    only: frozenset[str]
    """Hosts, or tags of hosts, that it may run on; empty: all."""
    never: frozenset[str]

    @property
    def work_cores(self) -> float:
        """Cores that all of its processes together keep busy."""
        return self.requests_per_s * self.rows_per_request * self.cpu_us_per_row / 1e6

    def allows(self, host: PlannedHost) -> bool:
        """Whether it may run on a host."""
        names = host.tags | {host.name}
        return not host.closed and (not self.only or bool(self.only & names)) and not self.never & names


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedHost:
    """One host and what models may have of it."""

    name: str
    cores: float
    """Without those reserved for fronts, the feature service and the system."""
    memory_bytes: int
    """Likewise."""
    zone: str
    tags: frozenset[str]
    closed: bool = False
    """Nothing is placed there, nor stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Everything that a plan depends on, but for what runs at present. Names are unique, the order is the file's."""

    models: tuple[PlannedModel, ...]
    hosts: tuple[PlannedHost, ...]
    survive: Survive = Survive.HOST


def read_fleet(where: str, document: Mapping[str, Any]) -> Fleet:
    """Read a document as TOML or YAML gives it. `where` stands before every problem.

    Raises `ConfigError` with every problem.
    """
    problems: list[str] = []
    reader = TableReader(where, document, problems)
    survive = Survive(reader.text("survive", default="host", choices=[one.value for one in Survive]))
    defaults = reader.take("host_defaults")
    if defaults is not None and not isinstance(defaults, dict):
        reader.problem("host_defaults", "a table", defaults)
        defaults = None
    models = [_model(table, survive) for table in _at_most(reader, "models", MODELS_MAX)]
    hosts = [_host(table) for table in _with_defaults(reader, defaults or {}, problems, where)]
    reader.finish()
    for key, names in (("models", [model.name for model in models]), ("hosts", [host.name for host in hosts])):
        if not names and not problems:
            reader.problem(key, f"at least one of {key}")
        for name in _repeated(names):
            reader.problem(key, "every name once", name)
    known = {host.name for host in hosts} | {tag for host in hosts for tag in host.tags}
    problems += [
        f'{where}: model {model.name}: expected the name or a tag of a host, received "{name}"'
        for model in models
        for name in sorted((model.only | model.never) - known)
    ]
    if problems:
        raise ConfigError(*problems)
    return Fleet(models=tuple(models), hosts=tuple(hosts), survive=survive)


def _model(table: TableReader, survive: Survive) -> PlannedModel:
    name = table.text("name")
    if name and (NAME_PATTERN.fullmatch(name) is None or name in RESERVED_NAMES):
        table.problem("name", f"the name of a model (at most {NAME_MAX_CHARS} letters, digits, _ - .)", name)
    model = PlannedModel(
        name=name,
        version=table.optional_text("version"),
        requests_per_s=_number(table, "requests_per_s", minimum=0),
        rows_per_request=_number(table, "rows_per_request", minimum=0, default=1),
        cpu_us_per_row=_number(table, "cpu_us_per_row", minimum=0),
        memory_bytes=table.size_bytes("memory", default="512MiB"),
        cpus=table.integer("cpus", default=1, minimum=1, maximum=THREADS_MAX),
        hosts_min=table.integer("hosts_min", default=1 if survive is Survive.NONE else 2, minimum=1, maximum=HOSTS_MAX),
        zones_min=table.integer("zones_min", default=1, minimum=1, maximum=HOSTS_MAX)
        if table.has("zones_min")
        else table.take("zones_min"),
        only=frozenset(table.texts("only")),
        never=frozenset(table.texts("never")),
    )
    most_cores = MODEL_PROCESSES_MAX * TARGET.busy / 2
    if model.work_cores > most_cores:
        table.problem("requests_per_s", f"work for at most {most_cores:,.0f} cores", model.requests_per_s)
    table.finish()
    return model


def _host(table: TableReader) -> PlannedHost:
    name = table.text("name")
    if name and _HOST_NAME.fullmatch(name) is None:
        table.problem("name", "the name of a host (letters, digits, and . _ - within)", name)
    cores = _number(table, "cores", minimum=0, maximum=CORES_MAX)
    before = len(table.problems)
    memory_bytes = 0
    if table.take("memory") is None:
        table.problem("memory", 'a size such as "64GiB"', None)
    else:
        memory_bytes = table.size_bytes("memory", default="1B")
    memory_is_known = len(table.problems) == before
    reserved_cores = _number(table, "reserved_cores", minimum=0, maximum=CORES_MAX, default=1)
    reserved_bytes = table.size_bytes("reserved_memory", default="1GiB")
    if reserved_cores > cores:
        table.problem("reserved_cores", f"at most its cores ({cores:g})", reserved_cores)
    if memory_is_known and reserved_bytes > memory_bytes:
        table.problem("reserved_memory", f"at most its memory ({memory_bytes} bytes)", reserved_bytes)
    host = PlannedHost(
        name=name,
        cores=cores - reserved_cores,
        memory_bytes=memory_bytes - reserved_bytes,
        zone=table.text("zone", default=""),
        tags=frozenset(table.texts("tags")),
        closed=table.boolean("closed", default=False),
    )
    table.finish()
    return host


def _with_defaults(
    reader: TableReader, defaults: Mapping[str, Any], problems: list[str], where: str
) -> Iterable[TableReader]:
    """The tables of all hosts, with what each of them leaves out."""
    _at_most(reader, "hosts", HOSTS_MAX)
    tables = reader.take("hosts")
    if not isinstance(tables, list) or len(tables) > HOSTS_MAX:
        return
    for position, table in enumerate(tables):
        if isinstance(table, dict):
            yield TableReader(where, {**defaults, **table}, problems, f"hosts[{position}].")


def _at_most(reader: TableReader, key: str, most: int) -> list[TableReader]:
    tables = reader.tables(key)
    if len(tables) > most:
        reader.problem(key, f"at most {most}", len(tables))
        return []
    return tables


def _number(
    table: TableReader, key: str, *, minimum: float, maximum: float = NUMBER_MAX, default: float | None = None
) -> float:
    """A finite number within bounds; required unless it has a default."""
    value = table.take(key)
    if value is None and default is not None:
        return default
    if type(value) not in (int, float) or not math.isfinite(value) or not minimum <= value <= maximum:
        table.problem(key, f"a number >= {minimum:g} and <= {maximum:g}", value)
        return minimum
    return float(value)


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
