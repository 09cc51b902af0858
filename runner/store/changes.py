"""What can be changed, and the stage on which a batch of changes takes shape before it is durable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from pydantic_core import PydanticSerializationError

from runner.errors import CorruptRecord, IllegalTransition, InvalidSubmission, NotFound, Problem, RunnerError
from runner.store.journal import MAX_BODY, Kind
from runner.store.records import Removal, RemovedUser
from runner.store.users import User
from runner.store.writer import Document, Version
from runner.task import Status, Task, from_json, to_json

FLAT_BYTES = 1000
"""A task's JSON that is no longer than this has no room for the 200 levels at which a reader of JSON gives up."""
MAX_BRACKETS = 190
"""Nor has one with no more of them than this. What may be deeper is read back before it is kept."""

_tuple: Final = tuple.__new__
_log = logging.getLogger(__name__)


class Transition(NamedTuple):
    """News of one committed change. `before` is None for a new task; `removed` says that the task is gone."""

    before: Status | None
    task: Task
    removed: bool = False


class KeyTaken(RunnerError):
    """A task with that user and unique key exists; admission decides what that means."""

    def __init__(self, task: Task) -> None:
        super().__init__(f"the unique key belongs to task {task.id}")
        self.task = task


Key = tuple[str, str]
"""A user's id and a unique key of theirs."""


class State(Protocol):
    """What the committer reads from and publishes to; it is the store."""

    def find(self, task_id: str) -> Task | None:
        """The committed task, or None."""

    def find_key(self, user_id: str, key: str) -> Task | None:
        """The committed task that holds a unique key, or None."""

    def publish(
        self, documents: dict[str, Document], users: dict[str, User | RemovedUser], keys: dict[Key, str]
    ) -> None:
        """A batch is durable: readers may see it. `keys` are the ids of new tasks by their unique keys."""


class Unpublished:
    """What has been appended and is not published yet, on top of what is. The committer's thread, but for `own`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._documents: dict[str, Document] = {}
        self._keys: dict[Key, str] = {}

    def find(self, task_id: str) -> Task | None:
        """The newest version of a task, or None."""
        return self.own(task_id) if task_id in self._documents else self._state.find(task_id)

    def find_key(self, user_id: str, key: str) -> Task | None:
        """The newest task that a user made with a unique key, or None. Raises `Unavailable`."""
        task_id = self._keys.get((user_id, key))
        if task_id is not None:
            return self.find(task_id)
        holder = self._state.find_key(user_id, key)
        return None if holder is None else self.find(holder.id)

    def own(self, task_id: str) -> Task | None:
        """The version of a task that waits to be published, or None. From any thread."""
        document = self._documents.get(task_id)
        return document.task if isinstance(document, Version) else None

    def add(self, stage: Stage) -> None:
        """A batch was appended."""
        self._documents.update(stage.documents)
        self._keys.update(stage.keys)

    def forget(self, stage: Stage) -> None:
        """A batch was published; what has been changed again since stays."""
        for task_id, document in stage.documents.items():
            if self._documents.get(task_id) is document:
                del self._documents[task_id]
        for key, task_id in stage.keys.items():
            if self._keys.get(key) == task_id:
                del self._keys[key]


class Change(Protocol):
    """One thing to commit."""

    def apply(self, stage: Stage) -> Task | None:
        """Stages the new version and returns it; raises and stages nothing if that is not allowed."""


@dataclass(slots=True)
class Create:
    """A new task. Raises `KeyTaken` if a task with its user and unique key exists."""

    task: Task

    def apply(self, stage: Stage) -> Task:
        """See `Change`."""
        task = self.task
        if task.unique_key is not None:
            holder = stage.find_key(task.user_id, task.unique_key)
            if holder is not None and not _key_has_expired(holder, task.created_at):
                raise KeyTaken(holder)
        stage.put(None, task)
        return task


@dataclass(slots=True)
class Update:
    """A transition of an existing task, as a pure function of its latest version."""

    task_id: str
    function: Callable[[Task], Task]

    def apply(self, stage: Stage) -> Task:
        """See `Change`."""
        before = stage.get(self.task_id)
        after = self.function(before)
        if after is not before:
            stage.put(before, after)
        return after


@dataclass(frozen=True, slots=True)
class Remove:
    """A task is forgotten. Only one that neither waits nor runs can be."""

    task_id: str

    def apply(self, stage: Stage) -> Task:
        """See `Change`."""
        task = stage.get(self.task_id)
        if task.status in (Status.PENDING, Status.PROCESSING):
            raise IllegalTransition(task.id, task.status, "be removed; cancel it first")
        stage.remove(task)
        return task


@dataclass(frozen=True, slots=True)
class SaveUser:
    """A user record's new content."""

    user: User

    def apply(self, stage: Stage) -> None:
        """See `Change`."""
        stage.users[self.user.user_id] = self.user
        stage.records.append((Kind.USER, self.user.to_json()))


