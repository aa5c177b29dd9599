"""What the feature service does with each request: complete it, read features for somebody, forget some."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from feature_io.access import read_invalidation, read_reading, reading_answer
from feature_io.breaker import Breaker
from feature_io.cache import Cache
from feature_io.completion import Completer, Found, Place, Wanted
from feature_io.connection import StoreConnection
from feature_io.entities import Entities
from feature_io.plan import model_features, packed_defaults
from feature_io.stores import Store
from feature_io.warming import read_keys, warm
from host.config.deployment import DeployedModel
from host.config.features import Features
from host.config.features import Store as StoreConfig
from host.config.run_dir import group_name
from host.protocol.counters import FEATURES, STORE, VIEW, Layout, Words, private_counters
from host.protocol.documents import encode_document, error_document
from host.protocol.errors import (
    DeadlineExceeded,
    Internal,
    InvalidInput,
    RequestError,
    http_status,
)
from host.protocol.logs import about
from host.protocol.messages import Encoding, Notice, Operation, RequestHead, ResponseHead, response_frames

logger = logging.getLogger("modelhost.features")

READ_SHARE: Final = 0.8
"""Of the time that a request has left when it comes here, features may take so much; the rest is the model's."""

FIRST_TRY_S: Final = 10.0
"""How long the start waits for the stores; after that views are served as their policies say."""

_NS_PER_S: Final = 1e9

_COMPLETED: Final = FEATURES.at("completed")

Reply = Callable[[bytes], None]
Answer = Callable[[Mapping[Place, Found]], bytes]


def _private(layout: Layout, _: str) -> Words:
    return private_counters(layout)


class _Waiting:
    """A request whose reads are on their way. It is over with the last of them, or with its patience.

    Callbacks and not a task with `asyncio.wait`, which costs as much as the rest of the service together.
    """

    __slots__ = ("_is_over", "_missing", "_service", "_timer", "answer", "found", "head", "reads", "reply")

    def __init__(
        self,
        service: FeatureService,
        head: RequestHead,
        found: dict[Place, Found],
        reads: Mapping[Place, asyncio.Task[Found]],
        patience_s: float,
        longest_s: float,
        reply: Reply,
        answer: Answer,
    ) -> None:
        """`patience_s`: how long it waits; `longest_s`: how long its reads can take."""
        self.head, self.found, self.reads, self.reply, self.answer = head, found, reads, reply, answer
        self._service = service
        self._missing = len(reads)
        self._is_over = False
        # Most have no timer: a read ends within the time of its view, which is less than requests have.
        self._timer: asyncio.TimerHandle | None = None
        if patience_s < longest_s:
            self._timer = asyncio.get_running_loop().call_later(patience_s, self.give_up)
        for read in reads.values():
            read.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[Found]) -> None:
        self._missing -= 1
        if not self._missing:
            self.give_up()

    def give_up(self) -> None:
        """Wait no longer. The reads go on: others wait for them, and the cache is glad of them."""
        if self._is_over:
            return
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        self._service.finish(self)


