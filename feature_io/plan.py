"""What a model needs of which views, and what one request leaves to fetch. Pure: descriptions in, plans out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from feature_io.stores import Key
from feature_io.values import Packer
from host.config.features import FeatureColumn, Features, FeatureView, KeyColumn, feature_refs
from host.protocol.errors import InvalidInput, MissingFeature
from host.protocol.schema import described
from host.protocol.types import ITEM_BYTES, Signature, TensorSpec

GIVEN_MAX: Final = 256
"""Combinations of given inputs whose plans are remembered; clients of a model send one or two."""

_INT_LIMITS: Final = {f"INT{bits}": 1 << bits - 1 for bits in (8, 16, 32, 64)}
_HEX_DIGITS: Final = frozenset("0123456789abcdefABCDEF")
LENGTH_BYTES: Final = 4
"""Before each element of BYTES."""

KEYS_MAX: Final = 10_000
"""Different entities of one view that one request may ask for."""


@dataclass(frozen=True, slots=True)
class Run:
    """Columns of one view that stand side by side in an input, and in the view."""

    view: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FetchedInput:
    """An input that can be put together from features."""

    spec: TensorSpec
    runs: tuple[Run, ...]
    row_bytes: int
    """Of a row of it, packed; at least so many where it holds BYTES."""
    joined: FeatureColumn
    """What the features side by side are: one value of the input's inner shape."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A view to read."""

    view: int
    inputs: tuple[str, ...]
    """Those that carry its key: views of the same ones have the same keys."""
    wanted: FetchedInput
    """The first one that it is read for."""


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """What a request with certain inputs given needs."""

    fetch: tuple[FetchedInput, ...]
    lookups: tuple[Lookup, ...]
    """Each view once."""
    row_bytes: int
    """Of a row of all that is fetched, packed; at least so many where some holds BYTES."""
    dropped: frozenset[str]
    """Inputs that are keys and nothing that the model takes."""

    @property
    def nothing(self) -> bool:
        """The request is complete as it is."""
        return not self.fetch and not self.dropped


@dataclass(slots=True)
class ModelFeatures:
    """One model version, by what it needs."""

    signature: Signature
    views: Sequence[FeatureView]
    """All of the host's, in order."""
    inputs: tuple[FetchedInput, ...]
    max_rows: int
    """Of a request, as the model's worker allows it."""
    key_inputs: frozenset[str]
    """What requests may carry beside the model's own inputs."""
    _plans: dict[tuple[str, ...], RequestPlan] = field(default_factory=dict)

    def plan(self, given: tuple[str, ...]) -> RequestPlan:
        """What is left to fetch when these inputs are given, in the order in which they came."""
        plan = self._plans.get(given)
        if plan is None:
            names = frozenset(given)
            fetch = tuple(one for one in self.inputs if one.spec.name not in names)
            lookups: dict[int, Lookup] = {}
            for one in fetch:
                for run in one.runs:
                    inputs = tuple([key.input for key in self.views[run.view].keys])
                    lookups.setdefault(run.view, Lookup(run.view, inputs, one))
            own = {spec.name for spec in self.signature.inputs}
            plan = RequestPlan(
                fetch=fetch,
                lookups=tuple(lookups.values()),
                row_bytes=sum(one.row_bytes for one in fetch),
                dropped=(names & self.key_inputs) - own,
            )
            if len(self._plans) < GIVEN_MAX:
                self._plans[given] = plan
        return plan

    @property
    def view_places(self) -> frozenset[int]:
        """Every view that it may need."""
        return frozenset(run.view for one in self.inputs for run in one.runs)


def model_features(signature: Signature, features: Features, max_rows: int) -> ModelFeatures | None:
    """What a model needs; None if it takes everything from its requests. Its references must have been checked."""
    places = {view.name: place for place, view in enumerate(features.views)}
    inputs: list[FetchedInput] = []
    for spec in signature.inputs:
        refs = feature_refs(spec)
        if not refs:
            continue
        runs: list[Run] = []
        for ref in refs:
            view = places[ref.view]
            column = features.views[view].column(ref.column) or 0
            if runs and runs[-1].view == view and runs[-1].end == column:
                runs[-1] = Run(view, runs[-1].start, column + 1)
            else:
                runs.append(Run(view, column, column + 1))
        joined = FeatureColumn(name=spec.name, datatype=spec.datatype, shape=spec.shape[1:])
        row_bytes = joined.items * (ITEM_BYTES[spec.datatype] or LENGTH_BYTES)
        inputs.append(FetchedInput(spec, tuple(runs), row_bytes, joined))
    if not inputs:
        return None
    used = {run.view for one in inputs for run in one.runs}
    key_inputs = frozenset(key.input for place in used for key in features.views[place].keys)
    return ModelFeatures(signature, features.views, tuple(inputs), max_rows, key_inputs)


