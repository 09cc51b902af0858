"""TaskFlow: its whole HTTP API at its own port, and what its clients read at the main one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from runner.service import Service
from runner.task import Status
from runner.web.submissions import SubmissionReader
from tests.contract.conftest import Row, Spoken, rows, speaking

API = "/api/v1"
FAULT = "error code"
JSON = {"Content-Type": "application/json"}


def creation(**fields: Any) -> dict[str, Any]:
    """What httpx sends of a creation, `echo` unless it is said otherwise."""
    return {"json": {"type": "echo", "payload": {}, **fields}}


@pytest.fixture(scope="module")
def flowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Spoken, dict[str, str]]]:
    """A task in each of its states, and their ids by state."""
    with speaking(tmp_path_factory.mktemp("flowing"), limits__global=1) as spoken:
        ids = {"completed": spoken.submit(queue="default").id, "archived": spoken.submit("fail").id}
        ids["retry"] = spoken.submit("later").id
        spoken.ended(ids["completed"])
        spoken.ended(ids["archived"])
        spoken.when(ids["retry"], lambda task: task.attempt == 1 and task.status is Status.PENDING)
        ids["active"] = spoken.submit("hold", payload={"gate": "flow", "percentage": 30}).id
        spoken.gate("flow").await_entered()
        ids["scheduled"] = spoken.submit(process_at="2100-01-01T00:00:00Z").id
        ids["pending"] = spoken.submit(queue="high").id
        yield spoken, ids
        spoken.gate("flow").open()


@rows(
    Row("POST {api}/tasks", 201, "", "task_id queue status", {"queue": "default", "status": "pending"}, creation()),
    Row("POST {api}/tasks", 201, "", None, {"queue": "low"}, creation(queue="low", metadata={"a": "b"}, x=1)),
    Row("POST {api}/tasks", 201, "", None, {"status": "scheduled"}, creation(process_at="2100-01-01T00:00:00+08:00")),
    Row("POST {api}/tasks", 400, "", FAULT, {"code": "INVALID_REQUEST"}, {"content": "{", "headers": JSON}),
    Row("POST {api}/tasks", 400, "", FAULT, {"code": "INVALID_REQUEST"}, {"content": "{}"}),
    Row("POST {api}/tasks", 400, "", FAULT, {"code": "INVALID_TASK_TYPE"}, creation(type="unheard-of")),
    Row("POST {api}/tasks", 400, "", FAULT + " details", {"code": "INVALID_PAYLOAD"}, creation(payload=None)),
    Row("POST {api}/tasks", 400, "", FAULT + " details", {"code": "INVALID_PAYLOAD"}, creation(payload={"no": 1})),
    Row("POST {api}/tasks", 400, "", FAULT + " details", {"code": "INVALID_TIMEOUT"}, creation(timeout="soon")),
    Row("POST {api}/tasks", 400, "", FAULT + " details", {"code": "INVALID_PROCESS_AT"}, creation(process_at="noon")),
    Row("POST {api}/tasks", 400, "", FAULT + " details", {"code": "INVALID_UNIQUE"}, creation(unique="soon")),
    Row("POST {api}/tasks", 400, "", FAULT + " details", {"code": "INVALID_QUEUE"}, creation(queue="none")),
    Row("GET {api}/tasks", 200, "0", "id queue type state", {"id": "{active}", "state": "active"}),
    Row("GET {api}/tasks?status=scheduled", 200, "0", "id queue type state", {"state": "scheduled"}),
    Row("GET {api}/tasks?status=retry", 200, "0", "id queue type state", {"id": "{retry}"}),
    Row("GET {api}/tasks?status=pending&queue=high", 200, "0", None, {"id": "{pending}"}),
    Row("GET {api}/tasks?status=archived", 200, "0", None, {"id": "{archived}"}),
    Row("GET {api}/tasks?status=completed&page=0&size=1", 200, "0", None, {"state": "completed"}),
    Row("GET {api}/tasks?status=active&page=1", 200, "", "", {}),
    Row("GET {api}/tasks?status=running", 400, "", FAULT + " details", {"code": "INVALID_TASK_STATE"}),
    Row("GET {api}/tasks?queue=none", 400, "", FAULT + " details", {"code": "INVALID_QUEUE"}),
    Row("GET {api}/tasks/{active}", 200, "", "id queue type state max_retry retried", {"state": "active"}),
    Row("GET {api}/tasks/{retry}", 200, "", "id queue type state max_retry retried last_err next_process_at"),
    Row("GET {api}/tasks/{retry}", 200, "", None, {"state": "retry", "retried": 1, "last_err": "not now"}),
    Row("GET {api}/tasks/{archived}", 200, "", None, {"state": "archived", "last_err": "it is hopeless"}),
    Row("GET {api}/tasks/{scheduled}", 200, "", None, {"next_process_at": "2100-01-01T00:00:00Z"}),
    Row("GET {api}/tasks/{pending}?queue=high", 200, "", None, {"state": "pending", "queue": "high"}),
    Row("GET {api}/tasks/{pending}?queue=low", 404, "", FAULT, {"code": "TASK_NOT_FOUND"}),
    Row("GET {api}/tasks/unheard-of", 404, "", FAULT, {"code": "TASK_NOT_FOUND"}),
    Row("DELETE {api}/tasks/unheard-of", 404, "", FAULT, {"code": "TASK_NOT_FOUND"}),
    Row("DELETE {api}/tasks/{active}", 500, "", FAULT, {"code": "DELETE_FAILED"}),
    Row("POST {api}/tasks/unheard-of/cancel", 404, "", FAULT, {"code": "TASK_NOT_FOUND"}),
    Row("POST {api}/tasks/{completed}/cancel", 500, "", FAULT, {"code": "CANCEL_FAILED"}),
    Row("GET {api}/tasks/{active}/progress", 200, "", "progress is_final status stream_id", {"is_final": False}),
    Row("GET {api}/tasks/{active}/progress", 200, "progress", "task_id percentage stage message timestamp_ms"),
    Row("GET {api}/tasks/{active}/progress", 200, "progress", None, {"percentage": 30, "stage": "work"}),
    Row("GET {api}/tasks/{archived}/progress", 200, "", None, {"is_final": True, "status": "failed"}),
    Row("GET {api}/tasks/{archived}/progress", 200, "progress", None, {"percentage": 100, "stage": "completed"}),
    Row("GET {api}/tasks/{pending}/progress", 404, "", FAULT, {"code": "PROGRESS_NOT_FOUND"}),
    Row("GET {api}/tasks/{active}/progress/history", 200, "", "task_id count history", {"count": 1}),
    Row("GET {api}/tasks/{active}/progress/history", 200, "history.0", "stream_id progress is_final"),
    Row("GET {api}/tasks/{retry}/progress/history", 200, "history.0.progress", None, {"stage": "retry"}),
    Row("GET {api}/tasks/{archived}/progress/history?start_id=0", 200, "history.0", None, {"status": "failed"}),
    Row("GET {api}/tasks/{pending}/progress/history", 200, "", None, {"count": 0, "history": []}),
    Row(
        "GET {api}/tasks/{pending}/progress/info",
        200,
        "",
        "task_id has_progress length first_entry last_entry",
        {"has_progress": False, "length": 0, "first_entry": "", "last_entry": ""},
    ),
    Row("GET {api}/tasks/{active}/progress/info", 200, "", None, {"has_progress": True, "length": 1}),
    Row("GET {api}/tasks/{active}/progress/stream?start_id=x", 400, "", FAULT),
    Row("GET {api}/progress/stream", 400, "", FAULT),
    Row("GET {api}/progress/stream?task_ids=1,2,3,4,5,6,7,8,9,10,11", 400, "", FAULT),
    Row("GET {api}/queues/stats", 200, "0", "queue pending active scheduled retry archived completed"),
    Row("GET {api}/queues/stats?queue=high", 200, "0", None, {"queue": "high", "pending": 1, "active": 0}),
    Row("GET {api}/queues/stats?queue=none", 500, "", FAULT, {"code": "STATS_FAILED"}),
    Row("GET /health", 200, "", "status timestamp services", {"status": "healthy", "services.redis": "healthy"}),
    Row("GET /ready", 200, "", "status", {"status": "ready"}),
    Row("GET /live", 200, "", "status", {"status": "alive"}),
    Row("GET {api}/handlers", 404, "", FAULT),
)
def test_the_contract(flowing: tuple[Spoken, dict[str, str]], row: Row) -> None:
    """Each request is answered as TaskFlow does."""
    spoken, ids = flowing
    row.check(spoken.own["taskflow"], api=API, **ids)


@rows(
    Row("POST {api}/tasks", 201, "", None, {"queue": "default", "status": "pending"}, creation()),
    Row("GET {api}/tasks?status=active&queue=default&page=0", 200, "0", None, {"id": "{active}", "state": "active"}),
    Row("GET {api}/tasks?status=retry&queue=default", 200, "0", None, {"id": "{retry}", "state": "retry"}),
    Row("GET {api}/tasks/{archived}", 200, "", None, {"state": "archived", "last_err": "it is hopeless"}),
    Row("GET {api}/tasks/unheard-of", 404, "", None, {"error_code": "TASK_NOT_FOUND"}),
    Row("POST {api}/tasks/unheard-of/cancel", 404, "", None, {"error_code": "TASK_NOT_FOUND"}),
    Row("GET {api}/tasks/{active}/progress", 200, "", "progress is_final status stream_id", {"is_final": False}),
    Row("GET {api}/tasks/{pending}/progress", 404, "", None, {"error_code": "PROGRESS_NOT_FOUND"}),
    Row("GET {api}/queues/stats?queue=high", 200, "0", None, {"pending": 1, "archived": 0}),
    Row("GET /health", 200, "", None, {"status": "healthy"}),
)
def test_what_its_clients_read_is_at_the_main_port_too(flowing: tuple[Spoken, dict[str, str]], row: Row) -> None:
    """In the API's answers, beside what is its own."""
    spoken, ids = flowing
    row.check(spoken.http, api=API, **ids)


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        ("POST /tasks", "INTERNAL_ERROR"),
        ("GET /tasks", "LIST_TASKS_FAILED"),
        ("GET /tasks/x", "INTERNAL_ERROR"),
        ("DELETE /tasks/x", "DELETE_FAILED"),
        ("POST /tasks/x/cancel", "CANCEL_FAILED"),
        ("GET /tasks/x/progress", "PROGRESS_FETCH_ERROR"),
        ("GET /tasks/x/progress/history", "PROGRESS_HISTORY_ERROR"),
        ("GET /tasks/x/progress/info", "STREAM_INFO_ERROR"),
        ("GET /queues/stats", "STATS_FAILED"),
    ],
)
def test_a_defect_has_the_code_of_what_was_asked_for(
    shared: Spoken, monkeypatch: pytest.MonkeyPatch, request_line: str, code: str
) -> None:
    """And says nothing of itself."""

    def break_down(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    for name in ("get", "list_tasks", "queue_stats"):
        monkeypatch.setattr(Service, name, break_down)
    monkeypatch.setattr(SubmissionReader, "read", break_down)
    method, _, path = request_line.partition(" ")
    body = creation() if path == "/tasks" and method == "POST" else {}
    Row(f"{method} {API}{path}", 500, "", FAULT, {"code": code}, body).check(shared.own["taskflow"])


def test_the_same_again_within_its_time_is_a_conflict(shared: Spoken) -> None:
    """`unique` is about type, payload and queue."""
    client, once = shared.own["taskflow"], creation(payload={"value": "once"}, unique="1h")
    Row("POST /api/v1/tasks", 201, send=once).check(client)
    Row("POST /api/v1/tasks", 409, "", FAULT, {"code": "TASK_ALREADY_EXISTS"}, once).check(client)
    Row("POST /api/v1/tasks", 201, send={"json": {**once["json"], "queue": "low"}}).check(client)


def test_what_it_creates_has_its_defaults(shared: Spoken) -> None:
    """Three retries, thirty minutes, the queue `default`, whatever the handler says."""
    body = shared.own["taskflow"].post(f"{API}/tasks", json={"type": "echo", "payload": {}}).json()
    task = shared.service.get(body["task_id"])
    assert (task.max_retries, task.timeout_seconds, task.queue) == (3, 1800, "default")


def test_a_task_that_runs_or_waits_is_cancelled_and_then_deleted(shared: Spoken) -> None:
    """Cancelling ends it for good; a second time fails, and one that only waits can be deleted at once."""
    client = shared.own["taskflow"]
    running = shared.submit("hold", payload={"gate": "cancelled"})
    waiting = shared.submit(process_at="2100-01-01T00:00:00Z")
    shared.running(running.id)
    Row("POST /api/v1/tasks/{id}/cancel", 200, values={"message": "task cancelled"}).check(client, id=running.id)
    Row("POST /api/v1/tasks/{id}/cancel", 500, values={"code": "CANCEL_FAILED"}).check(client, id=running.id)
    Row("GET /api/v1/tasks/{id}/progress", 200, values={"status": "cancelled"}).check(client, id=running.id)
    for task in (running, waiting):
        Row("DELETE /api/v1/tasks/{id}", 200, values={"message": "task deleted"}).check(client, id=task.id)
        Row("GET /api/v1/tasks/{id}", 404).check(client, id=task.id)


def events_of(text: str) -> list[tuple[str, Any]]:
    """The events of a stream that is over: name and data."""
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["progress", "done"]),
        ("?start_id=$", ["progress", "done"]),
        ("?start_id=0", ["progress", "progress", "done"]),
        ("?start_id=0-0", ["progress", "progress", "done"]),
        ("?history=true", ["history", "history", "progress", "done"]),
        ("?history=true&start_id={first}", ["history", "progress", "done"]),
        ("?start_id={first}", ["progress", "done"]),
        ("?start_id={last}", ["done"]),
    ],
)
def test_a_stream_tells_the_past_as_it_is_asked_to(shared: Spoken, query: str, names: list[str]) -> None:
    """Of a task that has ended: `$` its last record, `0` all, an id what came after it; then `done`."""
    shared.gate("past").open()
    task = shared.ended(shared.submit("hold", payload={"gate": "past", "percentage": 40}).id)
    client = shared.own["taskflow"]
    info = client.get(f"{API}/tasks/{task.id}/progress/info").json()
    query = query.format(first=info["first_entry"], last=info["last_entry"])
    answer = client.get(f"{API}/tasks/{task.id}/progress/stream{query}")
    events = events_of(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert [name for name, _ in events] == names
    assert events[-1][1] == {"task_id": task.id, "status": "completed"}


def test_a_stream_of_several_tasks_closes_when_all_have_ended(shared: Spoken) -> None:
    """Each record says whose it is, and how the last one ended; nothing else marks the end."""
    ended, failed = shared.ended(shared.submit().id), shared.ended(shared.submit("fail").id)
    ids = f"{ended.id},{failed.id},unheard-of"
    events = events_of(shared.own["taskflow"].get(f"{API}/progress/stream?task_ids={ids}").text)
    finals = {data["task_id"]: data["status"] for name, data in events if name == "progress"}
    assert finals == {ended.id: "completed", failed.id: "failed"}
    assert [data["task_id"] for name, data in events if name == "error"] == ["unheard-of"]
    assert {name for name, _ in events} == {"progress", "error"}


def test_a_request_id_is_echoed(shared: Spoken) -> None:
    """One that the client sends is kept."""
    answer = shared.own["taskflow"].get("/live", headers={"X-Request-ID": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
