"""Requests that leave inputs out, and the same requests with those inputs in them. Pure: no store, no clock.

What is not understood here is left as it is: the model's own worker reads every request after this and says what is
wrong with it in the words that it has for requests without features.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec

from feature_io.cache import Packed
from feature_io.plan import (
    KEYS_MAX,
    FetchedInput,
    ModelFeatures,
    RequestPlan,
    Run,
    check_key,
    check_rows,
    key_words,
    keys_of,
)
from feature_io.stores import Key
from feature_io.values import unpack
from host.config.features import FeatureView, KeyColumn, input_datatype
from host.protocol.errors import FeaturesUnavailable, InvalidInput, Malformed, MissingFeature
from host.protocol.messages import NO_JSON_HEADER, Encoding
from host.protocol.types import ITEM_BYTES

STATUS: Final = "feature_status"
"""The parameter that asks for, and then holds, where each feature came from."""


class Source(enum.Enum):
    """Where an entity's row came from."""

    STORE = "present"
    """Read from the store for this request."""
    CACHE = "cached"
    STALE = "stale"
    """From the cache, after its time."""
    MISSING = "missing"
    """The entity is not there."""
    NOWHERE = "unavailable"
    """The store does not answer, and the cache has nothing."""


DEFAULT: Final = "default"
"""The status of a feature that is null, and has its default; of other sources all features have the source's."""


class Found(msgspec.Struct, frozen=True, gc=False):
    """What is known of one entity. Made for each lookup, hence a `Struct`: a quarter of what a named tuple costs."""

    source: Source
    row: Packed | None


Place = tuple[int, Key]
"""A view's place among the host's views, and an entity's key."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One request, understood, and the entities that it needs."""

    plan: RequestPlan
    rows: int
    keys: dict[int, list[Key]]
    """For each view: one key for each row."""
    places: list[Place]
    """Each once."""
    complete: Callable[[dict[int, list[Found]]], bytes]
    """Write the completed request: for each view what was found for each row. Raises `MissingFeature` and others."""


class _Tensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] | None = None


class _Document(msgspec.Struct, omit_defaults=True):
    inputs: list[_Tensor]
    id: Any = None
    parameters: dict[str, Any] | None = None
    outputs: Any = None


# Made at import: msgspec looks annotations up by the module's name.
_DECODERS: Final = {
    Encoding.JSON: msgspec.json.Decoder(_Document).decode,
    Encoding.MSGPACK: msgspec.msgpack.Decoder(_Document).decode,
}
_ANY_DECODERS: Final = {
    Encoding.JSON: msgspec.json.Decoder().decode,
    Encoding.MSGPACK: msgspec.msgpack.Decoder().decode,
}
_encode = msgspec.msgpack.Encoder().encode


