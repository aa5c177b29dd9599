"""Tensors in documents and in bytes, to and from numpy. Every error names the tensor, expected and received."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from host.protocol.documents import decode_document
from host.protocol.errors import InvalidInput, InvalidOutput, Malformed
from host.protocol.messages import Encoding
from host.protocol.types import ITEM_BYTES, TensorSpec, shape_matches, shape_text

Array = npt.NDArray[Any]


class Packed(msgspec.Struct, frozen=True, eq=False):
    """Numbers in memory that will be an array, as soon as it is known which requests' rows share it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    memory: bytes


Input = Array | Packed
"""What a request gives for an input. `joined` makes an array of it."""

NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
"""Little-endian, as tensors travel. BYTES is an object array of `bytes`."""

_PACK_CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
"""Datatype to its code in `struct`, for those whose values it refuses when they are out of range, as it must be."""

_SCALARS: Final[dict[str, type]] = {"BOOL": bool, "FP32": float, "FP64": float, "BYTES": str}
_LENGTH: Final = struct.Struct("<I")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DECODE: Final[dict[Encoding, Callable[..., Any]]] = {
    Encoding.JSON: msgspec.json.decode,
    Encoding.MSGPACK: msgspec.msgpack.decode,
}
_PACK_MAX_ELEMENTS: Final = 1 << 20
_NESTING_MAX: Final = 32
"""numpy's own limit of dimensions."""


def scalar_type(datatype: str) -> type:
    """The Python type of one element in a document."""
    return _SCALARS.get(datatype, int)


# -- checking ----------------------------------------------------------------------------------------
def check_shape(spec: TensorSpec, datatype: str, shape: Sequence[int]) -> None:
    """Compare a declared tensor with the model's input. Raises `InvalidInput` or `Malformed`."""
    if datatype != spec.datatype:
        raise InvalidInput(f"input '{spec.name}': expected datatype {spec.datatype}, received {datatype!r}")
    for dim in shape:
        if dim < 0:
            raise Malformed(f"input '{spec.name}': expected a shape of dimensions >= 0, received {shape_text(shape)}")
    if not shape_matches(shape, spec.shape):
        raise InvalidInput(
            f"input '{spec.name}': expected shape {shape_text(spec.shape)}, received {shape_text(shape)}"
        )


def _check_count(name: str, shape: Sequence[int], received: int) -> None:
    expected = math.prod(shape)
    if expected != received:
        raise Malformed(f"input '{name}': shape {shape_text(shape)} holds {expected} elements, received {received}")


def _shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    """Give an array of the right number of elements its shape. A shape without elements may still be too large."""
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as error:
        raise Malformed(f"input '{name}': shape {shape_text(shape)}: {error}") from error


# -- documents to arrays -------------------------------------------------------------------------------
def array_from_values(spec: TensorSpec, shape: Sequence[int], values: Sequence[Any]) -> Array:
    """Make an array of flat values that already have the right Python type (`scalar_type`)."""
    _check_count(spec.name, shape, len(values))
    return _shaped(spec.name, _typed_array(spec, values), shape)


def flat_reader(spec: TensorSpec, shape: Sequence[int]) -> Callable[[Sequence[Any]], Input]:
    """What `array_from_values` does for one shape, in a third of the time: for shapes that repeat."""
    code, count = _PACK_CODES.get(spec.datatype), math.prod(shape)
    if code is None or not 0 < count <= _PACK_MAX_ELEMENTS:
        return partial(array_from_values, spec, tuple(shape))
    pack = struct.Struct(f"<{count}{code}").pack
    dtype, sizes = NUMPY_DTYPES[spec.datatype], tuple(shape)

    def read(values: Sequence[Any]) -> Input:
        try:
            return Packed(sizes, dtype, pack(*values))
        except (struct.error, OverflowError):
            return array_from_values(spec, sizes, values)  # which says what is wrong

    return read


def joined(parts: Sequence[Input]) -> Array:
    """One array of what several requests give for an input, row after row; of a single one, what it gives."""
    if len(parts) == 1:
        return _array(parts[0])
    packed = [part for part in parts if type(part) is Packed]
    if len(packed) < len(parts):
        return np.concatenate([_array(part) for part in parts])
    shape = (sum([part.shape[0] for part in packed]), *packed[0].shape[1:])
    return np.ndarray(shape, packed[0].dtype, bytearray().join([part.memory for part in packed]))


