"""The one door in: the checks that make a submission a task. A refusal stores nothing."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Protocol

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import to_json

from runner.config import LimitsConfig
from runner.errors import InvalidSubmission, LimitReached, Problem, RunnerError, TypeMismatch, UnknownHandler
from runner.handlers import Handler
from runner.handlers.media import HEAD_BYTES
from runner.ids import Ids
from runner.intake.quota import Quota
from runner.store import Handover, Layout
from runner.task import Chained, Drop, Source, Status, Task, make
from runner.units import Duration

NAME: Final = re.compile(r"[0-9a-z][0-9a-z_-]{0,63}")
"""What a task's or user's id is made of: lower case only, because some filesystems do not tell cases apart."""
MAX_PRIORITY: Final = 1_000_000
MAX_WAIT_SECONDS: Final = 100 * 365 * 86_400.0
"""Nobody can ask for a longer one: its end must still be a date."""
MAX_NAME_BYTES: Final = 200
_SAFE: Final = re.compile(r"[0-9A-Za-z_-]([0-9A-Za-z_. -]{0,98}[0-9A-Za-z_-])?")
"""Names of which `safe_name` makes nothing else."""
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f/\\:*?\"<>|\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def _in_utc(instant: datetime) -> datetime:
    try:
        return instant.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be a date between the years 1 and 9999, in UTC too") from error


def _check_text(text: str) -> str:
    text.encode()  # half of a surrogate pair can be kept nowhere
    return text


Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Label = Annotated[str, Field(max_length=255), AfterValidator(_check_text)]
Wait = Annotated[Duration, Field(le=MAX_WAIT_SECONDS)]


class Submission(BaseModel):
    """What a source asks for. Everything but `type` has a default: the handler's, or none.

    `delay` and `run_after` say when it may start at the earliest, `expires_at` until when it must have started.
    `unique_key`: the same key and the same content give the same task; other content is a conflict. `unique`: no second
    task of the same type, payload, queue and files (by name and size) for that long. `draft`: it waits for files, and
    for `start`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    type: str
    payload: dict[str, Any] = Field(default_factory=dict)
    queue: Annotated[str, Field(max_length=64)] | None = None
    priority: Annotated[int, Field(strict=True, ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    max_retries: Annotated[int, Field(strict=True, ge=0, le=1000)] | None = None
    timeout: Annotated[Duration, Field(gt=0)] | None = None
    run_after: Instant | None = None
    delay: Wait | None = None
    expires_at: Instant | None = None
    unique_key: Annotated[Label, Field(min_length=1)] | None = None
    unique: Annotated[Wait, Field(gt=0)] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    client_id: Label | None = None
    on_success: Chained | None = None
    draft: bool = False


class Arrival(NamedTuple):
    """An input file that comes with a submission: where it lies now (absolute), what people call it, its size in bytes
    (None: look), and how it becomes the task's."""

    path: Path | str
    name: str
    size: int | None = None
    mode: Handover = Handover.LINK


class Origin(NamedTuple):
    """Where a submission comes from; said by the front end, never by the client. `task_id` is the id that it gets if it
    becomes a new task; None: any. So whoever says one can tell a new task from an earlier one."""

    source: Source
    user_id: str = "local"
    inputs: tuple[Arrival, ...] = ()
    drop: Drop | None = None
    parent_id: str | None = None
    batch_id: str | None = None
    task_id: str | None = None


class Admitted(NamedTuple):
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
        check_metadata: Callable[[Mapping[str, str]], Iterable[Problem]] = lambda metadata: (),
        quota: Quota | None = None,
    ) -> None:
        self._handlers = handlers
        self._limits = limits
        self._queues = queues
        self._layout = layout
        self._load = load
        self._check_metadata = check_metadata
        self._quota = quota
        self._ids = Ids()

    def change(self, limits: LimitsConfig, queues: Mapping[str, object]) -> None:
        """Other limits and queues from now on."""
        self._limits, self._queues = limits, queues

    def admit(self, submission: Submission, origin: Origin, now: datetime, ahead: int = 0) -> Admitted:
        """The task that a submission would be; `ahead` others of its user are about to come in with it, before it.
        Raises `Refused`."""
        handler = self._handlers.get(submission.type)
        self._check(submission, origin, handler, now)
        self._check_load(origin.user_id, ahead)
        self._check_quota(origin)
        return self._make(submission, origin, handler, now)

    def admit_alike(
        self, submission: Submission, origins: Sequence[Origin], now: datetime, ahead: Counter[str]
    ) -> Iterator[Admitted | RunnerError]:
        """What `admit` says of one submission of one user that comes with each of many files, each on its own. `ahead`:
        how many others of each user are about to come in before; those that are admitted are added."""
        user_id = origins[0].user_id
        try:
            handler = self._handlers.get(submission.type)
            self._check(submission, origins[0], handler, now)
        except RunnerError as error:
            yield from [error] * len(origins)
            return
        shared, room = _fields(submission, origins[0], handler, now), self._room(user_id, ahead)
        has_quota = self._has_quota(user_id)
        for origin in origins:
            try:
                if room <= 0:
                    self._check_load(user_id, ahead[user_id], ahead.total() - ahead[user_id])
                if has_quota:
                    self._check_quota(origin)
                own = {**shared, "drop": origin.drop}
                if submission.unique is not None:
                    own["unique_key"] = _unique_key(submission, origin, shared["queue"])
                admitted = self._fill(own, submission, origin, handler)
            except RunnerError as error:
                yield error
            else:
                ahead[user_id] += 1
                room -= 1
                yield admitted

    def admit_next(self, submission: Submission, origin: Origin, now: datetime) -> Admitted:
        """The same for what takes the place of a task that ends: it may come in however many wait."""
        handler = self._handlers.get(submission.type)
        self._check(submission, origin, handler, now)
        return self._make(submission, origin, handler, now)

    def check_start(self, task: Task, payload: dict[str, Any]) -> None:
        """A draft with this as its final payload may join the queue. Raises `Refused`."""
        handler = self._handlers.get(task.type)
        handler.validate(payload)
        if handler.options.accepts and not task.input_files:
            raise InvalidSubmission((_missing_file(handler),))
        self._check_load(task.user_id, 0)

    def place(self, task: Task, arrival: Arrival) -> str:
        """Where one more input of a draft must be, relative to the data directory. Raises `Refused`."""
        arrival = _measured(arrival)
        check_files(self._handlers.get(task.type), (arrival,))
        taken = {path.rpartition("/")[2].casefold() for path in task.input_files}
        name = _distinct(safe_name(arrival.name), taken)
        return f"{self._layout.relative(self._layout.upload(task.user_id, task.id))}/{name}"

    def _make(self, submission: Submission, origin: Origin, handler: Handler, now: datetime) -> Admitted:
        return self._fill(_fields(submission, origin, handler, now), submission, origin, handler)

    def _fill(self, fields: dict[str, Any], submission: Submission, origin: Origin, handler: Handler) -> Admitted:
        """The task with its id and files; `fields` has the rest."""
        task_id = origin.task_id or self._ids.next()
        arrivals = tuple(map(_measured, origin.inputs))
        if arrivals or not submission.draft:
            check_files(handler, arrivals)
        fields["id"], fields["status"] = task_id, _first_status(submission, arrivals)
        if arrivals:
            fields["input_files"] = _places(origin.user_id, task_id, arrivals)
            fields["original_filename"] = _shortened(arrivals[0].name)
            fields["file_size"] = sum([arrival.size or 0 for arrival in arrivals])
        return Admitted(make(fields), arrivals)

    def _check(self, submission: Submission, origin: Origin, handler: Handler, now: datetime) -> None:
        problems: list[Problem] = []
        if not NAME.fullmatch(origin.user_id):
            problems.append(Problem("/user_id", f"{origin.user_id!r} is not a user id: use a-z, 0-9, - and _"))
        if submission.queue is not None and not self._is_queue(submission.queue, handler):
            problems.append(Problem("/queue", f"no queue {submission.queue!r}; there are {', '.join(self._queues)}"))
        if submission.unique_key is not None and submission.unique is not None:
            problems.append(Problem("/unique", "say either `unique` or `unique_key`"))
        if submission.run_after is not None or submission.expires_at is not None:
            problems += _problems_of_time(submission, now)
        if submission.metadata:
            problems += self._check_metadata(submission.metadata)
        if submission.on_success is not None:
            problems += self._problems_of_chain(submission.on_success, "/on_success")
        if problems:
            raise InvalidSubmission(tuple(problems))
        if not submission.draft:
            handler.validate(submission.payload)

    def _is_queue(self, queue: str, handler: Handler) -> bool:
        """Whether it is one of the configuration, or the handler's own."""
        return queue in self._queues or queue == handler.options.queue

    def _problems_of_chain(self, chained: Chained | None, pointer: str) -> Iterator[Problem]:
        """What can be known to be wrong before the files of the later tasks are."""
        while chained is not None:
            try:
                self._handlers.get(chained.type).validate(chained.payload)
            except UnknownHandler as error:
                yield Problem(f"{pointer}/type", str(error))
            except InvalidSubmission as error:
                yield from (Problem(f"{pointer}{problem.pointer}", problem.message) for problem in error.problems)
            chained, pointer = chained.on_success, f"{pointer}/on_success"

    def _has_quota(self, user_id: str) -> bool:
        return self._quota is not None and self._quota.limit_of(user_id) is not None

    def _check_quota(self, origin: Origin) -> None:
        if self._quota is not None:
            self._quota.check(origin.user_id, sum(arrival.size or 0 for arrival in origin.inputs))

    def _room(self, user_id: str, ahead: Counter[str]) -> float:
        """How many more tasks of a user may wait now; nobody needs to ask `_check_load` for fewer."""
        limits, load, rooms = self._limits, self._load, [float("inf")]
        if limits.max_pending is not None:
            rooms.append(limits.max_pending - load.pending() - ahead.total())
        if limits.max_pending_per_user is not None:
            rooms.append(limits.max_pending_per_user - load.pending_of(user_id) - ahead[user_id])
        return min(rooms)

    def _check_load(self, user_id: str, ahead: int, ahead_of_others: int = 0) -> None:
        limits = self._limits
        if limits.max_pending is not None and self._load.pending() + ahead + ahead_of_others >= limits.max_pending:
            raise LimitReached(f"{limits.max_pending} tasks wait already; try again later")
        if user_id in limits.exempt_users or limits.max_pending_per_user is None:
            return
        if self._load.pending_of(user_id) + ahead >= limits.max_pending_per_user:
            raise LimitReached(f"{limits.max_pending_per_user} of your tasks wait already; try again later")


def safe_name(name: str) -> str:
    """A name for a file on the disk that resembles `name`: no path, no control characters, at most 200 bytes."""
    if _SAFE.fullmatch(name):
        return name
    name = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    name = _UNSAFE.sub("_", name).strip(" .") or "file"
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix.encode()) > 20:
        stem, dot, suffix = name, "", ""
    room = MAX_NAME_BYTES - len((dot + suffix).encode())
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
        "created_at": now,
        "updated_at": now,
        "client_id": submission.client_id,
        "queue": queue,
        "priority": options.priority if submission.priority is None else submission.priority,
        "payload": submission.payload,
        "metadata": submission.metadata,
        "source": origin.source,
        "max_retries": options.retries if submission.max_retries is None else submission.max_retries,
        "timeout_seconds": timeout,
        "run_after": submission.run_after if submission.delay is None else now + timedelta(seconds=submission.delay),
        "unique_key": _unique_key(submission, origin, queue),
        "unique_until": None if submission.unique is None else now + timedelta(seconds=submission.unique),
        "expires_at": submission.expires_at,
        "on_success": submission.on_success,
        "parent_id": origin.parent_id,
        "batch_id": origin.batch_id,
        "drop": origin.drop,
    }


