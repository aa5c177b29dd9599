"""Reading request bodies: bounded in bytes and in time, one by one and all together."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp.http_exceptions import ContentEncodingError, TransferEncodingError
from aiohttp.web import BaseRequest, RequestPayloadError

from host.front.headers import check_content_encoding
from host.protocol.errors import BodyTooLarge, DeadlineExceeded, Malformed, Overloaded

_NS_PER_S: Final = 1_000_000_000


class BodyBudget:
    """Bytes of request bodies that one front holds at a time. What is taken must be given back."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Hold so many bytes more. Raises `Overloaded` if that is over the limit."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            raise Overloaded(
                f"the host holds {self.held_bytes} bytes of request bodies: "
                f"{size_bytes} more would exceed its limit of {self.limit_bytes}"
            )
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Release what was taken."""
        self.held_bytes -= size_bytes


async def read_body(request: BaseRequest, max_bytes: int, budget: BodyBudget, deadline_ns: int) -> bytes:
    """Read and decompress a body; its length stays taken from the budget.

    Raises `BodyTooLarge`, `Overloaded`, `DeadlineExceeded`, `UnsupportedMediaType`, `Malformed`.
    """
    headers = request.headers
    compression = headers.get("Content-Encoding")
    if compression is not None:
        check_content_encoding(compression)
    declared = request.content_length or 0
    if declared > max_bytes:
        raise _too_large(max_bytes, f"{declared} (Content-Length)")
    content = request.content
    if content.is_eof() and compression is None:
        # All of it came with the head, as bodies of a few kilobytes do.
        body = content.read_nowait(-1)
        budget.take(len(body))
        return body
    if "Expect" in headers:
        await _continue(request)
    taken = 0
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(max(0.0, (deadline_ns - time.monotonic_ns()) / _NS_PER_S)):
            while part := await content.readany():
                budget.take(len(part))
                taken += len(part)
                if taken > max_bytes:
                    raise _too_large(max_bytes, "more")
                parts.append(part)
    except TimeoutError as error:
        budget.give_back(taken)
        raise DeadlineExceeded(f"deadline passed while receiving the body ({taken} bytes so far)") from error
    except (RequestPayloadError, ContentEncodingError, TransferEncodingError) as error:
        budget.give_back(taken)
        raise Malformed(f"the body cannot be read: {_reason(error)}") from error
    except BaseException:
        budget.give_back(taken)
        raise
    return b"".join(parts)


async def _continue(request: BaseRequest) -> None:
    """Answer `Expect: 100-continue`: the client waits for it before it sends the body."""
    expect = request.headers["Expect"]
    if expect.lower() != "100-continue":
        raise Malformed(f"Expect: expected 100-continue, received {expect[:40]!r}")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # These bytes are no part of the answer that follows.
    request.writer.output_size = 0


def _too_large(max_bytes: int, received: str) -> BodyTooLarge:
    return BodyTooLarge(f"body: expected at most {max_bytes} bytes after decompression, received {received}")


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(getattr(cause, "message", "") or cause).strip() or type(cause).__name__
