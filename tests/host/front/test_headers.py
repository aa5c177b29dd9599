"""Headers: what is read out of them, and what is refused."""

from __future__ import annotations

import pytest

from host.front.headers import (
    answer_compression,
    answer_encoding,
    content_coding,
    given_request_id,
    inference_header,
    request_encoding,
    timeout_ns,
)
from host.protocol.errors import Malformed, UnsupportedMediaType
from host.protocol.messages import NO_JSON_HEADER, Encoding


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        ("application/json", Encoding.JSON),
        ("application/json; charset=utf-8", Encoding.JSON),
        ("Application/JSON", Encoding.JSON),
        ("application/msgpack", Encoding.MSGPACK),
        ("application/x-msgpack", Encoding.MSGPACK),
        ("application/octet-stream", Encoding.JSON),
        ("application/x-www-form-urlencoded", Encoding.JSON),
        ("", Encoding.JSON),
    ],
)
def test_content_type_names_the_encoding(content_type: str, encoding: Encoding) -> None:
    assert request_encoding(content_type) is encoding


@pytest.mark.parametrize("content_type", ["text/html", "image/png", "multipart/form-data; boundary=x", "nonsense"])
def test_other_content_types_are_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="expected application/json"):
        request_encoding(content_type)


@pytest.mark.parametrize(
    ("accept", "default", "encoding"),
    [
        ("*/*", Encoding.JSON, Encoding.JSON),
        ("*/*", Encoding.MSGPACK, Encoding.MSGPACK),
        ("application/msgpack", Encoding.JSON, Encoding.MSGPACK),
        ("application/json", Encoding.MSGPACK, Encoding.JSON),
        ("application/json;q=0.5, application/msgpack", Encoding.JSON, Encoding.MSGPACK),
        ("application/msgpack;q=0", Encoding.JSON, Encoding.JSON),
        ("text/html", Encoding.JSON, Encoding.JSON),
        ("application/msgpack;q=high", Encoding.JSON, Encoding.JSON),
        ("", Encoding.MSGPACK, Encoding.MSGPACK),
    ],
)
def test_accept_chooses_the_answers_encoding(accept: str, default: Encoding, encoding: Encoding) -> None:
    assert answer_encoding(accept, default) is encoding


@pytest.mark.parametrize(
    ("value", "coding"),
    [("gzip", "gzip"), (" GZIP", "gzip"), ("x-gzip", "gzip"), ("deflate", "deflate"), ("identity", None), ("", None)],
)
def test_known_compressions_are_taken(value: str, coding: str | None) -> None:
    assert content_coding(value) == coding


@pytest.mark.parametrize("value", ["br", "zstd", "gzip, gzip", "compress"])
def test_other_compressions_are_refused(value: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="expected gzip, deflate or identity"):
        content_coding(value)


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("deflate, gzip;q=0.1", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("br", None),
        ("", None),
    ],
)
def test_answer_is_compressed_as_the_client_takes_it(accept_encoding: str, coding: str | None) -> None:
    assert answer_compression(accept_encoding) == coding


def test_inference_header_is_a_length_or_absent() -> None:
    assert inference_header(None) == NO_JSON_HEADER
    assert inference_header("0") == 0
    assert inference_header("123") == 123


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "0x10", " 1", "\u0661", "1" * 13])
def test_inference_header_must_be_decimal(value: str) -> None:
    with pytest.raises(Malformed, match="Inference-Header-Content-Length"):
        inference_header(value)


@pytest.mark.parametrize(
    ("value", "expected_ms"), [(None, 1000), ("1", 1), ("999", 999), ("1000", 1000), ("1001", 1000)]
)
def test_timeout_is_the_clients_up_to_the_models(value: str | None, expected_ms: int) -> None:
    assert timeout_ns(value, 1000) == expected_ms * 1_000_000


@pytest.mark.parametrize("value", ["0", "-5", "soon", "1e3"])
def test_timeout_must_be_at_least_a_millisecond(value: str) -> None:
    with pytest.raises(Malformed, match="Request-Timeout-Ms"):
        timeout_ns(value, 1000)


@pytest.mark.parametrize(
    ("value", "taken"),
    [("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a b", False), ("é", False), (None, False)],
)
def test_request_id_is_taken_if_it_is_short_and_printable(value: str | None, taken: bool) -> None:
    assert given_request_id(value) == (value if taken else None)
