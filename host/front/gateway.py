"""The thin shell around `host.dispatch`: calls of clients, frames for workers, one timer for deadlines."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from host.config.deployment import DeployedModel
from host.config.run_dir import FEATURES_GROUP, group_name
from host.dispatch import Action, Answer, CloseWorker, Counts, Dispatcher, Pending, PoolKey, Refuse, Send
from host.front.outcomes import CANCELLED, FELL_BACK, Outcomes, WordsOf, private_words
from host.links import Link
from host.protocol.documents import decode_document
from host.protocol.errors import ModelNotReady, PoisonRequest, RequestError
from host.protocol.logs import about
from host.protocol.messages import (
    NO_JSON_HEADER,
    Encoding,
    Hello,
    Limits,
    Notice,
    Operation,
    RequestHead,
    ResponseHead,
)

if TYPE_CHECKING:
    from host.front.tracing import Trace

logger = logging.getLogger("modelhost.front")

STATISTICS_TIMEOUT_S: Final = 1.0
"""A worker answers between two batches; one that takes longer is left out of the sum."""

DEADLINE_TICK_S: Final = 0.002
"""Deadlines are looked at no more often than this: under overload one passes every few microseconds."""

_NS_PER_S: Final = 1_000_000_000
_OK: Final = 200


class Client(Protocol):
    """Who waits for a call: told once, unless it cancelled."""

    def answered(self, call: Any, head: ResponseHead, body: bytes) -> None:
        """The worker's answer to the call, the very object that was submitted."""
        ...

    def refused(self, call: Any, error: RequestError) -> None:
        """There will be none."""
        ...


class Fallback(NamedTuple):
    """The version that answers where the one that was chosen cannot."""

    pool: PoolKey
    timeout_ns: int


class Call(Pending, eq=False, kw_only=True):
    """What a client asks of a model: everything that goes to the worker, the body untouched."""

    sequence: int = 0
    """Given by the gateway."""
    client: Client
    model: str = ""
    """For the feature service: the model, as `churn.v3`."""
    completed: bytes | None = None
    """The body with its features in it, in msgpack; None: the body itself is what the worker gets."""
    reading: Call | None = None
    """What was asked of the feature service, while it has not answered."""
    fallback: Fallback | None = None
    """Of a call for a canary: whom to ask when that is not ready, whether it never was or its last worker died."""
    operation: Operation
    body: bytes
    received_ns: int
    encoding: Encoding = Encoding.JSON
    accept: Encoding = Encoding.JSON
    json_bytes: int = NO_JSON_HEADER
    request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    """Of the caller; only the front's own spans need it."""
    trace: Trace | None = None
    """Where it is noted what happens to the call; only `TracedGateway` looks."""


Result = tuple[ResponseHead, bytes]

FEATURES_POOL: Final = (FEATURES_GROUP, "")
"""The feature processes are workers too: one pool, with its own queue, retries and deadlines."""

FEATURES_LIMITS: Final = Limits(max_batch_rows=1024, max_queue=8192)
"""A feature process has at most two "batches" of requests at once (`dispatch.AHEAD_BATCHES`); the rest waits here,
where it can still expire."""


