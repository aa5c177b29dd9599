"""What happens on a host, from two looks at it. Pure: two documents in, events out.

Whatever is told here is derived from what `HostStatus` and the feature processes say anyway, so nothing can happen
without a trace, and no code that acts has to remember to tell.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from host.config.history import Change
from host.config.run_dir import group_name
from host.control.observe import StoreState
from host.control.status import HostStatus, ModelStatus, SlotStatus, VersionState

EVENTS_KEPT: Final = 500

SLOTS_SHOWN: Final = 20
"""Events of one kind in one look; of more, as when supervisord dies, the rest is counted."""


class Severity(enum.Enum):
    """How much an operator should care."""

    BAD = "bad"
    WARNING = "warning"
    GOOD = "good"
    INFO = "info"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened."""

    at: float
    """When, or when it was seen, in seconds since the epoch."""
    severity: Severity
    what: str
    """Its kind: `death`, `restart`, `rollout`, `scaling`, `drift`, `change`, `canary`, `store`, `host`."""
    subject: str
    """`churn.v3:0`, `churn.v3`, `front:0`, a store, or `host`."""
    model: str = ""
    """The model that it is about, if it is."""
    text: str
    log: tuple[str, ...] = ()
    """Of a death: the last lines of the process's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen at one time."""

    at: float
    """Seconds since the epoch."""
    status: HostStatus
    stores: Mapping[str, StoreState] = field(default_factory=dict)
    """Of the feature processes that answered, together."""
    last_change: Change | None = None
    """Of the desired state."""


def events_between(before: Look, now: Look) -> list[Event]:
    """Everything that happened, oldest first."""
    found = [
        *_changes(before, now),
        *_versions(before, now),
        *_processes(before, now),
        *_stores(before, now),
        *_host(before, now),
    ]
    return sorted(found, key=lambda event: event.at)


def events_known(now: Look, changes: Sequence[Change]) -> list[Event]:
    """What is known at the first look of what happened before: last deaths, and changes of what should run."""
    empty = Look(at=0.0, status=now.status)
    found = [event for change in changes for event in _changes(empty, replace(now, last_change=change))]
    for name, (slot, model) in _slots(now.status):
        last = slot.last_exit
        if last is not None:
            text = f"{last.reason}, pid {last.pid}"
            found.append(
                Event(
                    at=last.at, severity=Severity.BAD, what="death", subject=name, model=model, text=text, log=last.log
                )
            )
    return sorted(found, key=lambda event: event.at)


def kept(events: Sequence[Event], new: Iterable[Event]) -> tuple[Event, ...]:
    """The last `EVENTS_KEPT`."""
    return (*events, *new)[-EVENTS_KEPT:]


# -- what somebody wanted -------------------------------------------------------------------------------------
def _changes(before: Look, now: Look) -> Iterator[Event]:
    change = now.last_change
    if change is None or change == before.last_change:
        return
    differences = "; ".join(change.differences)
    by_itself = change.who == "control" and change.what.startswith("canary ")
    # A judgement is a change that control itself made, and says which way.
    rolled_back = by_itself and "rolled back" in change.what
    yield Event(
        at=change.at,
        severity=Severity.BAD if rolled_back else Severity.INFO,
        what="canary" if by_itself else "change",
        subject="host",
        text=f"{change.who}: {change.what}" + (f": {differences}" if differences else ""),
    )


# -- versions -------------------------------------------------------------------------------------------------
def _versions(before: Look, now: Look) -> Iterator[Event]:
    old = {(model.name, model.version): model for model in before.status.models}
    new = {(model.name, model.version): model for model in now.status.models}
    served_before = {model.name for model in before.status.models}

    def event(model: ModelStatus, severity: Severity, what: str, text: str) -> Event:
        group = group_name(model.name, model.version)
        log = model.log if model.state is VersionState.FAILED else ()
        return Event(
            at=now.at, severity=severity, what=what, subject=group, model=model.name, text=text, log=tuple(log)
        )

    for key, model in new.items():
        earlier = old.get(key)
        if earlier is None:
            if model.state is VersionState.FAILED:
                yield event(model, Severity.BAD, "rollout", f"given up: {model.reason}")
            elif model.state is VersionState.STARTING:
                begun = "rollout begun" if model.name in served_before else "new model: start begun"
                yield event(model, Severity.INFO, "rollout", f"{begun}, {model.wanted} processes")
            else:
                yield event(model, Severity.INFO, "rollout", f"is here, {model.state.value}")
            continue
        yield from (event(model, *told) for told in _steps(earlier, model))
    for key, model in old.items():
        if key not in new:
            yield event(model, Severity.INFO, "rollout", "removed")


