"""Lines of the log: what is in them, in both formats."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from typing import Any

import pytest

from host.protocol.logs import IDS_MAX, TEXT_MAX_CHARS, JsonLines, Lines, TextLines, about, utc_time

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = "0af7651916cd43dd8448eb211c80319c"
WORKER = {"model": "churn", "version": "3", "slot": 0}


def record(message: str, *arguments: object, extra: dict[str, Any] | None = None, exc_info: Any = None) -> Any:
    return logging.getLogger("some.library").makeRecord(
        "some.library", logging.WARNING, "file.py", 1, message, arguments, exc_info, extra=extra
    )


def failure() -> Any:
    try:
        raise ValueError("of no\nvalue")
    except ValueError:
        return sys.exc_info()


def written(lines: Lines, *arguments: Any, **named: Any) -> dict[str, Any]:
    line = lines.format(record(*arguments, **named))
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_of_json() -> None:
    line = written(JsonLines("churn.v3:0", WORKER), "x is %d", 5, extra=about("abc", PARENT))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert list(line.items()) == [
        ("level", "warning"),
        ("process", "churn.v3:0"),
        ("logger", "some.library"),
        ("message", "x is 5"),
        ("model", "churn"),
        ("version", "3"),
        ("slot", 0),
        ("request_id", "abc"),
        ("trace_id", TRACE),
    ]


def test_a_traceback_is_one_field_of_json() -> None:
    line = written(JsonLines("p", {}), "a\nb", exc_info=failure())
    assert line["message"] == "a\nb"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: of no\nvalue")
    assert "exception" not in written(JsonLines("p", {}), "x", exc_info=(None, None, None))


def test_what_a_library_adds_is_kept_if_json_can_say_it() -> None:
    extra = {"a": 1, "b": 1.5, "c": float("nan"), "d": None, "e": object, "f": [1, "x", {}], "g": True, "h": "\ud800"}
    line = written(JsonLines("p", {}), "x", extra=extra)
    assert {name: line[name] for name in extra} == {
        **{"a": 1, "b": 1.5, "c": "nan", "d": None, "e": "<class 'object'>", "f": [1, "x", "{}"], "g": True},
        "h": "\ud800",
    }


@pytest.mark.parametrize("size", [0, 1, TEXT_MAX_CHARS, TEXT_MAX_CHARS + 1, 10 * TEXT_MAX_CHARS])
def test_a_message_has_a_limit(size: int) -> None:
    for line in (
        written(JsonLines("p", {}), "%s", "x" * size)["message"],
        TextLines("p", {}).format(record("x" * size)),
    ):
        assert len(line) <= TEXT_MAX_CHARS + 100
        assert ("left out" in line) == (size > TEXT_MAX_CHARS)


def test_a_batch_names_its_requests() -> None:
    lines = JsonLines("p", {})
    lines.context = lambda: {"request_ids": [str(number) for number in range(2 * IDS_MAX)]}
    assert written(lines, "x")["request_ids"] == [str(number) for number in range(IDS_MAX)]
    text = TextLines("p", {})
    text.context = lambda: {"request_ids": ["a", "b"]}
    assert text.format(record("x")).endswith(" WARNING p requests a, b: x")


def test_a_line_of_text() -> None:
    text = TextLines("churn.v3:0", WORKER)
    line = text.format(record("x is %d", 5))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING churn\.v3:0 x is 5", line)
    assert text.format(record("x", extra=about("abc"))).endswith(" WARNING churn.v3:0 request abc: x")
    assert text.format(record("x", extra=about("abc", PARENT))).endswith(f" request abc (trace {TRACE}): x")
    assert text.format(record("x", exc_info=failure())).splitlines()[1] == "Traceback (most recent call last):"


def test_times() -> None:
    assert utc_time(0) == "1970-01-01T00:00:00.000Z"
    assert utc_time(1.9996) == "1970-01-01T00:00:01.999Z"
    assert utc_time(1785369600.361) == "2026-07-30T00:00:00.361Z"


SCRIPT = """
import threading, warnings, logging, sys
from host.protocol import logs
lines = logs.configure("p", "info", sys.argv[1], slot=0, model=None)
logging.getLogger("x").debug("too little")
logging.getLogger("x").info("said")
print("printed")
warnings.warn("warned")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise ValueError("the end")
"""


def test_everything_that_a_process_says_goes_the_same_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "json"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (1, "printed\n")
    said, warned, thread, end = map(json.loads, done.stderr.splitlines())
    assert (said["message"], said["slot"], "model" in said) == ("said", 0, False)
    assert (warned["logger"], "UserWarning: warned" in warned["message"]) == ("py.warnings", True)
    for line, error in ((thread, "ZeroDivisionError: division by zero"), (end, "ValueError: the end")):
        assert (line["level"], line["message"]) == ("critical", "uncaught exception")
        assert line["exception"].endswith(error)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "text"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr.splitlines()[0].endswith(" INFO p said")
    assert done.stderr.endswith("ValueError: the end\n")
