"""Write-behind: brings the task files and the index up to date, latest version only.

A task file is written only after its journal record is durable, so it needs no sync of its own; the checkpoint gives
it one. Finished tasks are written at the next pass, since they will not change again. Waiting ones are written at the
next pass too while little happens, and a little later when much does: most of them end before their turn comes, and
creating one file costs a third of creating and replacing it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from typing import NamedTuple, TypeVar

from runner.store.files import HAS_SYNCFS, Layout
from runner.store.records import Removal, RemovedUser
from runner.store.scribe import Batch, Pen
from runner.store.users import User
from runner.task import Task

BUSY = 256
"""With more documents than this waiting, the unfinished ones wait for `overload_seconds`."""
BACKLOG = 50_000
"""With more finished tasks than this unwritten, submissions wait."""
SLICE = 2_000
"""Documents a batch: what memory a pass may take, and how long a list can wait for one."""


class Version(NamedTuple):
    """A task and its JSON as the journal has it."""

    task: Task
    body: bytes


Document = Version | Removal
_D = TypeVar("_D", bound=Version | Removal)


class Scope(Enum):
    """Which documents a pass writes: those whose time has come, or all."""

    DUE = auto()
    ALL = auto()


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
    """Holds what is not written yet. `note`, `find` and `flush` from any thread; `run` is its own thread."""

    def __init__(
        self, layout: Layout, pen: Callable[[], Pen], pace: Pace, written: Callable[[list[Version]], None]
    ) -> None:
        self._layout = layout
        self._make_pen = pen
        self._pace = pace
        self._written = written
        self._lock = threading.Lock()
        self._pass_lock = threading.Lock()
        self._ended: dict[str, Document] = {}
        self._unfinished: dict[str, Document] = {}
        self._users: dict[str, User | RemovedUser] = {}
        self._rows: dict[str, Document] = {}
        self._writing: Mapping[str, Document] = {}
        self._oldest_unfinished: float | None = None
        self._wake = threading.Event()
        self._stopped = False
        self._room = threading.Event()
        self._room.set()
        self._paths: set[str] = set()
        self.failure: OSError | None = None

    def open(self) -> None:
        """Gets its pen. On a thread that lives as long as the process."""
        self._pen = self._make_pen()

    def note(self, documents: dict[str, Document], users: dict[str, User | RemovedUser]) -> None:
        """A batch is durable; its latest versions are to be written. Quick."""
        with self._lock:
            for task_id, document in documents.items():
                self._sort(task_id, document)
            self._rows.update(documents)
            self._users.update(users)
            if self._unfinished and self._oldest_unfinished is None:
                self._oldest_unfinished = time.monotonic()
            if len(self._ended) > BACKLOG:
                self._room.clear()
        self._wake.set()

    def find(self, task_id: str) -> Document | None:
        """The newest version of a task that has ended or gone, if it is not on the disk yet."""
        # Looked up from newest to oldest: a pass moves documents only in that direction.
        return self._ended.get(task_id) or self._writing.get(task_id)

    def find_user(self, user_id: str) -> User | RemovedUser | None:
        """A user record that is not on the disk yet."""
        return self._users.get(user_id)

    def wait_for_room(self, timeout_seconds: float) -> bool:
        """Blocks while the files are too far behind; False if they still are at the end."""
        return self._room.wait(timeout_seconds)

    @property
    def backlog(self) -> int:
        """How many task files are not up to date."""
        return len(self._ended) + len(self._unfinished) + len(self._writing)

    def run(self) -> None:
        """Makes a pass whenever there is something to write, until `stop`."""
        while not self._stopped:
            self._wake.wait()
            if not self._stopped:
                # What is noted during the pause is covered by the pass that follows it.
                time.sleep(self._pace.write_behind_seconds)
                self._wake.clear()
                self._run_patiently()

    def stop(self) -> None:
        """Writes everything, ends `run` and lets go of the pen."""
        self._stopped = True
        self._wake.set()
        self.flush()
        self._pen.close()

    def flush(self) -> None:
        """Everything noted before this call is written when it returns, though not synced. Raises `OSError`."""
        with self._pass_lock:
            while self._pass(Scope.ALL):
                pass

    def flush_rows(self) -> None:
        """The index has a row for everything noted before this call."""
        # Always by way of the lock: rows that a pass has just taken are not written yet.
        with self._pass_lock:
            while load := self._take_rows():
                self._write(load)

    def run_once(self) -> int:
        """Writes what is due; returns how many documents that were. Raises `OSError`; nothing is forgotten then."""
        with self._pass_lock:
            written = 0
            while count := self._pass(Scope.DUE):
                written += count
        return written

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
            time.sleep(self._pace.overload_seconds)
            self._wake.set()

    def _sort(self, task_id: str, document: Document) -> None:
        if isinstance(document, Version) and not document.task.is_terminal:
            self._ended.pop(task_id, None)
            self._unfinished[task_id] = document
        else:
            self._unfinished.pop(task_id, None)
            self._ended[task_id] = document

    def _pass(self, scope: Scope) -> int:
        load = self._take(scope)
        self._write(load)
        self._finish(load)
        return len(load.documents) + len(load.users) + len(load.rows)

    def _take(self, scope: Scope) -> _Load:
        with self._lock:
            if not self._ended and (scope is Scope.ALL or self._unfinished_are_due()):
                documents: dict[str, Document] = _slice(self._unfinished)
                self._oldest_unfinished = time.monotonic() if self._unfinished else None
            elif len(self._ended) <= SLICE:
                documents, self._ended = self._ended, {}
            else:
                documents = _slice(self._ended)
            self._writing = documents
            users, self._users = self._users, {}
            return _Load(documents, users, _slice(self._rows))

    def _take_rows(self) -> _Load | None:
        with self._lock:
            rows = _slice(self._rows)
        return _Load({}, {}, rows) if rows else None

    def _unfinished_are_due(self) -> bool:
        if self._oldest_unfinished is None:
            return False
        if len(self._unfinished) <= BUSY:
            return True
        return time.monotonic() - self._oldest_unfinished >= self._pace.overload_seconds

    def _write(self, load: _Load) -> None:
        if not (load.documents or load.users or load.rows):
            return
        try:
            self._pen.write(_batch(load))
        except OSError as error:
            self.failure = error
            self._put_back(load)
            raise
        self.failure = None

    def _put_back(self, load: _Load) -> None:
        with self._lock:
            for task_id, document in load.documents.items():
                if task_id not in self._unfinished and task_id not in self._ended:
                    self._sort(task_id, document)
            self._rows = {**load.rows, **self._rows}
            self._users = {**load.users, **self._users}
            self._writing = {}
            self._oldest_unfinished = time.monotonic() if self._unfinished else None

    def _finish(self, load: _Load) -> None:
        self._written([document for document in load.documents.values() if isinstance(document, Version)])
        with self._lock:
            if not HAS_SYNCFS:
                self._paths.update(self._layout.task(task_id) for task_id in load.documents)
            self._writing = {}
            if len(self._ended) < BACKLOG // 2:
                self._room.set()
            if self._unfinished:
                self._wake.set()


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
