"""MediaCraft's document: users by cookie, create → upload → config → status → download, and its limits."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.contract.conftest import Row, Spoken, reached, rows, speaking
from tests.contract.mediacraft import (
    ENVELOPE,
    FAULT,
    HANDLERS,
    RECORD,
    REGIONS,
    browser,
    create,
    film,
    started,
    status_of,
    uploaded,
)

AS_JSON = {"Content-Type": "application/json"}
ONE = "/api/tasks/{id}"
CONFIG = {"json": {"config": {"selected_frame": 100, "regions": REGIONS}}}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner with both types."""
    with speaking(tmp_path_factory.mktemp("mediacraft"), HANDLERS) as spoken:
        yield spoken


@pytest.fixture
def ann(studio: Spoken) -> Iterator[httpx2.Client]:
    """Somebody new."""
    with browser(studio) as client:
        yield client


@rows(
    Row("GET /api/user/info", 200, "", ENVELOPE, {"success": True, "code": 200, "message": "Success"}),
    Row("GET /api/user/info", 200, "meta", "timestamp version request_id", {"version": "v1"}),
    Row("GET /api/user/info", 200, "data", "user_id created_at last_accessed tasks metadata task_count task_stats"),
    Row("GET /api/user/tasks", 200, "data", "tasks total_count status_stats", {"total_count": 0, "tasks": []}),
    Row("POST /api/tasks/create", 200, "data", "task_id status task_type", {"status": "created"},
        {"json": {"task_type": "watermark_removal"}}),
    Row("POST /api/tasks/create", 200, "data", None, {"task_type": "video_merge"},
        {"json": {"task_type": "video_merge", "task_name": "trip"}}),
    Row("POST /api/tasks/create", 400, "", FAULT, {"success": False, "code": 400, "data": None}, {"json": {}}),
    Row("POST /api/tasks/create", 400, "", FAULT, {"code": 400}, {"json": {"task_type": "checksum"}}),
    Row("POST /api/tasks/create", 400, "", FAULT, {"code": 400}, {"content": b"{}"}),
    Row("POST /api/tasks/create", 400, "", FAULT, {}, {"content": b"{", "headers": AS_JSON}),
    Row("GET /api/tasks/create", 405, "", FAULT, {"code": 405}),
    Row("GET /api/tasks/x/y/z", 404, "", FAULT, {"code": 404}),
    Row("GET /api/tasks/nothing/status", 404, "", FAULT, {"message": "Task not found", "error": "Task not found"}),
    Row("GET /api/tasks/..%2f..%2fx/status", 404, "", FAULT),
)  # fmt: skip
def test_requests_of_somebody_new(ann: httpx2.Client, row: Row) -> None:
    """Each row of the document that needs nothing before it, and what is wrong."""
    row.check(ann)


@rows(
    Row(f"POST {ONE}/upload", 200, "data", "task_id status original_filename file_size",
        {"task_id": "{id}", "status": "uploaded", "original_filename": "b.mp4", "file_size": 6},
        {"files": film("b.mp4")}),
    Row(f"POST {ONE}/upload", 400, "", FAULT, {}, {"files": {"file": ("", b"")}}),
    Row(f"POST {ONE}/upload", 400, "", FAULT, {}, {"data": {"file": "no file"}}),
    Row(f"POST {ONE}/upload", 400, "", FAULT, {}, {"files": film("notes.txt", b"text")}),
    Row(f"POST {ONE}/config", 200, "data", "task_id status config",
        {"task_id": "{id}", "status": "processing", "config": {"selected_frame": 100, "regions": REGIONS}}, CONFIG),
    Row(f"POST {ONE}/config", 200, "data.config", "selected_frame regions",
        {"regions": [{"x": 1, "y": 2, "width": 3, "height": 4}]},
        {"json": {"config": {"regions": [{"x": 1.2, "y": 1.9, "width": 3, "height": 4}]}}}),
    Row(f"POST {ONE}/config", 400, "", FAULT, {}, {"json": {"config": {"selected_frame": 1}}}),
    Row(f"POST {ONE}/config", 400, "", FAULT, {}, {"json": {"config": {"regions": []}}}),
    Row(f"POST {ONE}/config", 400, "", FAULT, {}, {"json": {"config": [1]}}),
    Row(f"GET {ONE}/status", 200, "data", RECORD, {"status": "uploaded", "progress": 0, "error_message": None}),
    Row(f"GET {ONE}/status", 200, "data.config", "selected_frame regions"),
    Row(f"GET {ONE}/download", 400, "", FAULT + " status", {"status": "uploaded"}),
)  # fmt: skip
def test_requests_of_who_has_uploaded_a_film(ann: httpx2.Client, row: Row) -> None:
    """Each row of the document that needs a file."""
    row.check(ann, id=uploaded(ann))


