"""Reading request bodies: bounded in bytes and in time, one by one and all together."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Hashable
from typing import Final

from aiohttp.http_exceptions import TransferEncodingError
from aiohttp.web import BaseRequest, RequestPayloadError

from host.front.headers import content_coding
from host.protocol.errors import BodyTooLarge, DeadlineExceeded, Malformed, Overloaded

DECOMPRESS_INLINE_MAX_BYTES: Final = 4 * 1024
"""Larger bodies are decompressed in a thread: deflate expands up to 1032 times, and the loop has other clients."""

MODEL_SHARE: Final = 4
"""One model may hold one part in so many of the bytes of a front's bodies."""

_NS_PER_S: Final = 1_000_000_000
_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
"""zlib's `wbits`: 31 reads a gzip header, 15 zlib's own, which HTTP calls deflate."""
_RAW_DEFLATE_BITS: Final = -15
"""Deflate without the header: wrong, and sent by some clients all the same."""
_ZLIB_METHOD: Final = 8
"""The low half of the first byte of zlib's header."""


class BodyBudget:
    """Bytes of request bodies that one front holds at a time. What is taken must be given back.

    One model (all its versions) may hold a quarter of it, so that its flood leaves room for the others.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.share_bytes = limit_bytes // MODEL_SHARE
        self.held_bytes = 0
        self._held_by: dict[Hashable, int] = {}

    def take(self, size_bytes: int, owner: Hashable) -> None:
        """Hold so many bytes more for a model. Raises `Overloaded` if that is over the limit."""
        mine = self._held_by.get(owner, 0) + size_bytes
        if mine > self.share_bytes or self.held_bytes + size_bytes > self.limit_bytes:
            whose, held, limit = "the host holds", self.held_bytes, self.limit_bytes
            if mine > self.share_bytes:
                whose, held, limit = "the host holds for this model", mine - size_bytes, self.share_bytes
            raise Overloaded(
                f"{whose} {held} bytes of request bodies: {size_bytes} more would exceed its limit of {limit}"
            )
        self._held_by[owner] = mine
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int, owner: Hashable) -> None:
        """Release what was taken."""
        self.held_bytes -= size_bytes
        left = self._held_by.pop(owner, 0) - size_bytes
        if left:
            self._held_by[owner] = left


async def read_body(
    request: BaseRequest, max_bytes: int, budget: BodyBudget, owner: Hashable, deadline_ns: int
) -> bytes:
    """Read and decompress a body; its length stays taken from the budget.

    Raises `BodyTooLarge`, `Overloaded`, `DeadlineExceeded`, `UnsupportedMediaType`, `Malformed`.
    """
    headers = request.headers
    compression = headers.get("Content-Encoding")
    coding = None if compression is None else content_coding(compression)
    declared = request.content_length or 0
    if declared > max_bytes:
        raise _too_large(max_bytes, f"{declared} (Content-Length)")
    received = await _received(request, max_bytes, budget, owner, deadline_ns)
    if coding is None:
        return received
    try:
        if len(received) <= DECOMPRESS_INLINE_MAX_BYTES:
            body = decompressed(received, coding, max_bytes)
        else:
            body = await asyncio.to_thread(decompressed, received, coding, max_bytes)
        budget.take(len(body), owner)
        return body
    finally:
        budget.give_back(len(received), owner)


async def _received(
    request: BaseRequest, max_bytes: int, budget: BodyBudget, owner: Hashable, deadline_ns: int
) -> bytes:
    expect = request.headers.get("Expect")
    if expect is not None and expect.lower() != "100-continue":
        raise Malformed(f"Expect: expected 100-continue, received {expect[:40]!r}")
    content = request.content
    if content.is_eof() and content.exception() is None:
        # All of it came with the head, as bodies of a few kilobytes do.
        body = content.read_nowait(-1)
        if len(body) > max_bytes:
            raise _too_large(max_bytes, f"{len(body)}")
        budget.take(len(body), owner)
        return body
    if expect is not None:
        await _continue(request)
    taken = 0
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(max(0.0, (deadline_ns - time.monotonic_ns()) / _NS_PER_S)):
            while part := await content.readany():
                if taken + len(part) > max_bytes:
                    raise _too_large(max_bytes, "more")
                budget.take(len(part), owner)
                taken += len(part)
                parts.append(part)
    except TimeoutError as error:
        budget.give_back(taken, owner)
        raise DeadlineExceeded(f"deadline passed while receiving the body ({taken} bytes so far)") from error
    except (RequestPayloadError, TransferEncodingError) as error:
        budget.give_back(taken, owner)
        raise Malformed(f"the body cannot be read: {_reason(error)}") from error
    except BaseException:
        budget.give_back(taken, owner)
        raise
    return b"".join(parts)


def decompressed(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Decompress a whole body, at most `max_bytes` of it. Raises `BodyTooLarge`, `Malformed`."""
    if not body:
        return body
    bits = _WINDOW_BITS[coding]
    if coding == "deflate" and body[0] & 0x0F != _ZLIB_METHOD:
        bits = _RAW_DEFLATE_BITS
    stream = zlib.decompressobj(wbits=bits)
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise Malformed(f"the body is not {coding}: {error}") from error
    if len(plain) > max_bytes:
        raise _too_large(max_bytes, "more")
    if not stream.eof:
        raise Malformed(f"the body is not {coding}: it ends too early")
    if stream.unused_data:
        raise Malformed(f"the body is not {coding}: {len(stream.unused_data)} bytes follow its end")
    return plain


async def _continue(request: BaseRequest) -> None:
    """Answer `Expect: 100-continue`: the client waits for it before it sends the body."""
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # These bytes are no part of the answer that follows.
    request.writer.output_size = 0


def _too_large(max_bytes: int, received: str) -> BodyTooLarge:
    return BodyTooLarge(f"body: expected at most {max_bytes} bytes after decompression, received {received}")


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(getattr(cause, "message", "") or cause).strip() or type(cause).__name__
