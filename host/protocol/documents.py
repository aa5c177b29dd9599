"""Documents in JSON and msgpack: one pair of functions for both, and the error document."""

from __future__ import annotations

import json
from typing import Any, Final

import msgpack
import msgspec

from host.protocol.errors import Malformed, RequestError
from host.protocol.messages import Encoding

CONTENT_TYPES: Final = {Encoding.JSON: "application/json", Encoding.MSGPACK: "application/msgpack"}
_MEDIA_TYPES: Final = {
    "application/json": Encoding.JSON,
    "application/msgpack": Encoding.MSGPACK,
    "application/x-msgpack": Encoding.MSGPACK,
}

encode_json: Final = msgspec.json.Encoder().encode
"""A value or msgspec struct as JSON."""


def media_encoding(media_type: str) -> Encoding | None:
    """The encoding of a media type (parameters are ignored), or None if it names neither."""
    return _MEDIA_TYPES.get(media_type.partition(";")[0].strip().lower())


def encode_document(value: Any, encoding: Encoding) -> bytes:
    """Write a document of plain values (and msgspec structs, for JSON)."""
    if encoding is Encoding.JSON:
        return encode_json(value)
    return msgpack.packb(msgspec.to_builtins(value, builtin_types=(bytes,)))  # type: ignore[no-any-return]


def decode_document(body: bytes, encoding: Encoding) -> Any:
    """Read a document into plain values. Raises `Malformed`.

    JSON goes through the standard library here, because it reads NaN and Infinity, which are no JSON but are
    sent: the reader of the document can then name the input that holds them.
    """
    if not body:
        raise Malformed(f"the body is empty: expected a {encoding.name} document")
    try:
        if encoding is Encoding.JSON:
            return json.loads(body.decode("utf-8"))
        # Not `msgpack.unpackb`: it allocates a list of the declared size before it has seen the elements.
        return msgspec.msgpack.decode(body)
    except UnicodeDecodeError as error:
        # In msgpack the position counts within one string.
        where = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise Malformed(f"the body is not UTF-8: {where}") from error
    except json.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}") from error
    except RecursionError as error:
        raise Malformed(f"the body is not {encoding.name}: nested too deep") from error
    # `TypeError`: an array or map as the key of a map.
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise Malformed(f"the body is not {encoding.name}: {error}") from error


def error_document(error: RequestError, encoding: Encoding) -> bytes:
    """The answer's body for an error: `{"error": ..., "code": ...}`."""
    return error_body(str(error), error.code, encoding)


def error_body(text: str, code: str, encoding: Encoding) -> bytes:
    """The same, of an error's parts."""
    # A message quotes what came, and an unpaired surrogate (`\ud800` in JSON, a path that is not UTF-8) is no text.
    text = text.encode("utf-8", "backslashreplace").decode()
    return encode_document({"error": text, "code": code}, encoding)
