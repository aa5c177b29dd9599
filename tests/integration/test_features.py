"""Features through the whole host: front, feature process, SQLite, worker."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from features import PATIENT, USERS, ask_for, counters, user_row, write_echo, write_features, write_plain
from hosts import RunningHost, parsed_answers, tensors, until

from feature_io.client import ask_all
from host.protocol.messages import Operation

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    """Give a host for the tests that only ask."""
    repository = tmp_path_factory.mktemp("repository")
    write_echo(repository)
    write_plain(repository)
    features = write_features(repository, view=PATIENT)
    with RunningHost(repository, settings={"features": features}) as running:
        running.start()
        yield running


def expected(*users: int) -> list[list[float]]:
    return [list(user_row(user)) for user in users]


def outputs(answer: Any) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer.document["outputs"]}


def test_fetched_is_as_given(host: RunningHost) -> None:
    users = [3, 1, 4, 1, 5]
    fetched = outputs(host.infer("echo", ask_for(*users)))
    rows = [value for row in expected(*users) for value in row]
    given = outputs(host.infer("echo", tensors(x=("FP64", [5, 1], [1.0] * 5), stats=("FP64", [5, 2], rows))))
    for name, value in given.items():
        np.testing.assert_array_equal(fetched[name], value)


def test_each_way_of_asking_gives_the_same(host: RunningHost) -> None:
    want = outputs(host.infer("echo", ask_for(7)))["y"]
    packed = msgpack.packb(ask_for(7))
    answer = host.call("POST", "/v2/models/echo/infer", packed, {"Content-Type": "application/msgpack"})
    assert answer.status == 200
    assert msgpack.unpackb(answer.body)["outputs"][0]["data"] == want.ravel().tolist()
    v1 = {"instances": [{"x": 1.0, "user_id": 7}]}
    answer = host.call("POST", "/v1/models/echo:predict", json.dumps(v1).encode(), {"Content-Type": "application/json"})
    assert answer.document["predictions"][0]["y"] == want.ravel().tolist()


def test_status_says_where_from(host: RunningHost) -> None:
    user = USERS - 1
    seen = [
        host.infer("echo", ask_for(user, USERS + 5, parameters={"feature_status": True})).document["parameters"]
        for _ in range(2)
    ]
    assert seen == [
        {"feature_status": {"users.karma": [first, "missing"], "users.age": [first, "missing"]}}
        for first in ("present", "cached")
    ]


def test_a_thousand_requests_at_once_for_one_cold_key_are_one_query(host: RunningHost) -> None:
    user = USERS - 3
    before = counters(host)
    body = json.dumps(ask_for(user)).encode()
    head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    # Pipelined on many connections: all are there before the first is answered.
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_connection(("127.0.0.1", host.port))) for _ in range(50)]
        for sock in sockets:
            sock.settimeout(20)
            sock.sendall((head + body) * 20)
        answers = []
        for sock in sockets:
            data = b""
            while data.count(b"HTTP/1.1 ") < 20 or not data.endswith(b"}]}"):
                data += sock.recv(1 << 16)
            answers += parsed_answers(data)
    assert [answer.status for answer in answers] == [200] * 1000
    after = counters(host)
    assert after["queries"] - before["queries"] == 1


def test_a_batch_reads_each_key_once(host: RunningHost) -> None:
    users = [USERS - 30 + number % 10 for number in range(64)]
    before = counters(host)
    got = outputs(host.infer("echo", ask_for(*users)))
    np.testing.assert_array_equal(got["stats_back"], expected(*users))
    after = counters(host)
    assert after["queries"] - before["queries"] == 10


def test_what_was_forgotten_is_read_again(host: RunningHost) -> None:
    user = USERS - 50
    asking = ask_for(user, parameters={"feature_status": True})

    def source() -> str:
        return str(host.infer("echo", asking).document["parameters"]["feature_status"]["users.karma"][0])

    seen = [source(), source()]
    body = json.dumps({"view": "users", "path": [str(user)]}).encode()
    [forgotten] = ask_all(host.run_dir.root, Operation.INVALIDATE_FEATURES, body)
    assert forgotten == {"forgotten": {"users": 1}}
    assert [*seen, source()] == ["present", "cached", "present"]


def test_without_features_status_is_empty(host: RunningHost) -> None:
    request = tensors(x=("FP64", [1, 1], [1.0])) | {"parameters": {"feature_status": True}}
    assert host.infer("plain", request).document["parameters"] == {"feature_status": {}}


@pytest.mark.parametrize(
    ("request_", "status", "code", "words"),
    [
        (tensors(x=("FP64", [1, 1], [1.0])), 422, "MISSING_FEATURE", "'user_id', by which it is fetched"),
        (ask_for(1) | {"inputs": []}, 422, "MISSING_FEATURE", "'stats' is missing"),
        (
            tensors(x=("FP64", [1, 1], [1.0]), user_id=("BYTES", [1], ["1"])),
            422,
            "INVALID_INPUT",
            "expected datatype INT64, received BYTES",
        ),
        (
            tensors(x=("FP64", [2, 1], [1.0, 2.0]), user_id=("INT64", [1], [1])),
            422,
            "INVALID_INPUT",
            "expected 2 rows",
        ),
        (tensors(x=("FP64", [1, 1], ["a"]), user_id=("INT64", [1], [1])), 422, "INVALID_INPUT", "'x'"),
        (tensors(z=("FP64", [1, 1], [1.0]), user_id=("INT64", [1], [1])), 422, "INVALID_INPUT", "unknown input 'z'"),
        ({"inputs": 5}, 400, "MALFORMED", "inputs"),
    ],
)
def test_what_is_wrong_is_said(host: RunningHost, request_: dict[str, Any], status: int, code: str, words: str) -> None:
    answer = host.infer("echo", request_)
    assert answer.error == (status, code), answer.body
    assert words in answer.document["error"]
    assert outputs(host.infer("echo", ask_for(1)))["y"].shape == (1, 1)


def test_metadata_says_what_is_fetched_and_by_what(host: RunningHost) -> None:
    document = host.call("GET", "/v2/models/echo").document
    assert document["inputs"][1]["parameters"] == {
        "features": ["users.karma", "users.age"],
        "keys": [{"name": "user_id", "datatype": "INT64"}],
    }


def test_features_for_other_clients(host: RunningHost) -> None:
    one = host.call("GET", "/v1/features/users/12")
    assert one.status == 200
    assert one.document["features"] == dict(zip(("karma", "age"), user_row(12), strict=True))
    assert host.call("GET", "/v1/features").document["views"][0]["name"] == "users"
    body = json.dumps({"views": [{"view": "users", "keys": [12, USERS + 1], "columns": ["age"]}]}).encode()
    batch = host.call("POST", "/v1/features:batch", body, {"Content-Type": "application/json"})
    assert batch.document == {
        "views": [
            {
                "view": "users",
                "rows": [
                    {"key": {"user_id": 12}, "status": "cached", "features": {"age": user_row(12)[1]}},
                    {"key": {"user_id": USERS + 1}, "status": "missing", "features": None},
                ],
            }
        ]
    }


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/features/users/999999", 404, "UNKNOWN_ENTITY"),
        ("/v1/features/nobody/1", 404, "UNKNOWN_VIEW"),
        ("/v1/features/users/abc", 422, "INVALID_INPUT"),
        ("/v1/features/users/1/2", 422, "INVALID_INPUT"),
        ("/v1/features/users", 404, "NOT_FOUND"),
        ("/v1/features/users/" + "9" * 400, 422, "INVALID_INPUT"),
    ],
)
def test_wrong_paths_of_features(host: RunningHost, path: str, status: int, code: str) -> None:
    assert host.call("GET", path).error == (status, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "MALFORMED"),
        (b"[]", 400, "MALFORMED"),
        (b'{"views": []}', 422, "INVALID_INPUT"),
        (b'{"views": [{"view": "nobody", "keys": [1]}]}', 404, "UNKNOWN_VIEW"),
        (b'{"views": [{"view": "users", "keys": [[1, 2]]}]}', 422, "INVALID_INPUT"),
        (b'{"views": [{"view": "users", "keys": [1], "columns": ["nothing"]}]}', 422, "INVALID_INPUT"),
        (b'{"views": [{"view": "users", "keys": [1]}], "more": 1}', 400, "MALFORMED"),
    ],
)
def test_wrong_batches_of_features(host: RunningHost, body: bytes, status: int, code: str) -> None:
    answer = host.call("POST", "/v1/features:batch", body, {"Content-Type": "application/json"})
    assert answer.error == (status, code), answer.body


def test_status_shows_the_feature_process(host: RunningHost) -> None:
    slot = host.slot("features:0")
    assert (slot.state, slot.ready) == ("RUNNING", True)
    assert host.status().ready


def test_a_view_that_does_not_fit_its_table_keeps_its_model_from_being_ready(
    repository: Path, make_host: Callable[..., RunningHost]
) -> None:
    write_echo(repository)
    write_plain(repository)
    features = write_features(repository, view=PATIENT)
    features.write_text(features.read_text().replace('name = "karma"', 'name = "charm"'))
    for model in repository.glob("echo/*/model.toml"):
        model.write_text(model.read_text().replace("users.karma", "users.charm"))
    host = make_host(repository, settings={"features": features})
    host.start()
    # Front and control each ask the feature process; until it has told them, they say that it is not ready.
    until(lambda: "charm" in host.infer("echo", ask_for(1)).document["error"], "the front knows")
    assert host.infer("echo", ask_for(1)).error == (503, "MODEL_NOT_READY")
    assert host.call("GET", "/v2/models/echo/ready").status == 503
    assert host.call("GET", "/v2/models/plain/ready").status == 200
    assert host.infer("plain", tensors(x=("FP64", [1, 1], [1.0]))).status == 200

    def reason() -> str:
        [echo] = [model for model in host.status().models if model.name == "echo"]
        return echo.reason

    until(lambda: "charm" in reason(), "control knows")
    shown = host.command("status")
    assert shown.returncode == 1
    assert f"echo version 1: {reason()}" in shown.stdout


def test_a_killed_feature_process_is_back_and_hurts_nobody_else(
    repository: Path, make_host: Callable[..., RunningHost]
) -> None:
    write_echo(repository)
    write_plain(repository)
    host = make_host(repository, settings={"features": write_features(repository, view=PATIENT)})
    host.start()
    host.infer("echo", ask_for(1))
    host.kill(host.slot("features:0").pid)
    answer = host.infer("echo", ask_for(1))
    assert answer.status == 200 or (answer.status, "retry-after" in answer.headers) == (503, True)
    assert host.infer("plain", tensors(x=("FP64", [1, 1], [1.0]))).status == 200
    until(lambda: host.infer("echo", ask_for(1)).status == 200, "features are back", 30)


def test_a_client_cannot_say_where_features_came_from(host: RunningHost) -> None:
    request = tensors(x=("FP64", [1, 1], [1.0])) | {"parameters": {"feature_status": {"users.karma": ["present"]}}}
    assert host.infer("plain", request).error == (400, "MALFORMED")


def test_a_key_that_is_not_utf8_is_no_path(host: RunningHost) -> None:
    assert host.call("GET", "/v1/features/users/%FF").error == (404, "NOT_FOUND")


def test_a_small_request_cannot_ask_for_an_answer_without_end(host: RunningHost) -> None:
    assert host.infer("echo", ask_for(*[1] * 257)).error == (422, "INVALID_INPUT")
    assert outputs(host.infer("echo", ask_for(*[1] * 256)))["y"].shape == (256, 1)
