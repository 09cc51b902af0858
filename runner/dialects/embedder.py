"""codebase-embedder: which tasks run, which have completed or failed, and how far the files of one are.

Its own server kept a JSON text for each request in Redis, without times; here they are real, and the end is estimated
from what the handler says of its progress. What its plan left for later is here, too: filters and pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.dialects.dialect import Dialect
from runner.errors import NotFound
from runner.service import Service
from runner.store import TaskQuery
from runner.task import FileState, Status, Task
from runner.web.app import Site
from runner.web.bodies import read_json
from runner.web.crossing import in_thread
from runner.web.door import caller_of
from runner.web.parameters import task_id_in
from runner.web.problems import Fault, HttpProblem
from runner.web.routing import route

PREFIX: Final = "/codebase-embedder/api/v1"
MAX_TASKS: Final = 1000
"""So many tasks are in one answer; the others are on further pages."""
MANY: Final = 10_000
"""With more unfinished tasks than that they are not all looked at for a list."""

PROCESSES: Final[Mapping[Status, str]] = MappingProxyType(
    {
        Status.PENDING: "pending",
        Status.PROCESSING: "processing",
        Status.COMPLETED: "completed",
        Status.FAILED: "failed",
        Status.CANCELLED: "failed",
    }
)
"""What it calls a status. It does not know drafts."""

RUNNING: Final = {"pending": Status.PENDING, "processing": Status.PROCESSING, "running": Status.PROCESSING}
TEXTS: Final = {
    405: "method not allowed",
    500: "查询任务状态时发生内部错误",
    503: "Redis服务不可用，请稍后再试",
    504: "查询超时，请稍后再试",
}
"""Its words for a fault; other faults are told in ours."""


def _check_process(name: str) -> str:
    if name not in RUNNING:
        raise ValueError(f"must be {', '.join(RUNNING)}")
    return name


class Asked(BaseModel):
    """Filters and the part of the list, as its query says them. `page` counts from 1; times are those of the start, or
    of the end where tasks have ended. Other parameters are not looked at."""

    model_config = ConfigDict(extra="ignore")

    client_id: str | None = Field(default=None, alias="clientId")
    status: Annotated[str, AfterValidator(_check_process)] | None = None
    start_time: AwareDatetime | None = Field(default=None, alias="startTime")
    end_time: AwareDatetime | None = Field(default=None, alias="endTime")
    page: int = Field(default=1, ge=1, le=1_000_000)
    page_size: int = Field(default=MAX_TASKS, ge=1, le=MAX_TASKS, alias="pageSize")

    @classmethod
    def of(cls, request: Request) -> Self:
        """What a request asks for; a filter that is empty is none."""
        return cls.model_validate({name: value for name, value in request.query_params.items() if value})

    def takes(self, task: Task) -> bool:
        """Whether an unfinished task is asked for."""
        started = start_of(task)
        return (
            task.status in ({RUNNING[self.status]} if self.status else RUNNING.values())
            and self.client_id in (None, task.client_id)
            and (self.start_time is None or self.start_time <= started)
            and (self.end_time is None or started <= self.end_time)
        )


class FilesAsked(BaseModel):
    """What a client says that asks for the files of a request. Only `syncId`, the request's id, is needed for that."""

    model_config = ConfigDict(extra="allow")

    sync_id: str = Field(alias="syncId")


def make(site: Site) -> Dialect:
    """See `runner.dialects`."""
    config = site.config
    scan_seconds = config.dialects.embedder.running_tasks.max_scan_time / 1000
    endpoints = EmbedderEndpoints(site.service, config.http.max_body_bytes, scan_seconds)
    return Dialect(
        name="embedder",
        routes=(
            route(f"{PREFIX}/tasks/running", GET=endpoints.running),
            route(f"{PREFIX}/tasks/completed", GET=endpoints.completed),
            route(f"{PREFIX}/tasks/failed", GET=endpoints.failed),
            route(f"{PREFIX}/files/status", POST=endpoints.files),
        ),
        own_routes=(route("/health", GET=endpoints.health),),
        prefixes=("/codebase-embedder/",),
        envelope=tell,
        origins=frozenset(config.dialects.embedder.origins),
    )


