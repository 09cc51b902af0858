"""The one door in: the checks that make a submission a task. A refusal stores nothing."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import to_json

from runner.config import LimitsConfig
from runner.errors import InvalidSubmission, LimitReached, Problem
from runner.handlers import Handler
from runner.handlers.media import HEAD_BYTES
from runner.store import Handover, Layout
from runner.task import Chained, Drop, Source, Status, Task, make
from runner.units import Duration

NAME: Final = re.compile(r"[0-9a-z][0-9a-z_-]{0,63}")
"""What a task's or user's id is made of: lower case only, because some filesystems do not tell cases apart."""
MAX_PRIORITY: Final = 1_000_000
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f/\\:*?\"<>|\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Submission(BaseModel):
    """What a source asks for. Everything but `type` has a default: the handler's, or none.

    `delay` and `run_after` say when it may start at the earliest, `expires_at` until when it must have started.
    `unique_key`: the same key and the same content give the same task; other content is a conflict. `unique`: no second
    task of the same type, payload and queue for that long. `draft`: it waits for files, and for `start`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    type: str
    payload: dict[str, Any] = Field(default_factory=dict)
    queue: Annotated[str, Field(max_length=64)] | None = None
    priority: Annotated[int, Field(strict=True, ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    max_retries: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None
    timeout: Annotated[Duration, Field(gt=0)] | None = None
    run_after: AwareDatetime | None = None
    delay: Annotated[Duration, Field(ge=0)] | None = None
    expires_at: AwareDatetime | None = None
    unique_key: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    unique: Annotated[Duration, Field(gt=0)] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    client_id: Annotated[str, Field(max_length=255)] | None = None
    on_success: Chained | None = None
    draft: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """An input file that comes with a submission: where it lies now (absolute), what people call it, its size in bytes
    (None: look), and how it becomes the task's."""

    path: Path
    name: str
    size: int | None = None
    mode: Handover = Handover.LINK


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a submission comes from; said by the front end, never by the client. `task_id` is the id that it gets if it
    becomes a new task; None: any. So whoever says one can tell a new task from an earlier one."""

    source: Source
    user_id: str = "local"
    inputs: tuple[Arrival, ...] = ()
    drop: Drop | None = None
    parent_id: str | None = None
    batch_id: str | None = None
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """A task that may be created, and its files: `places` are their paths as the task says them."""

    task: Task
    arrivals: tuple[Arrival, ...]

    @property
    def places(self) -> tuple[str, ...]:
        """Where the files must be, relative to the data directory, in the order of `arrivals`."""
        return self.task.input_files


class HandlerSource(Protocol):
    """Where handlers are found, by type."""

    def get(self, type: str) -> Handler:
        """The handler. Raises `UnknownHandler`."""


class Load(Protocol):
    """How much waits already."""

    def pending(self) -> int:
        """How many tasks wait."""

    def pending_of(self, user_id: str) -> int:
        """How many tasks of a user wait."""


class Admission:
    """Makes tasks of submissions. `admit` may be called from any thread; it reads files but changes nothing."""

    def __init__(
        self,
        handlers: HandlerSource,
        limits: LimitsConfig,
        queues: Mapping[str, object],
        layout: Layout,
        load: Load,
    ) -> None:
        self._handlers = handlers
        self._limits = limits
        self._queues = queues
        self._layout = layout
        self._load = load

    def admit(self, submission: Submission, origin: Origin, now: datetime) -> Admitted:
        """The task that a submission would be. Raises `Refused`."""
        handler = self._handlers.get(submission.type)
        self._check(submission, origin, handler, now)
        self._check_load(origin.user_id)
        task_id = origin.task_id or str(uuid.uuid4())
        arrivals = tuple(map(_measured, origin.inputs))
        self._check_files(handler, arrivals)
        task = make(
            id=task_id,
            status=_first_status(submission, arrivals),
            input_files=self._places(origin.user_id, task_id, arrivals),
            created_at=now,
            updated_at=now,
            **_fields(submission, origin, handler, now),
            **_files(arrivals),
        )
        return Admitted(task, arrivals)

    def check_payload(self, task: Task, payload: dict[str, Any]) -> None:
        """A draft's final payload fits its handler. Raises `Refused`."""
        self._handlers.get(task.type).validate(payload)

    def place(self, task: Task, arrival: Arrival) -> str:
        """Where one more input of a draft must be, relative to the data directory. Raises `Refused`."""
        arrival = _measured(arrival)
        self._check_files(self._handlers.get(task.type), (arrival,))
        taken = {path.rpartition("/")[2] for path in task.input_files}
        name = _distinct(safe_name(arrival.name), taken)
        return f"{self._layout.relative(self._layout.upload(task.user_id, task.id))}/{name}"

    def _check(self, submission: Submission, origin: Origin, handler: Handler, now: datetime) -> None:
        problems = []
        if not NAME.fullmatch(origin.user_id):
            problems.append(Problem("/user_id", f"{origin.user_id!r} is not a user id: use a-z, 0-9, - and _"))
        if submission.queue is not None and submission.queue not in self._queues:
            problems.append(Problem("/queue", f"no queue {submission.queue!r}; there are {', '.join(self._queues)}"))
        if submission.run_after is not None and submission.delay is not None:
            problems.append(Problem("/delay", "say either `delay` or `run_after`"))
        if submission.expires_at is not None and submission.expires_at <= now:
            problems.append(Problem("/expires_at", "has passed"))
        if submission.unique_key is not None and submission.unique is not None:
            problems.append(Problem("/unique", "say either `unique` or `unique_key`"))
        if problems:
            raise InvalidSubmission(tuple(problems))
        if not submission.draft:
            handler.validate(submission.payload)

    def _check_load(self, user_id: str) -> None:
        limits = self._limits
        if limits.max_pending is not None and self._load.pending() >= limits.max_pending:
            raise LimitReached(f"{limits.max_pending} tasks wait already; try again later")
        if user_id in limits.exempt_users or limits.max_pending_per_user is None:
            return
        if self._load.pending_of(user_id) >= limits.max_pending_per_user:
            raise LimitReached(f"{limits.max_pending_per_user} of your tasks wait already; try again later")

    def _check_files(self, handler: Handler, arrivals: tuple[Arrival, ...]) -> None:
        if not handler.options.accepts:
            return
        for number, arrival in enumerate(arrivals):
            with arrival.path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if not handler.accepts(arrival.name, head):
                wanted = ", ".join(handler.options.accepts)
                message = f"{arrival.name!r} is not of a type that {handler.name} accepts: {wanted}"
                raise InvalidSubmission((Problem(f"/inputs/{number}", message),))

    def _places(self, user_id: str, task_id: str, arrivals: tuple[Arrival, ...]) -> tuple[str, ...]:
        taken: set[str] = set()
        names = []
        for arrival in arrivals:
            names.append(_distinct(safe_name(arrival.name), taken))
            taken.add(names[-1])
        return tuple(f"uploads/{user_id}/{task_id}/{name}" for name in names)


def safe_name(name: str) -> str:
    """A name for a file on the disk that resembles `name`: no path, no control characters, at most 200 bytes."""
    name = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    name = _UNSAFE.sub("_", name).strip(" .") or "file"
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix.encode()) > 20:
        stem, dot, suffix = name, "", ""
    room = 200 - len((dot + suffix).encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + dot + suffix


def same_content(task: Task, other: Task) -> bool:
    """Whether two submissions with one unique key are the same one, sent twice."""
    return all(
        getattr(task, name) == getattr(other, name)
        for name in ("type", "payload", "queue", "original_filename", "file_size")
    )


def _first_status(submission: Submission, arrivals: tuple[Arrival, ...]) -> Status:
    if not submission.draft:
        return Status.PENDING
    return Status.UPLOADED if arrivals else Status.CREATED


def _fields(submission: Submission, origin: Origin, handler: Handler, now: datetime) -> dict[str, Any]:
    options = handler.options
    queue = submission.queue or options.queue
    timeout = options.timeout_seconds if submission.timeout is None else submission.timeout
    return {
        "type": submission.type,
        "user_id": origin.user_id,
        "client_id": submission.client_id,
        "queue": queue,
        "priority": options.priority if submission.priority is None else submission.priority,
        "payload": submission.payload,
        "metadata": submission.metadata,
        "source": origin.source,
        "max_retries": options.retries if submission.max_retries is None else submission.max_retries,
        "timeout_seconds": timeout,
        "run_after": submission.run_after if submission.delay is None else now + timedelta(seconds=submission.delay),
        "unique_key": _unique_key(submission, queue),
        "unique_until": None if submission.unique is None else now + timedelta(seconds=submission.unique),
        "expires_at": submission.expires_at,
        "on_success": submission.on_success,
        "parent_id": origin.parent_id,
        "batch_id": origin.batch_id,
        "drop": origin.drop,
    }


def _unique_key(submission: Submission, queue: str) -> str | None:
    if submission.unique is None:
        return submission.unique_key
    content = to_json([submission.type, queue, submission.payload])
    return f"content:{hashlib.sha256(content).hexdigest()}"


def _files(arrivals: tuple[Arrival, ...]) -> dict[str, Any]:
    if not arrivals:
        return {}
    return {
        "original_filename": arrivals[0].name[:200],
        "file_size": sum(arrival.size or 0 for arrival in arrivals),
    }


def _measured(arrival: Arrival) -> Arrival:
    if arrival.size is not None:
        return arrival
    try:
        size = arrival.path.stat().st_size
    except OSError as error:
        raise InvalidSubmission((Problem("/inputs", f"{arrival.path}: {error.strerror}"),)) from error
    return Arrival(arrival.path, arrival.name, size, arrival.mode)


def _distinct(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, ""
    number = 2
    while f"{stem}.{number}{dot}{suffix}" in taken:
        number += 1
    return f"{stem}.{number}{dot}{suffix}"
