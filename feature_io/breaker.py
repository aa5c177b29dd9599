"""A circuit breaker for one store: after failures in a row it is asked no more, but for one try now and then.

No clock: times are given, in seconds of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from host.protocol.counters import STORE, Words, private_counters

FAILURES: Final = 5
"""In a row, before a store is left alone."""
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 2.0
_OPENINGS: Final = STORE.at("openings")
_OPEN: Final = STORE.at("open")
"""Pauses double from the first to the longest: a store that is back is noticed within seconds."""


@dataclass(slots=True)
class Breaker:
    """Closed: the store is asked. Open: it is not. When the pause is over, one read tries it again."""

    failures: int = 0
    """In a row."""
    open_until_s: float = 0.0
    pause_s: float = 0.0
    """0: closed."""
    trying: bool = False
    words: Words = field(default_factory=lambda: private_counters(STORE))
    """Where it counts."""

    @property
    def openings(self) -> int:
        """How often it has left the store alone."""
        return self.words[_OPENINGS]

    @property
    def is_open(self) -> bool:
        """Whether the store is left alone."""
        return self.pause_s > 0

    def allows(self, now_s: float) -> bool:
        """Whether a read may be sent. Whoever gets a yes reports `succeeded`, `failed` or `gave_up`."""
        if not self.pause_s:
            return True
        if self.trying or now_s < self.open_until_s:
            return False
        self.trying = True
        return True

    def succeeded(self) -> None:
        """The store answered."""
        if self.pause_s:
            self.words[_OPEN] = 0
        self.failures, self.pause_s, self.trying = 0, 0.0, False

    def failed(self, now_s: float) -> None:
        """The store did not answer."""
        self.failures += 1
        if self.pause_s and not self.trying:
            return  # a read that was sent before the circuit opened
        if self.pause_s or self.failures >= FAILURES:
            self.words[_OPENINGS] += not self.pause_s
            self.words[_OPEN] = 1
            self.pause_s = min(LONGEST_PAUSE_S, self.pause_s * 2 or FIRST_PAUSE_S)
            self.open_until_s = now_s + self.pause_s
            self.trying = False

    def gave_up(self) -> None:
        """The read was ended before anybody could tell: the next one tries."""
        self.trying = False
