"""When a slot whose processes die young may start the next one. Pure, but for the two functions that read and write it.

supervisord restarts a process that lived longer than `startsecs` at once, for ever; the launcher waits instead. A life
is short if it served less than `SHORT_LIFE_S`, however long it took to load. The pause doubles with every short life,
and one that was long enough ends the count.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

SHORT_LIFE_S: Final = 3.0
FREE_LIVES: Final = 3
"""So many short lives cost no pause: a worker killed now and then is back at once."""

FIRST_PAUSE_S: Final = 1.0
PAUSE_MAX_S: Final = 60.0


class LastEnd(NamedTuple):
    """How far the slot's last process came."""

    ready_s: float | None
    """When it began to serve, since the epoch; None: it did not, or that is not known."""
    drained: bool = False
    """It ended because it was told to."""


class Lives(NamedTuple):
    """What is known of a slot's starts; times are seconds since the epoch."""

    begins_s: float
    """When the newest life began, or begins once its pause is over."""
    short: int = 0
    """Lives before it that were short, one after the other."""
    since_s: float = 0.0
    """When the first of them began."""


def next_life(last: Lives | None, end: LastEnd, now_s: float) -> Lives:
    """A process of the slot starts now (since the epoch): what is known then, and from when it may run."""
    if last is None or end.drained or last.begins_s > now_s + PAUSE_MAX_S:  # the clock was set back: nothing is known
        return Lives(now_s)
    ready_s = end.ready_s
    if ready_s is not None and ready_s >= last.begins_s and now_s - ready_s >= SHORT_LIFE_S:
        return Lives(now_s)
    short = last.short + 1
    return Lives(now_s + pause_s(short), short, last.since_s or last.begins_s)


def pause_s(short_lives: int) -> float:
    """How long to wait after so many short lives."""
    exponent = short_lives - FREE_LIVES - 1
    return min(PAUSE_MAX_S, FIRST_PAUSE_S * 2.0 ** min(exponent, 10)) if exponent >= 0 else 0.0


def read_lives(path: Path) -> Lives | None:
    """What was written; None if nothing was, or it cannot be read: then the slot starts afresh."""
    try:
        begins_s, short, since_s = json.loads(path.read_text("ascii"))
        return Lives(float(begins_s), int(short), float(since_s))
    except (OSError, ValueError, TypeError):
        return None


def write_lives(path: Path, lives: Lives) -> None:
    """Write it, atomically. Raises `OSError`."""
    part = path.with_name(f".{path.name}.new")
    part.write_text(json.dumps(lives), "ascii")
    part.replace(path)
