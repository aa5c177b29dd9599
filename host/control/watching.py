"""Looks at the host for the status page: history, events, and whoever watches. A thin shell around pure functions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from host.config.deployment import DeployedModel
from host.config.features import feature_refs
from host.config.history import Change, read_history
from host.config.run_dir import FEATURES_GROUP, RunDirectory, group_name
from host.control.history_ring import POINT_S, History, Numbers, Reading, numbers
from host.control.news import Event, Look, events_between, events_known, kept
from host.control.observe import FeatureCounters, observe, together
from host.control.observe import Reading as WorkerReading
from host.control.page_view import (
    PageStatus,
    Point,
    all_slots,
    event_documents,
    message,
    page_status,
    slot_numbers,
)
from host.control.probe import WorkerProbe
from host.control.status import HostStatus
from host.protocol.errors import ConfigError, HostError

logger = logging.getLogger("modelhost.control")

QUIET_S: Final = 5.0
"""Between two looks while nobody watches: counters only grow, so what happens in between is averaged and not lost."""

SOON_S: Final = 0.2
"""Between two looks, however much happens; while nobody watches, `POINT_S`."""

EARLY_S: Final = 0.05

COUNTERS_S: Final = 0.25
"""A worker answers between two batches: one that takes longer is busy, and nobody waits for it."""

CLIENTS_MAX: Final = 32
BEHIND_MAX: Final = 16
"""Messages that wait for one client: one that is further behind is dropped. Clients share the bytes of a message."""


class TooManyClients(Exception):
    """`CLIENTS_MAX` watch already."""


class Subscription:
    """What one client is to be sent."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[bytes] = asyncio.Queue(BEHIND_MAX)
        self.lost = False
        """It was too far behind."""

    def put(self, data: bytes) -> None:
        """Have it sent, unless the client is too far behind for good."""
        try:
            self._messages.put_nowait(data)
        except asyncio.QueueFull:
            self.lost = True

    async def next(self, timeout_s: float) -> bytes:
        """The next message. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            return await self._messages.get()


class Watcher:
    """One loop for all who watch; what it knows of the past, control's death ends."""

    def __init__(
        self,
        run_dir: RunDirectory,
        status: Callable[[], Awaitable[HostStatus]],
        probe: WorkerProbe,
        served: Callable[[], tuple[DeployedModel, ...]],
    ) -> None:
        """`status`: compares what should run with what does. Raises `HostError`, `ConfigError`."""
        self._run_dir = run_dir
        self._status = status
        self._probe = probe
        self._served = served
        self._noticed = asyncio.Event()
        self._subscriptions: set[Subscription] = set()
        self._look: Look | None = None
        self._changes_seen: tuple[int, int] = (0, 0)
        self._changes: list[Change] = []
        self._workers: dict[str, dict[str, WorkerReading]] = {}
        self._readings: dict[str, Reading] = {}
        self._point_before: HostStatus | None = None
        self._point_at = 0.0
        """CLOCK_MONOTONIC of the last point."""
        self._page: PageStatus | None = None
        self._point = Point(at=0.0, models={}, slots={})
        self.history = History()
        self.events: tuple[Event, ...] = ()

    def notice(self) -> None:
        """Something happened: look soon."""
        self._noticed.set()

    def subscribe(self) -> Subscription:
        """Send a client what is known, and then what changes. Raises `TooManyClients`."""
        if len(self._subscriptions) >= CLIENTS_MAX:
            raise TooManyClients
        subscription = Subscription()
        if self._page is not None:
            subscription.put(message("status", self._page))
            subscription.put(message("point", self._point))
        subscription.put(message("events", {"all": True, "events": event_documents(self.events)}))
        self._subscriptions.add(subscription)
        self.notice()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a client."""
        self._subscriptions.discard(subscription)

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return bool(self._subscriptions)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._noticed.clear()
            try:
                await self._step()
            except (HostError, ConfigError) as error:
                self._cannot_look(str(error))
            await asyncio.sleep(SOON_S if self.watched else POINT_S)
            pause_s = POINT_S if self.watched else QUIET_S
            try:
                async with asyncio.timeout(max(0.0, self._point_at + pause_s - time.monotonic())):
                    await self._noticed.wait()
            except TimeoutError:
                pass

    # -- looking ----------------------------------------------------------------------------------------------
    async def _step(self) -> None:
        """Look once; tell what changed. Only when it is time for a point are workers asked for their counters."""
        at, now_s = time.time(), time.monotonic()
        status = await self._status()
        # Timers of the loop may ring a moment early.
        is_point = now_s - self._point_at >= POINT_S - EARLY_S
        features = together(await self._probe.read_features(_feature_programs(status), COUNTERS_S))
        # A feature process that does not answer says nothing new: what was known of its stores stays.
        known = self._look.stores if self._look is not None else {}
        changes = self._read_changes()
        last = changes[-1] if changes else None
        look = Look(at=at, status=status, stores=dict(known) | features.stores, last_change=last)
        new = events_between(self._look, look) if self._look is not None else events_known(look, changes)
        self._look = look
        self._tell(page_status(status, look.stores, at), new)
        if is_point:
            await self._add_point(at, now_s, status, features)

    def _read_changes(self) -> list[Change]:
        """The last changes of what should run; the file is read when it is another one."""
        try:
            seen = self._run_dir.history.stat()
            if (seen.st_ino, seen.st_mtime_ns) != self._changes_seen:
                self._changes_seen = seen.st_ino, seen.st_mtime_ns
                self._changes = read_history(self._run_dir.history)
        except FileNotFoundError:
            pass
        except (OSError, ConfigError) as error:
            logger.warning("%s", error)
        return self._changes

    async def _add_point(self, at: float, now_s: float, status: HostStatus, features: FeatureCounters) -> None:
        programs = {group_name(one.name, one.version): [slot.name for slot in one.slots] for one in status.models}
        found = await self._probe.read([name for names in programs.values() for name in names], COUNTERS_S)
        views = {model.group: _views_of(model) for model in self._served()}
        readings, points, workers = {}, {}, {}
        for model in status.models:
            group = group_name(model.name, model.version)
            own = {name: found[name] for name in programs[group] if name in found}
            seen, workers[group] = observe(self._workers.get(group, {}), own, wanted=model.wanted)
            readings[group] = Reading(
                at=now_s,
                model=model,
                busy_share=seen.busy if seen.ready else float("nan"),
                views={name: features.views[name] for name in views.get(group, ()) if name in features.views},
            )
            points[group] = numbers(self._readings.get(group), readings[group])
        earlier = all_slots(self._point_before) if self._point_before is not None else []
        slots = slot_numbers(earlier, all_slots(status), now_s - self._point_at)
        self._workers, self._readings, self._point_before, self._point_at = workers, readings, status, now_s
        self.history.add(at, points)
        self._point = Point(at=round(at, 1), models=_shortened(points), slots=slots)
        self._send("point", self._point)

    # -- telling ----------------------------------------------------------------------------------------------
    def _tell(self, page: PageStatus, new: list[Event]) -> None:
        if new:
            self.events = kept(self.events, new)
            self._send("events", {"all": False, "events": event_documents(new)})
        if page != self._page:
            self._page = page
            self._send("status", page)

    def _cannot_look(self, problem: str) -> None:
        logger.warning("looking at the host: %s", problem)
        self._point_at = time.monotonic()
        if self._page is not None:
            self._tell(msgspec.structs.replace(self._page, ready=False, problem=problem), [])

    def _send(self, kind: str, document: object) -> None:
        if not self._subscriptions:
            return
        data = message(kind, document)
        for subscription in self._subscriptions:
            subscription.put(data)


def _feature_programs(status: HostStatus) -> list[str]:
    return [slot.name for slot in status.host if slot.name.startswith(f"{FEATURES_GROUP}:")]


def _views_of(model: DeployedModel) -> set[str]:
    """The feature views that a model version reads."""
    return {ref.view for spec in model.signature.inputs for ref in feature_refs(spec)}


def _shortened(points: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """With four digits, as the history has them."""
    return {
        group: Numbers(**{name: float(f"{value:.4g}") for name, value in msgspec.structs.asdict(one).items()})
        for group, one in points.items()
    }
