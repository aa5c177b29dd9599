"""Lines of logs are read back: times, levels, requests, in both formats and mixed."""

from __future__ import annotations

import json
import logging

import pytest

from host.log_lines import LineReader, LogLine, as_json, merge_lines, readable
from host.protocol.logs import JsonLines, TextLines, about

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def read(*lines: str, program: str = "a") -> list[LogLine]:
    return list(LineReader(program).read(lines))


def test_lines_of_one_message_stay_together() -> None:
    first = read("2026-01-01 00:00:02,000 x", "Traceback", "  more")
    second = read("2026-01-01 00:00:03,000 y", "2026-01-01 00:00:01,000 late", program="b")
    merged = [(line.program, line.text.split()[-1]) for line in merge_lines([first, second], 10)]
    assert merged == [("b", "late"), ("a", "x"), ("a", "Traceback"), ("a", "more"), ("b", "y")]
    assert [len(merge_lines([first, second], count)) for count in (0, 1, 5, 6)] == [0, 1, 5, 5]


@pytest.mark.parametrize("request_id", ["abc", "a:b", "a,b", "x" * 128])
def test_both_formats_say_the_same(request_id: str) -> None:
    record = logging.makeLogRecord({"levelname": "WARNING", "msg": "it: is", **about(request_id, PARENT)})
    [text] = read(TextLines("a", {}).format(record))
    [line] = read(JsonLines("a", {}).format(record))
    assert (text.at_s, text.level, text.request_ids) == (line.at_s, line.level, line.request_ids)
    assert text.request_ids == (request_id,)
    assert readable(line) == readable(text) == text.text


def test_what_else_json_says_stands_behind() -> None:
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "x", "left_out": 5})
    assert readable(*read(JsonLines("a", {"model": "m"}).format(record))).endswith(" INFO a x left_out=5")


def test_levels_of_supervisord() -> None:
    words = ("DEBG", "INFO", "WARN", "ERROR"[:4], "CRIT", "TRAC")
    lines = read(*(f"2026-01-01 00:00:00,000 {word} x" for word in words))
    assert [line.level for line in lines] == ["debug", "info", "warning", "error", "critical", "debug"]


def test_what_a_model_prints_belongs_to_no_message() -> None:
    first, second = read(
        '{"time":"2026-01-01T00:00:01.000Z","level":"error","message":"x","request_id":"r"}', "printed"
    )
    assert (second.at_s, second.level, second.request_ids) == (first.at_s, "info", ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[1]",
        '{"time": 5}',
        '{"time": "soon"}',
        '{"a": 1}',
        "{" * 5000,
        '{"time":"2026-01-01T00:00:01Z","request_ids":{},"level":{}}',
    ],
)
def test_anything_can_be_read(text: str) -> None:
    [line] = read(text)
    assert line.text == text
    readable(line)
    json.loads(as_json(line))
