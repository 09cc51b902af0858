"""How answers are written, by a real server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from runner.web.server import Server
from runner.web.sockets import listen_on_port
from runner.web.writing import Conversation
from tests.web.conftest import Served

HEAD = b" / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def answering(served: Served, app: ASGIApp) -> Iterator[socket.socket]:
    """A connection to a server of this app alone."""
    with listen_on_port("127.0.0.1", 0) as listener:
        server = Server(app, served.service.events)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with socket.create_connection(listener.getsockname()[:2], timeout=20) as connection:
                yield connection
        finally:
            server.should_exit = True
            thread.join()


def app_of(value: bytes, *bodies: bytes, length: int | None = None) -> ASGIApp:
    """An app that answers with this field in its head, and these pieces."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        known = [] if length is None else [(b"content-length", b"%d" % length)]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-said", value), *known]})
        for number, body in enumerate(bodies, 1):
            await send({"type": "http.response.body", "body": body, "more_body": number < len(bodies)})

    return app


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """All that comes, up to these bytes."""
    received = b""
    while not received.endswith(end) and (chunk := connection.recv(65536)):
        received += chunk
    return received


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: uid=me", b"a\nb", b"a\rb", b"a\0b"])
def test_what_a_field_holds_never_begins_another_line(served: Served, value: bytes) -> None:
    """Response splitting: nothing of such an answer is sent."""
    with answering(served, app_of(value, b"body", length=4)) as connection:
        connection.sendall(b"GET" + HEAD)
        received = connection.recv(65536)
    assert b"x-said" not in received
    assert received.startswith(b"HTTP/1.1 500 ") or not received


def test_fields_come_as_they_were_given_and_the_connection_goes_on(served: Served) -> None:
    """Two requests, one behind the other in one piece: each is answered whole."""
    with answering(served, app_of(b"it", b"body", length=4)) as connection:
        connection.sendall((b"GET" + HEAD) * 2)
        both = b""
        while both.count(b"\r\n\r\nbody") < 2:
            both += connection.recv(65536)
    assert both.count(b"\r\nx-said: it\r\n") == 2


def test_pieces_of_unknown_length_are_chunks(served: Served) -> None:
    """RFC 9112, 7.1."""
    with answering(served, app_of(b"it", b"abc", b"de")) as connection:
        connection.sendall(b"GET" + HEAD)
        assert read_until(connection, b"0\r\n\r\n").endswith(b"\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")


def test_the_head_of_a_stream_does_not_wait_for_its_first_piece(served: Served) -> None:
    """Nothing may happen for long; the client must know that it is heard."""
    released = threading.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await receive())["type"] != "http.disconnect":
            pass
        released.set()

    with answering(served, app) as connection:
        connection.sendall(b"GET" + HEAD)
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")
        connection.shutdown(socket.SHUT_RDWR)
        assert released.wait(20)


def test_head_has_no_body_and_close_is_kept(served: Served) -> None:
    """The length is that of GET."""
    with answering(served, app_of(b"it", b"body", length=4)) as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = read_until(connection, b"never")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 4\r\n" in answer
    assert b"connection: close\r\n" in answer.lower()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("length", [3, 5])
def test_a_length_that_is_not_true_ends_the_connection(served: Served, version: bytes, length: int) -> None:
    """Whoever waits for the rest, or takes too much for the next answer, must not go on (RFC 9112, 9.2)."""
    with answering(served, app_of(b"it", b"body", length=length)) as connection:
        connection.sendall(b"GET / HTTP/%b\r\nHost: localhost\r\n\r\n" % version)
        received = read_until(connection, b"never")
    assert b"body" not in received


def asked(*fields: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> Conversation:
    """A server's account of a connection by which this request has come."""
    conversation = Conversation(h11.SERVER)
    head = (b"%b / HTTP/%b" % (method, version), b"Host: localhost", *fields)
    conversation.receive_data(b"\r\n".join(head) + b"\r\n\r\n")
    while conversation.next_event() not in (h11.NEED_DATA, h11.PAUSED):
        pass
    return conversation


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST"])
def test_a_whole_answer_leaves_h11_where_its_own_sending_does(method: bytes) -> None:
    """And the next request is heard as any is."""
    passed, sent = asked(method=method), asked(method=method)
    assert passed.pass_over_answer()
    sent.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
    sent.send(h11.EndOfMessage())
    assert passed.states == sent.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}
    passed.start_next_cycle()
    passed.receive_data(b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert isinstance(passed.next_event(), h11.Request)
    assert passed.send(h11.Response(status_code=200, headers=[])).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "conversation",
    [
        asked(b"Connection: close"),
        asked(version=b"1.0"),
        asked(b"Upgrade: h2c", b"Connection: Upgrade"),
        asked(method=b"CONNECT"),
        asked(b"Content-Length: 5", b"Expect: 100-continue", method=b"POST"),
    ],
)
def test_where_the_connection_matters_h11_sends_itself(conversation: Conversation) -> None:
    """It adds what has to be said, or hangs up."""
    before = conversation.states
    assert not conversation.pass_over_answer()
    assert conversation.states == before