def _array(part: Input) -> Array:
    return np.ndarray(part.shape, part.dtype, bytearray(part.memory)) if isinstance(part, Packed) else part


def array_from_document(spec: TensorSpec, shape: Sequence[int], data: msgspec.Raw, encoding: Encoding) -> Array:
    """Make an array of a document's `data`: flat, nested to the shape, or (msgpack) the raw bytes."""
    _refuse_half(spec)
    scalar = scalar_type(spec.datatype)
    if encoding is Encoding.MSGPACK:
        binary = _binary_in_msgpack(data)
        if binary is not None:
            return array_from_bytes(spec, shape, memoryview(binary))
        if scalar is str:
            return array_from_values(spec, shape, _msgpack_texts(spec, data, len(shape)))
    decode = _DECODE[encoding]
    try:
        return array_from_values(spec, shape, decode(data, type=_nested_list(scalar, 1)))
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        nested = decode(data, type=_nested_list(scalar, len(shape)))
    except (msgspec.DecodeError, UnicodeDecodeError):
        _explain(spec, data, encoding)
    return array_from_nested(spec, nested, shape)


def array_from_nested(spec: TensorSpec, nested: Any, shape: Sequence[int] | None = None) -> Array:
    """Make an array of plain nested lists, checking every element. `shape`: what it must come to, if declared."""
    received_shape: list[int] = []
    flat = [nested]
    while flat and isinstance(flat[0], list):
        if len(received_shape) == _NESTING_MAX:
            raise InvalidInput(f"input '{spec.name}': nested deeper than {_NESTING_MAX} levels")
        size = len(flat[0])
        for part in flat:
            if not isinstance(part, list) or len(part) != size:
                received = f"a list of {len(part)}" if isinstance(part, list) else _described(part)
                raise InvalidInput(
                    f"input '{spec.name}': ragged data: expected lists of {size} elements at level "
                    f"{len(received_shape) + 1}, received {received}"
                )
        received_shape.append(size)
        flat = [element for part in flat for element in part]
    if shape is not None and list(shape) != received_shape:
        raise Malformed(
            f"input '{spec.name}': declared shape {shape_text(shape)}, "
            f"received data of shape {shape_text(received_shape)}"
        )
    _check_elements(spec, flat)
    return _typed_array(spec, flat).reshape(received_shape)


def array_from_bytes(spec: TensorSpec, shape: Sequence[int], data: memoryview) -> Array:
    """Make an array of raw little-endian bytes. Read-only and without a copy, except for BYTES."""
    item_bytes = ITEM_BYTES[spec.datatype]
    count = math.prod(shape)
    if item_bytes is None:
        return _shaped(spec.name, _texts_from_bytes(spec.name, count, data), shape)
    if count * item_bytes != len(data):
        raise Malformed(
            f"input '{spec.name}': {spec.datatype} of shape {shape_text(shape)} takes {count * item_bytes} "
            f"bytes, received {len(data)}"
        )
    return _shaped(spec.name, np.frombuffer(data, dtype=NUMPY_DTYPES[spec.datatype]), shape)


def _typed_array(spec: TensorSpec, values: Sequence[Any]) -> Array:
    datatype = spec.datatype
    if datatype == "FP64":
        return np.array(values, dtype=np.float64)
    if datatype == "FP32":
        with np.errstate(over="ignore"):
            array: Array = np.array(values, dtype=np.float32)
        if not np.isfinite(array).all():
            _refuse_overflow(spec, values, array)
        return array
    if datatype == "BOOL":
        return np.array(values, dtype=np.bool_)
    if datatype == "BYTES":
        texts = np.empty(len(values), dtype=np.object_)
        try:
            texts[:] = [value if isinstance(value, bytes) else value.encode() for value in values]
        except UnicodeEncodeError as error:
            raise Malformed(f"input '{spec.name}': a string holds an unpaired surrogate") from error
        return texts
    return _integers(spec, values)


