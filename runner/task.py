"""The task: its model, its legal transitions, and one pure function for each of them.

A task is one accepted request. Every function here takes a task, the instant `now` and the facts, and returns a new
task with `version` one higher, or raises `IllegalTransition` and changes nothing. Nothing here reads a clock, a disk
or a lock.

    created ──► uploaded ──► pending ──► processing ──► completed
       │            │          ▲ │            │
       │            │          │ │            ├──► failed ────┐
       └────────────┴──────────┼─┴────────────┴──► cancelled ─┤  retry (by a person)
                               └──────────────────────────────┘

created and uploaded are drafts: waiting for files, or for configuration; they hold no slot. Waiting for a time or for
a retry is `pending` with `run_after`. Terminal states never revert by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar

import orjson
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from runner.errors import CorruptRecord, Fenced, IllegalTransition


class Status(StrEnum):
    """Where a task stands. `CREATED` and `UPLOADED` are drafts; the last three are terminal."""

    CREATED = "created"
    UPLOADED = "uploaded"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


DRAFT: Final = frozenset({Status.CREATED, Status.UPLOADED})
TERMINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
LIVE: Final = frozenset(Status) - TERMINAL

TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = {
    Status.CREATED: frozenset({Status.CREATED, Status.UPLOADED, Status.PENDING, Status.FAILED, Status.CANCELLED}),
    Status.UPLOADED: frozenset({Status.UPLOADED, Status.PENDING, Status.FAILED, Status.CANCELLED}),
    Status.PENDING: frozenset({Status.PENDING, Status.PROCESSING, Status.FAILED, Status.CANCELLED}),
    Status.PROCESSING: frozenset(
        {Status.PROCESSING, Status.PENDING, Status.COMPLETED, Status.FAILED, Status.CANCELLED}
    ),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset({Status.PENDING}),
    Status.CANCELLED: frozenset({Status.PENDING}),
}


class Outcome(StrEnum):
    """How one attempt ended. `LOST`: its owner died. `INTERRUPTED`: the same for an at-most-once handler,
    or a drain that could not wait. `SNOOZED`: the handler asked to be called later."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    SNOOZED = "snoozed"


COUNTED: Final = frozenset({Outcome.FAILED, Outcome.TIMED_OUT, Outcome.LOST})
"""Outcomes that use up one of the task's `max_retries`."""

MAX_ESTIMATE_SECONDS: Final = 10 * 365 * 86_400.0
"""What would take longer is not estimated."""


class Source(StrEnum):
    """Which door a task came in by. `CHAIN`: the `on_success` of its parent, or a handler's `ctx.submit`."""

    INBOX = "inbox"
    HTTP = "http"
    GRPC = "grpc"
    CLI = "cli"
    SCHEDULE = "schedule"
    CHAIN = "chain"


_STRICT: Final = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TaskError:
    """Why an attempt or a task failed. `code` is for machines, `message` for people."""

    code: str
    message: str
    retryable: bool = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Progress:
    """How far an attempt is: `percentage` 0 to 100, a named `stage`, a `message` for people, `metadata` for others."""

    percentage: float = 0.0
    stage: str = ""
    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    updated_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Attempt:
    """One run of a task's handler, numbered from 1. `ended_at`, `outcome` and `error` are None while it runs."""

    number: int
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    error: TaskError | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FileState:
    """One item of work inside a task, as a handler reports it."""

    path: str
    status: str = "pending"
    operate: str = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Drop:
    """The file that an inbox task was made from, as it was when it was taken.

    `path` is where it lay, relative to the data directory, or absolute for a watched folder outside it; `raw` holds its
    bytes percent-encoded (RFC 3986) where they are not UTF-8, and `path` is then only for people. `name` is the path
    below the handler's folder, as the outbox keeps it. `device`, `inode`, `size` (bytes) and `mtime_ns` identify it, so
    that recovery can tell it from a newer file of the same name. `sidecar` is the path of its parameter file, if any,
    and `outbox` that of the folder where its result goes.
    """

    path: str
    raw: str | None = None
    name: str
    device: int = 0
    inode: int = 0
    size: int = 0
    mtime_ns: int = 0
    sidecar: str | None = None
    outbox: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Chained:
    """What to submit when this task completes; its outputs become the child's inputs."""

    type: str
    payload: dict[str, Any] = field(default_factory=dict)
    on_success: Chained | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Task:
    """One accepted request, one JSON file. Instants are aware UTC; paths are relative to the data directory."""

    id: str
    type: str
    user_id: str
    client_id: str | None = None
    queue: str = "default"
    priority: int = 0
    status: Status
    payload: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    source: Source = Source.HTTP
    original_filename: str | None = None
    file_size: int | None = None
    input_files: tuple[str, ...] = ()
    output_files: tuple[str, ...] = ()
    result: Any = None
    progress: Progress | None = None
    files: tuple[FileState, ...] = ()
    attempt: int = 0
    max_retries: int = 0
    timeout_seconds: float | None = None
    run_after: datetime | None = None
    unique_key: str | None = None
    unique_until: datetime | None = None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    expires_at: datetime | None = None
    estimated_completion_at: datetime | None = None
    error: TaskError | None = None
    attempts: tuple[Attempt, ...] = ()
    on_success: Chained | None = None
    parent_id: str | None = None
    batch_id: str | None = None
    drop: Drop | None = None
    version: int = 1

    @property
    def is_terminal(self) -> bool:
        """Whether the task has ended; only `retry` leads out of failed and cancelled."""
        return self.status in TERMINAL

    @property
    def retries_used(self) -> int:
        """How many of `max_retries` are gone: attempts that failed, timed out or were lost."""
        return sum(attempt.outcome in COUNTED for attempt in self.attempts)


