"""What a front serves, and its word on it: follows the routing that control writes, and answers control's questions."""

from __future__ import annotations

import logging
import os

import msgspec
from aiohttp import web

from host.config.deployment import read_deployment
from host.config.run_dir import RunDirectory, group_name
from host.config.watch import replacements
from host.front.catalog import Catalog
from host.front.fast_lane import FastLane
from host.front.gateway import Gateway
from host.front.handler import Handler
from host.front.state import FrontState
from host.protocol.errors import HostError
from host.unix_http import listen_on_unix

logger = logging.getLogger("modelhost.front")


class Routing:
    """Gives both lanes and the gateway a new catalog whenever there is one."""

    def __init__(self, run_dir: RunDirectory, handler: Handler, lane: FastLane, gateway: Gateway) -> None:
        self._run_dir = run_dir
        self._handler = handler
        self._lane = lane
        self._gateway = gateway

    async def follow(self) -> None:
        """Watch until cancelled."""
        async for _ in replacements(self._run_dir.routing):
            self._read()

    def _read(self) -> None:
        try:
            deployment = read_deployment(self._run_dir.routing)
        except HostError as error:
            logger.error("what is served stays as it is: %s", error)
            return
        before = self._handler.catalog
        if deployment.generation == before.generation:
            return
        catalog = Catalog(deployment)
        # In this order: what either lane finds, the gateway knows.
        self._gateway.serve(catalog)
        self._handler.catalog = self._lane.catalog = catalog
        served = ", ".join(group_name(model.name, model.version) for model in catalog) or "nothing"
        logger.info("serving generation %d: %s", catalog.generation, served)

    def state(self) -> FrontState:
        """What control wants to know."""
        calls = {group_name(*key): count for key, count in self._gateway.busy().items()}
        demand = {group_name(*key): one for key, one in self._gateway.dispatcher.demand().items()}
        versions = {group_name(*key): outcomes.read() for key, outcomes in self._gateway.outcomes.items()}
        return FrontState(
            pid=os.getpid(),
            generation=self._handler.catalog.generation,
            calls=calls,
            demand=demand,
            versions=versions,
        )

    async def answer_control(self, index: int) -> web.AppRunner:
        """Listen on the front's own socket; the caller cleans the runner up."""

        async def state(request: web.Request) -> web.Response:
            return web.Response(body=msgspec.json.encode(self.state()), content_type="application/json")

        app = web.Application()
        app.router.add_get("/state", state)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await listen_on_unix(runner, self._run_dir.front_socket(index))
        return runner
