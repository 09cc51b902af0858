"""Two users and every operation, by HTTP, as a stream and over the WebSocket: what is one's does not exist for the
other. The operations are those of the table that `/openapi.json` is made of, so none can be forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from runner.web.operations import EVENTS, OPERATIONS
from tests.web.conftest import Served, serve
from tests.web.test_tasks import TASKS
from tests.web.test_uploads import BYTES, TUS

ABSENT = "00000000-0000-4000-8000-000000000000"
SECRET = "known-to-ann-alone"

Key = tuple[str, str]
"""A method and a path."""

BY_ID = {key for key in OPERATIONS if "{id}" in key[1]}
FOR_ADMIN = {key for key, operation in OPERATIONS.items() if operation.is_for_admin}
NAMING: Mapping[Key, dict[str, Any]] = {
    ("GET", "/api/v1/why"): {"params": {"target": "<id>"}},
    ("GET", "/api/v1/progress/stream"): {"params": {"task_ids": "<id>"}},
    ("POST", "/api/v1/tasks:cancel"): {"json": {"ids": ["<id>"]}},
    ("POST", "/api/v1/tasks:retry"): {"json": {"ids": ["<id>"]}},
    ("POST", "/api/v1/tasks:delete"): {"json": {"ids": ["<id>"]}},
}
"""What names a task elsewhere than in its path, and how."""

READING = {
    key for key in OPERATIONS
    if key[0] == "GET" and not {key} & (BY_ID | FOR_ADMIN | NAMING.keys()) and OPERATIONS[key].media_type != EVENTS
}  # fmt: skip
"""What tells of one's own things, or of what everybody may know."""

MAKING = {("POST", "/api/v1/tasks"), ("POST", "/api/v1/tasks:batch")}
STREAMS_OF_ALL = {("GET", "/api/v1/events")}


@dataclass(frozen=True)
class Two:
    """Ann, who has a task with files, and Bob, who would like to have it."""

    served: Served
    ann: httpx2.Client
    bob: httpx2.Client
    task: dict[str, Any]
    upload: str


