"""HTTP as clients use and abuse it: methods, limits, ids, deadlines, queues, connections, failing models."""

from __future__ import annotations

import gzip
import http.client
import json
import select
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hosts import Answer, RunningHost, parsed_answers, read_answer, tensors, until
from packages import QUIET_MAX_S, Gate, Visit, write_fragile, write_gated

from host.protocol.counters import FRONT, read_counters

pytestmark = pytest.mark.integration

FRAGILE = "/v2/models/fragile/infer"
SMALL_LIMIT = 4096
TRIES = 5
"""On a busy machine."""


def fragile(*values: int) -> dict[str, Any]:
    return tensors(x=("INT64", [len(values), 1], list(values)))


def gated(*values: float) -> dict[str, Any]:
    return tensors(x=("FP64", [len(values), 1], list(values)))


def outputs(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    return {output["name"]: output["data"] for output in answer.document["outputs"]}


def post_head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


# -- methods and paths ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v2/models/digits/infer", "POST"),
        ("PUT", "/v2/models/digits/infer", "POST"),
        ("HEAD", "/v2/models/digits/infer", "POST"),
        ("GET", "/v1/models/digits:predict", "POST"),
        ("GET", "/v2/repository/index", "POST"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("DELETE", "/v2/models/digits", "GET, HEAD"),
        ("POST", "/v2", "GET, HEAD"),
        ("PATCH", "/v2/models/digits/config", "GET, HEAD"),
        ("OPTIONS", "/v2/models/stats", "GET, HEAD"),
    ],
)
def test_405_says_what_is_allowed(host: RunningHost, method: str, path: str, allow: str) -> None:
    answer = host.call(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        assert answer.error == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    "path", ["/", "/v2/", "/v3", "/v2/models", "/v2/models/", "/metrics", "/V2", "/v2//health/live"]
)
def test_404_in_the_form_of_every_error(host: RunningHost, path: str) -> None:
    answer = host.call("GET", path)
    if path == "/v2/":
        assert answer.document["name"] == "modelhost"
    else:
        assert answer.error == (404, "NOT_FOUND")
        assert path in answer.document["error"]


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2", "/v2/models/digits", "/v2/models/stats", "/v1/models/digits", "/v2/nothing"]
)
def test_head_is_get_without_a_body(host: RunningHost, path: str) -> None:
    got, head = host.call("GET", path), host.call("HEAD", path)
    assert head.body == b""
    assert head.status == got.status
    assert head.headers["content-type"] == "application/json"
    if "stats" not in path:
        assert head.headers["content-length"] == str(len(got.body))


def test_percent_encoded_paths(host: RunningHost) -> None:
    assert host.call("GET", "/v2/models/d%69gits").document["name"] == "digits"
    assert host.call("POST", "/v2/models/%66ragile/infer?x=/../y%20", fragile(4)).status == 200
    assert host.call("POST", "/v1/models/fragile%3Apredict", {"instances": [[4]]}).document == {"predictions": [[8.0]]}
    assert host.call("GET", "/v2/models/dig%2569ts").error == (404, "NOT_FOUND")


def test_v1_status(host: RunningHost) -> None:
    assert "digits" in host.call("GET", "/v1/models").document["models"]
    status = host.call("GET", "/v1/models/digits").document
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert status["ready"] is True


def test_repository_index_by_readiness(host: RunningHost) -> None:
    names = {"breast_cancer", "digits", "diabetes"}
    for body in (None, {}, {"ready": True}, {"ready": False}):
        index = host.call("POST", "/v2/repository/index", body).document
        assert names <= {entry["name"] for entry in index}


# -- request ids ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "given", ["a", "abc-123", "x" * 128, "~!@#$%^&*()_+{}|", "00-4bf92f3577b34da6a3ce929d0e0e4736-01"]
)
def test_request_ids_are_taken(host: RunningHost, given: str) -> None:
    assert host.call("GET", "/v2", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    assert host.call("GET", "/v9", headers={"X-Request-Id": given}).headers["x-request-id"] == given
    assert host.infer("fragile", fragile(1), X_Request_Id=given).headers["x-request-id"] == given
    assert host.infer("fragile", b"{", X_Request_Id=given).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "with space", "umläut", "tab\there"])
