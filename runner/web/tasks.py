"""`/api/v1/tasks`: submit, list, look at, change and delete tasks, their inputs and outputs.

An endpoint parses, calls one verb of the service, renders. What a caller may not see is not there for them.
"""

from __future__ import annotations

import itertools
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from runner.errors import Duplicate, IllegalTransition
from runner.intake.admission import Arrival, Origin, Submission
from runner.intake.names import path_of, text_of
from runner.service import Service
from runner.store import TaskPage, TaskQuery
from runner.store.blobs import Handover
from runner.store.query import MAX_PAGE_SIZE
from runner.task import DRAFT, Record, Status, Task
from runner.web.bodies import read_json, read_optional_json, received_file
from runner.web.crossing import Submitter, in_thread
from runner.web.documents import document, state_of
from runner.web.door import Caller, caller_of
from runner.web.parameters import read_query, read_states, read_wait, task_id_of
from runner.web.problems import invalid, pointing_below
from runner.web.streams import wait_for_end

OTHER_NAMES: Final = {"process_at": "run_after"}
"""What clients of contract 001 call a field."""

JSON: Final = "application/json"
SHOWN_TYPES: Final = {
    ".csv": "text/csv", ".gif": "image/gif", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".json": JSON,
    ".mov": "video/quicktime", ".mp3": "audio/mpeg", ".mp4": "video/mp4", ".pdf": "application/pdf",
    ".png": "image/png", ".txt": "text/plain", ".wav": "audio/wav", ".webm": "video/webm", ".webp": "image/webp",
    ".zip": "application/zip",
}  # fmt: skip
"""By ending, the types that outputs are sent as. Anything else is bytes: a browser must never run it."""

OUTPUT_HEADERS: Final = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}


class LocalFile(Record):
    """An input that lies on this machine already. `path` is absolute; one that is not UTF-8 is given as `raw`, too: its
    bytes, percent-encoded (RFC 3986)."""

    path: str
    raw: str | None = None
    name: str | None = None
    handover: Handover = Handover.COPY


class LocalFiles(BaseModel):
    """What a submission through the Unix socket may have beside its other fields."""

    inputs: tuple[LocalFile, ...] = Field(default=(), max_length=1000)


class Start(Record):
    """What a draft is started with. `payload` None: the one that it has."""

    payload: dict[str, Any] | None = None


class TaskEndpoints:
    """The endpoints; `uploads` is where files lie while they come in, on the data directory's filesystem."""

    def __init__(self, service: Service, uploads: Path, max_body_bytes: int) -> None:
        self._service = service
        self._submitter = Submitter(service)
        self._uploads = uploads
        self._max_body_bytes = max_body_bytes

    async def submit(self, request: Request) -> Response:
        """`POST /tasks`."""
        body = await read_json(request, self._max_body_bytes)
        submission, origin = read_submission(body, caller_of(request))
        task = await self._submitter.submit(submission, origin)
        if task.id != origin.task_id and submission.unique is not None:
            raise Duplicate(task.id)
        return created(task, **_status_for(body, task))

    async def submit_many(self, request: Request) -> Response:
        """`POST /tasks:batch`."""
        body = await read_json(request, self._max_body_bytes)
        tasks = await in_thread(self._service.submit_many, read_submissions(body, caller_of(request)))
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
        return rendered(await wait_for_end(self._service, task_id_of(request), caller_of(request).sees, seconds))

    async def cancel(self, request: Request) -> Response:
        """`POST /tasks/{id}/cancel`."""
        task = await in_thread(self._service.cancel, task_id_of(request), caller_of(request).sees)
        return rendered(task, message="task cancelled")

    async def retry(self, request: Request) -> Response:
        """`POST /tasks/{id}/retry`."""
        return rendered(await in_thread(self._service.retry, task_id_of(request), caller_of(request).sees))

    async def rerun(self, request: Request) -> Response:
        """`POST /tasks/{id}/rerun`."""
        return created(await in_thread(self._service.rerun, task_id_of(request), caller_of(request).sees))

    async def start(self, request: Request) -> Response:
        """`POST /tasks/{id}/start`."""
        start = Start.model_validate(await read_optional_json(request, self._max_body_bytes))
        task_id, user_id = task_id_of(request), caller_of(request).sees
        return rendered(await in_thread(self._service.begin, task_id, start.payload, user_id))

    async def delete(self, request: Request) -> Response:
        """`DELETE /tasks/{id}`."""
        await in_thread(self._service.delete, task_id_of(request), caller_of(request).sees)
        return Response(to_json({"message": "task deleted"}), media_type=JSON)

    async def put_input(self, request: Request) -> Response:
        """`PUT /tasks/{id}/inputs/{name}`."""
        draft = await self._find(request)
        if draft.status not in DRAFT:
            raise IllegalTransition(draft.id, draft.status, "take another input file")
        name = request.path_params["name"]
        async with received_file(request, self._uploads) as received:
            arrival = Arrival(path=received.path, name=name, size=received.size, mode=Handover.MOVE)
            return rendered(await in_thread(self._service.add_input, draft.id, arrival, caller_of(request).sees))

    async def output(self, request: Request) -> Response:
        """`GET /tasks/{id}/outputs/{name}`."""
        task = await self._find(request)
        name = request.path_params["name"]
        path = await in_thread(self._service.output, task, name)
        media_type = SHOWN_TYPES.get(Path(name).suffix.lower(), "application/octet-stream")
        return FileResponse(path, headers=OUTPUT_HEADERS, media_type=media_type, filename=Path(name).name)

    async def _find(self, request: Request) -> Task:
        return await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)


