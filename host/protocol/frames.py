"""Frames on the Unix socket between the front and a worker. Sans-I/O: bytes in, frames out.

A frame is a fixed prefix of 12 bytes, little-endian, then a head and a body:

    offset  size  field
    0       2     magic, the bytes "MH"
    2       1     version of the framing (1)
    3       1     kind (`Kind`)
    4       4     head size in bytes
    8       4     body size in bytes
    12            head: a msgpack array (`messages`), then the body: bytes that nobody between the ends reads

Of requests and of answers, a frame carries one with its body, or several whose small bodies are inside their heads.

Heads are arrays, so a newer peer may append fields and an older one ignores them; `version` changes only when
the prefix does.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

from host.protocol.errors import FrameError

MAGIC: Final = b"MH"
VERSION: Final = 1
PREFIX: Final = struct.Struct("<2sBBII")
PREFIX_BYTES: Final = PREFIX.size
HEAD_MAX_BYTES: Final = 1 << 20
"""A hello with the signature of a model of thousands of inputs stays far below this."""
BODY_LIMIT_BYTES: Final = (1 << 32) - 1
"""What the prefix can say at most; the limit in force is the decoder's own, and lower."""

ANSWER_MAX_BYTES: Final = 256 * 1024 * 1024
"""Body of a worker's answer. The worker refuses to send a larger one; on the wire it would cost the connection."""

_KINDS: Final = 5


class Kind(enum.IntEnum):
    """What a frame carries."""

    HELLO = 1
    REQUEST = 2
    RESPONSE = 3
    GOODBYE = 4
    """From a worker that is stopping: send no more; what was sent is still answered. The front closes."""
    NOTICE = 5
    """From the feature service: `messages.Notice`."""


class TruncatedFrame(FrameError):
    """The peer closed in the middle of a frame."""


class FrameTooLarge(FrameError):
    """A declared size exceeds the limit. Raised on the prefix, before a byte of it is kept."""


class BadFrame(FrameError):
    """The bytes are not a frame, or of a kind that this side does not take."""


class UnknownFrameVersion(FrameError):
    """The peer speaks another version of the framing."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame: its kind, the undecoded head and the body."""

    kind: int
    head: bytes
    body: bytes


def encode_frame(kind: int, head: bytes, body: bytes = b"") -> bytes:
    """Join one frame. Raises `FrameTooLarge` if the body cannot be said in the prefix."""
    if len(head) > HEAD_MAX_BYTES or len(body) > BODY_LIMIT_BYTES:
        raise FrameTooLarge(
            f"frame of kind {kind}: head of {len(head)} bytes (limit {HEAD_MAX_BYTES}), "
            f"body of {len(body)} bytes (limit {BODY_LIMIT_BYTES})"
        )
    return PREFIX.pack(MAGIC, VERSION, kind, len(head), len(body)) + head + body


class _Unfinished:
    """A frame whose body is still arriving. Its parts are joined once, when all are there."""

    __slots__ = ("head", "kind", "missing_bytes", "parts", "size_bytes")

    def __init__(self, kind: int, head: bytes, first: bytes, body_bytes: int) -> None:
        self.kind = kind
        self.head = head
        self.parts = [first]
        self.size_bytes = PREFIX_BYTES + len(head) + body_bytes
        self.missing_bytes = body_bytes - len(first)

    def add(self, part: bytes) -> None:
        """Take the next part of the body."""
        self.parts.append(part)
        self.missing_bytes -= len(part)

    def frame(self) -> Frame:
        """The whole frame."""
        return Frame(self.kind, self.head, b"".join(self.parts))


class FrameDecoder:
    """Cuts a stream of bytes into frames.

    After an error the stream has no frame boundary any more: the connection must be closed.
    """

    def __init__(self, body_max_bytes: int) -> None:
        self.body_max_bytes = body_max_bytes
        self._start = b""
        """The beginning of a frame whose head is not whole."""
        self._unfinished: _Unfinished | None = None

    def feed(self, data: bytes) -> list[Frame]:
        """Take what arrived; return the frames that are now whole, in order."""
        frames: list[Frame] = []
        offset = 0
        unfinished = self._unfinished
        if unfinished is not None:
            if len(data) < unfinished.missing_bytes:
                unfinished.add(data)
                return frames
            offset = unfinished.missing_bytes
            unfinished.add(data[:offset])
            frames.append(unfinished.frame())
            self._unfinished = None
        elif self._start:
            data = self._start + data
            self._start = b""
        available = len(data)
        while available - offset >= PREFIX_BYTES:
            magic, version, kind, head_bytes, body_bytes = PREFIX.unpack_from(data, offset)
            if magic != MAGIC or version != VERSION or not 1 <= kind <= _KINDS or head_bytes > HEAD_MAX_BYTES:
                raise _bad_prefix(magic, version, kind, head_bytes)
            if body_bytes > self.body_max_bytes:
                raise FrameTooLarge(f"frame body: limit {self.body_max_bytes} bytes, declared {body_bytes}")
            body_start = offset + PREFIX_BYTES + head_bytes
            end = body_start + body_bytes
            if body_start > available:
                break
            head = data[offset + PREFIX_BYTES : body_start]
            if end > available:
                self._unfinished = _Unfinished(kind, head, data[body_start:], body_bytes)
                return frames
            frames.append(Frame(kind, head, data[body_start:end]))
            offset = end
        if offset < available:
            self._start = data[offset:]
        return frames

    def eof(self) -> None:
        """Tell that the peer closed. Raises `TruncatedFrame` unless it was between two frames."""
        expected = PREFIX_BYTES
        if self._unfinished is not None:
            expected = self._unfinished.size_bytes
        elif len(self._start) >= PREFIX_BYTES:
            expected += PREFIX.unpack_from(self._start)[3]
        if self.buffered_bytes:
            raise TruncatedFrame(
                f"connection closed in the middle of a frame: expected at least {expected} bytes, "
                f"received {self.buffered_bytes}"
            )

    @property
    def buffered_bytes(self) -> int:
        """Bytes of an unfinished frame."""
        if self._unfinished is not None:
            return self._unfinished.size_bytes - self._unfinished.missing_bytes
        return len(self._start)


def _bad_prefix(magic: bytes, version: int, kind: int, head_bytes: int) -> FrameError:
    """What is wrong with a prefix."""
    if magic != MAGIC:
        return BadFrame(f"not a frame: expected it to begin with {MAGIC!r}, received {magic!r}")
    if version != VERSION:
        return UnknownFrameVersion(f"frame version: expected {VERSION}, received {version}")
    if not 1 <= kind <= _KINDS:
        return BadFrame(f"frame kind: expected 1 to {_KINDS}, received {kind}")
    return FrameTooLarge(f"frame head: limit {HEAD_MAX_BYTES} bytes, declared {head_bytes}")
