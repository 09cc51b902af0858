"""`/api/files/` and `/api/system/`: a browser's files are those of its tasks."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runner.config import Config
from runner.dialects.mediacraft import words
from runner.dialects.mediacraft.studio import Studio
from runner.dialects.mediacraft.tasks import MAX_BODY_BYTES, one_file, read_any_object
from runner.dialects.mediacraft.words import TASK_TYPES, WATERMARK, Notes, answer, instant, refuse
from runner.dispatch.bulk import Verb
from runner.service import Service
from runner.store import TaskQuery
from runner.store.query import MAX_PAGE_SIZE
from runner.task import TERMINAL, Status, Task
from runner.web.crossing import in_thread
from runner.web.door import Caller, caller_of
from runner.web.incoming import UploadSpace
from runner.web.multipart import is_form, received_form
from runner.web.routing import route

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")


class FileEndpoints:
    """The endpoints."""

    def __init__(self, service: Service, studio: Studio, space: UploadSpace, config: Config) -> None:
        self._service = service
        self._studio = studio
        self._space = space
        self._config = config

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        return (
            route("/api/files/upload", POST=self.upload),
            route("/api/files/list", GET=self.list_files),
            route("/api/files/cleanup", POST=self.clean_up),
            route("/api/files/{filename}", DELETE=self.delete),
            route("/api/system/status", GET=self.system_status),
            route("/api/system/config", GET=self.system_config),
        )

    async def upload(self, request: Request) -> Response:
        """`POST /api/files/upload`: a film that waits for its regions."""
        if not is_form(request):
            raise refuse(400, "No file: send multipart/form-data")
        async with received_form(request, self._space, MAX_BODY_BYTES) as form:
            file = one_file(form)
            task = await in_thread(self._studio.create_with, WATERMARK, caller_of(request), Notes(), [file])
        return answer(request, _entry(task))

    async def list_files(self, request: Request) -> Response:
        """`GET /api/files/list`."""
        tasks = await in_thread(self._tasks, caller_of(request))
        files = [_entry(task) for task in tasks if task.original_filename]
        return answer(request, {"files": files, "total": len(files)})

    async def clean_up(self, request: Request) -> Response:
        """`POST /api/files/cleanup`: everything of the browser's that has ended goes."""
        await read_any_object(request)
        query = TaskQuery(user_id=caller_of(request).user_id, status=tuple(sorted(TERMINAL)))
        report = await in_thread(self._service.change_many, Verb.DELETE, query, MAX_PAGE_SIZE)
        return answer(request, {"deleted_count": report.changed}, message="Files cleaned up")

    async def delete(self, request: Request) -> Response:
        """`DELETE /api/files/{filename}`: the drafts and finished tasks of that file."""
        caller, name = caller_of(request), request.path_params["filename"]
        named = [task for task in await in_thread(self._tasks, caller) if task.original_filename == name]
        if not named:
            raise refuse(404, "File not found")
        report = await in_thread(self._service.change_these, Verb.DELETE, [task.id for task in named], caller.user_id)
        if not report.changed:
            raise refuse(400, "The file is being worked on")
        return answer(request, {"filename": name, "deleted_count": report.changed}, message="File deleted")

    async def system_status(self, request: Request) -> Response:
        """`GET /api/system/status`."""
        health = await in_thread(self._service.health)
        data = {
            "status": "healthy" if health.ready else "unhealthy",
            "reasons": health.reasons,
            "running_tasks": health.details["running"],
            "queued_tasks": health.details["pending"],
            "max_concurrent_tasks": self._service.config.limits.global_,
        }
        return answer(request, data)

    async def system_config(self, request: Request) -> Response:
        """`GET /api/system/config`."""
        limits = self._service.config.limits
        data = {
            "task_types": TASK_TYPES,
            "max_concurrent_tasks": limits.global_,
            "max_tasks_per_user": limits.per_user,
            "max_file_size": self._config.http.max_upload_bytes,
            "allowed_extensions": SUFFIXES,
        }
        return answer(request, data)

    def _tasks(self, caller: Caller) -> tuple[Task, ...]:
        return self._service.list_tasks(TaskQuery(user_id=caller.user_id, size=MAX_PAGE_SIZE)).tasks


def _entry(task: Task) -> dict[str, Any]:
    return {
        "filename": task.original_filename,
        "size": task.file_size,
        "file_size": task.file_size,
        "task_id": task.id,
        "status": words.status_of(task),
        "has_result": task.status is Status.COMPLETED,
        "created_at": instant(task.created_at),
    }
