"""Write-behind: brings the task files and the index up to date, latest version only.

A task file is written only after its journal record is durable, so it needs no sync of its own; the checkpoint gives
it one. Finished tasks are written at the next pass, since they will not change again. Waiting ones are written at the
next pass too while little happens, and a little later when much does: most of them end before their turn comes, and
creating one file costs a third of creating and replacing it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from typing import NamedTuple, TypeVar

from runner.store.files import HAS_SYNCFS, Layout
from runner.store.records import Removal, RemovedUser
from runner.store.scribe import Batch, Pen
from runner.store.users import User
from runner.task import TERMINAL, Task

BUSY = 256
"""With more documents than this waiting, the unfinished ones wait for half of `overload_seconds` at least."""
BACKLOG = 10_000
"""With more finished tasks than this unwritten, submissions wait."""
CROWD = 2_500
"""With more unfinished tasks than this unwritten, each of which takes 10 KB of memory, submissions are slowed down."""
PACE_SECONDS = 0.5
"""How long it is counted how many tasks end, to see whether a crowd ends by itself."""
CROWDED_SECONDS = 1.0
"""But not for longer than this each: what waits for its turn among many others may be written late."""
SHORTEST_PAUSE_SECONDS = 0.001
"""Between two looks at what is not due yet, whatever the pace says."""
SLICE = 1000
"""Documents a batch: what memory a pass may take, and how long a list can wait for one."""


class Version(NamedTuple):
    """A task and its JSON as the journal has it."""

    task: Task
    body: bytes


Document = Version | Removal
_D = TypeVar("_D", bound=Version | Removal)


class Scope(Enum):
    """Which documents a pass writes: those whose time has come, those of tasks that have ended, or the others.

    `CROWD` is what is due of too many others. Of them the newest go first: the oldest are about to run, and may end
    before they would be written.
    """

    DUE = auto()
    CROWD = auto()
    ENDED = auto()
    UNFINISHED = auto()


@dataclass(frozen=True, slots=True)
class Pace:
    """How far the files may lag behind the journal: seconds between passes, and the same under overload."""

    write_behind_seconds: float
    overload_seconds: float


@dataclass(slots=True)
class _Load:
    """What one pass has taken to write."""

    documents: dict[str, Document]
    users: dict[str, User | RemovedUser]
    rows: dict[str, Document] = field(default_factory=dict)


class Writer:
    """Holds what is not written yet. `note`, `find`, `flush` and `flush_rows` from any thread; `run` is its own thread.

    `written` is told of the versions that are in their files now, `indexed` of the documents that have their rows.
    """

    def __init__(
        self,
        layout: Layout,
        pen: Callable[[], Pen],
        pace: Pace,
        written: Callable[[list[Version]], None],
        indexed: Callable[[Collection[Document]], None],
    ) -> None:
        self._layout = layout
        self._make_pen = pen
        self._pace = pace
        self._written = written
        self._indexed = indexed
        self._lock = threading.Lock()
        self._next_turn = threading.Lock()
        self._pass_lock = threading.Lock()
        self._ended: dict[str, Document] = {}
        self._unfinished: dict[str, Document] = {}
        self._older: dict[str, Document] = {}
        self._parted = self._counted = time.monotonic()
        self._ends = 0
        self._ends_per_second = 0.0
        self._users: dict[str, User | RemovedUser] = {}
        self._rows: dict[str, Document] = {}
        self._writing: Mapping[str, Document] = {}
        self._writing_users: Mapping[str, User | RemovedUser] = {}
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._room = threading.Event()
        self._room.set()
        self._calm = threading.Event()
        self._calm.set()
        self._paths: set[str] = set()
        self._pen: Pen | None = None
        self.failure: OSError | None = None

    def open(self) -> None:
        """Gets its pen. On a thread that lives as long as the process."""
        self._pen = self._make_pen()

    def note(
        self, unfinished: dict[str, Version], ended: dict[str, Document], users: dict[str, User | RemovedUser]
    ) -> None:
        """A batch is durable; its latest versions, as `sort` tells them apart, are to be written. Quick."""
        with self._lock:
            self._put(unfinished, ended)
            self._ends += len(ended)
            self._rows.update(unfinished)
            self._rows.update(ended)
            self._users.update(users)
            if len(self._ended) > BACKLOG:
                self._room.clear()
            if self._unfinished_count > CROWD and self._calm.is_set():
                self._begin_crowd()
        self._wake.set()

    def find(self, task_id: str) -> Document | None:
        """The newest version of a task that has ended or gone, if it is not on the disk yet."""
        # Looked up from newest to oldest: a pass moves documents only in that direction.
        return self._ended.get(task_id) or self._writing.get(task_id)

    def holds(self, task_id: str) -> bool:
        """Whether the task's file is not up to date."""
        places = (self._unfinished, self._older, self._ended, self._writing)
        return any(task_id in documents for documents in places)

    def find_user(self, user_id: str) -> User | RemovedUser | None:
        """A user record that is not on the disk yet."""
        return self._users.get(user_id) or self._writing_users.get(user_id)

    @property
    def has_room(self) -> bool:
        """Whether `wait_for_room` would not block."""
        return self._room.is_set() and self._calm.is_set()

    def wait_for_room(self, timeout_seconds: float) -> bool:
        """Blocks while the files are too far behind; False if those of tasks that have ended still are at the end."""
        # Asked twice for each submission, and nearly always true: `wait` takes a lock even then.
        if not self._calm.is_set():
            self._calm.wait(min(timeout_seconds, CROWDED_SECONDS))
        return self._room.is_set() or self._room.wait(timeout_seconds)

    @property
    def backlog(self) -> int:
        """How many task files are not up to date."""
        return len(self._ended) + self._unfinished_count + len(self._writing)

    @property
    def _unfinished_count(self) -> int:
        return len(self._unfinished) + len(self._older)

    def run(self) -> None:
        """Makes a pass whenever there is something to write, until `stop`."""
        while not self._stopped.is_set():
            self._wake.wait()
            # What is noted during the pause is covered by the pass that follows it.
            self._stopped.wait(max(self._pace.write_behind_seconds, SHORTEST_PAUSE_SECONDS))
            self._wake.clear()
            self._run_patiently()

    def stop(self) -> None:
        """Ends `run`."""
        self._stopped.set()
        self._wake.set()

    def close(self) -> None:
        """Writes everything and lets go of the pen. After `run` has ended. Raises `OSError`. Idempotent."""
        if self._pen is None:
            return
        try:
            self.flush()
        finally:
            self._pen.close()
            self._pen = None

    def flush(self) -> None:
        """Everything noted before this call is written when it returns, but for what has been changed again since;
        it is not synced. Raises `OSError`."""
        with self._turn():
            self._flush()

    def repeat(self, make: Callable[[], Batch]) -> None:
        """Does what `flush` does, and then writes what `make` makes of the files as they are now; nobody else writes
        meanwhile. Raises `OSError`, and what `make` raises."""
        with self._turn():
            self._flush()
            assert self._pen is not None, "the writer is not open"
            batch = make()
            self._pen.write(batch)
            with self._lock:
                if not HAS_SYNCFS:
                    self._paths.update(_paths(self._layout, dict(batch.tasks), dict(batch.users)))

    def flush_rows(self) -> None:
        """The index has a row for everything noted before this call. If the disk refuses, `failure` says so."""
        # Always by way of a turn: rows that a pass has just taken are not written yet.
        with self._turn(), suppress(OSError):
            self._pass_rows()

    def forget_rows(self, ids: Iterable[str]) -> None:
        """These tasks have a row but no file any more: somebody has deleted it."""
        with self._lock:
            for task_id in ids:
                self._rows.setdefault(task_id, Removal(task_id, ""))

    def run_once(self) -> int:
        """Writes what is due; returns how many documents that were. Raises `OSError`; nothing is forgotten then."""
        written = 0
        while True:
            with self._turn():
                count = self._pass(Scope.DUE)
            if not count:
                return written
            written += count

    def take_paths(self) -> set[str]:
        """The files written since the last call, for filesystems that must be synced file by file."""
        with self._lock:
            paths, self._paths = self._paths, set()
        return paths

    def _run_patiently(self) -> None:
        """A disk that refuses files delays them; the journal still holds what they would say."""
        try:
            self.run_once()
        except OSError:
            self._stopped.wait(self._pace.overload_seconds)
            self._wake.set()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Passes are made one at a time, and whoever waits comes before whoever has just had a turn."""
        with self._next_turn:
            self._pass_lock.acquire()
        try:
            yield
        finally:
            self._pass_lock.release()

    def _flush(self) -> None:
        # Counted first: more may come in all the time, behind what is there, and this must end.
        ended, older, others = len(self._ended), len(self._older), len(self._unfinished)
        for scope, count in ((Scope.ENDED, ended), (Scope.UNFINISHED, older), (Scope.UNFINISHED, others)):
            for _ in range(0, count, SLICE):
                self._pass(scope)
        self._pass(Scope.ENDED)  # users are there without any task, too
        self._pass_rows()

    def _put(self, unfinished: dict[str, Version], ended: dict[str, Document]) -> None:
        self._unfinished.update(unfinished)
        for task_id in ended:
            self._unfinished.pop(task_id, None)
        if self._older:
            for task_id in (*ended, *unfinished):
                self._older.pop(task_id, None)
        self._ended.update(ended)
        for task_id in unfinished:
            self._ended.pop(task_id, None)

    def _pass(self, scope: Scope) -> int:
        load = self._take(scope)
        self._write(load)
        self._finish(load)
        return len(load.documents) + len(load.users) + len(load.rows)

    def _pass_rows(self) -> None:
        for _ in range(0, len(self._rows), SLICE):
            with self._lock:
                load = _Load({}, {}, _slice(self._rows))
            self._write(load)

    def _take(self, scope: Scope) -> _Load:
        with self._lock:
            if scope is Scope.DUE:
                scope = self._what_is_due()
            source = self._source(scope)
            in_order = reversed(source.items()) if scope is Scope.CROWD else source.items()
            # Readers look without the lock: a document is in its new place before it leaves the old one.
            self._writing = documents = dict(islice(in_order, SLICE))
            self._writing_users = users = self._users
            self._users = {}
            for task_id in documents:
                del source[task_id]
            # Rows go with their files: most of what has just come in ends before anybody asks for a list.
            rows = {task_id: self._rows.pop(task_id) for task_id in documents if task_id in self._rows}
            return _Load(documents, users, rows)

    def _source(self, scope: Scope) -> dict[str, Document]:
        if scope is Scope.ENDED:
            return self._ended
        if scope is Scope.CROWD and not self._ends_by_itself():
            return self._unfinished or self._older
        if scope is not Scope.UNFINISHED and self._unfinished_count > BUSY:
            return self._overdue()
        return self._older or self._unfinished

    def _what_is_due(self) -> Scope:
        if self._ended:
            return Scope.ENDED
        return Scope.DUE if self._calm.is_set() else Scope.CROWD

    def _begin_crowd(self) -> None:
        """Submissions are slowed down; the lock is held."""
        self._calm.clear()
        now = time.monotonic()
        if now - self._counted >= 4 * PACE_SECONDS:
            # After a long silence the first of a crowd are not much to go by: it is given a moment.
            self._ends, self._counted, self._ends_per_second = 0, now, float("inf")

    def _ends_by_itself(self) -> bool:
        """Whether a crowd is gone in a moment, as tasks end just now: most of it would be written for nothing."""
        now = time.monotonic()
        passed = now - self._counted
        if passed >= PACE_SECONDS:
            self._ends_per_second = self._ends / passed
            self._ends, self._counted = 0, now
        return self._unfinished_count < self._ends_per_second * self._pace.overload_seconds / 2

    def _overdue(self) -> dict[str, Document]:
        """The unfinished ones that are to be written before they are `overload_seconds` old. The age of each is not
        kept: twice in that time the older ones are parted from those that have come since."""
        now = time.monotonic()
        if now - self._parted < self._pace.overload_seconds / 2:
            return {}
        if not self._older:
            self._older, self._unfinished, self._parted = self._unfinished, {}, now
            return {}
        return self._older

    def _write(self, load: _Load) -> None:
        if not (load.documents or load.users or load.rows):
            return
        assert self._pen is not None, "the writer is not open"
        try:
            self._pen.write(_batch(load))
        except OSError as error:
            self.failure = error
            self._put_back(load)
            raise
        self._indexed(load.rows.values())

    def _put_back(self, load: _Load) -> None:
        with self._lock:
            newer = (self._unfinished, self._older, self._ended)
            older = {name: it for name, it in load.documents.items() if not any(name in known for known in newer)}
            self._put(*sort(older))
            self._rows = {**load.rows, **self._rows}
            self._users = {**load.users, **self._users}
            self._writing, self._writing_users = {}, {}

    def _finish(self, load: _Load) -> None:
        self.failure = None
        self._written([document for document in load.documents.values() if isinstance(document, Version)])
        with self._lock:
            if not HAS_SYNCFS:
                self._paths.update(_paths(self._layout, load.documents, load.users))
            self._writing, self._writing_users = {}, {}
            if len(self._ended) < BACKLOG // 2:
                self._room.set()
            if self._unfinished_count < CROWD // 2:
                self._calm.set()
            if self._unfinished_count:
                self._wake.set()


def sort(documents: dict[str, Document]) -> tuple[dict[str, Version], dict[str, Document]]:
    """Those of tasks that go on, and those of tasks that have ended or gone."""
    unfinished: dict[str, Version] = {}
    ended: dict[str, Document] = {}
    for task_id, document in documents.items():
        if isinstance(document, Version) and document.task.status not in TERMINAL:
            unfinished[task_id] = document
        else:
            ended[task_id] = document
    return unfinished, ended


def _slice(documents: dict[str, _D]) -> dict[str, _D]:
    """Takes out the oldest documents, at most `SLICE`."""
    return {task_id: documents.pop(task_id) for task_id in tuple(islice(documents, SLICE))}


def _batch(load: _Load) -> Batch:
    return Batch(
        tasks=[
            (task_id, document.body) for task_id, document in load.documents.items() if isinstance(document, Version)
        ],
        users=[(user_id, user.to_json()) for user_id, user in load.users.items() if isinstance(user, User)],
        removals=[document for document in load.documents.values() if isinstance(document, Removal)],
        removed_users=[user_id for user_id, user in load.users.items() if isinstance(user, RemovedUser)],
        rows=[document.body for document in load.rows.values() if isinstance(document, Version)],
        gone=[task_id for task_id, document in load.rows.items() if isinstance(document, Removal)],
    )


def _paths(layout: Layout, task_ids: Iterable[str], user_ids: Iterable[str]) -> Iterator[str]:
    """What has been changed on the disk: files, and the directories that name them."""
    yield from map(layout.task, task_ids)
    yield from map(layout.user, user_ids)
    yield from (layout.tasks, layout.users, layout.index, f"{layout.index}-wal")