def test_a_film_goes_all_the_way(studio: Spoken, ann: httpx2.Client) -> None:
    """Under the one id that its client was told, to a result under the name that it came by."""
    task_id = started(ann, "my film.mp4")
    studio.ended(task_id)
    data = status_of(ann, task_id)
    assert (data["status"], data["progress"], data["progress_percentage"]) == ("completed", 100, 100)
    assert (
        data["output_file_path"] == data["processed_file_path"] == f"/data/results/{data['user_id']}/{task_id}/out.mp4"
    )
    result = ann.get(f"/api/tasks/{task_id}/download")
    assert (result.status_code, result.content) == (200, b"a film")
    assert "processed_my%20film.mp4" in result.headers["content-disposition"]
    assert ann.post(f"/api/tasks/{task_id}/config", **CONFIG).status_code == 400  # type: ignore[arg-type]
    assert ann.post(f"/api/tasks/{task_id}/upload", files=film()).status_code == 400


def test_a_failure_says_why_and_a_result_that_was_removed_is_gone(studio: Spoken, ann: httpx2.Client) -> None:
    """400 with the status, 404."""
    task_id = started(ann, "bad.mp4")
    studio.ended(task_id)
    data = status_of(ann, task_id)
    assert (data["status"], data["error_message"], data["processed_file_path"]) == (
        "failed",
        "the film is broken",
        None,
    )
    assert ann.get(f"/api/tasks/{task_id}/download").json()["status"] == "failed"
    task = studio.ended(started(ann))
    (studio.data / task.output_files[0]).unlink()
    assert ann.get(f"/api/tasks/{task.id}/download").status_code == 404


def test_a_second_film_takes_the_place_of_the_first(studio: Spoken, ann: httpx2.Client) -> None:
    """While nothing has begun."""
    task_id = uploaded(ann, "first.mp4")
    ann.post(f"/api/tasks/{task_id}/upload", files=film("second.mp4", b"more frames"))
    data = status_of(ann, task_id)
    assert (data["original_filename"], data["file_size"]) == ("second.mp4", 11)
    assert len(studio.service.get(task_id).input_files) == 1


# Users


def test_a_browser_is_known_by_its_cookies(studio: Spoken) -> None:
    """A UUID by name, a signed secret as proof; both only for HTTP, for thirty days, on every path."""
    with httpx2.Client(base_url=studio.http.base_url) as client:
        cookies = client.get("/api/user/info").headers.get_list("set-cookie")
        assert [cookie.partition("=")[0] for cookie in cookies] == ["user_id", "session_id"]
        assert all(cookie.endswith("; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax") for cookie in cookies)
        assert str(uuid.UUID(client.cookies["user_id"])) == client.cookies["user_id"]
        again = client.get("/api/user/info")
        assert again.json()["data"]["user_id"] == client.cookies["user_id"]
        assert "set-cookie" not in again.headers


def test_a_name_proves_nothing(studio: Spoken, ann: httpx2.Client) -> None:
    """Who knows another's UUID, or forges the proof, is somebody new."""
    task_id, name = create(ann), ann.cookies["user_id"]
    for cookie in (f"user_id={name}", f"user_id={name}; session_id={ann.cookies['session_id'][:-1]}x", "session_id=x"):
        answer = httpx2.get(f"{studio.http.base_url}/api/user/info", headers={"Cookie": cookie})
        assert answer.json()["data"]["user_id"] != name
        answer = httpx2.get(f"{studio.http.base_url}/api/tasks/{task_id}/status", headers={"Cookie": cookie})
        assert answer.status_code == 403


