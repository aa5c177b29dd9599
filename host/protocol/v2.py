"""Open Inference Protocol v2 inference: requests and answers in JSON, msgpack, and with binary tensors."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, NoReturn, TypeVar, cast

import msgspec

from host.protocol.documents import decode_document, encode_document, encode_json
from host.protocol.errors import InvalidInput, Malformed
from host.protocol.messages import NO_JSON_HEADER, Encoding
from host.protocol.tensors import (
    Array,
    Input,
    array_from_bytes,
    array_from_document,
    bytes_of,
    check_shape,
    flat_reader,
    refuse_strays,
    scalar_type,
    values_of,
)
from host.protocol.types import ITEM_BYTES, Signature, TensorSpec

Parameters = dict[str, Any]
Data = TypeVar("Data")

DECLARATIONS_MAX: Final = 1024
"""Names, datatypes and shapes that are remembered as right; models see a few."""

FORMS_MAX: Final = 4
"""Forms of documents that are remembered: a client writes all of its requests of a shape in one."""

LEARN_EVERY: Final = 32
"""Of the documents in no known form, one in so many is learned from: where each has its own, that costs little."""

_FORM_MAX_BYTES: Final = 1024
"""A longer form is not remembered."""

_OPENINGS_MAX: Final = 1024
"""Shapes of answers whose document's beginning is remembered."""

FEATURE_STATUS: Final = "feature_status"
"""The parameter that asks where each fetched feature came from, and of the answer that says so."""

_JSON: Final = Encoding.JSON
"""To look up an enum's attribute takes longer than to compare."""
_NO_DATA: Final = msgspec.Raw()
_ONE_IN_DOCUMENT: Final = ((0, False),)
_DATA: Final = re.compile(rb'"data"\s*:\s*(\[[^\]]*\])')
"""Flat values of the key `data`. Inside a string the quotes would be escaped."""

_CLOSING: Final = b"}]}"
"""What follows the last tensor's data, its last field, in an answer."""


class _Tensor(msgspec.Struct, Generic[Data]):
    name: str
    shape: list[int]
    datatype: str
    data: Data
    parameters: Parameters | None = None


class _RawTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = _NO_DATA
    parameters: Parameters | None = None


class _RequestedOutput(msgspec.Struct):
    name: str
    parameters: Parameters | None = None


class _Document(msgspec.Struct, Generic[Data]):
    inputs: list[_Tensor[Data]]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_RequestedOutput] | None = None


class _RawDocument(msgspec.Struct):
    inputs: list[_RawTensor]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[_RequestedOutput] | None = None


class _OutputTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Parameters | None = None
    data: Any = None


class _Answer(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputTensor]
    id: str | None = None
    parameters: Parameters | None = None


class InferRequest(msgspec.Struct, frozen=True, eq=False):
    """A request that the model can take: what it gives for each input, in the signature's order."""

    inputs: tuple[Input, ...]
    outputs: tuple[tuple[int, bool], ...]
    """What is asked for: index into the signature's outputs, and whether as binary data."""
    id: str | None = None
    timeout_us: int | None = None
    feature_status: Parameters | None = None
    """What the feature service says of the inputs that it fetched, for the answer; None: nobody asked."""


class _Declared(msgspec.Struct, frozen=True):
    """An input as requests declare it, found right."""

    index: int
    spec: TensorSpec
    read: Callable[[Sequence[Any]], Input]
    """Flat values to an input of the declared shape."""


class _Form(msgspec.Struct, frozen=True):
    """A document of one input and nothing else, but for its values."""

    opening: bytes
    closing: bytes
    read: Callable[[Sequence[Any]], Input]


class _FlatDecoders(NamedTuple):
    """Of documents whose data are flat and of one scalar type, and of such data alone."""

    document: Callable[[bytes], _Document[list[Any]]]
    values: Callable[[bytes], list[Any]]


