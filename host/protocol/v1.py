"""TensorFlow Serving style prediction: `{"instances": [...]}` by rows or `{"inputs": {...}}` by columns.

The answer is `{"predictions": ...}`: for `instances` one value per row (an object if the model has several
outputs), for `inputs` one nested list per output (just the list if there is one output).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from host.protocol.documents import decode_document, encode_document
from host.protocol.errors import InvalidInput, Malformed
from host.protocol.messages import Encoding
from host.protocol.tensors import Array, array_from_nested, check_shape, refuse_strays, values_of
from host.protocol.types import Signature, TensorSpec


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A request that the model can take: one array per input, in the signature's order."""

    inputs: tuple[Array, ...]
    by_rows: bool


class PredictCodec:
    """Reads requests for one model version and writes its answers."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._names = [spec.name for spec in signature.inputs]

    def decode(self, body: bytes, encoding: Encoding) -> PredictRequest:
        """Read a request. Raises `Malformed` and `InvalidInput`."""
        document = _read(body, encoding, self._names[0])
        if not isinstance(document, dict):
            raise Malformed("expected an object with 'instances' or 'inputs'")
        if ("instances" in document) == ("inputs" in document):
            received = ", ".join(repr(key) for key in document) or "an empty object"
            raise Malformed(f"expected exactly one of 'instances' and 'inputs', received {received}")
        if "instances" in document:
            columns = self._columns_of_rows(document["instances"])
        else:
            columns = self._columns(document["inputs"])
        inputs = tuple(self._array(spec, column) for spec, column in zip(self._signature.inputs, columns, strict=True))
        return PredictRequest(inputs=inputs, by_rows="instances" in document)

    def _columns_of_rows(self, instances: Any) -> list[Any]:
        if not isinstance(instances, list):
            raise Malformed(f"'instances': expected a list, received {type(instances).__name__}")
        if not instances:
            raise InvalidInput("'instances': expected at least one row, received an empty list")
        if not self._signature.batchable:
            if len(instances) != 1:
                raise InvalidInput(
                    f"'instances': this model has no batch dimension: expected one, received {len(instances)}"
                )
            return self._columns(instances[0])
        if len(self._names) == 1 and not _is_row_object(instances[0]):
            return [instances]
        columns: list[list[Any]] = [[] for _ in self._names]
        for row, instance in enumerate(instances):
            if not isinstance(instance, dict):
                raise InvalidInput(
                    f"'instances' element {row}: expected an object with {_quoted(self._names)}, "
                    f"received {type(instance).__name__}"
                )
            self._check_names(instance, f"'instances' element {row}")
            for column, name in zip(columns, self._names, strict=True):
                column.append(instance[name])
        return list(columns)

    def _columns(self, inputs: Any) -> list[Any]:
        if isinstance(inputs, dict) and not _is_b64(inputs):
            self._check_names(inputs, "'inputs'")
            return [inputs[name] for name in self._names]
        if len(self._names) != 1:
            raise InvalidInput(
                f"'inputs': expected an object with {_quoted(self._names)}, received {type(inputs).__name__}"
            )
        return [inputs]

    def _check_names(self, given: dict[Any, Any], where: str) -> None:
        for name in self._names:
            if name not in given:
                raise InvalidInput(f"{where}: input '{name}' is missing: received {_quoted(given)}")
        for name in given:
            if name not in self._names:
                raise InvalidInput(f"{where}: unknown input {name!r}: expected {_quoted(self._names)}")

    def _array(self, spec: TensorSpec, column: Any) -> Array:
        if spec.datatype == "BYTES":
            column = _with_b64(spec.name, column)
        array = array_from_nested(spec, column)
        # A row's scalar stands for its only element: [1, 2] is taken for shape [-1, 1].
        if array.ndim == len(spec.shape) - 1 and spec.shape[-1] == 1:
            array = array[..., None]
        check_shape(spec, spec.datatype, array.shape)
        return array

    def encode(self, request: PredictRequest, outputs: Sequence[Array], encoding: Encoding) -> bytes:
        """Write an answer of one array per output of the signature. Raises `InvalidInput`."""
        names = [spec.name for spec in self._signature.outputs]
        columns = [_nested(spec, array, encoding) for spec, array in zip(self._signature.outputs, outputs, strict=True)]
        predictions: Any
        if len(names) == 1:
            predictions = columns[0]
        elif request.by_rows and self._signature.batchable:
            predictions = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        else:
            predictions = dict(zip(names, columns, strict=True))
        if request.by_rows and not self._signature.batchable:
            predictions = [predictions]
        return encode_document({"predictions": predictions}, encoding)


def _read(body: bytes, encoding: Encoding, first_input: str) -> Any:
    if encoding is Encoding.JSON and body:
        try:
            return msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # The standard library reads NaN, so that the input which holds it can be named.
            document = decode_document(body, encoding)
            _refuse_strays_in(document, first_input)
            raise Malformed(f"the body is not JSON: {error}") from error
    return decode_document(body, encoding)


def _refuse_strays_in(document: Any, first_input: str) -> None:
    if not isinstance(document, dict):
        return
    for part in (document.get("instances"), document.get("inputs")):
        for row in part if isinstance(part, list) else [part]:
            if isinstance(row, dict):
                for name, value in row.items():
                    refuse_strays(name, value)
        refuse_strays(first_input, part)


def _nested(spec: TensorSpec, array: Array, encoding: Encoding) -> Any:
    if encoding is Encoding.JSON or spec.datatype == "FP16":
        flat = values_of(spec.name, spec.datatype, array)
        if array.ndim == 1:
            return flat
        if spec.datatype == "BYTES":
            texts = array.copy()
            texts.ravel()[:] = flat
            return texts.tolist()
    return array.tolist()


def _is_row_object(instance: Any) -> bool:
    return isinstance(instance, dict) and not _is_b64(instance)


def _is_b64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _with_b64(name: str, value: Any) -> Any:
    """Replace `{"b64": text}` by its bytes, wherever it is nested in lists."""
    if isinstance(value, list):
        return [_with_b64(name, part) for part in value]
    if not _is_b64(value):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise Malformed(f"input '{name}': expected base64 in 'b64': {error}") from error


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"
