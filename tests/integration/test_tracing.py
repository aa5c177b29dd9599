"""Traces of real requests, as a collector gets them."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import Collector, attributes
from features import PATIENT, ask_for, write_echo, write_features, write_plain
from hosts import CHECKOUT, RunningHost, read_answer, tensors, until
from packages import QUIET_MAX_S, Gate, write_gated

pytestmark = pytest.mark.integration

PARENT_ID = "b7ad6b7169203331"
ERROR = 2
"""A span's status."""


def traceparent(number: int, flags: str = "01") -> tuple[str, dict[str, str]]:
    """The id of a trace, and a request's header that belongs to it."""
    trace_id = f"{number:032x}"
    return trace_id, {"traceparent": f"00-{trace_id}-{PARENT_ID}-{flags}"}


def one(value: float) -> dict[str, Any]:
    return tensors(x=("FP64", [1, 1], [value]))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Give one collector for all tests."""
    with Collector() as listening:
        yield listening


@pytest.fixture(scope="module")
def host(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    """Give a host that traces what its callers want traced, and nothing else."""
    repository = tmp_path_factory.mktemp("repository")
    write_echo(repository)
    write_plain(repository)
    write_gated(repository, max_batch_rows=8, max_queue=64)
    settings = {"features": write_features(repository, view=PATIENT), "otlp-endpoint": collector.url, "trace-sample": 0}
    with RunningHost(repository, settings=settings, processes={"gated": 2}) as running:
        running.start()
        yield running


@pytest.fixture
def gate(host: RunningHost) -> Iterator[Gate]:
    """Set up the gate of the host's gated model."""
    standing = Gate(host.repository / "gated" / "1")
    yield standing
    standing.remove()


@pytest.mark.parametrize(("first", "lane"), [(1, "plain"), (2, "other")])
def test_a_request_with_features_is_one_trace(host: RunningHost, collector: Collector, first: int, lane: str) -> None:
    # Both clocks are read one after the other, by two processes: where one stood still between, it is tried again.
    for number in range(first, first + 8, 2):
        trace_id, headers = traceparent(number)
        more = {"tracestate": "vendor=1, other=2", "X-Request-Id": f"r{number}"} | {
            "Connection": "keep-alive" if lane == "plain" else "close"
        }
        before_ns = time.time_ns()
        answer = host.call("POST", "/v2/models/echo/infer?q=1", ask_for(3), headers | more)
        after_ns = time.time_ns()
        assert answer.status == 200
        spans = collector.trace(trace_id, 4)
        server = spans.pop("POST /v2/models/{model}/infer")
        assert (server.parent_span_id.hex(), server.kind, server.status.code) == (PARENT_ID, server.SPAN_KIND_SERVER, 0)
        assert attributes(server) == {
            **{"http.request.method": "POST", "http.route": "/v2/models/{model}/infer", "url.scheme": "http"},
            **{"http.response.status_code": 200, "modelhost.model": "echo", "modelhost.version": "1"},
            "modelhost.request_id": f"r{number}",
        }
        assert [(event.name, attributes(event)) for event in server.events] == [
            ("sent", {"modelhost.process": "echo.v1:0"})
        ]
        # In the order of time, each in its parent, and all by the clock of the day.
        features, queue, inference = (spans[name] for name in ("features", "queue", "inference"))
        assert {span.parent_span_id for span in spans.values()} == {server.span_id}
        moments = [before_ns, server.start_time_unix_nano, features.start_time_unix_nano, features.end_time_unix_nano]
        moments += [queue.start_time_unix_nano, queue.end_time_unix_nano, inference.start_time_unix_nano]
        moments += [inference.end_time_unix_nano, server.end_time_unix_nano, after_ns + 50_000_000]
        if moments == sorted(moments):
            break
    assert moments == sorted(moments)
    assert attributes(features) == {"modelhost.process": "features:0"}
    of_batch = attributes(inference)
    assert of_batch.pop("modelhost.batch.id").startswith("echo.v1:0/")
    assert of_batch == {"modelhost.process": "echo.v1:0", "modelhost.rows": 1, "modelhost.batch.rows": 1}
    assert not inference.links
    assert {span.trace_state for span in (server, *spans.values())} == {"vendor=1,other=2"}
    assert collector.resources[-1]["service.name"] == "modelhost"
    assert collector.resources[-1]["service.instance.id"].endswith("/front:0")


