"""A worker's counters, as Triton's statistics extension writes them. Times in nanoseconds, since it started."""

from __future__ import annotations

import msgspec


class Duration(msgspec.Struct):
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count so many more, which took `ns` together."""
        self.count += count
        self.ns += ns


class InferenceStatistics(msgspec.Struct):
    """The stages of the requests that this worker answered."""

    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)


class ModelStatistics(msgspec.Struct):
    """One entry of `model_stats`, of one worker; the front adds those of a version together."""

    name: str
    version: str
    last_inference: int = 0
    """Milliseconds since the epoch."""
    inference_count: int = 0
    """Rows."""
    execution_count: int = 0
    """Batches."""
    inference_stats: InferenceStatistics = msgspec.field(default_factory=InferenceStatistics)
    busy_ns: int = 0
    """Whole turns in which a batch ran: read, run, answered, or failed. The rest of the time it waited."""
    at_ns: int = 0
    """CLOCK_MONOTONIC, when this was asked: of two answers, what lies between is known to the batch."""
