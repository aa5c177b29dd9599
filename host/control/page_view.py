"""What the status page is sent, from what control knows. Pure: documents in, documents out.

Three kinds of messages, each whole in itself, so that one that is lost does no harm: `status` (what is there and in
which state; sent when it changes), `point` (the numbers that change all the time) and `events` (new ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from host.config.run_dir import group_name
from host.control.history_ring import Numbers
from host.control.news import Event
from host.control.observe import StoreState
from host.control.status import Backoff, DeathKind, HostStatus, ModelStatus, SlotStatus

TEXT_MAX_CHARS: Final = 600
"""Of a reason: what a library says may be long."""


class LastExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a process ended last."""

    at: float
    kind: DeathKind
    reason: str


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One process, without what changes all the time."""

    name: str
    state: str
    pid: int
    ready: bool
    started_at: float
    """Seconds since the epoch, whole; 0 when there is no process."""
    restarts: int
    deaths: int
    last_exit: LastExit | None
    backoff: Backoff | None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model version."""

    group: str
    name: str
    version: str
    default: bool
    state: str
    reason: str
    wanted: int
    ready: int
    slots: tuple[Slot, ...]


class Store(msgspec.Struct, frozen=True, kw_only=True):
    """A store of features."""

    name: str
    open: bool
    openings: int


class PageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is there."""

    ready: bool
    settled: bool
    generation: int
    wanted: int
    ready_processes: int
    models: tuple[Model, ...]
    host: tuple[Slot, ...]
    unwanted: tuple[Slot, ...]
    stores: tuple[Store, ...]
    problem: str = ""
    """Why control cannot look; then the rest is what it saw last."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of one time."""

    at: float
    models: Mapping[str, Numbers]
    """By group, as `churn.v3`."""
    slots: Mapping[str, tuple[int, int, float]]
    """By process: memory and its limit (0: none) in bytes, CPUs in use."""


def page_status(status: HostStatus, stores: Mapping[str, StoreState], at: float) -> PageStatus:
    """What is there; `at`: just before supervisord was asked, in seconds since the epoch."""
    return PageStatus(
        ready=status.ready,
        settled=status.settled,
        generation=status.generation,
        wanted=status.wanted,
        ready_processes=status.ready_processes,
        models=tuple(_model(model, at) for model in status.models),
        host=_slots(status.host, at),
        unwanted=_slots([slot for slot in status.unwanted if slot.pid], at),
        stores=tuple(
            Store(name=name, open=store.open, openings=store.openings) for name, store in sorted(stores.items())
        ),
    )


def _model(model: ModelStatus, at: float) -> Model:
    return Model(
        group=group_name(model.name, model.version),
        name=model.name,
        version=model.version,
        default=model.default,
        state=model.state.value,
        reason=model.reason[:TEXT_MAX_CHARS],
        wanted=model.wanted,
        ready=model.ready,
        slots=_slots(model.slots, at),
    )


def _slots(slots: Iterable[SlotStatus], at: float) -> tuple[Slot, ...]:
    return tuple(
        Slot(
            name=slot.name,
            state=slot.state,
            pid=slot.pid,
            ready=slot.ready,
            started_at=float(round(at - slot.uptime_s)) if slot.pid else 0.0,
            restarts=slot.restarts,
            deaths=sum(slot.deaths.values()),
            last_exit=LastExit(
                at=slot.last_exit.at, kind=slot.last_exit.kind, reason=slot.last_exit.reason[:TEXT_MAX_CHARS]
            )
            if slot.last_exit is not None
            else None,
            backoff=slot.backoff,
        )
        for slot in slots
    )


def all_slots(status: HostStatus) -> list[SlotStatus]:
    """Every process of a host."""
    return [*(slot for model in status.models for slot in model.slots), *status.host, *status.unwanted]


def slot_numbers(
    before: Iterable[SlotStatus], now: Iterable[SlotStatus], elapsed_s: float
) -> dict[str, tuple[int, int, float]]:
    """Memory, its limit, and CPUs of every process since an earlier look; of a new one, since it started."""
    earlier = {(slot.name, slot.pid): slot.usage.cpu_s for slot in before if slot.usage is not None}
    found = {}
    for slot in now:
        if slot.usage is not None:
            since_s = elapsed_s if (slot.name, slot.pid) in earlier else slot.uptime_s
            cpu_s = slot.usage.cpu_s - earlier.get((slot.name, slot.pid), 0.0)
            cpus = round(max(0.0, cpu_s) / since_s, 3) if since_s > 0 else 0.0
            found[slot.name] = (slot.usage.memory_bytes, slot.usage.memory_limit_bytes, cpus)
    return found


def event_documents(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as the page lists them: without logs, which stand on the model's page."""
    return [
        {
            "at": event.at,
            "severity": event.severity.value,
            "what": event.what,
            "subject": event.subject,
            "model": event.model,
            "text": event.text[:TEXT_MAX_CHARS],
        }
        for event in events
    ]


def message(kind: str, document: Any) -> bytes:
    """One server-sent event. JSON has no line breaks of its own, so one line of data holds it."""
    return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(document) + b"\n\n"