class FeatureService:
    """All views of a host. Everything happens on one event loop."""

    def __init__(
        self,
        features: Features,
        models: Iterable[DeployedModel],
        cache_bytes: int,
        make_store: Callable[[StoreConfig], Store],
        changed: Callable[[], None] = lambda: None,
        max_bytes: int = 64 << 20,
        words_of: Callable[[Layout, str], Words] = _private,
    ) -> None:
        """`changed` is called when `notice` says something else than before; `max_bytes`: of any answer.

        `words_of`: where it counts what a layout has, of the view or store of that name.
        """
        self._max_bytes = max_bytes
        self._words = words_of(FEATURES, "")
        self.cache = Cache(cache_bytes, self._words)
        self._features = features
        stores = {store.name: words_of(STORE, store.name) for store in features.stores}
        self._breakers = {name: Breaker(words=words) for name, words in stores.items()}
        self._views = [
            Entities(view, place, self.cache, self._breakers[view.store], words=words_of(VIEW, view.name))
            for place, view in enumerate(features.views)
        ]
        self._connections = [
            StoreConnection(
                config.name,
                make_store(config),
                [one for one in self._views if one.view.store == config.name],
                changed,
                stores[config.name],
            )
            for config in features.stores
        ]
        self._changed = changed
        self._defaults = [packed_defaults(view) for view in features.views]
        self._completers: dict[str, Completer] = {}
        self._needs: dict[str, frozenset[str]] = {}
        """Model -> names of the views that it needs."""
        self._add(models)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[_Waiting] = set()

    def serve(self, models: Iterable[DeployedModel]) -> None:
        """Complete requests of these model versions too. A version stays as it is, so those known stay known."""
        if self._add(models):
            self._changed()

    def _add(self, models: Iterable[DeployedModel]) -> bool:
        features, added = self._features, False
        for model in models:
            group = group_name(model.name, model.version)
            if group in self._completers:
                continue
            needed = model_features(model.signature, features, model.limits.max_batch_rows)
            if needed is not None:
                self._completers[group] = Completer(needed, self._defaults, self._max_bytes)
                self._needs[group] = frozenset(features.views[place].name for place in needed.view_places)
                added = True
        return added

    # -- life -------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Try to connect every store, then read what is to be warm; go on with both when that takes too long."""
        for connection in self._connections:
            self._spawn(connection.run())
        try:
            async with asyncio.timeout(FIRST_TRY_S):
                for connection in self._connections:
                    await connection.tried.wait()
        except TimeoutError:
            logger.warning("a store has not answered within %.0f s; serving without it", FIRST_TRY_S)
        warming = asyncio.create_task(self._warm())
        self._tasks.add(warming)
        warming.add_done_callback(self._tasks.discard)
        await asyncio.wait([warming], timeout=FIRST_TRY_S)

    async def close(self) -> None:
        """End everything, and close the stores."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.difference_update(tasks)
        for entities in self._views:
            await entities.close()
        for waiting in list(self._waiting):
            waiting.give_up()
        for connection in self._connections:
            await connection.close()

    def notice(self) -> Notice:
        """Which models cannot be served, and why: a view of theirs does not fit its table."""
        mismatches = {
            name: f"view {name}: {why}"
            for connection in self._connections
            for name, why in connection.mismatches.items()
        }
        return Notice(
            {
                group: "; ".join(mismatches[view] for view in sorted(views) if view in mismatches)
                for group, views in self._needs.items()
                if not views.isdisjoint(mismatches)
            }
        )

    async def _warm(self) -> None:
        for entities in self._views:
            if entities.view.warm_up is not None and entities.reader is not None:
                await warm(entities, read_keys(entities.view))

    # -- requests ---------------------------------------------------------------------------------------------
    def handle(self, head: RequestHead, body: bytes, reply: Reply) -> None:
        """Answer one request, at once if the cache has all of it."""
        try:
            match head.operation:
                case Operation.INFER | Operation.PREDICT:
                    self._complete(head, body, reply)
                case Operation.READ_FEATURES:
                    self._read(head, body, reply)
                case Operation.INVALIDATE_FEATURES:
                    reply(self._document(head, self._invalidate(body)))
                case Operation.STATISTICS:
                    reply(self._document(head, self.statistics()))
        except RequestError as error:
            reply(refusal(head, error))
        except Exception:
            reply(_defect(head))

    def _complete(self, head: RequestHead, body: bytes, reply: Reply) -> None:
        completer = self._completers.get(head.model)
        if completer is None:
            raise Internal(f"the feature service knows no model {head.model}")
        if head.operation is Operation.INFER:
            wanted = completer.infer(body, head.encoding, head.json_bytes)
        else:
            wanted = completer.predict(body, head.encoding)
        if wanted is None:
            reply(response_frames([ResponseHead(head.sequence, 200)]))
            return
        self._find(head, wanted.places, reply, lambda found: self._completed(head, wanted, found))

    def _completed(self, head: RequestHead, wanted: Wanted, found: Mapping[Place, Found]) -> bytes:
        by_view = {view: [found[view, key] for key in keys] for view, keys in wanted.keys.items()}
        body = wanted.complete(by_view)
        self._words[_COMPLETED] += 1
        return response_frames([ResponseHead(head.sequence, 200, Encoding.MSGPACK, body=body)])

    def _read(self, head: RequestHead, body: bytes, reply: Reply) -> None:
        reading = read_reading(self._features, body, head.encoding)
        self._find(head, reading.places, reply, lambda found: self._document(head, reading_answer(reading, found)))

    def _document(self, head: RequestHead, document: Any) -> bytes:
        body = encode_document(document, head.accept)
        if len(body) > self._max_bytes:
            raise InvalidInput(f"the answer has {len(body)} bytes, the limit (max_body_bytes) is {self._max_bytes}")
        return response_frames([ResponseHead(head.sequence, 200, head.accept, body=body)])

    def _invalidate(self, body: bytes) -> dict[str, Any]:
        places, key = read_invalidation(self._features, body)
        chosen = [self._views[place] for place in places]
        return {"forgotten": {one.view.name: one.invalidate(key) for one in chosen}}

    def _find(
        self,
        head: RequestHead,
        places: Sequence[Place],
        reply: Reply,
        answer: Answer,
    ) -> None:
        """Look every entity up, and reply with the answer: now, or when those that are not cached have been read."""
        now_s = time.monotonic()
        left_s = head.deadline_ns / _NS_PER_S - now_s
        if left_s <= 0:
            raise DeadlineExceeded("deadline passed before the features were read")
        found: dict[Place, Found] = {}
        reads: dict[Place, asyncio.Task[Found]] = {}
        for place in places:
            view, key = place
            known = self._views[view].known(key, now_s)
            if known is None:
                read = self._views[view].read(key)
                if isinstance(read, asyncio.Task):
                    reads[place] = read
                    continue
                known = read
            found[place] = known
        if reads:
            longest_s = max(self._views[view].timeout_s for view, _ in reads)
            self._waiting.add(_Waiting(self, head, found, reads, READ_SHARE * left_s, longest_s, reply, answer))
        else:
            reply(answer(found))

    def finish(self, waiting: _Waiting) -> None:
        """Reply with what was read, and with what there is in place of what was not."""
        self._waiting.discard(waiting)
        head, found = waiting.head, waiting.found
        try:
            for place, read in waiting.reads.items():
                ended = read.done() and not read.cancelled()
                found[place] = read.result() if ended else self._views[place[0]].late(place[1])
            waiting.reply(waiting.answer(found))
        except RequestError as error:
            waiting.reply(refusal(head, error))
        except Exception:
            waiting.reply(_defect(head))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- counters ---------------------------------------------------------------------------------------------
    def statistics(self) -> dict[str, Any]:
        """What happened since the host started, and how it is now."""
        return {
            "completed": self._words[_COMPLETED],
            "cache": {
                "entries": len(self.cache),
                "size_bytes": self.cache.size_bytes,
                "capacity_bytes": self.cache.capacity_bytes,
                "evictions": self.cache.evictions,
            },
            "stores": {
                name: {"open": breaker.is_open, "openings": breaker.openings}
                for name, breaker in self._breakers.items()
            },
            "views": {one.view.name: asdict(one.counters) for one in self._views},
            "in_flight": len(self._waiting) + len(self._tasks),
        }


def refusal(head: RequestHead, error: RequestError) -> bytes:
    """The answer to a request that gets no result, in the encoding that it came in."""
    body = error_document(error, head.encoding)
    return response_frames([ResponseHead(head.sequence, http_status(error), head.encoding, body=body)])


def _defect(head: RequestHead) -> bytes:
    logger.exception("reading features failed", extra=about(head.request_id, head.traceparent))
    return refusal(head, Internal("internal error; the feature service's log has the details"))
