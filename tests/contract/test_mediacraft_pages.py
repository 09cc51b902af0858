"""What MediaCraft's pages send beside its document: everything at once, pictures, cuts, accounts, files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from runner.dialects.mediacraft.accounts import Accounts
from runner.store.files import Files
from tests.contract.conftest import Row, Spoken, rows, speaking
from tests.contract.mediacraft import ENVELOPE, FAULT, HANDLERS, REGIONS, browser, create, film, status_of, uploaded
from tests.films import MISSING, shoot

needs_film = pytest.mark.skipif(bool(MISSING), reason="needs the extra `video`")
ONE = "/api/tasks/{id}"
SUBMIT = "/api/tasks/submit"
BOXES = [{"x": 10, "y": 10, "width": 40, "height": 40}]
PAIR = [("files", ("a.mp4", b"aaa", "video/mp4")), ("files", ("b.mp4", b"bb", "video/mp4"))]
CLIP = "filename path size duration resolution fps has_audio start_time end_time"
ANN = {"username": "Ann", "password": "correct horse", "email": "ann@example.org"}
RUN = {"json": {"regions": BOXES, "action": "start_processing"}}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner with both types."""
    with speaking(tmp_path_factory.mktemp("pages"), HANDLERS, auth__mode="cookie") as spoken:
        yield spoken


