"""codebase-embedder: the list of what runs, with its filters, and the lists of what has ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.dialects import embedder
from runner.errors import Degraded
from runner.service import Service
from runner.task import Progress, Task
from tests.contract.conftest import Row, Spoken, rows, speaking
from tests.store.samples import make_task

API = "/codebase-embedder/api/v1"
RUNNING_KEYS = "taskId clientId status process totalProgress startTime lastUpdateTime fileList"
ENDED_KEYS = (
    "taskId clientId status process totalProgress completedTime fileCount successCount failedCount successRate fileList"
)
FAULT_KEYS = "code message success"


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Spoken, dict[str, str]]]:
    """One task that runs at 50 %, one that waits, one that has completed, one that has failed; and their ids."""
    with speaking(tmp_path_factory.mktemp("busy"), limits__global=1) as spoken:
        completed = spoken.ended(spoken.submit(client_id="ann").id)
        failed = spoken.ended(spoken.submit("fail", client_id="bob", payload={"files": ["b.py"]}).id)
        payload = {"gate": "embedder", "percentage": 50, "files": ["a.py"]}
        running = spoken.submit("hold", client_id="ann", payload=payload)
        spoken.gate("embedder").await_entered()
        waiting = spoken.submit(client_id="bob")
        spoken.when(running.id, lambda task: task.progress is not None and bool(task.files))
        ids = {"running": running.id, "waiting": waiting.id, "completed": completed.id, "failed": failed.id}
        yield spoken, ids
        spoken.gate("embedder").open()


@rows(
    Row("GET {api}/tasks/running", 200, "", "code message success data", {"code": 0, "message": "ok", "success": True}),
    Row("GET {api}/tasks/running", 200, "data", "totalTasks tasks", {"totalTasks": 2}),
    Row("GET {api}/tasks/running", 200, "data.tasks.1", RUNNING_KEYS + " estimatedCompletionTime"),
    Row("GET {api}/tasks/running", 200, "data.tasks.0", RUNNING_KEYS, {"process": "pending"}),
    Row("GET {api}/tasks/running", 200, "", None, {"data.tasks.1.taskId": "{running}"}),
    Row("GET {api}/tasks/running?status=running", 200, "", None, {"data.tasks.0.status": "processing"}),
    Row("GET {api}/tasks/running?status=processing", 200, "", None, {"data.tasks.0.totalProgress": 50}),
    Row("GET {api}/tasks/running?status=pending", 200, "", None, {"data.tasks.0.taskId": "{waiting}"}),
    Row("GET {api}/tasks/running?clientId=ann", 200, "", None, {"data.tasks.0.taskId": "{running}"}),
    Row("GET {api}/tasks/running?clientId=&status=&startTime=&page=", 200, "", None, {"data.totalTasks": 2}),
    Row("GET {api}/tasks/running?clientId=nobody", 200, "", None, {"data.totalTasks": 0, "data.tasks": []}),
    Row("GET {api}/tasks/running?startTime=2100-01-01T00:00:00Z", 200, "", None, {"data.tasks": []}),
    Row("GET {api}/tasks/running?page=2&pageSize=1", 200, "", None, {"data.tasks.0.taskId": "{running}"}),
    Row("GET {api}/tasks/running?page=2&pageSize=1", 200, "", None, {"data.totalTasks": 2}),
    Row("GET {api}/tasks/completed", 200, "data.tasks.0", ENDED_KEYS, {"process": "completed"}),
    Row("GET {api}/tasks/failed", 200, "data.tasks.0", ENDED_KEYS, {"process": "failed"}),
    Row("GET {api}/tasks/failed", 200, "", None, {"data.tasks.0.failedCount": 1, "data.tasks.0.successRate": 0}),
    Row("GET {api}/tasks/failed?clientId=ann", 200, "", None, {"data.totalTasks": 0}),
    Row("GET {api}/tasks/running?status=done", 422, "", FAULT_KEYS, {"code": 422, "success": False}),
    Row("POST {api}/tasks/running", 405, "", FAULT_KEYS, {"code": 405, "message": "method not allowed"}),
    Row("GET {api}/tasks/else", 404, "", FAULT_KEYS, {"code": 404, "success": False}),
)
@pytest.mark.parametrize("port", ["main", "own"])
def test_the_contract(busy: tuple[Spoken, dict[str, str]], row: Row, port: str) -> None:
    """Each request is answered as codebase-embedder does."""
    spoken, ids = busy
    row.check(spoken.http if port == "main" else spoken.own["embedder"], api=API, **ids)


def test_the_times_are_real_and_the_end_is_estimated_from_the_progress(busy: tuple[Spoken, dict[str, str]]) -> None:
    """At 50 % the end is as far away as the start is."""
    spoken, ids = busy
    earlier = datetime.now(UTC)
    shown = spoken.http.get(f"{API}/tasks/running", params={"status": "running"}).json()["data"]["tasks"][0]
    start, end = (datetime.fromisoformat(shown[name]) for name in ("startTime", "estimatedCompletionTime"))
    assert start == spoken.service.get(ids["running"]).started_at
    assert earlier <= start + (end - start) / 2 <= datetime.now(UTC)
    assert shown["fileList"] == [{"path": "a.py", "status": "processing", "operate": "add"}]


@pytest.mark.parametrize(("seconds", "end"), [(10, 40), (39, 40), (60, 240)])
def test_an_estimate_holds_until_it_has_passed(seconds: int, end: int) -> None:
    """At 25 % after ten seconds it takes forty; when those are over it is as far as it was, so it takes longer."""
    start = datetime(2026, 7, 1, tzinfo=UTC)
    progress = Progress(percentage=25, updated_at=start + timedelta(seconds=10))
    task = make_task(started_at=start, progress=progress, estimated_completion_at=start + timedelta(seconds=40))
    assert embedder.end_of(task, start + timedelta(seconds=seconds)) == start + timedelta(seconds=end)


@pytest.mark.parametrize(
    "query", ["", "?status=running", "?clientId=bob", "?page=2&pageSize=1", "?startTime=2100-01-01T00:00:00Z"]
)
def test_among_very_many_tasks_the_index_is_asked(
    busy: tuple[Spoken, dict[str, str]], monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """And the answer is the same."""
    spoken, _ = busy
    monkeypatch.setattr(embedder, "end_of", lambda task, now: task.estimated_completion_at)
    looked_at = spoken.http.get(f"{API}/tasks/running{query}").json()["data"]
    monkeypatch.setattr(embedder, "MANY", 0)
    assert spoken.http.get(f"{API}/tasks/running{query}").json()["data"] == looked_at


def test_the_files_of_a_request_are_told_by_its_id(busy: tuple[Spoken, dict[str, str]]) -> None:
    """An unknown request has failed, as its clients expect."""
    spoken, ids = busy
    asked = {"clientId": "ann", "codebasePath": "/x", "codebaseName": "x", "chunkNumber": 0, "totalChunks": 1}
    known = spoken.http.post(f"{API}/files/status", json={**asked, "syncId": ids["running"]}).json()["data"]
    unknown = spoken.http.post(f"{API}/files/status", json={**asked, "syncId": "../x"}).json()["data"]
    assert (known["process"], known["totalProgress"], len(known["fileList"])) == ("processing", 50, 1)
    assert unknown == {"process": "failed", "totalProgress": 0, "fileList": []}


def test_what_its_health_says_is_said_on_its_own_port(busy: tuple[Spoken, dict[str, str]]) -> None:
    """On the main port `/health` is the runner's; on its own there is nothing of the API."""
    spoken, _ = busy
    assert spoken.own["embedder"].get("/health").json()["data"] == {"status": "healthy"}
    assert spoken.http.get("/health").json()["status"] == "healthy"
    assert spoken.own["embedder"].get("/api/v1/tasks").json()["success"] is False


