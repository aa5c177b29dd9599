"""What a batch costs, learned from those that ran. Pure.

A batch of `b` rows is taken to cost `batch_ns + row_ns * b`: a least-squares line through recent batches, the newest
counting most (exponentially weighted normal equations). The front refuses requests by it, so it errs on the cheap
side: it says nothing before it has seen a few batches, gives the rows no part of the cost before it has seen batches
of several sizes, and believes a single slow batch (a page fault, a busy core) only in part.
"""

from __future__ import annotations

from typing import Final

MEMORY: Final = 0.95
"""Weight of a batch against the one after it: the last twenty or so count."""

FEW_BATCHES: Final = 5
"""Before so many have run, nothing is said."""

BELIEVED_FACTOR: Final = 4.0
"""A batch counts at most as so many times what it should have cost, were its cost proportional to its rows."""

_FLAT: Final = 0.01
"""Relative variance of sizes below which they count as one size."""


class Pace:
    """The cost of batches of one worker."""

    def __init__(self) -> None:
        self._batches = 0
        self._weight = 0.0
        self._rows = 0.0
        self._rows_squared = 0.0
        self._ns = 0.0
        self._rows_ns = 0.0

    def learn(self, rows: int, ns: int) -> None:
        """Count a batch of so many rows that took so long."""
        believed = float(ns)
        if self._batches >= FEW_BATCHES:
            share = max(1.0, rows * self._weight / self._rows)
            believed = min(believed, BELIEVED_FACTOR * share * self._ns / self._weight)
        self._batches += 1
        self._weight = MEMORY * self._weight + 1.0
        self._rows = MEMORY * self._rows + rows
        self._rows_squared = MEMORY * self._rows_squared + rows * rows
        self._ns = MEMORY * self._ns + believed
        self._rows_ns = MEMORY * self._rows_ns + rows * believed

    def estimate_ns(self) -> tuple[int, int]:
        """What a batch costs before its first row, and what each row adds; both 0 as long as that is not known."""
        if self._batches < FEW_BATCHES:
            return 0, 0
        mean_rows, mean_ns = self._rows / self._weight, self._ns / self._weight
        variance = self._rows_squared / self._weight - mean_rows * mean_rows
        row_ns = 0.0
        if variance > _FLAT * mean_rows * mean_rows:
            covariance = self._rows_ns / self._weight - mean_rows * mean_ns
            row_ns = min(max(0.0, covariance / variance), mean_ns / mean_rows)
        return int(mean_ns - row_ns * mean_rows), int(row_ns)
