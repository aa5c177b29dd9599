"""`features.toml`: where features are kept, and the views that models read them through.

Parsed at this edge into frozen values; everything that is wrong is reported at once. What needs the store itself (does
the table have these columns, of these types?) is found out by the feature service when it starts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from host.config.settings import FEATURES_FILE
from host.protocol.errors import ConfigError
from host.protocol.package import read_toml
from host.protocol.schema import TableReader
from host.protocol.types import DATATYPES, Signature, TensorSpec

KEY_TYPES: Final = ("INT8", "INT16", "INT32", "INT64", "BYTES", "UUID")
"""What a key column holds, in the Open Inference Protocol's words; a UUID comes in requests as its text (BYTES)."""

STORAGES: Final = ("scalar", "list", "blob")
"""How a feature lies in its column: a value, a list or vector of values, the little-endian bytes of all values."""

CONSISTENCIES: Final = ("LOCAL_ONE", "LOCAL_QUORUM", "ONE", "TWO", "THREE", "QUORUM", "ALL")
CASSANDRA_DRIVERS: Final = ("aiocassandra", "acsylla")
POLICIES: Final = ("default", "refuse")

DAY_S: Final = 86_400
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")
"""Views, stores, columns, tables, keyspaces. Cassandra's own limit of a table's name is 48 characters."""

_MAX_ITEMS: Final = 1 << 20


class SqliteStore(msgspec.Struct, frozen=True, tag="sqlite", kw_only=True):
    """A file of this host."""

    name: str
    path: str
    """Absolute."""
    concurrency: int = 4
    """Threads that read."""


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """`[stores.NAME.tls]`: paths are absolute."""

    ca: str
    certificate: str | None = None
    key: str | None = None
    check_hostname: bool = True


class CassandraStore(msgspec.Struct, frozen=True, tag="cassandra", kw_only=True):
    """A cluster."""

    name: str
    contact_points: tuple[str, ...]
    port: int = 9042
    local_datacenter: str | None = None
    """None: the one of the first contact point that answers."""
    driver: str = "aiocassandra"
    consistency: str = "LOCAL_ONE"
    concurrency: int = 256
    """Reads in flight, of one feature process."""
    max_waiting: int = 4096
    """Reads that wait for one in flight to end; one more is refused at once."""
    connect_timeout_ms: int = 5000
    speculative_after_ms: int = 0
    """Ask another replica too if there is no answer after so long; 0: never."""
    username: str | None = None
    password_file: str | None = None
    """Absolute; its first line is the password."""
    tls: Tls | None = None


Store = SqliteStore | CassandraStore


class KeyColumn(msgspec.Struct, frozen=True, kw_only=True):
    """One column of a view's key."""

    column: str
    datatype: str
    """One of `KEY_TYPES`."""
    input: str
    """The input (v2) or field (v1) of a request that carries it."""


class FeatureColumn(msgspec.Struct, frozen=True, kw_only=True):
    """One feature: a column of the view's table."""

    name: str
    """The feature's name, and the column's."""
    datatype: str
    """Of its values, one of the Open Inference Protocol's."""
    shape: tuple[int, ...] = ()
    """Of one entity's feature, without the row dimension: `()` a scalar, `(8,)` eight values."""
    storage: str = "scalar"
    """One of `STORAGES`."""
    default: Any = None
    """What a missing entity and a null have: a scalar, or a flat list of as many values as the shape holds."""
    required: bool = True
    """There is no default."""

    @property
    def items(self) -> int:
        """How many values one entity's feature has."""
        return math.prod(self.shape)


class FeatureView(msgspec.Struct, frozen=True, kw_only=True):
    """A table, or part of one, as models see it: a row for each entity."""

    name: str
    store: str
    keyspace: str | None
    """Cassandra's; None for SQLite."""
    table: str
    keys: tuple[KeyColumn, ...]
    columns: tuple[FeatureColumn, ...]
    freshness_column: str | None = None
    """A column with the time of the row's last change."""
    max_age_s: float = 0
    """A row whose freshness column is older counts as missing; 0: no row is too old."""
    ttl_s: float = 300
    """How long a row is served from the cache."""
    negative_ttl_s: float = 30
    """How long it is remembered that an entity is not there."""
    stale_s: float = 60
    """How long after that a row is still served while it is read anew."""
    stale_if_error_s: float = 3600
    """How long after its TTL a row is still served when the store fails."""
    timeout_ms: int = 100
    """Of one read; a request with less time left waits no longer than it can, and the read goes on."""
    missing: str = "default"
    """An entity that is not there: its features have their defaults, or the request is refused (422)."""
    unavailable: str = "default"
    """The store fails, and the cache has nothing: defaults, or the request is refused (503)."""
    warm_up: str | None = None
    """A file of keys that are read at start, one JSON array or value a line; absolute."""

    def column(self, name: str) -> int | None:
        """The place of a feature among the columns."""
        return next((place for place, column in enumerate(self.columns) if column.name == name), None)


