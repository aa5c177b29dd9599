"""What a front counts: every request once, over all its lives; and what it says of it to control."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from host.front.outcomes import (
    COPIES_EQUAL,
    COPIES_FAILED,
    COPIES_SENT,
    COPIES_SHED,
    FELL_BACK,
    Outcomes,
    words_in_files,
)
from host.protocol.counters import FRONT, STATUSES, CounterSet, read_counters
from host.protocol.errors import HTTP_STATUS, MethodNotAllowed, QueueFull, RequestError


def made(kind: type[RequestError]) -> RequestError:
    return MethodNotAllowed("", "GET") if kind is MethodNotAllowed else kind("")


def counted(outcomes: Outcomes) -> dict[str, int]:
    """What is not 0, by name."""
    return {name: outcomes.words[FRONT.at(name)] for name in FRONT.values if outcomes.words[FRONT.at(name)]}


@pytest.mark.parametrize("kind", HTTP_STATUS)
def test_every_error_has_its_count(kind: type[RequestError]) -> None:
    outcomes = Outcomes()
    outcomes.refused(made(kind))
    assert counted(outcomes) == {f"refused_{kind.code}": 1}
    assert outcomes.read().failed == (HTTP_STATUS[kind] >= 500)


@pytest.mark.parametrize("kind", HTTP_STATUS)
def test_what_is_refused_before_it_is_read_is_no_failure_of_the_version(kind: type[RequestError]) -> None:
    outcomes = Outcomes()
    outcomes.refused_unread(made(kind))
    assert outcomes.words[FRONT.at(f"refused_{kind.code}")] == 1
    assert outcomes.words[FRONT.at("unread")] == (HTTP_STATUS[kind] >= 500)
    assert outcomes.read().failed == 0


@pytest.mark.parametrize("status", [*STATUSES, 100, 299, 599, -1])
def test_every_status_has_its_count_or_one_with_all_that_nobody_expects(status: int) -> None:
    outcomes = Outcomes()
    outcomes.answered(status, 1000)
    assert counted(outcomes) == {f"answered_{status}" if status in STATUSES else "answered_other": 1}
    assert outcomes.read().latency.count == (status < 500)


@pytest.mark.parametrize(
    ("queue_ns", "unsent_ns", "expected_ns"), [(700, 0, 700), (700, 300, 400), (700, 700, 0), (700, 701, 0), (0, 5, 0)]
)
def test_the_wait_at_a_worker_is_what_is_left_of_the_whole(queue_ns: int, unsent_ns: int, expected_ns: int) -> None:
    outcomes = Outcomes()
    outcomes.ran(200, 10**6, queue_ns, unsent_ns)
    assert outcomes.words[FRONT.at("queue_ns")] == queue_ns
    assert outcomes.words[FRONT.at("batch_wait_ns")] == expected_ns


@pytest.mark.parametrize(
    ("queue_ns", "expected_ns"), [(-1, 10**6), (0, 0), (10**6, 10**6), (10**6 + 1, 10**6), (1 << 65, 10**6)]
)
def test_a_worker_that_says_an_impossible_wait_is_not_believed(queue_ns: int, expected_ns: int) -> None:
    outcomes = Outcomes()
    outcomes.ran(200, 10**6, queue_ns, 0)
    assert outcomes.words[FRONT.at("queue_ns")] == expected_ns
    assert sum(outcomes.words[FRONT.at("queue_ns") + 1 : FRONT.at("features_ns")]) == 1


def read(directory: Path) -> CounterSet:
    [found] = read_counters(directory, pytest.fail)
    return found


def test_the_next_front_goes_on_counting_and_tells_control_what_is_its_own(tmp_path: Path) -> None:
    first = Outcomes(words_in_files(tmp_path, 0)("churn.v3"))
    first.ran(200, 5000, 100, 0)
    first.refused(QueueFull(""))
    first.words[FELL_BACK] += 1
    for word in (COPIES_SENT, COPIES_SHED, COPIES_EQUAL):
        first.words[word] += 1
    assert (first.read().answered, first.read().failed) == (1, 2)
    second = Outcomes(words_in_files(tmp_path, 0)("churn.v3"))
    assert (second.read().answered, second.read().failed, second.read().shadow) == (0, 0, None)
    second.ran(200, 7000, 100, 0)
    second.answered(500, 10)
    second.words[COPIES_SENT] += 2
    second.words[COPIES_FAILED] += 2
    state = second.read()
    assert (state.answered, state.failed, state.latency.sum_ns) == (1, 1, 7000)
    assert state.shadow is not None
    assert (state.shadow.sent, state.shadow.shed, state.shadow.failed, state.shadow.equal) == (2, 0, 2, 0)
    found = read(tmp_path)
    assert (found.values["answered_200"], found.values["refused_QUEUE_FULL"], found.values["copies_sent"]) == (2, 1, 3)
    assert found.histograms["total_ns"].sum_ns == 12_000


def test_a_front_that_cannot_have_its_file_says_so_and_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        outcomes = Outcomes(words_in_files(tmp_path / "none", 0)("churn.v3"))
    assert "front~front:0~churn.v3: nothing is counted there: No such file or directory" in caplog.text
    outcomes.answered(200, 1000)
    assert outcomes.read().answered == 1
