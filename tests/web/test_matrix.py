"""Two users and every route: what is one's does not exist for the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from tests.web.conftest import Served, routes_of, serve
from tests.web.test_tasks import TASKS

ABSENT = "00000000-0000-4000-8000-000000000000"
NAMES = {"{name}": "page.html", "{name:path}": "page.html"}


@dataclass(frozen=True)
class Two:
    """Ann, who has a task with files, and Bob, who would like to have it."""

    served: Served
    ann: httpx2.Client
    bob: httpx2.Client
    task: dict[str, Any]


@pytest.fixture(scope="module", params=["cookie", "token"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Both, known by cookies or by tokens."""
    with serve(tmp_path_factory.mktemp("two"), auth__mode=request.param) as served:
        address = f"http://127.0.0.1:{served.port}"
        with httpx2.Client(base_url=address, timeout=20) as ann, httpx2.Client(base_url=address, timeout=20) as bob:
            introduce(served, ann, "ann", request.param)
            introduce(served, bob, "bob", request.param)
            completed(bob)
            yield Two(served, ann, bob, completed(ann))


def completed(client: httpx2.Client) -> dict[str, Any]:
    """A task of theirs that has completed."""
    submitted = client.post(TASKS, json={"type": "measure", "draft": True}).json()
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


def requests_of(served: Served) -> Iterator[tuple[str, str]]:
    """Every route with a task's id in it, and its methods, SSE streams included."""
    for route in routes_of(served):
        if "/tasks/{id}" in route.path:
            path = route.path
            for placeholder, name in NAMES.items():
                path = path.replace(placeholder, name)
            for method in sorted(route.methods or ()):
                yield method, path


def answer_to(client: httpx2.Client, method: str, path: str, task_id: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body, as far as they do not name the request."""
    body: dict[str, str] | None = None if method in ("GET", "HEAD", "DELETE") else {}
    answer = client.request(method, path.replace("{id}", task_id), json=body)
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
    text = answer.text.replace(answer.headers["x-request-id"], "").replace(task_id, "<id>")
    return answer.status_code, headers, text


def test_another_users_task_is_as_absent_as_an_absent_one(two: Two) -> None:
    """On every route: the same status, the same headers, the same words."""
    for method, path in requests_of(two.served):
        theirs = answer_to(two.bob, method, path, two.task["id"])
        absent = answer_to(two.bob, method, path, ABSENT)
        assert theirs == absent, (method, path)
        assert 400 <= theirs[0] < 500, (method, path, theirs)


def test_nothing_that_another_user_does_changes_a_task(two: Two) -> None:
    """It stands as its owner left it, after all of these requests."""
    before = two.ann.get(f"{TASKS}/{two.task['id']}").json()
    for method, path in requests_of(two.served):
        answer_to(two.bob, method, path, two.task["id"])
    assert two.ann.get(f"{TASKS}/{two.task['id']}").json() == before
    assert two.ann.get(f"{TASKS}/{two.task['id']}/outputs/page.html").status_code == 200


@pytest.mark.parametrize("query", ["", "?user=ann", "?client=ann", "?status=completed", "?text=x", "?size=1000"])
def test_lists_and_counts_hold_only_ones_own(two: Two, query: str) -> None:
    """Whatever is asked for."""
    listed = two.bob.get(TASKS + query).json()
    assert two.task["id"] not in {task["id"] for task in listed}
    assert two.bob.get(f"{TASKS}/count{query}").json()["count"] <= 1


def test_the_admin_sees_both(two: Two) -> None:
    """Through the socket."""
    assert two.served.socket.get(f"{TASKS}/count").json()["count"] >= 2
    assert two.served.socket.get(f"{TASKS}/{two.task['id']}").status_code == 200


def test_the_owner_is_answered_on_every_route(two: Two) -> None:
    """Negative control: what is 404 to the other is not 404 because the request is wrong."""
    own = {answer_to(two.ann, method, path, two.task["id"])[0] for method, path in requests_of(two.served)
           if method == "GET"}  # fmt: skip
    assert own == {200}