@dataclass(frozen=True, slots=True)
class RemoveUser:
    """A user record is forgotten."""

    user_id: str

    def apply(self, stage: Stage) -> None:
        """See `Change`."""
        stage.users[self.user_id] = RemovedUser(self.user_id)
        stage.records.append((Kind.USER_REMOVAL, self.user_id.encode()))


class Stage:
    """What one batch is about to make true: a view of the store with the batch's changes on top."""

    def __init__(self, below: Unpublished) -> None:
        self._below = below
        self.documents: dict[str, Document] = {}
        self.users: dict[str, User | RemovedUser] = {}
        self.records: list[tuple[Kind, bytes]] = []
        self.transitions: list[Transition] = []
        self.keys: dict[Key, str] = {}

    def get(self, task_id: str) -> Task:
        """The latest version. Raises `NotFound`."""
        task = self._find(task_id)
        if task is None:
            raise NotFound("task", task_id)
        return task

    def find_key(self, user_id: str, key: str) -> Task | None:
        """The newest task that a user made with a unique key, as it is now, or None. Raises `Unavailable`."""
        task_id = self.keys.get((user_id, key))
        if task_id is not None:
            return self._find(task_id)
        holder = self._below.find_key(user_id, key)
        return None if holder is None else self._find(holder.id)

    def put(self, before: Task | None, after: Task) -> None:
        """Stages a new version. Raises `InvalidSubmission` for one that could not be read back."""
        body = _encode(after)
        # As `Version(…)` and `Transition(…)` make them, at half of the cost.
        self.documents[after.id] = _tuple(Version, (after, body))
        self.records.append((Kind.TASK, body))
        self.transitions.append(_tuple(Transition, (None if before is None else before.status, after, False)))
        if before is None and after.unique_key is not None:
            self.keys[after.user_id, after.unique_key] = after.id

    def remove(self, task: Task) -> None:
        """Stages a removal."""
        removal = Removal(task.id, task.user_id)
        self.documents[task.id] = removal
        self.records.append((Kind.REMOVAL, removal.encode()))
        self.transitions.append(Transition(task.status, task, removed=True))

    def _find(self, task_id: str) -> Task | None:
        document = self.documents.get(task_id)
        if document is None:
            return self._below.find(task_id)
        return document.task if isinstance(document, Version) else None

    def mark(self) -> Mark:
        """A point to come back to."""
        return Mark(len(self.records), len(self.transitions), dict(self.documents), dict(self.users), dict(self.keys))

    def restore(self, mark: Mark) -> None:
        """Forgets what was staged since `mark`."""
        del self.records[mark.records :]
        del self.transitions[mark.transitions :]
        self.documents, self.users, self.keys = mark.documents, mark.users, mark.keys


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in the growth of a `Stage`."""

    records: int
    transitions: int
    documents: dict[str, Document]
    users: dict[str, User | RemovedUser]
    keys: dict[Key, str]


def apply(stage: Stage, changes: Sequence[Change]) -> tuple[Sequence[Task | None], RunnerError | None]:
    """Stages a group, all of it or nothing."""
    mark = stage.mark() if len(changes) != 1 else None
    try:
        return [change.apply(stage) for change in changes], None
    except Exception as error:  # noqa: BLE001 - a change runs its maker's code: what that raises is the maker's alone
        if mark is not None:
            stage.restore(mark)
        return (), error if isinstance(error, RunnerError) else _wrapped(error)


def _wrapped(error: Exception) -> RunnerError:
    _log.error("a change of a task failed", exc_info=error)
    wrapped = RunnerError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _encode(task: Task) -> bytes:
    try:
        body = to_json(task)
        if len(body) > FLAT_BYTES and body.count(b"{") + body.count(b"[") > MAX_BRACKETS:
            from_json(body)
    except (PydanticSerializationError, CorruptRecord) as error:
        raise InvalidSubmission((Problem("", f"cannot be kept as JSON: {error}"),)) from error
    if len(body) > MAX_BODY:
        raise InvalidSubmission((Problem("", f"{len(body)} bytes of JSON are too many; {MAX_BODY} may be"),))
    return body


def _key_has_expired(holder: Task, now: datetime) -> bool:
    return holder.unique_until is not None and holder.unique_until <= now