def read_submission(body: Any, caller: Caller, batch_id: str | None = None) -> tuple[Submission, Origin]:
    """What a body says, and where it came from. Raises pydantic's ValidationError or `InvalidSubmission`."""
    if not isinstance(body, dict):
        raise invalid("", "must be an object")
    inputs: tuple[Arrival, ...] = ()
    if caller.may_name_files:
        inputs = tuple(map(_arrival, LocalFiles.model_validate(body).inputs, itertools.count()))
        body = {name: value for name, value in body.items() if name != "inputs"}
    if "process_at" in body and "run_after" not in body:
        body = {OTHER_NAMES.get(name, name): value for name, value in body.items()}
    task_id = str(uuid.uuid4())
    origin = Origin(source=caller.source, user_id=caller.user_id, inputs=inputs, batch_id=batch_id, task_id=task_id)
    return Submission.model_validate(body), origin


def read_submissions(body: Any, caller: Caller) -> list[tuple[Submission, Origin]]:
    """The same for a batch; what is wrong is pointed to as `/<number>/<field>`."""
    if not isinstance(body, list):
        raise invalid("", "must be an array of submissions")
    batch_id = str(uuid.uuid4())
    pairs = []
    for number, item in enumerate(body):
        with pointing_below(f"/{number}"):
            pairs.append(read_submission(item, caller, batch_id))
    return pairs


def _arrival(file: LocalFile, number: int) -> Arrival:
    path = Path(path_of(file.path, file.raw))
    if "\0" in file.path or not path.is_absolute() or not path.is_file():
        raise invalid(f"/inputs/{number}/path", f"must be the absolute path of a file, not {file.path!r}")
    name = file.name or text_of(path.name)
    return Arrival(path=path, name=name, size=path.stat().st_size, mode=file.handover)


def rendered(task: Task, status: int = 200, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A task as the API shows it; `more` are further members."""
    return Response(to_json(document(task, **more)), status, headers, JSON)


def created(task: Task, **more: Any) -> Response:
    """The answer to a submission that became a task; `more` are further members."""
    headers = {"Location": f"/api/v1/tasks/{task.id}"}
    return Response(to_json(document(task, **more)), 201, headers, JSON)


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


def _status_for(body: dict[str, Any], task: Task) -> dict[str, Any]:
    """A client that says `process_at` speaks contract 001, and is told the status in its words."""
    is_scheduled = "process_at" in body and state_of(task, task.created_at) == "scheduled"
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