@pytest.fixture(scope="module", params=["cookie", "token"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Both, known by cookies or by tokens."""
    with serve(tmp_path_factory.mktemp("two"), auth__mode=request.param) as served:
        address = f"http://127.0.0.1:{served.port}"
        with httpx2.Client(base_url=address, timeout=20) as ann, httpx2.Client(base_url=address, timeout=20) as bob:
            introduce(served, ann, "ann-of-the-matrix", request.param)
            introduce(served, bob, "bob-of-the-matrix", request.param)
            completed(bob)
            yield Two(served, ann, bob, completed(ann, SECRET), begun(ann))


def completed(client: httpx2.Client, note: str = "") -> dict[str, Any]:
    """A task of theirs that has completed."""
    noted = {"metadata": {"note": note}, "client_id": note}
    submitted = client.post(TASKS, json={"type": "measure", "draft": True, **noted}).json()
    client.put(f"{TASKS}/{submitted['id']}/inputs/a.txt", content=b"12")
    client.post(f"{TASKS}/{submitted['id']}/start")
    task: dict[str, Any] = client.get(f"{TASKS}/{submitted['id']}", params={"wait": 20}).json()
    assert task["status"] == "completed"
    return task


def introduce(served: Served, client: httpx2.Client, name: str, mode: str) -> None:
    """Makes the client known."""
    if mode == "cookie":
        client.get("/api/v1/users/me")
    else:
        token = served.socket.post("/api/v1/tokens", json={"name": name}).json()["token"]
        client.headers["Authorization"] = f"Bearer {token}"


def begun(client: httpx2.Client) -> str:
    """The id of an upload of theirs that is not complete."""
    draft = client.post(TASKS, json={"type": "measure", "draft": True}).json()["id"]
    answer = client.post(f"{TASKS}/{draft}/uploads", headers=TUS | {"Upload-Length": "9"})
    return answer.headers["location"].rpartition("/")[2]


def requests_about(task_id: str, upload_id: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation on a task or an upload, HEAD too: method, path, and what is sent with it."""
    for method, path in sorted(BY_ID):
        is_upload = path.startswith("/api/v1/uploads")
        filled = path.replace("{id}", upload_id if is_upload else task_id).replace("{name}", "page.html")
        sent: dict[str, Any] = {} if method in ("GET", "DELETE", "OPTIONS") else {"json": {}}
        if is_upload or path.endswith("/uploads"):
            sent = {"headers": BYTES | {"Upload-Offset": "0", "Upload-Length": "1", "X-HTTP-Method-Override": "PATCH"}}
        yield method, filled, sent
        if method == "GET" or path == "/api/v1/uploads/{id}":
            yield "HEAD", filled, {"headers": TUS}
    for (method, path), sent in NAMING.items():
        yield method, path, json.loads(json.dumps(sent).replace("<id>", task_id))


def answer_to(client: httpx2.Client, method: str, path: str, sent: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """Status, headers and body, as far as they do not name the request."""
    answer = client.request(method, path, **sent)
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
    return answer.status_code, headers, answer.text.replace(answer.headers["x-request-id"], "")


def test_every_operation_is_asked_for_by_one_of_these_tests() -> None:
    """A new one that names nobody's task and is not only read has to be given its test here."""
    known = BY_ID | FOR_ADMIN | NAMING.keys() | READING | MAKING | STREAMS_OF_ALL
    assert known == set(OPERATIONS)
    assert {key for key, operation in OPERATIONS.items() if operation.media_type == EVENTS} == {
        key for key in BY_ID | NAMING.keys() | STREAMS_OF_ALL if OPERATIONS[key].media_type == EVENTS
    }


def test_another_users_task_is_as_absent_as_an_absent_one(two: Two) -> None:
    """By every operation that names one: the same status, the same headers, the same words."""
    theirs = list(requests_about(two.task["id"], two.upload))
    absent = list(requests_about(ABSENT, "0" * 32))
    for one, other in zip(theirs, absent, strict=True):
        status, headers, text = answer_to(two.bob, *one)
        said = text.replace(two.task["id"], ABSENT).replace(two.upload, "0" * 32)
        assert (status, headers, said) == answer_to(two.bob, *other), one
        assert 400 <= status < 500 or "no task" in text, (one, status, text)


def test_nothing_that_another_user_does_changes_a_task(two: Two) -> None:
    """It stands as its owner left it, after all of these requests."""
    before = two.ann.get(f"{TASKS}/{two.task['id']}").json()
    for request in requests_about(two.task["id"], two.upload):
        answer_to(two.bob, *request)
    assert two.ann.get(f"{TASKS}/{two.task['id']}").json() == before
    assert two.ann.get(f"{TASKS}/{two.task['id']}/outputs/page.html").status_code == 200
    assert two.ann.head(f"/api/v1/uploads/{two.upload}", headers=TUS).headers["upload-offset"] == "0"


def test_what_is_for_the_admin_is_for_nobody_else(two: Two) -> None:
    """With a body or without; to the admin it is there."""
    for method, path in sorted(FOR_ADMIN):
        assert answer_to(two.bob, method, path.replace("{name}", "ann"), {})[0] == 403, path
        if method == "GET":
            assert two.served.socket.get(path).status_code == 200


@pytest.mark.parametrize("key", sorted(READING), ids=lambda key: key[1])
def test_what_everybody_may_read_says_nothing_of_others(two: Two, key: Key) -> None:
    """No id, no name, no note, no file of hers."""
    method, path = key
    status, headers, text = answer_to(two.bob, method, path.replace("{name}", "echo"), {})
    assert status == 200
    said = f"{headers} {text}"
    assert not [secret for secret in (two.task["id"], two.upload, two.task["user_id"], SECRET) if secret in said]


def test_what_one_makes_is_ones_own(two: Two) -> None:
    """Nobody can make a task in another's name, or under a key that the other one has used."""
    for method, path in sorted(MAKING):
        body = {"type": "echo", "user_id": two.task["user_id"]}
        assert answer_to(two.bob, method, path, {"json": [body] if path.endswith("batch") else body})[0] == 422
    made = [client.post(TASKS, json={"type": "echo", "unique_key": "same"}).json() for client in (two.ann, two.bob)]
    assert made[0]["id"] != made[1]["id"]


def test_a_stream_of_all_tasks_is_of_ones_own(two: Two) -> None:
    """As server-sent events and over the WebSocket, both of which are read up to the end of a task of Bob's own."""
    with two.bob.sse("/api/v1/events") as source, two.bob.websocket("/ws", headers=origin(two)) as socket:
        socket.send_text(json.dumps({"action": "subscribe", "all": True}))
        socket.send_text(json.dumps({"action": "subscribe", "task_ids": [two.task["id"]]}))
        heard = [socket.receive_text(timeout=20) for _ in range(3)]
        hers, his = completed(two.ann), completed(two.bob)
        streamed = [event.data for event in up_to_done(iter(source), his["id"])]
        while not ('"done"' in heard[-1] and his["id"] in heard[-1]):
            heard.append(socket.receive_text(timeout=20))
    assert [json.loads(text)["data"]["code"] for text in heard if '"error"' in text and "code" in text] == ["not_found"]
    assert not [text for text in streamed + heard if hers["id"] in text]


def up_to_done(events: Iterator[httpx2.ServerSentEvent], task_id: str) -> Iterator[httpx2.ServerSentEvent]:
    """Events up to the end of a task."""
    for event in events:
        yield event
        if event.event == "done" and task_id in event.data:
            return


def origin(two: Two) -> dict[str, str]:
    """What a browser sends along when it opens a WebSocket."""
    return {"Origin": f"http://127.0.0.1:{two.served.port}"}


@pytest.mark.parametrize(
    "query", ["", "?user=ann-of-the-matrix", "?client=known-to-ann-alone", "?status=completed", "?text=x", "?size=1000"]
)
def test_lists_and_counts_hold_only_ones_own(two: Two, query: str) -> None:
    """Whatever is asked for."""
    own = two.bob.get("/api/v1/users/me").json()["user_id"]
    listed = two.bob.get(TASKS + query).json()
    assert {task["user_id"] for task in listed} <= {own}
    assert two.bob.get(f"{TASKS}/count{query}").json()["count"] == len(listed)


def test_the_admin_sees_both(two: Two) -> None:
    """Through the socket."""
    assert two.served.socket.get(f"{TASKS}/count").json()["count"] >= 2
    assert two.served.socket.get(f"{TASKS}/{two.task['id']}").status_code == 200


def test_the_owner_is_answered_by_every_operation(two: Two) -> None:
    """Negative control: what is 404 to the other is not 404 because the request is wrong."""
    asked = [request for request in requests_about(two.task["id"], two.upload) if request[0] in ("GET", "HEAD")]
    assert {answer_to(two.ann, *request)[0] for request in asked} == {200}