FIELDS: Final = tuple(each.name for each in fields(Task))
_DEFAULTS: Final = {each.name: None if each.default is MISSING else each.default for each in fields(Task)}
"""In the order of the class, the required ones too: the JSON has this order; recovery looks for `id` at its front."""
_NOT_ENDED: Final = {"number": 0, "started_at": None, "ended_at": None, "outcome": None, "error": None}
_COMPLETED: Final = Progress(stage="completed")

R = TypeVar("R", Task, Attempt, Progress, Drop)


def make(values: dict[str, Any]) -> Task:
    """A task from values that have been checked: quicker than `Task(...)`, which checks them again. `payload`,
    `metadata` and whatever has no default must be given."""
    return _build(Task, _DEFAULTS | values)


def make_drop(**values: Any) -> Drop:
    """A drop from values that have been checked; each must be given."""
    return _build(Drop, values)


def _build(kind: type[R], values: dict[str, Any]) -> R:
    """A record of values that need no check: for what runs several times in the life of every task."""
    record = _new(kind)
    record.__dict__.update(values)
    return record


def _copy(record: R, changes: dict[str, Any]) -> R:
    """What `dataclasses.replace` does, without checking anything again."""
    return _build(record.__class__, record.__dict__ | changes)


_new: Final = object.__new__
_schema: Final[TypeAdapter[Task]] = TypeAdapter(Task)
_to_json: Final = _schema.serializer.to_json
_from_json: Final = _schema.validator.validate_json


def to_json(task: Task) -> bytes:
    """The task as one line of UTF-8 JSON, every field present."""
    try:
        # As pydantic writes it, at less than half of the cost.
        return orjson.dumps(task.__dict__, None, orjson.OPT_UTC_Z)
    except TypeError:
        # A payload may hold what only pydantic knows how to write: integers of any size, sets, paths.
        return _to_json(task)


def to_compact_json(task: Task) -> bytes:
    """The same without the fields that have their default: a third of the bytes, and as quick to read."""
    return _to_json(task, exclude_defaults=True)


def to_pretty_json(task: Task) -> bytes:
    """The same for people: indented, with a final newline."""
    return _to_json(task, indent=2) + b"\n"


def to_values(task: Task, names: set[str]) -> dict[str, Any]:
    """These fields of a task as plain JSON values."""
    values: dict[str, Any] = _schema.dump_python(task, mode="json", include=names)
    return values


def from_values(values: dict[str, Any]) -> Task:
    """The task of these fields, checked. Raises `ValueError`."""
    return _schema.validate_python(values)


def from_json(data: bytes) -> Task:
    """The task in `data`. Raises `CorruptRecord`; a damaged file is never read as an empty task."""
    try:
        task: Task = _from_json(data)
    except ValueError as error:
        raise CorruptRecord(f"not a task: {str(error).splitlines()[0]}") from error
    return task


def _change(task: Task, now: datetime, **changes: Any) -> Task:
    return _renew(task, now, changes)