def test_the_proof_alone_is_enough(studio: Spoken, ann: httpx2.Client) -> None:
    """And the name is told again."""
    headers = {"Cookie": f"session_id={ann.cookies['session_id']}"}
    answer = httpx2.get(f"{studio.http.base_url}/api/user/info", headers=headers)
    assert answer.json()["data"]["user_id"] == ann.cookies["user_id"]
    assert f"user_id={ann.cookies['user_id']};" in answer.headers.get_list("set-cookie")[0]


@pytest.mark.parametrize(
    "request_line",
    ["GET /status", "GET /download", "POST /upload", "POST /config", "GET /frames", "GET /thumbnail", "PUT ", "DELETE ",
     "PUT /segments/0", "GET /files/0/thumbnail"],
)  # fmt: skip
def test_tasks_of_others_are_refused(studio: Spoken, ann: httpx2.Client, request_line: str) -> None:
    """On every route: 403."""
    task_id = uploaded(ann)
    method, _, path = request_line.partition(" ")
    body = {"files": film()} if path == "/upload" else {"json": {"selected_frame": 1}} if method != "GET" else {}
    with browser(studio) as bob:
        answer = bob.request(method, f"/api/tasks/{task_id}{path}", **body)
        assert (answer.status_code, answer.json()["message"]) == (403, "Access denied")
        assert bob.get("/api/user/tasks").json()["data"]["tasks"] == []


def test_users_and_their_tasks_are_files(studio: Spoken, ann: httpx2.Client) -> None:
    """`users/<id>.json`, `uploads/<user>/<task>/`."""
    task_id, user_id = uploaded(ann), ann.cookies["user_id"]
    store = studio.service.store
    store.settle()
    assert store.get_user(user_id).user_id == user_id
    assert store.layout.user(user_id) == str(studio.data / "users" / f"{user_id}.json")
    assert (studio.data / "uploads" / user_id / task_id / "clip.mp4").read_bytes() == b"frames"
    data = ann.get("/api/user/info").json()["data"]
    assert (data["tasks"], data["task_count"], data["task_stats"]) == ([task_id], 1, {"uploaded": 1})


def test_a_restart_forgets_nobody_and_nothing(tmp_path: Path) -> None:
    """Neither the browser nor its draft, with the frame that was chosen."""
    with speaking(tmp_path, HANDLERS) as spoken, browser(spoken) as client:
        task_id = uploaded(client)
        cookies = dict(client.cookies)
    with speaking(tmp_path, HANDLERS) as spoken:
        with httpx2.Client(base_url=spoken.http.base_url, cookies=cookies) as client:
            assert status_of(client, task_id)["status"] == "uploaded"
            assert client.post(f"/api/tasks/{task_id}/config", **CONFIG).status_code == 200  # type: ignore[arg-type]
        assert spoken.ended(task_id).status == "completed"


# Limits


def test_one_task_at_a_time_for_each_user(studio: Spoken, ann: httpx2.Client) -> None:
    """Drafts do not count; while one runs, no other is made or started."""
    draft, running = uploaded(ann), started(ann, "gate-user.mp4")
    studio.when(running, lambda task: task.progress is not None and task.progress.message != "")
    assert status_of(ann, running)["progress_message"] == "half way"
    for path, body in (
        ("/api/tasks/create", {"json": {"task_type": "video_merge"}}),
        (f"/api/tasks/{draft}/config", CONFIG),
    ):
        answer = ann.post(path, **body)
        assert (answer.status_code, answer.json()["message"]) == (429, "请等待当前任务完成")
    with browser(studio) as bob:
        assert studio.ended(started(bob)).status == "completed"
    studio.gate("gate-user.mp4").open()
    studio.ended(running)
    assert ann.post(f"/api/tasks/{draft}/config", **CONFIG).status_code == 200  # type: ignore[arg-type]


