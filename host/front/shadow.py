"""Copies of requests for shadow versions: sent when there is room, compared when there is time; nobody waits for them.

A copy is made when the original's client has its answer, so it takes nothing from the request that it is a copy of.
From the others it takes what the front and the workers' CPUs have to spare: where the front is busy or anything is
queued, copies are the first to go. Whatever becomes of a copy is counted, and changes nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from host.config.deployment import DeployedModel
from host.config.run_dir import group_name
from host.dispatch import PoolKey
from host.front.comparison import Answered, first_difference
from host.front.gateway import Call, Client, Gateway
from host.front.outcomes import (
    COPIES_DIFFERENT,
    COPIES_ENDED,
    COPIES_EQUAL,
    COPIES_FAILED,
    COPIES_SENT,
    COPIES_SHED,
    COPIES_SKIPPED,
    FAILED_MIN_STATUS,
)
from host.front.pressure import Pressure
from host.protocol.counters import Words
from host.protocol.errors import RequestError
from host.protocol.logs import about
from host.protocol.messages import ResponseHead

logger = logging.getLogger("modelhost.front")

BUSY_MAX: Final = 0.5
"""A front that runs, or waits for a CPU, more of its time than this makes no copies: they cost as much as originals."""

COPY_DELAY_S: Final = 0.002
"""From an original's answer to its copy. Right behind the answer the front would keep a CPU from whoever reads it: at
the median that costs 13 to 40 us, against 21 to 55 (docs/adr/0024)."""

OUTSTANDING_MAX: Final = 64
"""Copies of one model in one front that wait or are not answered: what a shadow that hangs can hold."""

HELD_MAX_BYTES: Final = 32 << 20
"""Bodies of all copies of one front: their originals are answered, and count no more."""

COPIES_PER_TURN: Final = 8
"""So many are submitted in one turn of the loop, some 5 us each; what clients sent comes in between."""

COMPARED_MAX_BYTES: Final = 64 * 1024
"""Larger answers are not compared. One of this size takes about a millisecond."""

COMPARISONS_PER_S: Final = 200
COMPARED_BYTES_PER_S: Final = 1 << 20
"""Both answers of all comparisons of one front together: a few percent of its time at most."""

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


class Pace:
    """What may be compared in each second."""

    def __init__(self) -> None:
        self._second = -1
        self._comparisons = 0
        self._size_bytes = 0

    def allows(self, size_bytes: int, now_ns: int) -> bool:
        """Whether one more comparison of so many bytes may be made now; if so, it counts."""
        second = now_ns // _NS_PER_S
        if second != self._second:
            self._second, self._comparisons, self._size_bytes = second, 0, 0
        if self._comparisons >= COMPARISONS_PER_S or self._size_bytes + size_bytes > COMPARED_BYTES_PER_S:
            return False
        self._comparisons += 1
        self._size_bytes += size_bytes
        return True


class Shadows:
    """All copies of one front."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, gateway: Gateway, busy: Callable[[int], float] | None = None
    ) -> None:
        """`busy`: the share of its time that the front has no more to give, now (nanoseconds, monotonic)."""
        self._loop = loop
        self._gateway = gateway
        self._busy = busy or Pressure().share
        self._waiting: deque[Copy] = deque()
        self._outstanding: Counter[PoolKey] = Counter()
        """Waiting or submitted."""
        self._held_bytes = 0
        self._pace = Pace()
        self._logged_ns = -_NS_PER_S

    @property
    def outstanding(self) -> int:
        """Copies that have not ended."""
        return self._outstanding.total()

    def follow(self, call: Call, shadow: DeployedModel) -> None:
        """Have a call that is about to be submitted copied when it is answered; its client becomes another one."""
        outcomes = self._gateway.outcomes.get(shadow.key)
        if outcomes is None:
            return
        if self._busy(call.received_ns) > BUSY_MAX:
            outcomes.words[COPIES_SHED] += 1
            return
        call.client = _Original(self, call.client, shadow, outcomes.words)

    def original_answered(self, call: Call, answer: Answered, shadow: DeployedModel, counts: Words) -> None:
        """The client has its answer: copy the call in a moment, if there is room."""
        key = shadow.key
        if (
            self._outstanding[key] >= OUTSTANDING_MAX
            or self._held_bytes + call.size_bytes > HELD_MAX_BYTES
            or not self._is_free(call.pool, key)
        ):
            counts[COPIES_SHED] += 1
            return
        self._outstanding[key] += 1
        self._held_bytes += call.size_bytes
        if not self._waiting:
            self._loop.call_later(COPY_DELAY_S, self._submit_some)
        self._waiting.append(Copy(self, call, answer, shadow, counts))

    def _is_free(self, original: PoolKey, shadow: PoolKey) -> bool:
        """Whether neither has anything queued."""
        gateway = self._gateway
        return gateway.runs_now(shadow) and not gateway.queued(shadow) and not gateway.queued(original)

    def _submit_some(self) -> None:
        for _ in range(min(COPIES_PER_TURN, len(self._waiting))):
            self._submit(self._waiting.popleft())
        if self._waiting:
            self._loop.call_soon(self._submit_some)

    def _submit(self, copy: Copy) -> None:
        original, shadow = copy.original, copy.shadow
        if not self._is_free(original.pool, shadow.key):
            copy.refused(None, None)
            return
        now_ns = time.monotonic_ns()
        call = Call(
            client=copy,
            pool=shadow.key,
            deadline_ns=now_ns + shadow.limits.timeout_ms * _NS_PER_MS,
            size_bytes=original.size_bytes,
            operation=original.operation,
            body=original.body,
            received_ns=now_ns,
            encoding=original.encoding,
            accept=original.accept,
            json_bytes=original.json_bytes,
            request_id=original.request_id,
            traceparent=original.traceparent,
        )
        self._gateway.submit(call, now_ns)
        if not copy.ended:
            copy.sent = True
            copy.counts[COPIES_SENT] += 1

    def ended(self, copy: Copy) -> None:
        """A copy takes no room any more."""
        copy.ended = True
        self._outstanding[copy.shadow.key] -= 1
        self._held_bytes -= copy.original.size_bytes

    def compare_soon(self, copy: Copy, theirs: Answered) -> None:
        """Both have answered: compare them in a turn to come, if they can be and there is time."""
        ours = copy.answer
        size_bytes = len(ours.body) + len(theirs.body)
        if _NOT_KEPT in (ours.body, theirs.body) or not self._pace.allows(size_bytes, time.monotonic_ns()):
            copy.counts[COPIES_SKIPPED] += 1
        else:
            self._loop.call_soon(self._compare, copy, theirs)

    def _compare(self, copy: Copy, theirs: Answered) -> None:
        difference = first_difference(copy.answer, theirs, copy.shadow.shadow_tolerance)
        if difference is None:
            copy.counts[COPIES_EQUAL] += 1
            return
        copy.counts[COPIES_DIFFERENT] += 1
        now_ns = time.monotonic_ns()
        if now_ns - self._logged_ns >= _NS_PER_S:
            self._logged_ns = now_ns
            shadow, version = group_name(*copy.shadow.key), group_name(*copy.original.pool)
            subject = about(copy.original.request_id, copy.original.traceparent)
            logger.warning("shadow %s answers otherwise than %s: %s", shadow, version, difference, extra=subject)


