"""Whether an answer is the one that a golden case records. Pure; the worker compares arrays by the same rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from host.protocol.package import GoldenCase, GoldenOutput, Tolerance


def golden_difference(case: GoldenCase, document: Any) -> str | None:
    """How an answer's document (Open Inference Protocol, JSON) differs from the recorded one, or None."""
    outputs = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(outputs, list):
        return "the answer has no outputs"
    received = {output["name"]: output for output in outputs if isinstance(output, dict) and "name" in output}
    for expected in case.response.outputs:
        if expected.name not in received:
            return f"output '{expected.name}' is missing"
        problem = _difference(expected, received[expected.name], case.tolerance)
        if problem:
            return f"output '{expected.name}': {problem}"
    return None


def _difference(expected: GoldenOutput, received: Mapping[str, Any], tolerance: Tolerance) -> str | None:
    for field, want in (("shape", list(expected.shape)), ("datatype", expected.datatype)):
        if received.get(field) != want:
            return f"expected {field} {want}, received {received.get(field)}"
    values = received.get("data")
    if not isinstance(values, list) or len(expected.data) != len(values):
        count = len(values) if isinstance(values, list) else "none"
        return f"expected {len(expected.data)} elements, received {count}"
    for position, (want, got) in enumerate(zip(expected.data, values, strict=True)):
        same = want == got
        if not same and isinstance(want, int | float) and isinstance(got, int | float):
            same = abs(got - want) <= tolerance.absolute + tolerance.relative * abs(want)
        if not same:
            return f"expected {want!r}, received {got!r} (element {position})"
    return None