def keys_of(view: FeatureView, wanted: FetchedInput, given: Mapping[str, Sequence[int | str]]) -> list[Key]:
    """The key of each row, from the values of the inputs that carry them.

    Raises `MissingFeature` if one is not given, `InvalidInput` if they are of different lengths.
    """
    columns: list[Sequence[int | str]] = []
    for key in view.keys:
        values = given.get(key.input)
        if values is None:
            received = ", ".join(f"'{name}'" for name in given) or "no key"
            raise MissingFeature(
                f"input '{wanted.spec.name}' is missing, and so is '{key.input}', by which it is fetched "
                f"(view {view.name}): received {received}"
            )
        columns.append(values)
    if len(columns) == 1:
        return [(value,) for value in columns[0]]
    if len({len(values) for values in columns}) > 1:
        lengths = ", ".join(f"'{key.input}' {len(v)}" for key, v in zip(view.keys, columns, strict=True))
        raise InvalidInput(f"view {view.name}: expected as many values of each key, received {lengths}")
    return list(zip(*columns, strict=True))


def check_rows(rows: Iterable[tuple[str, int]]) -> None:
    """Check that there are as many keys for each view. Raises `InvalidInput`."""
    counts = dict(rows)
    if len(set(counts.values())) > 1:
        received = ", ".join(f"{count} for view {view}" for view, count in counts.items())
        raise InvalidInput(f"expected as many keys for each view, received {received}")


def check_key(key: KeyColumn, values: Sequence[object], where: str) -> Sequence[int | str]:
    """Check values of one key column. Raises `InvalidInput` that names the element, expected and received."""
    for position, value in enumerate(values):
        if not _is_key(key.datatype, value):
            raise InvalidInput(
                f"{where} element {position}: expected {_KEY_WORDS[key.datatype]}, the key {key.column}, "
                f"received {described(value)}"
            )
    if key.datatype == "UUID":
        return [str(value).lower() for value in values]
    return values  # type: ignore[return-value]


def _is_key(datatype: str, value: object) -> bool:
    if datatype == "BYTES":
        return isinstance(value, str) and (value.isascii() or _is_text(value))
    if datatype == "UUID":
        return isinstance(value, str) and _is_uuid(value)
    limit = _INT_LIMITS[datatype]
    return type(value) is int and -limit <= value < limit


def _is_text(value: str) -> bool:
    """Half a surrogate pair, which JSON can carry, is none."""
    return not any("\ud800" <= char <= "\udfff" for char in value)


def _is_uuid(text: str) -> bool:
    parts = text.split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and all(c in _HEX_DIGITS for c in "".join(parts))


_KEY_WORDS: Final = {
    "INT8": "a whole number of 8 bits",
    "INT16": "a whole number of 16 bits",
    "INT32": "a whole number of 32 bits",
    "INT64": "a whole number of 64 bits",
    "BYTES": "text",
    "UUID": "a UUID, as in 123e4567-e89b-12d3-a456-426614174000",
}


def parse_key(view: FeatureView, value: object) -> Key:
    """An entity's key from a JSON value: the value itself, or a list for several columns. Raises `InvalidInput`."""
    parts = value if isinstance(value, list) else [value]
    if len(parts) != len(view.keys):
        names = ", ".join(key.column for key in view.keys)
        raise InvalidInput(
            f"view {view.name}: expected a key of {len(view.keys)} values ({names}), received {described(value)}"
        )
    return tuple(
        check_key(key, [part], f"view {view.name}: key")[0] for key, part in zip(view.keys, parts, strict=True)
    )


def packed_defaults(view: FeatureView) -> tuple[bytes | None, ...]:
    """Each column's default as it is cached; None: it has none."""
    return tuple(None if column.required else Packer(column).pack(column.default) for column in view.columns)


def key_words(view: FeatureView, key: Key) -> str:
    """A key for a message: `user_id = 5, day = "monday"`."""
    return ", ".join(
        f"{column.column} = {value if isinstance(value, int) else repr(value)}"
        for column, value in zip(view.keys, key, strict=True)
    )