class Features(msgspec.Struct, frozen=True):
    """Everything in `features.toml`."""

    stores: tuple[Store, ...] = ()
    views: tuple[FeatureView, ...] = ()

    def view(self, name: str) -> FeatureView | None:
        """The view of that name."""
        return next((view for view in self.views if view.name == name), None)

    def store(self, name: str) -> Store:
        """The store of that name; every view's exists."""
        return next(store for store in self.stores if store.name == name)


class FeatureRef(NamedTuple):
    """`view.column`, as a model's input names it."""

    view: str
    column: str


def feature_refs(spec: TensorSpec) -> list[FeatureRef]:
    """The features that an input is put together from, in order."""
    return [FeatureRef(*text.split(".", 1)) for text in spec.features]


def read_features(path: Path) -> Features:
    """Read and check the file. Raises `ConfigError` with every problem."""
    return parse_features(read_toml(path), path)


def parse_features(table: Mapping[str, Any], path: Path) -> Features:
    """Read the content of `path`, where relative paths start. Raises `ConfigError` with every problem."""
    problems: list[str] = []
    reader = TableReader(str(path), table, problems)
    stores = _stores(reader, path.parent)
    views = tuple(_view(one, {store.name: store for store in stores}, path.parent) for one in reader.tables("views"))
    for name in _twice(view.name for view in views):
        reader.problem("views", f"a name for each view, received {name!r} twice")
    reader.finish()
    if problems:
        raise ConfigError(*problems)
    return Features(stores=stores, views=views)


def feature_problems(where: str, signature: Signature, features: Features) -> list[str]:
    """What keeps a model's inputs from being fetched: unknown views and columns, other datatypes or shapes, keys."""
    problems: list[str] = []
    inputs = {spec.name: spec for spec in signature.inputs}
    for spec in signature.inputs:
        found = [(ref, *_resolve(ref, features)) for ref in feature_refs(spec)]
        width = 0
        for ref, view, column in found:
            here = f"{where}: input '{spec.name}': feature {ref.view}.{ref.column}"
            if view is None:
                known = ", ".join(one.name for one in features.views) or f"none: {FEATURES_FILE} has no views"
                problems.append(f"{here}: expected a view of {FEATURES_FILE}: {known}")
                continue
            if column is None:
                known = ", ".join(one.name for one in view.columns)
                problems.append(f"{here}: expected a column of the view: {known}")
                continue
            if column.datatype != spec.datatype:
                problems.append(
                    f"{here}: expected datatype {spec.datatype}, which the input has, received {column.datatype}"
                )
            width += column.items
            problems += _key_problems(where, view, inputs)
        if found and all(column is not None for _, _, column in found):
            problems += _shape_problems(f"{where}: input '{spec.name}'", spec, [c for _, _, c in found if c], width)
    return list(dict.fromkeys(problems))


def _resolve(ref: FeatureRef, features: Features) -> tuple[FeatureView | None, FeatureColumn | None]:
    view = features.view(ref.view)
    place = view.column(ref.column) if view is not None else None
    return view, view.columns[place] if view is not None and place is not None else None


def _key_problems(where: str, view: FeatureView, inputs: Mapping[str, TensorSpec]) -> Iterable[str]:
    """A key's input that is one of the model's own must be of the key's type."""
    for key in view.keys:
        spec = inputs.get(key.input)
        if spec is not None and spec.features:
            yield f"{where}: input '{spec.name}' is a feature, and the key {key.column} of the view {view.name}"
        elif spec is not None and spec.datatype != input_datatype(key):
            yield (
                f"{where}: input '{spec.name}': expected datatype {input_datatype(key)}, "
                f"because it is the key {key.column} of the view {view.name}, received {spec.datatype}"
            )


def _shape_problems(here: str, spec: TensorSpec, columns: list[FeatureColumn], width: int) -> Iterable[str]:
    """One feature has the input's own inner shape; several are joined along its last dimension."""
    inner = spec.shape[1:]
    if spec.shape[:1] != (-1,):
        yield f"{here}: expected a shape that begins with -1 (rows), because it is fetched, received {list(spec.shape)}"
    elif len(columns) == 1:
        shape = columns[0].shape
        if inner not in (shape, shape or (1,)):
            yield f"{here}: expected shape {[-1, *(shape or (1,))]}, as the feature has, received {list(spec.shape)}"
    elif inner != (width,):
        yield f"{here}: expected shape {[-1, width]}, the features side by side, received {list(spec.shape)}"


