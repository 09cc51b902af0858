"""The commit point: one thread that turns changes into journal records, a batch at a time.

Groups of changes come in from any thread. The committer takes all that wait as one batch, applies them in order to
what is staged, appends the records, makes one `fdatasync`, publishes the batch to memory, tells the listener once and
then acknowledges each group. Changes are applied on this thread only, so they need no lock and always see the latest
version. Nobody sees a change, and nobody is told of it, before the sync has returned.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from runner.errors import Degraded, DiskFull, IllegalTransition, NotFound, RunnerError, ShuttingDown
from runner.store.journal import Journal, Kind
from runner.store.records import Removal, RemovedUser
from runner.store.space import Space
from runner.store.users import User
from runner.store.writer import Document, Version
from runner.task import Status, Task, to_json

MAX_BATCH = 1024


class Durability(StrEnum):
    """What an acknowledgement survives. `FULL`: a power cut. `PROCESS`: `kill -9`, but not a power cut."""

    FULL = "full"
    PROCESS = "process"


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


class State(Protocol):
    """What the committer reads from and publishes to; it is the store."""

    def find(self, task_id: str) -> Task | None:
        """The committed task, or None."""

    def find_key(self, user_id: str, key: str) -> Task | None:
        """The committed task that holds a unique key, or None."""

    def publish(self, documents: dict[str, Document], users: dict[str, User | RemovedUser]) -> None:
        """A batch is durable: readers may see it."""


class Change(Protocol):
    """One thing to commit."""

    def apply(self, stage: Stage) -> Task | None:
        """Stages the new version and returns it; raises and stages nothing if that is not allowed."""


@dataclass(frozen=True, slots=True)
class Create:
    """A new task. Raises `KeyTaken` if a task with its user and unique key exists."""

    task: Task

    def apply(self, stage: Stage) -> Task:
        task = self.task
        if task.unique_key is not None:
            holder = stage.find_key(task.user_id, task.unique_key)
            if holder is not None and not _key_has_expired(holder, task.created_at):
                raise KeyTaken(holder)
        stage.put(None, task)
        return task


@dataclass(frozen=True, slots=True)
class Update:
    """A transition of an existing task, as a pure function of its latest version."""

    task_id: str
    function: Callable[[Task], Task]

    def apply(self, stage: Stage) -> Task:
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
        stage.users[self.user.user_id] = self.user
        stage.records.append((Kind.USER, self.user.to_json()))


@dataclass(frozen=True, slots=True)
class RemoveUser:
    """A user record is forgotten."""

    user_id: str

    def apply(self, stage: Stage) -> None:
        stage.users[self.user_id] = RemovedUser(self.user_id)
        stage.records.append((Kind.USER_REMOVAL, self.user_id.encode()))


class Stage:
    """What one batch is about to make true: a view of the store with the batch's changes on top."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.documents: dict[str, Document] = {}
        self.users: dict[str, User | RemovedUser] = {}
        self.records: list[tuple[Kind, bytes]] = []
        self.transitions: list[Transition] = []
        self._keys: dict[tuple[str, str], Task] = {}

    def get(self, task_id: str) -> Task:
        """The latest version. Raises `NotFound`."""
        document = self.documents.get(task_id)
        if isinstance(document, Version):
            return document.task
        task = self._state.find(task_id) if document is None else None
        if task is None:
            raise NotFound("task", task_id)
        return task

    def find_key(self, user_id: str, key: str) -> Task | None:
        """The task that holds a unique key."""
        return self._keys.get((user_id, key)) or self._state.find_key(user_id, key)

    def put(self, before: Task | None, after: Task) -> None:
        """Stages a new version."""
        body = to_json(after)
        self.documents[after.id] = Version(after, body)
        self.records.append((Kind.TASK, body))
        self.transitions.append(Transition(None if before is None else before.status, after))
        if after.unique_key is not None:
            self._keys[after.user_id, after.unique_key] = after

    def remove(self, task: Task) -> None:
        """Stages a removal."""
        removal = Removal(task.id, task.user_id)
        self.documents[task.id] = removal
        self.records.append((Kind.REMOVAL, removal.encode()))
        self.transitions.append(Transition(task.status, task, removed=True))

    def mark(self) -> Mark:
        """A point to come back to."""
        return Mark(len(self.records), len(self.transitions), dict(self.documents), dict(self.users), dict(self._keys))

    def restore(self, mark: Mark) -> None:
        """Forgets what was staged since `mark`."""
        del self.records[mark.records :]
        del self.transitions[mark.transitions :]
        self.documents, self.users, self._keys = mark.documents, mark.users, mark.keys


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in the growth of a `Stage`."""

    records: int
    transitions: int
    documents: dict[str, Document]
    users: dict[str, User | RemovedUser]
    keys: dict[tuple[str, str], Task]


Done = Callable[[Sequence[Task | None], RunnerError | None], None]
"""Told once how a group ended: what each change made of its task, or why none of them happened."""


class Group(NamedTuple):
    """Changes that happen together or not at all. `done` is called on the committer's thread and must be quick."""

    changes: Sequence[Change]
    done: Done | None = None


