"""Every kind of broken request gets its 4xx; nothing dies of it, and the next good request is answered."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator

import msgpack
import pytest
from hosts import RunningHost, parsed_answers, tensors
from malformed import (
    CANCER,
    CLOSING,
    COLUMNS,
    DIABETES,
    DIGITS,
    GOOD,
    HARMLESS,
    MSGPACK,
    RAW,
    TABLE,
    TEXTS,
    VARIABLE,
    Bad,
)

pytestmark = pytest.mark.integration

GOOD_REQUESTS = {
    CANCER: json.loads(GOOD),
    DIGITS: tensors(image=("FP32", [1, 64], [0.0] * 64)),
    DIABETES: tensors(**{name: ("FP64", [1, 1], [1.0]) for name in COLUMNS}),
    TEXTS: tensors(text=("BYTES", [1, 1], ["a"])),
    VARIABLE: tensors(x=("FP32", [1, 2], [1.0, 2.0])),
}


@pytest.fixture
def unharmed(host: RunningHost) -> Iterator[None]:
    """Assert that every process is the same afterwards, and that the next requests are answered."""
    before = host.pids().keys()
    yield
    for path, request in GOOD_REQUESTS.items():
        answer = host.call("POST", path, request)
        assert answer.status == 200, (path, answer.body)
    assert host.pids().keys() == before


def test_the_table_is_large() -> None:
    assert len(TABLE) >= 300
    assert len({str(bad) for bad in TABLE}) == len(TABLE)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("bad", TABLE, ids=str)
def test_refused(host: RunningHost, bad: Bad) -> None:
    answer = host.call("POST", bad.path, bad.body, bad.headers)
    if bad.headers is MSGPACK:
        assert answer.headers["content-type"] == "application/msgpack"
        document = msgpack.unpackb(answer.body)
        assert set(document) == {"error", "code"}
        received = answer.status, document["code"]
    else:
        received, document = answer.error, answer.document
    assert received in bad.errors, document["error"]
    for part in bad.says:
        assert part in document["error"]
    assert len(document["error"]) < 400


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", RAW)
def test_not_http(host: RunningHost, name: str) -> None:
    data, status = RAW[name]
    answers = parsed_answers(host.raw(data))
    assert [answer.status for answer in answers] == [status]
    assert answers[0].error[0] == status
    assert answers[0].headers["server"] == "modelhost"


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("name", HARMLESS)
def test_strange_headers_of_good_requests(host: RunningHost, name: str) -> None:
    lines = [b"POST " + CANCER.encode() + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(GOOD), HARMLESS[name]]
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as sock:
        for _ in range(1 if name in CLOSING else 2):
            sock.sendall(b"\r\n".join([*lines, b"", GOOD]))
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert response.status == 200
            assert (response.headers["Connection"] == "close") == (name in CLOSING)
            assert response.headers["Content-Type"] == "application/json"
            assert len(json.loads(response.read())["outputs"][0]["data"]) == 1


@pytest.mark.usefixtures("unharmed")
def test_a_request_cut_anywhere(host: RunningHost) -> None:
    whole = b"\r\n".join(
        [b"POST " + CANCER.encode() + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(GOOD), b"", GOOD]
    )
    for size in range(0, len(whole), 7):
        answers = parsed_answers(host.raw(whole[:size], cut=True))
        assert [answer.status for answer in answers] in ([], [400])


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("chunked", [False, True])
def test_one_byte_at_a_time(host: RunningHost, chunked: bool) -> None:
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(GOOD)
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n" if chunked else GOOD
    whole = b"\r\n".join([b"POST " + CANCER.encode() + b" HTTP/1.1", b"Host: x", framing, b"", body])
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(len(whole)):
            sock.sendall(whole[position : position + 1])
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 200
        assert json.loads(response.read())["model_name"] == "breast_cancer"
