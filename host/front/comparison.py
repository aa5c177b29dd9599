"""Whether a shadow's answer says the same as the original's. Pure: two answers in, the first difference out.

Compared are the status and, of answers with status 200, the outputs: names, datatypes, shapes and values, or for
`:predict` the predictions. Two floating-point numbers may differ by the tolerance, relative to the larger, and by
`ABSOLUTE_TOLERANCE`; NaN equals NaN. Everything else, whole numbers too, must be equal. Not compared are the model's
version, the request's id and parameters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from host.protocol.messages import NO_JSON_HEADER, Encoding
from host.protocol.schema import described

ABSOLUTE_TOLERANCE: Final = 1e-9
"""For what should be zero."""

_CODES: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""Datatype to its code in `struct`; BYTES carry their lengths with them."""
_LENGTH: Final = struct.Struct("<I")
_OK: Final = 200


class Answered(NamedTuple):
    """What a version answered."""

    status: int
    encoding: Encoding
    json_bytes: int
    body: bytes


class Difference(NamedTuple):
    """The first thing that differs."""

    where: str
    original: Any
    shadow: Any

    def __str__(self) -> str:
        return f"{self.where}: {described(self.original)}, the shadow's {described(self.shadow)}"


class _Unreadable(Exception):
    """An answer is not what its form promises."""


def first_difference(original: Answered, shadow: Answered, tolerance: float) -> Difference | None:
    """Compare two answers to the same request; None: they say the same."""
    if original.status != shadow.status:
        return Difference("status", original.status, shadow.status)
    if original.status != _OK:
        return None
    try:
        document, other = _document(original), _document(shadow)
        if "outputs" in document:
            return _between_outputs(_outputs(document), _outputs(other), tolerance)
        return _between("predictions", _predictions(document), _predictions(other), tolerance)
    except _Unreadable as error:
        return Difference(f"not readable ({error})", original.body[:20].hex(), shadow.body[:20].hex())


# -- the Open Inference Protocol ------------------------------------------------------------------------------
class _Output(NamedTuple):
    name: str
    datatype: str
    shape: list[int]
    values: list[Any]


def _between_outputs(ours: Sequence[_Output], theirs: Sequence[_Output], tolerance: float) -> Difference | None:
    names, other_names = [output.name for output in ours], [output.name for output in theirs]
    if names != other_names:
        return Difference("names of outputs", ", ".join(names), ", ".join(other_names))
    for output, other in zip(ours, theirs, strict=True):
        for part in ("datatype", "shape"):
            if getattr(output, part) != getattr(other, part):
                return Difference(f"{part} of output '{output.name}'", getattr(output, part), getattr(other, part))
        found = _between(f"output '{output.name}'", output.values, other.values, tolerance)
        if found is not None:
            return found
    return None


def _document(answer: Answered) -> dict[str, Any]:
    body = answer.body
    try:
        if answer.json_bytes != NO_JSON_HEADER:
            document = msgspec.json.decode(body[: answer.json_bytes])
            _add_binary(document, body[answer.json_bytes :])
        elif answer.encoding is Encoding.JSON:
            document = msgspec.json.decode(body)
        else:
            document = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Unreadable(str(error)) from error
    if not isinstance(document, dict):
        raise _Unreadable(f"expected an object, received {described(document)}")
    return document


def _add_binary(document: dict[str, Any], data: bytes) -> None:
    """Put the bytes behind the JSON part where JSON would have the values."""
    start = 0
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is not None:
            output["data"] = data[start : start + size]
            start += size


def _outputs(document: dict[str, Any]) -> list[_Output]:
    try:
        return [
            _Output(one["name"], one["datatype"], one["shape"], _values(one["datatype"], one["data"]))
            for one in document["outputs"]
        ]
    except (KeyError, TypeError, struct.error) as error:
        raise _Unreadable(f"its outputs: {error!r}") from error


def _predictions(document: dict[str, Any]) -> Any:
    if "predictions" not in document:
        raise _Unreadable("neither outputs nor predictions")
    return document["predictions"]


def _values(datatype: str, data: Any) -> list[Any]:
    if isinstance(data, list):
        return data
    code = _CODES.get(datatype)
    if code is None:
        return _texts(data)
    return list(struct.unpack(f"<{len(data) // struct.calcsize(f'<{code}')}{code}", data))


def _texts(data: bytes) -> list[bytes]:
    texts, start = [], 0
    while start < len(data):
        (size,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        texts.append(data[start : start + size])
        start += size
    return texts


# -- values ---------------------------------------------------------------------------------------------------
def _between(where: str, ours: Any, theirs: Any, tolerance: float) -> Difference | None:
    """The first difference of two plain values, however nested."""
    if isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return Difference(f"length of {where}", len(ours), len(theirs))
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if isinstance(one, list | dict):
                found = _between(f"{where}[{index}]", one, other, tolerance)
                if found is not None:
                    return found
            elif not _same(one, other, tolerance):
                return Difference(f"{where}[{index}]", one, other)
        return None
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return Difference(f"names in {where}", ", ".join(map(str, ours)), ", ".join(map(str, theirs)))
        for key, value in ours.items():
            found = _between(f"{where}.{key}", value, theirs[key], tolerance)
            if found is not None:
                return found
        return None
    return None if _same(ours, theirs, tolerance) else Difference(where, ours, theirs)


def _same(one: Any, other: Any, tolerance: float) -> bool:
    if type(one) is float or type(other) is float:
        if type(one) not in (float, int) or type(other) not in (float, int):
            return False
        both_nan = one != one and other != other
        return both_nan or math.isclose(one, other, rel_tol=tolerance, abs_tol=ABSOLUTE_TOLERANCE)
    return type(one) is type(other) and bool(one == other)