class BatchOutputs:
    """What a model answered for a batch: one array per output; the first dimension is rows if it is `batchable`."""

    __slots__ = ("_arrays", "_batchable", "_first", "_values", "_width", "first_inner")

    def __init__(self, arrays: Sequence[Array], first: TensorSpec, *, batchable: bool) -> None:
        self._arrays = arrays
        self._first = first
        self._batchable = batchable
        self._values: list[Any] | None = None if batchable else []
        self._width = 0
        self.first_inner: tuple[int, ...] = arrays[0].shape[1:]

    def rows(self, start: int, end: int) -> Sequence[Array]:
        """Some rows of every output; of a model without a batch dimension, all that there is."""
        return [array[start:end] for array in self._arrays] if self._batchable else self._arrays

    def first_values(self, start: int, end: int) -> list[Any] | None:
        """Some rows of the first output as flat values for JSON; None if it cannot say those of all rows."""
        values = self._values
        if values is None:
            try:
                values = values_of(self._first.name, self._first.datatype, self._arrays[0])
            except InvalidInput:
                values = []
            self._values = values
            self._width = len(values) // len(self._arrays[0]) if values else 0
        return values[start * self._width : end * self._width] if values else None


class InferCodec:
    """Reads requests for one model version and writes its answers."""

    def __init__(self, model_name: str, model_version: str, signature: Signature) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._signature = signature
        self._inputs = {spec.name: index for index, spec in enumerate(signature.inputs)}
        self._outputs = {spec.name: index for index, spec in enumerate(signature.outputs)}
        self._all_outputs = tuple((index, False) for index in range(len(signature.outputs)))
        self._all_binary = tuple((index, True) for index in range(len(signature.outputs)))
        self._declared: dict[tuple[object, ...], _Declared] = {}
        self.forms: deque[_Form] = deque(maxlen=FORMS_MAX)
        """What was learned last."""
        self._formless = 0
        """Documents that were in none of them."""
        self._openings: dict[tuple[int, tuple[int, ...]], bytes] = {}
        # Most models take inputs of one scalar type: their documents are read in one typed pass.
        # FP16 cannot travel in a document, so a model that takes it never has one of these.
        scalars = {None if spec.datatype == "FP16" else scalar_type(spec.datatype) for spec in signature.inputs}
        scalar = scalars.pop() if len(scalars) == 1 else None
        self._flat_json = None if scalar is None else _FLAT_DECODERS[scalar]

    # -- requests -----------------------------------------------------------------------------------
    def decode(self, body: bytes, encoding: Encoding, json_bytes: int = NO_JSON_HEADER) -> InferRequest:
        """Read a request. `json_bytes`: length of the JSON part where binary data follows it.

        Raises `Malformed` and `InvalidInput`.
        """
        if json_bytes == NO_JSON_HEADER:
            if encoding is _JSON and self._flat_json is not None:
                try:
                    return self._from_flat(body, self._flat_json)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    pass  # nested, binary or wrong: the general reader takes it or says what is wrong
            return self._from_document(body, encoding, memoryview(b""))
        if json_bytes == 0:
            return self._from_raw(body)
        if not 0 < json_bytes <= len(body):
            raise Malformed(
                f"Inference-Header-Content-Length: expected 0 to {len(body)} (the body's size), received {json_bytes}"
            )
        return self._from_document(body[:json_bytes], Encoding.JSON, memoryview(body)[json_bytes:])

    def _from_flat(self, body: bytes, flat: _FlatDecoders) -> InferRequest:
        for form in self.forms:
            if body.startswith(form.opening) and body.endswith(form.closing):
                values = flat.values(body[len(form.opening) : len(body) - len(form.closing)])
                return InferRequest((form.read(values),), self._all_outputs)
        document = flat.document(body)
        inputs: list[Input | None] = [None] * len(self._inputs)
        for tensor in document.inputs:
            declared = self._declared.get((tensor.name, tensor.datatype, *tensor.shape))
            if declared is None or inputs[declared.index] is not None:
                declared = self._declare(tensor, inputs)
            if tensor.parameters and "binary_data_size" in tensor.parameters:
                raise Malformed(f"input '{declared.spec.name}': has both data and binary_data_size")
            inputs[declared.index] = declared.read(tensor.data)
        request = self._finish(document, inputs)
        self._formless += 1
        if self._formless % LEARN_EVERY == 0:
            self._learn_form(body, flat, document)
        return request

    def _learn_form(self, body: bytes, flat: _FlatDecoders, document: _Document[list[Any]]) -> None:
        """Remember what stands around the values of a document that was found right.

        With any other list of such values in their place it is right as well, up to their number. That it is the values
        which were found shows when they are left out.
        """
        if len(document.inputs) != 1 or document.id is not None or document.outputs is not None or document.parameters:
            return
        tensor, found = document.inputs[0], _DATA.search(body)
        declared = self._declared.get((tensor.name, tensor.datatype, *tensor.shape))
        if found is None or declared is None or not tensor.data:
            return
        opening, closing = body[: found.start(1)], body[found.end(1) :]
        if len(opening) + len(closing) > _FORM_MAX_BYTES:
            return
        try:
            emptied = flat.document(opening + b"[]" + closing)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if not emptied.inputs[0].data:
            self.forms.append(_Form(opening, closing, declared.read))

    def _from_document(self, body: bytes, encoding: Encoding, binary: memoryview) -> InferRequest:
        try:
            document: _RawDocument = _RAW_DECODERS[encoding].decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _explain_document(body, encoding, error)
        inputs: list[Input | None] = [None] * len(self._inputs)
        offset = 0
        for tensor in document.inputs:
            index, spec = self._slot_of(tensor.name, inputs)
            check_shape(spec, tensor.datatype, tensor.shape)
            size = (tensor.parameters or {}).get("binary_data_size")
            has_data = tensor.data != _NO_DATA
            if size is None:
                if not has_data:
                    raise Malformed(f"input '{spec.name}': expected data or binary_data_size, received neither")
                inputs[index] = array_from_document(spec, tensor.shape, tensor.data, encoding)
                continue
            if has_data:
                raise Malformed(f"input '{spec.name}': has both data and binary_data_size")
            size = _unsigned(f"input '{spec.name}': binary_data_size", size)
            if size > len(binary) - offset:
                raise Malformed(
                    f"input '{spec.name}': binary_data_size is {size} bytes, "
                    f"received {len(binary) - offset} bytes of binary data for it"
                )
            inputs[index] = array_from_bytes(spec, tensor.shape, binary[offset : offset + size])
            offset += size
        if offset != len(binary):
            raise Malformed(f"binary data: the inputs declare {offset} bytes, received {len(binary)}")
        return self._finish(document, inputs)

    def _from_raw(self, body: bytes) -> InferRequest:
        """The body is the one input's bytes (`Inference-Header-Content-Length: 0`)."""
        if len(self._signature.inputs) != 1:
            names = ", ".join(f"'{name}'" for name in self._inputs)
            raise InvalidInput(f"a raw request needs a model of one input; this model takes {names}")
        spec = self._signature.inputs[0]
        array = array_from_bytes(spec, _raw_shape(spec, body), memoryview(body))
        return InferRequest(inputs=(array,), outputs=self._all_binary)

    def _declare(self, tensor: _Tensor[Any], inputs: Sequence[Input | None]) -> _Declared:
        """Find a tensor's place and check what it declares. Declarations repeat: right ones are remembered."""
        index, spec = self._slot_of(tensor.name, inputs)
        check_shape(spec, tensor.datatype, tensor.shape)
        declared = _Declared(index, spec, flat_reader(spec, tensor.shape))
        if len(self._declared) < DECLARATIONS_MAX:
            self._declared[(tensor.name, tensor.datatype, *tensor.shape)] = declared
        return declared

    def _slot_of(self, name: str, inputs: Sequence[Input | None]) -> tuple[int, TensorSpec]:
        index = self._inputs.get(name)
        if index is None:
            expected = ", ".join(f"'{known}'" for known in self._inputs)
            raise InvalidInput(f"unknown input {name!r}: expected {expected}")
        if inputs[index] is not None:
            raise Malformed(f"input '{name}' is given twice")
        return index, self._signature.inputs[index]

    def _finish(self, document: _RawDocument | _Document[Any], inputs: list[Input | None]) -> InferRequest:
        # Nothing is given twice, so as many as there are inputs are all of them.
        if len(document.inputs) != len(inputs):
            missing = next(spec for spec, given in zip(self._signature.inputs, inputs, strict=True) if given is None)
            received = ", ".join(f"'{tensor.name}'" for tensor in document.inputs) or "none"
            raise InvalidInput(f"input '{missing.name}' is missing: received {received}")
        given = tuple(cast("list[Array]", inputs))
        parameters = document.parameters
        if not parameters and document.outputs is None:
            return InferRequest(given, self._all_outputs, document.id)
        parameters = parameters or {}
        timeout = parameters.get("timeout")
        return InferRequest(
            inputs=given,
            outputs=self._requested(document.outputs, _flag(parameters, "binary_data_output", False)),
            id=document.id,
            timeout_us=None if timeout is None else _unsigned("parameter timeout (microseconds)", timeout),
            feature_status=_feature_status(parameters),
        )

    def _requested(self, outputs: list[_RequestedOutput] | None, binary_default: bool) -> tuple[tuple[int, bool], ...]:
        if outputs is None:
            return self._all_binary if binary_default else self._all_outputs
        requested: dict[int, bool] = {}
        for output in outputs:
            index = self._outputs.get(output.name)
            if index is None:
                expected = ", ".join(f"'{known}'" for known in self._outputs)
                raise InvalidInput(f"unknown output {output.name!r}: expected {expected}")
            if index in requested:
                raise Malformed(f"output '{output.name}' is asked for twice")
            requested[index] = _flag(output.parameters or {}, "binary_data", binary_default)
        return tuple(requested.items())

    # -- answers ------------------------------------------------------------------------------------
    def encode(self, request: InferRequest, outputs: Sequence[Array], encoding: Encoding) -> tuple[bytes, int]:
        """Write an answer of one array per output of the signature.

        Returns the body, and the length of its JSON part if binary data follows (else `NO_JSON_HEADER`).
        In msgpack, binary data stands in `data` itself, as a `bin`. Raises `InvalidInput`.
        """
        tensors: list[_OutputTensor] = []
        binary: list[bytes] = []
        for index, as_binary in request.outputs:
            spec, array = self._signature.outputs[index], outputs[index]
            tensor = _OutputTensor(spec.name, spec.datatype, array.shape)
            if as_binary and encoding is _JSON:
                raw = bytes_of(spec.datatype, array)
                tensor.parameters = {"binary_data_size": len(raw)}
                binary.append(raw)
            else:
                tensor.data = _document_data(spec, array, as_binary, encoding)
            tensors.append(tensor)
        status = None if request.feature_status is None else {FEATURE_STATUS: request.feature_status}
        answer = _Answer(self._model_name, self._model_version, tensors, request.id, status)
        document = encode_document(answer, encoding)
        tail = b"".join(binary)
        return (document + tail, len(document)) if tail else (document, NO_JSON_HEADER)

    def encode_rows(
        self, request: InferRequest, outputs: BatchOutputs, start: int, end: int, encoding: Encoding
    ) -> tuple[bytes, int]:
        """`encode` for the rows of one request in a batch.

        Most answers are the first output in JSON and no more: between two of a shape only the values differ, and
        the batch's values become Python's once for all of its requests.
        """
        is_plain = request.id is None and request.feature_status is None
        if encoding is _JSON and is_plain and request.outputs == _ONE_IN_DOCUMENT:
            values = outputs.first_values(start, end)
            if values is not None:
                shape = (end - start, outputs.first_inner)
                opening = self._openings.get(shape) or self._opening(shape)
                return opening + encode_json(values) + _CLOSING, NO_JSON_HEADER
        return self.encode(request, outputs.rows(start, end), encoding)

    def _opening(self, shape: tuple[int, tuple[int, ...]]) -> bytes:
        """What a document of the first output in that shape begins with, up to its values."""
        spec = self._signature.outputs[0]
        rows, inner = shape
        tensor = _OutputTensor(spec.name, spec.datatype, (rows, *inner), data=[])
        answer = _Answer(self._model_name, self._model_version, [tensor])
        opening = encode_json(answer).removesuffix(b"[]" + _CLOSING)
        if len(self._openings) < _OPENINGS_MAX:
            self._openings[shape] = opening
        return opening