class EmbedderEndpoints:
    """The endpoints. Whoever looks for longer than `max_scan_seconds` is told so."""

    def __init__(self, service: Service, max_body_bytes: int, max_scan_seconds: float) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._max_scan_seconds = max_scan_seconds

    async def running(self, request: Request) -> Response:
        """`GET /tasks/running`: what waits or runs, the last one to start first."""
        asked, sees = Asked.of(request), caller_of(request).sees
        try:
            # The thread goes on by itself; only nobody waits for it.
            looking = asyncio.shield(in_thread(self._running, asked, sees))
            return _ok(await asyncio.wait_for(looking, self._max_scan_seconds))
        except TimeoutError as error:
            raise HttpProblem(504, "timeout", TEXTS[504]) from error

    async def completed(self, request: Request) -> Response:
        """`GET /tasks/completed`."""
        return await self._ended(request, (Status.COMPLETED,))

    async def failed(self, request: Request) -> Response:
        """`GET /tasks/failed`: and those that were cancelled."""
        return await self._ended(request, (Status.FAILED, Status.CANCELLED))

    async def files(self, request: Request) -> Response:
        """`POST /files/status`: how far the files of one request are; of an unknown one, that it has failed."""
        asked = FilesAsked.model_validate(await read_json(request, self._max_body_bytes))
        task = await in_thread(self._find, asked.sync_id, caller_of(request).sees)
        if task is None:
            return _ok({"process": "failed", "totalProgress": 0, "fileList": []})
        process = PROCESSES.get(task.status, "pending")
        return _ok({"process": process, "totalProgress": percentage(task), "fileList": file_list(task.files)})

    async def health(self, _request: Request) -> Response:
        """`GET /health`, on its own port."""
        health = await in_thread(self._service.health)
        if not health.ready:
            raise HttpProblem(503, "unavailable", TEXTS[503])
        return _ok({"status": "healthy"})

    def _running(self, asked: Asked, sees: str | None) -> dict[str, Any]:
        if self._service.store.live_count > MANY:
            return self._running_of_many(asked, sees)
        tasks = sorted(filter(asked.takes, self._service.unfinished(sees)), key=start_of, reverse=True)
        first = (asked.page - 1) * asked.page_size
        now = datetime.now(UTC)
        shown = [running_task(task, now) for task in tasks[first : first + asked.page_size]]
        return {"totalTasks": len(tasks), "tasks": shown}

    def _running_of_many(self, asked: Asked, sees: str | None) -> dict[str, Any]:
        """The same by way of the index: in the order, and for times, in which tasks came in."""
        query = TaskQuery(
            status=(RUNNING[asked.status],) if asked.status else (Status.PENDING, Status.PROCESSING),
            user_id=sees,
            client_id=asked.client_id,
            created_after=asked.start_time,
            created_before=asked.end_time,
            page=asked.page - 1,
            size=asked.page_size,
        )
        page = self._service.list_tasks(query)
        now = datetime.now(UTC)
        shown = [running_task(task, now) for task in page.tasks if not task.is_terminal]
        return {"totalTasks": page.total, "tasks": shown}

    async def _ended(self, request: Request, statuses: tuple[Status, ...]) -> Response:
        asked = Asked.of(request)
        query = TaskQuery(
            status=statuses,
            user_id=caller_of(request).sees,
            client_id=asked.client_id,
            completed_after=asked.start_time,
            completed_before=asked.end_time,
            page=asked.page - 1,
            size=asked.page_size,
        )
        page = await in_thread(self._service.list_tasks, query)
        return _ok({"totalTasks": page.total, "tasks": [ended_task(task) for task in page.tasks]})

    def _find(self, task_id: str, sees: str | None) -> Task | None:
        try:
            return self._service.get(task_id_in(task_id), sees)
        except NotFound:
            return None


def running_task(task: Task, now: datetime) -> dict[str, Any]:
    """An unfinished task in its words."""
    shown = {
        "taskId": task.id,
        "clientId": task.client_id or "",
        "status": PROCESSES[task.status],
        "process": PROCESSES[task.status],
        "totalProgress": percentage(task),
        "startTime": start_of(task),
        "lastUpdateTime": last_news_of(task),
        "fileList": file_list(task.files),
    }
    end = end_of(task, now)
    if end is not None:
        shown["estimatedCompletionTime"] = end
    return shown


def ended_task(task: Task) -> dict[str, Any]:
    """A task that has ended, in its words. The files are those that its handler told of."""
    succeeded = sum(file.status in ("complete", "completed") for file in task.files)
    failed = sum(file.status == "failed" for file in task.files)
    return {
        "taskId": task.id,
        "clientId": task.client_id or "",
        "status": PROCESSES[task.status],
        "process": PROCESSES[task.status],
        "totalProgress": percentage(task),
        "completedTime": task.completed_at,
        "fileCount": len(task.files),
        "successCount": succeeded,
        "failedCount": failed,
        "successRate": round(100 * succeeded / len(task.files), 2) if task.files else 0,
        "fileList": file_list(task.files),
    }


def start_of(task: Task) -> datetime:
    """When a task began; of one that waits for its first attempt, when it came in."""
    return task.started_at or task.created_at


def end_of(task: Task, now: datetime) -> datetime | None:
    """When it will be done if it goes on as it did; never an instant that is over."""
    end, progress = task.estimated_completion_at, task.progress
    if end is None or end > now or progress is None or not progress.percentage:
        return end
    # Nothing was heard of it since: it is as far as it was, but that has taken until now.
    return start_of(task) + (now - start_of(task)) * (100 / progress.percentage)


def last_news_of(task: Task) -> datetime:
    """When a task changed, or its handler said how far it is."""
    said = None if task.progress is None else task.progress.updated_at
    return task.updated_at if said is None else max(said, task.updated_at)


def percentage(task: Task) -> int:
    """How far it is, 0 to 100."""
    return 0 if task.progress is None else int(task.progress.percentage)


def file_list(files: Iterable[FileState]) -> list[dict[str, str]]:
    """The items of work of a task."""
    return [{"path": file.path, "status": file.status, "operate": file.operate} for file in files]


def tell(_request: Request, fault: Fault) -> Response:
    """A fault in its envelope."""
    body = {"code": fault.status, "message": TEXTS.get(fault.status, fault.detail), "success": False}
    return Response(to_json(body), fault.status, fault.headers, "application/json")


def _ok(data: Any) -> Response:
    body = {"code": 0, "message": "ok", "success": True, "data": data}
    return Response(to_json(body), media_type="application/json")
