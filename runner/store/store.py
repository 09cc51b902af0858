"""The store itself: reads, changes, and the wiring of the parts."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from runner.errors import CorruptRecord, Degraded, NotFound, Unavailable
from runner.store.aside import quarantine
from runner.store.blobs import Blobs
from runner.store.changes import Change, Create, Key, SaveUser, Update
from runner.store.checkpoint import Checkpointer, CheckpointRule
from runner.store.committer import Committer, Done, Durability, Group, Listener, Reach, Ticket
from runner.store.files import Files, Layout, give_back_memory
from runner.store.index import Index
from runner.store.journal import Journal
from runner.store.query import TaskPage, TaskQuery
from runner.store.records import Removal, RemovedUser
from runner.store.recovery import Recovered, check_format, clear_the_way, recover
from runner.store.scribe import DirectPen, Pen, ScribePen
from runner.store.servant import wait_for_servants
from runner.store.space import Floors, Space, is_full
from runner.store.users import User, read_user
from runner.store.writer import Document, Pace, Version, Writer, sort
from runner.task import Progress, Status, Task, from_json, show_progress, to_compact_json

_ID = re.compile("[0-9A-Za-z_-]{1,64}")
_ATTEMPT = re.compile(r"[0-9A-Za-z_-]{1,64}\.[0-9]+(\.scratch)?")
_KEPT = re.compile(r"([0-9A-Za-z_-]{1,64})\.kept")
_log = logging.getLogger(__name__)


TRIM_AFTER = 10_000
"""After so many tasks have been made smaller, what they took is given back to the system."""


def is_id(text: str) -> bool:
    """Whether a task could have that id; what is none never becomes a path."""
    return _ID.fullmatch(text) is not None


class StorageInterface(Protocol):
    """The narrow seam behind which tasks and users are kept; files first, SQL next."""

    def get_user(self, user_id: str) -> User:
        """A user record. Raises `NotFound`."""

    def save_user(self, user: User) -> None:
        """Durable when it returns."""

    def get_task(self, task_id: str) -> Task:
        """A task. Raises `NotFound`."""

    def save_task(self, task: Task) -> None:
        """Durable when it returns; replaces any earlier version."""

    def query_user_tasks(self, user_id: str) -> Iterator[Task]:
        """All tasks of one user, newest first."""


class ScribePlace(Enum):
    """Where files are written: in a `PROCESS` of its own, for throughput, or on a `THREAD`, for a short visit."""

    PROCESS = auto()
    THREAD = auto()


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How the store trades: what is promised, how far files may lag, when to check point, what room to keep."""

    durability: Durability
    pace: Pace
    checkpoint: CheckpointRule
    floors: Floors
    scribe: ScribePlace = ScribePlace.THREAD