def _document_data(spec: TensorSpec, array: Array, as_binary: bool, encoding: Encoding) -> Any:
    if encoding is _JSON:
        return values_of(spec.name, spec.datatype, array)
    if as_binary or spec.datatype == "FP16":
        return bytes_of(spec.datatype, array)
    return array.ravel().tolist()


def _raw_shape(spec: TensorSpec, body: bytes) -> tuple[int, ...]:
    """The shape of a raw request: at most one dimension may be variable, and the size decides it."""
    item_bytes = ITEM_BYTES[spec.datatype]
    if item_bytes is None:
        return (1,) * len(spec.shape)
    variable = [axis for axis, dim in enumerate(spec.shape) if dim == -1]
    if len(variable) > 1:
        raise InvalidInput(f"input '{spec.name}': a raw request needs at most one variable dimension")
    fixed_bytes = item_bytes
    for dim in spec.shape:
        fixed_bytes *= dim if dim != -1 else 1
    if not variable or fixed_bytes == 0:
        return spec.shape
    rows, rest = divmod(len(body), fixed_bytes)
    if rest:
        raise Malformed(f"input '{spec.name}': expected a multiple of {fixed_bytes} bytes, received {len(body)} bytes")
    return tuple(rows if dim == -1 else dim for dim in spec.shape)


