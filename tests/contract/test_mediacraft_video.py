"""MediaCraft's first API, `/api/video/`: its envelope, its codes, without a cookie; and a real film all the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from runner.dialects.mediacraft import legacy, video
from runner.dialects.mediacraft.studio import Studio
from runner.dialects.mediacraft.words import Notes
from tests.contract.conftest import Row, Spoken, rows, speaking
from tests.contract.mediacraft import HANDLERS, browser, film
from tests.films import frames_of, needs_video, shoot
from tests.store.samples import make_task

pytestmark = needs_video

ROOT: Final = Path(__file__).parents[2]
ENVELOPE: Final = "code message data"
ONE: Final = "/api/video/task/{film}"
MERGE: Final = "/api/video/merge/task/{merge}"
ITEM: Final = (
    "item_id original_filename file_size video_duration video_resolution fps item_order start_time end_time"
    " segment_duration"
)
NAMELESS: Final = {
    "content": '--x\r\nContent-Disposition: form-data; name="task_uuid"\r\n\r\n{merge}\r\n'
    '--x\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--x--\r\n',
    "headers": {"Content-Type": "multipart/form-data; boundary=x"},
}
STATUS: Final = "task_uuid status progress_percentage error_message created_at completed_at"
MERGE_STATUS: Final = STATUS + " task_name total_videos total_duration started_at"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner with both types, without their work."""
    with speaking(tmp_path_factory.mktemp("video"), HANDLERS) as spoken:
        yield spoken


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real film of a second."""
    return shoot(tmp_path_factory.mktemp("films") / "clip.mp4").read_bytes()


@pytest.fixture
def anybody(studio: Spoken) -> Iterator[httpx2.Client]:
    """A program without cookies."""
    with httpx2.Client(base_url=studio.http.base_url, timeout=20) as client:
        yield client


def prepare(client: httpx2.Client, clip: bytes, said: str) -> dict[str, str]:
    """The ids that a text names: of a film that has come in, of a merge with two, and of those."""
    known = {}
    if "{film}" in said:
        known["film"] = post(client, "upload", files=film("clip.mp4", clip))["task_uuid"]
    if "{merge}" in said:
        known["merge"] = post(client, "merge/create", json={"task_name": "my trip"})["task_uuid"]
        known |= {name: add(client, known["merge"], f"{name}.mp4", clip)["item_id"] for name in ("item", "other")}
    return known


def post(client: httpx2.Client, path: str, **send: Any) -> dict[str, Any]:
    """What a request is answered that succeeds."""
    answer = client.post(f"/api/video/{path}", **send)
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def add(client: httpx2.Client, merge: str, name: str, content: bytes) -> dict[str, Any]:
    """One more film of a merge."""
    return post(client, "merge/upload", data={"task_uuid": merge}, files=film(name, content))


@rows(
    Row(f"GET {ONE}/frames?count=1", 200, "", ENVELOPE, {"code": 10000, "message": "ok"}),
    Row(f"GET {ONE}/frames?count=1", 200, "data", "task_uuid frames", {"frames.4.index": 4}),
    Row(f"POST {ONE}/select-frame", 200, "data", "task_uuid frame_number frame_image", {"frame_number": 5},
        {"json": {"frame_number": 5}}),
    Row(f"POST {ONE}/select-frame", 400, "", ENVELOPE, {"code": 20011, "data": None}, {"json": {}}),
    Row(f"POST {ONE}/select-frame", 400, "", ENVELOPE, {"code": 20011}, {"json": {"frame_number": -1}}),
    Row(f"POST {ONE}/select-frame", 400, "", ENVELOPE, {"code": 20011}, {"json": {"frame_number": "first"}}),
    Row(f"POST {ONE}/select-regions", 200, "data", "task_uuid regions_count message", {"regions_count": 1},
        {"json": {"regions": [{"x": 1, "y": 1, "width": 9, "height": 9}]}}),
    Row(f"POST {ONE}/select-regions", 400, "", ENVELOPE, {"code": 20014}, {"json": {}}),
    Row(f"POST {ONE}/select-regions", 400, "", ENVELOPE, {"code": 20015}, {"json": {"regions": []}}),
    Row(f"GET {ONE}/status", 200, "data", STATUS, {"status": "uploaded", "progress_percentage": 0}),
    Row(f"GET {ONE}/download", 400, "", ENVELOPE, {"code": 20019}),
    Row("GET /api/video/task/nothing/status", 404, "", ENVELOPE, {"code": 20007}),
    Row("GET /api/video/task/{merge}/status", 404, "", ENVELOPE, {"code": 20007}),
    Row("POST /api/video/upload", 400, "", ENVELOPE, {"code": 20001}),
    Row("POST /api/video/upload", 400, "", ENVELOPE, {"code": 20001}, {"files": {"other": (None, "text")}}),
    Row("POST /api/video/upload", 400, "", ENVELOPE, {"code": 20002}, NAMELESS),
    Row("POST /api/video/upload", 400, "", ENVELOPE, {"code": 20003}, {"files": film("notes.txt", b"text")}),
    Row("POST /api/video/merge/create", 200, "data", "task_uuid task_name created_at", {"task_name": "my trip"},
        {"json": {"task_name": "my trip", "audio_handling": "remove"}}),
    Row("POST /api/video/merge/create", 400, "", ENVELOPE, {"code": 30001}),
    Row("POST /api/video/merge/create", 400, "", ENVELOPE, {"code": 30001}, {"json": {"audio_handling": "louder"}}),
    Row(f"GET {MERGE}", 200, "data", MERGE_STATUS + " items", {"status": "uploading", "total_videos": 2}),
    Row(f"GET {MERGE}", 200, "data.items.1", ITEM, {"item_order": 1, "video_resolution": "160x120", "fps": 25.0}),
    Row(f"GET {MERGE}/status", 200, "data", MERGE_STATUS, {"task_name": "my trip"}),
    Row("GET /api/video/merge/task/{film}", 404, "", ENVELOPE, {"code": 30004}),
    Row("POST /api/video/merge/upload", 400, "", ENVELOPE, {"code": 30009}),
    Row("POST /api/video/merge/upload", 400, "", ENVELOPE, {"code": 30008}, {"files": film()}),
    Row("POST /api/video/merge/upload", 400, "", ENVELOPE, {"code": 30010}, NAMELESS),
    Row("POST /api/video/merge/upload", 400, "", ENVELOPE, {"code": 30011},
        {"data": {"task_uuid": "{merge}"}, "files": film("notes.txt", b"text")}),
    Row(f"PUT {MERGE}/items/{{item}}", 200, "data", ITEM + " task_uuid",
        {"start_time": 0.2, "end_time": 0.7, "segment_duration": 0.5}, {"json": {"start_time": 0.2, "end_time": 0.7}}),
    Row(f"PUT {MERGE}/items/{{item}}", 400, "", ENVELOPE, {"code": 30017}, {"json": {}}),
    Row(f"PUT {MERGE}/items/{{item}}", 400, "", ENVELOPE, {"code": 30018}, {"json": {"start_time": -1}}),
    Row(f"PUT {MERGE}/items/{{item}}", 400, "", ENVELOPE, {"code": 30018}, {"json": {"end_time": 99}}),
    Row(f"PUT {MERGE}/items/nothing", 404, "", ENVELOPE, {"code": 30016}, {"json": {"start_time": 0.1}}),
    Row(f"DELETE {MERGE}/items/{{item}}", 200, "data", "task_uuid item_id message", {"item_id": "{item}"}),
    Row(f"DELETE {MERGE}/items/nothing", 404, "", ENVELOPE, {"code": 30016}),
    Row(f"POST {MERGE}/reorder", 200, "data", "task_uuid items", {"items.0.item_id": "{other}"},
        {"json": {"item_order": ["{other}", "{item}"]}}),
    Row(f"POST {MERGE}/reorder", 400, "", ENVELOPE, {"code": 30023}, {"json": {}}),
    Row(f"POST {MERGE}/reorder", 400, "", ENVELOPE, {"code": 30024}, {"json": {"item_order": "all"}}),
    Row(f"POST {MERGE}/reorder", 404, "", ENVELOPE, {"code": 30016}, {"json": {"item_order": ["nothing"]}}),
    Row(f"POST {MERGE}/start", 200, "data", "task_uuid videos_count message", {"videos_count": 2}),
    Row(f"GET {MERGE}/download", 400, "", ENVELOPE, {"code": 30031}),
    Row(f"DELETE {MERGE}", 200, "data", "task_uuid message", {"task_uuid": "{merge}"}),
    Row("GET /api/video/dance", 404, "", ENVELOPE),
)  # fmt: skip
def test_requests_without_a_cookie(anybody: httpx2.Client, clip: bytes, row: Row) -> None:
    """Each route, and each code that a request can bring about."""
    row.check(anybody, **prepare(anybody, clip, f"{row.request} {row.send}"))
    assert not anybody.cookies


def test_an_upload_tells_what_the_film_holds(anybody: httpx2.Client, clip: bytes) -> None:
    """Its size, length and rate; of a merge's also its place."""
    data = post(anybody, "upload", files=film("clip.mp4", clip))
    assert set(data) == {"task_uuid", "filename", "file_size", "duration", "resolution", "fps"}
    assert (data["filename"], data["resolution"], data["fps"]) == ("clip.mp4", "160x120", 25.0)
    merge = post(anybody, "merge/create", json={"task_name": "trip"})["task_uuid"]
    assert set(add(anybody, merge, "one.mp4", clip)) == {"task_uuid", *ITEM.split()}


