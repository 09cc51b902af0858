"""`POST /api/v1/tasks:cancel`, `:retry` and `:delete`: one change to all tasks that a filter names."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.service import Service, Verb
from runner.web.bodies import read_json
from runner.web.crossing import in_thread
from runner.web.door import caller_of
from runner.web.parameters import STATES_OF_PENDING, make_query, task_id_in
from runner.web.problems import invalid

MAX_AT_ONCE: Final = 10_000
_PLACES: Final = frozenset({"size", "page", "cursor"})


class Choice(BaseModel):
    """What a body says beside the other filters: which tasks by their ids, or how many at most."""

    model_config = ConfigDict(extra="allow")

    status: str | list[str] = []
    ids: list[str] | None = Field(default=None, max_length=MAX_AT_ONCE)
    limit: int = Field(default=1000, strict=True, ge=1, le=MAX_AT_ONCE)


class BulkEndpoints:
    """The endpoints."""

    def __init__(self, service: Service, max_body_bytes: int) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes

    async def cancel(self, request: Request) -> Response:
        """`POST /tasks:cancel`."""
        return await self._change(request, Verb.CANCEL)

    async def retry(self, request: Request) -> Response:
        """`POST /tasks:retry`."""
        return await self._change(request, Verb.RETRY)

    async def delete(self, request: Request) -> Response:
        """`POST /tasks:delete`."""
        return await self._change(request, Verb.DELETE)

    async def _change(self, request: Request, verb: Verb) -> Response:
        body, sees = await read_json(request, self._max_body_bytes), caller_of(request).sees
        choice, filters = read_choice(body)
        if choice.ids is not None:
            ids = [task_id_in(task_id) for task_id in choice.ids]
            report = await in_thread(self._service.change_these, verb, ids, sees)
        else:
            report = await in_thread(self._service.change_many, verb, make_query(filters, sees), choice.limit)
        return Response(to_json(report), media_type="application/json")


def read_choice(body: Any) -> tuple[Choice, dict[str, Any]]:
    """Which tasks are meant. Raises `InvalidSubmission` where nothing says which: all of them is never a default."""
    if not isinstance(body, dict):
        raise invalid("", "must be an object")
    choice = Choice.model_validate(body)
    filters = {name: value for name, value in body.items() if name not in ("ids", "limit")}
    if wrong := sorted(filters.keys() & _PLACES):
        raise invalid(f"/{wrong[0]}", "is for lists; say `limit`")
    if "status" in filters:
        filters["status"] = choice.status.split(",") if isinstance(choice.status, str) else choice.status
        if wrong := sorted(STATES_OF_PENDING.intersection(filters["status"])):
            raise invalid("/status", f"{wrong[0]!r} is for lists; `pending` means all that wait")
    if empty := sorted(name for name, value in filters.items() if value in (None, "", [])):
        raise invalid(f"/{empty[0]}", "says nothing, which would mean every task; leave it out, or say a value")
    if bool(filters) == (choice.ids is not None):
        raise invalid("", "say either `ids` or at least one filter, such as `status`")
    return choice, filters