def test_so_many_tasks_at_a_time_for_all(tmp_path: Path) -> None:
    """Then the system is busy, for others, too."""
    with speaking(tmp_path, HANDLERS, limits__global=1) as spoken, browser(spoken) as one, browser(spoken) as other:
        spoken.running(started(one, "gate-system.mp4"))
        answer = other.post("/api/tasks/create", json={"task_type": "video_merge"})
        assert (answer.status_code, answer.json()["message"]) == (429, "系统繁忙，请稍后重试")
        assert answer.headers["retry-after"] == "5"
        spoken.gate("gate-system.mp4").open()


def test_limits_can_be_a_queue(tmp_path: Path) -> None:
    """`on_limit: queue`: what cannot start yet waits."""
    with speaking(tmp_path, HANDLERS, dialects__mediacraft__on_limit="queue") as spoken, browser(spoken) as client:
        first = started(client, "gate-queue.mp4")
        second = started(client)
        assert status_of(client, second)["status"] == "processing"
        spoken.gate("gate-queue.mp4").open()
        assert [spoken.ended(task_id).status for task_id in (first, second)] == ["completed", "completed"]


# Pages of other origins


def test_its_pages_may_ask_from_their_own_origin(ann: httpx2.Client) -> None:
    """With cookies, after a preflight; those of others may not."""
    home = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}
    asked = {**home, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = ann.options("/api/tasks/create", headers=asked)
    assert preflight.status_code in (200, 204)
    assert "POST" in preflight.headers["access-control-allow-methods"]
    answer = ann.post("/api/tasks/create", json={"task_type": "video_merge"}, headers=home)
    assert answer.status_code == 200
    for response in (preflight, answer):
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert response.headers["access-control-allow-credentials"] == "true"
    foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    refused = ann.post("/api/tasks/create", json={"task_type": "video_merge"}, headers=foreign)
    assert refused.status_code == 403
    assert set(refused.json()) == set(FAULT.split())
    assert "access-control-allow-origin" not in refused.headers


# Elsewhere


def test_a_task_is_the_same_everywhere(studio: Spoken, ann: httpx2.Client) -> None:
    """Through the API, the other dialects and the command line; and a task of another front end is shown here."""
    task_id = started(ann)
    studio.ended(task_id)
    native = studio.http.get(f"/api/v1/tasks/{task_id}").json()
    assert (native["status"], native["type"], native["user_id"]) == (
        "completed",
        "watermark_removal",
        ann.cookies["user_id"],
    )
    shown = studio.http.get("/codebase-embedder/api/v1/tasks/completed?pageSize=100").json()["data"]["tasks"]
    assert task_id in [task["taskId"] for task in shown]
    mine = ann.get("/api/tasks/list").json()["data"]["tasks"]
    assert [task["task_id"] for task in mine] == [task_id]


def test_its_own_port_says_who_is_there(studio: Spoken) -> None:
    """A banner and its health, and nothing of anybody else."""
    own = studio.own["mediacraft"]
    assert own.get("/").json()["status"] == "running"
    health = own.get("/health")
    assert (set(health.json()), "set-cookie" in health.headers) == ({"status", "timestamp"}, False)
    assert own.get("/api/v1/tasks").status_code == 404
    assert own.get("/api/v1/tasks").json()["code"] == 404


@pytest.mark.parametrize("mode", ["cookie", "token"])
def test_browsers_are_known_by_cookie_in_every_mode(tmp_path: Path, mode: str) -> None:
    """And where our own pages know them so, too, they are one user on both."""
    with speaking(tmp_path, HANDLERS, auth__mode=mode) as spoken, browser(spoken) as client:
        assert spoken.ended(started(client)).user_id == client.cookies["user_id"]
        native = client.get("/api/v1/tasks")
        if mode == "token":
            assert native.status_code == 401
        else:
            assert reached(native.json(), "0.user_id") == client.cookies["user_id"]
