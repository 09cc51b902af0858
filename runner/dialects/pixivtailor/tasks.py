"""PixivTailor's tasks: listed, looked at, started, stopped, cancelled, deleted, cleaned up, and their images."""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runner.dialects.pixivtailor import words
from runner.dialects.pixivtailor.words import answer, refuse, unknown
from runner.dispatch.bulk import Verb
from runner.errors import NotFound
from runner.service import Service
from runner.store import TaskQuery
from runner.task import DRAFT, TERMINAL, Status, Task
from runner.web.bodies import read_optional_json
from runner.web.crossing import in_thread
from runner.web.door import Caller, caller_of
from runner.web.downloads import downloaded
from runner.web.problems import HttpProblem
from runner.web.routing import route

MAX_BODY_BYTES: Final = 1024 * 1024
AT_ONCE: Final = 1000
CLEANUPS: Final = {"completed": (Status.COMPLETED,), "failed": (Status.FAILED,), "all": ()}


class Finder:
    """Finds tasks by the ids that PixivTailor's clients know."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def find(self, task_id: str, caller: Caller) -> Task:
        """The task of that id, or the one whose id begins so. Raises `HttpProblem` 404."""
        try:
            if len(task_id) == words.ID_DIGITS:
                return self._service.resolve(task_id, caller.sees)
            return self._service.get(task_id, caller.sees)
        except NotFound as error:
            raise unknown() from error


class TaskEndpoints:
    """The endpoints."""

    def __init__(self, service: Service, finder: Finder) -> None:
        self._service = service
        self._finder = finder

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        return (
            route("/api/tasks", POST=self.list_tasks),
            route("/api/status", POST=self.status),
            route("/api/task/start", POST=self.start),
            route("/api/task/stop", POST=self.stop),
            route("/api/cancel", POST=self.cancel),
            route("/api/delete", POST=self.delete),
            route("/api/task/cleanup", POST=self.clean_up),
            route("/api/tag/status", GET=self.tag_status),
            route("/api/tag/stop", POST=self.tag_stop),
            route("/api/tasks/{id}/images/{number}", GET=self.image),
        )

    async def list_tasks(self, request: Request) -> Response:
        """`POST /api/tasks`."""
        body = await read_object(request)
        page, size = words.read_page(body)
        wanted = str(body.get("status") or "")
        statuses = words.statuses_of(wanted) if wanted else ()
        tasks: tuple[Task, ...] = ()
        total = 0
        if statuses is not None:
            query = TaskQuery(
                status=statuses,
                type=str(body.get("type") or "") or None,
                user_id=caller_of(request).sees,
                page=page - 1,
                size=size,
            )
            found = await in_thread(self._service.list_tasks, query)
            tasks, total = found.tasks, found.total or 0
        pagination = {"page": page, "page_size": size, "total": total}
        return answer({"tasks": [words.task_of(task) for task in tasks], "pagination": pagination})

    async def status(self, request: Request) -> Response:
        """`POST /api/status`: in the envelope and beside it, or, if that is asked for, without any."""
        task = await self._asked_for(request)
        flat = words.flat_status_of(task)
        if words.wants_flat(request):
            return Response(to_json(flat), media_type=words.JSON)
        # `status` can be only one of the two: it is the envelope's.
        return answer(words.full_status_of(task), flat=flat)

    async def start(self, request: Request) -> Response:
        """`POST /api/task/start`."""
        task = await self._asked_for(request, missing=500)
        started = await in_thread(self._start, task)
        message = "task started"
        data = {"message": message, "task_id": words.short_id(started.id), "status": words.status_of(started)}
        return answer(data, message)

    async def stop(self, request: Request) -> Response:
        """`POST /api/task/stop`: of what runs."""
        return await self._stopped(await self._asked_for(request))

    async def cancel(self, request: Request) -> Response:
        """`POST /api/cancel`: of anything but what has completed."""
        task = await self._asked_for(request)
        if task.status is Status.COMPLETED:
            raise refuse(500, "the task has completed")
        if not task.is_terminal:
            await in_thread(self._service.cancel, task.id)
        return answer({"message": "task cancelled"}, "task cancelled")

    async def delete(self, request: Request) -> Response:
        """`POST /api/delete`: what runs is stopped first."""
        task = await self._asked_for(request, missing=500)
        await in_thread(self._delete, task)
        return answer({"message": "task deleted"}, "task deleted")

    async def clean_up(self, request: Request) -> Response:
        """`POST /api/task/cleanup`: tasks of its types."""
        kind = (await read_object(request)).get("cleanup_type")
        if not isinstance(kind, str) or kind not in CLEANUPS:
            raise refuse(400, "cleanup_type must be completed, failed or all")
        count = await in_thread(self._clean_up, CLEANUPS[kind], caller_of(request))
        return answer({"message": f"{count} tasks cleaned up", "cleaned_count": count, "cleanup_type": kind})

    async def tag_status(self, request: Request) -> Response:
        """`GET /api/tag/status?task_id=`."""
        return answer(words.task_of(await self._queried(request)))

    async def tag_stop(self, request: Request) -> Response:
        """`POST /api/tag/stop?task_id=`."""
        return await self._stopped(await self._queried(request))

    async def image(self, request: Request) -> Response:
        """`GET /api/tasks/{id}/images/{n}`, counted from 1."""
        task = await in_thread(self._finder.find, request.path_params["id"], caller_of(request))
        images, number = words.images_of(task), request.path_params["number"]
        place = int(number) if number.isascii() and number.isdecimal() and len(number) < 8 else 0
        if not 1 <= place <= len(images):
            raise refuse(404, "Image not found")
        return await in_thread(send_image, request, self._service, task, images[place - 1])

    async def _asked_for(self, request: Request, *, missing: int = 404) -> Task:
        """The task that the body names; `missing` is the status where there is none."""
        return await self._find(words.read_task_id(await read_object(request)), request, missing)

    async def _queried(self, request: Request) -> Task:
        return await self._find(words.read_task_id(request.query_params), request, 404)

    async def _find(self, task_id: str, request: Request, missing: int) -> Task:
        try:
            return await in_thread(self._finder.find, task_id, caller_of(request))
        except HttpProblem as problem:
            raise refuse(missing, problem.detail) from problem

    async def _stopped(self, task: Task) -> Response:
        if task.status is not Status.PROCESSING:
            raise refuse(500, f"the task is not running: it is {words.status_of(task)}")
        await in_thread(self._service.cancel, task.id)
        message = "task stopped"
        return answer({"message": message, "task_id": words.short_id(task.id)}, message)

    def _start(self, task: Task) -> Task:
        """What waits goes on waiting; what has failed is tried again; what has completed is done once more."""
        if task.status is Status.PROCESSING:
            raise refuse(500, "the task is running already")
        if task.status in DRAFT:
            return self._service.begin(task.id)
        if task.status is Status.PENDING:
            return task
        if task.status is Status.COMPLETED:
            return self._service.rerun(task.id)
        return self._service.retry(task.id)

    def _delete(self, task: Task) -> None:
        if not task.is_terminal:
            self._service.cancel(task.id)
        self._service.delete(task.id)

    def _clean_up(self, statuses: tuple[Status, ...], caller: Caller) -> int:
        count = 0
        for type in words.TYPES:
            query = TaskQuery(type=type, user_id=caller.sees)
            if not statuses:
                self._change_all(Verb.CANCEL, query)
            wanted = statuses or tuple(sorted(TERMINAL | DRAFT))
            count += self._change_all(Verb.DELETE, query.model_copy(update={"status": wanted}))
        return count

    def _change_all(self, verb: Verb, query: TaskQuery) -> int:
        changed = 0
        while True:
            report = self._service.change_many(verb, query, AT_ONCE)
            changed += report.changed
            if not report.more or not report.changed:
                return changed


def send_image(request: Request, service: Service, task: Task, path: str) -> Response:
    """One of a task's images. Raises `HttpProblem` 404."""
    name = path.split("/", 3)[-1]
    try:
        response = downloaded(request, service.output(task, name), name)
    except NotFound as error:
        raise refuse(404, "Image not found") from error
    return shown_in_pages(response)


def shown_in_pages(response: Response) -> Response:
    """An image that pages show, and keep for an hour."""
    response.headers["Content-Disposition"] = "inline"
    response.headers["Cache-Control"] = "private, max-age=3600"
    return response


async def read_object(request: Request) -> dict[str, Any]:
    """A body that is an object; an empty one where there is none. Raises `HttpProblem` 400."""
    body = await read_optional_json(request, MAX_BODY_BYTES)
    if not isinstance(body, dict):
        raise refuse(400, "the body must be a JSON object")
    return body