def input_datatype(key: KeyColumn) -> str:
    """The datatype of the input that carries a key."""
    return "BYTES" if key.datatype == "UUID" else key.datatype


# -- stores ---------------------------------------------------------------------------------------------------------
def _stores(reader: TableReader, base: Path) -> tuple[Store, ...]:
    names = reader.take("stores")
    if not isinstance(names, dict) or not names:
        reader.problem("stores", "at least one [stores.NAME] with its kind")
        return ()
    table = reader.table("stores")
    stores: list[Store] = []
    for name in names:
        one = table.table(name)
        if NAME.fullmatch(name) is None:
            one.problem("name", "a name of letters, digits and '_'", name)
        kind = one.text("kind", choices=("sqlite", "cassandra"))
        stores.append(_sqlite(name, one, base) if kind == "sqlite" else _cassandra(name, one, base))
        one.finish()
    return tuple(stores)


def _sqlite(name: str, table: TableReader, base: Path) -> SqliteStore:
    return SqliteStore(
        name=name,
        path=str(base / table.text("path")),
        concurrency=table.integer("concurrency", default=4, minimum=1, maximum=64),
    )


def _cassandra(name: str, table: TableReader, base: Path) -> CassandraStore:
    contact_points = table.texts("contact_points")
    if not contact_points or not all(contact_points):
        table.problem("contact_points", 'at least one address, as in ["10.0.0.1"]', list(contact_points))
    tls = None
    if table.has("tls"):
        one = table.table("tls")
        tls = Tls(
            ca=str(base / one.text("ca")),
            certificate=_optional_path(one, "certificate", base),
            key=_optional_path(one, "key", base),
            check_hostname=one.boolean("check_hostname", default=True),
        )
        if (tls.certificate is None) != (tls.key is None):
            one.problem("certificate", "certificate and key, or neither")
        one.finish()
    store = CassandraStore(
        name=name,
        contact_points=contact_points,
        port=table.integer("port", default=9042, minimum=1, maximum=65535),
        local_datacenter=table.optional_text("local_datacenter"),
        driver=table.text("driver", default=CASSANDRA_DRIVERS[0], choices=CASSANDRA_DRIVERS),
        consistency=table.text("consistency", default=CONSISTENCIES[0], choices=CONSISTENCIES),
        concurrency=table.integer("concurrency", default=256, minimum=1, maximum=32_768),
        max_waiting=table.integer("max_waiting", default=4096, minimum=0, maximum=1 << 20),
        connect_timeout_ms=table.integer("connect_timeout_ms", default=5000, minimum=1, maximum=600_000),
        speculative_after_ms=table.integer("speculative_after_ms", default=0, minimum=0, maximum=60_000),
        username=table.optional_text("username"),
        password_file=_optional_path(table, "password_file", base),
        tls=tls,
    )
    if not table.has("tls"):
        table.take("tls")
    if (store.username is None) != (store.password_file is None):
        table.problem("username", "username and password_file, or neither")
    if store.driver == "acsylla" and tls is not None:
        table.problem(
            "tls", 'driver "aiocassandra": acsylla carries an OpenSSL 1.1.1, which nobody keeps secure any more'
        )
    return store


def _optional_path(table: TableReader, key: str, base: Path) -> str | None:
    text = table.optional_text(key)
    return None if text is None else str(base / text)


