"""Serves the app on the Unix socket and on TCP, in one event loop, until told to stop.

uvicorn waits for open responses before it ends. A stream is open for ever, so it is hung up on first; what else is
still being answered gets a moment. From SIGTERM to the end of `serve` is at most `CLOSE_SECONDS` and a fraction.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final, Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from runner.config import EventLoop
from runner.events import Events
from runner.web.crossing import give_threads
from runner.web.door import MAX_HEADER_BYTES
from runner.web.live import MAX_MESSAGE_BYTES, PING_SECONDS
from runner.web.protocol import Connection, Patience
from runner.web.sockets import listen_on_path
from runner.web.writing import Writing

CLOSE_SECONDS: Final = 3
TICKS_BETWEEN_SWEEPS: Final = 5
"""uvicorn ticks ten times a second."""


class Companion(Protocol):
    """What else is served in the same event loop."""

    async def start(self) -> None:
        """Begins. What it raises ends the runner."""

    async def stop(self) -> None:
        """Ends, within `CLOSE_SECONDS`."""


class Server(uvicorn.Server):
    """uvicorn, which ends streams when it is told to stop, and then returns rather than raising the signal again."""

    def __init__(
        self,
        app: ASGIApp,
        events: Events,
        announce: Callable[[], None] = lambda: None,
        patience: Patience = Patience(),  # noqa: B008 - it is frozen
        companions: Sequence[Companion] = (),
        event_loop: EventLoop = "asyncio",
    ) -> None:
        self._events = events
        self._companions = companions
        self._announce = announce
        super().__init__(
            uvicorn.Config(
                Writing(app),
                interface="asgi3",
                loop=event_loop,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="wsproto",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_ping_interval=PING_SECONDS,
                ws_ping_timeout=PING_SECONDS,
                ws_per_message_deflate=False,
                http=cast("type[asyncio.Protocol]", partial(Connection, patience=patience)),
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops at the first signal; a second Ctrl+C waits for nothing."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to serve, and says so: from here on signals end it cleanly."""
        give_threads(asyncio.get_running_loop())
        await super().startup(sockets)
        for companion in self._companions:
            await companion.start()
        self._announce()

    async def on_tick(self, counter: int) -> bool:
        """Ends the connections of clients that were waited for long enough."""
        if counter % TICKS_BETWEEN_SWEEPS == 0:
            now = time.monotonic()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.check(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hangs up on whoever listens to a stream, then closes what is left."""
        self._events.hang_up()
        await asyncio.gather(super().shutdown(sockets), *(companion.stop() for companion in self._companions))


@contextmanager
def listening(path: Path, *others: socket.socket) -> Iterator[list[socket.socket]]:
    """The sockets to serve: the one at `path`, gone afterwards, and `others`. Only for the directory's owner."""
    sockets = [listen_on_path(path), *others]
    try:
        yield sockets
    finally:
        path.unlink(missing_ok=True)
        for listener in sockets:
            listener.close()


@contextmanager
def served_in_thread(app: ASGIApp, events: Events, path: Path) -> Iterator[None]:
    """The app answers at `path` while the block runs: how a command is its own owner for a moment."""
    server = Server(app, events)
    with listening(path) as sockets:
        thread = threading.Thread(target=server.run, args=(sockets,), name="http")
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()
