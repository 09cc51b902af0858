"""What Video-In-Chinese's two front ends do, gRPC and its gateway: hand a film over, and ask how far it is."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from runner.config import Config
from runner.dialects.processor_queue import ENDED, Order, QueueDown, connect, instant
from runner.errors import DiskFull, InvalidSubmission, LimitReached, NotFound, Refused, RunnerError, Unavailable
from runner.intake.admission import Arrival, Origin, Submission
from runner.service import Service
from runner.store import Handover
from runner.store.files import Files
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


KNOWN: Final = frozenset({"PENDING", "PROCESSING", "COMPLETED", "FAILED"})

_log = logging.getLogger(__name__)


class Cause(StrEnum):
    """Why there is no task: in the request, in this machine's configuration, or in its state."""

    INVALID = "invalid"
    UNPREPARED = "unprepared"
    BUSY = "busy"
    FULL = "full"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class NotCreated(RunnerError):
    """A film did not become a task. Its file lies where it lay, unless Redis went away in the middle."""

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
    """The two verbs, and what follows from news of its tasks. From any thread; they block."""

    def __init__(self, service: Service, config: Config) -> None:
        dialect = config.dialects.video_in_chinese
        self._service = service
        self.type = dialect.type
        self._roots = Roots.resolved(config.http.allowed_roots, Path(config.data_dir))
        self._shelf = None if dialect.storage_path is None else Shelf(dialect.storage_path, service.store.files)
        self._queue = connect(dialect.redis) if dialect.redis.address_url else None

    def create(self, temp_file_path: str, caller: Caller, source: Source) -> str:
        """The id of the task that takes over the file at this path: by rename, or where that cannot be by a copy, after
        which the file is gone. Raises `NotCreated`."""
        if not temp_file_path:
            raise NotCreated(Cause.INVALID, "temp_file_path is empty")
        path = self._checked(temp_file_path)
        return self.take(Arrival(path, ORIGINAL_NAME, mode=Handover.MOVE), caller, source)

    def take(self, arrival: Arrival, caller: Caller, source: Source) -> str:
        """The same for a file that may be taken."""
        task_id = str(uuid.uuid4())
        self._check_queue(task_id)
        if self._shelf is not None:
            self._shelf.prepare(task_id)
        submission, origin = Submission(type=self.type), Origin(source, caller.user_id, (arrival,), task_id=task_id)
        try:
            task = self._service.submit(submission, origin)
        except (RunnerError, OSError) as error:
            if self._shelf is not None:
                self._shelf.clear(task_id)
            raise _explained(error) from error
        self._hand_on(task)
        return task.id

    def look(self, task_id: str, sees: str | None) -> Standing:
        """How far a task is; of one that its processor works at, what that says of it. Raises `NotFound`."""
        task = self._service.get(task_id_in(task_id), sees)
        standing = self._standing(task)
        return standing if self._queue is None or not self._queue.pushes else self._as_recorded(standing)

    def follow(self, task: Task) -> None:
        """A task of its type has reached a status: its record says so, and its result lies where it is looked for."""
        standing = self._standing(task)
        queue = self._queue
        if queue is None or not (task.is_terminal or not queue.pushes):
            return
        if task.status is not Status.COMPLETED and task.is_terminal:
            queue.withdraw(self._order(task))
        if queue.find(task.id).get("status") != standing.status:
            values = {"status": standing.status, "error_message": standing.error}
            queue.write(task.id, task.updated_at, result_file_path=standing.result_path, **values)

    def forget(self, task_id: str) -> None:
        """There is no such task any more."""
        if self._shelf is not None:
            self._shelf.clear(task_id)
        if self._queue is not None:
            self._queue.forget(task_id)

    def catch_up(self) -> None:
        """Records of tasks that have ended say so. Those of tasks that are not known here are somebody else's."""
        if self._queue is None:
            return
        for task_id in list(self._queue.unfinished()):
            with suppress(NotFound):
                self.follow(self._service.get(task_id_in(task_id)))

    @property
    def wants_news(self) -> bool:
        """Whether `follow` and `forget` have anything to do."""
        return self._shelf is not None or self._queue is not None

    def close(self) -> None:
        """Lets go of Redis."""
        if self._queue is not None:
            self._queue.close()

    def result(self, task: Task) -> str:
        """The absolute path of what a task has made of the film; empty if it made nothing."""
        named = [path for path in task.output_files if path.endswith(f"/{RESULT_NAME}")]
        path = next(iter((*named, *task.output_files)), None)
        if path is None:
            return ""
        absolute = self._service.store.layout.absolute(path)
        return absolute if self._shelf is None else self._shelf.lay(task.id, absolute, RESULT_NAME)

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

    def _as_recorded(self, standing: Standing) -> Standing:
        """The same with what the processor has written: it knows sooner. Without Redis, as it was."""
        assert self._queue is not None
        try:
            record = self._queue.find(standing.task_id)
        except QueueDown as error:
            _log.warning("the processor's record cannot be read: %s", error)
            return standing
        status = record.get("status", "")
        has_ended = standing.status in ENDED
        if not record or (has_ended and status != standing.status):
            return standing
        status = status if status in KNOWN else "PENDING"
        return replace(
            standing,
            status=status,
            result_path=record.get("result_file_path", "") if status == "COMPLETED" else "",
            error=record.get("error_message", "") if status == "FAILED" else "",
            updated_at=record.get("updated_at") or standing.updated_at,
        )

    def _check_queue(self, task_id: str) -> None:
        """Redis answers: before the file is taken, for there would be nobody to work on it. Raises `NotCreated`."""
        if self._queue is not None:
            try:
                self._queue.find(task_id)
            except QueueDown as error:
                raise NotCreated(Cause.UNAVAILABLE, f"failed to create task record: {error}") from error

    def _hand_on(self, task: Task) -> None:
        """The task's film is where its processor looks, and the processor is told. Raises `NotCreated`."""
        order = self._order(task)
        if self._queue is None:
            return
        try:
            # Its handler may have been faster.
            is_first = self._queue.record(order)
        except QueueDown as error:
            self._service.cancel(task.id, reason="no record could be made")
            self._service.delete(task.id)
            raise NotCreated(Cause.UNAVAILABLE, f"failed to create task record: {error}") from error
        try:
            if is_first and self._queue.pushes:
                self._queue.push(order)
        except QueueDown as error:
            reason = f"failed to push task to queue: {error}"
            self._service.cancel(task.id, reason=reason)
            raise NotCreated(Cause.INTERNAL, reason) from error

    def _order(self, task: Task) -> Order:
        path = self._service.store.layout.absolute(task.input_files[0])
        placed = path if self._shelf is None else self._shelf.lay(task.id, path, ORIGINAL_NAME)
        return Order(task.id, placed, task.created_at)

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


class Shelf:
    """A folder in which each film has one of its own, as Video-In-Chinese's service laid them: hard links to what the
    runner keeps where that can be, else copies. From any thread."""

    def __init__(self, root: Path, files: Files) -> None:
        self._root = root / "videos"
        self._files = files

    def prepare(self, task_id: str) -> None:
        """The folder of a new task. Raises `NotCreated`."""
        try:
            (self._root / task_id).mkdir(mode=0o755, parents=True)
        except OSError as error:
            raise NotCreated(Cause.INTERNAL, f"failed to create task directory: {error.strerror}") from error

    def lay(self, task_id: str, path: str, name: str) -> str:
        """Where the file at `path` lies in the task's folder."""
        target = self._root / task_id / name
        if target.parent.is_dir():
            with suppress(FileExistsError):
                self._files.link_or_copy(path, str(target))
        return str(target)

    def clear(self, task_id: str) -> None:
        """The folder is gone, with what its processor left there."""
        shutil.rmtree(self._root / task_id, ignore_errors=True)


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
