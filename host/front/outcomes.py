"""What became of the requests of each model version: counted for every one, from the start of the front."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from host.front.latency import LatencyHistogram
from host.front.state import ShadowState, VersionState

FAILED_MIN_STATUS: Final = 500


@dataclass(slots=True)
class CopyCounts:
    """What became of the copies for a shadow version. What was sent ends as one of the others, once it has ended."""

    sent: int = 0
    shed: int = 0
    """Not sent, or refused before a worker could have it: the front is busy, calls are queued, no worker is ready."""
    failed: int = 0
    """Sent, and no answer, or one with a status of 500 or more."""
    skipped: int = 0
    """Answered and not compared: too many a second, or too large."""
    equal: int = 0
    different: int = 0

    def read(self) -> ShadowState | None:
        """For control; None: nothing was ever to be copied."""
        if not (self.sent or self.shed):
            return None
        return ShadowState(
            sent=self.sent,
            shed=self.shed,
            failed=self.failed,
            skipped=self.skipped,
            compared=self.equal + self.different,
            equal=self.equal,
            different=self.different,
        )


@dataclass(slots=True)
class Outcomes:
    """Of one model version in one front."""

    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    """Of what was answered with a status below 500, from its receipt to the answer."""
    failed: int = 0
    """Answered with another status, or refused with one: how fast that was says nothing of the model."""
    copies: CopyCounts = field(default_factory=CopyCounts)
    """Of this version as a shadow."""

    def answered(self, status: int, duration_ns: int) -> None:
        """Count an answer."""
        if status < FAILED_MIN_STATUS:
            self.latency.add(duration_ns)
        else:
            self.failed += 1

    def read(self) -> VersionState:
        """For control."""
        latency = self.latency.read()
        return VersionState(answered=latency.count, failed=self.failed, latency=latency, shadow=self.copies.read())