class Completer:
    """Completes requests of one model version."""

    def __init__(self, model: ModelFeatures, defaults: Sequence[Packed], max_bytes: int) -> None:
        """`defaults`: of every view of the host, in order. `max_bytes`: of a completed request."""
        self._model = model
        self._max_bytes = max_bytes
        self._views = model.views
        self._defaults = defaults
        self._keys: dict[str, KeyColumn] = {}
        for place in sorted(model.view_places):
            for key in self._views[place].keys:
                self._keys.setdefault(key.input, key)

    # -- Open Inference Protocol ----------------------------------------------------------------------------
    def infer(self, body: bytes, encoding: Encoding, json_bytes: int) -> Wanted | None:
        """Read a request. None: it is complete, or not understood. Raises `InvalidInput` and others."""
        document = _read_document(body, encoding, json_bytes)
        if document is None:
            return None
        plan = self._model.plan(tuple([tensor.name for tensor in document.inputs]))
        if plan.nothing:
            return None
        given: dict[str, Sequence[int | str]] = {}
        for tensor in document.inputs:
            if tensor.name in given:
                raise Malformed(f"input '{tensor.name}' is given twice")
            if tensor.name in self._keys:
                given[tensor.name] = self._key_values(tensor)
        rows, keys, places = self._wanted(plan, given)

        def complete(found: dict[int, list[Found]]) -> bytes:
            if plan.dropped:
                document.inputs = [tensor for tensor in document.inputs if tensor.name not in plan.dropped]
            for fetched in plan.fetch:
                document.inputs.append(self._tensor(fetched, keys, found, rows))
            parameters = document.parameters
            if parameters and parameters.get(STATUS) is True:
                document.parameters = parameters | {STATUS: self.statuses(plan, found, rows)}
            return self._encoded(document)

        return Wanted(plan, rows, keys, places, complete)

    def _tensor(
        self, fetched: FetchedInput, keys: dict[int, list[Key]], found: dict[int, list[Found]], rows: int
    ) -> _Tensor:
        spec = fetched.spec
        data = b"".join(self._rows(fetched, keys, found, rows))
        return _Tensor(spec.name, spec.datatype, [rows, *spec.shape[1:]], data)

    def _key_values(self, tensor: _Tensor) -> Sequence[int | str]:
        key = self._keys[tensor.name]
        where = f"input '{tensor.name}'"
        expected = input_datatype(key)
        if tensor.datatype != expected:
            raise InvalidInput(f"{where}: expected datatype {expected}, received {tensor.datatype}")
        shape = tensor.shape
        if not (len(shape) in (1, 2) and shape[0] > 0 and shape[1:] in ([], [1])):
            raise InvalidInput(f"{where}: expected shape [rows] or [rows, 1], received {shape}")
        data = tensor.data
        if isinstance(data, bytes):
            data = _items(where, tensor.datatype, data)
        elif isinstance(data, list) and data and isinstance(data[0], list):
            data = [item for row in data for item in (row if isinstance(row, list) else [row])]
        if not isinstance(data, list):
            raise Malformed(f"{where}: expected a list of keys as data, received {type(data).__name__}")
        if len(data) != shape[0]:
            raise Malformed(f"{where}: shape {shape} needs {shape[0]} values, received {len(data)}")
        return check_key(key, data, where)

    # -- TensorFlow Serving style -----------------------------------------------------------------------------
    def predict(self, body: bytes, encoding: Encoding) -> Wanted | None:
        """Read a request. None: it is complete, or not understood. Raises `InvalidInput` and others."""
        try:
            document = _ANY_DECODERS[encoding](body)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        instances, columns = document.get("instances"), document.get("inputs")
        if isinstance(instances, list) and columns is None:
            return self._instances(document, instances)
        if isinstance(columns, dict) and instances is None:
            return self._columns(document, columns)
        return None

    def _instances(self, document: dict[str, Any], instances: list[Any]) -> Wanted | None:
        if not instances or not all(isinstance(instance, dict) for instance in instances):
            return None
        names = tuple(instances[0])
        if any(instance.keys() != instances[0].keys() for instance in instances):
            raise InvalidInput("'instances': expected the same fields in every element, because some are fetched")
        plan = self._model.plan(names)
        if plan.nothing:
            return None
        given = {
            name: check_key(self._keys[name], [_scalar(instance[name]) for instance in instances], f"field '{name}'")
            for name in names
            if name in self._keys
        }
        rows, keys, places = self._wanted(plan, given, len(instances))

        def complete(found: dict[int, list[Found]]) -> bytes:
            for fetched in plan.fetch:
                for instance, packed in zip(instances, self._rows(fetched, keys, found, rows), strict=True):
                    instance[fetched.spec.name] = unpack(fetched.joined, packed)
            for instance, name in itertools.product(instances, plan.dropped):
                del instance[name]
            return self._encoded(document)

        return Wanted(plan, rows, keys, places, complete)

    def _columns(self, document: dict[str, Any], columns: dict[str, Any]) -> Wanted | None:
        plan = self._model.plan(tuple(columns))
        if plan.nothing:
            return None
        given = {}
        for name, values in columns.items():
            if name in self._keys:
                if not isinstance(values, list):
                    raise InvalidInput(f"input '{name}': expected a list of keys, received {type(values).__name__}")
                given[name] = check_key(self._keys[name], [_scalar(value) for value in values], f"input '{name}'")
        rows, keys, places = self._wanted(plan, given)

        def complete(found: dict[int, list[Found]]) -> bytes:
            for name in plan.dropped:
                del columns[name]
            for fetched in plan.fetch:
                packed_rows = self._rows(fetched, keys, found, rows)
                columns[fetched.spec.name] = [unpack(fetched.joined, packed) for packed in packed_rows]
            return self._encoded(document)

        return Wanted(plan, rows, keys, places, complete)

    # -- both -------------------------------------------------------------------------------------------------
    def _wanted(
        self, plan: RequestPlan, given: Mapping[str, Sequence[int | str]], instances: int | None = None
    ) -> tuple[int, dict[int, list[Key]], list[Place]]:
        by_inputs: dict[tuple[str, ...], list[Key]] = {}
        keys: dict[int, list[Key]] = {}
        for lookup in plan.lookups:
            if lookup.inputs not in by_inputs:
                by_inputs[lookup.inputs] = keys_of(self._views[lookup.view], lookup.wanted, given)
            keys[lookup.view] = by_inputs[lookup.inputs]
        if not keys:
            return instances or 0, {}, []
        if len(by_inputs) > 1:
            check_rows((self._views[place].name, len(values)) for place, values in keys.items())
        rows = len(next(iter(keys.values())))
        if not 1 <= rows <= self._model.max_rows:
            raise InvalidInput(
                f"expected 1 to {self._model.max_rows} rows (the model's max_batch_rows), received {rows}"
            )
        self._check_size(rows * plan.row_bytes)
        if rows == 1:
            return 1, keys, [(place, values[0]) for place, values in keys.items()]
        places = [(place, key) for place, values in keys.items() for key in dict.fromkeys(values)]
        if len(places) > KEYS_MAX:
            raise InvalidInput(f"expected at most {KEYS_MAX} different keys in a request, received {len(places)}")
        return rows, keys, places

    def _rows(
        self, fetched: FetchedInput, keys: dict[int, list[Key]], found: dict[int, list[Found]], rows: int
    ) -> list[bytes]:
        """Every row of an input. Raises `InvalidInput` as soon as they are too large together."""
        parts: list[bytes] = []
        size_bytes = 0
        for row in range(rows):
            part = self.packed(fetched, keys, found, row)
            size_bytes += len(part)
            if size_bytes > self._max_bytes:
                self._check_size(size_bytes)
            parts.append(part)
        return parts

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise InvalidInput(
                f"with its features the request has {size_bytes} bytes or more, the limit (max_body_bytes) is "
                f"{self._max_bytes}: ask for fewer rows"
            )

    def _encoded(self, document: object) -> bytes:
        try:
            body = _encode(document)
        except OverflowError as error:
            raise InvalidInput(f"a number of the request has more than 64 bits: {error}") from error
        self._check_size(len(body))
        return body

    def packed(
        self, fetched: FetchedInput, keys: dict[int, list[Key]], found: dict[int, list[Found]], row: int
    ) -> bytes:
        """One row of an input: its features, one after the other, with defaults for what is missing.

        Raises `MissingFeature`, `FeaturesUnavailable`.
        """
        parts: list[bytes | None] = []
        try:
            for run in fetched.runs:
                parts += found[run.view][row].row[run.start : run.end]  # type: ignore[index]
            return b"".join(parts)  # type: ignore[arg-type]
        except TypeError:
            # A row that is not there, or a null in one, which is rarer than looking for them is dear.
            return self._packed_with_defaults(fetched, keys, found, row)

    def _packed_with_defaults(
        self, fetched: FetchedInput, keys: dict[int, list[Key]], found: dict[int, list[Found]], row: int
    ) -> bytes:
        parts: list[bytes] = []
        for run in fetched.runs:
            values = found[run.view][row].row
            cells = values[run.start : run.end] if values is not None else None
            if cells is None or None in cells:
                cells = self._with_defaults(fetched, run, keys[run.view][row], found[run.view][row])
            parts += cast("tuple[bytes, ...]", cells)
        return b"".join(parts)

    def _with_defaults(self, fetched: FetchedInput, run: Run, key: Key, found: Found) -> Packed:
        """Fill in for a missing entity, a null, or a store that fails; or refuse, as the view's policies say."""
        view = self._views[run.view]
        if found.source is Source.NOWHERE and view.unavailable == "refuse":
            raise _unavailable(view, fetched)
        if found.source is Source.MISSING and view.missing == "refuse":
            raise MissingFeature(f"input '{fetched.spec.name}': view {view.name} has no entity {key_words(view, key)}")
        given = found.row if found.row is not None else (None,) * len(view.columns)
        cells = []
        for place in range(run.start, run.end):
            cell = given[place]
            if cell is None:
                cell = self._defaults[run.view][place]
            if cell is None:
                if found.source is Source.NOWHERE:
                    raise _unavailable(view, fetched)
                what = "has no entity" if found.source is Source.MISSING else "has a null for"
                raise MissingFeature(
                    f"input '{fetched.spec.name}': view {view.name} {what} {key_words(view, key)}, "
                    f"and {view.name}.{view.columns[place].name} has no default"
                )
            cells.append(cell)
        return tuple(cells)

    def statuses(self, plan: RequestPlan, found: dict[int, list[Found]], rows: int) -> dict[str, list[str]]:
        """Where each feature of each row came from, by `view.column`."""
        statuses: dict[str, list[str]] = {}
        for fetched in plan.fetch:
            for run in fetched.runs:
                for place in range(run.start, run.end):
                    name = f"{self._views[run.view].name}.{self._views[run.view].columns[place].name}"
                    statuses[name] = [
                        DEFAULT if one.row is not None and one.row[place] is None else one.source.value
                        for one in found[run.view][:rows]
                    ]
        return statuses


