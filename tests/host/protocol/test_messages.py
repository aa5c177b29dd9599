"""Heads: round trips, and peers that are a little newer or older."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.protocol.errors import RequestError
from host.protocol.frames import BODY_LIMIT_BYTES, Frame, FrameDecoder, Kind
from host.protocol.messages import (
    INSIDE_MAX_BYTES,
    TOGETHER_MAX,
    BadHead,
    Encoding,
    Hello,
    Limits,
    Operation,
    RequestHead,
    ResponseHead,
    hello_frame,
    read_hello,
    read_requests,
    read_responses,
    request_frames,
    response_frames,
)
from host.protocol.types import Signature, TensorSpec

COUNT = st.integers(0, 2**62)
HELLO = Hello(
    model_name="churn",
    model_version="3",
    slot=1,
    pid=42,
    platform="python",
    signature=Signature((TensorSpec("x", "FP64", (-1, 2)),), (TensorSpec("y", "BYTES", (-1,)),)),
    limits=Limits(max_queue=5),
)


def only_frame(data: bytes) -> Any:
    (frame,) = FrameDecoder(1 << 20).feed(data)
    return frame


def test_hello_comes_back() -> None:
    assert read_hello(only_frame(hello_frame(HELLO)).head) == HELLO


REQUESTS = st.builds(
    RequestHead,
    COUNT,
    st.sampled_from(Operation),
    COUNT,
    COUNT,
    st.sampled_from(Encoding),
    body=st.binary(max_size=9) | st.just(b"x" * INSIDE_MAX_BYTES) | st.just(b"x" * (INSIDE_MAX_BYTES + 1)),
)
ANSWERS = st.builds(
    ResponseHead,
    COUNT,
    st.integers(100, 599),
    st.sampled_from(Encoding),
    COUNT,
    body=st.binary(max_size=9) | st.just(b"x" * INSIDE_MAX_BYTES) | st.just(b"x" * (INSIDE_MAX_BYTES + 1)),
)


def with_bodies(data: bytes, read: Any) -> list[Any]:
    frames = FrameDecoder(1 << 20).feed(data)
    return [msgspec.structs.replace(head, body=head.body or frame.body) for frame in frames for head in read(frame)]


@given(st.lists(REQUESTS))
def test_requests_come_back_in_their_order(requests: list[RequestHead]) -> None:
    assert with_bodies(request_frames(requests), read_requests) == requests


@given(st.lists(ANSWERS))
def test_answers_come_back_in_their_order(answers: list[ResponseHead]) -> None:
    assert with_bodies(response_frames(answers), read_responses) == answers


@pytest.mark.parametrize(
    ("count", "body_bytes", "frames"),
    [
        (1, INSIDE_MAX_BYTES, 1),
        (2, INSIDE_MAX_BYTES, 1),
        (1, INSIDE_MAX_BYTES + 1, 1),
        (2, INSIDE_MAX_BYTES + 1, 2),
        (TOGETHER_MAX, INSIDE_MAX_BYTES, 1),
        (TOGETHER_MAX + 1, 0, TOGETHER_MAX + 1),
    ],
)
def test_what_is_small_shares_a_frame(count: int, body_bytes: int, frames: int) -> None:
    largest = ResponseHead(*[2**62] * 2, Encoding.JSON, *[2**62] * 8, body=b"x" * body_bytes)
    received = FrameDecoder(BODY_LIMIT_BYTES).feed(response_frames([largest] * count))
    assert len(received) == frames
    assert all(bool(frame.body) == (body_bytes > INSIDE_MAX_BYTES) for frame in received)


def test_newer_peer_may_append_fields() -> None:
    fields = msgspec.to_builtins(ResponseHead(sequence=7, status=200), builtin_types=(bytes,))
    newer = msgspec.msgpack.encode([[*fields, "something new", 1]])
    assert read_responses(Frame(Kind.RESPONSE, newer, b"")) == [ResponseHead(sequence=7, status=200)]


def test_older_peer_may_leave_later_fields_out() -> None:
    older = msgspec.msgpack.encode([[7, 1, 10, 20]])
    assert read_requests(Frame(Kind.REQUEST, older, b"")) == [RequestHead(7, Operation.INFER, 10, 20)]


@pytest.mark.parametrize(
    "read",
    [
        read_hello,
        lambda head: read_requests(Frame(Kind.REQUEST, head, b"")),
        lambda head: read_responses(Frame(Kind.RESPONSE, head, b"")),
    ],
    ids=["hello", "request", "response"],
)
@pytest.mark.parametrize("head", [b"", b"\xc1", b"\x91\x90", b"\xa3abc", msgspec.msgpack.encode([["a"] * 9])])
def test_head_of_another_form_is_named(read: Any, head: bytes) -> None:
    with pytest.raises(BadHead):
        read(head)


@pytest.mark.parametrize("count", [0, 2])
def test_a_frames_body_belongs_to_one_head(count: int) -> None:
    with pytest.raises(BadHead, match=f"expected one head for the body, received {count}"):
        read_requests(Frame(Kind.REQUEST, msgspec.msgpack.encode([[7, 1, 10, 20]] * count), b"{}"))
    with pytest.raises(BadHead, match=f"expected one head for the body, received {count}"):
        read_responses(Frame(Kind.RESPONSE, msgspec.msgpack.encode([[7, 200]] * count), b"{}"))


def test_frame_errors_are_no_request_errors() -> None:
    assert not issubclass(BadHead, RequestError)