def _unsigned(what: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Malformed(f"{what}: expected a whole number >= 0, received {value!r}")
    return value


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Malformed(f"parameter {name}: expected true or false, received {value!r}")
    return value


def _feature_status(parameters: Parameters) -> Parameters | None:
    """`true` asks where features came from; the feature service puts its answer there, and nothing was fetched else."""
    status = parameters.get(FEATURE_STATUS)
    return status if isinstance(status, dict) else {} if _flag(parameters, FEATURE_STATUS, False) else None


def _explain_document(body: bytes, encoding: Encoding, error: Exception) -> NoReturn:
    """Raise the best error for a document that the typed reader refused."""
    document = decode_document(body, encoding)
    if encoding is _JSON and isinstance(document, dict):
        inputs = document.get("inputs")
        for position, tensor in enumerate(inputs if isinstance(inputs, list) else []):
            if isinstance(tensor, dict):
                refuse_strays(str(tensor.get("name", position)), tensor.get("data"))
    raise Malformed(f"not an inference request: {_located(error, document)}") from error


def _located(error: Exception, document: Any) -> str:
    """msgspec's message with the input's name beside its position, as in `$.inputs[0].shape`."""
    text = str(error)
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for position, tensor in enumerate(inputs if isinstance(inputs, list) else []):
        if f"$.inputs[{position}]" in text and isinstance(tensor, dict) and "name" in tensor:
            return f"{text} (input {tensor['name']!r})"
    return text


# Made at import, all of them: msgspec looks annotations up by the module's name, which a worker gives away later.
_FLAT_DECODERS: Final[dict[type, _FlatDecoders]] = {
    bool: _FlatDecoders(msgspec.json.Decoder(_Document[list[bool]]).decode, msgspec.json.Decoder(list[bool]).decode),
    int: _FlatDecoders(msgspec.json.Decoder(_Document[list[int]]).decode, msgspec.json.Decoder(list[int]).decode),
    float: _FlatDecoders(msgspec.json.Decoder(_Document[list[float]]).decode, msgspec.json.Decoder(list[float]).decode),
    str: _FlatDecoders(msgspec.json.Decoder(_Document[list[str]]).decode, msgspec.json.Decoder(list[str]).decode),
}
_RAW_DECODERS: Final[dict[Encoding, Any]] = {
    Encoding.JSON: msgspec.json.Decoder(_RawDocument),
    Encoding.MSGPACK: msgspec.msgpack.Decoder(_RawDocument),
}