def test_a_film_goes_all_the_way(studio: Spoken, anybody: httpx2.Client, clip: bytes) -> None:
    """Then its source or its result is removed."""
    film_id = prepare(anybody, clip, "{film}")["film"]
    post(anybody, f"task/{film_id}/select-frame", json={"frame_number": 3})
    assert anybody.get(f"/api/video/task/{film_id}/status").json()["data"]["status"] == "region_selecting"
    post(anybody, f"task/{film_id}/select-regions", json={"regions": [{"x": 1, "y": 1, "width": 9, "height": 9}]})
    task = studio.ended(film_id)
    result = anybody.get(f"/api/video/task/{film_id}/download")
    assert (result.content, task.user_id) == (b"a film", "mediacraft")
    assert 'filename="clip_no_watermark.mp4"' in result.headers["content-disposition"]
    (studio.data / task.output_files[0]).unlink()
    assert anybody.get(f"/api/video/task/{film_id}/download").json()["code"] == 20020
    (studio.data / task.input_files[0]).unlink()
    assert anybody.get(f"/api/video/task/{film_id}/frames").json()["code"] in (20008, 20009)


def test_a_merge_goes_all_the_way(studio: Spoken, anybody: httpx2.Client, clip: bytes) -> None:
    """In the order and with the cuts that were said; then it can be changed no more."""
    known = prepare(anybody, clip, "{merge}")
    one = f"merge/task/{known['merge']}"
    third = add(anybody, known["merge"], "three.mp4", clip)["item_id"]
    anybody.delete(f"/api/video/{one}/items/{known['item']}")
    post(anybody, f"{one}/reorder", json={"item_order": [third]})
    anybody.put(f"/api/video/{one}/items/{third}", json={"start_time": 0.5})
    post(anybody, f"{one}/start")
    task = studio.ended(known["merge"])
    assert [path.rpartition("/")[2] for path in task.input_files] == ["other.mp4", "three.mp4"]
    assert task.payload["segments"] == [{"index": 1, "start_time": 0.5}, {"index": 0, "start_time": 0.0}]
    result = anybody.get(f"/api/video/{one}/download")
    assert 'filename="my_trip_merged.mp4"' in result.headers["content-disposition"]
    for method, path in (("POST", "start"), ("POST", "reorder"), ("DELETE", f"items/{third}")):
        body: dict[str, list[str]] | None = {"item_order": []} if path == "reorder" else None
        answer = anybody.request(method, f"/api/video/{one}/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, 30028)
    (studio.data / task.output_files[0]).unlink()
    assert anybody.get(f"/api/video/{one}/download").json()["code"] == 30032


def test_a_result_has_a_name_that_a_file_can_have() -> None:
    """Whatever the merge was called."""
    task = make_task(type="video_merge", metadata=Notes(task_name='my trip\r\n"../x').put_into({}))
    assert legacy.merged_name(task) == "my_trip___.._x_merged.mp4"


def test_a_merge_has_at_most_ten_films_and_at_least_two(anybody: httpx2.Client, clip: bytes) -> None:
    """30013, 30027."""
    merge = post(anybody, "merge/create", json={"task_name": "long"})["task_uuid"]
    assert anybody.get(f"/api/video/merge/task/{merge}/status").json()["data"]["status"] == "created"
    assert anybody.post(f"/api/video/merge/task/{merge}/start").json()["code"] == 30027
    for number in range(10):
        add(anybody, merge, f"{number}.mp4", clip)
    answer = anybody.post("/api/video/merge/upload", data={"task_uuid": merge}, files=film("11.mp4", clip))
    assert (answer.status_code, answer.json()["code"]) == (400, 30013)


def test_who_has_a_cookie_is_held_to_it(studio: Spoken, anybody: httpx2.Client, clip: bytes) -> None:
    """A browser's task is not there for others, with a cookie or without; nobody's is there for all."""
    nobodys = post(anybody, "upload", files=film("clip.mp4", clip))["task_uuid"]
    with browser(studio) as ann, browser(studio) as bob:
        mine = post(ann, "upload", files=film("clip.mp4", clip))["task_uuid"]
        assert ann.get(f"/api/tasks/{mine}/status").json()["data"]["user_id"] == ann.cookies["user_id"]
        for client, task_id, status in ((ann, mine, 200), (bob, mine, 404), (anybody, mine, 404), (bob, nobodys, 200)):
            assert client.get(f"/api/video/task/{task_id}/status").status_code == status


def test_what_is_too_large_is_refused(anybody: httpx2.Client, clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has come, where the request says so; 500 MB may come."""
    monkeypatch.setattr(video, "MAX_FILE_BYTES", 1000)
    answers = [anybody.post("/api/video/upload", files=film("clip.mp4", clip[:size])) for size in (1001,)]
    monkeypatch.setattr(video, "FORM_OVERHEAD_BYTES", 0)
    answers.append(anybody.post("/api/video/upload", files=film("clip.mp4", clip)))
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(400, 20004)] * 2
    merge = anybody.post("/api/video/merge/upload", files=film("clip.mp4", clip))
    assert (merge.status_code, merge.json()["code"]) == (400, 30012)


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        ("POST /api/video/upload", 20006),
        ("GET /api/video/task/x/frames", 20010),
        ("POST /api/video/task/x/select-frame", 20013),
        ("POST /api/video/task/x/select-regions", 20017),
        ("GET /api/video/task/x/status", 20018),
        ("GET /api/video/task/x/download", 20021),
        ("GET /api/video/merge/task/x/status", 30033),
    ],
)
def test_a_defect_has_the_code_of_what_was_asked_for(
    studio: Spoken, clip: bytes, monkeypatch: pytest.MonkeyPatch, request_line: str, code: int
) -> None:
    """And says nothing of itself."""

    def break_down(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(studio.service.store, "find", break_down)
    monkeypatch.setattr(Studio, "create_with", break_down)
    method, _, path = request_line.partition(" ")
    said: dict[str, Any] = {"json": {"frame_number": 1, "regions": [[0, 0, 9, 9]]}} if method == "POST" else {}
    with browser(studio) as ann:
        answer = ann.request(method, path, **({"files": film("a.mp4", clip)} if path.endswith("upload") else said))
    assert (answer.status_code, answer.json()["code"]) == (500, code)
    assert ("secret" in answer.text, answer.headers["connection"]) == (False, "close")


def test_a_film_that_was_damaged_since_shows_no_frame(studio: Spoken, anybody: httpx2.Client, clip: bytes) -> None:
    """20012 for one, 20009 for several."""
    task_id = post(anybody, "upload", files=film("clip.mp4", clip))["task_uuid"]
    (studio.data / studio.service.get(task_id).input_files[0]).write_bytes(b"nothing")
    one = anybody.post(f"/api/video/task/{task_id}/select-frame", json={"frame_number": 1})
    several = anybody.get(f"/api/video/task/{task_id}/frames")
    assert [(answer.status_code, answer.json()["code"]) for answer in (one, several)] == [(500, 20012), (500, 20009)]


def test_what_cannot_be_done_has_the_nearest_code(studio: Spoken, clip: bytes) -> None:
    """Regions that are none, a film that never came, one that is done already, a user whose other task runs."""
    with browser(studio) as ann:
        draft = ann.post("/api/tasks/create", json={"task_type": "watermark_removal"}).json()["data"]["task_id"]
        assert ann.get(f"/api/video/task/{draft}/frames").json()["code"] == 20008
        task_id = post(ann, "upload", files=film("gate-busy.mp4", clip))["task_uuid"]
        regions = [{"x": 1, "y": 1, "width": 9, "height": 9}]
        path = f"/api/video/task/{task_id}/select-regions"
        assert ann.post(path, json={"regions": "all"}).json()["code"] == 20015
        post(ann, f"task/{task_id}/select-regions", json={"regions": regions})
        busy = ann.post(path, json={"regions": regions})
        assert (busy.status_code, busy.json()["message"]) == (429, "请等待当前任务完成")
        studio.gate("gate-busy.mp4").open()
        studio.ended(task_id)
        late = ann.post(path, json={"regions": regions})
        assert (late.status_code, late.json()["code"]) == (500, 20016)
        assert ann.get(path).json()["code"] == 20021


def test_a_real_film_loses_its_watermark(tmp_path: Path) -> None:
    """From `create` to a film that can be played, with the handlers of this project."""
    source = shoot(tmp_path / "clip.mp4", seconds=0.4)
    with speaking(tmp_path, handlers_dir=str(ROOT / "handlers")) as spoken, browser(spoken) as client:
        task_id = client.post("/api/tasks/create", json={"task_type": "watermark_removal"}).json()["data"]["task_id"]
        client.post(f"/api/tasks/{task_id}/upload", files=film("clip.mp4", source.read_bytes()))
        client.post(
            f"/api/tasks/{task_id}/config", json={"config": {"selected_frame": 3, "regions": [[10, 10, 50, 50]]}}
        )
        assert spoken.ended(task_id).status == "completed"
        target = tmp_path / "result.mp4"
        target.write_bytes(client.get(f"/api/tasks/{task_id}/download").content)
    assert len(frames_of(target)) == len(frames_of(source))
