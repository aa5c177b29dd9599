"""Which version answers a request that names none, and which gets a copy: both lanes ask here, for each request."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from host.front.gateway import Call, Fallback, Gateway
from host.front.shadow import Shadows
from host.front.traffic import NO_CANARY, SLOTS, Traffic

_NS_PER_MS: Final = 1_000_000


class Sharing:
    """What both lanes ask for models with canaries or a shadow; for all others they do not come here."""

    def __init__(self, gateway: Gateway, shadows: Shadows, draw: Callable[[], float] = random.random) -> None:
        """`draw`: a number from 0 to below 1."""
        self._gateway = gateway
        self._shadows = shadows
        self._draw = draw

    def canary(self, traffic: Traffic, slot: int | None) -> int:
        """The canary that answers, by its position; `NO_CANARY`: the default does. `slot`: of a sticky key.

        A canary that has no worker leaves its requests to the default, until it has one.
        """
        if not traffic.canaries:
            return NO_CANARY
        position = traffic.canary_of(int(self._draw() * SLOTS) if slot is None else slot)
        if position != NO_CANARY and not self._gateway.runs_now(traffic.canaries[position].key):
            return NO_CANARY
        return position

    def prepare(self, call: Call, traffic: Traffic) -> None:
        """Before a call is submitted: say who answers if its canary cannot, or have a copy follow it."""
        default = traffic.default
        if call.pool[1] != default.version:
            call.fallback = Fallback(default.key, default.limits.timeout_ms * _NS_PER_MS)
        elif traffic.shadow is not None and int(self._draw() * SLOTS) < traffic.copied_slots:
            self._shadows.follow(call, traffic.shadow)
