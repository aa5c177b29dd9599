"""A collector of traces: takes OTLP over HTTP, and keeps the spans."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Self

from aiohttp import web
from hosts import until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Listens on a free port, in a thread of its own."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        """As `opentelemetry.proto.trace.v1.trace_pb2.Span`."""
        self.resources: list[dict[str, str]] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        runner = web.ServerRunner(web.Server(self._handle))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._listening.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        assert (request.method, request.path) == ("POST", "/v1/traces")
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")

    def trace(self, trace_id: str, count: int) -> dict[str, Any]:
        """Wait for the spans of a trace; by their names."""
        mine = until(lambda: self._of(trace_id, count), f"{count} spans of {trace_id}; there are {self.spans}")
        assert len(mine) == count
        assert len({span.name for span in mine}) == count
        return {span.name: span for span in mine}

    def _of(self, trace_id: str, count: int) -> list[Any]:
        mine = [span for span in list(self.spans) if span.trace_id.hex() == trace_id]
        return mine if len(mine) >= count else []


def attributes(holder: Any) -> dict[str, Any]:
    """Attributes of a span, an event or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in holder.attributes}
