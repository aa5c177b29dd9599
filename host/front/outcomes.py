"""What became of the requests of each model version: every one is counted, in a file (`protocol.counters`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from host.front.state import ShadowState, VersionState
from host.protocol.counters import FRONT, STATUSES, Words, counters_or_private, private_counters
from host.protocol.errors import HTTP_STATUS, RequestError, http_status
from host.protocol.latency import Latencies, LatencyHistogram, since

logger = logging.getLogger("modelhost.front")

FAILED_MIN_STATUS: Final = 500

CANCELLED: Final = FRONT.at("cancelled")
FELL_BACK: Final = FRONT.at("fell_back")
_UNREAD: Final = FRONT.at("unread")
COPIES_SENT: Final = FRONT.at("copies_sent")
"""What was sent ends as failed, skipped, equal or different, once it has ended."""
COPIES_SHED: Final = FRONT.at("copies_shed")
"""Not sent, or refused before a worker could have it: the front is busy, calls are queued, no worker is ready."""
COPIES_FAILED: Final = FRONT.at("copies_failed")
"""Sent, and no answer, or one with a status of 500 or more."""
COPIES_SKIPPED: Final = FRONT.at("copies_skipped")
"""Answered and not compared: too many a second, or too large."""
COPIES_EQUAL: Final = FRONT.at("copies_equal")
COPIES_DIFFERENT: Final = FRONT.at("copies_different")
COPIES_ENDED: Final = FRONT.at("copies_ended")

_DISPATCHED: Final = FRONT.at("late_answers")
_ANSWERED: Final = {status: FRONT.at(f"answered_{status}") for status in STATUSES}
_ANSWERED_OTHER: Final = FRONT.at("answered_other")
_REFUSED: Final = {error.code: FRONT.at(f"refused_{error.code}") for error in HTTP_STATUS}
_FAILED: Final = (
    *(word for status, word in _ANSWERED.items() if status >= FAILED_MIN_STATUS),
    *{_REFUSED[error.code] for error, status in HTTP_STATUS.items() if status >= FAILED_MIN_STATUS},
    FELL_BACK,
)

WordsOf = Callable[[str], Words]
"""Where a group's requests are counted, by its name; of none's, the name is empty."""


class CopyCounts(msgspec.Struct, frozen=True):
    """What became of the copies for a shadow version."""

    sent: int = 0
    shed: int = 0
    failed: int = 0
    skipped: int = 0
    equal: int = 0
    different: int = 0


class _Before(msgspec.Struct, frozen=True):
    """What was counted before this front began."""

    failed: int
    total: Latencies
    copies: CopyCounts


class Outcomes:
    """Of one model version in one front: the words, and what is said to control of them."""

    __slots__ = ("_batch_wait", "_before", "_queue", "_total", "features", "words")

    def __init__(self, words: Words | None = None) -> None:
        """`words`: where it counts, by the layout `FRONT`; None: where nobody else sees it."""
        self.words = private_counters(FRONT) if words is None else words
        self._total = LatencyHistogram(self.words, FRONT.at("total_ns"))
        self._queue = LatencyHistogram(self.words, FRONT.at("queue_ns"))
        self._batch_wait = LatencyHistogram(self.words, FRONT.at("batch_wait_ns"))
        self.features = LatencyHistogram(self.words, FRONT.at("features_ns"))
        """How long the feature service took for each call."""
        self._before = _Before(self._failed, self._total.read(), self.copies)

    @property
    def dispatched(self) -> Words:
        """The words of what the dispatch counts."""
        return self.words[_DISPATCHED:]

    def ran(self, status: int, duration_ns: int, queue_ns: int, unsent_ns: int) -> None:
        """Count a worker's answer to a request that was in a batch.

        `queue_ns`: how long after its receipt the batch began, as the worker says; `unsent_ns`: how long after it the
        worker was given the request.
        """
        self.answered(status, duration_ns)
        # It is somebody else's word: no wait is shorter than none or longer than the whole.
        waited_ns = queue_ns if 0 <= queue_ns <= duration_ns else duration_ns
        self._queue.add(waited_ns)
        self._batch_wait.add(waited_ns - unsent_ns if waited_ns > unsent_ns else 0)

    def answered(self, status: int, duration_ns: int) -> None:
        """Count an answer, by its status. How fast a failure was says nothing of the model."""
        self.words[_ANSWERED.get(status, _ANSWERED_OTHER)] += 1
        if status < FAILED_MIN_STATUS:
            self._total.add(duration_ns)

    def refused(self, error: RequestError) -> None:
        """Count a request that the front itself answers with an error."""
        self.words[_REFUSED[error.code]] += 1

    def refused_unread(self, error: RequestError) -> None:
        """Count a request that is refused before it is anybody's: the version has not failed."""
        self.refused(error)
        if http_status(error) >= FAILED_MIN_STATUS:
            self.words[_UNREAD] += 1

    @property
    def copies(self) -> CopyCounts:
        """Of this version as a shadow."""
        words = self.words
        return CopyCounts(
            sent=words[COPIES_SENT],
            shed=words[COPIES_SHED],
            failed=words[COPIES_FAILED],
            skipped=words[COPIES_SKIPPED],
            equal=words[COPIES_EQUAL],
            different=words[COPIES_DIFFERENT],
        )

    @property
    def _failed(self) -> int:
        return sum(self.words[word] for word in _FAILED) - self.words[_UNREAD]

    def read(self) -> VersionState:
        """For control: what was counted since this front began."""
        before = self._before
        latency = since(before.total, self._total.read())
        return VersionState(
            answered=latency.count,
            failed=self._failed - before.failed,
            latency=latency,
            shadow=_shadow_state(before.copies, self.copies),
        )


def _shadow_state(before: CopyCounts, now: CopyCounts) -> ShadowState | None:
    """None: nothing was ever to be copied."""
    if (now.sent, now.shed) == (before.sent, before.shed):
        return None
    equal, different = now.equal - before.equal, now.different - before.different
    return ShadowState(
        sent=now.sent - before.sent,
        shed=now.shed - before.shed,
        failed=now.failed - before.failed,
        skipped=now.skipped - before.skipped,
        compared=equal + different,
        equal=equal,
        different=different,
    )


def private_words(_: str) -> Words:
    """Words that nobody else sees."""
    return private_counters(FRONT)


def words_in_files(directory: Path, index: int) -> WordsOf:
    """The files of one front."""
    return lambda group: counters_or_private(directory, FRONT, f"front:{index}", group, logger.error)