@pytest.fixture
def ann(studio: Spoken) -> Iterator[httpx2.Client]:
    """Somebody new."""
    with browser(studio) as client:
        yield client


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real film of a second."""
    return shoot(tmp_path_factory.mktemp("films") / "clip.mp4")


@rows(
    Row("GET /api/session/init", 200, "", ENVELOPE + " sid created session_info", {"created": False}),
    Row(f"POST {SUBMIT}", 200, "", ENVELOPE + " task_id status", {"status": "queued"},
        {"data": {"task_type": "watermark_removal", "regions": json.dumps(BOXES)}, "files": film()}),
    Row(f"POST {SUBMIT}", 200, "", None, {"status": "queued"},
        {"data": {"task_type": "watermark_removal", "task_config": json.dumps({"regions": REGIONS})}, "files": film()}),
    Row(f"POST {SUBMIT}", 200, "", None, {"status": "uploaded"},
        {"data": {"task_type": "watermark_removal"}, "files": film()}),
    Row(f"POST {SUBMIT}", 200, "", None, {"status": "queued"}, {"data": {"task_type": "video_merge"}, "files": PAIR}),
    Row(f"POST {SUBMIT}", 400, "", FAULT, {}, {"data": {"task_type": "video_merge"}, "files": PAIR[:1]}),
    Row(f"POST {SUBMIT}", 400, "", FAULT, {}, {"data": {"task_type": "watermark_removal"}}),
    Row(f"POST {SUBMIT}", 400, "", FAULT, {}, {"data": {"task_type": "dance"}, "files": film()}),
    Row(f"POST {SUBMIT}", 400, "", FAULT, {},
        {"data": {"task_type": "watermark_removal", "regions": "{"}, "files": film()}),
    Row("GET /api/tasks/list?page=1&limit=5", 200, "", ENVELOPE + " tasks pagination"),
    Row("GET /api/tasks/list?limit=1000", 200, "pagination", "page limit total pages", {"limit": 100}),
    Row("GET /api/tasks/list?status=queued&type=video_merge", 200, "data", "tasks pagination", {"tasks": []}),
    Row("GET /api/tasks/list?status=dancing", 400, "", FAULT),
    Row("GET /api/user/stats", 200, "data", "task_count task_stats"),
    Row("GET /api/user/profile", 401, "", FAULT, {"code": 401}),
    Row("POST /api/user/login", 401, "", FAULT, {}, {"json": {"username": "nobody", "password": "nothing"}}),
    Row("POST /api/user/register", 400, "", FAULT, {}, {"json": {"username": "bob", "password": "short"}}),
    Row("POST /api/user/register", 400, "", FAULT, {}, {"json": {"username": "bob"}}),
    Row("POST /api/user/logout", 200, "", ENVELOPE),
    Row("GET /api/system/status", 200, "data", "status reasons running_tasks queued_tasks max_concurrent_tasks"),
    Row("GET /api/system/config", 200, "data", None, {"max_tasks_per_user": 1, "max_concurrent_tasks": 5}),
    Row("GET /api/files/list", 200, "data", "files total"),
    Row("POST /api/files/upload", 200, "data", None, {"filename": "clip.mp4", "size": 6}, {"files": film()}),
    Row("DELETE /api/files/nothing.mp4", 404, "", FAULT),
    Row("POST /api/files/cleanup", 200, "data", "deleted_count"),
)  # fmt: skip
def test_requests_of_its_pages(ann: httpx2.Client, row: Row) -> None:
    """Each row; what a page looks for at the top is there, beside the envelope."""
    row.check(ann)


@rows(
    Row(f"PUT {ONE}", 200, "", ENVELOPE + " task_id selected_frame regions status", {"status": "queued"}, RUN),
    Row(f"PUT {ONE}", 200, "", None, {"status": "regions_selected", "regions": BOXES}, {"json": {"regions": BOXES}}),
    Row(f"PUT {ONE}", 400, "", FAULT, {}, {"json": {"regions": []}}),
    Row(f"PUT {ONE}", 400, "", FAULT, {}, {"json": {"selected_frame": "ten"}}),
    Row(f"PUT {ONE}", 400, "", FAULT, {}, {"json": {}}),
    Row(f"PUT {ONE}", 400, "", FAULT, {}, {"json": {"selected_frame": 1}}),
    Row(f"DELETE {ONE}", 200, "", ENVELOPE + " task_id status", {"status": "cancelled", "task_id": "{id}"}),
    Row(f"GET {ONE}/frames", 400, "", FAULT),
    Row(f"GET {ONE}/thumbnail", 400, "", FAULT),
    Row(f"PUT {ONE}/segments/7", 400, "", FAULT, {}, {"json": {"start_time": 1}}),
    Row(f"PUT {ONE}/segments/x", 400, "", FAULT, {}, {"json": {"start_time": 1}}),
    Row(f"GET {ONE}/files/9/thumbnail", 400, "", FAULT),
)  # fmt: skip
def test_requests_about_a_film_that_is_none(ann: httpx2.Client, row: Row) -> None:
    """Its pictures cannot be taken; everything else can be done."""
    row.check(ann, id=uploaded(ann))


def test_regions_that_were_chosen_are_used(studio: Spoken, ann: httpx2.Client) -> None:
    """Even if the configuration does not repeat them."""
    task_id = uploaded(ann)
    ann.put(f"/api/tasks/{task_id}", json={"regions": BOXES})
    assert status_of(ann, task_id)["config"]["regions"] == BOXES
    assert ann.post(f"/api/tasks/{task_id}/config", json={"config": {}}).status_code == 200
    assert studio.ended(task_id).payload == {"regions": BOXES}


def test_a_failed_task_is_tried_again_with_other_regions(studio: Spoken, ann: httpx2.Client) -> None:
    """And forgets why it had failed."""
    task_id = uploaded(ann, "bad.mp4")
    ann.put(f"/api/tasks/{task_id}", **RUN)  # type: ignore[arg-type]
    assert studio.ended(task_id).status == "failed"
    answer = ann.put(f"/api/tasks/{task_id}", json={"regions": REGIONS, "action": "start_processing"})
    assert answer.json()["status"] == "queued"
    assert studio.ended(task_id).payload == {"regions": REGIONS}
    assert studio.ended(task_id).attempt == 2


def test_what_runs_is_not_cancelled_and_what_was_is_shown_as_failed(studio: Spoken, ann: httpx2.Client) -> None:
    """400; `failed`, for its document knows no other word."""
    task_id, draft = uploaded(ann, "gate-pages.mp4"), create(ann)
    ann.put(f"/api/tasks/{task_id}", **RUN)  # type: ignore[arg-type]
    studio.running(task_id)
    assert ann.delete(f"/api/tasks/{task_id}").status_code == 400
    assert ann.delete("/api/files/gate-pages.mp4").status_code == 400
    ann.delete(f"/api/tasks/{draft}")
    assert status_of(ann, draft)["status"] == "failed"
    listed = ann.get("/api/tasks/list?status=cancelled").json()["tasks"]
    assert [task["task_id"] for task in listed] == [draft]
    studio.gate("gate-pages.mp4").open()
    studio.ended(task_id)
    assert ann.delete("/api/files/gate-pages.mp4").json()["data"]["deleted_count"] == 1


def test_what_cannot_be_started_leaves_nothing(ann: httpx2.Client) -> None:
    """Everything came at once, so nobody knows of a draft."""
    config = {"segments": [{"filename": "three.mp4"}]}
    data = {"task_type": "video_merge", "task_config": json.dumps(config)}
    assert ann.post("/api/tasks/submit", data=data, files=PAIR).status_code == 400
    data = {"task_type": "watermark_removal", "regions": json.dumps([1] * 101)}
    assert ann.post("/api/tasks/submit", data=data, files=film()).status_code == 400
    assert ann.post("/api/tasks/submit", data={**data, "task_config": "[]"}, files=film()).status_code == 400
    assert ann.get("/api/user/tasks").json()["data"]["total_count"] == 0


# Merges


@needs_film
def test_a_merge_is_cut_and_put_in_order(studio: Spoken, ann: httpx2.Client, clip: Path) -> None:
    """By what the page sends, in its spelling; what a film holds is known when it has come."""
    task_id = create(ann, "video_merge")
    for name in ("one.mp4", "two.mp4"):
        ann.post(f"/api/tasks/{task_id}/upload", files=film(name, clip.read_bytes()))
    files = status_of(ann, task_id)["config"]["files"]
    assert set(files[0]) == set(CLIP.split())
    assert (files[0]["resolution"], files[0]["fps"], files[0]["has_audio"], files[0]["end_time"]) == (
        "160x120", 25.0, True, files[0]["duration"],
    )  # fmt: skip
    entry = ann.put(f"/api/tasks/{task_id}/segments/1", json={"start_time": 0.2, "end_time": 0.5}).json()["data"]
    assert (entry["filename"], entry["start_time"], entry["end_time"]) == ("two.mp4", 0.2, 0.5)
    assert ann.put(f"/api/tasks/{task_id}/segments/1", json={"start_time": 0.9}).status_code == 400
    segments = [
        {"filename": "two.mp4", "startTime": 0.1, "endTime": 0.6, "order": 0},
        {"filename": "one.mp4", "startTime": 0, "endTime": files[0]["duration"], "order": 1},
    ]
    answer = ann.post(f"/api/tasks/{task_id}/config", json={"segments": segments, "action": "start_processing"})
    assert answer.json()["data"]["status"] == "processing"
    assert studio.ended(task_id).payload["segments"] == [
        {"index": 1, "start_time": 0.1, "end_time": 0.6},
        {"index": 0, "start_time": 0.0},
    ]
    entries = status_of(ann, task_id)["config"]["files"]
    assert [(one["filename"], one["start_time"], one["end_time"]) for one in entries] == [
        ("one.mp4", 0.0, files[0]["duration"]),
        ("two.mp4", 0.1, 0.6),
    ]


def test_a_merge_needs_two_files_and_names_that_it_has(ann: httpx2.Client) -> None:
    """400, and it waits."""
    task_id = uploaded(ann, "one.mp4", "video_merge")
    assert ann.post(f"/api/tasks/{task_id}/config", json={"segments": []}).status_code == 400
    ann.post(f"/api/tasks/{task_id}/upload", files=film("two.mp4"))
    wrong = [{"segments": segments} for segments in ([{"filename": "three.mp4"}], "all", [1])]
    for config in (*wrong, {"audio_handling": "louder"}, {"quality_preset": ["high"]}):
        answer = ann.post(f"/api/tasks/{task_id}/config", json=config)
        assert (answer.status_code, status_of(ann, task_id)["status"]) == (400, "uploaded")


# Pictures


@needs_film
def test_pictures_are_taken_of_a_film(studio: Spoken, ann: httpx2.Client, clip: Path) -> None:
    """Some to choose from, the one that was chosen, a small one."""
    task_id = create(ann)
    ann.post(f"/api/tasks/{task_id}/upload", files=film("clip.mp4", clip.read_bytes()))
    body = ann.get(f"/api/tasks/{task_id}/frames?count=3").json()
    numbers = [frame["frame_number"] for frame in body["frames"]]
    assert (len(numbers), numbers[0], sorted(set(numbers))) == (3, 0, numbers)
    assert set(body["frames"][0]) == {"index", "frame_number", "timestamp", "image_data"}
    assert 24 <= body["total_frames"] <= 26
    assert (body["video_info"]["fps"], body["video_info"]["width"]) == (25.0, 160)
    chosen = ann.put(f"/api/tasks/{task_id}", json={"selected_frame": 10}).json()
    assert (chosen["status"], chosen["selected_frame"]) == ("frame_selected", 10)
    scheme, _, image = chosen["frame_data"].partition(",")
    assert (scheme, base64.b64decode(image)[:2]) == ("data:image/jpeg;base64", b"\xff\xd8")
    assert status_of(ann, task_id)["config"]["selected_frame"] == 10
    for path in ("thumbnail", "files/0/thumbnail"):
        small = ann.get(f"/api/tasks/{task_id}/{path}")
        assert (small.headers["content-type"], small.content[:2]) == ("image/jpeg", b"\xff\xd8")


# Accounts


def test_who_has_registered_can_log_in_and_out(ann: httpx2.Client) -> None:
    """The profile is there in between; tasks stay with the browser."""
    task_id = create(ann)
    assert ann.post("/api/user/register", json=ANN).json()["success"]
    assert ann.post("/api/user/register", json={**ANN, "username": "ann"}).status_code == 400
    assert ann.get("/api/user/profile").status_code == 401
    assert ann.post("/api/user/login", json={**ANN, "password": "wrong"}).status_code == 401
    user = ann.post("/api/user/login", json=ANN).json()["data"]["user"]
    assert set(user) == {"user_id", "username", "email", "created_at", "last_login"}
    assert ann.get("/api/user/profile").json()["data"]["user"]["username"] == "Ann"
    assert [task["task_id"] for task in ann.get("/api/user/tasks").json()["data"]["tasks"]] == [task_id]
    ann.post("/api/user/logout")
    assert ann.get("/api/user/profile").status_code == 401


def test_passwords_are_kept_as_hashes(tmp_path: Path) -> None:
    """With scrypt, each with a salt of its own."""
    accounts = Accounts(Files(), str(tmp_path))
    made = [accounts.register("u", name, "correct horse", None) for name in ("ann", "../bob")]
    assert made[0].password.salt != made[1].password.salt
    assert made[0].password.hash != made[1].password.hash
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"correct horse" not in kept
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))
    assert accounts.log_in("ANN", "correct horse") is not None
    assert accounts.log_in("ann", "correct Horse") is None
