"""Features for other clients than models: what is asked for, and the document that answers it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from feature_io.completion import Found, Place, Source
from feature_io.plan import KEYS_MAX, check_key, key_words, parse_key
from feature_io.stores import Key
from feature_io.values import unpack
from host.config.features import FeatureColumn, Features, FeatureView, KeyColumn
from host.protocol.documents import decode_document
from host.protocol.errors import FeaturesUnavailable, InvalidInput, Malformed, UnknownEntity, UnknownView
from host.protocol.messages import Encoding

VIEWS_MAX: Final = 64
VALUES_MAX: Final = 100_000
"""Numbers and texts of one answer: a tenth of a second of the service's time."""


class One(NamedTuple):
    """The rows of one view that somebody wants."""

    view: FeatureView
    place: int
    keys: list[Key]
    columns: list[int]
    """Places of the columns that are asked for."""


class Reading(NamedTuple):
    """A request for features."""

    views: list[One]
    places: list[Place]
    """Each once."""
    single: bool
    """It names one entity, whose absence is an error."""


class _Path(msgspec.Struct, forbid_unknown_fields=True):
    view: str
    path: list[str]
    """One text for each key column."""


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    view: str
    keys: list[Any]
    columns: list[str] | None = None


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    views: list[_Part]


def read_reading(features: Features, body: bytes, encoding: Encoding) -> Reading:
    """Read `{"view", "path"}`, which the front makes of a path, or `{"views": [...]}` of a client.

    Raises `Malformed`, `InvalidInput`, `UnknownView`.
    """
    document = decode_document(body, encoding)
    kind: Any = _Path if isinstance(document, dict) and "path" in document else _Batch
    try:
        request: _Path | _Batch = msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        form = '{"views": [{"view": ..., "keys": [...], "columns": [...]}]}'
        raise Malformed(f"expected {form} (columns may be left out): {error}") from error
    if isinstance(request, _Path):
        view, place = _view(features, request.view)
        one = One(view, place, [_key_of_path(view, request.path)], list(range(len(view.columns))))
        return Reading([one], [(place, one.keys[0])], single=True)
    if not 1 <= len(request.views) <= VIEWS_MAX:
        raise InvalidInput(f"views: expected 1 to {VIEWS_MAX}, received {len(request.views)}")
    parts: list[One] = []
    count = sum(len(part.keys) for part in request.views)
    if count > KEYS_MAX:
        raise InvalidInput(f"expected at most {KEYS_MAX} keys in a request, received {count}")
    for part in request.views:
        view, place = _view(features, part.view)
        columns = range(len(view.columns)) if part.columns is None else [_column(view, name) for name in part.columns]
        parts.append(One(view, place, [parse_key(view, key) for key in part.keys], list(dict.fromkeys(columns))))
    values = sum(len(one.keys) * sum(one.view.columns[place].items for place in one.columns) for one in parts)
    if values > VALUES_MAX:
        raise InvalidInput(f"expected at most {VALUES_MAX} values in an answer, asked for {values}")
    places = list(dict.fromkeys((one.place, key) for one in parts for key in one.keys))
    return Reading(parts, places, single=False)


def reading_answer(reading: Reading, found: Mapping[Place, Found]) -> dict[str, Any]:
    """The answer's document. Raises `UnknownEntity`, `FeaturesUnavailable` for a request of one entity."""
    if reading.single:
        one = reading.views[0]
        entity = found[reading.places[0]]
        if entity.source is Source.MISSING:
            raise UnknownEntity(f"view {one.view.name} has no entity {key_words(one.view, one.keys[0])}")
        if entity.source is Source.NOWHERE:
            raise FeaturesUnavailable(f"the store of view {one.view.name} does not answer")
        return {"view": one.view.name, **_row(one, one.keys[0], entity)}
    return {
        "views": [
            {"view": one.view.name, "rows": [_row(one, key, found[one.place, key]) for key in one.keys]}
            for one in reading.views
        ]
    }


def _row(one: One, key: Key, found: Found) -> dict[str, Any]:
    features = None
    if found.row is not None:
        features = {
            one.view.columns[place].name: _value(one.view.columns[place], found.row[place]) for place in one.columns
        }
    return {
        "key": {column.column: value for column, value in zip(one.view.keys, key, strict=True)},
        "status": found.source.value,
        "features": features,
    }


def _value(column: FeatureColumn, packed: bytes | None) -> Any:
    return None if packed is None else unpack(column, packed)


def _view(features: Features, name: str) -> tuple[FeatureView, int]:
    for place, view in enumerate(features.views):
        if view.name == name:
            return view, place
    known = ", ".join(view.name for view in features.views) or "none"
    raise UnknownView(f"unknown view {name!r}: expected one of {known}")


def _column(view: FeatureView, name: str) -> int:
    place = view.column(name)
    if place is None:
        known = ", ".join(column.name for column in view.columns)
        raise InvalidInput(f"view {view.name}: unknown column {name!r}: expected one of {known}")
    return place


def _key_of_path(view: FeatureView, texts: Sequence[str]) -> Key:
    if len(texts) != len(view.keys):
        names = "/".join(key.column for key in view.keys)
        raise InvalidInput(f"view {view.name}: expected /{names} behind the view, received {len(texts)} values")
    return tuple(check_key(key, [_typed(key, text)], "path")[0] for key, text in zip(view.keys, texts, strict=True))


def _typed(key: KeyColumn, text: str) -> int | str:
    """A key's value from its text; what is no number stays text, and is refused by its type."""
    digits = text.removeprefix("-")
    if key.datatype in ("BYTES", "UUID") or not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        return text
    return int(text)


# -- forgetting -------------------------------------------------------------------------------------------------
class _Invalidation(msgspec.Struct, forbid_unknown_fields=True):
    view: str | None = None
    path: list[str] | None = None


class Invalidation(NamedTuple):
    """What is to be forgotten."""

    places: list[int]
    """Of views."""
    key: Key | None
    """One entity's; None: all of them."""


def read_invalidation(features: Features, body: bytes) -> Invalidation:
    """Read `{"view", "path"}`: an entity; without a path all of the view's; without a view everything.

    Raises `UnknownView`, `InvalidInput`, `Malformed`.
    """
    try:
        asked = msgspec.json.decode(body, type=_Invalidation)
    except msgspec.DecodeError as error:
        raise Malformed(f"not an invalidation: {error}") from error
    if asked.view is None:
        return Invalidation(list(range(len(features.views))), None)
    view, place = _view(features, asked.view)
    return Invalidation([place], None if asked.path is None else _key_of_path(view, asked.path))
