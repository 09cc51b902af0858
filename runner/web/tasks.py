"""`/api/v1/tasks`: submit, list, look at, change and delete tasks, their inputs and outputs.

An endpoint parses, calls one verb of the service, renders. What a caller may not see is not there for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.errors import Duplicate, IllegalTransition
from runner.intake.admission import Arrival, Origin, Submission
from runner.record import Record
from runner.service import Service, check_version
from runner.store import TaskPage, TaskQuery
from runner.store.blobs import Handover
from runner.store.query import MAX_PAGE_SIZE
from runner.task import DRAFT, Status, Task
from runner.web.bodies import read_json, read_optional_json
from runner.web.crossing import Submitter, in_thread
from runner.web.documents import document, document_json, state_of
from runner.web.door import caller_of
from runner.web.downloads import downloaded
from runner.web.incoming import UploadSpace
from runner.web.limits import DraftLimit, OpenLimit
from runner.web.multipart import is_form, received_form
from runner.web.parameters import (
    etag_of,
    read_if_match,
    read_key,
    read_query,
    read_states,
    read_wait,
    task_id_of,
)
from runner.web.streams import wait_for_end
from runner.web.submissions import SubmissionReader, check_same, names_files

JSON: Final = "application/json"


class Start(Record):
    """What a draft is started with. `payload` None: the one that it has."""

    payload: dict[str, Any] | None = None


class TaskEndpoints:
    """The endpoints; `space` is where files lie while they come in."""

    def __init__(
        self,
        service: Service,
        reader: SubmissionReader,
        space: UploadSpace,
        waits: OpenLimit,
        drafts: DraftLimit,
        max_body_bytes: int,
    ) -> None:
        self._waits = waits
        self._drafts = drafts
        self._service = service
        self._submitter = Submitter(service)
        self._reader = reader
        self._space = space
        self._max_body_bytes = max_body_bytes

    async def submit(self, request: Request) -> Response:
        """`POST /tasks`."""
        if is_form(request):
            return await self._submit_form(request)
        body, key, caller = await read_json(request, self._max_body_bytes), read_key(request), caller_of(request)
        if names_files(body):
            submission, origin = await in_thread(self._reader.read, body, caller, key)
        else:
            submission, origin = self._reader.read(body, caller, key)
        if not submission.draft:
            return await self._submit(submission, origin, body)
        async with self._drafts.room(caller, 1):
            return await self._submit(submission, origin, body)

    async def submit_many(self, request: Request) -> Response:
        """`POST /tasks:batch`."""
        body, caller = await read_json(request, self._max_body_bytes), caller_of(request)
        pairs = await in_thread(self._reader.read_many, body, caller)
        async with self._drafts.room(caller, sum(submission.draft for submission, _ in pairs)):
            tasks = await in_thread(self._service.submit_many, pairs)
        return Response(to_json([document(task) for task in tasks]), 201, media_type=JSON)

    async def list(self, request: Request) -> Response:
        """`GET /tasks`."""
        query, states = read_query(request), read_states(request)
        page = await in_thread(list_in_states, self._service, query, states)
        shown = [document(task) for task in page.tasks]
        return Response(to_json(shown), headers=_page_headers(page, request), media_type=JSON)

    async def count(self, request: Request) -> Response:
        """`GET /tasks/count`."""
        count = await in_thread(self._service.count, read_query(request))
        return Response(to_json({"count": count}), media_type=JSON)

    async def show(self, request: Request) -> Response:
        """`GET /tasks/{id}`, and with `?wait=` when it has ended."""
        seconds = read_wait(request)
        if not seconds:
            return rendered(await self._find(request))
        caller = caller_of(request)
        with self._waits.held(caller):
            return rendered(await wait_for_end(self._service, task_id_of(request), caller.sees, seconds))

    async def cancel(self, request: Request) -> Response:
        """`POST /tasks/{id}/cancel`."""
        task_id, sees, versions = task_id_of(request), caller_of(request).sees, read_if_match(request)
        task = await in_thread(self._service.cancel, task_id, sees, versions=versions)
        return rendered(task, message="task cancelled")

    async def retry(self, request: Request) -> Response:
        """`POST /tasks/{id}/retry`."""
        task_id, sees, versions = task_id_of(request), caller_of(request).sees, read_if_match(request)
        return rendered(await in_thread(self._service.retry, task_id, sees, versions))

    async def rerun(self, request: Request) -> Response:
        """`POST /tasks/{id}/rerun`."""
        return created(await in_thread(self._service.rerun, task_id_of(request), caller_of(request).sees))

    async def start(self, request: Request) -> Response:
        """`POST /tasks/{id}/start`."""
        start = Start.model_validate(await read_optional_json(request, self._max_body_bytes))
        draft = await self._find_matching(request)
        return rendered(await in_thread(self._service.begin, draft.id, start.payload, caller_of(request).sees))

    async def delete(self, request: Request) -> Response:
        """`DELETE /tasks/{id}`."""
        task_id, sees, versions = task_id_of(request), caller_of(request).sees, read_if_match(request)
        await in_thread(self._service.delete, task_id, sees, versions)
        return Response(to_json({"message": "task deleted"}), media_type=JSON)

    async def put_input(self, request: Request) -> Response:
        """`PUT /tasks/{id}/inputs/{name}`."""
        draft = await self._find_matching(request)
        if draft.status not in DRAFT:
            raise IllegalTransition(draft.id, draft.status, "take another input file")
        name = request.path_params["name"]
        async with self._space.received(request, draft.user_id) as received:
            arrival = Arrival(path=received.path, name=name, size=received.size, mode=Handover.MOVE)
            return rendered(await in_thread(self._service.add_input, draft.id, arrival, caller_of(request).sees))

    async def output(self, request: Request) -> Response:
        """`GET /tasks/{id}/outputs/{name}`."""
        task = await self._find(request)
        name = request.path_params["name"]
        return await in_thread(lambda: downloaded(request, self._service.output(task, name), name))

    async def _submit_form(self, request: Request) -> Response:
        async with received_form(request, self._space, self._max_body_bytes) as form:
            key, caller = read_key(request), caller_of(request)
            submission, origin = await in_thread(self._reader.read_form, form, caller, key)
            async with self._drafts.room(caller, submission.draft):
                return await self._submit(submission, origin, form.fields)

    async def _submit(self, submission: Submission, origin: Origin, said: Container[str]) -> Response:
        """The answer to a submission, in which these fields were said."""
        task = await self._submitter.submit(submission, origin)
        if task.id == origin.task_id:
            return created(task, **_status_for(said, task))
        if submission.unique is not None:
            raise Duplicate(task.id)
        check_same(submission, task)
        return rendered(task, headers={"Idempotent-Replayed": "true"})

    async def _find_matching(self, request: Request) -> Task:
        """The task, if it has the version that is asked for."""
        task, versions = await self._find(request), read_if_match(request)
        return task if versions is None else check_version(task, versions)

    async def _find(self, request: Request) -> Task:
        task_id, sees = task_id_of(request), caller_of(request).sees
        task = self._service.recall(task_id, sees)
        return await in_thread(self._service.get, task_id, sees) if task is None else task


def rendered(task: Task, headers: Mapping[str, str] = MappingProxyType({}), **more: Any) -> Response:
    """A task as the API shows it; `more` are further members."""
    return Response(_shown(task, more), 200, {"ETag": etag_of(task), **headers}, JSON)


def created(task: Task, **more: Any) -> Response:
    """The answer to a submission that became a task; `more` are further members."""
    headers = {"Location": f"/api/v1/tasks/{task.id}", "ETag": etag_of(task)}
    return Response(_shown(task, more), 201, headers, JSON)


def _shown(task: Task, more: Mapping[str, Any]) -> bytes:
    return to_json(document(task, **more)) if more else document_json(task)


def list_in_states(service: Service, query: TaskQuery, states: frozenset[str]) -> TaskPage:
    """Part of the list; of the tasks that wait only those in `states`, where any are given. Then all that wait are
    looked at, and only pages are known, no cursor."""
    if not states:
        return service.list_tasks(query)
    now = datetime.now(UTC)
    everything = service.all_tasks(query.model_copy(update={"page": None, "cursor": None, "size": MAX_PAGE_SIZE}))
    wanted = (task for task in everything if task.status is not Status.PENDING or state_of(task, now) in states)
    first = (query.page or 0) * query.size
    return TaskPage.model_construct(tasks=tuple(itertools.islice(wanted, first, first + query.size)))


def _status_for(said: Container[str], task: Task) -> dict[str, Any]:
    """A client that says `process_at` speaks contract 001, and is told the status in its words."""
    is_scheduled = "process_at" in said and state_of(task, task.created_at) == "scheduled"
    return {"status": "scheduled"} if is_scheduled else {}


def _page_headers(page: TaskPage, request: Request) -> dict[str, str]:
    headers = {}
    if page.total is not None:
        headers["X-Total-Count"] = str(page.total)
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor)
        headers["X-Next-Cursor"] = page.next_cursor
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return headers