def _unique_key(submission: Submission, origin: Origin, queue: str) -> str | None:
    if submission.unique is None:
        return submission.unique_key
    files = [(arrival.name.encode("utf-8", "replace"), arrival.size) for arrival in map(_measured, origin.inputs)]
    content = to_json([submission.type, queue, submission.payload, *files])
    return f"content:{hashlib.sha256(content).hexdigest()}"


def _problems_of_time(submission: Submission, now: datetime) -> Iterator[Problem]:
    if submission.run_after is not None and submission.delay is not None:
        yield Problem("/delay", "say either `delay` or `run_after`")
    if submission.expires_at is not None and submission.expires_at <= now:
        yield Problem("/expires_at", "has passed")
    elif submission.expires_at is not None and submission.expires_at <= _first_start(submission, now):
        yield Problem("/expires_at", "is before the task may start")


def _first_start(submission: Submission, now: datetime) -> datetime:
    return submission.run_after or now + timedelta(seconds=submission.delay or 0)


def check_files(handler: Handler, arrivals: tuple[Arrival, ...]) -> None:
    """These are files that the handler takes. Raises `Refused`."""
    if not handler.options.accepts:
        return
    if not arrivals:
        raise InvalidSubmission((_missing_file(handler),))
    for number, arrival in enumerate(arrivals):
        if not handler.accepts(arrival.name, _head(arrival)):
            wanted = ", ".join(handler.options.accepts)
            message = f"{arrival.name!r} is not of a type that {handler.name} accepts: {wanted}"
            raise TypeMismatch((Problem(f"/inputs/{number}", message),))


