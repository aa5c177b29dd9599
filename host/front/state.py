"""What a front tells control: the document of `GET /state` on its own socket."""

from __future__ import annotations

import msgspec

from host.dispatch import Demand


class FrontState(msgspec.Struct, frozen=True, kw_only=True):
    """One front, now."""

    pid: int
    generation: int
    """Of the routing that it serves."""
    calls: dict[str, int]
    """Model version, as `churn.v3`, to the calls of it that wait for their answer; those without any are left out."""
    demand: dict[str, Demand] = {}
    """Of versions that were asked for while they had no worker."""
