"""Heads of the frames: what the front and a worker tell each other beside the body.

Arrays on the wire (`array_like`): fields are only ever appended, each with a default.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from host.protocol.errors import FrameError
from host.protocol.frames import Frame, Kind, encode_frame
from host.protocol.types import Signature

NO_JSON_HEADER: Final = -1
"""`json_bytes` of a body that is one JSON or msgpack document with nothing behind it."""


INSIDE_MAX_BYTES: Final = 4096
"""A body of no more bytes travels inside its head."""

TOGETHER_MAX: Final = 128
"""Heads in one frame: with their bodies they stay below the limit of a frame's head."""


class Operation(enum.IntEnum):
    """What a request frame asks for."""

    INFER = 1
    """Open Inference Protocol inference: `v2`."""
    PREDICT = 2
    """TensorFlow Serving style prediction: `v1`."""
    STATISTICS = 3
    """The worker's counters, answered between two batches: `statistics`."""
    READ_FEATURES = 4
    """Rows of a feature view: `features`. For the feature service alone, as are the following."""
    INVALIDATE_FEATURES = 5
    """Forget what is cached: `features`."""


class Encoding(enum.IntEnum):
    """How a document is written."""

    JSON = 0
    MSGPACK = 1


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]` of a model package."""

    timeout_ms: int = 1000
    max_batch_rows: int = 256
    max_queue: int = 1024
    startup_s: int = 60
    hang_s: int = 10
    retry: bool = True


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """The first frame on a connection, from the worker: who answers here."""

    model_name: str
    model_version: str
    slot: int
    pid: int
    platform: str
    """The Open Inference Protocol's `platform`, as `lightgbm_text`."""
    signature: Signature
    limits: Limits
    runtime_version: str = ""


class RequestHead(msgspec.Struct, frozen=True, array_like=True):
    """A request on its way to a worker. Times are CLOCK_MONOTONIC, which all processes of a host share."""

    sequence: int
    """Unique on its connection, chosen by the sender, echoed in the answer."""
    operation: Operation
    received_ns: int
    deadline_ns: int
    encoding: Encoding = Encoding.JSON
    accept: Encoding = Encoding.JSON
    json_bytes: int = NO_JSON_HEADER
    """`Inference-Header-Content-Length` of the request."""
    alone: bool = False
    """Run in a batch of its own: it was in flight when a worker died."""
    request_id: str = ""
    traceparent: str = ""
    completed: bool = False
    """The body is a msgpack document, which the feature service has completed, whatever the client's encoding was."""
    model: str = ""
    """For the feature service: the model that the request is for, as `churn.v3`."""
    body: bytes = b""
    """The body while the head is not encoded, and in a head that was read if it came inside."""


class ResponseHead(msgspec.Struct, frozen=True, array_like=True):
    """An answer, with the time that each stage took."""

    sequence: int
    status: int
    encoding: Encoding = Encoding.JSON
    json_bytes: int = NO_JSON_HEADER
    rows: int = 0
    """Rows of this request; 0 when it was not understood."""
    batch_rows: int = 0
    """Rows of the batch that it ran in."""
    queue_ns: int = 0
    """From the front's receipt to the start of its batch."""
    inference_ns: int = 0
    """Duration of the batch's `predict`."""
    backlog_rows: int = 0
    """Rows still waiting in the worker, over all its connections."""
    row_service_ns: int = 0
    """What one row more costs in a batch, by the worker's recent batches."""
    batch_service_ns: int = 0
    """What a batch costs before its first row."""
    body: bytes = b""
    """As in `RequestHead`."""


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """What the feature service tells on every connection, after its hello and at every change."""

    unready: dict[str, str]
    """Models whose features cannot be read, as `churn.v3`, and why."""


_REQUEST: Final = int(Kind.REQUEST)
_RESPONSE: Final = int(Kind.RESPONSE)
"""To look up an enum's attribute, and to pack one, takes longer."""
_encode = msgspec.msgpack.Encoder().encode
_decode_hello = msgspec.msgpack.Decoder(Hello).decode
_decode_requests = msgspec.msgpack.Decoder(list[RequestHead]).decode
_decode_responses = msgspec.msgpack.Decoder(list[ResponseHead]).decode
_decode_notice = msgspec.msgpack.Decoder(Notice).decode


class BadHead(FrameError):
    """A frame's head is not the message that its kind promises."""


def hello_frame(hello: Hello) -> bytes:
    """Encode a hello."""
    return encode_frame(Kind.HELLO, _encode(hello))


def request_frames(requests: Sequence[RequestHead]) -> bytes:
    """Encode requests with their bodies, in as few frames as may be."""
    return _frames(_REQUEST, requests)


def response_frames(answers: Sequence[ResponseHead]) -> bytes:
    """Encode answers with their bodies, in as few frames as may be."""
    return _frames(_RESPONSE, answers)


def _frames(kind: int, messages: Sequence[RequestHead] | Sequence[ResponseHead]) -> bytes:
    if len(messages) > TOGETHER_MAX:
        return b"".join([_frame(kind, message) for message in messages])
    for message in messages:
        if len(message.body) > INSIDE_MAX_BYTES:
            return b"".join([_frame(kind, message) for message in messages])
    return encode_frame(kind, _encode(messages))


def _frame(kind: int, message: RequestHead | ResponseHead) -> bytes:
    return encode_frame(kind, _encode([msgspec.structs.replace(message, body=b"")]), message.body)


def notice_frame(notice: Notice) -> bytes:
    """Encode a notice."""
    return encode_frame(Kind.NOTICE, _encode(notice))


def read_notice(head: bytes) -> Notice:
    """Decode a notice's head. Raises `BadHead`."""
    try:
        return _decode_notice(head)
    except msgspec.DecodeError as error:
        raise BadHead(f"notice: {error}") from error


def read_hello(head: bytes) -> Hello:
    """Decode a hello's head. Raises `BadHead`."""
    try:
        return _decode_hello(head)
    except msgspec.DecodeError as error:
        raise BadHead(f"hello: {error}") from error


def read_requests(frame: Frame) -> list[RequestHead]:
    """Decode the heads of a frame of requests: several, or one whose body may be the frame's. Raises `BadHead`."""
    try:
        heads = _decode_requests(frame.head)
    except msgspec.DecodeError as error:
        raise BadHead(f"request: {error}") from error
    if frame.body and len(heads) != 1:
        raise BadHead(f"request: expected one head for the body, received {len(heads)}")
    return heads


def read_responses(frame: Frame) -> list[ResponseHead]:
    """Decode the heads of a frame of answers: several, or one whose body may be the frame's. Raises `BadHead`."""
    try:
        heads = _decode_responses(frame.head)
    except msgspec.DecodeError as error:
        raise BadHead(f"response: {error}") from error
    if frame.body and len(heads) != 1:
        raise BadHead(f"response: expected one head for the body, received {len(heads)}")
    return heads
