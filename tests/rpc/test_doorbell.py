"""A server that is loaded when somebody calls first, seen from its callers."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from runner.rpc.doorbell import Doorbell
from runner.web.sockets import listen_on_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Echo:
    """A server behind a bell. It says back what is said to it; `loaded` counts how often it was got ready."""

    def __init__(self) -> None:
        listener = listen_on_port("127.0.0.1", 0)
        self.address: tuple[str, int] = listener.getsockname()
        self.bell = Doorbell(listener, self._load, self._serve)
        self.loaded = 0
        self.is_missing = False
        self._server: asyncio.Server | None = None

    async def close(self) -> None:
        """Ends it."""
        await self.bell.silence()
        if self._server is not None:
            self._server.close()
        await self.bell.hang_up()

    async def _load(self) -> None:
        if self.is_missing:
            raise ImportError("it has been removed")
        self.loaded += 1

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._answer, *self.address)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while line := await reader.read(100):
                writer.write(line)
        writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Echo]:
    """An echo that nobody has called yet."""
    echo = Echo()
    echo.bell.listen()
    try:
        yield echo
    finally:
        await echo.close()


async def ask(echo: Echo, *words: bytes) -> list[bytes]:
    """What is said to that, on one connection."""
    reader, writer = await asyncio.open_connection(*echo.address)
    answers = []
    for word in words:
        writer.write(word)
        answers.append(await reader.read(100))
    writer.close()
    await writer.wait_closed()
    return answers


@pytest.mark.anyio
async def test_whoever_calls_is_answered_and_the_first_has_the_server_loaded() -> None:
    """Nobody has called: nothing is loaded. Several call at once: it is loaded for all of them, once."""
    async with listening() as echo:
        await asyncio.sleep(0)
        assert echo.loaded == 0
        answers = await asyncio.gather(*(ask(echo, b"one", b"two") for _ in range(5)))
        assert (answers, echo.loaded) == ([[b"one", b"two"]] * 5, 1)
        assert await ask(echo, b"later") == [b"later"]


@pytest.mark.anyio
async def test_the_end_hangs_up_on_those_who_called_first() -> None:
    """They are told by the end of their connection, and nothing is left running."""
    async with listening() as echo:
        reader, writer = await asyncio.open_connection(*echo.address)
        writer.write(b"hello")
        assert await reader.read(100) == b"hello"
    assert await reader.read(100) == b""
    writer.close()
    await writer.wait_closed()


@pytest.mark.anyio
async def test_a_server_that_cannot_be_loaded_is_said_and_its_address_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Callers are not kept waiting for ever."""
    async with listening() as echo:
        echo.is_missing = True
        with suppress(ConnectionError):
            assert await ask(echo, b"hello") == [b""]
        with pytest.raises(OSError, match="refused|Connect call failed"):
            await asyncio.open_connection(*echo.address)
    assert "nobody answers at 127.0.0.1" in caplog.text


@pytest.mark.anyio
async def test_an_end_that_comes_before_any_call_frees_the_address() -> None:
    """The next runner wants it."""
    async with listening() as echo:
        pass
    socket.create_server(echo.address).close()
    assert echo.loaded == 0
