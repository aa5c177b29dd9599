"""Which requests are drawn: a countdown, so that those that are not cost a comparison. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

NEVER: Final = 1 << 62


def requests_skipped(share: float, draw: Callable[[], float]) -> int:
    """How many requests come before the next one that is drawn: as if each were drawn by itself with this share.

    `draw`: a number from 0 to below 1. The number of failures before a success is distributed geometrically.
    """
    if share <= 0:
        return NEVER
    if share >= 1:
        return 0
    return min(NEVER, int(math.log1p(-draw()) / math.log1p(-share)))