def _renew(task: Task, now: datetime, changes: dict[str, Any]) -> Task:
    # A clock that was set back must not make a task look old: what ended long ago is removed.
    latest = max(now, task.updated_at)
    changes["version"] = task.version + 1
    changes["updated_at"] = latest
    if changes.get("completed_at") is not None:
        changes["completed_at"] = latest
    return _copy(task, changes)


def _move(task: Task, to: Status, change: str, now: datetime, **changes: Any) -> Task:
    if to not in TRANSITIONS[task.status]:
        raise IllegalTransition(task.id, task.status, change)
    changes["status"] = to
    return _renew(task, now, changes)


def receive_input(task: Task, path: str, filename: str, size: int, now: datetime) -> Task:
    """A draft got one more input file; it now waits for configuration, or for more files."""
    if task.status not in DRAFT:
        raise IllegalTransition(task.id, task.status, "take another input file")
    return _move(
        task,
        Status.UPLOADED,
        "take another input file",
        now,
        input_files=(*(known for known in task.input_files if known != path), path),
        original_filename=task.original_filename or filename,
        file_size=(task.file_size or 0) + size,
    )


def replace_inputs(task: Task, path: str, filename: str, size: int, now: datetime) -> Task:
    """A draft got another input file in the place of all that it had."""
    fresh = _copy(task, {"input_files": (), "original_filename": None, "file_size": None})
    return receive_input(fresh, path, filename, size, now)


def drop_input(task: Task, path: str, size: int, now: datetime) -> Task:
    """A draft loses one of its input files. Without any it stays what it is, and cannot be started."""
    if task.status not in DRAFT or path not in task.input_files:
        raise IllegalTransition(task.id, task.status, "lose that input file")
    left = tuple(known for known in task.input_files if known != path)
    return _change(
        task,
        now,
        input_files=left,
        original_filename=task.original_filename if left[:1] == task.input_files[:1] else _name_of(left),
        file_size=max(0, (task.file_size or 0) - size),
    )


def revise(task: Task, metadata: dict[str, str], now: datetime) -> Task:
    """A draft gets other notes. One that has them stays as it is."""
    if task.status not in DRAFT:
        raise IllegalTransition(task.id, task.status, "be revised")
    return task if task.metadata == metadata else _change(task, now, metadata=metadata)


def submit(task: Task, payload: dict[str, Any], now: datetime) -> Task:
    """A draft is complete: it joins the queue with its final payload."""
    if task.status not in DRAFT:
        raise IllegalTransition(task.id, task.status, "be started again")
    return _move(task, Status.PENDING, "be started", now, payload=payload)


def start(task: Task, now: datetime) -> Task:
    """The task got a slot: its next attempt begins."""
    if task.status is not Status.PENDING:
        raise IllegalTransition(task.id, task.status, "start an attempt")
    number = task.attempt + 1
    begun = _build(Attempt, _NOT_ENDED | {"number": number, "started_at": now})
    return _move(
        task,
        Status.PROCESSING,
        "start",
        now,
        attempt=number,
        attempts=(*task.attempts, begun),
        started_at=task.started_at or now,
        run_after=None,
        progress=None,
        error=None,
    )


def complete(
    task: Task, attempt: int, now: datetime, *, result: Any = None, output_files: tuple[str, ...] = ()
) -> Task:
    """The current attempt returned. Raises `Fenced` if `attempt` is no longer the current one."""
    _check_current(task, attempt)
    progress = _copy(task.progress or _COMPLETED, {"percentage": 100.0, "updated_at": now})
    return _move(
        task,
        Status.COMPLETED,
        "complete",
        now,
        result=result,
        output_files=output_files,
        progress=progress,
        attempts=_ended(task, Outcome.COMPLETED, now),
        completed_at=now,
        estimated_completion_at=None,
    )


def fail(task: Task, attempt: int, now: datetime, *, error: TaskError, outcome: Outcome = Outcome.FAILED) -> Task:
    """The current attempt failed and no further one follows: the task is a dead letter."""
    _check_current(task, attempt)
    return _move(
        task,
        Status.FAILED,
        "fail",
        now,
        error=error,
        attempts=_ended(task, outcome, now, error),
        completed_at=now,
        estimated_completion_at=None,
    )


