"""Listens at an address until somebody calls, and has a server opened there only then.

What serves gRPC takes 16 MB and a sixth of a second to load, and most runners are never called by it. Whoever has
connected before the server was there is passed on to it, for as long as their connection lasts; all others come to it
by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

CHUNK_BYTES: Final = 1 << 16

_log = logging.getLogger(__name__)


class Doorbell:
    """For one event loop. `load` gets the server ready; `serve` opens it at the address, which is free by then."""

    def __init__(
        self, listener: socket.socket, load: Callable[[], Awaitable[None]], serve: Callable[[], Awaitable[None]]
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._address = listener.getsockname()[:2]
        self._load = load
        self._serve = serve
        self._answering: asyncio.Task[None] | None = None
        self._passing: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        """Begins."""
        asyncio.get_running_loop().add_reader(self._listener, self._ring)

    async def silence(self) -> None:
        """Nobody's call is answered from here on; one that is being answered is until it has been."""
        if self._answering is not None:
            await self._answering
        else:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()

    async def hang_up(self) -> None:
        """Ends the connections that are passed on. After `silence`."""
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)

    def _ring(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._answering = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        callers: list[socket.socket] = []
        try:
            await self._load()
            callers += self._let_in()
            # Not before, and not a moment longer: who calls in between is refused.
            self._listener.close()
            await self._serve()
        except Exception:  # noqa: BLE001 - the server is a library's; the runner has other doors
            _log.exception("nobody answers at %s:%d any more", *self._address)
            self._listener.close()
            for caller in callers:
                caller.close()
            return
        for caller in callers:
            task = asyncio.create_task(self._pass_on(caller))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    def _let_in(self) -> list[socket.socket]:
        """Who waits at the door."""
        callers: list[socket.socket] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                callers.append(self._listener.accept()[0])
        return callers

    async def _pass_on(self, caller: socket.socket) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))  # either of them may hang up at any time
            stack.callback(caller.close)
            reader, writer = await asyncio.open_connection(sock=caller)
            stack.push_async_callback(_close, writer)
            their_reader, their_writer = await asyncio.open_connection(*self._address)
            stack.push_async_callback(_close, their_writer)
            await asyncio.gather(_copy(reader, their_writer), _copy(their_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
