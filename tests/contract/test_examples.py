"""The examples in the guides of the systems that the runner stands in for, with only the host changed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.task import Status
from tests.contract.conftest import HANDLERS, Spoken, speaking

HANDLER = (Path(__file__).parents[2] / "handlers" / "grpc_task.py").read_text()

CREATE = """
curl -X POST http://localhost:8080/api/v1/tasks \
  -H "Content-Type: application/json" \
  -d '{
    "type": "grpc_task",
    "payload": {
      "service": "llm",
      "method": "chat",
      "data": {
        "prompt": "hello"
      },
      "options": {
        "timeout_ms": 600000,
        "enable_progress": true,
        "progress_interval_ms": 1000
      }
    },
    "queue": "default",
    "max_retries": 3
  }'
"""
SUBSCRIBE = "curl -N http://localhost:8080/api/v1/tasks/{task_id}/progress/stream"
LATEST = "curl http://localhost:8080/api/v1/tasks/{task_id}/progress"
RUNNING = "curl http://localhost:8080/codebase-embedder/api/v1/tasks/running"


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoken]:
    """A runner with the handler that the examples name."""
    root = tmp_path_factory.mktemp("guided")
    (root / "handlers").mkdir()
    (root / "handlers" / "grpc_task.py").write_text(HANDLER)
    with speaking(root, HANDLERS) as spoken:
        yield spoken


def said(spoken: Spoken, command: str, port: str, **known: str) -> str:
    """What a command prints, its host changed."""
    client = spoken.http if port == "main" else spoken.own[port]
    for name, text in known.items():
        command = command.replace(f"{{{name}}}", text)
    command = command.replace("http://localhost:8080", str(client.base_url).rstrip("/"))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
@pytest.mark.parametrize("port", ["main", "taskflow"])
def test_taskflows_examples_run(guided: Spoken, port: str) -> None:
    """A task of a service that nobody configured is taken, and archived without a retry; its stream ends."""
    pytest.importorskip("grpc")
    made = json.loads(said(guided, CREATE, port))
    stream = said(guided, SUBSCRIBE, port, task_id=made["task_id"])
    latest: dict[str, Any] = json.loads(said(guided, LATEST, port, task_id=made["task_id"]))
    assert (made["queue"], made["status"]) == ("default", "pending")
    assert stream.rstrip().splitlines()[-2:] == [
        "event: done",
        f'data: {{"task_id":"{made["task_id"]}","status":"failed"}}',
    ]
    assert (latest["is_final"], latest["status"]) == (True, "failed")
    task = guided.service.get(made["task_id"])
    assert (task.status, task.attempt, task.max_retries) == (Status.FAILED, 1, 3)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
def test_embedders_example_runs(guided: Spoken) -> None:
    """Of a running, a waiting and a completed task it lists two."""
    completed = guided.ended(guided.submit().id)
    running = guided.submit("hold", payload={"gate": "example", "percentage": 50})
    waiting = guided.submit(process_at="2100-01-01T00:00:00Z")
    guided.gate("example").await_entered()
    answer = json.loads(said(guided, RUNNING, "main"))
    guided.gate("example").open()
    shown = {task["taskId"] for task in answer["data"]["tasks"]}
    assert (answer["success"], answer["code"], answer["data"]["totalTasks"]) == (True, 0, 2)
    assert shown == {running.id, waiting.id}
    assert completed.id not in shown