def requeue(
    task: Task,
    attempt: int,
    now: datetime,
    *,
    outcome: Outcome,
    run_after: datetime | None = None,
    error: TaskError | None = None,
) -> Task:
    """The current attempt ended with `outcome`, and another one follows, not before `run_after`."""
    _check_current(task, attempt)
    return _move(
        task,
        Status.PENDING,
        "be requeued",
        now,
        run_after=run_after,
        error=error,
        attempts=_ended(task, outcome, now, error),
        estimated_completion_at=None,
    )


def cancel(task: Task, now: datetime, *, reason: str = "cancelled") -> Task:
    """Nobody wants the task any more. A running attempt is fenced by this; whoever runs it must be told."""
    attempts = _ended(task, Outcome.CANCELLED, now) if task.status is Status.PROCESSING else task.attempts
    error = TaskError(code="cancelled", message=reason, retryable=False)
    return _move(
        task,
        Status.CANCELLED,
        "be cancelled",
        now,
        error=error,
        attempts=attempts,
        completed_at=now,
        run_after=None,
        estimated_completion_at=None,
    )


def refuse(task: Task, now: datetime, *, error: TaskError) -> Task:
    """A waiting task can never run (expired, its input is gone): it fails without an attempt."""
    if task.status not in DRAFT and task.status is not Status.PENDING:
        raise IllegalTransition(task.id, task.status, "fail without an attempt")
    return _move(task, Status.FAILED, "fail", now, error=error, completed_at=now, run_after=None)


def retry(task: Task, now: datetime, *, payload: dict[str, Any] | None = None) -> Task:
    """A person asks for a further attempt of a failed or cancelled task, with another payload if there is one; that it
    had expired counts no more."""
    if task.status not in (Status.FAILED, Status.CANCELLED):
        raise IllegalTransition(task.id, task.status, "be retried")
    has_expired = task.expires_at is not None and task.expires_at <= now
    return _move(
        task,
        Status.PENDING,
        "be retried",
        now,
        payload=task.payload if payload is None else payload,
        error=None,
        completed_at=None,
        run_after=None,
        progress=None,
        expires_at=None if has_expired else task.expires_at,
    )


def report(
    task: Task, attempt: int, now: datetime, *, progress: Progress | None, files: tuple[FileState, ...] | None = None
) -> Task:
    """The current attempt says how far it is. The end is estimated linearly from its start."""
    _check_current(task, attempt)
    return _change(
        task,
        now,
        progress=progress or task.progress,
        files=task.files if files is None else files,
        estimated_completion_at=estimate(task, progress, now) if progress else task.estimated_completion_at,
    )


def estimate(task: Task, progress: Progress | None, now: datetime) -> datetime | None:
    """When the current attempt will end if it goes on as it did; None while nothing can be said."""
    if progress is None or not 0 < progress.percentage < 100 or not task.attempts:
        return None
    elapsed = (now - task.attempts[-1].started_at).total_seconds()
    remaining = elapsed * (100 - progress.percentage) / progress.percentage
    # Negative when the clock was set back meanwhile.
    return now + timedelta(seconds=remaining) if 0 <= remaining <= MAX_ESTIMATE_SECONDS else None


def show_progress(task: Task, progress: Progress) -> Task:
    """The task as readers see it while it runs: how far it is, and when it will end. Not a new version."""
    ends = estimate(task, progress, progress.updated_at or task.updated_at)
    return _copy(task, {"progress": progress, "estimated_completion_at": ends})


def with_files(task: Task, files: tuple[FileState, ...]) -> Task:
    """The task with these items of work inside. Not a new version."""
    return _copy(task, {"files": files})


def _name_of(paths: tuple[str, ...]) -> str | None:
    return paths[0].rpartition("/")[2] if paths else None


def _check_current(task: Task, attempt: int) -> None:
    if task.status is not Status.PROCESSING or task.attempt != attempt:
        raise Fenced(task.id, task.status, f"take a result from attempt {attempt}")


def _ended(task: Task, outcome: Outcome, now: datetime, error: TaskError | None = None) -> tuple[Attempt, ...]:
    """The attempts with the last one closed. A run of snoozes is kept as its latest, or a poller grows for ever."""
    if not task.attempts:
        return ()  # only in a file that somebody has edited
    last = _copy(task.attempts[-1], {"ended_at": now, "outcome": outcome, "error": error})
    earlier = task.attempts[:-1]
    if outcome is Outcome.SNOOZED and earlier and earlier[-1].outcome is Outcome.SNOOZED:
        earlier = earlier[:-1]
    return (*earlier, last)
