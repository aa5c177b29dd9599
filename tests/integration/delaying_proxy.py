"""A network that becomes slow: a TCP proxy that passes everything on, later if it is told to."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Final, Self

_READ_BYTES: Final = 65536
_START_S: Final = 10.0


class DelayingProxy:
    """Listens at an address and passes on to a port of the same address, in a thread of its own."""

    def __init__(self, address: str, target_port: int) -> None:
        self.delay_s = 0.0
        """How long each direction takes; bytes of one connection stay in order."""
        self.port = 0
        self._address = address
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(_START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            server = self._loop.run_until_complete(asyncio.start_server(self._accept, self._address, 0))
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            self._loop.run_forever()
            server.close()
            self._loop.run_until_complete(self._end_all())
        finally:
            self._loop.close()

    async def _end_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(self._address, self._target_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass_on(reader, there_writer), self._pass_on(there_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
