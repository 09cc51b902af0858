"""Which error is which answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from runner import errors
from runner.task import Status
from runner.web.problems import answer_runner_error, pointer_to
from tests.web.conftest import Served


def answer_to(error: errors.RunnerError) -> tuple[int, dict[str, Any], str | None]:
    """Status, document and Retry-After of the answer to an error."""
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "request_id": "r1"})
    response = asyncio.run(answer_runner_error(request, error))
    return response.status_code, json.loads(bytes(response.body)), response.headers.get("retry-after")


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (errors.NotFound("task", "x"), 404, "not_found", None),
        (errors.UnknownHandler("x", "no handler 'x'"), 422, "unknown_handler", None),
        (errors.InvalidSubmission((errors.Problem("/a", "bad"),)), 422, "validation_error", None),
        (errors.KeyConflict("k", "x"), 422, "idempotency_mismatch", None),
        (errors.Duplicate("x"), 409, "task_already_exists", None),
        (errors.LimitReached("full", retry_after_seconds=2.5), 429, "queue_full", "3"),
        (errors.VersionMismatch("x", 3), 412, "version_mismatch", None),
        (errors.IllegalTransition("x", Status.PROCESSING, "be deleted"), 409, "task_running", None),
        (errors.IllegalTransition("x", Status.FAILED, "be cancelled"), 409, "already_finished", None),
        (errors.IllegalTransition("x", Status.PENDING, "be retried"), 409, "illegal_transition", None),
        (errors.Fenced("x", Status.FAILED, "take a result"), 409, "fenced", None),
        (errors.Degraded("the disk failed"), 503, "storage_degraded", "5"),
        (errors.ShuttingDown("ending"), 503, "shutting_down", "5"),
        (errors.DiskFull("full"), 507, "disk_full", "5"),
        (errors.CorruptRecord("secret detail"), 500, "internal_error", None),
    ],
)
def test_each_error_has_its_status_and_code(
    error: errors.RunnerError, status: int, code: str, retry_after: str | None
) -> None:
    """One table for the whole tree; whoever may try again is told when."""
    answered, document, after = answer_to(error)
    assert (answered, document["code"], after) == (status, code, retry_after)
    assert (document["status"], document["request_id"]) == (status, "r1")
    assert "secret" not in document["detail"]


def test_a_pointer_escapes_what_a_path_cannot_hold() -> None:
    """RFC 6901: ~ and / in a key."""
    assert pointer_to(("payload", "a/b~c", 0)) == "/payload/a~1b~0c/0"


def test_a_defect_is_answered_without_its_traceback(
    idle: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets an id, the log the rest."""

    def break_down() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(idle.service, "queue_stats", break_down)
    answer = httpx2.get(f"http://127.0.0.1:{idle.port}/api/v1/queues/stats")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in caplog.text


def test_a_runner_that_is_not_ready_says_why(idle: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 on both probes; it is alive all the same."""
    monkeypatch.setattr(idle.service, "is_closing", True)
    assert idle.tcp.get("/ready").json()["reasons"] == ["shutting down"]
    assert idle.tcp.get("/ready").status_code == idle.tcp.get("/health").status_code == 503
    assert idle.tcp.get("/live").status_code == 200
