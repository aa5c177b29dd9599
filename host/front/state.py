"""What a front tells control: the document of `GET /state` on its own socket."""

from __future__ import annotations

import msgspec

from host.dispatch import Demand
from host.protocol.latency import Latencies


class ShadowState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the copies for a version (`outcomes.CopyCounts`), since the front started."""

    sent: int
    shed: int
    failed: int
    skipped: int
    compared: int
    equal: int
    different: int


class VersionState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the requests of a version, since the front started. Copies for a shadow count as its requests."""

    answered: int
    """With a status below 500."""
    failed: int
    """Answered or refused with another."""
    latency: Latencies
    """Of what was answered, from its receipt."""
    shadow: ShadowState | None = None
    """None: there never was a copy for it."""


class FrontState(msgspec.Struct, frozen=True, kw_only=True):
    """One front, now."""

    pid: int
    generation: int
    """Of the routing that it serves."""
    calls: dict[str, int]
    """Model version, as `churn.v3`, to the calls of it that wait for their answer; those without any are left out."""
    demand: dict[str, Demand] = {}
    """Of versions that were asked for while they had no worker."""
    versions: dict[str, VersionState] = {}
    """Model version, as `churn.v3`, to what became of its requests; a version that is gone is forgotten."""