class Gateway:
    """Runs calls on workers. Implements `LinkOwner`; everything happens on one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        models: Iterable[DeployedModel] = (),
        words_of: WordsOf = private_words,
    ) -> None:
        self._loop = loop
        self._words_of = words_of
        self.outcomes: dict[PoolKey, Outcomes] = {}
        """Of every version that is served, or that workers are still connected of."""
        self.others = Outcomes(words_of(""))
        """Of everything that is for no model version."""
        self.dispatcher = Dispatcher(self._counts_of)
        self._featured: dict[PoolKey, str] = {}
        """Models with inputs that can be fetched, with their groups."""
        self._unready: dict[int, dict[str, str]] = {}
        """Feature process -> models that it cannot serve, by group, and why."""
        self.dispatcher.declare(FEATURES_POOL, FEATURES_LIMITS, "the feature service")
        self._sequences = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Result]] = {}
        self._links: dict[int, Link] = {}
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_ns = 0
        self.serve(models)

    def serve(self, models: Iterable[DeployedModel]) -> None:
        """Take requests for these model versions. What others still have is finished as if nothing had changed."""
        served = {model.key: model for model in models}
        for key, model in served.items():
            self.dispatcher.declare(key, model.limits, holds=model.autoscaled and not model.min_processes)
        self._featured = {
            key: group_name(*key)
            for key, model in served.items()
            if any(spec.features for spec in model.signature.inputs)
        }
        self._perform(self.dispatcher.keep_only({FEATURES_POOL, *served}))
        self.outcomes = {key: self.outcomes[key] for key in self.dispatcher.pools if key != FEATURES_POOL}

    def _counts_of(self, key: PoolKey) -> Counts:
        """Where the dispatch counts for a new pool: beside the outcomes of its requests."""
        outcomes = Outcomes(self._words_of(group_name(*key)))
        if key != FEATURES_POOL:
            self.outcomes[key] = outcomes
        return outcomes.dispatched

    def outcomes_of(self, key: PoolKey) -> Outcomes:
        """Where a client's request is counted; one for no model version, or one that is gone, among the others."""
        return self.outcomes.get(key, self.others)

    def slot_of(self, call: Call) -> int | None:
        """Which worker has a call, or answered it; None: none, or one that is gone."""
        link = self._links.get(call.worker) if call.worker is not None else None
        return int(link.program.rpartition(":")[2]) if link is not None else None

    def busy(self) -> Counter[PoolKey]:
        """How many calls each model version has here, those whose features are being read included."""
        calls = cast("Iterable[Call]", self.dispatcher.pending.values())
        owners = (call.client.call if isinstance(call.client, Completion) else call for call in calls)
        return Counter(call.pool for call in owners)

    @property
    def in_flight(self) -> int:
        """Calls that wait for their answer."""
        return len(self.dispatcher.pending)

    def ready_workers(self, key: PoolKey) -> int:
        """Workers of a model version that take requests."""
        pool = self.dispatcher.pools.get(key)
        return pool.ready if pool is not None else 0

    def not_ready(self, key: PoolKey) -> str | None:
        """Why a model version cannot serve; None if it can."""
        pool = self.dispatcher.pools.get(key)
        if pool is None or not pool.takes:
            return "no worker is ready"
        group = self._featured.get(key)
        if group is None:
            return None
        if not self.ready_workers(FEATURES_POOL):
            return "the feature service is not ready"
        return next((reasons[group] for reasons in self._unready.values() if group in reasons), None)

    def runs_now(self, key: PoolKey) -> bool:
        """Whether a version that serves beside the default can serve, without waiting for a worker to come.

        That one was wanted is noted, for whoever starts the first one of a version that is scaled to none.
        """
        if not self.ready_workers(key):
            self.dispatcher.missed(key)
            return False
        return self.not_ready(key) is None

    def queued(self, key: PoolKey) -> int:
        """Calls of a model version that wait for a worker, or for a feature process to complete them."""
        pool = self.dispatcher.pools.get(key)
        queued = len(pool.queue) if pool is not None else 0
        return queued + len(self.dispatcher.pools[FEATURES_POOL].queue) if key in self._featured else queued

    def submit(self, call: Call, now_ns: int) -> None:
        """Run a call on one of the model version's workers, or refuse it, maybe before this returns."""
        if self._featured and call.pool in self._featured:
            self._read_features(call, now_ns)
        else:
            self._submit(call, now_ns)

    def _read_features(self, call: Call, now_ns: int) -> None:
        """Ask the feature service for what the call leaves out; `_completed` goes on from there."""
        reason = self.not_ready(call.pool)
        if reason is not None:
            model, version = call.pool
            self.refuse(call, ModelNotReady(f"model '{model}' version {version}: {reason}"))
            return
        call.reading = Call(
            client=Completion(self, call, now_ns),
            pool=FEATURES_POOL,
            model=self._featured[call.pool],
            deadline_ns=call.deadline_ns,
            size_bytes=call.size_bytes,
            operation=call.operation,
            body=call.body,
            received_ns=call.received_ns,
            encoding=call.encoding,
            json_bytes=call.json_bytes,
            request_id=call.request_id,
            traceparent=call.traceparent,
        )
        self._submit(call.reading, now_ns)

    def _submit(self, call: Call, now_ns: int) -> None:
        call.sequence = next(self._sequences)
        self._perform(self.dispatcher.submit(call, now_ns))
        if self._deadline_timer is None or call.deadline_ns < self._deadline_ns:
            self._arm(call.deadline_ns, now_ns)

    def cancel(self, call: Call) -> None:
        """The client is gone: the call leaves the queue, or its answer will be dropped."""
        if self.dispatcher.cancel((call.reading or call).sequence):
            self.outcomes_of(call.pool).words[CANCELLED] += 1
        call.reading = None

    async def statistics(self, key: PoolKey) -> list[Mapping[str, Any]]:
        """Ask every worker of a model version for its counters."""
        pool = self.dispatcher.pools.get(key)
        links = [self._links[worker] for worker in pool.workers] if pool is not None else []
        answers = await asyncio.gather(*(self._ask(link, Operation.STATISTICS) for link in links))
        return [decode_document(body, Encoding.JSON) for body in answers if body is not None]

    async def _ask(self, link: Link, operation: Operation) -> bytes | None:
        """Ask one worker something beside the dispatch; None if it does not answer in time."""
        sequence = next(self._sequences)
        future: asyncio.Future[Result] = self._loop.create_future()
        self._asked[sequence] = future
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + int(STATISTICS_TIMEOUT_S * _NS_PER_S)
        link.send(RequestHead(sequence=sequence, operation=operation, received_ns=now_ns, deadline_ns=deadline_ns))
        try:
            async with asyncio.timeout(STATISTICS_TIMEOUT_S):
                return (await future)[1]
        except TimeoutError:
            return None
        finally:
            del self._asked[sequence]

    # -- LinkOwner ----------------------------------------------------------------------------------------
    def joined(self, link: Link, hello: Hello) -> None:
        """A worker takes requests from now on."""
        logger.info("worker %s joined (pid %d, %s)", link.program, hello.pid, hello.runtime_version)
        self._links[link.identity] = link
        key = (hello.model_name, hello.model_version)
        now_ns = time.monotonic_ns()
        self._perform(self.dispatcher.worker_joined(link.identity, key, hello.limits, now_ns))

    def leaving(self, link: Link) -> None:
        """A worker gets nothing more."""
        logger.info("worker %s is leaving", link.program)
        self._perform(self.dispatcher.worker_leaving(link.identity))

    def lost(self, link: Link) -> None:
        """A worker is gone; what it had is sent to another."""
        worker = self.dispatcher.workers[link.identity]
        logger.info("worker %s is gone (%d requests in flight)", link.program, len(worker.in_flight))
        del self._links[link.identity]
        self._unready.pop(link.identity, None)
        self._perform(self.dispatcher.worker_lost(link.identity, time.monotonic_ns()))
        if worker.pool not in self.dispatcher.pools:
            self.outcomes.pop(worker.pool, None)

    def noticed(self, link: Link, notice: Notice) -> None:
        """A feature process says which models it cannot serve."""
        for group, reason in notice.unready.items():
            logger.error("%s: not ready: %s", group, reason)
        self._unready[link.identity] = notice.unready

    def answered(self, link: Link, head: ResponseHead, body: bytes) -> None:
        """A worker's answer is handed to its client; one that nobody waits for is counted and dropped."""
        if self._asked:
            asked = self._asked.get(head.sequence)
            if asked is not None:
                if not asked.done():
                    asked.set_result((head, body))
                return
        now_ns = time.monotonic_ns()
        for action in self.dispatcher.answered(link.identity, head, now_ns):
            if type(action) is Answer:
                call: Call = action.pending  # type: ignore[assignment]
                outcomes = self.outcomes.get(call.pool)
                if outcomes is not None:  # None: a feature process answered
                    if head.batch_rows:
                        received_ns = call.received_ns
                        outcomes.ran(head.status, now_ns - received_ns, head.queue_ns, call.sent_ns - received_ns)
                    else:
                        outcomes.answered(head.status, now_ns - call.received_ns)
                call.client.answered(call, head, body)
            else:
                self._perform((action,))

    def completed(self, call: Call, body: bytes | None, asked_ns: int) -> None:
        """The call has its features, which the feature service was asked for at `asked_ns`: on to a worker."""
        call.reading, call.completed = None, body
        now_ns = time.monotonic_ns()
        self.outcomes_of(call.pool).features.add(now_ns - asked_ns)
        self._submit(call, now_ns)

    def answer(self, call: Call, head: ResponseHead, body: bytes) -> None:
        """The call's answer is one that the feature service gave."""
        self.outcomes_of(call.pool).answered(head.status, time.monotonic_ns() - call.received_ns)
        call.client.answered(call, head, body)

    def refuse(self, call: Call, error: RequestError) -> None:
        """There will be no answer to the call, unless another version gives one."""
        fallback = call.fallback
        if fallback is None or not isinstance(error, ModelNotReady):
            if call.pool != FEATURES_POOL:  # else whoever asked counts it
                self.outcomes_of(call.pool).refused(error)
            call.client.refused(call, error)
            return
        self.outcomes_of(call.pool).words[FELL_BACK] += 1
        call.pool, call.fallback, call.completed = fallback.pool, None, None
        call.deadline_ns = min(call.deadline_ns, call.received_ns + fallback.timeout_ns)
        self.submit(call, time.monotonic_ns())

    # -- inside -------------------------------------------------------------------------------------------
    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            # Whatever is pending here is a `Call`; saying so with `cast` would cost a call for each request.
            if type(action) is Send:
                call: Call = action.pending  # type: ignore[assignment]
                self._links[action.worker].send(_request(call))
            elif type(action) is Refuse:
                refused: Call = action.pending  # type: ignore[assignment]
                if isinstance(action.error, PoisonRequest):
                    _log_poison(refused, action.error)
                self.refuse(refused, action.error)
            elif type(action) is CloseWorker:
                self._links[action.worker].close()
            else:
                raise AssertionError("only `answered` gives answers")

    def _arm(self, deadline_ns: int, now_ns: int) -> None:
        """Have the one timer fire at the earliest deadline; it looks at all of them and sets itself again.

        Most calls are answered long before, so this is one comparison a call, and one look at what is pending
        each time that the earliest deadline passes.
        """
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._deadline_ns = deadline_ns
        delay_s = max(DEADLINE_TICK_S, (deadline_ns - now_ns) / _NS_PER_S)
        self._deadline_timer = self._loop.call_later(delay_s, self._deadline_passed)

    def _deadline_passed(self) -> None:
        self._deadline_timer = None
        now_ns = time.monotonic_ns()
        self._perform(self.dispatcher.expire(now_ns))
        next_ns = self.dispatcher.next_deadline_ns()
        if next_ns is not None:
            self._arm(next_ns, now_ns)


