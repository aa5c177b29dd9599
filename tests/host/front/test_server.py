"""Connections that aiohttp serves: a client that does not take its answers is cut off there, too."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp.web import BaseRequest, Response, Server

from host.front.fast_lane import WRITE_TIMEOUT_S
from host.front.server import _AiohttpConnection

LIMIT_NS = int(WRITE_TIMEOUT_S * 1e9)


class Wire:
    """A transport with so many bytes that the client has not taken."""

    def __init__(self) -> None:
        self.unsent_bytes = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def connected() -> tuple[_AiohttpConnection, Wire]:
    async def handler(request: BaseRequest) -> Response:
        return Response()

    wire = Wire()
    connection = _AiohttpConnection(Server(handler), loop=asyncio.get_running_loop())
    connection.connection_made(cast("Any", wire))
    return connection, wire


async def test_a_client_that_takes_nothing_is_cut_off_at_the_limit() -> None:
    connection, wire = await connected()
    wire.unsent_bytes = 10
    connection.sweep(1)
    connection.sweep(1 + LIMIT_NS)
    assert not wire.aborted
    connection.sweep(2 + LIMIT_NS)
    assert wire.aborted
    connection.connection_lost(None)


async def test_a_client_that_takes_some_is_left_alone_and_one_with_nothing_to_take_too() -> None:
    connection, wire = await connected()
    for turn, unsent_bytes in enumerate((10, 9, 8, 0, 0, 0, 5, 4)):
        wire.unsent_bytes = unsent_bytes
        connection.sweep(1 + turn * LIMIT_NS)
    assert not wire.aborted
    connection.connection_lost(None)