# -- views ----------------------------------------------------------------------------------------------------------
def _view(table: TableReader, stores: Mapping[str, Store], base: Path) -> FeatureView:
    name = _name(table, "name")
    store = table.text("store", default=next(iter(stores), "") if len(stores) == 1 else None)
    if store and store not in stores:
        table.problem("store", f"one of the stores: {', '.join(stores) or 'none'}", store)
    is_cassandra = isinstance(stores.get(store), CassandraStore)
    keyspace = _name(table, "keyspace") if is_cassandra else None
    view = FeatureView(
        name=name,
        store=store,
        keyspace=keyspace,
        table=_name(table, "table", default=name),
        keys=_keys(table),
        columns=tuple(_column(one) for one in table.tables("columns")),
        freshness_column=_name(table, "freshness_column") if table.has("freshness_column") else None,
        max_age_s=_seconds(table, "max_age_s", 0, maximum=3650 * DAY_S),
        ttl_s=_seconds(table, "ttl_s", 300),
        negative_ttl_s=_seconds(table, "negative_ttl_s", 30),
        stale_s=_seconds(table, "stale_s", 60),
        stale_if_error_s=_seconds(table, "stale_if_error_s", 3600),
        timeout_ms=table.integer("timeout_ms", default=100, minimum=1, maximum=60_000),
        missing=table.text("missing", default=POLICIES[0], choices=POLICIES),
        unavailable=table.text("unavailable", default=POLICIES[0], choices=POLICIES),
        warm_up=_optional_path(table, "warm_up", base),
    )
    if not table.has("freshness_column"):
        table.take("freshness_column")
    if view.max_age_s and view.freshness_column is None:
        table.problem("max_age_s", "freshness_column beside it")
    if not view.columns:
        table.problem("columns", "at least one [[views.columns]] with name and datatype")
    names = [key.column for key in view.keys] + [column.name for column in view.columns]
    for twice in _twice([*names, *([view.freshness_column] if view.freshness_column else [])]):
        table.problem("columns", f"every column once, received {twice!r} twice")
    table.finish()
    return view


def _keys(table: TableReader) -> tuple[KeyColumn, ...]:
    keys = []
    for one in table.tables("keys"):
        column = _name(one, "column")
        keys.append(
            KeyColumn(
                column=column,
                datatype=one.text("datatype", choices=KEY_TYPES),
                input=one.text("input", default=column),
            )
        )
        one.finish()
    if not keys:
        table.problem("keys", "at least one [[views.keys]] with column and datatype")
    for twice in _twice(key.input for key in keys):
        table.problem("keys", f"an input for each key column, received {twice!r} twice")
    return tuple(keys)


def _column(table: TableReader) -> FeatureColumn:
    name = _name(table, "name")
    datatype = table.text("datatype", choices=DATATYPES)
    shape = table.take("shape") or []
    if not isinstance(shape, list) or not all(type(dim) is int and dim > 0 for dim in shape):
        table.problem("shape", "a list of sizes > 0, without rows: [] for a scalar, [8] for eight values", shape)
        shape = []
    if math.prod(shape) > _MAX_ITEMS:
        table.problem("shape", f"at most {_MAX_ITEMS} values", shape)
        shape = []
    storage = table.text("storage", default="list" if shape else "scalar", choices=STORAGES)
    if storage == "scalar" and shape:
        table.problem("storage", '"list" or "blob" for a feature with a shape', storage)
    if storage == "list" and not shape:
        table.problem("shape", "the number of values of a list, as in [8]", shape)
    if storage == "blob" and datatype == "BYTES":
        table.problem("storage", 'another storage than "blob" for BYTES', storage)
    required = not table.has("default")
    column = FeatureColumn(
        name=name,
        datatype=datatype,
        shape=tuple(shape),
        storage=storage,
        default=table.take("default"),
        required=required,
    )
    if not required and not is_value(column, column.default):
        what = f"{datatype} value" if not column.shape else f"list of {column.items} {datatype} values, flat"
        table.problem("default", f"a {what}", column.default)
    table.finish()
    return column


def is_value(column: FeatureColumn, value: object) -> bool:
    """Whether a value of TOML or JSON can be this feature's: of its datatype, and as many as its shape says."""
    if not column.shape:
        return _is_item(column.datatype, value)
    return isinstance(value, list) and len(value) == column.items and all(_is_item(column.datatype, v) for v in value)


def _is_item(datatype: str, value: object) -> bool:
    if datatype == "BOOL":
        return isinstance(value, bool)
    if datatype == "BYTES":
        return isinstance(value, str)
    if datatype.startswith("FP"):
        return type(value) in (int, float)
    signed, bits = datatype.startswith("INT"), int(datatype.removeprefix("U").removeprefix("INT"))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return isinstance(value, int) and type(value) is int and low <= value <= high


def _name(table: TableReader, key: str, default: str | None = None) -> str:
    text = table.text(key, default=default)
    if text and NAME.fullmatch(text) is None:
        table.problem(key, "letters, digits and '_', beginning with no digit, at most 48", text)
    return text


def _seconds(table: TableReader, key: str, default: float, maximum: float = 365 * DAY_S) -> float:
    value = table.take(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 <= value <= maximum:
        table.problem(key, f"seconds, a number from 0 to {maximum:,}", value)
        return default
    return float(value)


def _twice(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    twice = []
    for name in names:
        if name in seen:
            twice.append(name)
        seen.add(name)
    return twice