def _request(call: Call) -> RequestHead:
    return RequestHead(
        call.sequence,
        call.operation,
        call.received_ns,
        call.deadline_ns,
        call.encoding,
        call.accept,
        call.json_bytes,
        call.alone,
        call.request_id,
        call.traceparent,
        call.completed is not None,
        call.model,
        call.body if call.completed is None else call.completed,
    )


class Completion:
    """Waits for the features of one call. Implements `Client`."""

    __slots__ = ("_asked_ns", "_gateway", "call")

    def __init__(self, gateway: Gateway, call: Call, asked_ns: int) -> None:
        self._gateway = gateway
        self._asked_ns = asked_ns
        self.call = call

    def answered(self, reading: Call, head: ResponseHead, body: bytes) -> None:
        """Go on with what was found; an error, which names what could not be, is the call's answer."""
        if head.status == _OK:
            self._gateway.completed(self.call, body or None, self._asked_ns)
        else:
            self.call.reading = None
            self._gateway.answer(self.call, head, body)

    def refused(self, reading: Call, error: RequestError) -> None:
        """The feature service has no answer, which refuses the call."""
        self.call.reading = None
        self._gateway.refuse(self.call, error)


def _log_poison(call: Call, error: PoisonRequest) -> None:
    digest = hashlib.sha256(call.body).hexdigest()
    subject = about(call.request_id, call.traceparent)
    logger.error("%s; it is refused (body sha256 %s, %d bytes)", error, digest, len(call.body), extra=subject)
