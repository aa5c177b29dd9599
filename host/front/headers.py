"""What the front reads out of a request's headers. Pure functions; hot ones remember their few answers."""

from __future__ import annotations

import itertools
import re
import secrets
from functools import lru_cache
from typing import Final

from host.protocol.documents import media_encoding
from host.protocol.errors import Malformed, UnsupportedMediaType
from host.protocol.messages import NO_JSON_HEADER, Encoding
from host.protocol.trace_context import read_traceparent

INFERENCE_HEADER: Final = "Inference-Header-Content-Length"
REQUEST_ID: Final = "X-Request-Id"
REQUEST_TIMEOUT: Final = "Request-Timeout-Ms"
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

_VISIBLE_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT_MAX_CHARS: Final = 128
_TRACESTATE_MAX_CHARS: Final = 2048
_DIGITS_MAX: Final = 12
_NS_PER_MS: Final = 1_000_000

# Clients of the protocol send no Content-Type at all, octet-stream for pure JSON, or whatever curl makes up.
_TAKEN_AS_JSON: Final = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"})
_CONTENT_CODINGS: Final = {"": None, "identity": None, "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


class RequestIds:
    """Makes request ids, unique over the fronts of a fleet for as long as logs are kept."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def new(self) -> str:
        """An id that was not given before."""
        return f"{self._prefix}-{next(self._numbers):x}"


@lru_cache(maxsize=256)
def request_encoding(content_type: str) -> Encoding:
    """How the request's body is written. Raises `UnsupportedMediaType`."""
    encoding = media_encoding(content_type)
    if encoding is not None:
        return encoding
    if content_type.partition(";")[0].strip().lower() in _TAKEN_AS_JSON:
        return Encoding.JSON
    raise UnsupportedMediaType(
        f"Content-Type: expected application/json, application/msgpack or application/octet-stream, "
        f"received {content_type[:100]!r}"
    )


@lru_cache(maxsize=256)
def answer_encoding(accept: str, default: Encoding) -> Encoding:
    """How the answer is to be written: the best of `Accept` that modelhost can, else as the request was."""
    best, best_quality = default, 0.0
    for media_range in accept.split(","):
        media_type, _, parameters = media_range.partition(";")
        encoding = media_encoding(media_type)
        quality = _quality(parameters)
        if encoding is not None and quality > best_quality:
            best, best_quality = encoding, quality
    return best


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def content_coding(value: str) -> str | None:
    """How a body is compressed: `gzip`, `deflate` or not at all. Raises `UnsupportedMediaType`."""
    try:
        return _CONTENT_CODINGS[value.strip().lower()]
    except KeyError:
        message = f"Content-Encoding: expected gzip, deflate or identity, received {value[:100]!r}"
        raise UnsupportedMediaType(message) from None


@lru_cache(maxsize=256)
def answer_compression(accept_encoding: str) -> str | None:
    """`gzip` or `deflate` if the client takes it (gzip first), else None."""
    accepted = set()
    for coding in accept_encoding.split(","):
        name, _, parameters = coding.partition(";")
        if _quality(parameters) > 0:
            accepted.add(name.strip().lower())
    return next((name for name in ("gzip", "deflate") if name in accepted), None)


def inference_header(value: str | None) -> int:
    """Length of the JSON part of a body with binary data behind it; `NO_JSON_HEADER` if there is none.

    Raises `Malformed`.
    """
    if value is None:
        return NO_JSON_HEADER
    return _decimal(INFERENCE_HEADER, value)


def timeout_ns(value: str | None, limit_ms: int) -> int:
    """Time for this request: what the client allows, at most the model's limit. Raises `Malformed`."""
    if value is None:
        return limit_ms * _NS_PER_MS
    timeout_ms = _decimal(REQUEST_TIMEOUT, value)
    if timeout_ms == 0:
        raise Malformed(f"{REQUEST_TIMEOUT}: expected at least 1 millisecond, received 0")
    return min(timeout_ms, limit_ms) * _NS_PER_MS


def given_request_id(value: str | None) -> str | None:
    """The client's request id if it is one: 1 to 128 printable ASCII characters without space."""
    if value is not None and _VISIBLE_PATTERN.fullmatch(value):
        return value
    return None


def given_traceparent(value: str | None) -> str:
    """The client's `traceparent`; empty if it is none, which is the same as not to have sent it."""
    return value if value is not None and len(value) <= _TRACEPARENT_MAX_CHARS and read_traceparent(value) else ""


def given_tracestate(value: str | None) -> str:
    """The client's `tracestate`, unread; empty if there is none or it is too large to be one."""
    return value if value is not None and len(value) <= _TRACESTATE_MAX_CHARS else ""


def _decimal(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= _DIGITS_MAX):
        raise Malformed(f"{name}: expected a decimal number of at most {_DIGITS_MAX} digits, received {value[:40]!r}")
    return int(value)
