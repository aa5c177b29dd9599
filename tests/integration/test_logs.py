"""What is in the logs of a real host, what is not, and how it is shown."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from features import PATIENT, ask_for, write_echo, write_features
from hosts import RunningHost, tensors, until
from packages import UNHURRIED, write_package

pytestmark = pytest.mark.integration

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
MARKER = "hush-it-is-a-secret"

CHATTY = '''
import logging
import warnings

class Model:
    """Doubles and talks; 13 raises."""

    def load(self, package):
        logging.getLogger("my.library").warning("loading")

    def predict(self, inputs):
        x = inputs["x"]
        if x.any():
            logging.getLogger("my.library").warning("running\\nwith %d rows", len(x), extra={"rows": len(x)})
            print("printed by the model", flush=True)
            warnings.warn("warned by the model")
        if 13 in x:
            raise ValueError("thirteen")
        return {"y": x * 2.0}
'''


def write_chatty(repository: Any) -> None:
    write_package(
        repository,
        "chatty",
        CHATTY,
        inputs=[("x", "INT64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1])],
        processes=2,
        limits=UNHURRIED,
    )


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    """Give a host that logs everything, in JSON."""
    repository = tmp_path_factory.mktemp("repository")
    write_chatty(repository)
    write_echo(repository)
    settings = {
        "log-format": "json",
        "access-log": 1,
        "log-level": "debug",
        "features": write_features(repository, view=PATIENT),
    }
    with RunningHost(repository, settings=settings) as running:
        running.start()
        yield running


def one(value: int) -> dict[str, Any]:
    return tensors(x=("INT64", [1, 1], [value]))


def events(host: RunningHost, program: str) -> list[dict[str, Any]]:
    """What a process logged as JSON; lines that are printed are left out."""
    return [json.loads(line) for line in host.log(program).splitlines() if line.startswith("{")]


def about(host: RunningHost, program: str, request_id: str, count: int) -> list[dict[str, Any]]:
    """Wait for what a process logs about a request."""

    def found() -> list[dict[str, Any]]:
        lines = [line for line in events(host, program) if line.get("request_id") == request_id]
        return lines if len(lines) >= count else []

    return until(found, f"{count} lines of {program} about {request_id}")


def test_every_process_writes_json(host: RunningHost) -> None:
    for program in ("front:0", "control", "features:0", "chatty.v1:0", "echo.v1:0"):
        lines = events(host, program)
        assert lines, program
        assert {line["process"] for line in lines} == {program}
        assert all(list(line)[:4] == ["time", "level", "process", "logger"] for line in lines)
    worker = events(host, "chatty.v1:1")
    assert all((line["model"], line["version"], line["slot"]) == ("chatty", "1", 1) for line in worker)
    assert "loading" in [line["message"] for line in worker]


def test_what_a_model_logs_carries_the_request(host: RunningHost) -> None:
    traceparent = f"00-{TRACE_ID}-b7ad6b7169203331-00"
    answer = host.infer("chatty", one(13), X_Request_Id="r13", traceparent=traceparent)
    assert answer.error == (500, "MODEL_FAILED")
    [access] = about(host, "front:0", "r13", 1)
    program = f"chatty.v1:{access['slot']}"
    running, warned, failed = about(host, program, "r13", 3)  # a warning is shown once: nobody has asked before
    expected = {"model": "chatty", "version": "1", "slot": access["slot"], "trace_id": TRACE_ID}
    for line in (running, warned, failed, access):
        assert {name: line[name] for name in expected} == expected
    assert (running["logger"], running["message"], running["rows"]) == ("my.library", "running\nwith 1 rows", 1)
    assert "warned by the model" in warned["message"]
    assert failed["message"] == "the model failed"
    assert failed["exception"].startswith("Traceback") and failed["exception"].endswith("ValueError: thirteen")
    assert (access["status"], access["code"], access["route"]) == (500, "MODEL_FAILED", "/v2/models/{model}/infer")
    assert host.log(program).count("\nprinted by the model\n") >= 1


def test_nothing_that_the_client_sent_is_in_any_log(host: RunningHost) -> None:
    before = len(events(host, "front:0"))
    headers = {"Authorization": f"Bearer {MARKER}", "Cookie": MARKER, "X-Anything": MARKER}
    text = tensors(x=("INT64", [1, 1], [MARKER]))
    calls: list[tuple[str, str, Any]] = [
        ("POST", f"/v2/models/chatty/infer?token={MARKER}", {**one(1), "id": MARKER}),
        ("POST", f"/v2/models/chatty/infer?token={MARKER}", text),
        ("POST", f"/v2/models/chatty/infer?token={MARKER}", MARKER.encode()),
        ("POST", f"/v1/models/chatty:predict?token={MARKER}", MARKER.encode()),
        ("POST", f"/v2/models/echo/infer?token={MARKER}", {**ask_for(1), "id": MARKER}),
        ("POST", f"/v2/models/{MARKER}/infer", one(1)),
        ("POST", f"/{MARKER}", one(1)),
        ("GET", f"/v1/features/users/{MARKER}", None),
        ("GET", f"/v1/features/{MARKER}/1", None),
        ("POST", f"/v1/features:batch?{MARKER}", {"view": MARKER, "keys": [[MARKER]]}),
        ("GET", f"/v2/health/ready?token={MARKER}", None),
    ]
    host.call(MARKER.upper(), f"/v2/health/ready?token={MARKER}", None, {"Connection": "close"})  # no HTTP: no line
    answered = 0
    for connection_header in ("close", "keep-alive"):
        for method, path, body in calls:
            host.call(method, path, body, {**headers, "Connection": connection_header})
            answered += 1
    until(lambda: len(events(host, "front:0")) >= before + answered, "all are logged")
    said = "".join(path.read_text() for path in host.run_dir.logs.iterdir())
    assert MARKER not in said
    # An unknown model's name is the client's word as well; it is in the answer, and nowhere else.
    assert MARKER.upper() not in said
    routes = {line["route"] for line in events(host, "front:0") if "route" in line}
    assert {"", "/v2/models/{model}/infer", "/v1/features/{view}{key}", "/v2/health/ready"} <= routes


def test_both_lanes_say_the_same(host: RunningHost) -> None:
    lines = []
    for number, connection_header in enumerate(("keep-alive", "close")):
        answer = host.infer("chatty", one(2), Connection=connection_header, X_Request_Id=f"lane-{number}")
        assert answer.status == 200
        [line] = about(host, "front:0", f"lane-{number}", 1)
        assert line.pop("out_bytes") == len(answer.body)
        lines.append({name: line[name] for name in line if name not in ("time", "request_id", "duration_s", "slot")})
        assert 0 < line["duration_s"] < 10
    assert lines[0] == lines[1]
    assert lines[0]["in_bytes"] == len(json.dumps(one(2)))


def test_logs_shows_them(host: RunningHost) -> None:
    host.infer("chatty", one(13), X_Request_Id="shown")
    [access] = about(host, "front:0", "shown", 1)
    slot = str(access["slot"])
    about(host, f"chatty.v1:{slot}", "shown", 2)
    done = host.command("logs", "chatty", "--slot", slot, "--request-id", "shown", "--level", "error")
    first, *traceback = done.stdout.splitlines()
    assert first.endswith(f"ERROR chatty.v1:{slot} request shown: the model failed")
    assert (traceback[0], traceback[-1]) == ("Traceback (most recent call last):", "ValueError: thirteen")
    everything = host.command("logs", "--request-id", "shown", "--json").stdout.splitlines()
    processes = [json.loads(line)["process"] for line in everything]
    assert (processes[0], processes[-1]) == (f"chatty.v1:{slot}", "front:0")
    wrong = host.command("logs", "chaty")
    assert (wrong.returncode, 'did you mean "chatty"' in wrong.stderr) == (1, True)


def test_a_flood_of_failures_is_bounded_and_counted(host: RunningHost, make_host: Callable[..., RunningHost]) -> None:
    quiet = make_host(host.repository, models=["chatty"], settings={"access-log": 0, "log-format": "json"})
    quiet.start()
    connection = http.client.HTTPConnection("127.0.0.1", quiet.port, timeout=15)
    count, start = 500, time.monotonic()
    for value in [1] + [13] * count + [1]:
        connection.request("POST", "/v2/models/chatty/infer", json.dumps(one(value)))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == (500 if value == 13 else 200)
    seconds = time.monotonic() - start
    connection.close()

    def told() -> tuple[int, int]:
        lines = [line for line in events(quiet, "front:0") if line["logger"] == "modelhost.access"]
        left_out = sum(line.get("left_out", 0) for line in lines)
        return sum("status" in line for line in lines), left_out

    until(lambda: sum(told()) == count, "every failure is logged or counted")
    assert told()[0] <= 100 * (int(seconds) + 2)
