"""What control answers over HTTP: on its Unix socket, and on the admin port. No route changes anything."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from host.config.settings import HostSettings
from host.control.metrics.scrape import Metrics
from host.control.status import HostStatus
from host.protocol.errors import HostError

logger = logging.getLogger("modelhost.control")

LISTEN_AGAIN_S: Final = 5.0
"""`modelhost up` has seen that the port is free: somebody else took it since, and may let go of it."""

_SHOWN_CHARS: Final = 200

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StatusSource(Protocol):
    """Whoever knows what should run and what does."""

    @property
    def metrics(self) -> Metrics:
        """What answers scrapes."""

    async def status(self) -> HostStatus:
        """Compare. Raises `HostError` if supervisord does not answer, `ConfigError` without a deployment."""


def application(source: StatusSource, settings: HostSettings) -> web.Application:
    """Control's HTTP. Everything in it may be reached over TCP by whoever reaches the admin port: add nothing else."""

    async def status(request: web.Request) -> web.Response:
        try:
            body = msgspec.json.encode(await source.status())
        except HostError as error:
            return problem(503, "SUPERVISOR_UNREACHABLE", str(error))
        return web.Response(body=body, content_type="application/json")

    async def metrics(request: web.Request) -> web.Response:
        try:
            body, content_type = await source.metrics.scrape(",".join(request.headers.getall("Accept", [])))
        except HostError as error:
            return problem(503, "METRICS_UNAVAILABLE", str(error))
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application(middlewares=[_of_this_host] if is_loopback(settings.admin_address) else [])
    app.router.add_get("/status", status)
    app.router.add_get("/metrics", metrics)
    return app


def problem(status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error in the one form that all of modelhost's errors have."""
    body = msgspec.json.encode({"error": text, "code": code})
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


async def listen_on_tcp(runner: web.AppRunner, settings: HostSettings) -> None:
    """Listen on the admin port until cancelled; as soon as that is possible, if it is not."""
    address, port = settings.admin_address, settings.admin_port
    while True:
        try:
            # Only one host may have it, and a control that starts again gets it at once.
            await web.TCPSite(runner, address, port, reuse_address=True, reuse_port=False).start()
            break
        except OSError as error:
            logger.error("admin port: %s", error)
            await asyncio.sleep(LISTEN_AGAIN_S)
    logger.info("answering on %s port %d", address, port)
    await asyncio.Event().wait()


# -- who may ask ----------------------------------------------------------------------------------------------
def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address."""
    return address == "localhost" or ipaddress.ip_address(address).is_loopback


def is_of_this_host(host: str) -> bool:
    """Whether a `Host` header means an address or `localhost`.

    A page of somebody else's, whose name is made to lead to this machine, has that name in the header: its browser
    must not read what is shown here (DNS rebinding).
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


@web.middleware
async def _of_this_host(request: web.Request, handler: _Handler) -> web.StreamResponse:
    if is_of_this_host(request.host):
        return await handler(request)
    text = f"Host: expected an IP address or localhost, received {request.host[:_SHOWN_CHARS]!r}"
    return problem(403, "FOREIGN_HOST", text)
