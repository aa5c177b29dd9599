"""The service: batches split back exactly, and only the guilty request fails."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.protocol.counters import BATCH_ROWS, WORKER, open_counters, private_counters, read_counters
from host.protocol.errors import ConfigError, InvalidInput
from host.protocol.messages import Encoding, Operation, RequestHead, ResponseHead
from host.protocol.package import GoldenCase, parse_package
from host.protocol.tensors import Array
from models.golden import run_golden_cases, warm_up
from models.pace import FEW_BATCHES
from models.service import Call, Service
from models.statistics import Statistics

PACKAGE = {
    "runtime": "python",
    "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
    "outputs": [{"name": "sum", "datatype": "FP64", "shape": [-1, 1]}],
    "limits": {"max_batch_rows": 8},
}


class Sums:
    """Adds the columns; refuses rows that hold 666; remembers the batches it saw."""

    version = "sums 1"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, inputs: Sequence[Array]) -> Sequence[Any]:
        (x,) = inputs
        self.batches.append(len(x))
        if (x == 666).any():
            raise ValueError("secret detail")
        return [x.sum(axis=1, keepdims=True)]


def service(runtime: Any = None, **changes: Any) -> Service:
    return Service(parse_package("sums", "1", {**PACKAGE, **changes}), runtime or Sums())


def call(made: Service, rows: list[list[float]], sequence: int = 1, deadline_ns: int = 10**12, **head: Any) -> Call:
    body = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [len(rows), 2], "datatype": "FP64", "data": [x for row in rows for x in row]}
            ]
        }
    ).encode()
    heading = RequestHead(
        sequence=sequence, operation=Operation.INFER, received_ns=0, deadline_ns=deadline_ns, request_id="r1", **head
    )
    return made.decode(heading, body)


def answers(given: list[ResponseHead]) -> list[tuple[ResponseHead, dict[str, Any]]]:
    return [(head, json.loads(head.body)) for head in given]


def values(document: dict[str, Any]) -> list[float]:
    data: list[float] = document["outputs"][0]["data"]
    return data


@given(st.lists(st.lists(st.lists(st.integers(-99, 99), min_size=2, max_size=2), min_size=1, max_size=3), min_size=1))
def test_each_request_gets_its_own_rows_back(requests: list[list[list[float]]]) -> None:
    made = service()
    batch = [call(made, rows, sequence) for sequence, rows in enumerate(requests)]
    received = answers(made.run(batch, now_ns=1, backlog_rows=0))
    assert [head.sequence for head, _ in received] == list(range(len(requests)))
    assert [values(document) for _, document in received] == [[sum(row) for row in rows] for rows in requests]


def test_answer_carries_the_timings_of_its_batch() -> None:
    made = service()
    for rows in (1, 2, 3, 4, 5):
        made.run([call(made, [[0, 0]] * rows)], now_ns=1, backlog_rows=0)
        made.took(ns=1000 * rows)
    batch = [call(made, [[1, 2]]), call(made, [[3, 4], [5, 6]])]
    for (head, _), rows in zip(answers(made.run(batch, now_ns=500, backlog_rows=7)), (1, 2), strict=True):
        assert (head.status, head.rows, head.batch_rows, head.queue_ns, head.backlog_rows) == (200, rows, 3, 500, 7)
        assert head.inference_ns > 0
        assert (head.batch_service_ns, head.row_service_ns) == pytest.approx((0, 1000), abs=1)


def test_a_batch_that_was_late_or_failed_says_nothing_of_the_next() -> None:
    made = service()
    for _ in range(FEW_BATCHES):
        made.run([call(made, [[1, 2]])], now_ns=1, backlog_rows=0)
        made.took(ns=1000)
    made.run([call(made, [[1, 2]] * 8, deadline_ns=1)], now_ns=2, backlog_rows=0)
    made.took(ns=1)
    made.run([call(made, [[1, 2]]), call(made, [[666, 0]])], now_ns=1, backlog_rows=0)
    made.took(ns=10**9)
    [(head, _)] = answers(made.run([call(made, [[1, 2]])], now_ns=1, backlog_rows=0))
    assert (head.batch_service_ns, head.row_service_ns) == (1000, 0)


def test_only_the_guilty_request_fails() -> None:
    made = service()
    batch = [call(made, [[1, 2]], 1), call(made, [[666, 0]], 2), call(made, [[3, 4]], 3)]
    received = answers(made.run(batch, now_ns=1, backlog_rows=0))
    assert [head.status for head, _ in received] == [200, 500, 200]
    assert received[1][1] == {"error": "the model failed; its log has the details", "code": "MODEL_FAILED"}
    assert values(received[2][1]) == [7]


def test_models_message_is_in_the_log_with_the_request_id(caplog: pytest.LogCaptureFixture) -> None:
    made = service()
    made.run([call(made, [[666, 0]])], now_ns=1, backlog_rows=0)
    assert vars(caplog.records[0])["request_id"] == "r1"
    assert "secret detail" in caplog.text


def test_late_request_is_not_run() -> None:
    made = service()
    runtime = Sums()
    made = service(runtime)
    batch = [call(made, [[1, 2]], 1, deadline_ns=100), call(made, [[3, 4]], 2, deadline_ns=101)]
    received = answers(made.run(batch, now_ns=100, backlog_rows=0))
    assert [head.status for head, _ in received] == [504, 200]
    assert received[0][1]["code"] == "DEADLINE_EXCEEDED"
    assert runtime.batches == [1]


def test_timeout_parameter_shortens_the_deadline() -> None:
    made = service()
    head = RequestHead(sequence=1, operation=Operation.INFER, received_ns=1000, deadline_ns=10**9)
    body = b'{"parameters":{"timeout":3},"inputs":[{"name":"x","shape":[1,2],"datatype":"FP64","data":[1,2]}]}'
    assert made.decode(head, body).deadline_ns == 4000


@pytest.mark.parametrize("rows", [1, 8])
def test_rows_up_to_the_limit_are_taken(rows: int) -> None:
    made = service()
    assert call(made, [[1, 2]] * rows).rows == rows


@pytest.mark.parametrize("rows", [0, 9])
def test_rows_beyond_the_limit_are_refused(rows: int) -> None:
    with pytest.raises(InvalidInput, match=rf"input 'x': expected 1 to 8 rows .*received {rows}"):
        call(service(), [[1, 2]] * rows)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        [np.zeros((3, 1)), np.zeros((3, 1))],
        [np.zeros((4, 1))],
        [np.zeros(3)],
        [np.array([["a"]] * 3)],
        [None],
        [[[1], [2, 3]]],
    ],
    ids=["none", "two", "rows", "dims", "text", "null", "ragged"],
)
def test_wrong_answers_of_a_model_are_its_failure(answer: list[Any]) -> None:
    class Wrong(Sums):
        def predict(self, inputs: Sequence[Array]) -> Sequence[Any]:
            return answer

    made = service(Wrong())
    ((head, document),) = answers(made.run([call(made, [[1, 2]] * 3)], now_ns=1, backlog_rows=0))
    assert head.status == 500
    assert document["code"] in ("MODEL_FAILED", "INVALID_OUTPUT")


def test_nan_in_an_answer_hits_only_who_asked_for_json() -> None:
    made = service()
    batch = [
        call(made, [[1e308, 1e308]], 1),
        call(made, [[1, 2]], 2),
        call(made, [[1e308, 1e308]], 3, accept=Encoding.MSGPACK),
    ]
    with np.errstate(over="ignore"):
        received = made.run(batch, now_ns=1, backlog_rows=0)
    assert [head.status for head in received] == [422, 200, 200]


def test_request_alone_joins_nobody() -> None:
    made = service()
    assert call(made, [[1, 2]], alone=True).join_key is None
    assert call(made, [[1, 2]]).join_key is not None


def test_inner_shapes_decide_who_may_be_joined() -> None:
    made = service(inputs=[{"name": "x", "datatype": "FP64", "shape": [-1, -1]}])
    head = RequestHead(sequence=1, operation=Operation.INFER, received_ns=0, deadline_ns=1)
    keys = []
    for size in (2, 2, 3):
        tensor = {"name": "x", "shape": [1, size], "datatype": "FP64", "data": [0] * size}
        keys.append(made.decode(head, msgspec.json.encode({"inputs": [tensor]})).join_key)
    assert keys[0] == keys[1] != keys[2]


def test_statistics_count_rows_batches_and_failures() -> None:
    made = service()
    made.run([call(made, [[1, 2]] * 2), call(made, [[1, 2]])], now_ns=10, backlog_rows=0)
    made.run([call(made, [[666, 2]])], now_ns=10, backlog_rows=0)
    counted = made.statistics()
    assert (counted.inference_count, counted.execution_count) == (3, 1)
    assert (counted.inference_stats.success.count, counted.inference_stats.fail.count) == (2, 1)
    assert counted.inference_stats.queue.ns == 20


def test_the_slots_next_process_goes_on_counting(tmp_path: Path) -> None:
    for life in (1, 2):
        words = open_counters(tmp_path, WORKER, "sums.v1:0", "sums.v1")
        made = Service(parse_package("sums", "1", PACKAGE), Sums(), words)
        warm_up(made)
        made.run([call(made, [[1, 2]] * 2), call(made, [[1, 2]])], now_ns=10, backlog_rows=0)
        made.run([call(made, [[666, 2]])], now_ns=-1, backlog_rows=0)
        [found] = read_counters(tmp_path, pytest.fail)
        values = found.values
        assert (values["batches"], values["rows"], values["batches_of_4_rows"]) == (life, 3 * life, life)
        assert (values["succeeded"], values["failed"], values["queue_ns"]) == (2 * life, life, 20 * life)
        assert values["failed_ns"] == 0  # a clock that ran backwards takes nothing away
        assert found.histograms["inference_ns"].count == life
        counted = made.statistics()
        assert (counted.inference_count, counted.execution_count) == (3 * life, life)
        assert counted.inference_stats.compute_infer.ns == found.histograms["inference_ns"].sum_ns


@pytest.mark.parametrize(
    ("rows", "name"), [(1, "1"), (2, "2"), (3, "4"), (65_536, "65536"), (65_537, "65536"), (1 << 40, "65536")]
)
def test_every_batch_is_in_one_class_of_rows(rows: int, name: str) -> None:
    words = private_counters(WORKER)
    Statistics(words).ran(1, rows, 0, 1, 0)
    classes = {size: words[WORKER.at(f"batches_of_{size}_rows")] for size in BATCH_ROWS}
    assert {str(size): count for size, count in classes.items() if count} == {name: 1}


def test_busy_time_counts_batches_that_failed_too() -> None:
    made = service()
    for value, took_ns in ((1, 300), (666, 500)):
        made.run([call(made, [[value, 2]])], now_ns=10, backlog_rows=0)
        made.took(took_ns)
    before_ns = time.monotonic_ns()
    head = RequestHead(sequence=4, operation=Operation.STATISTICS, received_ns=0, deadline_ns=1)
    document = msgspec.json.decode(made.statistics_answer(head).body)
    assert document["busy_ns"] == 800
    assert before_ns <= document["at_ns"] <= time.monotonic_ns()


# -- golden cases and warm-up ---------------------------------------------------------------------------
def golden(data: list[Any], shape: list[int], name: str = "sum", x: list[float] | None = None) -> GoldenCase:
    request = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": x or [1, 2]}]}
    response = {"outputs": [{"name": name, "shape": shape, "datatype": "FP64", "data": data}]}
    return msgspec.convert({"name": "case", "request": request, "response": response}, GoldenCase)


def test_reproduced_golden_case_passes() -> None:
    run_golden_cases(service(), [golden([3.0], [1, 1])])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (golden([3.1], [1, 1]), r"golden case 'case': output 'sum': expected 3.1, received 3.0 \(element 0\)"),
        (golden([3.0], [1]), r"expected shape \[1\], received \[1, 1\]"),
        (golden([3.0, 4.0], [1, 1]), "expected 2 elements, received 1"),
        (golden([3.0], [1, 1], name="total"), "output 'total': the model has no such output"),
        (golden([3.0], [1, 1], x=[1, 2, 3]), "shape .* holds 2 elements, received 3"),
    ],
)
def test_golden_case_that_differs_says_how(case: GoldenCase, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_golden_cases(service(), [case])


def test_every_golden_difference_is_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        run_golden_cases(service(), [golden([1.0], [1, 1]), golden([3.0], [1, 1]), golden([2.0], [1, 1])])
    assert len(caught.value.problems) == 2


def test_warm_up_runs_one_row_and_a_batch() -> None:
    runtime = Sums()
    warm_up(service(runtime))
    assert runtime.batches == [1, 8]


def test_model_that_refuses_zeros_is_served_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Sums):
        def predict(self, inputs: Sequence[Array]) -> Sequence[Any]:
            raise ValueError("zeros are not for me")

    warm_up(service(Picky()))
    assert "zeros are not for me" in caplog.text