def _integers(spec: TensorSpec, values: Sequence[int]) -> Array:
    dtype = NUMPY_DTYPES[spec.datatype]
    bounds = np.iinfo(dtype)
    wide = np.uint64 if spec.datatype == "UINT64" else np.int64
    try:
        array: Array = np.array(values, dtype=wide)
    except OverflowError:
        array = np.zeros(0, dtype=wide)
    # numpy 1.x wraps a negative number into uint64 silently, so the bounds are checked on the values there.
    if len(array) != len(values) or (values and not bounds.min <= min(values) <= max(values) <= bounds.max):
        for position, value in enumerate(values):
            if not bounds.min <= value <= bounds.max:
                raise InvalidInput(
                    f"input '{spec.name}': expected {spec.datatype} ({bounds.min} to {bounds.max}), "
                    f"received {value} (element {position})"
                )
    return array.astype(dtype, copy=False)


def _refuse_overflow(spec: TensorSpec, values: Sequence[float], array: Array) -> None:
    for position in np.flatnonzero(~np.isfinite(array)):
        value = values[int(position)]
        if math.isfinite(value):
            raise InvalidInput(
                f"input '{spec.name}': expected {spec.datatype}, received {value!r} (element {position}), "
                "which is beyond its range"
            )


def _texts_from_bytes(name: str, count: int, data: memoryview) -> Array:
    """BYTES: for each element a little-endian u32 length, then so many bytes."""
    texts: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(data) - offset < _LENGTH.size:
            raise Malformed(
                f"input '{name}': BYTES element {len(texts)}: expected a length of 4 bytes, "
                f"received {len(data) - offset}"
            )
        (size,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if size > len(data) - offset:
            raise Malformed(
                f"input '{name}': BYTES element {len(texts)}: expected {size} bytes, received {len(data) - offset}"
            )
        texts.append(bytes(data[offset : offset + size]))
        offset += size
    if len(texts) != count:
        raise Malformed(f"input '{name}': expected {count} BYTES elements, received {len(texts)}")
    array = np.empty(count, dtype=np.object_)
    array[:] = texts
    return array


def _refuse_half(spec: TensorSpec) -> None:
    if spec.datatype == "FP16":
        raise InvalidInput(f"input '{spec.name}': FP16 cannot travel in a document: send it as binary data")


def refuse_strays(name: str, value: Any) -> None:
    """Raise for what Python's JSON reader takes and JSON cannot carry: NaN, Infinity, half of a surrogate pair.

    `value`: plain values, however nested. The element that is named counts through all of them.
    """
    waiting = [value]
    position = 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(reversed(part))
            continue
        if isinstance(part, dict):
            waiting.extend(reversed(part.values()))
            continue
        if isinstance(part, float) and not math.isfinite(part):
            raise InvalidInput(
                f"input '{name}': expected finite numbers, received {part} (element {position}): "
                "JSON cannot carry it, msgpack and binary data can"
            )
        if isinstance(part, str) and _SURROGATE.search(part):
            raise InvalidInput(
                f"input '{name}': expected text, received {part!r} (element {position}) with an unpaired surrogate"
            )
        position += 1


def _binary_in_msgpack(data: msgspec.Raw) -> bytes | None:
    """The bytes of a msgpack `bin`, or None if the value is of another type."""
    try:
        return msgspec.msgpack.decode(data, type=bytes)
    except msgspec.DecodeError:
        return None


def _msgpack_texts(spec: TensorSpec, data: msgspec.Raw, depth: int) -> list[Any]:
    """Flat or nested lists of msgpack `str` and `bin`, which may be mixed."""
    values = decode_document(bytes(data), Encoding.MSGPACK)
    for _ in range(depth - 1):
        if isinstance(values, list) and values and all(isinstance(part, list) for part in values):
            values = [element for part in values for element in part]
    if not isinstance(values, list):
        raise InvalidInput(f"input '{spec.name}': expected a list, received {_described(values)}")
    _check_elements(spec, values)
    return values


@cache
def _nested_list(scalar: type, depth: int) -> Any:
    nested: Any = scalar
    for _ in range(depth):
        nested = list[nested]
    return nested


def _check_elements(spec: TensorSpec, values: Sequence[Any]) -> None:
    """Raise an error that names the first element of a wrong type. Booleans are no numbers here."""
    scalar = scalar_type(spec.datatype)
    accepted = _ACCEPTED[scalar]
    for position, value in enumerate(values):
        if type(value) not in accepted:
            raise InvalidInput(
                f"input '{spec.name}': expected {_ELEMENTS[scalar]} ({spec.datatype}), "
                f"received {_described(value)} (element {position})"
            )


def _explain(spec: TensorSpec, raw: msgspec.Raw, encoding: Encoding) -> NoReturn:
    """Raise the error for `data` that could be read neither flat nor nested."""
    data = decode_document(bytes(raw), encoding)
    if encoding is Encoding.JSON:
        refuse_strays(spec.name, data)
    if not isinstance(data, list):
        raise InvalidInput(f"input '{spec.name}': expected data to be a list, received {_described(data)}")
    array_from_nested(spec, data)
    raise InvalidInput(
        f"input '{spec.name}': expected a flat list or one nested as deep as shape {shape_text(spec.shape)}, "
        "received lists of another depth"
    )


_ACCEPTED: Final = {bool: (bool,), int: (int,), float: (float, int), str: (str, bytes)}
_ELEMENTS: Final = {bool: "true or false", int: "integers", float: "numbers", str: "strings"}


def _described(value: Any) -> str:
    """A short description of a plain value for a message; long ones are cut."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


# -- arrays to documents and bytes ------------------------------------------------------------------------
def values_of(name: str, datatype: str, array: Array) -> list[Any]:
    """The flat values of an output for a JSON document. Raises `InvalidInput` where JSON cannot say them."""
    if datatype == "BYTES":
        return [_text(name, value) for value in array.ravel().tolist()]
    if datatype == "FP16":
        raise InvalidInput(f"output '{name}': FP16 cannot travel in a document: ask for binary data")
    values: list[Any] = array.ravel().tolist()
    # The sum is finite unless an element is not, or it overflows: one cheap look at most answers.
    if datatype in ("FP32", "FP64") and not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
        raise InvalidInput(
            f"output '{name}': the model answered NaN or Infinity, which JSON cannot carry: "
            "ask for binary data or msgpack"
        )
    return values


def bytes_of(datatype: str, array: Array) -> bytes:
    """An output as raw little-endian bytes."""
    if datatype != "BYTES":
        return array.astype(NUMPY_DTYPES[datatype], copy=False).tobytes()
    parts: list[bytes] = []
    for value in array.ravel().tolist():
        parts.append(_LENGTH.pack(len(value)))
        parts.append(value)
    return b"".join(parts)


def checked_output(spec: TensorSpec, value: Any, rows: int | None) -> Array:
    """Bring what a model returned for an output to its declared datatype, and check its shape.

    `rows`: rows of the batch, which the first dimension must equal; None for a model without a batch dimension.
    Raises `InvalidOutput`.
    """
    array: Array = np.asarray(value)
    dtype = NUMPY_DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        array = _texts_of_output(spec, array)
    elif array.dtype != dtype:
        array = _cast_output(spec, array, dtype)
    if not shape_matches(array.shape, spec.shape) or (rows is not None and array.shape[0] != rows):
        expected = spec.shape if rows is None else (rows, *spec.shape[1:])
        raise InvalidOutput(
            f"output '{spec.name}': expected shape {shape_text(expected)}, the model returned {shape_text(array.shape)}"
        )
    return array


def _texts_of_output(spec: TensorSpec, array: Array) -> Array:
    """An object array of `bytes`, of what may hold `str` too."""
    if array.dtype.kind not in "OSU":
        raise InvalidOutput(f"output '{spec.name}': expected BYTES, the model returned {array.dtype}")
    values = array.ravel().tolist()
    if all(type(value) is bytes for value in values) and array.dtype.kind == "O":
        return array
    for position, value in enumerate(values):
        if not isinstance(value, bytes):
            try:
                values[position] = value.encode()
            except (AttributeError, UnicodeEncodeError) as error:
                raise InvalidOutput(
                    f"output '{spec.name}': expected bytes or text, the model returned {_described(value)} "
                    f"(element {position})"
                ) from error
    texts = np.empty(len(values), dtype=np.object_)
    texts[:] = values
    return texts.reshape(array.shape)


def _cast_output(spec: TensorSpec, array: Array, dtype: np.dtype[Any]) -> Array:
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise InvalidOutput(f"output '{spec.name}': expected {spec.datatype}, the model returned {array.dtype}")
    return array.astype(dtype)


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"output '{name}': the model answered bytes that are not UTF-8, which JSON cannot carry: "
            "ask for binary data or msgpack"
        ) from error
