"""The status page's HTTP: the page and its files, server-sent events, history, a model's details, trial predictions."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp import web

from host.config.deployment import DeployedModel
from host.config.features import Features
from host.config.run_dir import RunDirectory
from host.config.settings import HostSettings
from host.control.admin import problem
from host.control.deaths import SlotDeaths
from host.control.model_page import death_documents, model_document
from host.control.watching import CLIENTS_MAX, TooManyClients, Watcher
from host.protocol.package import name_problem

logger = logging.getLogger("modelhost.control")

STATIC: Final = Path(__file__).with_name("static")
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS: Final = {
    "Server": "modelhost",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

RETRY_MS: Final = 1000

HISTORY_GROUPS_MAX: Final = 16
TRIAL_BODY_MAX_BYTES: Final = 1 << 20
TRIAL_ANSWER_MAX_BYTES: Final = 4 << 20
TRIALS_MAX: Final = 4
"""At once: a person tries one."""

_READ_BYTES: Final = 1 << 16
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long things may take."""

    heartbeat_s: float = 10.0
    """A stream with nothing to tell says so."""
    write_s: float = 5.0
    """A client that takes nothing for so long is dropped."""
    trial_s: float = 30.0
    """The whole of a trial prediction, its body included."""


class Source(Protocol):
    """What the page knows a host by: control."""

    watcher: Watcher

    @property
    def run_dir(self) -> RunDirectory:
        """Where the logs are."""
        ...

    def versions(self) -> list[DeployedModel]:
        """Every version that has processes or should have."""
        ...

    @property
    def features(self) -> Features:
        """The host's features."""
        ...

    @property
    def deaths(self) -> Mapping[str, SlotDeaths]:
        """By program."""
        ...

    @property
    def settings(self) -> HostSettings:
        """Where the fronts listen."""
        ...


PATIENCE: Final = Patience()


def add_page(app: web.Application, source: Source, patience: Patience = PATIENCE) -> None:
    """Add the page's routes."""
    page = Page(source, _load(STATIC), patience)
    router = app.router
    router.add_get("/", page.framed(page.shell))
    router.add_get("/static/{path:.+}", page.framed(page.static))
    router.add_get("/events", page.framed(page.events))
    router.add_get("/history", page.framed(page.history))
    router.add_get("/models/{name}", page.framed(page.shell))
    router.add_get("/models/{name}/details", page.framed(page.details))
    router.add_post("/models/{name}/infer", page.framed(page.infer))
    router.add_post("/models/{name}/versions/{version}/infer", page.framed(page.infer))
    app.cleanup_ctx.append(page.session)
    app.on_shutdown.append(page.stop)


class _File:
    """A file of the page, in memory: there are few, and they do not change while control runs."""

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        self.etag = hashlib.sha256(self.body).hexdigest()[:32]
        self.content_type = TYPES.get(path.suffix, "text/plain; charset=utf-8")

    def answer(self, request: web.Request) -> web.Response:
        headers = {"ETag": f'"{self.etag}"', "Cache-Control": "no-cache", "Content-Type": self.content_type}
        known = request.if_none_match or ()
        if any(tag.value == self.etag for tag in known):
            return web.Response(status=304, headers=headers)
        return web.Response(body=self.body, headers=headers)


def _load(directory: Path) -> dict[str, _File]:
    paths = (path for path in directory.rglob("*") if path.is_file() and path.suffix in TYPES)
    return {path.relative_to(directory).as_posix(): _File(path) for path in paths}


