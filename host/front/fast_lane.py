"""The fast lane: plain inference requests, read and answered without a framework.

Every connection begins here. While its requests are plain (`host.front.plain`), a request costs one look-up of its
head, one call into the dispatch and one write. The first that is not plain is handed to aiohttp, before a byte of it
is consumed and after all that came before it was answered; aiohttp then serves the connection to its end.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from host.front.access_log import Access, AccessLog, error_code
from host.front.answers import COMPRESS_INLINE_MAX_BYTES, Responses, compress, compression
from host.front.bodies import BodyBudget
from host.front.catalog import Catalog
from host.front.deadlines import body_timeout_ns
from host.front.gateway import Call, Gateway
from host.front.headers import RequestIds
from host.front.plain import PlainHead, may_become_plain, read_plain_head
from host.front.routes import Endpoint
from host.front.sharing import Sharing
from host.front.traffic import NO_CANARY
from host.protocol.errors import DeadlineExceeded, Overloaded, RequestError
from host.protocol.messages import Operation, ResponseHead

HEADS_REMEMBERED: Final = 4096
"""Heads repeat on a kept-alive connection; when there are more, all are forgotten."""

PIPELINE_MAX: Final = 64
"""Requests of one connection that wait for their answers."""
PIPELINE_RESUME: Final = 32
"""A connection that had so many is read on when this many wait."""

HEAD_TIMEOUT_S: Final = 10.0
"""From the first byte of a head to its last."""

WRITE_TIMEOUT_S: Final = 60.0
"""A client that does not take its answers for so long is cut off."""

FAREWELL_S: Final = 0.5
"""How long a client that is about to ask on an idle connection gets when the front stops: its answer then says that the
connection ends, where a close could cross its request."""

LAST_LOOK_S: Final = 0.005
"""After the farewell: a front that stood still at its end has not read yet what came meanwhile. The loop looks at the
clock before it looks at sockets."""

LINGER_S: Final = 2.0
"""How long the rest of a refused body is read and thrown away, so that the client sees the answer."""

SWEEP_S: Final = 1.0
_NS_PER_S: Final = 1_000_000_000

_STATUS_AT: Final = len("HTTP/1.1 ")
_FAILED: Final = ord("5")
"""The first digit of a failure's status."""


# Why a connection is not read just now: bits. (An enum.IntFlag costs half a microsecond to look at.)
_PAUSED_BY_CLIENT: Final = 1
"""It does not take its answers."""
_PAUSED_IN_TURN: Final = 2
"""What was read waits for earlier answers."""


class LaneCall(Call, eq=False, kw_only=True):
    """A call of this lane, and its answer while an earlier one is not ready."""

    accept_encoding: str | None = None
    answer: bytes | None = None


@dataclass(slots=True)
class _Body:
    """A body that is still arriving."""

    plain: PlainHead
    head: bytes
    catalog: Catalog
    """By which the head was read."""
    received_ns: int
    missing: int
    timer: asyncio.TimerHandle
    parts: list[bytes] = field(default_factory=list)
    taken: int = 0