def _unavailable(view: FeatureView, fetched: FetchedInput) -> FeaturesUnavailable:
    return FeaturesUnavailable(f"input '{fetched.spec.name}': the store of view {view.name} does not answer")


def _read_document(body: bytes, encoding: Encoding, json_bytes: int) -> _Document | None:
    """The request with binary tensors in their places; None if it is not understood."""
    try:
        if json_bytes == NO_JSON_HEADER:
            return _DECODERS[encoding](body)
        if not 0 < json_bytes <= len(body):
            return None
        document: _Document = _DECODERS[Encoding.JSON](body[:json_bytes])
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return None
    offset = json_bytes
    for tensor in document.inputs:
        size = (tensor.parameters or {}).pop("binary_data_size", None)
        if size is not None:
            if type(size) is not int or size < 0 or tensor.data is not None or offset + size > len(body):
                return None
            tensor.data = body[offset : offset + size]
            offset += size
    return document if offset == len(body) else None


def _scalar(value: Any) -> Any:
    """A key in a row: itself, or the only element of a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _items(where: str, datatype: str, data: bytes) -> list[int] | list[str]:
    """The values of a binary tensor of keys. Raises `Malformed`."""
    if datatype == "BYTES":
        return _texts(where, data)
    size = ITEM_BYTES[datatype] or 1
    if len(data) % size:
        raise Malformed(f"{where}: expected a multiple of {size} bytes, received {len(data)}")
    return list(struct.unpack(f"<{len(data) // size}{_CODES[datatype]}", data))


_CODES: Final = {"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"}


def _texts(where: str, data: bytes) -> list[str]:
    texts: list[str] = []
    offset = 0
    while offset < len(data):
        end = offset + 4
        size = int.from_bytes(data[offset:end], "little")
        if end > len(data) or end + size > len(data):
            raise Malformed(f"{where}: an element of {size} bytes at offset {offset} is cut short")
        try:
            texts.append(data[end : end + size].decode())
        except UnicodeDecodeError as error:
            raise Malformed(f"{where}: the element at offset {offset} is not UTF-8: {error.reason}") from error
        offset = end + size
    return texts