class Page:
    """Handlers, and what they share."""

    def __init__(self, source: Source, files: Mapping[str, _File], patience: Patience) -> None:
        self._source = source
        self._patience = patience
        self._files = files
        self._stopping = asyncio.Event()
        self._trials = 0
        self._session: aiohttp.ClientSession | None = None

    async def session(self, _: web.Application) -> AsyncIterator[None]:
        """Hold the connections to the fronts."""
        timeout = aiohttp.ClientTimeout(total=self._patience.trial_s)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
            self._session = session
            yield
        self._session = None

    async def stop(self, _: web.Application) -> None:
        """End the streams: nobody waits for them."""
        self._stopping.set()

    def framed(self, handler: Handler) -> Handler:
        """Say with every answer what a browser may do with it."""

        async def frame(request: web.Request) -> web.StreamResponse:
            response = await handler(request)
            if not response.prepared:
                response.headers.update(HEADERS)
            return response

        return frame

    # -- the page ---------------------------------------------------------------------------------------------
    async def shell(self, request: web.Request) -> web.StreamResponse:
        """`GET /`, `GET /models/{name}`: one document for both."""
        return self._files["index.html"].answer(request)

    async def static(self, request: web.Request) -> web.StreamResponse:
        """`GET /static/...`."""
        file = self._files.get(request.match_info["path"])
        if file is None:
            return problem(404, "NOT_FOUND", "no such file")
        return file.answer(request)

    async def history(self, request: web.Request) -> web.StreamResponse:
        """`GET /history?version=churn.v3&version=...`: the last fifteen minutes."""
        groups = request.query.getall("version", [])
        if len(groups) > HISTORY_GROUPS_MAX:
            text = f"version: expected at most {HISTORY_GROUPS_MAX}, received {len(groups)}"
            return problem(400, "TOO_MANY_VERSIONS", text)
        return _json(self._source.watcher.history.document(groups))

    async def details(self, request: web.Request) -> web.StreamResponse:
        """`GET /models/{name}/details`."""
        source, name = self._source, request.match_info["name"]
        versions = [model for model in source.versions() if model.name == name]
        if not versions:
            return problem(404, "MODEL_NOT_FOUND", f"no model {name[:100]!r} is deployed")
        # Copies: what is read in the thread does not change meanwhile.
        events, deaths, features = source.watcher.events, dict(source.deaths), source.features
        run_dir = source.run_dir

        def read() -> bytes:
            found = death_documents(name, {one.group for one in versions}, events, deaths, run_dir)
            return msgspec.json.encode(model_document(name, versions, features, found))

        return web.Response(body=await asyncio.to_thread(read), content_type="application/json")

    # -- server-sent events -----------------------------------------------------------------------------------
    async def events(self, request: web.Request) -> web.StreamResponse:
        """`GET /events`: what is known, then what changes, until one of both ends goes away."""
        watcher = self._source.watcher
        try:
            subscription = watcher.subscribe()
        except TooManyClients:
            text = f"{CLIENTS_MAX} clients watch already"
            return problem(503, "TOO_MANY_CLIENTS", text, {"Retry-After": "10"})
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", **HEADERS}
        )
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await response.prepare(request)
            await self._write(response, f"retry: {RETRY_MS}\n\n".encode())
            while not subscription.lost and not stopping.done():
                waiting = asyncio.ensure_future(subscription.next(self._patience.heartbeat_s))
                try:
                    await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
                    if waiting.done():
                        await self._write(response, _message_or_heartbeat(waiting))
                finally:
                    waiting.cancel()
        except (TimeoutError, ConnectionError):
            subscription.lost = True
        finally:
            stopping.cancel()
            watcher.unsubscribe(subscription)
        if subscription.lost and request.transport is not None:
            # What it has not taken is thrown away; it reconnects and gets what is known by then.
            request.transport.abort()
        return response

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        async with asyncio.timeout(self._patience.write_s):
            await response.write(data)

    # -- trial predictions ------------------------------------------------------------------------------------
    async def infer(self, request: web.Request) -> web.StreamResponse:
        """`POST /models/{name}[/versions/{version}]/infer`: through a front, as any client's request."""
        refused = foreign_problem(request.headers, request.host)
        if refused:
            return problem(403, "CROSS_ORIGIN", refused)
        if request.content_type != "application/json":
            text = f"Content-Type: expected application/json, received {request.content_type[:100]!r}"
            return problem(415, "UNSUPPORTED_MEDIA_TYPE", text)
        target = ""
        for key, part in (("name", "/v2/models/"), ("version", "/versions/")):
            word = request.match_info.get(key)
            if word is None:
                continue
            wrong = name_problem(f"model {key}", word)
            if wrong:
                return problem(404, "MODEL_NOT_FOUND", wrong)
            target += part + word
        if self._trials >= TRIALS_MAX:
            text = f"{TRIALS_MAX} trials run already"
            return problem(503, "TOO_MANY_TRIALS", text, {"Retry-After": "1"})
        self._trials += 1
        try:
            return await self._try(request, target + "/infer")
        finally:
            self._trials -= 1

    async def _try(self, request: web.Request, target: str) -> web.Response:
        assert self._session is not None  # noqa: S101 - the application has been started
        try:
            async with asyncio.timeout(self._patience.trial_s):
                body = await read_bounded(request.content, TRIAL_BODY_MAX_BYTES)
                if body is None:
                    return problem(413, "TOO_LARGE", f"body: expected at most {TRIAL_BODY_MAX_BYTES} bytes")
                begun_s = time.monotonic()
                async with self._session.post(
                    front_url(self._source.settings.address, self._source.settings.port) + target,
                    data=body,
                    headers={"Content-Type": "application/json", "Accept": "application/json"},
                    allow_redirects=False,
                ) as answer:
                    received = await read_bounded(answer.content, TRIAL_ANSWER_MAX_BYTES)
                    took_ms = (time.monotonic() - begun_s) * 1000
                    if received is None:
                        return problem(502, "TOO_LARGE", f"the answer has more than {TRIAL_ANSWER_MAX_BYTES} bytes")
                    headers = {"Server-Timing": f"front;dur={took_ms:.3f}", "Cache-Control": "no-store"}
                    content_type = answer.content_type
                    return web.Response(body=received, status=answer.status, content_type=content_type, headers=headers)
        except TimeoutError:
            return problem(504, "DEADLINE_EXCEEDED", f"no answer within {self._patience.trial_s:.0f} s")
        except aiohttp.ClientError as error:
            return problem(502, "FRONT_UNREACHABLE", f"no front answers: {error}")


def _message_or_heartbeat(waiting: asyncio.Future[bytes]) -> bytes:
    try:
        return waiting.result()
    except TimeoutError:
        return b": still here\n\n"


async def read_bounded(stream: aiohttp.StreamReader, limit_bytes: int) -> bytes | None:
    """The whole body; None if it is larger."""
    received = bytearray()
    while part := await stream.read(_READ_BYTES):
        if len(received) + len(part) > limit_bytes:
            return None
        received += part
    return bytes(received)


def front_url(address: str, port: int) -> str:
    """Where a front is reached from its own host."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return f"http://{address}:{port}"
    if parsed.is_unspecified:
        parsed = ipaddress.ip_address("::1" if parsed.version == 6 else "127.0.0.1")
    return f"http://[{parsed}]:{port}" if parsed.version == 6 else f"http://{parsed}:{port}"


def foreign_problem(headers: Mapping[str, str], host: str) -> str:
    """Why a request that does something must be refused: a page of somebody else's made a browser send it.

    Programs that are no browser send neither header; a browser sends at least one of them.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        return f"Sec-Fetch-Site: expected same-origin, received {site[:50]!r}"
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return f"Origin: expected {host[:200]}, received {origin[:200]!r}"
    return ""


def _json(document: object) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    return web.Response(body=msgspec.json.encode(document), content_type="application/json", headers=headers)
