"""How the requests for a model are shared over its versions. Pure: a slot in, a version out.

There are 10,000 slots. A request without a sticky key draws one; a key has one of its own, the same on every front and
host and after every restart. Each canary owns some slots, and the default the rest. The first canary's begin at the
lowest slot and the second's end at the highest, so raising a share of either takes slots, and with them keys, from the
default alone. (With more than two, no rule without a memory can do that for all of them: the others follow the first.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from host.config.deployment import DeployedModel

SLOTS: Final = 10_000
SLOTS_PER_PERCENT: Final = SLOTS // 100

NO_CANARY: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Which versions take part in requests for one model that name no version."""

    default: DeployedModel
    canaries: tuple[DeployedModel, ...] = ()
    shadow: DeployedModel | None = None
    ranges: tuple[tuple[int, int], ...] = field(init=False)
    """Of each canary: its first slot, and the one behind its last."""
    copied_slots: int = field(init=False)
    """A request that the default answers draws once more: below this, it is copied to the shadow."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranges", tuple(_ranges([model.canary_percent for model in self.canaries])))
        copied_percent = 0 if self.shadow is None else self.shadow.shadow_percent
        object.__setattr__(self, "copied_slots", copied_percent * SLOTS_PER_PERCENT)

    def canary_of(self, slot: int) -> int:
        """The canary that owns a slot, by its position; `NO_CANARY`: the slot is the default's."""
        for position, (start, end) in enumerate(self.ranges):
            if start <= slot < end:
                return position
        return NO_CANARY

    def sticky_slot(self, key: str | None) -> int | None:
        """The slot of a request's key; None: it draws one, because it has no key."""
        return slot_of(self.default.name, key) if key else None


def traffic_of(versions: Iterable[DeployedModel]) -> Traffic | None:
    """How a model's versions share its requests; None: its default answers all of them, and nothing is copied."""
    default, shadow = None, None
    canaries: list[DeployedModel] = []
    for model in versions:
        if model.default:
            default = model
        elif model.canary_percent:
            canaries.append(model)
        elif model.shadow_percent:
            shadow = model
    if default is None or not (canaries or shadow):
        return None
    return Traffic(default=default, canaries=tuple(canaries), shadow=shadow)


def slot_of(name: str, key: str) -> int:
    """The slot of a sticky key: of one model, so that not the same users are first to see every canary."""
    text = f"{name}\0{key}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % SLOTS


def _ranges(percents: Sequence[int]) -> Iterable[tuple[int, int]]:
    free = 0
    for position, percent in enumerate(percents):
        slots = percent * SLOTS_PER_PERCENT
        if position == 1:
            yield SLOTS - slots, SLOTS
        else:
            yield free, free + slots
            free += slots