class Ticket:
    """A `done` that a thread can wait for."""

    __slots__ = ("_error", "_ready", "_tasks")

    def __init__(self) -> None:
        self._ready = threading.Lock()
        self._ready.acquire()
        self._tasks: Sequence[Task | None] = ()
        self._error: RunnerError | None = None

    def __call__(self, tasks: Sequence[Task | None], error: RunnerError | None) -> None:
        self._tasks, self._error = tasks, error
        self._ready.release()

    def wait(self) -> Sequence[Task | None]:
        """Blocks until the group is durable, then returns its tasks; raises why it was refused. Once only."""
        self._ready.acquire()
        if self._error is not None:
            raise self._error
        return self._tasks


@dataclass(frozen=True, slots=True)
class _Rotate:
    """Asks the committer to seal the segment between two batches."""

    done: Callable[[int], None]


class _Stop:
    """Asks the committer to end."""


class Committer:
    """Owns the journal. `submit` from any thread; everything else happens on the thread that runs `run`."""

    def __init__(
        self,
        journal: Journal,
        state: State,
        space: Space,
        durability: Durability,
        listener: Callable[[list[Transition]], None],
    ) -> None:
        self._journal = journal
        self._state = state
        self._space = space
        self._durability = durability
        self._listener = listener
        self._queue: SimpleQueue[Group | _Rotate | _Stop] = SimpleQueue()
        self.failure: OSError | None = None
        self.closed = False

    def submit(self, group: Group) -> None:
        """Queues a group; returns at once. Groups of one thread are applied in the order of their submission.
        Raises `ShuttingDown` after `stop`."""
        if self.closed:
            raise ShuttingDown("the store is closed")
        self._queue.put(group)

    def rotate(self) -> int:
        """Seals the segment after all that was submitted before; returns its number. Blocks."""
        sealed: SimpleQueue[int] = SimpleQueue()
        self._queue.put(_Rotate(sealed.put))
        return sealed.get()

    def stop(self) -> None:
        """Commits what was submitted and ends `run`."""
        self.closed = True
        self._queue.put(_Stop())

    def run(self) -> None:
        """Commits until `stop`."""
        while self.run_once():
            pass

    def run_once(self) -> bool:
        """Waits for work and commits one batch of it. False when asked to stop."""
        groups, control = self._next_batch()
        if groups:
            self._commit(groups)
        if isinstance(control, _Rotate):
            control.done(self._journal.rotate())
        return not isinstance(control, _Stop)

    def _next_batch(self) -> tuple[list[Group], _Rotate | _Stop | None]:
        groups: list[Group] = []
        item = self._queue.get()
        try:
            while isinstance(item, Group):
                groups.append(item)
                if len(groups) >= MAX_BATCH:
                    return groups, None
                item = self._queue.get_nowait()
        except Empty:
            return groups, None
        return groups, item

    def _commit(self, groups: Iterable[Group]) -> None:
        stage = Stage(self._state)
        answers = [(group.done, *_apply(stage, group.changes)) for group in groups]
        if stage.records:
            failure = self._persist(stage.records)
            if failure is not None:
                answers = [(done, (), error or failure) for done, _, error in answers]
            else:
                self._state.publish(stage.documents, stage.users)
                self._listener(stage.transitions)
        for done, tasks, error in answers:
            if done is not None:
                done(tasks, error)

    def _persist(self, records: Sequence[tuple[Kind, bytes]]) -> RunnerError | None:
        """Makes the records durable, or says why not; then none of them is in the journal."""
        if self.failure is not None:
            return Degraded(f"the journal cannot be written: {self.failure}")
        try:
            self._append(records)
        except OSError as error:
            return self._persist_again(records, error)
        return None

    def _append(self, records: Sequence[tuple[Kind, bytes]]) -> None:
        self._journal.append(records)
        if self._durability is Durability.FULL:
            self._journal.sync()

    def _persist_again(self, records: Sequence[tuple[Kind, bytes]], error: OSError) -> RunnerError | None:
        """One more try, in a new segment: a descriptor whose sync failed must not be trusted again. On a full disk
        the ballast is given up first, so that what runs can still be recorded."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        try:
            self._journal.undo()
            if full:
                self._space.release_ballast()
            self._journal.rotate()
            self._append(records)
        except OSError as second:
            return self._give_up(second)
        return None

    def _give_up(self, error: OSError) -> RunnerError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._space.report_full()
            if self._journal.try_undo():
                return DiskFull(f"the disk is full: {error.strerror}")
        self.failure = error
        return Degraded(f"the journal cannot be written: {error}")


def _apply(stage: Stage, changes: Sequence[Change]) -> tuple[Sequence[Task | None], RunnerError | None]:
    """Stages a group, all of it or nothing."""
    if len(changes) == 1:
        try:
            return (changes[0].apply(stage),), None
        except RunnerError as error:
            return (), error
    mark = stage.mark()
    try:
        return [change.apply(stage) for change in changes], None
    except RunnerError as error:
        stage.restore(mark)
        return (), error


def _key_has_expired(holder: Task, now: datetime) -> bool:
    return holder.unique_until is not None and holder.unique_until <= now
