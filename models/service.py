"""One model in one process: requests in, batches through the runtime, answers out. No sockets here."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from typing import Final, Protocol

import msgspec

from host.protocol.counters import Words
from host.protocol.documents import encode_document, error_document
from host.protocol.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    InvalidOutput,
    Malformed,
    ModelFailed,
    RequestError,
    http_status,
)
from host.protocol.frames import ANSWER_MAX_BYTES
from host.protocol.logs import IDS_MAX, about
from host.protocol.messages import NO_JSON_HEADER, Encoding, Operation, RequestHead, ResponseHead
from host.protocol.package import Package
from host.protocol.tensors import Array, Input, checked_output, joined
from host.protocol.v1 import PredictCodec, PredictRequest
from host.protocol.v2 import BatchOutputs, InferCodec, InferRequest
from models.pace import Pace
from models.runtimes import Runtime
from models.statistics import ModelStatistics, Statistics

logger = logging.getLogger("modelhost.worker")

_PREDICT: Final = Operation.PREDICT
"""To look up an enum's attribute takes longer than to compare."""


class Guard(Protocol):
    """Ends the process if the model does not return in time: `watchdog.Watchdog`, or nothing."""

    def start(self, limit_s: float) -> None:
        """The model is called now."""
        ...

    def stop(self) -> None:
        """It returned."""
        ...


class NoGuard:
    """Lets a model take any time."""

    def start(self, limit_s: float) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""


class Call(msgspec.Struct, kw_only=True, eq=False):
    """A request that was understood and waits for its batch."""

    head: RequestHead
    request: InferRequest | PredictRequest
    rows: int
    join_key: Hashable
    deadline_ns: int
    connection: int
    """Where its answer goes; the service only carries it."""


