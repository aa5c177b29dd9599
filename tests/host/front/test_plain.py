"""Which heads the fast lane takes: what can be read in one way only, and nothing that needs an error answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from host.front.catalog import Catalog
from host.front.plain import HEAD_MAX_BYTES, PlainHead, may_become_plain, read_plain_head
from host.protocol.messages import NO_JSON_HEADER, Encoding, Operation

MAX_BODY_BYTES = 1000
INFER = "POST /v2/models/churn/infer HTTP/1.1"


def head(*lines: str, first: str = INFER, host: str = "Host: x", length: str = "Content-Length: 10") -> bytes:
    return "\r\n".join([first, *filter(None, [host, length]), *lines, "", ""]).encode("latin-1")


Read = Callable[[bytes], PlainHead | None]


@pytest.fixture(scope="module")
def read(catalog: Catalog) -> Read:
    """Give the function under test, with its surroundings."""
    return lambda data: read_plain_head(data, catalog, MAX_BODY_BYTES)


def test_what_a_plain_head_says(read: Read) -> None:
    assert read(head()) == PlainHead(
        operation=Operation.INFER,
        pool=("churn", "3"),
        content_length=10,
        timeout_ns=1_000_000_000,
        encoding=Encoding.JSON,
        accept=Encoding.JSON,
        json_bytes=NO_JSON_HEADER,
        accept_encoding=None,
        request_id=None,
        traceparent="",
    )


def test_headers_that_are_understood(read: Read) -> None:
    plain = read(
        head(
            "content-type: application/msgpack",
            "ACCEPT: application/json",
            "Accept-Encoding: gzip",
            "Request-Timeout-Ms:20",
            "Inference-Header-Content-Length: \t 5 ",
            "X-Request-Id: abc",
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "Connection: Keep-Alive",
            "X-Whatever: a b: c",
            "X-Empty:",
        )
    )
    assert plain is not None
    assert (plain.encoding, plain.accept, plain.accept_encoding) == (Encoding.MSGPACK, Encoding.JSON, "gzip")
    assert (plain.timeout_ns, plain.json_bytes) == (20_000_000, 5)
    assert (plain.request_id, plain.traceparent) == ("abc", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert not plain.repeats


@pytest.mark.parametrize(
    ("first", "operation"),
    [
        ("POST /v2/models/churn/versions/3/infer HTTP/1.1", Operation.INFER),
        ("POST /v2/models/churn/infer?a=b HTTP/1.1", Operation.INFER),
        ("POST /v2/models/ch%75rn/infer HTTP/1.1", Operation.INFER),
        ("POST /v1/models/churn:predict HTTP/1.1", Operation.PREDICT),
    ],
)
def test_paths(read: Read, first: str, operation: Operation) -> None:
    plain = read(head(first=first))
    assert plain is not None
    assert plain.operation is operation


@pytest.mark.parametrize("length", [0, 1, MAX_BODY_BYTES - 1, MAX_BODY_BYTES])
def test_lengths_up_to_the_limit(read: Read, length: int) -> None:
    plain = read(head(length=f"Content-Length: {length}"))
    assert plain is not None
    assert plain.content_length == length


NOT_PLAIN = {
    "GET": head(first="GET /v2/models/churn/infer HTTP/1.1"),
    "lower case": head(first="post /v2/models/churn/infer HTTP/1.1"),
    "HTTP/1.0": head(first="POST /v2/models/churn/infer HTTP/1.0"),
    "HTTP/1.2": head(first="POST /v2/models/churn/infer HTTP/1.2"),
    "two spaces": head(first="POST  /v2/models/churn/infer HTTP/1.1"),
    "absolute form": head(first="POST http://x/v2/models/churn/infer HTTP/1.1"),
    "fragment": head(first="POST /v2/models/churn/infer#a HTTP/1.1"),
    "not ASCII": head(first="POST /v2/models/chur\xf1/infer HTTP/1.1"),
    "another path": head(first="POST /v2/repository/index HTTP/1.1"),
    "unknown path": head(first="POST /v2/nothing HTTP/1.1"),
    "unknown model": head(first="POST /v2/models/other/infer HTTP/1.1"),
    "unknown version": head(first="POST /v2/models/churn/versions/4/infer HTTP/1.1"),
    "wrong method": head(first="POST /v2/models/churn HTTP/1.1"),
    "no Host": head(host=""),
    "no length": head(length=""),
    "over the limit": head(length=f"Content-Length: {MAX_BODY_BYTES + 1}"),
    "two lengths": head("Content-Length: 10"),
    "two different lengths": head("content-length: 11"),
    "plus": head(length="Content-Length: +1"),
    "minus": head(length="Content-Length: -1"),
    "hexadecimal": head(length="Content-Length: 0x1"),
    "list": head(length="Content-Length: 1, 1"),
    "huge": head(length="Content-Length: 99999999999999999999"),
    "empty length": head(length="Content-Length:"),
    "chunked": head("Transfer-Encoding: chunked"),
    "chunked alone": head("Transfer-Encoding: chunked", length=""),
    "identity": head("Transfer-Encoding: identity"),
    "Expect": head("Expect: 100-continue"),
    "Upgrade": head("Upgrade: h2c"),
    "Connection: close": head("Connection: close"),
    "Connection: upgrade": head("Connection: Upgrade"),
    "compressed": head("Content-Encoding: gzip"),
    "trailers": head("TE: trailers"),
    "two of any header": head("X-A: 1", "x-a: 2"),
    "folding": head("X-A: 1", " 2"),
    "bare LF": head().replace(b"\r\n", b"\n"),
    "one bare LF": head("X-A: 1\nX-B: 2"),
    "bare CR": head("X-A: 1\rX-B: 2"),
    "space before the colon": head("X-A : 1"),
    "no name": head(": 1"),
    "no colon": head("X-A"),
    "control character": head("X-A: \x01"),
    "NUL": head("X-A: \x00"),
    "tab in a value": head("X-A: a\tb"),
    "value not ASCII": head("X-A: \xe9"),
    "unknown media type": head("Content-Type: text/html"),
    "bad timeout": head("Request-Timeout-Ms: soon"),
    "zero timeout": head("Request-Timeout-Ms: 0"),
    "bad inference header": head("Inference-Header-Content-Length: x"),
    "leading empty line": b"\r\n" + head(),
    "something behind": head() + b"x",
    "nothing": b"\r\n\r\n",
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_left_to_the_other_lane(read: Read, name: str) -> None:
    assert read(NOT_PLAIN[name]) is None


def test_size_at_the_limit_and_beyond(read: Read) -> None:
    filler = HEAD_MAX_BYTES - len(head("X-A: "))
    assert read(head("X-A: " + "a" * filler)) is not None
    assert read(head("X-A: " + "a" * (filler + 1))) is None


@pytest.mark.parametrize("line", [b"A:    \r\n", b"Name: value\r\n"])
@pytest.mark.parametrize("last", [b"X: \xe9\r\n", b"X: a\tb\r\n", b"X\r\n"])
def test_a_bad_line_behind_many_good_ones_is_found_at_once(read: Read, line: bytes, last: bytes) -> None:
    # With two ways to match a line this would take 2**100 steps.
    whole = b"POST /v2/models/churn/infer HTTP/1.1\r\n" + 100 * line + last
    assert read(whole + b"\r\n") is None
    assert not may_become_plain(whole)


LINES = st.lists(
    st.tuples(st.from_regex(r"[A-Za-z-]{1,8}", fullmatch=True), st.from_regex(r"[ -~]{0,12}", fullmatch=True)),
    max_size=4,
)


@given(lines=LINES, data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_beginning_of_a_plain_head_may_become_one(
    read: Read, lines: list[tuple[str, str]], data: st.DataObject
) -> None:
    whole = head(*(f"{name}: {value}" for name, value in lines))
    end = data.draw(st.integers(1, len(whole) - 1))
    if read(whole) is not None:
        assert may_become_plain(whole[:end])


@pytest.mark.parametrize(
    "beginning",
    [
        b"G",
        b"GET /",
        b"post",
        b"\r\n",
        b"POST /v3",
        b"POST /v2/\x00",
        b"POST /v2/x HTTP/1.1\n",
        b"POST /v2/x HTTP/1.1\r\n X",
    ],
)
def test_what_cannot_become_plain_is_not_waited_for(beginning: bytes) -> None:
    assert not may_become_plain(beginning)
    assert not may_become_plain(head()[:-2] + b"X: " + b"a" * HEAD_MAX_BYTES)