def test_bad_request_ids_are_replaced(host: RunningHost, given: str) -> None:
    made = host.call("GET", "/v2", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert made
    assert made != given


def test_made_request_ids_differ(host: RunningHost) -> None:
    assert len({host.call("GET", "/v2").headers["x-request-id"] for _ in range(20)}) == 20


# -- sizes ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def small(everything: Path) -> Iterator[RunningHost]:
    """Give a host of small limits: bodies of 4 KiB, eight connections, a second of patience."""
    settings = {"max-body-bytes": f"{SMALL_LIMIT}B", "max-connections": 8, "keepalive-s": 1}
    with RunningHost(everything, models=["texts"], settings=settings) as running:
        running.start()
        yield running


def text_of(size: int) -> bytes:
    """A request for `texts` of exactly so many bytes."""
    empty = json.dumps(tensors(text=("BYTES", [1, 1], [""]))).encode()
    return empty.replace(b'""', b'"%s"' % (b"x" * (size - len(empty))))


def chunks(body: bytes, size: int = 1000) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


def send_chunked(host: RunningHost, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    connection = host.connect()
    sent = headers or {}
    # One that is refused is read for a while, and then not any more; its answer is there all the same.
    refused = suppress(BrokenPipeError, ConnectionResetError)
    connection.putrequest("POST", path)
    for name, value in {"Transfer-Encoding": "chunked", **sent}.items():
        connection.putheader(name, value)
    connection.endheaders()
    with refused:
        for chunk in chunks(body):
            connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        connection.send(b"0\r\n\r\n")
    try:
        return read_answer(connection)
    finally:
        connection.close()


@pytest.mark.parametrize("how", ["length", "chunked", "gzip", "deflate", "gzip chunked"])
@pytest.mark.parametrize(("size", "status"), [(SMALL_LIMIT - 1, 200), (SMALL_LIMIT, 200), (SMALL_LIMIT + 1, 413)])
def test_body_limit(small: RunningHost, how: str, size: int, status: int) -> None:
    body, path = text_of(size), "/v2/models/texts/infer"
    assert len(body) == size
    if how == "length":
        answer = small.call("POST", path, body)
    elif how == "chunked":
        answer = send_chunked(small, path, body)
    elif how == "gzip chunked":
        answer = send_chunked(small, path, gzip.compress(body), {"Content-Encoding": "gzip"})
    else:
        compress = gzip.compress if how == "gzip" else zlib.compress
        answer = small.call("POST", path, compress(body), {"Content-Encoding": how})
    assert answer.status == status, answer.body
    if status == 413:
        assert answer.error == (413, "BODY_TOO_LARGE")
        assert f"at most {SMALL_LIMIT} bytes" in answer.document["error"]


@pytest.mark.parametrize("times", [2, 100, 5_000])
def test_gzip_bombs(small: RunningHost, times: int) -> None:
    bomb = gzip.compress(b"0" * SMALL_LIMIT * times)
    answer = small.call("POST", "/v2/models/texts/infer", bomb[:SMALL_LIMIT], {"Content-Encoding": "gzip"})
    assert answer.error == (413, "BODY_TOO_LARGE")
    assert small.call("POST", "/v2/models/texts/infer", text_of(200)).status == 200


def test_a_declared_length_is_refused_before_the_body_is_sent(small: RunningHost) -> None:
    head = post_head("/v2/models/texts/infer", "Content-Length: 5000", "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as sock:
        sock.sendall(head)
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 413


def test_a_large_body_in_pieces_is_refused_while_it_comes(small: RunningHost) -> None:
    answer = send_chunked(small, "/v2/models/texts/infer", b"x" * 200_000)
    assert answer.error == (413, "BODY_TOO_LARGE")


def test_a_body_of_many_megabytes_is_taken(host: RunningHost) -> None:
    text = "x" * (20 << 20)
    answer = host.infer("texts", tensors(text=("BYTES", [1, 1], [text])))
    assert outputs(answer)["length"] == [len(text)]


def test_connection_limit(small: RunningHost) -> None:
    def ninth() -> Answer | None:
        """Its refusal. None if one of the eight was not let in yet, or was closed again, having been idle."""
        with ExitStack() as eight:
            for _ in range(8):
                connection = eight.enter_context(closing(small.connect()))
                connection.request("GET", "/v2/health/live")
                if read_answer(connection).status != 200:
                    return None
            answer = small.call("GET", "/v2/health/live")
        return answer if answer.status != 200 else None

    refused = until(ninth, "eight are let in, and no ninth", 30.0)
    assert refused is not None
    assert refused.error == (503, "OVERLOADED")
    assert refused.headers["retry-after"].isdigit()
    until(lambda: small.call("GET", "/v2/health/live").status == 200, "connections are given back")


# -- connections ------------------------------------------------------------------------------------------
def test_keep_alive_through_errors(host: RunningHost) -> None:
    connection = host.connect()
    body = json.dumps(fragile(5)).encode()
    with closing(connection):
        for method, path, sent, status in (
            ("POST", FRAGILE, body, 200),
            ("POST", FRAGILE, b"{", 400),
            ("POST", "/v2/models/nobody/infer", body, 404),
            ("GET", "/v9", None, 404),
            ("POST", FRAGILE, json.dumps(fragile(13)).encode(), 500),
            ("HEAD", "/v2", None, 200),
            ("GET", FRAGILE, None, 405),
            ("POST", FRAGILE, body, 200),
        ):
            connection.request(method, path, body=sent)
            before = connection.sock
            answer = read_answer(connection)
            assert answer.status == status
            assert connection.sock is before, "the connection was closed"


def test_connection_close_and_http_1_0(host: RunningHost) -> None:
    for lines in (
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /v2/health/live HTTP/1.0\r\n\r\n",
    ):
        (answer,) = parsed_answers(host.raw(lines))
        assert answer.document == {"live": True, "ready": True}


def test_expect_100_continue(host: RunningHost) -> None:
    body = json.dumps(fragile(21)).encode()
    head = post_head(FRAGILE, f"Content-Length: {len(body)}", "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as sock:
        for _ in range(2):
            sock.sendall(head)
            assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(body)
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert json.loads(response.read())["outputs"][0]["data"] == [42.0]


def test_expect_is_answered_with_the_error_when_there_is_one(host: RunningHost) -> None:
    head = post_head("/v2/models/nobody/infer", "Content-Length: 10", "Expect: 100-continue", "Connection: close")
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as sock:
        sock.sendall(head)
        assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")


def test_pipelined_requests_are_answered_in_order(host: RunningHost) -> None:
    values = [*range(20, 60), 13, *range(60, 100)]
    sent = b""
    for value in values:
        body = json.dumps(fragile(value)).encode()
        sent += post_head(FRAGILE, f"Content-Length: {len(body)}", f"X-Request-Id: {value}") + body
    sent += b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = parsed_answers(host.raw(sent))
    assert [answer.headers["x-request-id"] for answer in answers[:-1]] == list(map(str, values))
    for value, answer in zip(values, answers[:-1], strict=True):
        if value == 13:
            assert answer.error == (500, "MODEL_FAILED")
        else:
            assert outputs(answer)["y"] == [2.0 * value]
    assert answers[-1].document["name"] == "modelhost"


def test_a_slow_body_meets_the_deadline(host: RunningHost) -> None:
    head = post_head(FRAGILE, "Content-Length: 1000", "Request-Timeout-Ms: 150")
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", host.port), timeout=10) as sock:
            start = time.monotonic()
            sock.sendall(head + b'{"inp')
            response = http.client.HTTPResponse(sock)
            response.begin()
            answer = Answer(response.status, {"content-type": response.headers["Content-Type"]}, response.read())
        took_s = time.monotonic() - start
        assert answer.error == (504, "DEADLINE_EXCEEDED")
        assert "receiving the body (5 bytes so far)" in answer.document["error"]
        assert took_s >= 0.1
        # On a busy machine it is tried again.
        if took_s <= 1.0:
            break
    assert took_s <= 1.0


def test_a_head_that_never_ends_holds_nobody_up(host: RunningHost) -> None:
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as sock:
        sock.sendall(b"POST " + FRAGILE.encode() + b" HTTP/1.1\r\nHos")
        assert host.infer("fragile", fragile(1)).status == 200


@pytest.mark.parametrize("after_an_answer", [False, True])
@pytest.mark.parametrize("sent", [b"", b"POST /v2/models/texts/infer HTTP/1.1\r\nHos"], ids=["nothing", "half a head"])
def test_idle_connections_are_closed(small: RunningHost, after_an_answer: bool, sent: bytes) -> None:
    def took_s() -> float | None:
        """From the connection to its end. None if that came before everything was sent: this process had no CPU."""
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", small.port), timeout=10) as sock:
            try:
                if after_an_answer:
                    sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                    if not (answer := sock.recv(65536)):
                        return None
                    assert answer.startswith(b"HTTP/1.1 200 ")
                    start = time.monotonic()
                sock.sendall(sent)
                assert sock.recv(65536) == b""
            except (BrokenPipeError, ConnectionResetError):
                return None
        return time.monotonic() - start

    # On a busy machine it is tried again.
    tries = [took_s()]
    while (tries[-1] is None or not 0.5 <= tries[-1] <= 5.0) and len(tries) < 5:
        tries.append(took_s())
    assert tries[-1] is not None
    assert 0.5 <= tries[-1] <= 5.0, tries


def test_two_fronts_share_a_port(everything: Path, make_host: Callable[..., RunningHost]) -> None:
    running = make_host(everything, models=["fragile"], fronts=2)
    running.start()
    assert len(running.front_pids()) == 2
    # A request id begins with four bytes that its front has chosen.
    seen: dict[str, int] = {}
    for value in range(20, 220):
        answer = running.infer("fragile", fragile(value))
        assert outputs(answer)["y"] == [2.0 * value]
        front = answer.headers["x-request-id"].partition("-")[0]
        seen[front] = seen.get(front, 0) + 1
    assert len(seen) == 2, seen


# -- deadlines --------------------------------------------------------------------------------------------
def test_a_timeout_longer_than_the_models_is_capped(host: RunningHost) -> None:
    assert host.infer("fragile", fragile(2), Request_Timeout_Ms="999999999999").status == 200


def test_parameters_timeout_counts_microseconds(host: RunningHost, gate: Gate) -> None:
    assert host.infer("fragile", fragile(2) | {"parameters": {"timeout": 5_000_000}}).status == 200
    first = host.send("POST", "/v2/models/gated/infer", gated(1))
    visit = gate.entered()
    late = host.send("POST", "/v2/models/gated/infer", gated(2) | {"parameters": {"timeout": 1}})
    visit.let_through()
    assert outputs(read_answer(first))["y"] == [2.0]
    answer = read_answer(late)
    assert answer.error == (504, "DEADLINE_EXCEEDED")
    assert "before the request was queued" in answer.document["error"]


def test_one_millisecond(host: RunningHost, gate: Gate) -> None:
    answer = host.infer("gated", gated(1), Request_Timeout_Ms="1")
    assert answer.error == (504, "DEADLINE_EXCEEDED")


def test_504_in_time_and_says_where(host: RunningHost, gate: Gate) -> None:
    def stands() -> tuple[float, http.client.HTTPConnection, Visit] | None:
        """One that runs. None if it was late before it did, on a busy machine: then its answer says so."""
        start = time.monotonic()
        running = host.send("POST", "/v2/models/gated/infer", gated(1), {"Request-Timeout-Ms": "2000"})
        try:
            return start, running, gate.entered(5.0)
        except TimeoutError:
            assert read_answer(running).error == (504, "DEADLINE_EXCEEDED")
            return None

    for _ in range(TRIES):
        standing = until(stands, "it runs")
        assert standing is not None
        start, running, visit = standing
        # One waits in the worker, ahead; two wait in the front.
        sent = time.monotonic()
        waiting = [
            host.send("POST", "/v2/models/gated/infer", gated(value), {"Request-Timeout-Ms": "1000"})
            for value in (2, 3, 4)
        ]
        answers = [read_answer(connection) for connection in waiting]
        if time.monotonic() - start < 1.0 + QUIET_MAX_S:
            break
        gate.let_all_through([running])
    assert [answer.error for answer in answers] == [(504, "DEADLINE_EXCEEDED")] * 3
    said = [answer.document["error"] for answer in answers]
    # Far from the model's own ten seconds.
    assert 0.95 <= time.monotonic() - sent <= 8.0
    assert sorted(said) == [
        "deadline passed while waiting for the worker",
        *["deadline passed while waiting in the queue"] * 2,
    ]
    answer = read_answer(running)
    assert answer.error == (504, "DEADLINE_EXCEEDED")
    assert 1.95 <= time.monotonic() - start <= 8.0
    before = outputs_after(host, gate, visit, 5.0)
    assert before["y"] == [10.0]
    # What was late was not run: of the four only the first was, and then this one.
    (rows,) = before["seen"]
    assert next_seen(host, gate, 6.0) == rows + 1


def outputs_after(host: RunningHost, gate: Gate, visit: Any, value: float) -> dict[str, Any]:
    """Let a batch through and run one more; the batch at the gate next is this one, as the late ones are dropped."""
    connection = host.send("POST", "/v2/models/gated/infer", gated(value))
    visit.let_through()
    following = gate.entered()
    assert following.values == (value,)
    following.let_through()
    return outputs(read_answer(connection))


def next_seen(host: RunningHost, gate: Gate, value: float) -> int:
    connection = host.send("POST", "/v2/models/gated/infer", gated(value))
    visit = gate.entered()
    assert visit.values == (value,)
    visit.let_through()
    return int(outputs(read_answer(connection))["seen"][0])


# -- queues -----------------------------------------------------------------------------------------------
def answered(connections: list[http.client.HTTPConnection], limit_s: float = 30.0) -> http.client.HTTPConnection:
    """Wait for the first of some connections that has an answer."""
    readable, _, _ = select.select([connection.sock for connection in connections], [], [], limit_s)
    assert readable, "no answer in time"
    return next(connection for connection in connections if connection.sock is readable[0])


class Full(NamedTuple):
    """A model that can take no more."""

    visit: Visit
    running: http.client.HTTPConnection
    waiting: list[http.client.HTTPConnection]
    refused: http.client.HTTPConnection
    """The one that came last."""


def filled(host: RunningHost, gate: Gate, values: Iterable[float]) -> Full:
    """Let one run, and send so many more that one is refused."""
    for _ in range(TRIES):
        begun = time.monotonic()
        running = host.send("POST", "/v2/models/gated/infer", gated(1))
        visit = gate.entered()
        waiting = [host.send("POST", "/v2/models/gated/infer", gated(value)) for value in values]
        refused = answered(waiting)
        if time.monotonic() - begun < QUIET_MAX_S:
            waiting.remove(refused)
            return Full(visit, running, waiting, refused)
        gate.let_all_through([running, *waiting])
    raise AssertionError(f"not within {QUIET_MAX_S} s, {TRIES} times")


def test_a_full_queue_refuses_with_retry_after(host: RunningHost, gate: Gate) -> None:
    # One ahead in the worker and two in the queue; there is no room for one of four.
    visit, running, waiting, refused = filled(host, gate, (2, 3, 4, 5))
    answer = read_answer(refused)
    assert answer.error == (503, "QUEUE_FULL")
    assert answer.headers["retry-after"] == "1"
    assert "'gated'" in answer.document["error"]
    assert "2 requests are waiting" in answer.document["error"]
    # The others are all answered, and another model was never concerned.
    assert host.infer("fragile", fragile(3)).status == 200
    visit.let_through()
    for _ in range(3):
        gate.entered().let_through()
    assert all(read_answer(connection).status == 200 for connection in (running, *waiting))


def test_a_client_that_leaves_takes_its_work_along(host: RunningHost, gate: Gate) -> None:
    visit, first, leaving, refused = filled(host, gate, (2, 3, 4, 5))
    assert read_answer(refused).error == (503, "QUEUE_FULL")
    # The queue is full, so all three are known to the host: one is ahead in the worker, two wait.
    before = cancelled(host)
    for connection in leaving:
        connection.close()
    until(lambda: cancelled(host) == before + 3, "the front has noticed that they left")
    # Two have the leavers' places; that a third has none says that they are there.
    staying = {value: host.send("POST", "/v2/models/gated/infer", gated(value)) for value in (6.0, 7.0, 8.0)}
    refused = answered(list(staying.values()))
    assert read_answer(refused).error == (503, "QUEUE_FULL")
    staying = {value: connection for value, connection in staying.items() if connection is not refused}
    visit.let_through()
    ahead, *others = [following(gate) for _ in range(3)]
    assert ahead in {(2.0,), (3.0,), (4.0,), (5.0,)}
    assert sorted(others) == [(value,) for value in staying]
    assert outputs(read_answer(first))["y"] == [2.0]
    assert {value: outputs(read_answer(one))["y"] for value, one in staying.items()} == {
        value: [2.0 * value] for value in staying
    }


def cancelled(host: RunningHost) -> int:
    """How many requests of the gated model were given up because their clients were gone."""
    counted = read_counters(host.run_dir.counters, pytest.fail)
    return sum(one.values["cancelled"] for one in counted if (one.kind, one.group) == (FRONT.kind, "gated.v1"))


def following(gate: Gate) -> tuple[float, ...]:
    visit = gate.entered()
    visit.let_through()
    return visit.values


def test_load_makes_batches(repository: Path, make_host: Callable[..., RunningHost]) -> None:
    package = write_gated(repository, max_batch_rows=8, max_queue=1)
    running = make_host(repository)
    running.start()
    gate = Gate(package)
    # While one runs the others gather, 15 more in the worker's window of two batches and one in the queue.
    _, first, waiting, refused = filled(running, gate, range(2, 19))
    assert read_answer(refused).error == (503, "QUEUE_FULL")
    gate.remove()
    assert outputs(read_answer(first))["y"] == [2.0]
    answers = [outputs(read_answer(connection)) for connection in waiting]
    doubled = sorted(answer["y"][0] for answer in answers)
    assert len(doubled) == len(set(doubled)) == 16
    assert set(doubled) < {2.0 * value for value in range(2, 19)}
    assert max(answer["batch"][0] for answer in answers) == 8


# -- models that misbehave --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        (13, "MODEL_FAILED", "its log has the details"),
        (14, "INVALID_OUTPUT", "output 'y': expected shape [1, 1], the model returned [0, 1]"),
        (15, "INVALID_OUTPUT", "output 'y': expected FP64, the model returned object"),
        (17, "MODEL_FAILED", "its log has the details"),
        (18, "MODEL_FAILED", "its log has the details"),
        (19, "MODEL_FAILED", "its log has the details"),
    ],
)
@pytest.mark.parametrize("path", [FRAGILE, "/v1/models/fragile:predict"])
def test_a_model_that_fails(host: RunningHost, value: int, code: str, says: str, path: str) -> None:
    pids = host.worker_pids("fragile")
    request_id = f"failing-{value}-{path[2]}"
    body = fragile(value) if path == FRAGILE else {"instances": [[value]]}
    answer = host.call("POST", path, body, {"X-Request-Id": request_id})
    assert answer.error == (500, code)
    assert says in answer.document["error"]
    assert "secret" not in answer.document["error"]
    # supervisord writes the log, a moment later.
    until(lambda: f"request {request_id}" in host.log("fragile.v1:0"), "the failure stands in the log")
    assert outputs(host.infer("fragile", fragile(value + 100)))["y"] == [2.0 * (value + 100)]
    assert host.worker_pids("fragile") == pids


def test_the_reason_stands_in_the_log(host: RunningHost) -> None:
    host.infer("fragile", fragile(13))
    until(lambda: "ValueError: the secret of thirteen" in host.log("fragile.v1:0"), "the reason stands in the log")


def test_nan_in_an_answer(host: RunningHost) -> None:
    answer = host.infer("fragile", fragile(16))
    assert answer.error == (422, "INVALID_INPUT")
    assert "output 'y': the model answered NaN or Infinity" in answer.document["error"]
    binary = host.infer("fragile", fragile(16) | {"parameters": {"binary_data_output": True}})
    assert binary.status == 200
    packed = host.infer("fragile", fragile(16), Accept="application/msgpack")
    assert packed.status == 200


@pytest.mark.parametrize("text", ["surrogate", "object", "number", "null"])
@pytest.mark.parametrize("accept", ["application/json", "application/msgpack"])
@pytest.mark.parametrize("binary", [False, True])
def test_texts_that_are_none(host: RunningHost, text: str, accept: str, binary: bool) -> None:
    pids = host.worker_pids("texts")
    request = tensors(text=("BYTES", [1, 1], [text])) | {"parameters": {"binary_data_output": binary}}
    answer = host.infer("texts", request, Accept=accept)
    assert answer.error == (500, "INVALID_OUTPUT")
    assert "output 'upper'" in answer.document["error"]
    assert host.infer("texts", tensors(text=("BYTES", [1, 1], ["a"]))).status == 200
    assert host.worker_pids("texts") == pids


@pytest.mark.parametrize("guilty", [13, 14, 15, 16, 17])
def test_neighbours_of_a_failing_request_are_answered(
    repository: Path, make_host: Callable[..., RunningHost], guilty: int
) -> None:
    write_fragile(repository)
    running = make_host(repository)
    running.start()
    values = [*range(20, 40), guilty, *range(40, 60)]

    def one(value: int) -> Answer:
        return running.infer("fragile", fragile(value))

    with ThreadPoolExecutor(len(values)) as pool:
        answers = list(pool.map(one, values))
    for value, answer in zip(values, answers, strict=True):
        if value == guilty:
            assert answer.status == (422 if guilty == 16 else 500)
        else:
            assert outputs(answer)["y"] == [2.0 * value]