class Service:
    """Decodes, runs and encodes for one model. `now_ns` is CLOCK_MONOTONIC, or a test's clock."""

    def __init__(self, package: Package, runtime: Runtime, words: Words | None = None) -> None:
        """`words`: where it counts (`models.statistics`)."""
        self.package = package
        self._runtime = runtime
        self._signature = package.signature
        self._batchable = package.signature.batchable
        self._max_batch_rows = package.limits.max_batch_rows
        self._infer = InferCodec(package.name, package.version, package.signature)
        self._predict = PredictCodec(package.signature)
        # Requests whose inner dimensions differ cannot be joined; where none is variable, all can.
        self._inner_varies = any(-1 in spec.shape[1:] for spec in package.signature.inputs)
        self._pace = Pace()
        self._ran_rows = 0
        """Of the last batch, if it ran in one call."""
        self._running: Sequence[Call] = ()
        """What the model is called for now."""
        self._batch_service_ns, self._row_service_ns = 0, 0
        self._guard: Guard = NoGuard()
        self._hang_s = float(package.limits.hang_s)
        self._counted = Statistics(words)

    def guard(self, guard: Guard) -> None:
        """Have every call of the model watched from now on: `limits.hang_s` each."""
        self._guard = guard

    def took(self, ns: int) -> None:
        """Count, and learn, what the last batch cost in all: reading, running and answering it.

        A batch that was late as a whole, or failed and was run again in parts, says nothing of the next one.
        """
        self._counted.took(ns)
        if self._ran_rows:
            self._pace.learn(self._ran_rows, ns)
            self._batch_service_ns, self._row_service_ns = self._pace.estimate_ns()

    def decoded(self, calls: int, ns: int) -> None:
        """Count calls that were read, and how long it took."""
        self._counted.decoded(calls, ns)

    # -- in ---------------------------------------------------------------------------------------------
    def decode(self, head: RequestHead, body: bytes, connection: int = 0) -> Call:
        """Read and check one request. Raises `RequestError`."""
        deadline_ns = head.deadline_ns
        request: InferRequest | PredictRequest
        try:
            if head.operation is _PREDICT:
                request = self._predict.decode(body, Encoding.MSGPACK if head.completed else head.encoding)
            else:
                if head.completed:
                    request = self._infer.decode(body, Encoding.MSGPACK)
                else:
                    request = self._infer.decode(body, head.encoding, head.json_bytes)
                if request.feature_status and not head.completed:
                    raise Malformed("parameter feature_status: expected true or false")
                if request.timeout_us is not None:
                    deadline_ns = min(deadline_ns, head.received_ns + request.timeout_us * 1000)
        except RecursionError as error:
            raise Malformed("the body is nested too deep") from error
        rows, join_key = self._joining(request.inputs, head.alone)
        return Call(
            head=head,
            request=request,
            rows=rows,
            join_key=join_key,
            deadline_ns=deadline_ns,
            connection=connection,
        )

    def _joining(self, inputs: Sequence[Input], alone: bool) -> tuple[int, Hashable]:
        if not self._batchable:
            return 1, None
        rows = inputs[0].shape[0]
        if len(inputs) > 1:
            for spec, given in zip(self._signature.inputs, inputs, strict=True):
                if given.shape[0] != rows:
                    raise InvalidInput(
                        f"input '{spec.name}': expected {rows} rows as in '{self._signature.inputs[0].name}', "
                        f"received {given.shape[0]}"
                    )
        if not 1 <= rows <= self._max_batch_rows:
            raise InvalidInput(
                f"input '{self._signature.inputs[0].name}': expected 1 to {self._max_batch_rows} rows "
                f"(the model's max_batch_rows), received {rows}"
            )
        if alone:
            return rows, None
        return rows, tuple(given.shape[1:] for given in inputs) if self._inner_varies else True

    # -- through ----------------------------------------------------------------------------------------
    def run(self, batch: Sequence[Call], now_ns: int, backlog_rows: int) -> list[ResponseHead]:
        """Answer a batch: one answer per call, in order. Never raises for a request or a model."""
        self._ran_rows = 0
        late = [call for call in batch if call.deadline_ns <= now_ns]
        if not late:
            return self._execute(batch, now_ns, backlog_rows)
        live = [call for call in batch if call.deadline_ns > now_ns]
        answers: dict[int, ResponseHead] = {
            id(call): self._refused(call, DeadlineExceeded("deadline passed while waiting in the worker"), now_ns)
            for call in late
        }
        if live:
            answers.update(zip(map(id, live), self._execute(live, now_ns, backlog_rows), strict=True))
        return [answers[id(call)] for call in batch]

    def _execute(self, batch: Sequence[Call], now_ns: int, backlog_rows: int) -> list[ResponseHead]:
        rows = sum([call.rows for call in batch])
        start_ns = time.perf_counter_ns()
        self._running = batch
        try:
            outputs = self.predict([call.request.inputs for call in batch], rows)
        except Exception as error:
            if len(batch) == 1:
                return [self._failed(batch[0], error, now_ns)]
            # Only the guilty request fails: each is run once more by itself.
            logger.warning("a batch of %d requests failed; running each alone", len(batch))
            answers = [self._execute([call], now_ns, backlog_rows)[0] for call in batch]
            self._ran_rows = 0
            return answers
        finally:
            self._running = ()
        self._ran_rows = rows
        inference_ns = time.perf_counter_ns() - start_ns
        queue_ns = now_ns * len(batch) - sum([call.head.received_ns for call in batch])
        self._counted.ran(len(batch), rows, max(0, queue_ns), inference_ns, int(time.time() * 1000))
        answers = []
        answered = BatchOutputs(outputs, self._signature.outputs[0], batchable=self._batchable)
        start = 0
        for call in batch:
            answers.append(self._answer(call, answered, start, now_ns, rows, inference_ns, backlog_rows))
            start += call.rows
        self._counted.encoded(len(batch), time.perf_counter_ns() - start_ns - inference_ns)
        return answers

    def running_requests(self) -> dict[str, object]:
        """For what the model logs: the requests that it is called for."""
        heads = [call.head for call in self._running[:IDS_MAX]]
        if len(heads) == 1:
            return about(heads[0].request_id, heads[0].traceparent)
        return {"request_ids": [head.request_id for head in heads]} if heads else {}

    def predict(self, requests: Sequence[Sequence[Input]], rows: int) -> list[Array]:
        """Run the model on the rows of several requests; return one checked array per output.

        Raises `InvalidOutput`, and whatever the model raises.
        """
        inputs = [joined(parts) for parts in zip(*requests, strict=True)]
        self._guard.start(self._hang_s)
        try:
            outputs = self._runtime.predict(inputs)
        finally:
            self._guard.stop()
        specs = self._signature.outputs
        if len(outputs) != len(specs):
            raise InvalidOutput(f"expected {len(specs)} outputs, the model returned {len(outputs)}")
        expected_rows = rows if self._batchable else None
        return [checked_output(spec, output, expected_rows) for spec, output in zip(specs, outputs, strict=True)]

    # -- out --------------------------------------------------------------------------------------------
    def _answer(
        self,
        call: Call,
        outputs: BatchOutputs,
        start: int,
        now_ns: int,
        batch_rows: int,
        inference_ns: int,
        backlog_rows: int,
    ) -> ResponseHead:
        head, end = call.head, start + call.rows
        try:
            if isinstance(call.request, InferRequest):
                body, json_bytes = self._infer.encode_rows(call.request, outputs, start, end, head.accept)
            else:
                part = outputs.rows(start, end)
                body, json_bytes = self._predict.encode(call.request, part, head.accept), NO_JSON_HEADER
        except RequestError as error:
            return self._refused(call, error, now_ns)
        except Exception:
            logger.exception("the answer cannot be written", extra=about(head.request_id, head.traceparent))
            return self._refused(call, Internal("internal error; the worker's log has the details"), now_ns)
        if len(body) > ANSWER_MAX_BYTES:
            oversize = f"expected an answer of at most {ANSWER_MAX_BYTES} bytes, received {len(body)} bytes"
            return self._refused(call, InvalidOutput(oversize), now_ns)
        return ResponseHead(
            head.sequence,
            200,
            head.accept,
            json_bytes,
            call.rows,
            batch_rows,
            now_ns - head.received_ns,
            inference_ns,
            backlog_rows,
            self._row_service_ns,
            self._batch_service_ns,
            body,
        )

    def _failed(self, call: Call, error: Exception, now_ns: int) -> ResponseHead:
        subject = about(call.head.request_id, call.head.traceparent)
        if isinstance(error, InvalidOutput):
            logger.error("%s", error, extra=subject)
            return self._refused(call, error, now_ns)
        # The caller learns that the model failed; why stands in the log, with the request's id.
        logger.error("the model failed", exc_info=error, extra=subject)
        return self._refused(call, ModelFailed("the model failed; its log has the details"), now_ns)

    def _refused(self, call: Call, error: RequestError, now_ns: int) -> ResponseHead:
        return self.refusal(call.head, error, call.rows, now_ns - call.head.received_ns)

    def refusal(self, head: RequestHead, error: RequestError, rows: int = 0, queue_ns: int = 0) -> ResponseHead:
        """The answer to a request that gets no result, in the encoding that it came in."""
        self._counted.failed(max(0, queue_ns))
        return ResponseHead(
            sequence=head.sequence,
            status=http_status(error),
            encoding=head.encoding,
            rows=rows,
            queue_ns=queue_ns,
            body=error_document(error, head.encoding),
        )

    def statistics(self) -> ModelStatistics:
        """What this worker's slot has counted."""
        return self._counted.read(self.package.name, self.package.version, time.monotonic_ns())

    def statistics_answer(self, head: RequestHead) -> ResponseHead:
        """The answer to `Operation.STATISTICS`: this worker's `ModelStatistics` as JSON."""
        body = encode_document(self.statistics(), Encoding.JSON)
        return ResponseHead(sequence=head.sequence, status=200, body=body)
