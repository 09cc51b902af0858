"""PixivTailor's document and its pages: tasks by eight digits, one of a type at a time, configurations, messages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from httpx2.websockets import HTTPXWSException
from wsproto.utilities import LocalProtocolError

from runner.dialects import pixivtailor
from runner.dialects.pixivtailor import words
from runner.dialects.pixivtailor.socket import SocketEndpoint
from runner.task import Status, Task
from tests.contract.conftest import Row, Spoken, rows, speaking
from tests.contract.sockets import Socket

HANDLERS: Final = '''
"""Its types, without their work: a text that begins with gate waits at the gate of that name."""

from typing import Literal

from runner import Context, Fail, FileState, handler
from tests.rig import gate_of


def work(ctx: Context, text: str) -> None:
    if text.startswith("gate"):
        ctx.log.warning("waiting at %s", text)
        ctx.progress(40, "half way", stage="work")
        gate_of(text).enter()
        while not gate_of(text).is_open(0.005):
            ctx.check()
    if text.startswith("bad"):
        raise Fail("it is broken")


@handler(retries=0)
def generate(ctx: Context, prompt: str = "", steps: int = 20, loras: list[dict] = []) -> dict:
    """Draw."""
    work(ctx, prompt)
    ctx.output("generated_1.png").write_bytes(b"an image")
    return {"images": ["generated_1.png"], "count": 1, "loops": 1}


@handler(retries=0)
def crawl(ctx: Context, type: str, query: str = "", user_id: str = "", illust_id: str = "", limit: int = 100) -> dict:
    """Fetch."""
    work(ctx, query)
    ctx.files([FileState(path="a.png", status="completed")])
    for name in ("a.png", "b.jpg"):
        ctx.output(name).write_bytes(b"an image")
    return {"images_found": 3, "images_downloaded": 2, "expected_images": 2, "has_limit": False}


@handler(retries=0, accepts=["image/*"])
def tag(
    ctx: Context, analyzer: Literal["auto", "wd14tagger"] = "auto", skip_tags: list[str] = [], limit: int = 100
) -> dict:
    """Tag."""
    return {"files": sorted(path.name for path in ctx.inputs), "skip_tags": skip_tags}


@handler(retries=0)
def echo(ctx: Context, value: str = "") -> str:
    """Of nobody's types."""
    return value
