"""Having supervisord notice a death."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host.control import wake
from host.control.wake import QUESTIONS_MAX, is_unnoticed, wake_supervisor
from host.supervisor import AsyncSupervisorClient, ProcessState, SupervisorUnreachable, process_info

LOST_PID = 41


def fields(state: ProcessState, pid: int) -> dict[str, Any]:
    return {
        "group": "churn.v3",
        "name": "0",
        "state": int(state),
        "pid": pid,
        "start": 1,
        "stop": 0,
        "exitstatus": 0,
        "spawnerr": "",
    }


class Scripted(AsyncSupervisorClient):
    """Answers as told, and the last answer again and again."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        super().__init__(Path("unused"))
        self._answers: Iterator[dict[str, Any] | Exception] = iter(answers)
        self._last: dict[str, Any] | Exception = SupervisorUnreachable("no script")
        self.asked: list[tuple[Any, ...]] = []

    async def call(self, method: str, *parameters: Any) -> Any:
        self.asked.append((method, *parameters))
        self._last = next(self._answers, self._last)
        if isinstance(self._last, Exception):
            raise self._last
        return self._last


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake, "PAUSE_S", 0)


@pytest.mark.parametrize(
    ("state", "pid", "unnoticed"),
    [
        (ProcessState.RUNNING, LOST_PID, True),
        (ProcessState.STARTING, LOST_PID, True),
        (ProcessState.EXITED, 0, True),
        (ProcessState.STARTING, 42, False),
        (ProcessState.RUNNING, 42, False),
        (ProcessState.BACKOFF, 0, False),
        (ProcessState.FATAL, 0, False),
        (ProcessState.STOPPED, 0, False),
        (ProcessState.STOPPING, LOST_PID, False),
    ],
)
def test_what_is_still_to_be_noticed(state: ProcessState, pid: int, unnoticed: bool) -> None:
    assert is_unnoticed(process_info(fields(state, pid)), LOST_PID) is unnoticed


async def test_asked_until_the_next_process_runs() -> None:
    client = Scripted(
        fields(ProcessState.RUNNING, LOST_PID), fields(ProcessState.EXITED, 0), fields(ProcessState.STARTING, 42)
    )
    await wake_supervisor(client, "churn.v3:0", LOST_PID)
    assert client.asked == [("getProcessInfo", "churn.v3:0")] * 3


async def test_asked_so_often_and_no_more() -> None:
    client = Scripted(fields(ProcessState.RUNNING, LOST_PID))
    await wake_supervisor(client, "churn.v3:0", LOST_PID)
    assert len(client.asked) == QUESTIONS_MAX


async def test_supervisord_that_does_not_answer_is_left_alone() -> None:
    client = Scripted(SupervisorUnreachable("gone"))
    await wake_supervisor(client, "churn.v3:0", LOST_PID)
    assert len(client.asked) == 1
