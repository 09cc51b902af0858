"""How a task is shown: its own fields, and beside them the names of contract 001, for clients of either."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import orjson

from runner.task import Status, Task, to_json

STATES: Final = {
    Status.PROCESSING: "active",
    Status.COMPLETED: "completed",
    Status.FAILED: "archived",
    Status.CANCELLED: "archived",
}
"""What contract 001 calls a status; a task that waits is `scheduled`, `retry` or `pending`."""


def state_of(task: Task, now: datetime) -> str:
    """The task's state in the words of contract 001; drafts, which it does not know, keep their own."""
    if task.status is not Status.PENDING:
        return STATES.get(task.status, task.status)
    if task.run_after is None or task.run_after <= now:
        return "pending"
    return "retry" if task.attempt else "scheduled"


def document(task: Task, **more: Any) -> dict[str, Any]:
    """The task as the API shows it; `more` are further members."""
    return {**task.__dict__, **_other_names(task), **more}


def document_json(task: Task) -> bytes:
    """The same as JSON, at half the cost: what a task is made of is known to whoever writes it."""
    return to_json(task)[:-1] + b"," + orjson.dumps(_other_names(task), None, orjson.OPT_UTC_Z)[1:]


def _other_names(task: Task) -> dict[str, Any]:
    state = state_of(task, datetime.now(UTC))
    names = {"task_id": task.id, "state": state, "max_retry": task.max_retries, "retried": task.retries_used}
    if task.error is not None:
        names["last_err"] = task.error.message
    if state in ("scheduled", "retry"):
        names["next_process_at"] = task.run_after
    return names
