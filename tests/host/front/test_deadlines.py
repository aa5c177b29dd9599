"""Deadlines in bodies: found where they are, and never a reason to refuse."""

from __future__ import annotations

import json

import msgspec
import pytest

from host.front.deadlines import READ_MAX_BYTES, body_timeout_ns
from host.protocol.messages import NO_JSON_HEADER, Encoding


def body(**parameters: object) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "data": [1]}], "parameters": parameters}).encode()


def read(data: bytes, encoding: Encoding = Encoding.JSON, json_bytes: int = NO_JSON_HEADER) -> int | None:
    return body_timeout_ns(data, encoding, json_bytes)


def test_microseconds() -> None:
    assert read(body(timeout=1500)) == 1_500_000
    assert read(body(timeout=0)) == 0
    assert read(body(timeout=1500, binary_data_output=True)) == 1_500_000


def test_msgpack() -> None:
    assert read(msgspec.msgpack.encode({"inputs": [], "parameters": {"timeout": 2}}), Encoding.MSGPACK) == 2000


def test_binary_data_behind_the_document_is_not_read() -> None:
    data = body(timeout=7)
    assert read(data + b"\xfftimeout", json_bytes=len(data)) == 7000
    data = body()
    assert read(data + b"timeout", json_bytes=len(data)) is None
    assert read(body(timeout=7), json_bytes=len(body(timeout=7)) + 1) == 7000


@pytest.mark.parametrize(
    "data",
    [
        body(),
        body(other=1),
        body(timeout="5"),
        body(timeout=-5),
        body(timeout=None),
        body(timeout=2.5),
        b'{"inputs": "timeout"}',
        b'{"parameters": "timeout"}',
        b'{"parameters": {"timeout": 5',
        b"\xff timeout",
        b"",
    ],
    ids=repr,
)
def test_anything_else_is_for_the_worker(data: bytes) -> None:
    assert read(data) is None


def test_large_documents_are_for_the_worker() -> None:
    data = body(timeout=5)
    assert read(data + b" " * (READ_MAX_BYTES - len(data))) == 5000
    assert read(data + b" " * (READ_MAX_BYTES - len(data) + 1)) is None
