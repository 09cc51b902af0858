"""What a path and a query string say."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.requests import Request

from runner.errors import NotFound
from runner.events import parse_stream_id
from runner.service import Versions
from runner.store import TaskQuery
from runner.task import Status, Task
from runner.web.door import caller_of
from runner.web.problems import HttpProblem, invalid

MAX_WAIT_SECONDS: Final = 300.0
MAX_KEY_LENGTH: Final = 255

_STRONG_TAGS: Final = re.compile(r',\s*"([0-9]{1,18})"(?=\s*(?:,|$))')
_TASK_ID: Final = re.compile(r"[0-9a-z][0-9a-z_-]{0,63}")
_SHORT_NAMES: Final = {"user": "user_id", "client": "client_id"}
_OTHER_STATUSES: Final = {
    "active": (Status.PROCESSING,),
    "archived": (Status.FAILED, Status.CANCELLED),
    "retry": (Status.PENDING,),
    "scheduled": (Status.PENDING,),
}
"""What contract 001 calls a status."""
STATES_OF_PENDING: Final = frozenset({"scheduled", "retry"})
"""What contract 001 calls tasks that wait for an instant: to us they are `pending`, like all that wait."""


def task_id_of(request: Request) -> str:
    """The id in the path. One that no task can have is refused before any disk is asked."""
    return task_id_in(request.path_params["id"])


def task_id_in(text: str) -> str:
    """`text`, if a task can be called so. Raises `NotFound`."""
    if not _TASK_ID.fullmatch(text):
        raise NotFound("task", text)
    return text


def read_query(request: Request) -> TaskQuery:
    """The filters, and which part of the list is wanted. Several statuses are repeated or separated by commas."""
    asked: dict[str, Any] = dict(request.query_params)
    if "status" in asked:
        asked["status"] = _status_names(request)
    return make_query(asked, caller_of(request).sees)


def make_query(asked: dict[str, Any], sees: str | None) -> TaskQuery:
    """The same from filters by name, `status` a list. Whoever sees only one user's tasks asks for no others."""
    renamed = {_SHORT_NAMES.get(name, name): value for name, value in asked.items()}
    if isinstance(names := renamed.get("status"), list):
        renamed["status"] = [status for name in names for status in _OTHER_STATUSES.get(str(name), (name,))]
    query = TaskQuery.model_validate(renamed)
    return query if sees is None else query.model_copy(update={"user_id": sees})


def read_states(request: Request) -> frozenset[str]:
    """Which of the tasks that wait are wanted, where it is not all of them."""
    names = set(_status_names(request))
    return frozenset() if Status.PENDING in names else STATES_OF_PENDING & names


def _status_names(request: Request) -> list[str]:
    return ",".join(request.query_params.getlist("status")).split(",")


def read_if_match(request: Request) -> Versions | None:
    """`If-Match` (RFC 9110, 13.1.1): the versions for which a change is meant; None: any. A weak tag matches none."""
    text = request.headers.get("if-match", "*").strip()
    if text == "*":
        return None
    return frozenset(int(number) for number in _STRONG_TAGS.findall(f",{text}"))


def etag_of(task: Task) -> str:
    """The task's version as `If-Match` names it."""
    return f'"{task.version}"'


def read_key(request: Request) -> str | None:
    """`Idempotency-Key`: by which the same submission, sent again, is known."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise HttpProblem(400, "invalid_key", f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} characters")
    return key


def read_wait(request: Request) -> float:
    """`?wait=`: for how many seconds the answer may wait for the end of the task."""
    if not request.scope["query_string"]:
        return 0.0
    text = request.query_params.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise invalid("/wait", f"must be 0 to {MAX_WAIT_SECONDS:g} seconds, not {text!r}")
    return seconds


def read_place(request: Request) -> int | None:
    """After which event to begin: `Last-Event-ID`, else `?after=`, else 0 (all). None (`$`): only with new ones."""
    return parse_place(request.headers.get("last-event-id") or request.query_params.get("after", "0"))


def parse_place(text: str) -> int | None:
    """The same, said in `after`."""
    if text == "$":
        return None
    try:
        return parse_stream_id(text)
    except ValueError:
        raise invalid("/after", f"must be the id of an event, 0 or $, not {text!r}") from None
