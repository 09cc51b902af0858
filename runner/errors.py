"""Every error that the runner raises on purpose.

    RunnerError
    ├── ConfigError              a setting is unknown or wrong; exit 2
    ├── Refused                  admission says no; nothing was stored
    │   ├── UnknownHandler       no such handler, or it cannot be loaded
    │   ├── InvalidSubmission    a field is wrong; `problems` says which
    │   │   └── TypeMismatch     a file is not of a type that the handler accepts
    │   ├── LimitReached         too many tasks wait; try again later
    │   │   └── QuotaExceeded    the user's files take up all that they may
    │   ├── KeyConflict          the unique key belongs to another submission
    │   └── Duplicate            the same was submitted not long ago, and is to be done once
    ├── NotFound                 no such task, user or file
    ├── VersionMismatch          the task has changed since its reader looked
    ├── IllegalTransition        the task's status does not allow that
    │   └── Fenced               the attempt is no longer the current one
    ├── Unavailable              the runner cannot do it now
    │   ├── Degraded             the disk failed; reads go on
    │   ├── DiskFull             less space than the floor; heals by itself
    │   └── ShuttingDown         drain has begun
    ├── ApiError                 a runner refused what a client asked of it
    ├── NotReached               no runner answers a client, or it went away
    ├── OutboundError            a call to another server came to nothing
    │   ├── UrlNotAllowed        that server must not be called
    │   ├── AnswerTooLarge       it sends more than it may
    │   └── Unreachable          it cannot be reached, is too slow, or breaks off
    ├── OwnerExists              another process owns the data directory
    ├── UnsafeAccess             others can read or write what is the runner's alone; exit 77
    ├── FormatError              data/ has a format that this version cannot read
    └── CorruptRecord            bytes that are not the record that they should be

Facts are attributes; a front end maps a class to its own code in one table.
What handlers raise (`Retry`, `Snooze`, `Fail`, `Cancelled`) is in `context.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class RunnerError(Exception):
    """Base of everything in this module. `code` is stable and meant for machines."""

    code = "internal_error"


class ConfigError(RunnerError):
    """A configuration that cannot be used. `problems` has one line for each fault found."""

    code = "invalid_config"

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *problems)))
        self.problems = problems


class Refused(RunnerError):
    """A submission that did not become a task; nothing was stored."""

    code = "refused"


class UnknownHandler(Refused):
    """No handler serves that type; `reason` says whether it is absent, broken or lacks an extra."""

    code = "unknown_handler"

    def __init__(self, type: str, reason: str) -> None:
        super().__init__(reason)
        self.type = type


@dataclass(frozen=True)
class Problem:
    """One fault in a submission. `pointer` is a JSON pointer (RFC 6901) into it."""

    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer}: {self.message}" if self.pointer else self.message


class InvalidSubmission(Refused):
    """One or more fields of a submission are wrong."""

    code = "validation_error"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class TypeMismatch(InvalidSubmission):
    """A file is, by its content or its name, of no type that the handler accepts."""

    code = "type_mismatch"


class LimitReached(Refused):
    """Too many tasks are waiting. `retry_after_seconds` is a guess at when to ask again."""

    code = "queue_full"

    def __init__(self, message: str, retry_after_seconds: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QuotaExceeded(LimitReached):
    """A user's files take up all the bytes that they may; some of their tasks have to go first."""

    code = "quota_exceeded"

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_seconds=60.0)


class KeyConflict(Refused):
    """The unique key is taken by a task made from a different submission."""

    code = "idempotency_mismatch"

    def __init__(self, key: str, task_id: str) -> None:
        super().__init__(f"the key {key!r} was used for task {task_id} with other content; use another key")
        self.key = key
        self.task_id = task_id


class Duplicate(Refused):
    """The same type, payload and queue were submitted within the submission's `unique` length of time."""

    code = "task_already_exists"

    def __init__(self, task_id: str) -> None:
        super().__init__(f"the same submission is task {task_id}")
        self.task_id = task_id


class NotFound(RunnerError):
    """There is no such thing, or it belongs to somebody else."""

    code = "not_found"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} {name!r}")
        self.kind = kind
        self.name = name


class VersionMismatch(RunnerError):
    """The change was meant for another version of the task; nothing was changed. `version` is the one that it has."""

    code = "version_mismatch"

    def __init__(self, task_id: str, version: int) -> None:
        super().__init__(f"task {task_id} has version {version} now; look at it again")
        self.task_id = task_id
        self.version = version


class IllegalTransition(RunnerError):
    """The task is in a status from which this change is not allowed; nothing was changed."""

    code = "illegal_transition"

    def __init__(self, task_id: str, status: str, change: str) -> None:
        super().__init__(f"task {task_id} is {status}: it cannot {change}")
        self.task_id = task_id
        self.status = status
        self.change = change


class Fenced(IllegalTransition):
    """A result arrived from an attempt that is no longer current; it was discarded."""

    code = "fenced"


class Unavailable(RunnerError):
    """Not now. `retry_after_seconds` is a guess at when to ask again."""

    code = "unavailable"
    retry_after_seconds = 5.0


class Degraded(Unavailable):
    """The disk returned an error; the runner answers reads only until it is restarted."""

    code = "storage_degraded"


class DiskFull(Unavailable):
    """Less space or fewer inodes than the floor are free; intake resumes by itself."""

    code = "disk_full"


class ShuttingDown(Unavailable):
    """The runner drains: it finishes what runs and accepts nothing new."""

    code = "shutting_down"


class ApiError(RunnerError):
    """What a client asked for was refused. `status` is HTTP's, `document` the problem that the answer holds."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(str(document.get("detail") or f"HTTP {status}"))
        self.status = status
        self.code = str(document.get("code") or "unknown")
        self.document = document


class NotReached(RunnerError):
    """No runner answers, or it went away in the middle."""

    code = "not_reached"


class OutboundError(RunnerError):
    """A call to another server came to nothing."""

    code = "outbound_error"


class UrlNotAllowed(OutboundError):
    """That server must not be called: it is not on the list, or it is in a network that is not public."""

    code = "url_not_allowed"


class AnswerTooLarge(OutboundError):
    """The server sends more than an answer may hold; the rest was not read."""

    code = "answer_too_large"


class Unreachable(OutboundError):
    """The server cannot be reached, is too slow, or breaks off; another time it may answer."""

    code = "unreachable"


class OwnerExists(RunnerError):
    """Another process owns the data directory. `pid` and `since` name it where known."""

    code = "owner_exists"

    def __init__(self, message: str, pid: int | None = None, since: str | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        self.since = since


class UnsafeAccess(RunnerError):
    """A file or folder of the runner belongs to somebody else, or lets others in."""

    code = "unsafe_access"


class FormatError(RunnerError):
    """The data directory was written by another version."""

    code = "unknown_format"


class CorruptRecord(RunnerError):
    """A file or journal record that does not hold what its name says."""

    code = "corrupt_record"