@dataclass(slots=True, eq=False)
class _Original:
    """The client of a call that will be copied. Implements `Client`."""

    shadows: Shadows
    client: Client
    """From before."""
    shadow: DeployedModel
    counts: Words
    """The shadow's."""

    def answered(self, call: Call, head: ResponseHead, body: bytes) -> None:
        """Pass the answer on. The copy comes after it; what failed is not copied."""
        self.client.answered(call, head, body)
        if head.status < FAILED_MIN_STATUS:
            self.shadows.original_answered(call, _kept(head, body), self.shadow, self.counts)

    def refused(self, call: Call, error: RequestError) -> None:
        """Pass it on."""
        self.client.refused(call, error)


@dataclass(slots=True, eq=False)
class Copy:
    """A copy of a call that was answered: the client that nobody waits behind. Implements `Client`."""

    shadows: Shadows
    original: Call
    answer: Answered
    """The original's."""
    shadow: DeployedModel
    counts: Words
    sent: bool = False
    ended: bool = False

    def answered(self, call: Any, head: ResponseHead, body: bytes) -> None:
        """Compare it, or count its failure."""
        self.shadows.ended(self)
        self.counts[COPIES_ENDED] += 1
        if head.status >= FAILED_MIN_STATUS:
            self.counts[COPIES_FAILED] += 1
        else:
            self.shadows.compare_soon(self, _kept(head, body))

    def refused(self, call: Any, error: Any) -> None:
        """Count it: as shed if no worker was to have it yet, or (with no call) it was not even submitted."""
        self.shadows.ended(self)
        if call is not None:
            self.counts[COPIES_ENDED] += 1
        self.counts[COPIES_FAILED if self.sent else COPIES_SHED] += 1


_NOT_KEPT: Final = b""
"""Stands for a body that is too large; no answer's body is empty."""


def _kept(head: ResponseHead, body: bytes) -> Answered:
    kept = body if len(body) <= COMPARED_MAX_BYTES else _NOT_KEPT
    return Answered(head.status, head.encoding, head.json_bytes, kept)
