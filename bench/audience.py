"""Very many listeners to one stream of events, in one thread of this process."""

from __future__ import annotations

import asyncio
import re
import resource
import time
from collections.abc import Callable
from typing import Final

from bench.hammer import PATIENCE_SECONDS, Target, hang_up, request_bytes
from bench.report import NotMeasured

STAMP: Final = re.compile(rb"said-(\d+)-")
SPARE_DESCRIPTORS: Final = 200


def allow_descriptors(wanted: int) -> None:
    """So many listeners at once, and some files. Raises `NotMeasured` where the system does not let this user."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += SPARE_DESCRIPTORS
    if most != resource.RLIM_INFINITY and most < wanted:
        raise NotMeasured(f"the system lets this user have {most} open files, and this needs {wanted}; see ulimit -Hn")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class Audience:
    """The listeners. For one event loop."""

    def __init__(self, target: Target, size: int) -> None:
        self._target = target
        self._size = size
        self._heard: dict[bytes, int] = {}
        self._open = 0
        self._changed = asyncio.Event()
        self._transports: list[asyncio.Transport] = []

    async def come(self) -> None:
        """All of them listen."""
        loop, request = asyncio.get_running_loop(), request_bytes("GET", self._target)
        for _ in range(self._size):
            transport, _ = await loop.create_connection(
                lambda: _Listener(request, self._arrived, self._hear), "127.0.0.1", self._target.port
            )
            self._transports.append(transport)
        await self._until(lambda: self._open == self._size, "listen")

    async def milliseconds_to_reach(self, stamp: int) -> float:
        """How long after that instant (ns, monotonic) the last one of them has heard `said-<stamp>-`."""
        said = str(stamp).encode()
        await self._until(lambda: self._heard.get(said, 0) >= self._size, "heard it")
        return (time.monotonic_ns() - stamp) / 1e6

    async def leave(self) -> None:
        """None of them listens any more."""
        await hang_up(self._transports)

    def _arrived(self) -> None:
        self._open += 1
        self._changed.set()

    def _hear(self, said: bytes) -> None:
        self._heard[said] = self._heard.get(said, 0) + 1
        if self._heard[said] == self._size:
            self._changed.set()

    async def _until(self, is_so: Callable[[], bool], verb: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not is_so():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NotMeasured(f"not all of {self._size} clients {verb}: {self._open}, {self._heard}") from None


class _Listener(asyncio.Protocol):
    """One of them. It keeps nothing of what it has read but the beginning of a line."""

    def __init__(self, request: bytes, arrived: Callable[[], None], hear: Callable[[bytes], None]) -> None:
        self._request = request
        self._arrived = arrived
        self._hear = hear
        self._rest = b""
        self._is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asks."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """The first event means that it listens."""
        if not self._is_open and b"data: " in data:
            self._is_open = True
            self._arrived()
        lines = self._rest + data
        for said in STAMP.findall(lines):
            self._hear(said)
        self._rest = lines[-64:] if not STAMP.search(lines[-64:]) else b""
