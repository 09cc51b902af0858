"""TaskFlow. The API has its paths and its words already, beside its own; here they are as TaskFlow has them, and no
others: its short answers, its `{error, code, details?}`, its statuses and its defaults.

On the main port these paths are the API's: TaskFlow's clients find what they read in its answers, too, but for a
fault's code, which is in `error_code` there. So this dialect is heard at its own port only.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.dialects.dialect import Dialect
from runner.errors import Duplicate, IllegalTransition, NotFound
from runner.rpc.health import service_health
from runner.service import Service
from runner.task import Status, Task
from runner.web.app import PREFIX, Site
from runner.web.bodies import read_json
from runner.web.crossing import Submitter, in_thread
from runner.web.documents import state_of
from runner.web.door import caller_of
from runner.web.parameters import make_query, task_id_of
from runner.web.problems import Fault, invalid
from runner.web.progress_streams import ProgressEndpoints
from runner.web.routing import route
from runner.web.submissions import Roots, SubmissionReader
from runner.web.tasks import list_in_states

FIELDS: Final = ("type", "payload", "queue", "max_retries", "timeout", "process_at", "unique", "metadata")
"""What it knows of a submission; it never minded others."""

DEFAULTS: Final = {"queue": "default", "max_retries": 3, "timeout": "30m"}
STATES: Final = frozenset({"pending", "scheduled", "active", "retry", "archived", "completed"})
TASK_STATES: Final = frozenset({"pending", "scheduled", "retry"})
"""Those of tasks that wait; to the store they are one."""

QUEUE_KEYS: Final = ("queue", "pending", "active", "scheduled", "retry", "archived", "completed")
FAILURES: Final[Mapping[tuple[str, str], str]] = {
    ("GET", f"{PREFIX}/tasks"): "LIST_TASKS_FAILED",
    ("DELETE", f"{PREFIX}/tasks/{{id}}"): "DELETE_FAILED",
    ("POST", f"{PREFIX}/tasks/{{id}}/cancel"): "CANCEL_FAILED",
    ("GET", f"{PREFIX}/tasks/{{id}}/progress"): "PROGRESS_FETCH_ERROR",
    ("GET", f"{PREFIX}/tasks/{{id}}/progress/history"): "PROGRESS_HISTORY_ERROR",
    ("GET", f"{PREFIX}/tasks/{{id}}/progress/info"): "STREAM_INFO_ERROR",
    ("GET", f"{PREFIX}/queues/stats"): "STATS_FAILED",
}
"""The code of whatever goes wrong with a request that is right in itself."""


def make(site: Site) -> Dialect:
    """See `runner.dialects`."""
    tasks, progress, system = TaskflowTasks(site), ProgressEndpoints(site.service), TaskflowSystem(site.service)
    one = f"{PREFIX}/tasks/{{id}}"
    return Dialect(
        name="taskflow",
        routes=(),
        own_routes=(
            route(f"{PREFIX}/tasks", POST=tasks.submit, GET=tasks.list),
            route(one, GET=tasks.show, DELETE=tasks.delete),
            route(f"{one}/cancel", POST=tasks.cancel),
            route(f"{one}/progress", GET=progress.latest),
            route(f"{one}/progress/history", GET=progress.history),
            route(f"{one}/progress/info", GET=progress.info),
            route(f"{one}/progress/stream", GET=progress.stream),
            route(f"{PREFIX}/progress/stream", GET=progress.stream_many),
            route(f"{PREFIX}/queues/stats", GET=system.queue_stats),
            route("/health", GET=system.health),
            route("/ready", GET=system.ready),
            route("/live", GET=system.live),
        ),
        envelope=tell,
        origins=frozenset(site.config.dialects.taskflow.origins),
    )


class TaskflowTasks:
    """`/api/v1/tasks`."""

    def __init__(self, site: Site) -> None:
        self._service: Service = site.service
        self._submitter: Submitter = site.submitter
        self._queues = frozenset(site.config.queues)
        self._max_body_bytes = site.config.http.max_body_bytes
        self._reader = SubmissionReader(Roots((), Path(site.config.data_dir)))

    async def submit(self, request: Request) -> Response:
        """`POST /tasks`."""
        body = await read_json(request, self._max_body_bytes)
        if not isinstance(body, dict):
            raise invalid("", "must be an object")
        said = {name: body[name] for name in FIELDS if body.get(name) is not None}
        for name in ("type", "payload"):
            if name not in said:
                raise invalid(f"/{name}", "is missing")
        submission, origin = self._reader.read({**DEFAULTS, **said}, caller_of(request))
        task = await self._submitter.submit(submission, origin)
        if task.id != origin.task_id:
            raise Duplicate(task.id)
        return _json({"task_id": task.id, "queue": task.queue, "status": state_of(task, task.created_at)}, 201)

    async def list(self, request: Request) -> Response:
        """`GET /tasks`: those of one queue in one state."""
        asked = request.query_params
        state, queue = asked.get("status", "active"), asked.get("queue", "default")
        if state not in STATES:
            raise invalid("/status", f"must be one of {', '.join(sorted(STATES))}")
        if queue not in self._queues and queue not in {handler.options.queue for handler in self._service.handlers}:
            raise invalid("/queue", f"no queue {queue!r}")
        part = {"status": [state], "queue": queue, "page": asked.get("page", "0"), "size": asked.get("size", "20")}
        query = make_query(part, caller_of(request).sees)
        page = await in_thread(list_in_states, self._service, query, TASK_STATES & {state})
        return _json([_summary(task) for task in page.tasks])

    async def show(self, request: Request) -> Response:
        """`GET /tasks/{id}`."""
        task = await self._find(request)
        shown = {**_summary(task), "max_retry": task.max_retries, "retried": task.retries_used}
        if task.error is not None:
            shown["last_err"] = task.error.message
        if shown["state"] in ("scheduled", "retry"):
            shown["next_process_at"] = task.run_after
        return _json(shown)

    async def delete(self, request: Request) -> Response:
        """`DELETE /tasks/{id}`: one that waits, too; one that runs must be cancelled first."""
        task, sees = await self._find(request), caller_of(request).sees
        await in_thread(self._delete, task, sees)
        return _json({"message": "task deleted"})

    async def cancel(self, request: Request) -> Response:
        """`POST /tasks/{id}/cancel`."""
        task = await self._find(request)
        await in_thread(self._service.cancel, task.id, caller_of(request).sees)
        return _json({"message": "task cancelled"})

    def _delete(self, task: Task, sees: str | None) -> None:
        if task.status is Status.PROCESSING:
            raise IllegalTransition(task.id, task.status, "be deleted")
        if not task.is_terminal:
            # Only in the version that was looked at: it may have started since.
            self._service.cancel(task.id, sees, "deleted", frozenset({task.version}))
        self._service.delete(task.id, sees)

    async def _find(self, request: Request) -> Task:
        """The task, if it is in the queue that is named, where one is."""
        task: Task = await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)
        if request.query_params.get("queue", task.queue) != task.queue:
            raise NotFound("task", task.id)
        return task


class TaskflowSystem:
    """Queues and health."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def queue_stats(self, request: Request) -> Response:
        """`GET /queues/stats`."""
        queue = request.query_params.get("queue")
        rows = await in_thread(self._service.queue_stats)
        if queue is not None and queue not in {row["queue"] for row in rows}:
            raise NotFound("queue", queue)
        return _json([{key: row[key] for key in QUEUE_KEYS} for row in rows if queue in (None, row["queue"])])

    async def health(self, _request: Request) -> Response:
        """`GET /health`. What Redis was to TaskFlow is the store here."""
        health = await in_thread(self._service.health)
        services = {"redis": "; ".join(health.reasons) or "healthy", **service_health(self._service.config)}
        status = "healthy" if health.ready else "unhealthy"
        document = {"status": status, "timestamp": datetime.now(UTC), "services": services}
        return _json(document, 200 if health.ready else 503)

    async def ready(self, _request: Request) -> Response:
        """`GET /ready`."""
        health = await in_thread(self._service.health)
        if health.ready:
            return _json({"status": "ready"})
        return _json({"status": "not ready", "reason": "; ".join(health.reasons)}, 503)

    async def live(self, _request: Request) -> Response:
        """`GET /live`."""
        return _json({"status": "alive"})


def tell(request: Request, fault: Fault) -> Response:
    """A fault in its envelope, under one of its statuses."""
    status, code = _status_and_code(request, fault)
    body = {"error": fault.detail, "code": code}
    if "problems" in fault.more:
        body["details"] = fault.more["problems"]
    return Response(to_json(body), status, fault.headers, "application/json")


def _status_and_code(request: Request, fault: Fault) -> tuple[int, str]:
    if fault.status in (415, 422):
        return 400, fault.error_code if fault.status == 422 else "INVALID_REQUEST"
    path = getattr(request.scope.get("route"), "path", "")
    failure = FAILURES.get((request.method, path), "INTERNAL_ERROR")
    if fault.status == 409 and fault.code != "task_already_exists":
        return 500, failure
    if fault.error_code == "QUEUE_NOT_FOUND":
        return 500, failure
    return fault.status, fault.error_code if fault.status < 500 else failure


def _summary(task: Task) -> dict[str, Any]:
    return {"id": task.id, "queue": task.queue, "type": task.type, "state": state_of(task, datetime.now(UTC))}


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
