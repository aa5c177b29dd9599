"""A worker's counters, and what Triton's statistics extension calls them.

They lie in the words that `host.protocol.counters` lays out (`WORKER`), which outlive the process: all of it is since
the host started. Times in nanoseconds.
"""

from __future__ import annotations

from typing import Final

import msgspec

from host.protocol.counters import BATCH_ROWS, WORKER, Words, private_counters
from host.protocol.latency import LatencyHistogram

_BATCHES: Final = WORKER.at("batches")
_ROWS: Final = WORKER.at("rows")
_BATCHES_OF: Final = WORKER.at(f"batches_of_{BATCH_ROWS[0]}_rows")
_CLASS_MAX: Final = len(BATCH_ROWS) - 1
_SUCCEEDED: Final = WORKER.at("succeeded")
_SUCCEEDED_NS: Final = WORKER.at("succeeded_ns")
_FAILED: Final = WORKER.at("failed")
_FAILED_NS: Final = WORKER.at("failed_ns")
_QUEUE_NS: Final = WORKER.at("queue_ns")
_DECODED: Final = WORKER.at("decoded")
_DECODE_NS: Final = WORKER.at("decode_ns")
_ENCODED: Final = WORKER.at("encoded")
_ENCODE_NS: Final = WORKER.at("encode_ns")
_BUSY_NS: Final = WORKER.at("busy_ns")
_LAST_BATCH_MS: Final = WORKER.at("last_batch_ms")
_INFERENCE_NS: Final = WORKER.at("inference_ns")


class Duration(msgspec.Struct, frozen=True):
    """How often something happened, and how long it took in all."""

    count: int
    ns: int


class InferenceStatistics(msgspec.Struct, frozen=True):
    """The stages of the requests that were answered."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(msgspec.Struct, frozen=True):
    """One entry of `model_stats`, of one worker; the front adds those of a version together."""

    name: str
    version: str
    last_inference: int
    """Milliseconds since the epoch; 0: none since the process started."""
    inference_count: int
    """Rows."""
    execution_count: int
    """Batches."""
    inference_stats: InferenceStatistics
    busy_ns: int
    """Whole turns in which a batch ran: read, run, answered, or failed. The rest of the time it waited."""
    at_ns: int
    """CLOCK_MONOTONIC, when this was asked: of two answers, what lies between is known to the batch."""


class Statistics:
    """Counts what a worker does: once for each batch or read, but for what fails."""

    __slots__ = ("_inference", "_words")

    def __init__(self, words: Words | None = None) -> None:
        """`words`: where it counts; None: where nobody else sees it."""
        self._words = private_counters(WORKER) if words is None else words
        self._inference = LatencyHistogram(self._words, _INFERENCE_NS)

    def took(self, ns: int) -> None:
        """A whole turn with a batch in it."""
        self._words[_BUSY_NS] += ns

    def decoded(self, requests: int, ns: int) -> None:
        """Requests were read."""
        self._words[_DECODED] += requests
        self._words[_DECODE_NS] += ns

    def encoded(self, answers: int, ns: int) -> None:
        """Answers were written."""
        self._words[_ENCODED] += answers
        self._words[_ENCODE_NS] += ns

    def ran(self, requests: int, rows: int, queue_ns: int, inference_ns: int, now_ms: int) -> None:
        """A batch ran. `queue_ns`: of all its requests together, from the front's receipt to its start."""
        words = self._words
        words[_BATCHES] += 1
        words[_ROWS] += rows
        words[_BATCHES_OF + min((rows - 1).bit_length(), _CLASS_MAX)] += 1
        words[_SUCCEEDED] += requests
        words[_SUCCEEDED_NS] += queue_ns + inference_ns * requests
        words[_QUEUE_NS] += queue_ns
        words[_LAST_BATCH_MS] = now_ms
        self._inference.add(inference_ns)

    def failed(self, queue_ns: int) -> None:
        """A request gets an error."""
        self._words[_FAILED] += 1
        self._words[_FAILED_NS] += queue_ns

    def read(self, name: str, version: str, at_ns: int) -> ModelStatistics:
        """What has been counted until `at_ns`."""
        words = self._words
        batches, succeeded = words[_BATCHES], words[_SUCCEEDED]
        return ModelStatistics(
            name=name,
            version=version,
            last_inference=words[_LAST_BATCH_MS],
            inference_count=words[_ROWS],
            execution_count=batches,
            inference_stats=InferenceStatistics(
                success=Duration(succeeded, words[_SUCCEEDED_NS]),
                fail=Duration(words[_FAILED], words[_FAILED_NS]),
                queue=Duration(succeeded, words[_QUEUE_NS]),
                compute_input=Duration(words[_DECODED], words[_DECODE_NS]),
                compute_infer=Duration(batches, words[_INFERENCE_NS]),
                compute_output=Duration(words[_ENCODED], words[_ENCODE_NS]),
            ),
            busy_ns=words[_BUSY_NS],
            at_ns=at_ns,
        )
