"""Which request heads the fast lane may take, and what it needs of them. Pure: bytes in, facts or None out.

A head is plain if there is one way to read it, and if nothing about it needs an error answer. Everything else (None
here) is left to aiohttp, untouched: the fast lane decides nothing that two parsers could see differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import httptools

from host.dispatch import PoolKey
from host.front.catalog import Catalog
from host.front.headers import (
    INFERENCE_HEADER,
    REQUEST_ID,
    REQUEST_TIMEOUT,
    TRACEPARENT,
    TRACESTATE,
    answer_encoding,
    given_request_id,
    given_traceparent,
    given_tracestate,
    inference_header,
    request_encoding,
    timeout_ns,
)
from host.front.routes import Endpoint, match_route
from host.front.traffic import Traffic
from host.protocol.errors import RequestError
from host.protocol.messages import NO_JSON_HEADER, Encoding, Operation

HEAD_MAX_BYTES: Final = 4096
"""Larger heads are no plain ones. aiohttp's own limits are 8190 bytes a line."""

_LENGTH_DIGITS_MAX: Final = 10

_SHAPE: Final = re.compile(
    rb"POST /v[12]/[!\"$-~]* HTTP/1\.1\r\n"  # origin form, printable ASCII, no fragment
    rb"(?:[A-Za-z0-9!#$%&'*+.^_`|~-]+:[ \t]*+[ -~]*\r\n)+"  # RFC 9110's token
    rb"\r\n"
)
"""The whole of a head: CRLF only, no folding, no control characters, nothing outside ASCII.

A line can be matched in one way only (`*+` gives no space back): with two, a bad line behind thirty good ones would
be tried in 2^30 ways.
"""
_BEGINNING: Final = re.compile(
    rb"(?:P|PO|POS|POST|POST |POST /|POST /v|POST /v[12]|POST /v[12]/[!\"$-~]*(?: [HTP/1.]*\r?)?)"
    rb"|POST /v[12]/[!\"$-~]* HTTP/1\.1\r\n"
    rb"(?:[A-Za-z0-9!#$%&'*+.^_`|~-]+:[ \t]*+[ -~]*\r\n)*"
    rb"(?:\r|[A-Za-z0-9!#$%&'*+.^_`|~-]+(?::[ \t]*+[ -~]*\r?)?)?"
)

_NOT_PLAIN: Final = frozenset(
    {
        "transfer-encoding",
        "expect",
        "upgrade",
        "content-encoding",
        "te",  # codespell:ignore te
        "trailer",
        "proxy-connection",
        "keep-alive",
    }
)


class PlainHead(NamedTuple):
    """What a head says. The same bytes always say the same, so it may be remembered."""

    operation: Operation
    pool: PoolKey
    content_length: int
    timeout_ns: int
    """What the client allows, at most the model's limit."""
    encoding: Encoding
    accept: Encoding
    json_bytes: int
    accept_encoding: str | None
    request_id: str | None
    """The client's, if it sent a valid one."""
    traceparent: str
    tracestate: str = ""
    traffic: Traffic | None = None
    """How requests with this head are shared over the model's versions; None: the pool gets all of them."""
    slot: int | None = None
    """By the request's sticky key; None: each request draws one."""
    canaries: tuple[PlainHead, ...] = ()
    """The same for each canary: another pool, and its limits."""

    @property
    def repeats(self) -> bool:
        """Whether other requests are likely to come with the very same head."""
        return self.request_id is None and not self.traceparent


def read_plain_head(head: bytes, catalog: Catalog, max_body_bytes: int) -> PlainHead | None:
    """Read a request's head, its empty line included. None: not for the fast lane."""
    if len(head) > HEAD_MAX_BYTES or _SHAPE.fullmatch(head) is None:
        return None
    reader = _Reader()
    try:
        reader.parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    headers = reader.headers
    if headers is None or "host" not in headers or not headers.keys().isdisjoint(_NOT_PLAIN):
        return None
    if headers.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    length = headers.get("content-length", "")
    if not (length.isdigit() and len(length) <= _LENGTH_DIGITS_MAX and int(length) <= max_body_bytes):
        return None
    try:
        return _interpreted(reader.target, headers, int(length), catalog)
    except RequestError:
        return None  # the other lane answers with this very error


def may_become_plain(head: bytes) -> bool:
    """Whether more bytes could make a plain head of this beginning of one."""
    return len(head) <= HEAD_MAX_BYTES and _BEGINNING.fullmatch(head) is not None


def _interpreted(target: str, headers: Mapping[str, str], content_length: int, catalog: Catalog) -> PlainHead | None:
    route = match_route("POST", target)
    if route.endpoint is Endpoint.INFER:
        operation = Operation.INFER
        json_bytes = inference_header(headers.get(INFERENCE_HEADER.lower()))
    elif route.endpoint is Endpoint.V1_PREDICT:
        operation, json_bytes = Operation.PREDICT, NO_JSON_HEADER
    else:
        return None
    model = catalog.find(route.model, route.version)
    traffic = catalog.traffic(route.model, route.version)
    asked_timeout = headers.get(REQUEST_TIMEOUT.lower())
    content_type, accept = headers.get("content-type"), headers.get("accept")
    encoding = Encoding.JSON if content_type is None else request_encoding(content_type)
    plain = PlainHead(
        operation=operation,
        pool=model.key,
        content_length=content_length,
        timeout_ns=timeout_ns(asked_timeout, model.limits.timeout_ms),
        encoding=encoding,
        accept=encoding if accept is None else answer_encoding(accept, encoding),
        json_bytes=json_bytes,
        accept_encoding=headers.get("accept-encoding"),
        request_id=given_request_id(headers.get(REQUEST_ID.lower())),
        traceparent=given_traceparent(headers.get(TRACEPARENT)),
        tracestate=given_tracestate(headers.get(TRACESTATE)),
        traffic=traffic,
    )
    if traffic is None:
        return plain
    canaries = tuple(
        plain._replace(pool=canary.key, timeout_ns=timeout_ns(asked_timeout, canary.limits.timeout_ms))
        for canary in traffic.canaries
    )
    return plain._replace(slot=traffic.sticky_slot(headers.get(traffic.default.sticky_header)), canaries=canaries)


class _Reader:
    """httptools' callbacks: the target, and the headers by lower-case name; None if a name comes twice."""

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.target = ""
        self.headers: dict[str, str] | None = {}

    def on_url(self, url: bytes) -> None:
        self.target += url.decode("ascii")

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("ascii").lower()
        if self.headers is not None:
            if key in self.headers:
                self.headers = None
            else:
                self.headers[key] = value.decode("ascii").strip(" \t")
