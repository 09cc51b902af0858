"""What Video-In-Chinese's two front ends do, gRPC and its gateway: hand a film over, and ask how far it is."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from runner.config import Config
from runner.errors import DiskFull, InvalidSubmission, LimitReached, NotFound, Refused, RunnerError, Unavailable
from runner.intake.admission import Arrival, Origin, Submission
from runner.service import Service
from runner.store import Handover
from runner.task import Source, Status, Task
from runner.web.door import Caller
from runner.web.parameters import task_id_in
from runner.web.submissions import Roots

ORIGINAL_NAME: Final = "original.mp4"
RESULT_NAME: Final = "result.mp4"
STATUSES: Final[Mapping[Status, str]] = MappingProxyType(
    {
        Status.PROCESSING: "PROCESSING",
        Status.COMPLETED: "COMPLETED",
        Status.FAILED: "FAILED",
        Status.CANCELLED: "FAILED",
    }
)
"""What it calls a status; whatever waits is PENDING."""


class Cause(StrEnum):
    """Why there is no task: in the request, in this machine's configuration, or in its state."""

    INVALID = "invalid"
    UNPREPARED = "unprepared"
    BUSY = "busy"
    FULL = "full"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class NotCreated(RunnerError):
    """A film did not become a task; its file lies where it lay, unless `cause` is `INTERNAL`."""

    code = "not_created"

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a task is, in its words. `result_path` only of one that is COMPLETED, `error` of one that has FAILED."""

    task_id: str
    status: str
    result_path: str
    error: str
    created_at: str
    updated_at: str


class VideoTasks:
    """The two verbs. From any thread; they block."""

    def __init__(self, service: Service, config: Config) -> None:
        self._service = service
        self._type = config.dialects.video_in_chinese.type
        self._roots = Roots.resolved(config.http.allowed_roots, Path(config.data_dir))

    def create(self, temp_file_path: str, caller: Caller, source: Source) -> str:
        """The id of the task that takes over the file at this path: by rename, or where that cannot be by a copy, after
        which the file is gone. Raises `NotCreated`."""
        if not temp_file_path:
            raise NotCreated(Cause.INVALID, "temp_file_path is empty")
        path = self._checked(temp_file_path)
        return self.take(Arrival(path, ORIGINAL_NAME, mode=Handover.MOVE), caller, source)

    def take(self, arrival: Arrival, caller: Caller, source: Source) -> str:
        """The same for a file that may be taken."""
        submission = Submission(type=self._type)
        origin = Origin(source, caller.user_id, (arrival,), task_id=str(uuid.uuid4()))
        try:
            return self._service.submit(submission, origin).id
        except (RunnerError, OSError) as error:
            raise _explained(error) from error

    def look(self, task_id: str, sees: str | None) -> Standing:
        """How far a task is. Raises `NotFound`."""
        return self._standing(self._service.get(task_id_in(task_id), sees))

    def result(self, task: Task) -> str:
        """The absolute path of what a task has made of the film; empty if it made nothing."""
        named = [path for path in task.output_files if path.endswith(f"/{RESULT_NAME}")]
        path = next(iter((*named, *task.output_files)), None)
        return "" if path is None else self._service.store.layout.absolute(path)

    def _standing(self, task: Task) -> Standing:
        status = STATUSES.get(task.status, "PENDING")
        return Standing(
            task_id=task.id,
            status=status,
            result_path=self.result(task) if status == "COMPLETED" else "",
            error=task.error.message if status == "FAILED" and task.error is not None else "",
            created_at=instant(task.created_at),
            updated_at=instant(task.updated_at),
        )

    def _checked(self, given: str) -> Path:
        """The file, if it may be handed in. Where nothing may be handed in, nobody learns what there is."""
        path = Path(given)
        if "\0" in given or not path.is_absolute():
            raise NotCreated(Cause.INVALID, f"failed to move file: {given!r} is not an absolute path")
        path = path.resolve()
        if not self._roots.holds(path):
            raise NotCreated(Cause.INVALID, f"failed to move file: {given} is not under one of http.allowed_roots")
        if not path.is_file():
            raise NotCreated(Cause.INVALID, f"failed to move file: source file does not exist: {given}")
        return path


def instant(at: datetime) -> str:
    """RFC 3339, to the second, as it writes instants."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def not_found_text(error: NotFound) -> str:
    """Its words for a task that there is none of."""
    return f"task not found: {error.name}"


_CAUSES: Final[Mapping[type[Exception], Cause]] = {
    InvalidSubmission: Cause.INVALID,
    LimitReached: Cause.BUSY,
    DiskFull: Cause.FULL,
    Unavailable: Cause.UNAVAILABLE,
    Refused: Cause.UNPREPARED,
}


def _explained(error: Exception) -> NotCreated:
    if isinstance(error, OSError):
        return NotCreated(Cause.INTERNAL, f"failed to move file: {error.strerror or error}")
    cause = next((_CAUSES[cls] for cls in type(error).__mro__ if cls in _CAUSES), Cause.INTERNAL)
    return NotCreated(cause, f"failed to create task record: {error}")