def _missing_file(handler: Handler) -> Problem:
    return Problem("/inputs", f"{handler.name} needs a file: {', '.join(handler.options.accepts)}")


def _head(arrival: Arrival) -> bytes:
    try:
        with open(arrival.path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise _unreadable(arrival, error.strerror) from error


def _shortened(name: str) -> str:
    return (name if name.isascii() else name.encode("utf-8", "replace").decode())[:200]


def _measured(arrival: Arrival) -> Arrival:
    if arrival.size is not None:
        return arrival
    try:
        status = os.stat(arrival.path)
    except OSError as error:
        raise _unreadable(arrival, error.strerror) from error
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(arrival, "it is not a file")
    return Arrival(arrival.path, arrival.name, status.st_size, arrival.mode)


def _unreadable(arrival: Arrival, reason: str | None) -> InvalidSubmission:
    return InvalidSubmission((Problem("/inputs", f"{str(arrival.path)!r} cannot be read: {reason}"),))


def _places(user_id: str, task_id: str, arrivals: tuple[Arrival, ...]) -> tuple[str, ...]:
    if len(arrivals) == 1:
        return (f"uploads/{user_id}/{task_id}/{safe_name(arrivals[0].name)}",)
    taken: set[str] = set()
    names = []
    for arrival in arrivals:
        names.append(_distinct(safe_name(arrival.name), taken))
        taken.add(names[-1].casefold())
    return tuple(f"uploads/{user_id}/{task_id}/{name}" for name in names)


def _distinct(name: str, taken: set[str]) -> str:
    """The name, with a number if needed: `taken` are casefolded, because some filesystems do not tell cases apart."""
    stem, dot, suffix = name.rpartition(".")
    if not dot:
        stem, suffix = name, ""
    number, candidate = 1, name
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{stem}.{number}{dot}{suffix}"
    return candidate
