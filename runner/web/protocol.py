"""uvicorn's HTTP/1.1 connection, with patience that ends.

A client that sends its header or its body drop by drop, or does not read its answer, costs it nothing and us a
connection (slowloris, R-U-Dead-Yet, slow read; OWASP ASVS 15.1.3). uvicorn waits for all of them for ever. Here a sweep
once a second closes them, and those on which nothing more comes; nothing is done for each request but to note when it
began.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
from pydantic_core import to_json
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from runner.web.door import MAX_HEADER_BYTES
from runner.web.writing import Conversation

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a client is waited for. A body must come at that rate, measured over `body_seconds` at a time; an
    answer must be taken at all within `stall_seconds`, and the next request begin within `idle_seconds`.
    `max_connections` counts those through TCP."""

    head_seconds: float = 10.0
    body_seconds: float = 10.0
    body_bytes_per_second: int = 1024
    stall_seconds: float = 60.0
    idle_seconds: float = 5.0
    max_connections: int = 4096


class Connection(H11Protocol):
    """One connection. The event loop's thread only."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: Patience,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = Conversation(h11.SERVER, config.h11_max_incomplete_event_size or MAX_HEADER_BYTES)
        self._patience = patience
        self._idle_since: float | None = None
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._body_bytes = 0
        self._stalled_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come: one too many through TCP is sent away, so that those who are here can be served."""
        super().connection_made(transport)
        self._head_since = time.monotonic()
        if self.client is not None and len(self.connections) > self._patience.max_connections:
            self._end(503, "too_many_connections", "too many connections; try again later")

    def data_received(self, data: bytes) -> None:
        """Some bytes have come."""
        if self.transport.is_closing():
            return
        self._body_bytes += len(data)
        super().data_received(data)
        self._note(time.monotonic())

    def on_response_complete(self) -> None:
        """The answer goes out. The next request may be in the buffer already.

        In the place of uvicorn's, which sets a timer for each answer; here the sweep ends connections that are idle.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self.conn.start_next_cycle()
            if self.conn.trailing_data[0]:
                self.handle_events()
        self._note(time.monotonic())

    def pause_writing(self) -> None:
        """The client does not take what we send."""
        self._stalled_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._stalled_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """The answer to what is not HTTP, or too large a header: h11 has raised why."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        code = "header_too_large" if status == 431 else "invalid_http"
        self._end(status, code, f"this is not a request that can be read: {sys.exception()}")

    def check(self, now: float) -> None:
        """Ends the connection if its client has been waited for long enough. About once a second."""
        patience = self._patience
        if self.transport.is_closing():
            if self._stalled_since is not None and now - self._stalled_since > patience.stall_seconds:
                self.transport.abort()
        elif self._idle_since is not None and now - self._idle_since > patience.idle_seconds:
            self.timeout_keep_alive_handler()
        elif self._head_since is not None and now - self._head_since > patience.head_seconds:
            self._end(408, "request_timeout", f"the header was not complete within {patience.head_seconds:g} seconds")
        elif self._stalled_since is not None and now - self._stalled_since > patience.stall_seconds:
            _log.info("a client stopped reading; its connection is closed")
            self.transport.abort()
        elif self._body_since is not None and now - self._body_since >= patience.body_seconds:
            self._check_body(now)

    def _check_body(self, now: float) -> None:
        assert self._body_since is not None
        wanted = self._patience.body_bytes_per_second * (now - self._body_since)
        if self._body_bytes < wanted and not self._waits_for_us():
            self._end(408, "request_timeout", "the body comes too slowly")
        self._body_since, self._body_bytes = now, 0

    def _note(self, now: float) -> None:
        """What the client is waited for from here on: its next request, the end of its header, of its body, or
        nothing."""
        state = self.conn.their_state
        has_begun = state is h11.IDLE and bool(self.conn.trailing_data[0])
        self._head_since = (self._head_since or now) if has_begun else None
        is_idle = state is h11.IDLE and not has_begun
        # Who has its answer may never send the rest of its body: nobody asked for it (RFC 9110, 10.1.1).
        self._idle_since = now if is_idle or self.conn.our_state is h11.DONE else None
        if state is not h11.SEND_BODY:
            self._body_since = None
        elif self._body_since is None:
            self._body_since, self._body_bytes = now, 0

    def _waits_for_us(self) -> bool:
        return self.flow.read_paused or self.cycle.waiting_for_100_continue

    def _end(self, status: int, code: str, detail: str) -> None:
        """Says why, unless an answer has begun, and hangs up."""
        cycle: RequestResponseCycle | None = self.cycle
        has_answer = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)  # to the request whose body is still coming
        if cycle is None or (cycle.response_complete and not has_answer) or not cycle.response_started:
            _log.info("a connection is closed: %s", detail)
            self.transport.write(_problem(status, code, detail))
        self.transport.close()


def _problem(status: int, code: str, detail: str) -> bytes:
    phrase = HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": phrase, "status": status, "detail": detail, "code": code}
    body = to_json({**document, "request_id": ""})
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