def _steps(before: ModelStatus, now: ModelStatus) -> Iterator[tuple[Severity, str, str]]:
    """What became of one version."""
    if now.state is not before.state:
        match now.state:
            case VersionState.SERVING:
                yield Severity.GOOD, "rollout", f"served, {now.ready} of {now.wanted} processes ready"
            case VersionState.FAILED:
                yield Severity.BAD, "rollout", f"given up: {now.reason}"
            case VersionState.STARTING:
                yield Severity.INFO, "rollout", f"starting, {now.wanted} processes"
            case VersionState.REPLACED:
                yield Severity.INFO, "rollout", "served until another version is ready"
            case VersionState.LEAVING:
                yield Severity.INFO, "rollout", "not served any more: finishes what it has"
        return
    if now.wanted != before.wanted:
        yield Severity.INFO, "scaling", f"{before.wanted} -> {now.wanted} processes"
    if now.state is VersionState.STARTING and now.ready > before.ready:
        yield Severity.INFO, "rollout", f"{now.ready} of {now.wanted} processes ready"
    if now.state is VersionState.SERVING and now.reason != before.reason:
        if now.reason:
            yield Severity.BAD, "store", f"cannot serve: {now.reason}"
        else:
            yield Severity.GOOD, "store", "its features can be read again"


# -- processes ------------------------------------------------------------------------------------------------
def _processes(before: Look, now: Look) -> Iterator[Event]:
    old = dict(_slots(before.status))
    passing = {model.name for model in now.status.models if model.state is VersionState.LEAVING}
    told: list[Event] = []
    for name, (slot, model) in _slots(now.status):
        earlier, _ = old.get(name, (None, ""))
        if earlier is not None:
            told += _life(earlier, slot, model, now.at, stopping=model in passing)
    known = {slot.name for slot in before.status.unwanted} | old.keys()
    for slot in now.status.unwanted:
        if slot.name not in known and slot.pid:
            told.append(
                Event(at=now.at, severity=Severity.WARNING, what="drift", subject=slot.name, text="runs and should not")
            )
    yield from told[:SLOTS_SHOWN]
    if len(told) > SLOTS_SHOWN:
        worst = Severity.BAD if any(one.severity is Severity.BAD for one in told) else Severity.INFO
        text = f"the same happened to {len(told) - SLOTS_SHOWN} more processes"
        yield Event(at=now.at, severity=worst, what="restart", subject="host", text=text)


def _slots(status: HostStatus) -> Iterator[tuple[str, tuple[SlotStatus, str]]]:
    for model in status.models:
        for slot in model.slots:
            yield slot.name, (slot, model.name)
    for slot in status.host:
        yield slot.name, (slot, "")


def _life(before: SlotStatus, now: SlotStatus, model: str, at: float, *, stopping: bool) -> Iterator[Event]:
    """What became of one process."""

    def event(severity: Severity, what: str, text: str, when: float = at, log: tuple[str, ...] = ()) -> Event:
        return Event(at=when, severity=severity, what=what, subject=now.name, model=model, text=text, log=log)

    died = now.last_exit is not None and now.last_exit != before.last_exit
    if died and now.last_exit is not None:
        times = sum(now.deaths.values()) - sum(before.deaths.values())
        last = now.last_exit
        more = f" ({times} times since the last look)" if times > 1 else ""
        yield event(Severity.BAD, "death", f"{last.reason}, pid {last.pid}{more}", last.at, last.log)
    elif before.pid and now.pid and now.pid != before.pid and not _told(before):
        yield event(Severity.INFO, "restart", f"started again, pid {now.pid}")
    if now.backoff is not None and (before.backoff is None or now.backoff.until > before.backoff.until > 0):
        pause_s = now.backoff.until - at
        if pause_s > 1:
            text = f"starts again in {pause_s:.0f} s, after {now.backoff.short_lives} short lives"
            yield event(Severity.WARNING, "death", text)
    if now.state != before.state and not stopping:
        if now.state == "STOPPED":
            yield event(Severity.WARNING, "drift", "stopped by an operator")
        elif before.state == "STOPPED" and now.state in ("STARTING", "RUNNING"):
            yield event(Severity.INFO, "restart", f"started, pid {now.pid}")
        elif now.state == "FATAL":
            yield event(Severity.BAD, "death", "supervisord has given it up")
        elif now.state == "MISSING":
            yield event(Severity.BAD, "drift", "supervisord knows no such process any more")
    if now.ready and now.pid and (died or (not before.ready and before.last_exit is not None)):
        yield event(Severity.GOOD, "restart", f"ready again, pid {now.pid}")


def _told(slot: SlotStatus) -> bool:
    """Whether the end of this very process has been told: its death may be known before supervisord's next list."""
    return slot.last_exit is not None and slot.last_exit.pid == slot.pid


# -- stores and the host --------------------------------------------------------------------------------------
def _stores(before: Look, now: Look) -> Iterator[Event]:
    for name, store in now.stores.items():
        earlier = before.stores.get(name)
        if earlier is None:
            continue
        if store.open and not earlier.open:
            text = "does not answer: it is left alone, and tried again by itself"
            yield Event(at=now.at, severity=Severity.BAD, what="store", subject=name, text=text)
        elif earlier.open and not store.open:
            yield Event(at=now.at, severity=Severity.GOOD, what="store", subject=name, text="answers again")
        elif store.openings > earlier.openings:
            text = "did not answer for a moment"
            yield Event(at=now.at, severity=Severity.WARNING, what="store", subject=name, text=text)


def _host(before: Look, now: Look) -> Iterator[Event]:
    if now.status.ready != before.status.ready:
        good = now.status.ready
        yield Event(
            at=now.at,
            severity=Severity.GOOD if good else Severity.WARNING,
            what="host",
            subject="host",
            text="ready" if good else f"not ready: {now.status.ready_processes} of {now.status.wanted} processes are",
        )
