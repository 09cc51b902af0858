"""How an answer is written: its head and its body in one piece, through h11 as far as the protocol is concerned.

uvicorn hands each field of a head to h11, which checks it twice, and gives the system head and body one by one. Most
fields have nothing to do with the protocol. Here h11 is told those that have (`FRAMING`), so that it knows how long the
body is and whether the connection goes on; the others are put behind them, once they were looked through for what would
begin another line. A quarter of the time that a short request takes (measured).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, RequestResponseCycle

FRAMING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})

Field = tuple[bytes, bytes]


class Writing:
    """ASGI: has the answers of another app written in this way. What is no HTTP passes untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes it on."""
        # uvicorn has no other way to its part of a request than the method that it gives to the app.
        cycle = getattr(send, "__self__", None)
        await self._app(scope, receive, Answer(cycle).send if isinstance(cycle, RequestResponseCycle) else send)


class Answer:
    """One answer, in the place of uvicorn's `RequestResponseCycle.send`. The event loop's thread."""

    __slots__ = ("_cycle", "_head")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._head = b""

    async def send(self, message: Message) -> None:
        """See ASGI. Raises `RuntimeError` for what does not come in its turn."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        wanted = "http.response.body" if cycle.response_started else "http.response.start"
        if message["type"] != wanted or cycle.response_complete:
            raise RuntimeError(f"{message['type']} was sent where {wanted} belongs")
        if cycle.response_started:
            self._go_on(message.get("body", b""), message.get("more_body", False))
        else:
            self._begin(message["status"], message.get("headers", ()))

    def _begin(self, status: int, headers: Iterable[Field]) -> None:
        """A body whose length is known follows at once; the head waits for it. One that comes bit by bit may not."""
        cycle = self._cycle
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        framing, others = _sorted([*cycle.default_headers, *headers])
        begun = cycle.conn.send(h11.Response(status_code=status, headers=framing, reason=STATUS_PHRASES[status]))
        self._head = begun[:-2] + others
        if not any(name == b"content-length" for name, _ in framing):
            self._write(b"")

    def _go_on(self, body: bytes, more: bool) -> None:
        cycle = self._cycle
        data = cycle.conn.send(h11.Data(data=b"" if cycle.scope["method"] == "HEAD" else body))
        if more:
            self._write(data)
            return
        cycle.response_complete = True
        cycle.message_event.set()
        self._write(data + cycle.conn.send(h11.EndOfMessage()))
        if cycle.conn.our_state is h11.MUST_CLOSE or not cycle.keep_alive:
            cycle.conn.send(h11.ConnectionClosed())
            cycle.transport.close()
        cycle.on_response()

    def _write(self, data: bytes) -> None:
        if written := self._head + data:
            self._cycle.transport.write(written)
        self._head = b""


def _sorted(headers: Iterable[Field]) -> tuple[list[Field], bytes]:
    """The fields that h11 must know, and the others as they are written, with the empty line behind them.

    Raises `ValueError` where a value would begin another line: what a client said must never do so.
    """
    framing = [header for header in headers if header[0] in FRAMING]
    others = [header for header in headers if header[0] not in FRAMING]
    written = b"".join([b"%b: %b\r\n" % header for header in others])
    if written.count(b"\n") != len(others) or written.count(b"\r") != len(others) or b"\0" in written:
        raise ValueError("a field of an answer's head holds the end of a line")
    return framing, written + b"\r\n"
