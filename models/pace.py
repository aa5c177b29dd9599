"""What a batch costs, learned from those that ran. Pure.

A batch of `b` rows is taken to cost `batch_ns + row_ns * b`: a least-squares line through recent batches, the newest
counting most (exponentially weighted normal equations). Where all batches have one size, nothing says how the cost
divides; then `ROW_PART` of it goes to the rows, which neither fears a burst nor promises a free ride.
"""

from __future__ import annotations

from typing import Final

MEMORY: Final = 0.95
"""Weight of a batch against the one after it: the last twenty or so count."""

ROW_PART: Final = 0.25
_FLAT: Final = 0.01
"""Relative variance of sizes below which they count as one size."""


class Pace:
    """The cost of batches of one worker."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._rows = 0.0
        self._rows_squared = 0.0
        self._ns = 0.0
        self._rows_ns = 0.0

    def learn(self, rows: int, ns: int) -> None:
        """Count a batch of so many rows that took so long."""
        self._weight = MEMORY * self._weight + 1.0
        self._rows = MEMORY * self._rows + rows
        self._rows_squared = MEMORY * self._rows_squared + rows * rows
        self._ns = MEMORY * self._ns + ns
        self._rows_ns = MEMORY * self._rows_ns + rows * ns

    def estimate_ns(self) -> tuple[int, int]:
        """What a batch costs before its first row, and what each row adds; both 0 before the first batch."""
        if not self._weight:
            return 0, 0
        mean_rows, mean_ns = self._rows / self._weight, self._ns / self._weight
        variance = self._rows_squared / self._weight - mean_rows * mean_rows
        if variance < _FLAT * mean_rows * mean_rows:
            row_ns = ROW_PART * mean_ns / mean_rows
        else:
            covariance = self._rows_ns / self._weight - mean_rows * mean_ns
            row_ns = min(max(0.0, covariance / variance), mean_ns / mean_rows)
        return int(mean_ns - row_ns * mean_rows), int(row_ns)
