"""Frames: whole however they are cut, and a named error for everything that is not one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.protocol.frames import (
    HEAD_MAX_BYTES,
    PREFIX,
    PREFIX_BYTES,
    VERSION,
    BadFrame,
    Frame,
    FrameDecoder,
    FrameTooLarge,
    Kind,
    TruncatedFrame,
    UnknownFrameVersion,
    encode_frame,
)

FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.binary(max_size=40), st.binary(max_size=200)), max_size=6)


def encoded(frames: list[tuple[Kind, bytes, bytes]]) -> bytes:
    return b"".join(encode_frame(kind, head, body) for kind, head, body in frames)


@given(FRAMES, st.lists(st.integers(0, 1500), max_size=8))
def test_frames_come_out_however_the_stream_is_cut(frames: list[tuple[Kind, bytes, bytes]], cuts: list[int]) -> None:
    stream = encoded(frames)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    decoder = FrameDecoder(body_max_bytes=200)
    received = [frame for start, end in itertools.pairwise(edges) for frame in decoder.feed(stream[start:end])]
    assert received == [Frame(*frame) for frame in frames]
    decoder.eof()


@given(FRAMES)
def test_frames_come_out_byte_by_byte(frames: list[tuple[Kind, bytes, bytes]]) -> None:
    decoder = FrameDecoder(body_max_bytes=200)
    stream = encoded(frames)
    received = [frame for offset in range(len(stream)) for frame in decoder.feed(stream[offset : offset + 1])]
    assert received == [Frame(*frame) for frame in frames]


def test_eof_is_fine_between_two_frames_and_named_at_every_other_byte() -> None:
    first, second = encode_frame(Kind.REQUEST, b"head", b"body"), encode_frame(Kind.RESPONSE, b"", b"x" * 9)
    stream = first + second
    for end in range(len(stream) + 1):
        decoder = FrameDecoder(body_max_bytes=100)
        decoder.feed(stream[:end])
        if end in (0, len(first), len(stream)):
            decoder.eof()
            continue
        left = end if end < len(first) else end - len(first)
        with pytest.raises(TruncatedFrame, match=rf"expected at least \d+ bytes, received {left}$"):
            decoder.eof()


@pytest.mark.parametrize(("size", "fits"), [(0, True), (1, True), (99, True), (100, True), (101, False)])
def test_body_up_to_its_limit(size: int, fits: bool) -> None:
    stream = encode_frame(Kind.REQUEST, b"", b"x" * size)
    decoder = FrameDecoder(body_max_bytes=100)
    if fits:
        assert decoder.feed(stream) == [Frame(Kind.REQUEST, b"", b"x" * size)]
    else:
        with pytest.raises(FrameTooLarge, match="limit 100 bytes, declared 101"):
            decoder.feed(stream)


@pytest.mark.parametrize(
    ("head_bytes", "body_bytes"), [(HEAD_MAX_BYTES + 1, 0), (2**32 - 1, 0), (0, 101), (0, 2**32 - 1)]
)
def test_declared_size_is_refused_before_a_byte_of_it_is_kept(head_bytes: int, body_bytes: int) -> None:
    decoder = FrameDecoder(body_max_bytes=100)
    with pytest.raises(FrameTooLarge):
        decoder.feed(PREFIX.pack(b"MH", VERSION, Kind.REQUEST, head_bytes, body_bytes))
    assert decoder.buffered_bytes <= PREFIX_BYTES


def test_head_of_the_largest_size_is_taken() -> None:
    decoder = FrameDecoder(body_max_bytes=0)
    head = b"h" * HEAD_MAX_BYTES
    assert decoder.feed(encode_frame(Kind.HELLO, head)) == [Frame(Kind.HELLO, head, b"")]
    with pytest.raises(FrameTooLarge):
        encode_frame(Kind.HELLO, head + b"h")


@pytest.mark.parametrize(
    ("prefix", "error", "message"),
    [
        ((b"HT", VERSION, 1, 0, 0), BadFrame, "expected it to begin with b'MH', received b'HT'"),
        ((b"MH", VERSION + 1, 1, 0, 0), UnknownFrameVersion, f"expected {VERSION}, received {VERSION + 1}"),
        ((b"MH", 0, 1, 0, 0), UnknownFrameVersion, "received 0"),
        ((b"MH", VERSION, 0, 0, 0), BadFrame, "expected 1 to 5, received 0"),
        ((b"MH", VERSION, 6, 0, 0), BadFrame, "expected 1 to 5, received 6"),
    ],
)
def test_what_is_no_frame_has_a_named_error(
    prefix: tuple[bytes, int, int, int, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FrameDecoder(body_max_bytes=100).feed(PREFIX.pack(*prefix))


def test_every_kind_is_taken() -> None:
    decoder = FrameDecoder(body_max_bytes=0)
    assert [frame.kind for kind in Kind for frame in decoder.feed(encode_frame(kind, b""))] == list(Kind)


@given(st.binary(max_size=64))
def test_any_bytes_are_frames_or_a_named_error(data: bytes) -> None:
    decoder = FrameDecoder(body_max_bytes=32)
    try:
        decoder.feed(data)
        decoder.eof()
    except (BadFrame, UnknownFrameVersion, FrameTooLarge, TruncatedFrame):
        pass
