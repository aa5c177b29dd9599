"""The gateway of a front that makes traces. One that makes none has the plain gateway, and pays nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from host.config.deployment import DeployedModel
from host.dispatch import Action, Send
from host.front.gateway import Call, Client, Completion, Gateway
from host.front.outcomes import WordsOf
from host.front.shadow import Copy
from host.front.tracing import Trace, TraceEvent, Tracer, written
from host.links import Link
from host.protocol.errors import ModelNotReady, RequestError, http_status
from host.protocol.messages import ResponseHead


class TracedGateway(Gateway):
    """Notes what happens to traced calls, and does everything else as the plain one."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, models: Iterable[DeployedModel], words_of: WordsOf, tracer: Tracer
    ) -> None:
        super().__init__(loop, models, words_of)
        self._tracer = tracer

    def submit(self, call: Call, now_ns: int) -> None:
        """Begin a trace, if the call is to have one. A copy for a shadow has none: it is nobody's request."""
        if call.trace is None and self._tracer.draws(call.traceparent) and type(call.client) is not Copy:
            trace = self._tracer.begin(call)
            if trace is not None:
                call.trace = trace
                call.traceparent = written(trace)
                call.client = _Traced(self._tracer, call.client, trace)
        super().submit(call, now_ns)

    def _submit(self, call: Call, now_ns: int) -> None:
        if type(call.client) is Completion:
            trace = call.trace = call.client.call.trace
            if trace is not None:
                trace.features_ns = now_ns
        elif call.trace is not None:
            call.trace.submitted_ns = now_ns
        super()._submit(call, now_ns)

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:  # and once more below: what the dispatcher gives is a tuple or a list
            if type(action) is Send:
                call: Call = action.pending  # type: ignore[assignment]
                if call.trace is not None:
                    process = self._links[action.worker].program
                    if type(call.client) is Completion:
                        call.trace.features_process = process
                    else:
                        call.trace.sent(process, time.monotonic_ns())
        super()._perform(actions)

    def lost(self, link: Link) -> None:
        """Note it for every call that the worker had."""
        for pending in self.dispatcher.workers[link.identity].in_flight.values():
            call: Call = pending  # type: ignore[assignment]
            if call.trace is not None:
                call.trace.lost(link.program, time.monotonic_ns())
        super().lost(link)

    def completed(self, call: Call, body: bytes | None, asked_ns: int) -> None:
        """The features are there."""
        if call.trace is not None:
            call.trace.features_end_ns = time.monotonic_ns()
        super().completed(call, body, asked_ns)

    def refuse(self, call: Call, error: RequestError) -> None:
        """There is no answer, or another version gives it."""
        if call.trace is not None and call.fallback is not None and isinstance(error, ModelNotReady):
            call.trace.events.append(TraceEvent("fallback", time.monotonic_ns(), ""))
        super().refuse(call, error)

    def cancel(self, call: Call) -> None:
        """The client is gone: that ends the trace."""
        super().cancel(call)
        if call.trace is not None:
            call.trace.code = "CANCELLED"
            self._tracer.end(call.trace, time.monotonic_ns())


class _Traced:
    """The client of a traced call. Implements `Client`."""

    __slots__ = ("_client", "_trace", "_tracer")

    def __init__(self, tracer: Tracer, client: Client, trace: Trace) -> None:
        self._tracer = tracer
        self._client = client
        self._trace = trace

    def answered(self, call: Any, head: ResponseHead, body: bytes) -> None:
        """Pass the answer on first."""
        self._client.answered(call, head, body)
        now_ns = time.monotonic_ns()
        self._trace.answered(call, head, now_ns)
        self._tracer.end(self._trace, now_ns)

    def refused(self, call: Any, error: RequestError) -> None:
        """Pass it on first."""
        self._client.refused(call, error)
        trace = self._trace
        trace.model, trace.version = call.pool
        trace.status, trace.code = http_status(error), error.code
        self._tracer.end(trace, time.monotonic_ns())
