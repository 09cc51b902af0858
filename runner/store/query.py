"""What can be asked of the list of tasks, and its answer."""

from __future__ import annotations

import base64

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from runner.errors import InvalidSubmission, Problem
from runner.task import Source, Status, Task

MAX_PAGE_SIZE = 1000
MAX_PAGE = 1_000_000_000
_SQLITE_INTEGERS = range(-(2**63), 2**63)


class TaskQuery(BaseModel):
    """Filters, all of which must hold, and which part of the answer is wanted, newest first.

    `text` is looked for in error messages and original file names. `page` counts from 0 and asks for a total;
    `cursor` is the `next_cursor` of an earlier page and costs the same however deep it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: tuple[Status, ...] = ()
    type: str | None = None
    user_id: str | None = None
    queue: str | None = None
    client_id: str | None = None
    source: Source | None = None
    parent_id: str | None = None
    batch_id: str | None = None
    created_after: AwareDatetime | None = None
    created_before: AwareDatetime | None = None
    completed_after: AwareDatetime | None = None
    completed_before: AwareDatetime | None = None
    text: str | None = None
    size: int = Field(default=20, ge=1, le=MAX_PAGE_SIZE)
    page: int | None = Field(default=None, ge=0, le=MAX_PAGE)
    cursor: str | None = None


class TaskPage(BaseModel):
    """Part of a list. `total` only where a page was asked for; `next_cursor` is None at the end."""

    model_config = ConfigDict(frozen=True)

    tasks: tuple[Task, ...]
    total: int | None = None
    next_cursor: str | None = None


def encode_cursor(created_us: int, row: int) -> str:
    """The place after one row, opaque to clients."""
    return base64.urlsafe_b64encode(f"{created_us}.{row}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[int, int]:
    """The opposite. Raises `InvalidSubmission` for anything that `encode_cursor` did not make."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        created, row = map(int, text.split("."))
    except ValueError:
        created = row = _SQLITE_INTEGERS.stop
    if created in _SQLITE_INTEGERS and row in _SQLITE_INTEGERS:
        return created, row
    raise InvalidSubmission(
        (Problem("/cursor", "is not a cursor of this list; take `next_cursor` of an earlier page"),)
    )
