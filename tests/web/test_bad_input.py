"""Bad input and its answer: no request is answered by 500, and none that is refused stores anything."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.web.conftest import Served

TASKS = "/api/v1/tasks"
ABSENT = "00000000-0000-4000-8000-000000000000"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b'{"type": "\xff"}', 400, "invalid_json"),
        (b'{"type": "echo", "priority": NaN}', 400, "invalid_json"),
        (b"[" * 100 + b"]" * 100, 400, "invalid_json"),
        (b'{"type": "echo", "type": "fail"}', 400, "duplicate_key"),
        (b"[]", 422, "validation_error"),
        (b"1", 422, "validation_error"),
        (b"{}", 422, "validation_error"),
        (b'{"type": 7}', 422, "validation_error"),
        (b'{"type": "ecoh"}', 422, "unknown_handler"),
        (b'{"type": "echo", "status": "completed"}', 422, "unknown_field"),
        (b'{"type": "echo", "user_id": "ann"}', 422, "unknown_field"),
        (b'{"type": "echo", "payload": {"times": "x"}}', 422, "validation_error"),
        (b'{"type": "echo", "payload": {"tmies": 2}}', 422, "validation_error"),
        (b'{"type": "echo", "queue": "no-such-queue"}', 422, "validation_error"),
        (b'{"type": "echo", "delay": "soon"}', 422, "validation_error"),
        (b'{"type": "echo", "metadata": {"a": "' + b"x" * (1 << 20) + b'"}}', 413, "content_too_large"),
    ],
)
def test_a_bad_submission_is_refused_and_stores_nothing(idle: Served, body: bytes, status: int, code: str) -> None:
    """The answer is problem+json with the code, the reason and the id to look for in the log."""
    answer = idle.tcp.post(TASKS, content=body, headers=JSON)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert list((idle.data / "tasks").iterdir()) == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{TASKS}/{ABSENT}", 404),
        ("GET", f"{TASKS}/..%2f..%2fVERSION", 404),
        ("GET", f"{TASKS}/Upper", 404),
        ("GET", f"{TASKS}/a.b", 404),
        ("GET", f"{TASKS}/{'a' * 65}", 404),
        ("GET", f"{TASKS}/%00", 404),
        ("DELETE", f"{TASKS}/{ABSENT}", 404),
        ("POST", f"{TASKS}/{ABSENT}/cancel", 404),
        ("POST", f"{TASKS}/{ABSENT}/retry", 404),
        ("POST", f"{TASKS}/{ABSENT}/rerun", 404),
        ("POST", f"{TASKS}/{ABSENT}/start", 404),
        ("PUT", f"{TASKS}/{ABSENT}/inputs/a.txt", 404),
        ("GET", f"{TASKS}/{ABSENT}/events", 404),
        ("GET", f"{TASKS}/{ABSENT}/log", 404),
        ("GET", f"{TASKS}/{ABSENT}?wait=1", 404),
        ("GET", f"{TASKS}/{ABSENT}/outputs/a", 404),
        ("GET", "/api/v1/handlers/ecoh", 404),
        ("GET", "/api/v1/nothing", 404),
        ("GET", f"{TASKS}/", 404),
        ("PATCH", TASKS, 405),
        ("TRACE", TASKS, 405),
        ("GET", f"{TASKS}?status=done", 422),
        ("GET", f"{TASKS}?size=0", 422),
        ("GET", f"{TASKS}?size=x", 422),
        ("GET", f"{TASKS}?cursor=x", 422),
        ("GET", f"{TASKS}?created_after=yesterday", 422),
        ("GET", f"{TASKS}?colour=red", 422),
        ("GET", f"{TASKS}/{ABSENT}?wait=x", 422),
        ("GET", f"{TASKS}/{ABSENT}?wait=nan", 422),
        ("GET", f"{TASKS}/{ABSENT}?wait=9999", 422),
        ("GET", f"{TASKS}/{ABSENT}/log?after=x", 422),
        ("GET", "/api/v1/why", 422),
        ("POST", "/api/v1/gc?mode=all", 422),
    ],
)
def test_a_bad_request_has_its_own_status(idle: Served, method: str, path: str, status: int) -> None:
    """Unknown things are 404 without a look at the disk, wrong parameters 422, wrong methods 405."""
    answer = idle.tcp.request(method, path)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status


def test_a_405_lists_every_method_of_the_path(idle: Served) -> None:
    """Also those that are other endpoints."""
    allowed = idle.tcp.put(TASKS).headers["allow"]
    assert {"GET", "HEAD", "POST"} == set(allowed.split(", "))


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed"])
def test_a_body_must_say_that_it_is_json(idle: Served, content_type: str) -> None:
    """A form on another site's page cannot say so."""
    headers = {"Content-Type": content_type} if content_type else {}
    assert idle.tcp.post(TASKS, content=b'{"type": "echo"}', headers=headers).status_code == 415


def test_a_body_without_a_length_is_measured_as_it_comes(idle: Served) -> None:
    """A chunked body is cut off at the limit."""
    chunks = (b" " * 65536 for _ in range(32))
    answer = idle.tcp.post(TASKS, content=chunks, headers=JSON)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_web_page_elsewhere_changes_nothing(idle: Served, headers: dict[str, str], status: int) -> None:
    """The door answers before anything is read."""
    answer = idle.tcp.post(TASKS, json={"type": "echo"}, headers=headers)
    assert answer.status_code == status
    assert idle.tcp.get(f"{TASKS}/count").json() == {"count": 0}


def test_an_upload_that_breaks_off_leaves_nothing(served: Served) -> None:
    """Neither a file nor an input; the draft still waits."""
    draft: dict[str, Any] = served.tcp.post(TASKS, json={"type": "measure", "draft": True}).json()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        head = f"PUT {TASKS}/{draft['id']}/inputs/a.txt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 5000)
    assert served.tcp.get(f"{TASKS}/{draft['id']}", params={"wait": 0.2}).json()["input_files"] == []
    assert list((served.data / "tmp").glob("upload-*")) == []


def test_a_given_request_id_is_kept_and_a_forged_one_is_not(idle: Served) -> None:
    """An id that could break a log line is replaced."""
    assert idle.tcp.get("/live", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert (
        idle.tcp.get("/live", headers={"X-Request-ID": 'a" level="error'}).headers["x-request-id"] != 'a" level="error'
    )
