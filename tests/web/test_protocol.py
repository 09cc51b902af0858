"""Clients that drip, stall or send what is not HTTP, against a real server."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path

import httpx2
import pytest

from runner.web.protocol import Patience
from tests.web.conftest import Served, serve_again
from tests.web.test_tasks import TASKS

HEAD = b"GET /live HTTP/1.1\r\nHost: localhost\r\n"
SHORT = Patience(head_seconds=0.3, body_seconds=0.3, stall_seconds=0.3, max_connections=600)


@pytest.fixture(scope="module")
def hasty(idle: Served) -> Iterator[int]:
    """The port of a server that waits for nobody."""
    with serve_again(idle, SHORT) as port:
        yield port


def connect(port: int) -> socket.socket:
    """A connection without any manners."""
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def answer_on(connection: socket.socket) -> tuple[int, dict[str, object]]:
    """The status and the document that come first."""
    response = HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X: " + b"x" * 100])
def test_a_header_must_be_complete_in_time(hasty: int, sent: bytes) -> None:
    """A connection on which nothing comes is such a header, too."""
    with connect(hasty) as connection:
        connection.sendall(sent)
        status, problem = answer_on(connection)
    assert (status, problem["code"]) == (408, "request_timeout")


def test_a_header_that_drips_gains_no_time(hasty: int) -> None:
    """It counts from its first byte, whatever comes after it."""
    with connect(hasty) as connection:
        began = time.monotonic()
        connection.sendall(HEAD)
        connection.settimeout(0.05)
        while time.monotonic() - began < 10:
            try:
                if connection.recv(100):
                    break
            except TimeoutError:
                connection.sendall(b"X: y\r\n")
        assert time.monotonic() - began < 3


def test_a_second_request_is_waited_for_like_the_first(hasty: int) -> None:
    """Keep-alive is no way around it."""
    with connect(hasty) as connection:
        connection.sendall(HEAD + b"\r\n" + HEAD)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in received


def test_a_connection_that_is_not_used_any_more_is_closed(idle: Served) -> None:
    """Without a word: nothing was asked."""
    with serve_again(idle, Patience(idle_seconds=0.3)) as port, connect(port) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert answer_on(connection)[0] == 200
        assert connection.recv(100) == b""


@pytest.mark.parametrize("patience", [Patience(idle_seconds=0.3), Patience(body_seconds=0.3, idle_seconds=20)])
def test_who_has_an_answer_and_keeps_the_body_gets_no_second_answer(idle: Served, patience: Patience) -> None:
    """The connection is closed: whatever else were said would be taken for the answer to the next request."""
    head = b"POST /live HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    with serve_again(idle, patience) as port, connect(port) as connection:
        connection.sendall(head)
        assert answer_on(connection)[0] == 405
        assert connection.recv(100) == b""


def test_a_body_must_come_at_some_rate(hasty: int, idle: Served) -> None:
    """What has come of it is removed; nothing was stored."""
    head = (
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999\r\n"
    )
    with connect(hasty) as connection:
        connection.sendall(head + b'\r\n{"type":')
        status, problem = answer_on(connection)
    assert (status, problem["code"]) == (408, "request_timeout")
    assert list((idle.data / "tmp").glob("upload-*")) == []


def test_a_body_that_comes_fast_enough_may_take_its_time(hasty: int) -> None:
    """Longer than any limit, but not slower."""
    headers = {"Content-Type": "application/json"}
    answer = httpx2.post(f"http://127.0.0.1:{hasty}{TASKS}", content=unhurried(), headers=headers)
    assert answer.json()["code"] == "invalid_json"


def unhurried() -> Iterator[bytes]:
    """Two kilobytes in each tenth of a second, for a second: the pace is what is tested."""
    for _ in range(10):
        threading.Event().wait(0.1)
        yield b" " * 2000


def test_an_answer_must_be_read(served: Served) -> None:
    """A client that stalls loses its connection, and we the open file."""
    task = served.tcp.post(TASKS, json={"type": "echo", "payload": {"text": "x" * 1000, "times": 8000}}).json()
    served.tcp.get(f"{TASKS}/{task['id']}", params={"wait": 20})
    with serve_again(served, SHORT) as port, connect(port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET {TASKS}/{task['id']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until = time.monotonic() + 20
        while is_open(port) and time.monotonic() < until:
            threading.Event().wait(0.05)
        assert not is_open(port)


def is_open(port: int) -> bool:
    """Whether this machine has an established connection of a server at that port."""
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(wanted) and row[3] == "01" for row in rows)


def test_slow_clients_keep_nobody_else_waiting(hasty: int) -> None:
    """Slowloris: very many half requests; others are answered meanwhile, and all of the slow ones end."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(hasty)) for _ in range(500)]
        for connection in slow:
            connection.sendall(HEAD)
        began = time.monotonic()
        assert httpx2.get(f"http://127.0.0.1:{hasty}/live").status_code == 200
        assert time.monotonic() - began < 1
        assert {answer_on(connection)[0] for connection in slow} == {408}


def test_one_connection_too_many_is_sent_away(idle: Served) -> None:
    """Those who are here are still served, and the socket is never full."""
    with serve_again(idle, Patience(max_connections=3)) as port, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(port)).sendall(HEAD)
        status, problem = answer_on(stack.enter_context(connect(port)))
    assert (status, problem["code"]) == (503, "too_many_connections")
    assert idle.socket.get("/live").status_code == 200


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_http"),
        (b"hello\r\n\r\n", 400, "invalid_http"),
        (b"GET /live HTTP/1.1\r\n\r\n", 400, "invalid_http"),
        (b"GET /live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"X : y\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"X: a\x00b\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: 1, 2\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "invalid_http"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501, "invalid_http"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "ambiguous_length"),
        (HEAD + b"X: " + b"x" * 17_000 + b"\r\n\r\n", 431, "header_too_large"),
        (HEAD + b"X: " + b"x" * 100_000, 431, "header_too_large"),
        (HEAD + b"X: y\r\n" * 5_000 + b"\r\n", 431, "header_too_large"),
        (b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431, "header_too_large"),
        (b"GET /live HTTP/1.0\r\n\r\n", 400, "invalid_host"),
        (b"GET http://evil.example/live HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not_found"),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not_found"),
        (b"TRACE /live HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "method_not_allowed"),
        (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not_found"),
        (b"GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 200, None),
    ],
)
def test_a_request_that_is_none_is_answered(idle: Served, sent: bytes, status: int, code: str | None) -> None:
    """By a problem document, before it reaches anything."""
    with connect(idle.port) as connection:
        connection.sendall(sent)
        answered, problem = answer_on(connection)
    assert (answered, problem.get("code")) == (status, code)


def test_requests_that_come_at_once_are_answered_one_after_the_other(idle: Served) -> None:
    """Pipelined (RFC 9112, 9.3.2): each answer whole, in order, whatever is gathered on its way out."""
    paths = [f"/nothing/{number}" for number in range(40)]
    with connect(idle.port) as connection:
        connection.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths))
        received = b""
        while received.count(b"there is nothing at ") < 2 * len(paths):
            received += connection.recv(65536)
    assert re.findall(rb'"detail":"there is nothing at ([^"]+)"', received) == [path.encode() for path in paths]
