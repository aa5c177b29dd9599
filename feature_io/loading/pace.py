"""How fast rows may go out. Pure: times are given."""

from __future__ import annotations

from typing import Final

BATCHES_PER_S: Final = 4
"""With a limit, batches are so small that the store sees an even flow."""


class Pace:
    """At most so many rows a second; what was not used in time is not made up for later."""

    def __init__(self, rows_per_s: float | None) -> None:
        self._rows_per_s = rows_per_s
        self._next_s: float | None = None

    def batch_rows(self, most: int) -> int:
        """Rows of a batch, `most` at most."""
        return most if self._rows_per_s is None else max(1, min(most, int(self._rows_per_s / BATCHES_PER_S)))

    def pause_s(self, now_s: float) -> float:
        """How long to wait before the next batch."""
        return 0.0 if self._next_s is None else max(0.0, self._next_s - now_s)

    def wrote(self, rows: int, began_s: float) -> None:
        """Rows whose writing began at a time are out."""
        if self._rows_per_s is not None:
            self._next_s = began_s + rows / self._rows_per_s