class FastLane:
    """What all connections of a front share."""

    def __init__(
        self,
        catalog: Catalog,
        gateway: Gateway,
        sharing: Sharing,
        budget: BodyBudget,
        request_ids: RequestIds,
        access: AccessLog,
        *,
        max_body_bytes: int,
        keepalive_s: float,
        other_lane: Callable[[], asyncio.Protocol],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.gateway = gateway
        self.sharing = sharing
        self.budget = budget
        self.request_ids = request_ids
        self.access = access
        self.responses = Responses()
        self.other_lane = other_lane
        self.connections: set[FastConnection] = set()
        self.stopping = False
        self._catalog = catalog
        self._max_body_bytes = max_body_bytes
        self._keepalive_ns = int(keepalive_s * _NS_PER_S)
        self._heads: dict[bytes, PlainHead] = {}
        self._empty = asyncio.Event()

    @property
    def catalog(self) -> Catalog:
        """What paths mean now."""
        return self._catalog

    @catalog.setter
    def catalog(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._heads.clear()

    def read_head(self, head: bytes) -> PlainHead | None:
        """Read a head, or remember it from before."""
        plain = self._heads.get(head)
        if plain is None:
            plain = read_plain_head(head, self._catalog, self._max_body_bytes)
            if plain is not None and plain.repeats:
                if len(self._heads) >= HEADS_REMEMBERED:
                    self._heads.clear()
                self._heads[head] = plain
        return plain

    def chosen(self, plain: PlainHead) -> PlainHead:
        """What a head of a model with canaries or a shadow says for this one request: the version that answers it."""
        if plain.traffic is None or not plain.canaries:
            return plain
        position = self.sharing.canary(plain.traffic, plain.slot)
        return plain if position == NO_CANARY else plain.canaries[position]

    async def sweep(self) -> None:
        """Close what is idle, slow or stuck, once a second, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_ns = time.monotonic_ns()
            for connection in list(self.connections):
                connection.sweep(now_ns, self._keepalive_ns)

    async def stop(self, drain_s: float) -> None:
        """Answer what was asked and is asked in a moment, each time as the last answer; then close what is idle."""
        deadline = self.loop.time() + drain_s
        self.stopping = True
        await self._until_empty(min(FAREWELL_S, drain_s))
        await self._until_empty(min(LAST_LOOK_S, drain_s))
        for connection in list(self.connections):
            connection.finish_up()
        await self._until_empty(deadline - self.loop.time())
        for connection in list(self.connections):
            connection.abort()

    async def _until_empty(self, limit_s: float) -> None:
        try:
            async with asyncio.timeout(limit_s):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            pass

    def left(self, connection: FastConnection) -> None:
        """A connection ended, or belongs to aiohttp now."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()


class FastConnection(asyncio.Protocol):
    """One connection. Implements `gateway.Client`."""

    __slots__ = (
        "_active_ns",
        "_blocked_ns",
        "_body",
        "_calls",
        "_closed_ns",
        "_discard",
        "_going_on",
        "_head_ns",
        "_lane",
        "_leaving",
        "_paused",
        "_rest",
        "_transport",
    )

    def __init__(self, lane: FastLane) -> None:
        self._lane = lane
        self._transport: asyncio.Transport | None = None
        self._calls: deque[LaneCall] = deque()
        """Not answered yet, in the order in which they came."""
        self._rest = b""
        """Received, and not a whole head yet or waiting for its turn."""
        self._body: _Body | None = None
        self._leaving = False
        """What is in `_rest` is for aiohttp, when everything before it is answered."""
        self._discard = False
        """An answer said that the connection ends: what still comes is thrown away."""
        self._paused = 0
        self._active_ns = time.monotonic_ns()
        self._head_ns = 0
        self._blocked_ns = 0
        self._closed_ns = 0
        self._going_on = False
        """What waited for its turn is about to be read."""

    # -- asyncio.Protocol ---------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by shape, not by class
        self._lane.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Take requests apart and begin each that is whole."""
        if self._discard:
            return
        if self._body is not None:
            data = self._more_body(self._body, data)
        if self._rest:
            data, self._rest = self._rest + data, b""
        if data:
            self._read(data)

    def eof_received(self) -> None:
        """The client is gone: the transport closes itself, and what was asked is cancelled."""

    def connection_lost(self, error: Exception | None) -> None:
        """Cancel what nobody waits for any more."""
        self._transport = None
        self._discard = True
        self._end_body()
        for call in self._calls:
            if call.answer is None:
                self._lane.gateway.cancel(call)
                self._lane.budget.give_back(call.size_bytes, call.pool[0])
        self._calls.clear()
        self._lane.left(self)

    def pause_writing(self) -> None:
        """The client does not take its answers: ask it no more questions."""
        self._blocked_ns = time.monotonic_ns()
        self._pause(_PAUSED_BY_CLIENT)

    def resume_writing(self) -> None:
        """It does again: do what was put off."""
        self._blocked_ns = 0
        self._resume(_PAUSED_BY_CLIENT)
        self._go_on_soon()
        if not self._calls and self._leaving:
            self._end()

    # -- requests -----------------------------------------------------------------------------------------
    def _read(self, data: bytes) -> None:
        lane = self._lane
        start, size = 0, len(data)
        while start < size and not self._discard:
            if len(self._calls) >= PIPELINE_MAX:
                self._rest = data[start:]
                self._pause(_PAUSED_IN_TURN)
                return
            end = data.find(b"\r\n\r\n", start) + 4
            if end < 4:
                beginning = data[start:]
                if may_become_plain(beginning):
                    self._rest = beginning
                    self._head_ns = self._head_ns or time.monotonic_ns()
                else:
                    self._leave(beginning)
                return
            head_start = start
            plain = lane.read_head(data[start:end])
            if plain is None:
                self._leave(data[start:])
                return
            now_ns = self._active_ns = time.monotonic_ns()
            self._head_ns = 0
            start = end + plain.content_length
            if start > size:
                self._await_body(plain, data[head_start:end], data[end:], now_ns)
                return
            self._begin(plain, data[end:start], now_ns)

    def _begin(self, plain: PlainHead, body: bytes, received_ns: int) -> None:
        try:
            self._lane.budget.take(len(body), plain.pool[0])
        except Overloaded as error:
            refused = self._call(plain, body, received_ns)
            self._calls.append(refused)
            self._lane.gateway.outcomes_of(plain.pool).refused_unread(error)
            self._finish(refused, self._refusal(refused, error))
            return
        if plain.traffic is None:
            call = self._call(plain, body, received_ns)
        else:
            call = self._shared_call(self._lane.chosen(plain), body, received_ns)
        self._calls.append(call)
        self._lane.gateway.submit(call, received_ns)

    def _shared_call(self, plain: PlainHead, body: bytes, received_ns: int) -> LaneCall:
        """A call for the version that was chosen, ready to be submitted."""
        call = self._call(plain, body, received_ns)
        if plain.traffic is not None:
            self._lane.sharing.prepare(call, plain.traffic)
        return call

    def _call(self, plain: PlainHead, body: bytes, received_ns: int) -> LaneCall:
        deadline_ns = received_ns + plain.timeout_ns
        if plain.operation is Operation.INFER:
            asked_ns = body_timeout_ns(body, plain.encoding, plain.json_bytes)
            if asked_ns is not None:
                deadline_ns = min(deadline_ns, received_ns + asked_ns)
        return LaneCall(
            client=self,
            pool=plain.pool,
            deadline_ns=deadline_ns,
            size_bytes=len(body),
            operation=plain.operation,
            body=body,
            received_ns=received_ns,
            encoding=plain.encoding,
            accept=plain.accept,
            json_bytes=plain.json_bytes,
            request_id=plain.request_id or self._lane.request_ids.new(),
            traceparent=plain.traceparent,
            tracestate=plain.tracestate,
            accept_encoding=plain.accept_encoding,
        )

    # -- bodies that come in parts --------------------------------------------------------------------------
    def _await_body(self, plain: PlainHead, head: bytes, first: bytes, now_ns: int) -> None:
        plain = self._lane.chosen(plain)
        timer = self._lane.loop.call_later(plain.timeout_ns / _NS_PER_S, self._body_late)
        self._body = _Body(plain, head, self._lane.catalog, now_ns, plain.content_length, timer)
        self._more_body(self._body, first)

    def _more_body(self, body: _Body, data: bytes) -> bytes:
        """Take what belongs to the body; begin its request when it is whole. Returns what follows it."""
        part, rest = (data, b"") if len(data) <= body.missing else (data[: body.missing], data[body.missing :])
        try:
            self._lane.budget.take(len(part), body.plain.pool[0])
        except Overloaded as error:
            self._refuse_body(body, error)
            return b""
        body.taken += len(part)
        body.missing -= len(part)
        body.parts.append(part)
        if body.missing:
            return b""
        received = b"".join(body.parts)
        if body.catalog is not self._lane.catalog and not self._read_again(body):
            self._end_body()
            self._leave(body.head + received + rest)
            return b""
        call = self._shared_call(body.plain, received, body.received_ns)
        body.timer.cancel()
        self._body = None
        self._calls.append(call)
        self._lane.gateway.submit(call, time.monotonic_ns())
        return rest

    def _read_again(self, body: _Body) -> bool:
        """The catalog has changed while a body arrived: what its path means now. False: nothing, for this lane.

        Its model is the same, so what its body holds is held for the same.
        """
        plain = self._lane.read_head(body.head)
        if plain is None:
            return False
        body.plain = self._lane.chosen(plain)
        return True

    def _body_late(self) -> None:
        if self._body is not None:
            received = self._body.taken
            error = DeadlineExceeded(f"deadline passed while receiving the body ({received} bytes so far)")
            self._refuse_body(self._body, error)

    def _refuse_body(self, body: _Body, error: RequestError) -> None:
        """Answer before the body has come; the connection is of no use after that."""
        self._end_body()
        call = self._call(body.plain, b"", body.received_ns)
        self._lane.gateway.outcomes_of(call.pool).refused_unread(error)
        self._discard = True
        self._calls.append(call)
        self._finish(call, self._lane.responses.refusal(call.request_id, error, call.encoding, last=True))

    def _end_body(self) -> None:
        if self._body is not None:
            self._body.timer.cancel()
            self._lane.budget.give_back(self._body.taken, self._body.plain.pool[0])
            self._body = None

    # -- answers ------------------------------------------------------------------------------------------
    def answered(self, call: LaneCall, head: ResponseHead, body: bytes) -> None:
        """Write a worker's answer, or keep it until its turn comes."""
        self._lane.budget.give_back(call.size_bytes, call.pool[0])
        coding = compression(call.accept_encoding, len(body)) if call.accept_encoding is not None else None
        if coding is None:
            self._finish(call, self._lane.responses.answer(call.request_id, head, body, None, self._last))
        elif len(body) <= COMPRESS_INLINE_MAX_BYTES:
            body = compress(body, coding)
            self._finish(call, self._lane.responses.answer(call.request_id, head, body, coding, self._last))
        else:
            call.answer = b""
            compressing = self._lane.loop.run_in_executor(None, compress, body, coding)
            compressing.add_done_callback(lambda done: self._compressed(call, head, done.result(), coding))

    def refused(self, call: LaneCall, error: RequestError) -> None:
        """Write an error, or keep it until its turn comes."""
        self._lane.budget.give_back(call.size_bytes, call.pool[0])
        self._finish(call, self._refusal(call, error))

    def _refusal(self, call: LaneCall, error: RequestError) -> bytes:
        return self._lane.responses.refusal(call.request_id, error, call.encoding, self._last)

    def _compressed(self, call: LaneCall, head: ResponseHead, body: bytes, coding: str) -> None:
        if self._transport is not None:
            self._finish(call, self._lane.responses.answer(call.request_id, head, body, coding, self._last))

    @property
    def _last(self) -> bool:
        """Whether the next answer is the last of its connection."""
        return self._lane.stopping and len(self._calls) == 1 and not self._rest and self._body is None

    def _finish(self, call: LaneCall, answer: bytes) -> None:
        calls = self._calls
        access = self._lane.access
        access.countdown -= 1
        if access.countdown < 0 or answer[_STATUS_AT] == _FAILED:
            self._note(call, answer)
        if calls[0] is not call:
            call.answer = answer
            return
        calls.popleft()
        if calls and calls[0].answer:
            parts = [answer]
            while calls and calls[0].answer:
                parts.append(cast("bytes", calls.popleft().answer))
            answer = b"".join(parts)
        if self._transport is not None:
            self._transport.write(answer)
        self._go_on_soon()
        if not calls and (self._leaving or self._discard or self._lane.stopping):
            self._end()

    def _note(self, call: LaneCall, answer: bytes) -> None:
        """Have the access log tell of an answer that is about to be written."""
        body = memoryview(answer)[answer.index(b"\r\n\r\n") + 4 :]
        status = int(answer[_STATUS_AT : _STATUS_AT + 3])
        model, version = call.pool
        self._lane.access.note(
            Access(
                received_ns=call.received_ns,
                method="POST",
                route=(Endpoint.INFER if call.operation is Operation.INFER else Endpoint.V1_PREDICT).route,
                status=status,
                in_bytes=call.size_bytes,
                out_bytes=len(body),
                model=model,
                version=version,
                slot=self._lane.gateway.slot_of(call),
                code=error_code(status, body),
                request_id=call.request_id,
                traceparent=call.traceparent,
            )
        )

    def _go_on_soon(self) -> None:
        """Have what waited for its turn read in a turn of its own, and not inside somebody else's answer.

        Not while the client does not take its answers: there would be more and more of them.
        """
        waits = self._paused == _PAUSED_IN_TURN and not self._leaving
        if waits and not self._going_on and len(self._calls) <= PIPELINE_RESUME:
            self._going_on = True
            self._lane.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        if self._transport is None or self._paused != _PAUSED_IN_TURN:
            return
        data, self._rest = self._rest, b""
        self._resume(_PAUSED_IN_TURN)
        self._read(data)

    # -- the end ------------------------------------------------------------------------------------------
    def _leave(self, data: bytes) -> None:
        """Give the connection to aiohttp, with all that was not answered."""
        self._rest = data
        if self._calls:
            self._leaving = True
            self._pause(_PAUSED_IN_TURN)
            return
        transport = self._transport
        if transport is None:
            return
        self._transport = None
        self._lane.left(self)
        other = self._lane.other_lane()
        transport.set_protocol(other)
        other.connection_made(transport)
        if self._paused:
            transport.resume_reading()
        other.data_received(data)

    def _end(self) -> None:
        """Everything is answered: what comes next, if anything, is not for us."""
        if self._leaving:
            # aiohttp has to see how the client takes its answers from the beginning.
            if not self._paused & _PAUSED_BY_CLIENT:
                self._leaving = False
                self._leave(self._rest)
        elif self._transport is None:
            return
        elif self._discard:
            # The client may still be sending: closed at once, it would see a reset in place of the answer.
            self._lane.loop.call_later(LINGER_S, self._close)
        elif self._body is None and not self._rest:
            self._close()

    def finish_up(self) -> None:
        """The front is stopping."""
        if not self._calls:
            self._end()

    def _close(self) -> None:
        if self._transport is not None:
            self._closed_ns = self._closed_ns or time.monotonic_ns()
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def sweep(self, now_ns: int, keepalive_ns: int) -> None:
        """Close if idle, slow with a head, or not taking answers for too long."""
        # A close waits until what is written has been taken, however long the client takes for it.
        waiting_since_ns = self._blocked_ns or self._closed_ns
        if waiting_since_ns and now_ns - waiting_since_ns > WRITE_TIMEOUT_S * _NS_PER_S:
            self.abort()
        elif self._calls or self._body is not None:
            self._active_ns = now_ns
        elif self._head_ns:
            if now_ns - self._head_ns > min(HEAD_TIMEOUT_S * _NS_PER_S, keepalive_ns):
                self._close()
        elif now_ns - self._active_ns > keepalive_ns:
            self._close()

    # -- back-pressure ------------------------------------------------------------------------------------
    def _pause(self, why: int) -> None:
        if not self._paused and self._transport is not None:
            self._transport.pause_reading()
        self._paused |= why

    def _resume(self, why: int) -> None:
        was = self._paused
        self._paused &= ~why
        if was and not self._paused and self._transport is not None:
            self._transport.resume_reading()
