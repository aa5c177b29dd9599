"""Copies of requests for shadow versions: sent when there is room, compared when there is time; nobody waits for them.

The original is submitted first; its copy follows in a later turn of the loop. Whatever becomes of the copy is counted
and changes nothing for the original, whose client gets its answer before anything is looked at here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final

from host.config.deployment import DeployedModel
from host.config.run_dir import group_name
from host.dispatch import PoolKey
from host.front.comparison import Answered, first_difference
from host.front.gateway import Call, Client, Gateway
from host.front.outcomes import FAILED_MIN_STATUS, CopyCounts
from host.protocol.errors import RequestError
from host.protocol.messages import ResponseHead

logger = logging.getLogger("modelhost.front")

OUTSTANDING_MAX: Final = 64
"""Copies of one model in one front that are not answered: what a shadow that hangs can hold."""

HELD_MAX_BYTES: Final = 32 << 20
"""Bodies of all copies of one front: their originals may be answered long before, and count no more."""

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

    def __init__(self, loop: asyncio.AbstractEventLoop, gateway: Gateway) -> None:
        self._loop = loop
        self._gateway = gateway
        self._waiting: deque[tuple[Call, _Pair]] = deque()
        """Originals that are or will be submitted in this turn."""
        self._outstanding: Counter[PoolKey] = Counter()
        self._held_bytes = 0
        self._pace = Pace()
        self._logged_ns = -_NS_PER_S

    @property
    def outstanding(self) -> int:
        """Copies that have not ended."""
        return self._outstanding.total()

    def copy(self, call: Call, shadow: DeployedModel) -> None:
        """Have a call that is about to be submitted copied, if there is room; its client becomes another one."""
        key = shadow.key
        outcomes = self._gateway.outcomes.get(key)
        if outcomes is None:
            return
        if (
            self._outstanding[key] >= OUTSTANDING_MAX
            or self._held_bytes + call.size_bytes > HELD_MAX_BYTES
            or not self._is_free(call.pool, key)
        ):
            outcomes.copies.shed += 1
            return
        self._outstanding[key] += 1
        self._held_bytes += call.size_bytes
        pair = _Pair(self, call.client, shadow, call.pool, call.request_id, call.size_bytes, outcomes.copies)
        call.client = pair
        if not self._waiting:
            self._loop.call_soon(self._send)
        self._waiting.append((call, pair))

    def _is_free(self, original: PoolKey, shadow: PoolKey) -> bool:
        """Whether neither has anything queued: under load, copies are the first to go."""
        gateway = self._gateway
        return gateway.not_ready(shadow) is None and not gateway.queued(shadow) and not gateway.queued(original)

    def _send(self) -> None:
        for _ in range(min(COPIES_PER_TURN, len(self._waiting))):
            self._submit(*self._waiting.popleft())
        if self._waiting:
            self._loop.call_soon(self._send)

    def _submit(self, original: Call, pair: _Pair) -> None:
        if pair.refused_original:  # not admitted
            self._end(pair)
            return
        if not self._is_free(pair.original_key, pair.shadow.key):
            pair.counts.shed += 1
            self._end(pair)
            return
        now_ns = time.monotonic_ns()
        copy = Call(
            client=_CopyClient(self, pair),
            pool=pair.shadow.key,
            deadline_ns=now_ns + pair.shadow.limits.timeout_ms * _NS_PER_MS,
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
        self._gateway.submit(copy, now_ns)
        if not pair.ended:
            pair.sent = True
            pair.counts.sent += 1

    # -- answers ------------------------------------------------------------------------------------------
    def copy_refused(self, pair: _Pair) -> None:
        """No worker of the shadow answers it."""
        if pair.sent:
            pair.counts.failed += 1
        else:
            pair.counts.shed += 1
        self._end(pair)

    def copy_answered(self, pair: _Pair, head: ResponseHead, body: bytes) -> None:
        """The shadow has answered."""
        self._end(pair)
        if head.status >= FAILED_MIN_STATUS:
            pair.counts.failed += 1
            return
        pair.of_copy = _kept(head, body)
        if pair.refused_original:
            pair.counts.skipped += 1
        elif pair.of_original is not None:
            self.settle(pair, pair.of_original, pair.of_copy)

    def settle(self, pair: _Pair, original: Answered, copy: Answered) -> None:
        """Both have answered: compare them soon, if they can be and there is time."""
        size_bytes = len(original.body) + len(copy.body)
        comparable = original.status < FAILED_MIN_STATUS and _NOT_KEPT not in (original.body, copy.body)
        if comparable and self._pace.allows(size_bytes, time.monotonic_ns()):
            self._loop.call_soon(self._compare, pair, original, copy)
        else:
            pair.counts.skipped += 1

    def _compare(self, pair: _Pair, original: Answered, copy: Answered) -> None:
        difference = first_difference(original, copy, pair.shadow.shadow_tolerance)
        if difference is None:
            pair.counts.equal += 1
            return
        pair.counts.different += 1
        now_ns = time.monotonic_ns()
        if now_ns - self._logged_ns >= _NS_PER_S:
            self._logged_ns = now_ns
            shadow, version = group_name(*pair.shadow.key), group_name(*pair.original_key)
            logger.warning(
                "request %s: shadow %s answers otherwise than %s: %s", pair.request_id, shadow, version, difference
            )

    def _end(self, pair: _Pair) -> None:
        pair.ended = True
        self._outstanding[pair.shadow.key] -= 1
        self._held_bytes -= pair.size_bytes


@dataclass(slots=True, eq=False)
class _Pair:
    """An original and its copy: the client of the original. Implements `Client`."""

    shadows: Shadows
    client: Client
    """Of the original, from before."""
    shadow: DeployedModel
    original_key: PoolKey
    request_id: str
    size_bytes: int
    counts: CopyCounts
    sent: bool = False
    ended: bool = False
    """The copy is done with."""
    refused_original: bool = False
    of_original: Answered | None = None
    of_copy: Answered | None = None

    def answered(self, call: Any, head: ResponseHead, body: bytes) -> None:
        """Pass the answer on; what remains to be done waits for the next turn."""
        self.client.answered(call, head, body)
        self.of_original = _kept(head, body)
        if self.of_copy is not None:
            self.shadows.settle(self, self.of_original, self.of_copy)

    def refused(self, call: Any, error: RequestError) -> None:
        """Pass it on: there is nothing to compare with."""
        self.client.refused(call, error)
        self.refused_original = True
        if self.of_copy is not None:
            self.counts.skipped += 1


class _CopyClient:
    """The client of a copy, which nobody waits for. Implements `Client`."""

    __slots__ = ("_pair", "_shadows")

    def __init__(self, shadows: Shadows, pair: _Pair) -> None:
        self._shadows = shadows
        self._pair = pair

    def answered(self, call: Any, head: ResponseHead, body: bytes) -> None:
        """Keep it for the comparison."""
        self._shadows.copy_answered(self._pair, head, body)

    def refused(self, call: Any, error: RequestError) -> None:
        """Count it."""
        self._shadows.copy_refused(self._pair)


_NOT_KEPT: Final = b""
"""Stands for a body that is too large; no answer's body is empty."""


def _kept(head: ResponseHead, body: bytes) -> Answered:
    return Answered(head.status, head.encoding, head.json_bytes, body if len(body) <= COMPARED_MAX_BYTES else _NOT_KEPT)
