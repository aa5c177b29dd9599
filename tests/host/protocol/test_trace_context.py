"""What is a traceparent and a tracestate, and what is none."""

from __future__ import annotations

import pytest

from host.protocol.trace_context import TraceParent, read_traceparent, read_tracestate, trace_id_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_a_traceparent(flags: str, sampled: bool) -> None:
    value = f"00-{TRACE}-{SPAN}-{flags}"
    assert read_traceparent(value) == TraceParent(TRACE, SPAN, sampled)
    assert trace_id_of(value) == TRACE


def test_a_later_version_may_have_more() -> None:
    assert read_traceparent(f"01-{TRACE}-{SPAN}-01-what-comes") == TraceParent(TRACE, SPAN, True)


def test_it_is_written_as_it_was_read() -> None:
    for value in (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-01"):
        assert str(read_traceparent(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00-ab",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_what_is_none(value: str) -> None:
    assert read_traceparent(value) is None
    assert trace_id_of(value) == ""


def test_a_tracestate() -> None:
    assert read_tracestate("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE") == "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    assert read_tracestate(" a=1 , , tenant@vendor=x y\t") == "a=1,tenant@vendor=x y"
    assert read_tracestate("") == ""


@pytest.mark.parametrize(("members", "taken"), [(1, True), (32, True), (33, False)])
def test_a_tracestate_has_a_limit_of_members(members: int, taken: bool) -> None:
    value = ",".join(f"k{number}=v" for number in range(members))
    assert read_tracestate(value) == (value if taken else "")


@pytest.mark.parametrize(("size", "taken"), [(511, True), (512, True), (513, False)])
def test_a_tracestate_has_a_limit_of_characters(size: int, taken: bool) -> None:
    value = f"a={'x' * 200},b={'y' * 200},c={'z' * (size - 408)}"
    assert len(value) == size
    assert read_tracestate(value) == (value if taken else "")


@pytest.mark.parametrize("value", ["a", "=1", "A=1", "a=", "a=1,a=2", "a=1;b=\x7f", "a=b=c", "1=x", "\u00e4=1"])
def test_what_is_no_tracestate(value: str) -> None:
    assert read_tracestate(value) == ""