class Store:
    """Everything under the data directory that is a record. Methods may be called from any thread.

    Whoever opens it must hold the owner lock.
    """

    def __init__(
        self,
        data: Path,
        options: StoreOptions,
        listener: Listener,
        files: Files | None = None,
    ) -> None:
        self.files = files or Files()
        self.layout = Layout(data)
        self.index = Index(self.layout.index)
        self.blobs = Blobs(self.files, self.layout, options.durability)
        self.space = Space(self.files, self.layout.data, options.floors)
        self._live: dict[str, Task | bytes] = {}
        self._keys: dict[Key, str] = {}
        self._arrivals = 0
        self._progress: dict[str, tuple[int, Progress]] = {}
        self._lock = threading.Lock()
        self._journal = Journal(self.files, self.layout.journal)
        self._scribe_place = options.scribe
        self.writer = Writer(self.layout, self._make_pen, options.pace, self._compact, self._forget_keys)
        self.committer = Committer(self._journal, self, self.space, options.durability, listener)
        self.checkpointer = Checkpointer(
            self.files, self.layout, self._journal, self.committer, self.writer, self.space, options.checkpoint
        )
        self._threads: dict[str, threading.Thread] = {}
        self._compacted = 0

    def open(self, progress: Callable[[str], None] = lambda line: None) -> Recovered:
        """Recovers and begins to commit. `progress` is told what takes long. Raises `FormatError`, `OSError`."""
        for directory in self.layout.directories:
            self.files.make_directory(directory)
        check_format(self.files, self.layout)
        notes = clear_the_way(self.files, self.layout)
        try:
            found = self._begin(progress)
        except OSError as error:
            if not is_full(error):
                raise
            self.space.release_ballast()
            found = self._begin(progress)
        found.notes[:0] = notes
        for name, run in (
            ("committer", self.committer.run),
            ("syncer", self.committer.run_syncer),
            ("writer", self.writer.run),
            ("checkpointer", self.checkpointer.run),
        ):
            self._threads[name] = threading.Thread(target=run, name=name, daemon=True)
            self._threads[name].start()
        return found

    def settle(self) -> None:
        """Everything that was submitted before is durable or refused, and told, when this returns."""
        with suppress(Unavailable):
            self.commit(())

    def close(self) -> None:
        """Commits and writes all that was submitted, makes a last checkpoint, and lets go of the files. What the disk
        refuses stays in the journal. Idempotent."""
        if not self._threads:
            return
        self.checkpointer.stop()
        self._join("checkpointer")
        try:
            self.checkpointer.checkpoint()
        except (OSError, Unavailable) as error:
            _log.warning("no last checkpoint was made, the next start takes a little longer: %s", error)
        self.committer.stop()
        self._join("committer", "syncer")
        self.writer.stop()
        self._join("writer")
        self._threads.clear()
        self._let_go()

    # Changes

    def submit(self, changes: Sequence[Change], done: Done | None = None) -> None:
        """Has changes committed that happen together or not at all; `done` is told on the thread that has synced."""
        self.committer.submit(Group(changes, done))

    def queue(self, changes: Sequence[Change], done: Done | None = None) -> None:
        """The same, once somebody calls `drive`: several at a time, and without waking a thread."""
        self.committer.queue(Group(changes, done))

    def drive(self) -> None:
        """Commits what is queued on this thread if no other one is at it; hold no lock that the listener takes."""
        self.committer.drive()

    def drive_here(self) -> None:
        """The same, and to its end if the disk is quick, for who waits for it: see `Committer.drive_here`."""
        self.committer.drive_here()

    def drive_soon(self) -> None:
        """The same in a moment, unless somebody does it before."""
        self.committer.drive_soon()

    def commit(self, changes: Sequence[Change]) -> Sequence[Task | None]:
        """The same, blocking until they are durable. Raises why they were refused."""
        ticket = Ticket()
        self.queue(changes, ticket)
        self.committer.drive(Reach.DISK)
        return ticket.wait()

    def note_progress(self, task_id: str, attempt: int, progress: Progress) -> None:
        """How far an attempt is, for readers; not durable."""
        if task_id in self._live or self._runs_unseen(task_id) is not None:
            self._progress[task_id] = (attempt, progress)

    # Reads

    def get_task(self, task_id: str) -> Task:
        """A task as it is now. Raises `NotFound`."""
        task = self.find(task_id)
        if task is None:
            raise NotFound("task", task_id)
        return task

    def find(self, task_id: str) -> Task | None:
        """A task as it is now, or None. Raises `Degraded` if its file cannot be read."""
        while True:
            arrivals = self._arrivals
            task = self._find_live(task_id)
            if task is not None:
                return task
            ended = self.writer.find(task_id)
            if ended is not None:
                return ended.task if isinstance(ended, Version) else None
            new = self._runs_unseen(task_id)
            if new is not None:
                return self._with_progress(new)
            task = self._read(task_id)
            if task is not None or arrivals == self._arrivals:
                return task
            # It may have come back into memory behind our back, without ever having had a file.

    def recall(self, task_id: str) -> Task | None:
        """A task as it is now if that is in memory: it is unfinished, or has just ended. Never waits for the disk."""
        task = self._find_live(task_id)
        if task is None:
            ended = self.writer.find(task_id)
            task = ended.task if isinstance(ended, Version) else None
        return task

    def is_gone(self, task_id: str) -> bool:
        """Whether there is no such task; False while the disk does not say."""
        try:
            is_known = task_id in self._live or self.committer.find_unpublished(task_id) is not None
            return not is_known and self.find(task_id) is None
        except Degraded:
            return False

    def live_ids(self) -> tuple[str, ...]:
        """The ids of all unfinished tasks."""
        return tuple(self._live)

    def has_vanished(self, task_id: str) -> bool:
        """Whether somebody has deleted the file of an unfinished task. Blocks."""
        if not self._seems_vanished(task_id):
            return False
        self.settle()  # what was committed just now may not have been noted to be written yet
        return self._seems_vanished(task_id)

    def live(self) -> Iterator[Task]:
        """Every unfinished task, in no order, as of some moment during the iteration."""
        for task_id in tuple(self._live):
            live = self._live.get(task_id)
            if live is not None:
                yield self._with_progress(live if isinstance(live, Task) else from_json(live))

    @property
    def live_count(self) -> int:
        """How many tasks are unfinished."""
        return len(self._live)

    def list(self, query: TaskQuery) -> TaskPage:
        """Part of the list of tasks, newest first."""
        self.writer.flush_rows()
        ids, cursor = self.index.page(query)
        tasks = tuple(self._find_all(ids))
        total = None if query.page is None else self.index.count(query)
        return TaskPage.model_construct(tasks=tasks, total=total, next_cursor=cursor)

    def all(self, query: TaskQuery) -> Iterator[Task]:
        """Every task that matches, newest first, a page of the query's size at a time."""
        while True:
            page = self.list(query)
            yield from page.tasks
            if page.next_cursor is None:
                return
            query = query.model_copy(update={"cursor": page.next_cursor})

    def count(self, query: TaskQuery) -> int:
        """How many tasks match."""
        self.writer.flush_rows()
        return self.index.count(query)

    def ids_beginning(self, prefix: str, limit: int = 2) -> Sequence[str]:
        """Up to `limit` ids of tasks that begin with `prefix`."""
        self.writer.flush_rows()
        return self.index.ids_beginning(prefix, limit)

    def find_key(self, user_id: str, key: str) -> Task | None:
        """The newest task that a user made with a unique key, or None. Raises `Degraded`."""
        # Keys are in memory until their rows are in the index: the committer, who asks this, waits for no row.
        task_id = self._keys.get((user_id, key))
        task = None if task_id is None else self.find(task_id)
        if task is None:
            task_id = self.index.find_key(user_id, key)
        return task or (None if task_id is None else self.find(task_id))

    # StorageInterface

    def get_user(self, user_id: str) -> User:
        """A user record. Raises `NotFound`; `Degraded` if its file cannot be read."""
        user = self.writer.find_user(user_id)
        if isinstance(user, User):
            return user
        if isinstance(user, RemovedUser):
            raise NotFound("user", user_id)
        path = self.layout.user(user_id)
        try:
            return read_user(self.files.read(path), user_id)
        except FileNotFoundError:
            raise NotFound("user", user_id) from None
        except CorruptRecord as error:
            self._set_aside(path, str(error))
            raise NotFound("user", user_id) from error
        except OSError as error:
            raise Degraded(f"{path} cannot be read: {error.strerror}") from error

    def user_ids(self) -> tuple[str, ...]:
        """The ids of all users with a record on the disk."""
        names = self.files.names(self.layout.users)
        return tuple(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def save_user(self, user: User) -> None:
        """Durable when it returns."""
        self.commit((SaveUser(user),))

    def save_task(self, task: Task) -> None:
        """Durable when it returns; replaces any earlier version."""
        known = self.find(task.id)
        self.commit((Create(task) if known is None else Update(task.id, lambda _: task),))

    def query_user_tasks(self, user_id: str) -> Iterator[Task]:
        """All tasks of one user, newest first."""
        return self.all(TaskQuery(user_id=user_id, size=1000))

    # For the committer and the writer

    def publish(
        self, documents: dict[str, Document], users: dict[str, User | RemovedUser], keys: dict[Key, str]
    ) -> None:
        """A batch is durable: readers may see it."""
        # A reader looks into memory, then at the writer's, then at the files. So what comes back to life is in memory
        # before the writer drops its last version, and what has ended is the writer's before it leaves memory.
        unfinished, ended = sort(documents)
        with self._lock:
            self._keys.update(keys)
            for task_id, version in unfinished.items():
                self._live[task_id] = version.task
            self._arrivals += len(unfinished)
        self.writer.note(unfinished, ended, users)
        with self._lock:
            for task_id in ended:
                self._live.pop(task_id, None)
                self._progress.pop(task_id, None)

    # Steps

    def _begin(self, progress: Callable[[str], None]) -> Recovered:
        try:
            found = self._recover(progress)
            self._clear_attempts()
            self._live = {task.id: task for task in found.live}
            self.writer.open()
            self.checkpointer.open(has_leftovers=found.records > 0)
            self._journal.open(found.last_segment + 1, found.last_seq)
            self.space.check()
        except BaseException:
            self._let_go()
            raise
        return found

    def _recover(self, progress: Callable[[str], None]) -> Recovered:
        lock = wait_for_servants(self.layout)
        try:
            return recover(self.files, self.layout, self.index, progress)
        finally:
            os.close(lock)

    def _clear_attempts(self) -> None:
        """Nothing of what an earlier owner's attempts wrote may end up among the outputs of others.

        What they kept for the next one stays, unless there will be none."""
        for name in self.files.names(self.layout.tmp):
            kept = _KEPT.fullmatch(name)
            if _ATTEMPT.fullmatch(name) or (kept and self._has_no_more_attempts(kept[1])):
                self.files.remove_tree(f"{self.layout.tmp}/{name}")

    def _has_no_more_attempts(self, task_id: str) -> bool:
        try:
            task = self._read(task_id)
        except Degraded:
            return False
        return task is None or task.status is Status.COMPLETED

    def _join(self, *names: str) -> None:
        for name in names:
            self._threads[name].join()

    def _let_go(self) -> None:
        try:
            self.writer.close()
        except OSError as error:
            _log.warning("not every task file is up to date, the next start sees to it: %s", error)
        self.checkpointer.close()
        self.index.close()
        self._journal.close()

    def _make_pen(self) -> Pen:
        if self._scribe_place is ScribePlace.PROCESS:
            return ScribePen(self.layout)
        return DirectPen(self.files, self.layout)

    def _forget_keys(self, indexed: Collection[Document]) -> None:
        """Their rows have their keys now, or are gone like their tasks."""
        if not self._keys:
            return
        removed = {document.task_id for document in indexed if isinstance(document, Removal)}
        with self._lock:
            if removed:
                self._keys = {key: task_id for key, task_id in self._keys.items() if task_id not in removed}
            for document in indexed:
                if isinstance(document, Version) and document.task.unique_key is not None:
                    key = (document.task.user_id, document.task.unique_key)
                    if self._keys.get(key) == document.task.id:
                        del self._keys[key]

    def _compact(self, written: Sequence[Version]) -> None:
        """Tasks that wait are kept as JSON without defaults: an eighth of the memory, and most wait for long."""
        waiting = [task for task, _ in written if task.status is not Status.PROCESSING and not task.is_terminal]
        compacted = [(task, to_compact_json(task)) for task in waiting if self._live.get(task.id) is task]
        with self._lock:
            for task, body in compacted:
                if self._live.get(task.id) is task:
                    self._live[task.id] = body
        self._compacted += len(compacted)
        if self._compacted >= TRIM_AFTER:
            self._compacted = 0
            give_back_memory()

    def _with_progress(self, task: Task) -> Task:
        attempt, progress = self._progress.get(task.id, (0, None))
        if progress is None or attempt != task.attempt or task.status is not Status.PROCESSING:
            return task
        return show_progress(task, progress)

    def _find_live(self, task_id: str) -> Task | None:
        live = self._live.get(task_id)
        if live is None:
            return None
        task = live if isinstance(live, Task) else from_json(live)
        return self._with_progress(task) if task_id in self._progress else task

    def _runs_unseen(self, task_id: str) -> Task | None:
        """A task of which an attempt runs already, whose handler may ask for it, though its creation is not durable."""
        new = self.committer.find_unpublished(task_id)
        return new if new is not None and new.status is Status.PROCESSING else None

    def _seems_vanished(self, task_id: str) -> bool:
        if task_id not in self._live or self.writer.holds(task_id) or not os.path.isdir(self.layout.tasks):
            return False
        try:
            os.lstat(self.layout.task(task_id))
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    def _find_all(self, ids: Sequence[str]) -> Iterator[Task]:
        gone = []
        for task_id in ids:
            try:
                task = self.find(task_id)
            except Degraded as error:
                # One bad sector takes one task out of the list, not the list away.
                _log.warning("left out of a list: %s", error)
                continue
            if task is None:
                gone.append(task_id)
            else:
                yield task
        self.writer.forget_rows(gone)

    def _read(self, task_id: str) -> Task | None:
        if not is_id(task_id):
            return None
        path = self.layout.task(task_id)
        try:
            task = from_json(self.files.read(path))
        except FileNotFoundError:
            return None
        except CorruptRecord as error:
            self._set_aside(path, str(error))
            return None
        except OSError as error:
            raise Degraded(f"{path} cannot be read: {error.strerror}") from error
        return task if task.id == task_id else None

    def _set_aside(self, path: str, reason: str) -> None:
        try:
            where = quarantine(self.files, self.layout, path, reason)
        except OSError as error:
            _log.warning("%s is damaged and stays where it is: %s (%s)", path, reason, error)
        else:
            _log.warning("%s was damaged and is now %s: %s", path, where, reason)
