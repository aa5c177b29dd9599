"""HTTP between the host's own processes, over Unix sockets that are their owner's alone."""

from __future__ import annotations

import os
from pathlib import Path

import aiohttp
from aiohttp import web

from host.protocol.errors import HostError


async def listen_on_unix(runner: web.AppRunner, path: Path) -> None:
    """Make the socket appear, its owner's alone from the start: bound under another name, then renamed."""
    hidden = path.with_name(f".{path.name}.new")
    hidden.unlink(missing_ok=True)
    previous = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(hidden)).start()
    finally:
        os.umask(previous)
    hidden.rename(path)


async def get(path: Path, target: str, timeout_s: float) -> bytes:
    """Ask on a connection of its own. Raises `HostError` if there is no answer 200 in time."""
    connector = aiohttp.UnixConnector(str(path))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.get(f"http://localhost{target}") as response,
        ):
            response.raise_for_status()
            return await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise HostError(f"{path}: {target}: {str(error) or 'no answer in time'}") from error
