"""Heads: round trips, and peers that are a little newer or older."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.protocol.errors import RequestError
from host.protocol.frames import FrameDecoder
from host.protocol.messages import (
    BadHead,
    Encoding,
    Hello,
    Limits,
    Operation,
    RequestHead,
    ResponseHead,
    hello_frame,
    read_hello,
    read_request,
    read_response,
    request_frame,
    response_frame,
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


@given(st.builds(RequestHead, COUNT, st.sampled_from(Operation), COUNT, COUNT, st.sampled_from(Encoding)), st.binary())
def test_request_comes_back(head: RequestHead, body: bytes) -> None:
    frame = only_frame(request_frame(head, body))
    assert (read_request(frame.head), frame.body) == (head, body)


@given(st.builds(ResponseHead, COUNT, st.integers(100, 599), st.sampled_from(Encoding), COUNT), st.binary())
def test_answer_comes_back(head: ResponseHead, body: bytes) -> None:
    frame = only_frame(response_frame(head, body))
    assert (read_response(frame.head), frame.body) == (head, body)


def test_newer_peer_may_append_fields() -> None:
    fields = msgspec.to_builtins(ResponseHead(sequence=7, status=200))
    newer = msgspec.msgpack.encode([*fields, "something new", 1])
    assert read_response(newer) == ResponseHead(sequence=7, status=200)


def test_older_peer_may_leave_later_fields_out() -> None:
    assert read_request(msgspec.msgpack.encode([7, 1, 10, 20])) == RequestHead(7, Operation.INFER, 10, 20)


@pytest.mark.parametrize("read", [read_hello, read_request, read_response])
@pytest.mark.parametrize("head", [b"", b"\xc1", b"\x90", b"\xa3abc", msgspec.msgpack.encode(["a"] * 9)])
def test_head_of_another_form_is_named(read: Any, head: bytes) -> None:
    with pytest.raises(BadHead):
        read(head)


def test_frame_errors_are_no_request_errors() -> None:
    assert not issubclass(BadHead, RequestError)
