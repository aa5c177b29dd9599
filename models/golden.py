"""Golden cases and warm-up: a worker that does not reproduce its recorded answers never becomes ready."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from host.protocol.documents import encode_document
from host.protocol.errors import GoldenFailure, RequestError
from host.protocol.messages import Encoding, Operation, RequestHead
from host.protocol.package import GoldenCase, GoldenOutput, Tolerance
from host.protocol.tensors import NUMPY_DTYPES, Array
from host.protocol.types import shape_text
from models.service import Service

logger = logging.getLogger("modelhost.worker")


def run_golden_cases(service: Service, cases: Sequence[GoldenCase]) -> None:
    """Run every case through decoding and the model. Raises `GoldenFailure` with every difference found."""
    problems: list[str] = []
    for case in cases:
        start_ns = time.perf_counter_ns()
        try:
            problems.extend(_differences(service, case))
        except RequestError as error:
            problems.append(f"golden case '{case.name}': {error}")
        except Exception as error:
            logger.exception("golden case '%s'", case.name)
            problems.append(f"golden case '{case.name}': the model raised {type(error).__name__}: {error}")
        logger.info("golden case '%s': %.2f ms", case.name, (time.perf_counter_ns() - start_ns) / 1e6)
    if problems:
        raise GoldenFailure(*problems)


def warm_up(service: Service, batch_rows: Sequence[int] = (1, 8)) -> None:
    """Run zeros of the declared shapes, so that the first request does not pay for lazy initialisation.

    A model may refuse zeros; that is no reason not to serve.
    """
    limit = service.package.limits.max_batch_rows if service.package.signature.batchable else 1
    for rows in sorted({min(rows, limit) for rows in batch_rows}):
        try:
            service.predict(
                [[_zeros(spec.datatype, spec.shape, rows) for spec in service.package.signature.inputs]], rows
            )
        except Exception as error:
            logger.warning("warm-up with %d rows of zeros: the model raised %s: %s", rows, type(error).__name__, error)
            return


def _zeros(datatype: str, shape: Sequence[int], rows: int) -> Array:
    sizes = [rows if axis == 0 and dim == -1 else abs(dim) for axis, dim in enumerate(shape)]
    return np.full(sizes, b"" if datatype == "BYTES" else 0, dtype=NUMPY_DTYPES[datatype])


def _differences(service: Service, case: GoldenCase) -> list[str]:
    head = RequestHead(sequence=0, operation=Operation.INFER, received_ns=0, deadline_ns=0)
    call = service.decode(head, encode_document(case.request, Encoding.JSON))
    outputs = service.predict([call.request.inputs], call.rows)
    received = dict(zip((spec.name for spec in service.package.signature.outputs), outputs, strict=True))
    problems: list[str] = []
    for expected in case.response.outputs:
        where = f"golden case '{case.name}': output '{expected.name}'"
        if expected.name not in received:
            problems.append(f"{where}: the model has no such output")
        else:
            problems.extend(_difference(where, expected, received[expected.name], case.tolerance))
    return problems


def _difference(where: str, expected: GoldenOutput, received: Array, tolerance: Tolerance) -> list[str]:
    if received.shape != expected.shape:
        return [f"{where}: expected shape {shape_text(expected.shape)}, received {shape_text(received.shape)}"]
    values = received.ravel().tolist()
    if len(expected.data) != len(values):
        return [f"{where}: expected {len(expected.data)} elements, received {len(values)}"]
    for position, (want, got) in enumerate(zip(expected.data, values, strict=True)):
        if not _equal(want, got, tolerance):
            return [f"{where}: expected {want!r}, received {got!r} (element {position})"]
    return []


def _equal(expected: Any, received: Any, tolerance: Tolerance) -> bool:
    if isinstance(received, bytes):
        return isinstance(expected, str) and received == expected.encode()
    if isinstance(received, float) and isinstance(expected, float | int):
        return abs(received - expected) <= tolerance.absolute + tolerance.relative * abs(expected)
    return bool(received == expected)