def test_requests_of_one_batch_are_linked(host: RunningHost, collector: Collector, gate: Gate) -> None:
    for start in range(100, 200, 10):
        # Both workers stand at the gate; behind each, two requests wait for the next batch.
        begun = time.monotonic()
        first = [host.send("POST", "/v2/models/gated/infer", one(number)) for number in (1.0, 2.0)]
        standing = [gate.entered(), gate.entered()]
        ids, waiting = [], []
        for number in range(start, start + 4):
            trace_id, headers = traceparent(number)
            ids.append(trace_id)
            waiting.append(host.send("POST", "/v2/models/gated/infer", one(number), headers))
        health = host.call("GET", "/v2/models/gated/ready")  # behind them, on the same loop
        took_s = time.monotonic() - begun
        assert health.status == 200
        until(lambda: host.call("GET", "/v2/models/stats").status == 200, "the loop has seen them")
        if took_s < QUIET_MAX_S:
            break
        gate.let_all_through([*first, *waiting])
    for visit in standing:
        visit.let_through()
    together = [gate.entered(), gate.entered()]
    for visit in together:
        visit.let_through()
    answers = [read_answer(connection) for connection in (*first, *waiting)]
    assert [answer.status for answer in answers] == [200] * 6
    inferences = [collector.trace(trace_id, 3)["inference"] for trace_id in ids]
    rows = [len(visit.values) for visit in together]
    assert sorted(attributes(span)["modelhost.batch.rows"] for span in inferences) == sorted(
        count for count in rows for _ in range(count)
    )
    for span in inferences:
        batch_rows, batch_id = attributes(span)["modelhost.batch.rows"], attributes(span)["modelhost.batch.id"]
        companions = [other for other in inferences if attributes(other)["modelhost.batch.id"] == batch_id]
        assert len(companions) == batch_rows
        if batch_rows == 1:
            assert not span.links
            continue
        [link] = span.links
        [batch] = [other for other in collector.spans if other.span_id == link.span_id]
        assert (batch.name, batch.trace_id, batch.parent_span_id) == ("batch gated", link.trace_id, b"")
        assert {linked.span_id for linked in batch.links} == {companion.span_id for companion in companions}
        assert batch.start_time_unix_nano == span.start_time_unix_nano


def test_a_retry_is_seen(host: RunningHost, collector: Collector, gate: Gate) -> None:
    trace_id, headers = traceparent(20)
    connection = host.send("POST", "/v2/models/gated/infer", one(5.0), headers)
    pid, joined = gate.entered().pid, host.joined()
    [sent_to] = [slot for slot, one in host.worker_pids("gated").items() if one == pid]
    host.kill(pid)
    gate.entered().let_through()
    assert read_answer(connection).status == 200
    spans = collector.trace(trace_id, 3)
    events = spans["POST /v2/models/{model}/infer"].events
    assert [event.name for event in events] == ["sent", "worker lost", "sent again"]
    processes = [attributes(event)["modelhost.process"] for event in events]
    assert processes == [f"gated.v1:{sent_to}", f"gated.v1:{sent_to}", f"gated.v1:{1 - sent_to}"]
    assert attributes(spans["inference"])["modelhost.process"] == f"gated.v1:{1 - sent_to}"
    until(lambda: host.joined() > joined, "it is back")


def test_errors_and_those_who_want_no_trace(host: RunningHost, collector: Collector) -> None:
    refused, headers = traceparent(30)
    assert host.call("POST", "/v2/models/plain/infer", b"no JSON", headers).status == 400
    missing, headers = traceparent(31)
    body = tensors(x=("FP64", [1, 1], [1.0]))
    assert host.call("POST", "/v2/models/echo/infer", body, headers).status == 422
    spans = collector.trace(refused, 2)
    assert attributes(spans["POST /v2/models/{model}/infer"])["http.response.status_code"] == 400
    spans = collector.trace(missing, 2)
    assert set(spans) == {"POST /v2/models/{model}/infer", "features"}
    unwanted, headers = traceparent(40, "00")
    with_flag = host.call("POST", "/v2/models/plain/infer", one(1.0), headers)
    plain = host.call("POST", "/v2/models/plain/infer", one(1.0))
    wanted, headers = traceparent(41)
    traced = host.call("POST", "/v2/models/plain/infer", one(1.0), headers)
    assert set(traced.headers) == set(plain.headers) == set(with_flag.headers)
    collector.trace(wanted, 3)
    assert not [span for span in collector.spans if span.trace_id.hex() == unwanted]
    assert {span.trace_id.hex() for span in collector.spans if span.name.startswith("POST ")} <= {
        f"{number:032x}" for number in range(200)
    }


def test_a_collector_that_is_down_costs_a_line(repository: Path, make_host: Callable[..., RunningHost]) -> None:
    write_plain(repository)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        host = make_host(repository, settings={"otlp-endpoint": url, "trace-sample": 1})
        host.start()
        for _ in range(20):
            assert host.infer("plain", one(1.0)).status == 200
        until(lambda: "did not get to" in host.log("front:0"), "it is told")
        for _ in range(20):
            assert host.infer("plain", one(1.0)).status == 200
        lines = [line for line in host.log("front:0").splitlines() if " WARNING " in line or " ERROR " in line]
    assert len(lines) == 1, lines
    assert re.search(rf" WARNING front:0 \d+ traces did not get to {url}: .*[Rr]efused", lines[0])


def test_without_the_extra_up_says_so(repository: Path, tmp_path: Path, make_host: Callable[..., RunningHost]) -> None:
    write_plain(repository)
    hiding = tmp_path / "hiding"
    (hiding / "opentelemetry").mkdir(parents=True)
    (hiding / "opentelemetry" / "__init__.py").write_text("")
    paths = f"PYTHONPATH={hiding}:{CHECKOUT}"
    host = make_host(repository, prefix=("env", paths))
    done = host.command("up", f"--repository={repository}", "--otlp-endpoint=http://127.0.0.1:4318")
    assert done.returncode == 2
    assert "otlp_endpoint: traces need pip install 'modelhost[otlp]'" in done.stderr