'''

ENVELOPE: Final = "status data"
FAULT: Final = "status message data"
TASK: Final = (
    "id uuid type status config progress error_message result images_found images_downloaded created_at updated_at"
)
FLAT: Final = "task_id status progress message error_message created_at completed_at"
CRAWL: Final = {"json": {"crawl_type": "tag", "query": "cats", "limit": 10}}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner with its types, for which no WebUI is needed."""
    with speaking(
        tmp_path_factory.mktemp("gallery"), HANDLERS, dialects__pixivtailor__webui_must_answer=False
    ) as spoken:
        spoken.http.post("/api/configs/create", json={"id": "cats", "name": "cats", "prompt": "a cat", "steps": 30})
        yield spoken


@pytest.fixture(scope="module")
def known(gallery: Spoken) -> dict[str, str]:
    """The ids of a crawl that has completed and of one that has failed."""
    completed, failed = crawl(gallery, "cats"), crawl(gallery, "bad")
    for task_id in (completed, failed):
        ended(gallery, task_id)
    return {"done": completed, "failed": failed, "uuid": whole(gallery, completed)}


def post(spoken: Spoken, path: str, **body: Any) -> Any:
    """What a request is answered that succeeds."""
    answer = spoken.http.post(f"/api/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def crawl(spoken: Spoken, query: str) -> str:
    """A new crawl's id."""
    return str(post(spoken, "crawl/create", type="tag", query=query)["id"])


def running(spoken: Spoken, query: str) -> str:
    """The id of a crawl that runs, and waits at the gate of that name."""
    task_id = crawl(spoken, query)
    spoken.running(whole(spoken, task_id))
    return task_id


def whole(spoken: Spoken, task_id: str) -> str:
    """The whole id."""
    return spoken.service.resolve(task_id[:8]).id


def ended(spoken: Spoken, task_id: str) -> Task:
    """The task, once it has ended."""
    return spoken.ended(whole(spoken, task_id))


def status_of(spoken: Spoken, task_id: str) -> str:
    """Its status."""
    return str(post(spoken, "status", task_id=task_id)["status"])


@rows(
    Row("POST /api/tasks", 200, "", ENVELOPE, {"status.code": 0, "status.message": "success"},
        {"json": {"pagination": {"page": 1, "page_size": 100}}}),
    Row("POST /api/tasks", 200, "data", "tasks pagination", {}, {"json": {}}),
    Row("POST /api/tasks", 200, "data.pagination", "page page_size total", {"page": 1, "page_size": 20}, {"json": {}}),
    Row("POST /api/tasks", 200, "data.pagination", None, {"page_size": 100},
        {"json": {"pagination": {"page_size": 101}}}),
    Row("POST /api/tasks", 200, "data.pagination", None, {"page_size": 20},
        {"json": {"pagination": {"page_size": -1}}}),
    Row("POST /api/tasks", 200, "data.tasks.0", TASK,
        {"id": "{failed}", "type": "crawl", "error_message": "it is broken"}, {"json": {"status": "failed"}}),
    Row("POST /api/tasks", 200, "data.tasks.0", TASK, {"images_found": 3, "images_downloaded": 2, "progress": 100},
        {"json": {"status": "completed", "type": "crawl"}}),
    Row("POST /api/tasks", 200, "data", None, {"tasks": []}, {"json": {"status": "completed", "type": "train"}}),
    Row("POST /api/tasks", 200, "data", None, {"tasks": []}, {"json": {"status": "nonsense"}}),
    Row("POST /api/tasks", 400, "", FAULT, {"status.code": 1},
        {"content": b"{", "headers": {"Content-Type": "application/json"}}),
    Row("POST /api/status", 200, "", "status data task_id progress message error_message created_at completed_at",
        {"status.code": 0, "task_id": "{done}"}, {"json": {"task_id": "{done}"}}),
    Row("POST /api/status", 200, "data", FLAT + " id type result",
        {"id": "{done}", "task_id": "{done}", "status": "completed", "progress": 100, "error_message": None},
        {"json": {"task_id": "{done}"}}),
    Row("POST /api/status?flat=1", 200, "", FLAT, {"status": "completed"}, {"json": {"task_id": "{done}"}}),
    Row("POST /api/status", 200, "", FLAT, {"status": "failed", "error_message": "it is broken"},
        {"json": {"task_id": "{failed}"}, "headers": {"Accept": "application/vnd.task.flat+json"}}),
    Row("POST /api/status", 200, "data", None, {"task_id": "{done}"}, {"json": {"task_id": "{uuid}"}}),
    Row("POST /api/status", 404, "", FAULT, {"message": "Task not found"}, {"json": {"task_id": "00000000"}}),
    Row("POST /api/status", 404, "", FAULT, {"status.code": 1}, {"json": {"task_id": "../x"}}),
    Row("POST /api/status", 400, "", FAULT, {}, {"json": {}}),
    Row("POST /api/task/start", 400, "", FAULT, {}, {"json": {}}),
    Row("POST /api/task/start", 500, "", FAULT, {"message": "Task not found"}, {"json": {"task_id": "00000000"}}),
    Row("POST /api/task/stop", 400, "", FAULT, {}, {"json": {}}),
    Row("POST /api/task/stop", 404, "", FAULT, {"message": "Task not found"}, {"json": {"task_id": "00000000"}}),
    Row("POST /api/task/stop", 500, "", FAULT, {}, {"json": {"task_id": "{done}"}}),
    Row("POST /api/cancel", 404, "", FAULT, {"message": "Task not found"}, {"json": {"task_id": "00000000"}}),
    Row("POST /api/cancel", 500, "", FAULT, {}, {"json": {"task_id": "{done}"}}),
    Row("POST /api/cancel", 200, "data", "message", {}, {"json": {"task_id": "{failed}"}}),
    Row("POST /api/delete", 500, "", FAULT, {"message": "Task not found"}, {"json": {"task_id": "00000000"}}),
    Row("POST /api/task/cleanup", 400, "", FAULT, {}, {"json": {}}),
    Row("POST /api/task/cleanup", 400, "", FAULT, {}, {"json": {"cleanup_type": "old"}}),
    Row("POST /api/task/cleanup", 400, "", FAULT, {}, {"json": {"cleanup_type": ["all"]}}),
    Row("POST /api/configs/import", 400, "", FAULT, {}, {"json": {"configs": [{"name": ["dogs"]}]}}),
    Row("POST /api/generate", 501, "", FAULT, {}, {"json": {"prompt": "a cat"}}),
    Row("POST /api/generate-with-config", 200, "data", "task_id message status", {},
        {"json": {"config_id": "cats", "override": {"steps": 5, "prompt": ""}}}),
    Row("POST /api/generate-with-config", 404, "", FAULT, {}, {"json": {"config_id": "dogs"}}),
    Row("POST /api/generate-with-config", 404, "", FAULT, {}, {"json": {"config_id": "../secret"}}),
    Row("POST /api/generate-with-config", 400, "", FAULT, {}, {"json": {}}),
    Row("POST /api/crawl/create", 200, "data", TASK, {"type": "crawl"}, CRAWL),
    Row("POST /api/crawl/create", 200, "data", TASK, {},
        {"json": {"type": "user", "user_id": 7, "limit": 0, "delay": -1}}),
    Row("POST /api/crawl/create", 400, "", FAULT, {}, {"json": {"query": "cats"}}),
    Row("POST /api/crawl/create", 400, "", FAULT, {}, {"json": {"type": "tag"}}),
    Row("POST /api/crawl/create", 400, "", FAULT, {}, {"json": {"type": "user"}}),
    Row("POST /api/crawl/create", 400, "", FAULT, {}, {"json": {"type": "illust"}}),
    Row("POST /api/tag/create", 400, "", FAULT, {}, {"json": {"output_dir": "tags/x"}}),
    Row("POST /api/tag/create", 400, "", FAULT, {}, {"json": {"input_dir": "no/such/folder"}}),
    Row("POST /api/tag/create", 400, "", FAULT, {}, {"json": {"input_dir": "images/../../.."}}),
    Row("POST /api/tag/create", 200, "data", TASK, {"type": "tag"},
        {"json": {"input_dir": "images/2026_crawl_{done}"}}),
    Row("GET /api/tag/status?task_id={done}", 200, "data", TASK, {"id": "{done}"}),
    Row("GET /api/tag/status?task_id=00000000", 404, "", FAULT),
    Row("POST /api/tag/stop?task_id={done}", 500, "", FAULT),
    Row("GET /api/tasks/{done}/images/0", 404, "", FAULT),
    Row("GET /api/tasks/{done}/images/3", 404, "", FAULT),
    Row("GET /api/images/..%2f..%2ftasks", 404, "", FAULT),
    Row("GET /api/webui/status", 200, "data", "status port_open api_responding process_id managed",
        {"managed": False}),
    Row("GET /api/tag/analyzers", 200, "data", None, {"analyzers": ["auto", "wd14tagger"]}),
    Row("POST /api/tag/analyzers", 200, "data", "analyzers"),
    Row("GET /api/configs?category=&name=CAT", 200, "data", "configs total page page_size categories", {"total": 1}),
    Row("GET /api/configs/cats", 200, "data", None, {"name": "cats", "steps": 30}),
    Row("GET /api/configs/dogs", 404, "", FAULT),
    Row("POST /api/configs", 409, "", FAULT, {}, {"json": {"name": "cats"}}),
    Row("POST /api/configs/create", 400, "", FAULT, {}, {"json": {"prompt": "a dog"}}),
    Row("GET /api/configs/default", 404, "", FAULT),
    Row("GET /api/status", 405, "", FAULT),
    Row("GET /api/task/nothing", 404, "", FAULT),
)  # fmt: skip
def test_requests_and_their_answers(gallery: Spoken, known: dict[str, str], row: Row) -> None:
    """Each row of the document and of its pages."""
    row.check(gallery.http, **known)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
@pytest.mark.parametrize("more", ["", ', "type": "generate"', ', "status": "running"'])
def test_its_guides_examples_run(gallery: Spoken, more: str) -> None:
    """With only the host changed."""
    command = """curl -X POST http://localhost:50052/api/tasks \\
  -H "Content-Type: application/json" \\
  -d '{"pagination": {"page": 1, "page_size": 100}MORE}'"""
    command = command.replace("MORE", more).replace("http://localhost:50052", f"{gallery.own['pixivtailor'].base_url}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["data"]["pagination"]["page_size"] == 100


def test_ids_have_eight_digits(gallery: Spoken, known: dict[str, str]) -> None:
    """Those of UUIDs, which lead back to them."""
    assert re.fullmatch("[0-9a-f]{8}", known["done"])
    assert known["uuid"].startswith(known["done"])
    assert gallery.http.get(f"/api/v1/tasks/{known['uuid']}").json()["status"] == "completed"


def test_what_is_drawn_is_the_configuration_with_what_is_said_for_once(gallery: Spoken) -> None:
    """Empty texts say nothing; LoRAs may be written down in any way."""
    override = {"steps": 5, "prompt": "", "lora": ["<lora:fur:0.5>"]}
    task = ended(gallery, post(gallery, "generate-with-config", config_id="cats", override=override)["task_id"])
    assert task.payload == {"prompt": "a cat", "steps": 5, "loras": [{"name": "fur", "weight": 0.5}]}
    shown = post(gallery, "status", task_id=task.id[:8])
    assert json.loads(shown["message"]) == task.payload
    assert json.loads(shown["result"])["images"] == [f"/api/tasks/{task.id[:8]}/images/1"]
    image = gallery.http.get(f"/api/tasks/{task.id[:8]}/images/1")
    assert (image.content, image.headers["content-type"]) == (b"an image", "image/png")
    assert gallery.http.get(f"/api/images/x_generate_{task.id[:8]}/generated_1.png").content == b"an image"


def test_folders_are_tagged(gallery: Spoken, known: dict[str, str]) -> None:
    """Those of tasks, and those in its own place; no more files than are wanted, nothing that links elsewhere."""
    folder = gallery.data / "pixivtailor" / "images" / "mine"
    folder.mkdir(parents=True)
    for name in ("c.png", "notes.txt"):
        folder.joinpath(name).write_bytes(b"an image")
    folder.joinpath("secret.png").symlink_to(gallery.data / "VERSION")
    body = {"input_dir": [f"crawl_{known['done']}", "mine"], "skip_tags": ["x"], "analyzer": "wd14tagger"}
    task = ended(gallery, post(gallery, "tag/create", **body)["id"])
    assert task.result == {"files": ["a.png", "b.jpg", "c.png"], "skip_tags": ["x"]}
    limited = ended(gallery, post(gallery, "tag/create", **body, limit=1)["id"])
    assert limited.result["files"] == ["a.png"]


# Starting and stopping


def test_one_task_of_a_type_runs_at_a_time_and_others_beside_it(gallery: Spoken) -> None:
    """In the order in which they came."""
    first, second, third = running(gallery, "gate-first"), crawl(gallery, "gate-second"), crawl(gallery, "cats")
    other = post(gallery, "generate-with-config", config_id="cats")["task_id"]
    assert ended(gallery, other).status is Status.COMPLETED
    assert [status_of(gallery, task_id) for task_id in (first, second, third)] == ["running", "pending", "pending"]
    gallery.gate("gate-first").open()
    gallery.running(whole(gallery, second))
    assert status_of(gallery, third) == "pending"
    gallery.gate("gate-second").open()
    assert ended(gallery, third).started_at >= ended(gallery, second).completed_at  # type: ignore[operator]


def test_a_task_is_started_stopped_and_started_again(gallery: Spoken) -> None:
    """Only what runs can be stopped; what runs cannot be started; a start forgets the failure."""
    task_id = running(gallery, "gate-again")
    assert gallery.http.post("/api/task/start", json={"task_id": task_id}).status_code == 500
    assert set(post(gallery, "task/stop", task_id=task_id)) == {"message", "task_id"}
    assert status_of(gallery, task_id) == "cancelled"
    assert gallery.http.post("/api/task/stop", json={"task_id": task_id}).status_code == 500
    gallery.gate("gate-again").open()
    assert post(gallery, "task/start", task_id=task_id)["task_id"] == task_id
    assert ended(gallery, task_id).status is Status.COMPLETED
    assert ended(gallery, task_id).error is None


def test_what_has_completed_is_done_once_more_as_another_task(gallery: Spoken, known: dict[str, str]) -> None:
    """What a task has brought stays as it is."""
    again = post(gallery, "task/start", task_id=known["done"])["task_id"]
    assert again != known["done"]
    assert ended(gallery, again).parent_id == known["uuid"]


def test_a_task_that_waits_can_be_cancelled_and_never_starts(gallery: Spoken) -> None:
    """And one that runs is stopped before it is deleted."""
    first, waiting = running(gallery, "gate-cancel"), crawl(gallery, "cats")
    post(gallery, "cancel", task_id=waiting)
    assert set(post(gallery, "delete", task_id=first)) == {"message"}
    assert gallery.http.post("/api/status", json={"task_id": first}).status_code == 404
    assert (status_of(gallery, waiting), ended(gallery, waiting).attempt) == ("cancelled", 0)
    gallery.gate("gate-cancel").open()


def test_cleaning_up_leaves_other_systems_tasks_alone(tmp_path: Path) -> None:
    """Completed, failed, then all, what runs included."""
    with speaking(tmp_path, HANDLERS) as spoken:
        for query in ("cats", "bad"):
            ended(spoken, crawl(spoken, query))
        other = spoken.ended(spoken.submit("echo").id)
        running(spoken, "gate-clean")
        cleaned = post(spoken, "task/cleanup", cleanup_type="completed")
        assert (cleaned["cleaned_count"], cleaned["cleanup_type"]) == (1, "completed")
        assert post(spoken, "task/cleanup", cleanup_type="failed")["cleaned_count"] == 1
        assert post(spoken, "task/cleanup", cleanup_type="all")["cleaned_count"] == 1
        assert [task["uuid"] for task in post(spoken, "tasks")["tasks"]] == [other.id]


def test_what_a_dead_process_left_is_called_inconsistent(gallery: Spoken) -> None:
    """A task that was running and is not run again says so in its words."""
    task = ended(gallery, crawl(gallery, "bad"))
    assert task.error is not None
    lost = replace(task, error=replace(task.error, code="interrupted"))
    gallery.service.store.save_task(replace(lost, version=task.version + 1))
    assert post(gallery, "status", task_id=task.id[:8])["error_message"] == "任务状态不一致，已自动清理"


# Configurations and the WebUI


def test_configurations_are_kept_changed_and_forgotten(tmp_path: Path) -> None:
    """Also over a restart, as files that a person can write."""
    with speaking(tmp_path, HANDLERS) as spoken:
        made = post(spoken, "configs", name="dogs", category="pets", config={"prompt": "a dog"})
        spoken.http.put(f"/api/configs/{made['id']}", json={"category": "animals"})
    (tmp_path / "data" / "configs" / "birds.json").write_text('{"name": "birds", "prompt": "a bird"}')
    (tmp_path / "data" / "configs" / "torn.json").write_text('{"name": ')
    with speaking(tmp_path, HANDLERS) as spoken:
        listed = spoken.http.get("/api/configs").json()["data"]
        assert ([config["name"] for config in listed["configs"]], listed["categories"]) == (
            ["birds", "dogs"],
            ["animals"],
        )
        post(spoken, f"configs/{made['id']}/default")
        assert spoken.http.get("/api/configs/default").json()["data"]["name"] == "dogs"
        exported = post(spoken, "configs/export")["configs"]
        assert post(spoken, "configs/import", configs=[*exported, {"name": "fish"}]) == {"imported": 1, "skipped": 2}
        assert spoken.http.delete(f"/api/configs/{made['id']}").status_code == 200
        assert spoken.http.get(f"/api/configs/{made['id']}").status_code == 404


@contextmanager
def webui() -> Iterator[int]:
    """Something that answers as a WebUI does; its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/sdapi/v1/options" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "request_line",
    ["POST configs", "POST configs/create", "POST configs/import", "PUT configs/x", "DELETE configs/x",
     "POST configs/x/default"],
)  # fmt: skip
def test_with_several_users_configurations_are_the_admins(strangers: Spoken, request_line: str) -> None:
    """They are everybody's: one user could take away what the others draw by. Everybody may read them."""
    method, path = request_line.split()
    Row(f"{method} /api/{path}", 403, "", FAULT, {}, {"json": {"name": "mine"}}).check(strangers.http)
    Row("GET /api/configs", 200, "data", None, {"total": 0}).check(strangers.http)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner to which each browser is somebody else, and one that has its cookie."""
    with speaking(tmp_path_factory.mktemp("strangers"), HANDLERS, auth__mode="cookie") as spoken:
        spoken.http.get("/api/v1/users/me")
        yield spoken


def test_nothing_is_drawn_without_a_webui(tmp_path: Path) -> None:
    """503, nothing stored; with one, a task."""
    with webui() as port:
        url = f"http://127.0.0.1:{port}"
        with speaking(tmp_path, HANDLERS, handlers__generate__config={"url": url}) as spoken:
            post(spoken, "configs", id="cats", name="cats")
            assert spoken.http.get("/api/webui/status").json()["data"]["status"] == "external"
            post(spoken, "generate-with-config", config_id="cats")
            body = {"config_id": "cats"}
            before = post(spoken, "tasks")["pagination"]["total"]
    with speaking(tmp_path, HANDLERS, handlers__generate__config={"url": url}) as spoken:
        answer = spoken.http.post("/api/generate-with-config", json=body)
        assert (answer.status_code, set(answer.json())) == (503, set(FAULT.split()))
        assert post(spoken, "tasks")["pagination"]["total"] == before


# The WebSocket


@pytest.mark.parametrize(("port", "path"), [("pixivtailor", "/ws"), ("", "/api/ws")])
def test_everybody_is_told_in_both_families(gallery: Spoken, port: str, path: str) -> None:
    """A change of status, progress and a line of the log, each twice, and a line for everybody."""
    name = f"gate-told{port}"
    with Socket.open(gallery.own[port], path) as socket:
        assert socket.receive()["type"] == "welcome"
        task_id = crawl(gallery, name)
        seen = socket.until(lambda message: message["type"] == "task_log")
        gallery.gate(name).open()
        seen += socket.until(lambda message: message.get("status") == "completed")
        seen += socket.until(lambda message: message["type"] == "global_log")
    by_type = {message["type"]: message for message in seen}
    assert set(by_type) == {"task_update", "task_status", "log_message", "task_log", "global_log"}
    assert set(by_type["task_status"]) == {"type", "task_id", "status", "progress"}
    assert (by_type["task_status"]["task_id"], by_type["task_status"]["progress"]) == (task_id, 100)
    keys = "task_id status progress images_found images_downloaded images_generated images_success result time"
    assert set(by_type["task_update"]["data"]) == set(keys.split())
    assert set(by_type["task_log"]) == {"type", "task_id", "level", "message"}
    assert by_type["log_message"]["data"]["level"] == "warning"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", by_type["global_log"]["data"]["time"])


def test_who_subscribes_is_told_of_those_tasks_only(gallery: Spoken) -> None:
    """And of what everybody is told."""
    task_id = running(gallery, "gate-mine")
    with Socket.open(gallery.own["pixivtailor"], "/ws") as socket:
        socket.send({"type": "subscribe_task", "task_id": task_id})
        socket.until(lambda message: message["type"] == "task_status")
        other = post(gallery, "generate-with-config", config_id="cats")["task_id"]
        ended(gallery, other)
        gallery.gate("gate-mine").open()
        seen = socket.until(lambda message: message.get("status") == "completed")
        assert {message["task_id"] for message in seen if "task_id" in message} == {task_id}
        assert any(other in message["data"]["message"] for message in seen if message["type"] == "global_log")


def test_what_is_asked_is_answered(gallery: Spoken, known: dict[str, str]) -> None:
    """A ping, the status of a task, of the system, of the WebUI; and what nobody knows."""
    with Socket.open(gallery.own["pixivtailor"], "/ws") as socket:
        socket.send({"type": "ping"})
        assert socket.until(lambda message: message["type"] == "pong")
        socket.send({"type": "get_task_status", "task_id": known["done"], "timestamp": 1})
        update = socket.until(lambda message: message["type"] == "task_update")[-1]
        assert (update["data"]["status"], update["data"]["images_found"]) == ("completed", 3)
        assert len(update["data"]["result"]["images"]) == 2
        for question, reply in (("get_system_status", "system_status"), ("get_webui_status", "webui_status")):
            socket.send({"type": question, "timestamp": 1})
            assert socket.until(lambda message, reply=reply: message["type"] == reply)  # type: ignore[misc]
        for nonsense in ({"type": "subscribe_task", "task_id": "00000000"}, {"type": "dance"}):
            socket.send(nonsense)
            assert socket.until(lambda message: message["type"] == "error")


def test_who_sends_nonsense_is_sent_away(gallery: Spoken) -> None:
    """1007."""
    with Socket.open(gallery.own["pixivtailor"], "/ws") as socket:
        socket.send_text("{")
        assert socket.close_code() == 1007


def test_who_unsubscribes_is_told_of_nothing_but_what_is_for_all(gallery: Spoken, known: dict[str, str]) -> None:
    """Not of everything again."""
    with Socket.open(gallery.own["pixivtailor"], "/ws") as socket:
        for kind in ("subscribe_task", "unsubscribe_task"):
            socket.send({"type": kind, "task_id": known["done"]})
        ended(gallery, crawl(gallery, "cats"))
        gallery.service.events.flush()
        socket.send({"type": "ping"})
        seen = socket.until(lambda message: message["type"] == "pong")
        assert {message["task_id"] for message in seen if "task_id" in message} <= {known["done"]}
        assert any(message["type"] == "global_log" for message in seen)


def test_who_floods_or_sends_bytes_is_sent_away(gallery: Spoken) -> None:
    """1008, 1003."""
    with Socket.open(gallery.own["pixivtailor"], "/ws") as socket:
        with suppress(HTTPXWSException, LocalProtocolError):
            for _ in range(400):
                socket.send({"type": "ping"})
        assert socket.close_code() == 1008
    with Socket.open(gallery.own["pixivtailor"], "/ws") as socket:
        socket.send_bytes(b"ping")
        assert socket.close_code() == 1003


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({"fur": 0.5}, [{"name": "fur", "weight": 0.5}]),
        ("fur:0.5", [{"name": "fur", "weight": 0.5}]),
        (["<lora:fur:nan>", "", {"name": "ink"}, {}], [{"name": "fur", "weight": 1.0}, {"name": "ink", "weight": 1.0}]),
        ("fur", [{"name": "fur", "weight": 1.0}]),
    ],
)
def test_loras_are_read_however_they_are_written(said: Any, read: list[dict[str, Any]]) -> None:
    """A table, a text, a tag of a prompt, a list."""
    assert words.read_loras(said) == read


def test_what_waits_goes_on_waiting_and_a_draft_begins(gallery: Spoken) -> None:
    """A start is no fault then."""
    draft = gallery.submit("crawl", payload={"type": "tag"}, draft=True)
    assert post(gallery, "task/start", task_id=draft.id)["task_id"] == draft.id[:8]
    waiting = gallery.submit("crawl", payload={"type": "tag"}, delay="1h")
    assert post(gallery, "task/start", task_id=waiting.id)["status"] == "pending"
    post(gallery, "cancel", task_id=waiting.id)
    assert ended(gallery, draft.id).status is Status.COMPLETED


def test_who_says_nothing_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages ping every 30 seconds."""
    monkeypatch.setattr(pixivtailor, "SocketEndpoint", partial(SocketEndpoint, silence_seconds=0.05))
    with speaking(tmp_path, HANDLERS) as spoken, Socket.open(spoken.own["pixivtailor"], "/ws") as socket:
        assert socket.close_code() == 1001


def test_its_own_port_has_its_own_health(gallery: Spoken) -> None:
    """In the envelope; and the API is not there."""
    own = gallery.own["pixivtailor"]
    health = own.get("/health").json()
    assert (set(health), set(health["data"])) == ({"status", "data"}, {"status", "message", "time"})
    assert own.get("/api/v1/tasks").json()["status"]["code"] == 1
    assert own.post("/api/tasks/create", json={"task_type": "video_merge"}).status_code == 404
