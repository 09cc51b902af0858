"""Who somebody is: browsers by cookie, programs by token, the admin by the socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.datastructures import Headers

from runner.web.auth import cookie_name
from tests.web.conftest import Served, serve, serve_again
from tests.web.test_tasks import TASKS

ME = "/api/v1/users/me"
TOKENS = "/api/v1/tokens"


@pytest.fixture
def cookies(tmp_path: Path) -> Iterator[Served]:
    """A runner in mode cookie."""
    with serve(tmp_path, auth__mode="cookie") as served:
        yield served


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Served]:
    """A runner in mode token."""
    with serve(tmp_path, auth__mode="token") as served:
        yield served


def ask(served: Served, method: str, path: str, **more: Any) -> httpx2.Response:
    """A request of a client that keeps nothing."""
    return httpx2.request(method, f"http://127.0.0.1:{served.port}{path}", timeout=20, **more)


def bearer(served: Served, name: str, **more: Any) -> dict[str, str]:
    """The header of somebody who has been given a token."""
    token = served.socket.post(TOKENS, json={"name": name, **more}).json()["token"]
    return {"Authorization": f"Bearer {token}"}


def stored(served: Served) -> list[dict[str, Any]]:
    """The user records, once they are on the disk."""
    served.service.store.settle()
    served.service.store.checkpointer.checkpoint()
    return [json.loads(path.read_bytes()) for path in (served.data / "users").glob("*.json")]


def test_a_browser_is_the_same_user_again(cookies: Served) -> None:
    """It is given a cookie that scripts cannot read, and what it submits is its own."""
    first = cookies.tcp.get(ME)
    (name, _), *attributes = (part.partition("=")[::2] for part in first.headers["set-cookie"].split("; "))
    assert (name, dict(attributes)) == ("uid", {"Path": "/", "Max-Age": "2592000", "HttpOnly": "", "SameSite": "Lax"})
    task = cookies.tcp.post(TASKS, json={"type": "echo"}).json()
    again = cookies.tcp.get(ME)
    assert task["user_id"] == first.json()["user_id"] == again.json()["user_id"]
    assert again.json()["statistics"]["tasks"] == 1
    assert again.json()["last_accessed"] == again.json()["created_at"]
    assert "set-cookie" not in again.headers


def test_a_visitor_leaves_nothing_and_a_user_no_secret(cookies: Served) -> None:
    """A record is made with the first change; it holds the hash, and nothing that could be sent back."""
    cookies.tcp.get(TASKS)
    assert stored(cookies) == []
    cookies.tcp.post(TASKS, json={"type": "echo"})
    (user,) = stored(cookies)
    secret = cookies.tcp.cookies["uid"].split(".")[2]
    assert len(secret) == 43
    assert len(user["secret_sha256"]) == 64
    assert secret not in json.dumps(user)


@pytest.mark.parametrize("cookie", [None, "uid=", "uid=a.b.c.d", "uid=x; uid=y", "uid=\xff", "other=1"])
def test_without_a_cookie_of_ours_nothing_is_changed(cookies: Served, cookie: str | None) -> None:
    """A change needs somebody whose it is; a look gets a new cookie, and sees nothing."""
    headers = [] if cookie is None else [("Cookie", cookie.encode("latin-1"))]
    refused = ask(cookies, "POST", TASKS, json={"type": "echo"}, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (401, "auth_required")
    looked = ask(cookies, "GET", TASKS, headers=headers)
    assert looked.json() == []
    assert "set-cookie" in looked.headers


def test_a_visitor_who_asks_for_a_task_is_asked_who_they_are(cookies: Served) -> None:
    """Whether there is such a task or not."""
    cookies.tcp.get(ME)
    task = cookies.tcp.post(TASKS, json={"type": "echo"}).json()
    answers = [ask(cookies, "GET", f"{TASKS}/{id}") for id in (task["id"], "0" * 36)]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(401, "auth_required")] * 2


def test_a_cookie_ends_with_its_users_secret(cookies: Served) -> None:
    """A record with another hash: the signature alone is not enough."""
    cookies.tcp.get(ME)
    cookies.tcp.post(TASKS, json={"type": "echo"})
    user_id = cookies.tcp.get(ME).json()["user_id"]
    value = cookies.tcp.cookies["uid"]
    cookies.service.store.save_user(
        cookies.service.store.get_user(user_id).model_copy(update={"secret_sha256": "0" * 64})
    )
    cookies.service.store.writer.flush()
    with serve_again(cookies) as port:
        answer = httpx2.get(f"http://127.0.0.1:{port}{ME}", headers={"Cookie": f"uid={value}"})
    assert answer.json()["user_id"] != user_id


def test_a_secure_cookie_wherever_it_is_not_loopback() -> None:
    """`__Host-` cannot be set by a page of a sibling domain."""
    assert cookie_name({"scheme": "http"}, Headers({"host": "localhost:8080"})) == "uid"
    assert cookie_name({"scheme": "https"}, Headers({"host": "localhost:8080"})) == "__Host-uid"
    assert cookie_name({"scheme": "http"}, Headers({"host": "runner.example"})) == "__Host-uid"


def test_a_token_is_its_user(tokens: Served) -> None:
    """It submits for that user, and sees no more than is theirs."""
    ann, root = bearer(tokens, "ann"), bearer(tokens, "boss", user_id="root", scope="admin")
    task = ask(tokens, "POST", TASKS, json={"type": "echo"}, headers=ann).json()
    other = ask(tokens, "POST", TASKS, json={"type": "echo"}, headers=root).json()
    assert (task["user_id"], other["user_id"]) == ("ann", "root")
    assert [one["id"] for one in ask(tokens, "GET", TASKS, headers=ann).json()] == [task["id"]]
    assert len(ask(tokens, "GET", TASKS, headers=root).json()) == 2
    assert [ask(tokens, "GET", ME, headers=who).json()["scope"] for who in (ann, root)] == ["user", "admin"]


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer fr_x", "Basic YTpi", "Bearer \xff"])
def test_a_false_token_is_refused(tokens: Served, value: str) -> None:
    """Even where none would be needed."""
    for path in (TASKS, "/live"):
        answer = ask(tokens, "GET", path, headers=[("Authorization", value.encode("latin-1"))])
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_without_a_token_only_probes_are_answered(tokens: Served) -> None:
    """And they say nothing of what is inside."""
    assert ask(tokens, "GET", TASKS).status_code == 401
    assert ask(tokens, "GET", "/live").status_code == 200
    assert ask(tokens, "GET", "/health").json()["details"] == {}
    assert "pending" in ask(tokens, "GET", "/health", headers=bearer(tokens, "a", scope="admin")).json()["details"]


def test_a_removed_token_is_believed_no_more(tokens: Served) -> None:
    """At once, and after a restart."""
    ann = bearer(tokens, "ann")
    assert ask(tokens, "GET", TASKS, headers=ann).status_code == 200
    assert tokens.socket.delete(f"{TOKENS}/ann").status_code == 200
    assert ask(tokens, "GET", TASKS, headers=ann).status_code == 401
    assert tokens.socket.delete(f"{TOKENS}/ann").status_code == 404


def test_tokens_are_kept_as_hashes(tokens: Served) -> None:
    """For the owner of the directory alone."""
    token = bearer(tokens, "ann")["Authorization"].removeprefix("Bearer ")
    path = tokens.data / "tokens.json"
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert set(tokens.socket.get(TOKENS).json()[0]) == {"name", "user_id", "scope", "created_at"}
    with serve_again(tokens) as port:
        again = httpx2.get(f"http://127.0.0.1:{port}{ME}", headers={"Authorization": f"Bearer {token}"})
    assert again.json()["user_id"] == "ann"


def test_tokens_are_made_through_the_socket_only(tokens: Served) -> None:
    """A stolen token, even an admin's, makes no further one."""
    root = bearer(tokens, "root", scope="admin")
    for method, path in (("GET", TOKENS), ("POST", TOKENS), ("DELETE", f"{TOKENS}/root")):
        assert ask(tokens, method, path, headers=root, json={"name": "x"}).status_code == 403
    assert tokens.socket.post(TOKENS, json={"name": "root"}).json()["code"] == "name_taken"
    assert tokens.socket.post(TOKENS, json={"name": "../x"}).status_code == 422


def test_the_runner_itself_is_for_its_admin(tokens: Served) -> None:
    """Users neither clean up nor learn which files there are."""
    ann = bearer(tokens, "ann")
    assert ask(tokens, "POST", "/api/v1/gc", headers=ann).json()["code"] == "forbidden"
    assert ask(tokens, "GET", "/api/v1/why?target=/etc/passwd", headers=ann).status_code == 404
    listed = ask(tokens, "GET", "/api/v1/handlers", headers=ann).json()
    assert {handler["path"] for handler in listed["handlers"]} == {None}
    assert "samples.py" in tokens.socket.get("/api/v1/handlers").json()["handlers"][0]["path"]
