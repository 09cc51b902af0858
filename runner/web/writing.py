"""How an answer is written: its head and its body in one piece, through h11 as far as the protocol is concerned.

uvicorn hands each field of a head to h11, which checks it twice, and gives the system head and body one by one. Most
fields have nothing to do with the protocol. Here h11 is told those that have (`FRAMING`), so that it knows how long the
body is and whether the connection goes on; the others are put behind them, once they were looked through for what would
begin another line. Of an answer that is at hand as a whole, and after which the connection goes on, it is told no more
than that (`Conversation`). A third of the time that a short request takes (measured).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Final, NamedTuple

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, RequestResponseCycle

FRAMING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})

Field = tuple[bytes, bytes]

_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, phrase) for status, phrase in STATUS_PHRASES.items()}
_END: Final = (b"", b"")
_BODILESS: Final = frozenset({*range(200), 204, 304})


class Conversation(h11.Connection):
    """h11's account of a connection, in which a whole answer is one step."""

    def pass_over_answer(self) -> bool:
        """Whether an answer that says its true length, and nothing of the connection, needs no more than to be written:
        then it is over for h11. False, and nothing has happened: it has to be sent by `send`."""
        state = self._cstate
        ordinary = state.states[h11.SERVER] is h11.SEND_RESPONSE and state.keep_alive
        if not ordinary or state.pending_switch_proposals or self.client_is_waiting_for_100_continue:
            return False
        state.process_event(h11.SERVER, h11.Response)
        state.process_event(h11.SERVER, h11.EndOfMessage)
        return True


class _Head(NamedTuple):
    """The head of an answer: the fields that h11 must know, and the others as they are written, with the empty line
    behind them."""

    status: int
    framing: list[Field]
    others: bytes

    @property
    def has_length(self) -> bool:
        """Whether it says how long the body is."""
        return b"content-length" in [name for name, _ in self.framing]

    def is_all_of(self, body: bytes) -> bool:
        """Whether a body of this length is what it says, and all that it says to h11."""
        return self.framing == [(b"content-length", b"%d" % len(body))] and self.status not in _BODILESS

    def before(self, body: bytes) -> bytes:
        """As it is written before that body."""
        return b"%bcontent-length: %d\r\n%b" % (_STATUS_LINES[self.status], len(body), self.others)


class Writing:
    """ASGI: has the answers of another app written in this way. What is no HTTP passes untouched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Passes it on."""
        # uvicorn has no other way to its part of a request than the method that it gives to the app.
        cycle = getattr(send, "__self__", None)
        return self._app(scope, receive, Answer(cycle).send if isinstance(cycle, RequestResponseCycle) else send)


class Answer:
    """One answer, in the place of uvicorn's `RequestResponseCycle.send`. The event loop's thread."""

    __slots__ = ("_cycle", "_head", "_waiting")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._waiting: _Head | None = None
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
        head = _Head(status, *_sorted([*cycle.default_headers, *headers]))
        if head.has_length:
            self._waiting = head
        else:
            self._open(head)
            self._write(b"")

    def _open(self, head: _Head) -> None:
        reason = STATUS_PHRASES[head.status]
        begun = self._cycle.conn.send(h11.Response(status_code=head.status, headers=head.framing, reason=reason))
        self._head = begun[:-2] + head.others

    def _go_on(self, body: bytes, more: bool) -> None:
        head, self._waiting = self._waiting, None
        shown = b"" if self._cycle.scope["method"] == "HEAD" else body
        if head is not None:
            if not more and head.is_all_of(body) and _is_passed_over(self._cycle.conn):
                self._end(head.before(body) + shown)
                return
            self._open(head)
        data = self._cycle.conn.send(h11.Data(data=shown))
        if more:
            self._write(data)
        else:
            self._end(data + self._cycle.conn.send(h11.EndOfMessage()))

    def _end(self, data: bytes) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        self._write(data)
        if cycle.conn.our_state is h11.MUST_CLOSE or not cycle.keep_alive:
            cycle.conn.send(h11.ConnectionClosed())
            cycle.transport.close()
        cycle.on_response()

    def _write(self, data: bytes) -> None:
        if written := self._head + data:
            self._cycle.transport.write(written)
        self._head = b""


def _is_passed_over(conn: h11.Connection) -> bool:
    return isinstance(conn, Conversation) and conn.pass_over_answer()


def _sorted(headers: Iterable[Field]) -> tuple[list[Field], bytes]:
    """The fields that h11 must know, and the others as they are written, with the empty line behind them.

    Raises `ValueError` where a value would begin another line: what a client said must never do so.
    """
    framing, lines = [], []
    for field in headers:
        if field[0] in FRAMING:
            framing.append(field)
        else:
            lines.append(b": ".join(field))
    lines += _END
    written = b"\r\n".join(lines)
    ends = len(lines) - 1
    if written.count(b"\n") != ends or written.count(b"\r") != ends or b"\0" in written:
        raise ValueError("a field of an answer's head holds the end of a line")
    return framing, written
