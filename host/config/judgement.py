"""How a canary is judged: `[models.judge]` of a deployment file."""

from __future__ import annotations

from typing import Final

import msgspec

from host.protocol.schema import TableReader

WINDOW_MAX_S: Final = 86_400
REQUESTS_MAX: Final = 1_000_000
_ANYTHING_SLOWER: Final = 1000.0


class Judge(msgspec.Struct, frozen=True, kw_only=True):
    """What a canary has to be, compared with the default version over the same time."""

    window_s: int
    """So long it is watched before it has passed. Too many failures end it sooner."""
    min_requests: int = 100
    """Fewer say nothing."""
    max_failed_percent: float = 1.0
    """So much more of its requests may fail than of the default's, in percent points."""
    max_slowdown: float = 2.0
    """So many times the default's may its p90 be."""
    promote: bool = False
    """Whether it becomes the default once it has passed; else it stays a canary, and is watched on."""


def read_judge(table: TableReader) -> Judge:
    """Read the table; what is wrong is added to its problems."""

    def number(key: str, default: float, maximum: float, expected: str) -> float:
        value = table.take(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 <= value <= maximum:
            table.problem(key, expected, value)
            return default
        return float(value)

    judge = Judge(
        window_s=table.integer("window_s", minimum=1, maximum=WINDOW_MAX_S),
        min_requests=table.integer("min_requests", default=100, minimum=1, maximum=REQUESTS_MAX),
        max_failed_percent=number("max_failed_percent", 1.0, 100, "a number from 0 to 100"),
        max_slowdown=number("max_slowdown", 2.0, _ANYTHING_SLOWER, f"a number from 0 to {_ANYTHING_SLOWER:g}"),
        promote=table.boolean("promote", default=False),
    )
    table.finish()
    return judge
