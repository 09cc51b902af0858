"""Clients that cost little: bytes that were made before are sent, and of what comes back only the length is read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.report import NotMeasured

PIECE: Final = bytes(1 << 20)
PATIENCE_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Target:
    """Where requests go: a port of this machine and a path."""

    port: int
    path: str


@dataclass(frozen=True)
class Blows:
    """How it went: how long in all, and each answer's time."""

    seconds: float
    milliseconds: Sequence[float]

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.milliseconds) / self.seconds


def request_bytes(method: str, target: Target, body: Any = None) -> bytes:
    """A whole request."""
    content = b"" if body is None else json.dumps(body).encode()
    described = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
    return f"{method} {target.path} HTTP/1.1\r\nHost: localhost:{target.port}\r\n{described}\r\n".encode() + content


def hammer(port: int, request: bytes, number: int, connections: int) -> Blows:
    """The same request so often, by so many connections at once. Raises `NotMeasured` for any refusal."""
    return asyncio.run(_hammer(port, request, number, connections))


async def _hammer(port: int, request: bytes, number: int, connections: int) -> Blows:
    loop = asyncio.get_running_loop()
    shared = _Shared(request, number, loop.create_future())
    began = time.perf_counter()
    transports = []
    try:
        for _ in range(min(connections, number)):
            transport, _ = await loop.create_connection(lambda: _Caller(shared), "127.0.0.1", port)
            transports.append(transport)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await shared.done
        return Blows(time.perf_counter() - began, shared.milliseconds)
    finally:
        await hang_up(transports)


async def hang_up(transports: Iterable[asyncio.Transport]) -> None:
    """Closes connections; their sockets are closed in the next round of the loop."""
    for transport in transports:
        transport.abort()
    await asyncio.sleep(0)


class _Shared:
    """What is left to be sent, and what has come back."""

    def __init__(self, request: bytes, number: int, done: asyncio.Future[None]) -> None:
        self.request = request
        self.left = self.expected = number
        self.done = done
        self.milliseconds: list[float] = []

    def take(self, milliseconds: float) -> None:
        """One more answer."""
        self.milliseconds.append(milliseconds)
        if len(self.milliseconds) == self.expected and not self.done.done():
            self.done.set_result(None)

    def fail(self, reason: str) -> None:
        """Nothing more will come."""
        if not self.done.done():
            self.done.set_exception(NotMeasured(reason))


class _Caller(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._asked = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Some of an answer has come."""
        self._answer += data
        head, blank, body = self._answer.partition(b"\r\n\r\n")
        if not blank or len(body) < _length_in(head):
            return
        if not head.startswith(b"HTTP/1.1 2"):
            self._shared.fail(self._answer.decode(errors="replace"))
        self._answer = b""
        self._shared.take((time.perf_counter() - self._asked) * 1e3)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """A server hangs up on nobody who is being served."""
        self._shared.fail(f"a connection was closed: {exc}")

    def _ask(self) -> None:
        assert self._transport is not None
        if self._shared.left:
            self._shared.left -= 1
            self._asked = time.perf_counter()
            self._transport.write(self._shared.request)


def _length_in(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line[:15].lower() == b"content-length:":
            return int(line[15:])
    raise NotMeasured(f"an answer without a length: {head.decode(errors='replace')}")


def upload_seconds(target: Target, size: int) -> float:
    """How long it takes until so many bytes are there and that is answered."""
    head = f"PUT {target.path} HTTP/1.1\r\nHost: localhost:{target.port}\r\nContent-Length: {size}\r\n\r\n"
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", target.port), PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode())
        for start in range(0, size, len(PIECE)):
            connection.sendall(memoryview(PIECE)[: size - start])
        answer = connection.recv(65536)
    if not answer.startswith(b"HTTP/1.1 2"):
        raise NotMeasured(answer.decode(errors="replace"))
    return time.perf_counter() - began


def download_seconds(target: Target, size: int) -> float:
    """How long it takes until so many bytes have come."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", target.port), PATIENCE_SECONDS) as connection:
        connection.sendall(request_bytes("GET", target))
        room, got = bytearray(1 << 20), 0
        head = connection.recv(65536)
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        start, _, body = head.partition(b"\r\n\r\n")
        if not start.startswith(b"HTTP/1.1 200") or _length_in(start) != size:
            raise NotMeasured(start.decode(errors="replace"))
        got = len(body)
        while got < size:
            received = connection.recv_into(room)
            if not received:
                raise NotMeasured(f"of {size} bytes {got} came")
            got += received
    return time.perf_counter() - began