def test_faults_of_the_runner_are_told_in_its_words(
    spoken: Spoken, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """503 when the store cannot be read, 500 for a defect: the code is the status, and nothing leaks."""

    def refuse(_service: Service, _user_id: str | None) -> list[Task]:
        raise Degraded("the disk is broken")

    def break_down(_service: Service, _user_id: str | None) -> list[Task]:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Service, "unfinished", refuse)
    Row("GET {api}/tasks/running", 503, "", FAULT_KEYS, {"message": "Redis服务不可用，请稍后再试"}).check(
        spoken.http, api=API
    )
    monkeypatch.setattr(Service, "unfinished", break_down)
    Row("GET {api}/tasks/running", 500, "", FAULT_KEYS, {"message": "查询任务状态时发生内部错误"}).check(
        spoken.http, api=API
    )


def test_a_list_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_scan_time`, as its configuration has it."""

    def dawdle(_service: Service, _user_id: str | None) -> list[Task]:
        time.sleep(0.2)
        return []

    monkeypatch.setattr(Service, "unfinished", dawdle)
    with speaking(tmp_path, dialects__embedder__running_tasks__max_scan_time=10) as spoken:
        Row("GET {api}/tasks/running", 504, "", FAULT_KEYS, {"code": 504, "message": "查询超时，请稍后再试"}).check(
            spoken.http, api=API
        )
