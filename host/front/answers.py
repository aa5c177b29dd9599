"""What both lanes send back: compression, reason phrases, and whole answers as bytes. Pure, but for the date."""

from __future__ import annotations

import email.utils
import http
import time
import zlib
from functools import lru_cache
from typing import Final

from host.front.documents import SERVER_NAME
from host.front.headers import INFERENCE_HEADER, REQUEST_ID, answer_compression
from host.protocol.documents import CONTENT_TYPES, error_body
from host.protocol.errors import Overloaded, RequestError, http_status
from host.protocol.messages import NO_JSON_HEADER, Encoding, ResponseHead

OCTETS: Final = "application/octet-stream"

COMPRESS_MIN_BYTES: Final = 1024
"""Smaller answers are not worth compressing: they fit into one packet anyway."""

COMPRESS_INLINE_MAX_BYTES: Final = 64 * 1024
"""Larger answers are compressed in a thread: zlib does some 50 MB/s, and the loop has other clients."""

_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
"""zlib's `wbits`: 31 writes a gzip header, 15 zlib's own, which HTTP calls deflate."""

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in http.HTTPStatus}


def compression(accept_encoding: str | None, size_bytes: int) -> str | None:
    """How an answer of that size is to be compressed for a client; None: not at all."""
    if accept_encoding is None or size_bytes < COMPRESS_MIN_BYTES:
        return None
    return answer_compression(accept_encoding)


def compress(body: bytes, coding: str) -> bytes:
    """Compress an answer's body."""
    return zlib.compress(body, level=1, wbits=_WINDOW_BITS[coding])


@lru_cache(maxsize=256)
def _refusal_body(text: str, code: str, encoding: Encoding) -> bytes:
    """An error's document. Under overload the same few are said again and again."""
    return error_body(text, code, encoding)


class Responses:
    """Writes whole answers for the fast lane. The date is looked up once a second."""

    def __init__(self) -> None:
        self._date_s = 0
        self._openings: dict[tuple[int, str], str] = {}
        """What answers of a status and a content type begin with, in this second."""

    def answer(self, request_id: str, head: ResponseHead, body: bytes, coding: str | None, last: bool) -> bytes:
        """A worker's answer, its body compressed already if `coding` says so. `last`: the connection is closed next."""
        extra = "Connection: close\r\n" if last else ""
        if head.json_bytes == NO_JSON_HEADER:
            content_type = CONTENT_TYPES[head.encoding]
        else:
            content_type = OCTETS
            extra += f"{INFERENCE_HEADER}: {head.json_bytes}\r\n"
        if coding is not None:
            extra += f"Content-Encoding: {coding}\r\nVary: Accept-Encoding\r\n"
        return self._write(head.status, content_type, request_id, extra, body)

    def refusal(self, request_id: str, error: RequestError, encoding: Encoding, last: bool) -> bytes:
        """An error."""
        extra = "Connection: close\r\n" if last else ""
        if isinstance(error, Overloaded):
            extra += f"Retry-After: {error.retry_after_s}\r\n"
        body = _refusal_body(str(error), error.code, encoding)
        return self._write(http_status(error), CONTENT_TYPES[encoding], request_id, extra, body)

    def _write(self, status: int, content_type: str, request_id: str, extra: str, body: bytes) -> bytes:
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._openings.clear()
        opening = self._openings.get((status, content_type))
        if opening is None:
            date = email.utils.formatdate(now_s, usegmt=True)
            opening = (
                f"{_STATUS_LINES[status]}Content-Type: {content_type}\r\nServer: {SERVER_NAME}\r\nDate: {date}\r\n"
                f"{REQUEST_ID}: "
            )
            self._openings[status, content_type] = opening
        return f"{opening}{request_id}\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body
