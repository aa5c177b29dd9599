"""Answers against golden cases."""

from __future__ import annotations

from typing import Any

import pytest

from host.golden import golden_difference
from host.protocol.package import GoldenCase, GoldenOutput, GoldenResponse, Tolerance

EXACT = Tolerance(relative=0.0)


def case(data: list[Any], datatype: str = "FP64", tolerance: Tolerance = EXACT) -> GoldenCase:
    expected = GoldenOutput(name="y", shape=(len(data),), datatype=datatype, data=data)
    return GoldenCase(name="c", request={}, response=GoldenResponse(outputs=[expected]), tolerance=tolerance)


def answer(data: Any, datatype: str = "FP64", shape: list[int] | None = None) -> dict[str, Any]:
    shape = [len(data)] if shape is None else shape
    return {"outputs": [{"name": "y", "shape": shape, "datatype": datatype, "data": data}]}


def test_the_same_is_no_difference() -> None:
    assert golden_difference(case([1.0, 2.0]), answer([1.0, 2.0])) is None
    assert golden_difference(case(["a"], "BYTES"), answer(["a"], "BYTES")) is None


@pytest.mark.parametrize(("received", "same"), [(10.0, True), (10.5, True), (10.500001, False), (9.5, True)])
def test_numbers_may_be_off_by_the_tolerance(received: float, same: bool) -> None:
    expected = case([10.0], tolerance=Tolerance(absolute=0.5, relative=0.0))
    assert (golden_difference(expected, answer([received])) is None) is same


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (None, "no outputs"),
        ({}, "no outputs"),
        ({"outputs": []}, "output 'y' is missing"),
        ({"outputs": ["y"]}, "output 'y' is missing"),
        (answer([1.0], shape=[1, 1]), "expected shape [1], received [1, 1]"),
        (answer([1.0], "FP32"), "expected datatype FP64, received FP32"),
        (answer([1.0, 2.0], shape=[1]), "expected 1 elements, received 2"),
        (answer("1", shape=[1]), "expected 1 elements, received none"),
        (answer([2.0]), "expected 1.0, received 2.0 (element 0)"),
        (answer([None]), "expected 1.0, received None (element 0)"),
    ],
)
def test_differences_are_named(document: Any, words: str) -> None:
    assert words in (golden_difference(case([1.0]), document) or "")
