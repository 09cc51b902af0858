"""What each route is for: the table from which `/openapi.json` and `/docs` are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from runner.intake.admission import Submission
from runner.web.bulk import Choice
from runner.web.tasks import Start
from runner.web.tokens import NewToken

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
LINES: Final = "application/x-ndjson"
BYTES: Final = "application/octet-stream"

Schema = Mapping[str, Any]

OBJECT: Final[Schema] = {"type": "object"}
MESSAGE: Final[Schema] = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
TASK: Final[Schema] = {"$ref": "#/components/schemas/Task"}
TASKS: Final[Schema] = {"type": "array", "items": TASK}
OBJECTS: Final[Schema] = {"type": "array", "items": OBJECT}
TEXT: Final[Schema] = {"type": "string"}
PLACE: Final[Schema] = {"type": "string", "pattern": r"^(\$|[0-9]{1,15}(-[0-9]{1,9})?)$"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `body` is what it takes as JSON, `takes_file` that it takes any bytes; `query` are its
    parameters beside those in the path, `FILTERS` standing for those of lists.
    `as_text` are the media types in which the answer can be had besides."""

    group: str
    summary: str
    answer: Schema = field(default_factory=lambda: TASK)
    status: int = 200
    media_type: str = JSON
    body: type[BaseModel] | None = None
    takes_many: bool = False
    takes_file: bool = False
    is_body_optional: bool = False
    query: Mapping[str, Schema] | None = None
    has_filters: bool = False
    is_for_admin: bool = False
    as_text: tuple[str, ...] = ()


def _stream(group: str, summary: str, **query: Schema) -> Operation:
    return Operation(group, summary, TEXT, media_type=EVENTS, query=query)


_TASK: Final = "/api/v1/tasks/{id}"

OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("POST", "/api/v1/tasks"): Operation("tasks", "Submit a task", status=201, body=Submission),
    ("POST", "/api/v1/tasks:batch"): Operation(
        "tasks", "Submit tasks: all of them, or none", TASKS, 201, body=Submission, takes_many=True
    ),
    ("GET", "/api/v1/tasks"): Operation("tasks", "List tasks, newest first", TASKS, has_filters=True),
    ("GET", "/api/v1/tasks/count"): Operation("tasks", "Count tasks", OBJECT, has_filters=True),
    ("GET", _TASK): Operation(
        "tasks", "Look at a task, or wait for its end", query={"wait": {"type": "number", "minimum": 0, "maximum": 300}}
    ),
    ("DELETE", _TASK): Operation("tasks", "Delete a task that neither waits nor runs", MESSAGE),
    ("POST", f"{_TASK}/cancel"): Operation("tasks", "Cancel a task"),
    ("POST", f"{_TASK}/retry"): Operation("tasks", "Give a failed or cancelled task a further attempt"),
    ("POST", f"{_TASK}/rerun"): Operation("tasks", "Make a new task like an old one", status=201),
    ("POST", f"{_TASK}/start"): Operation("tasks", "Let a draft join the queue", body=Start, is_body_optional=True),
    ("PUT", f"{_TASK}/inputs/{{name}}"): Operation("tasks", "Give a draft one more input file", takes_file=True),
    ("GET", f"{_TASK}/outputs/{{name}}"): Operation("tasks", "Download an output", TEXT, media_type=BYTES),
    ("GET", f"{_TASK}/log"): Operation(
        "tasks", "Read what a task's handler said", TEXT, media_type=LINES, query={"after": PLACE}
    ),
    ("POST", "/api/v1/tasks:cancel"): Operation("many tasks", "Cancel tasks", OBJECT, body=Choice),
    ("POST", "/api/v1/tasks:retry"): Operation("many tasks", "Retry tasks", OBJECT, body=Choice),
    ("POST", "/api/v1/tasks:delete"): Operation("many tasks", "Delete tasks", OBJECT, body=Choice),
    ("GET", f"{_TASK}/events"): _stream("events", "Follow a task", after=PLACE),
    ("GET", "/api/v1/events"): _stream("events", "Follow all tasks that you may see"),
    ("GET", f"{_TASK}/progress"): Operation("progress", "The latest progress", OBJECT),
    ("GET", f"{_TASK}/progress/history"): Operation(
        "progress", "All progress, oldest first", OBJECT, query={"start_id": PLACE}
    ),
    ("GET", f"{_TASK}/progress/info"): Operation("progress", "How much progress there is", OBJECT),
    ("GET", f"{_TASK}/progress/stream"): _stream("progress", "Follow a task's progress", history=TEXT, start_id=PLACE),
    ("GET", "/api/v1/progress/stream"): _stream(
        "progress", "Follow the progress of up to ten tasks", task_ids=TEXT, start_id=PLACE
    ),
    ("POST", f"{_TASK}/uploads"): Operation("uploads", "Begin an upload that can be resumed (tus 1.0)", status=201),
    ("OPTIONS", f"{_TASK}/uploads"): Operation("uploads", "What of tus is spoken", status=204),
    ("PATCH", "/api/v1/uploads/{id}"): Operation("uploads", "Go on with an upload", status=204, takes_file=True),
    ("DELETE", "/api/v1/uploads/{id}"): Operation("uploads", "Forget an upload", status=204),
    ("POST", "/api/v1/uploads/{id}"): Operation("uploads", "One of the two, by X-HTTP-Method-Override", status=204),
    ("GET", "/api/v1/users/me"): Operation("users", "Who you are", OBJECT),
    ("POST", "/api/v1/tokens"): Operation("users", "Make a token", OBJECT, 201, body=NewToken, is_for_admin=True),
    ("GET", "/api/v1/tokens"): Operation("users", "List the tokens", OBJECTS, is_for_admin=True),
    ("DELETE", "/api/v1/tokens/{name}"): Operation("users", "Remove a token", MESSAGE, is_for_admin=True),
    ("GET", "/api/v1/handlers"): Operation("runner", "The handlers, and what they take", OBJECT),
    ("GET", "/api/v1/handlers/{name}"): Operation("runner", "One handler", OBJECT),
    ("GET", "/api/v1/queues/stats"): Operation("runner", "How full the queues are", OBJECTS, query={"queue": TEXT}),
    ("GET", "/api/v1/why"): Operation("runner", "Why a task is not running", OBJECT, query={"target": TEXT}),
    ("GET", "/api/v1/inbox"): Operation(
        "runner", "What waits in the watched folders, and why", OBJECT, is_for_admin=True
    ),
    ("POST", "/api/v1/gc"): Operation(
        "runner",
        "Remove what retention says may go",
        OBJECT,
        query={"mode": {"enum": ["apply", "dry_run"]}},
        is_for_admin=True,
    ),
    ("GET", "/health"): Operation("probes", "Whether all is well", OBJECT),
    ("GET", "/ready"): Operation("probes", "Whether tasks are accepted and started", OBJECT),
    ("GET", "/live"): Operation("probes", "Whether the process answers at all", OBJECT),
    ("GET", "/metrics"): Operation("probes", "Metrics", TEXT, media_type="text/plain", is_for_admin=True),
    ("GET", "/openapi.json"): Operation("probes", "This description", OBJECT),
    ("GET", "/"): Operation("probes", "What there is here", OBJECT, as_text=("text/html", "text/plain")),
    ("GET", "/docs"): Operation("probes", "This description for people", TEXT, media_type="text/html"),
}
"""Every operation by its method and path."""
