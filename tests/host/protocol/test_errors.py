"""The one table from errors to HTTP is whole."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from host.protocol.documents import error_document
from host.protocol.errors import HTTP_STATUS, Malformed, RequestError, http_status
from host.protocol.messages import Encoding


def subclasses(error: type[RequestError]) -> Iterator[type[RequestError]]:
    for subclass in error.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def test_every_request_error_has_its_row() -> None:
    assert set(subclasses(RequestError)) == set(HTTP_STATUS)


def test_every_code_names_one_error() -> None:
    codes = [error.code for error in HTTP_STATUS]
    assert len(set(codes)) == len(codes)
    assert all(code.isupper() for code in codes)


@pytest.mark.parametrize("error", HTTP_STATUS, ids=lambda error: str(error.code))
def test_status_is_an_error(error: type[RequestError]) -> None:
    assert 400 <= HTTP_STATUS[error] <= 599


@pytest.mark.parametrize(("encoding", "decode"), [(Encoding.JSON, msgspec.json), (Encoding.MSGPACK, msgspec.msgpack)])
def test_error_document_is_in_the_requests_encoding(encoding: Encoding, decode: type[msgspec.json]) -> None:
    error = Malformed("größer, received \ud800")
    document = decode.decode(error_document(error, encoding))
    assert document == {"error": "größer, received \\ud800", "code": "MALFORMED"}
    assert http_status(error) == 400
