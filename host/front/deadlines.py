"""A deadline that stands in the body: found without reading bodies that have none."""

from __future__ import annotations

from typing import Final

import msgspec

from host.protocol.messages import NO_JSON_HEADER, Encoding

READ_MAX_BYTES: Final = 64 * 1024
"""A larger document costs the front too long to read; the worker sees its deadline."""

_MARK: Final = b"timeout"
_NS_PER_US: Final = 1000


class _Parameters(msgspec.Struct):
    timeout: int | None = None


class _Document(msgspec.Struct):
    parameters: _Parameters | None = None


_DECODERS: Final = {
    Encoding.JSON: msgspec.json.Decoder(_Document).decode,
    Encoding.MSGPACK: msgspec.msgpack.Decoder(_Document).decode,
}


def body_timeout_ns(body: bytes, encoding: Encoding, json_bytes: int) -> int | None:
    """`parameters.timeout` of an inference request; None if it has none, or is for the worker to refuse."""
    document_bytes = len(body) if json_bytes == NO_JSON_HEADER else min(json_bytes, len(body))
    if document_bytes > READ_MAX_BYTES or body.find(_MARK, 0, document_bytes) < 0:
        return None
    if json_bytes != NO_JSON_HEADER:
        body, encoding = body[:document_bytes], Encoding.JSON
    try:
        parameters = _DECODERS[encoding](body).parameters
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if parameters is None or parameters.timeout is None or parameters.timeout < 0:
        return None
    return parameters.timeout * _NS_PER_US
