"""Opening a data directory, whatever state its last owner left it in.

    journal says        file says              what is done
    version n           missing, torn or < n   the file is rewritten from the journal
    version n           n or newer             nothing (newer: durability `process` and a power cut)
    removed             anything               file, log, inputs and outputs are deleted
    nothing             a task                 nothing
    nothing             not a task             the file goes to corrupt/ with a reason; never read as empty
    torn at its end     –                      the tail is ignored: nobody was told of it
    damaged before it   –                      a copy goes to corrupt/; what can be read is used
    index row           no file, no record     the row goes: somebody deleted the task by hand
    index missing, damaged, of another schema  rebuilt from the files
    a sync has failed   anything               every file that the journal knows is written again, and the index is
                                               rebuilt: see `checkpoint.py`

The cost is that of the journal and of the unfinished tasks, never of all tasks, except for a rebuild of the index.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from runner.errors import CorruptRecord, Degraded, FormatError
from runner.store.aside import quarantine
from runner.store.files import Files, Layout, is_regular
from runner.store.index import Index
from runner.store.journal import TASK_FRONT, Entry, Kind, Segment, replay, segments
from runner.store.records import Removal, RemovedUser
from runner.store.rows import is_failure_of_disk
from runner.store.scribe import Batch, DirectPen, pretty
from runner.store.users import User, read_user
from runner.task import Task, from_json, to_json

FORMAT: Final = 1
REBUILD_CHUNK = 10_000
NOT_REGULAR: Final = "it is no regular file"
_FORMAT_NUMBER: Final = re.compile("[1-9][0-9]{0,5}")

Migration = Callable[[Files, Layout], None]
MIGRATIONS: Final[Mapping[int, Migration]] = {}
"""How the directory gets from each older format to the next. One that was cut short is done again."""


@dataclass
class Recovered:
    """What recovery found. `live` are the unfinished tasks, oldest first; `notes` are lines for people."""

    live: list[Task] = field(default_factory=list)
    last_segment: int = 0
    last_seq: int = 0
    records: int = 0
    rewritten: int = 0
    notes: list[str] = field(default_factory=list)


def check_format(files: Files, layout: Layout, migrations: Mapping[int, Migration] = MIGRATIONS) -> None:
    """Claims an empty directory for this format, or brings an older one up to it. Raises `FormatError` for another."""
    found = read_format(files, layout)
    if found is None:
        found = FORMAT
        files.replace_durably(layout.version, f"{found}\n".encode())
    if found > FORMAT:
        raise FormatError(
            f"{layout.data} has format {found}, and this version reads {FORMAT} and older: it was written by a newer "
            "version of the runner, use that one or a later one; nothing was changed"
        )
    if found < min(migrations, default=FORMAT):
        raise FormatError(f"{layout.data} has format {found}, which this version cannot bring up to {FORMAT}")
    for number in range(found, FORMAT):
        migrations[number](files, layout)
        files.replace_durably(layout.version, f"{number + 1}\n".encode())


def read_format(files: Files, layout: Layout) -> int | None:
    """The format that the directory says it has; None if it says none. Raises `FormatError` if it says nonsense."""
    try:
        text = files.read(layout.version).decode("ascii", "backslashreplace").strip()
    except FileNotFoundError:
        return None
    except CorruptRecord as error:
        raise FormatError(f"{layout.version} does not say a format: {error}") from error
    if not _FORMAT_NUMBER.fullmatch(text):
        raise FormatError(
            f"{layout.version} does not say a format, but {text[:40]!r}; `runner doctor` looks at what is there"
        )
    return int(text)


def recover(files: Files, layout: Layout, index: Index, progress: Callable[[str], None]) -> Recovered:
    """Makes files and index agree with the journal and returns what is unfinished. `index` is opened by this.
    `progress` is told what takes long. Raises `OSError`, `FormatError`; then it may be tried again."""
    pen = DirectPen(files, layout)
    try:
        return _Recovery(files, layout, index, pen, progress).run()
    finally:
        pen.close()


def say_again(files: Files, layout: Layout, last_segment: int) -> Batch:
    """The files that the segments up to `last_segment` name, all of which have been written, to be written once more:
    what they say, or what the journal says where they cannot be read. No file that is gone by now is among them.
    Nobody may write files meanwhile. Raises `OSError`; `CorruptRecord` if the journal cannot be read in full."""
    recovery = _Recovery(files, layout, Index(layout.index), DirectPen(files, layout), lambda line: None)
    try:
        return recovery.say_again(last_segment)
    except ValueError as error:
        raise CorruptRecord(f"a record of the journal is no task: {error}") from error


def clear_the_way(files: Files, layout: Layout) -> list[str]:
    """Moves to corrupt/ what lies in the place of one of the store's own files and cannot be one: a directory, a pipe,
    a link where none may be followed. Returns a line for people for each. Raises `OSError`."""
    return [f"{quarantine(files, layout, path, NOT_REGULAR)}: {NOT_REGULAR}" for path in in_the_way(layout)]


def in_the_way(layout: Layout) -> list[str]:
    """What `clear_the_way` would move."""
    odd = [path for path in layout.own_files if os.path.lexists(path) and not is_regular(path)]
    # The index may well be kept on another disk.
    return [path for path in odd if path != layout.index or not os.path.isfile(path)]


class _Recovery:
    """One recovery. What the journal says is kept by id: the latest body of each task and user."""

    def __init__(
        self, files: Files, layout: Layout, index: Index, pen: DirectPen, progress: Callable[[str], None]
    ) -> None:
        self._files = files
        self._layout = layout
        self._index = index
        self._pen = pen
        self._progress = progress
        self._trusts_files = not os.path.exists(layout.rewrite)
        self._tasks: dict[str, bytes | Removal] = {}
        self._users: dict[str, bytes | RemovedUser] = {}
        self._rows: list[bytes] = []
        self._found = Recovered()

    def run(self) -> Recovered:
        """Journal, files, index, in this order: each is made from the one before."""
        self._read_journal()
        self._pen.write(self._missing())
        if not self._trusts_files:
            self._found.notes.append("a sync has failed: all that the journal says is written again, the index rebuilt")
            self._remove_index()
        try:
            self._bring_up_index()
        except (FormatError, Degraded, OSError) as error:
            if not _is_damage(error):
                raise
            self._found.notes.append(f"{error}; it is rebuilt")
            self._remove_index()
            self._bring_up_index()
        return self._found

    def say_again(self, last_segment: int) -> Batch:
        """See `say_again`."""
        self._read_journal(last_segment)
        if self._found.notes:
            raise CorruptRecord("; ".join(self._found.notes))
        # A later record, or somebody's hand, may have removed it.
        return Batch(
            tasks=[
                (task_id, self._newest(task_id, body)[0])
                for task_id, body in self._tasks.items()
                if isinstance(body, bytes) and is_regular(self._layout.task(task_id))
            ],
            users=[
                (user_id, self._newest_user(user_id, body))
                for user_id, body in self._users.items()
                if isinstance(body, bytes) and is_regular(self._layout.user(user_id))
            ],
        )

    # The journal

    def _read_journal(self, last_segment: int | None = None) -> None:
        before: Segment | None = None
        for number, path in segments(self._files, self._layout.journal):
            if last_segment is not None and number > last_segment:
                break
            try:
                segment, entries = replay(self._files, path, number)
            except CorruptRecord as error:
                self._quarantine(path, error)
                continue
            useless = sum(not self._remember_if_sound(entry) for entry in entries)
            damaged = segment.damaged or useless > 0
            # Where the first segment is empty nothing says which number was the last one before it.
            has_gap = bool(self._found.last_seq) and segment.first_seq > self._found.last_seq + 1
            if damaged or has_gap:
                self._keep_copy(segment if damaged or before is None else before)
            self._found.records += len(entries)
            self._found.last_segment = number
            self._found.last_seq = max(self._found.last_seq, segment.last_seq)
            before = segment

    def _remember_if_sound(self, entry: Entry) -> bool:
        """Whether a record could be used: one with a right checksum and wrong content was written by somebody else."""
        try:
            self._remember(entry)
        except (ValueError, CorruptRecord):
            return False
        return True

    def _remember(self, entry: Entry) -> None:
        if entry.kind is Kind.TASK:
            self._tasks[id_of(entry.body)] = entry.body
        elif entry.kind is Kind.REMOVAL:
            removal = Removal.decode(entry.body)
            self._tasks[removal.task_id] = removal
        elif entry.kind is Kind.USER:
            self._users[User.model_validate_json(entry.body).user_id] = entry.body
        else:
            user_id = entry.body.decode()
            self._users[user_id] = RemovedUser(user_id)

    def _keep_copy(self, segment: Segment) -> None:
        """Records are missing: damage, since what is torn by a crash is followed by the next number. A person should be
        able to look at it."""
        name = os.path.basename(segment.path)
        with contextlib.suppress(FileExistsError):
            self._files.link(segment.path, f"{self._layout.corrupt}/{name}")
        self._found.notes.append(f"journal segment {name} is damaged: records are missing; a copy is in corrupt/")

    # The files

    def _missing(self) -> Batch:
        """What the journal says and the files do not."""
        bodies = [(task_id, body) for task_id, body in self._tasks.items() if isinstance(body, bytes)]
        tasks = [document for task_id, body in bodies if (document := self._compare(task_id, body)) is not None]
        self._found.rewritten = len(tasks)
        return Batch(
            tasks=tasks,
            users=[(user_id, user) for user_id, user in self._users.items() if isinstance(user, bytes)],
            removals=[body for body in self._tasks.values() if isinstance(body, Removal)],
            removed_users=[user_id for user_id, user in self._users.items() if isinstance(user, RemovedUser)],
        )

    def _compare(self, task_id: str, body: bytes) -> tuple[str, bytes] | None:
        """The file to write for one task of the journal, if any, and its row among `_rows`."""
        try:
            newest, is_written = self._newest(task_id, body)
        except ValueError as error:
            # A record with a right checksum and wrong content must not be written over a good file.
            del self._tasks[task_id]
            self._found.notes.append(f"the journal's record of task {task_id} is left out: {error}")
            return None
        self._rows.append(newest)
        return None if is_written and self._trusts_files else (task_id, newest)

    def _newest(self, task_id: str, body: bytes) -> tuple[bytes, bool]:
        """The newest version, and whether its file has it. Raises `ValueError` for a body that is no task."""
        data = self._read_regular(task_id)
        # Almost all files say what the journal says: to compare the bytes costs half as much as to read the task.
        if data == pretty(body):
            return body, True
        version = _read_record(body).version
        if data is None:
            return body, False
        with contextlib.suppress(CorruptRecord):
            task = from_json(data)
            if task.id == task_id and task.version >= version:
                return to_json(task), True
        return body, False

    def _read_regular(self, task_id: str) -> bytes | None:
        """A task's file; None if there is none, or if what was there could be none and is now in corrupt/."""
        path = self._layout.task(task_id)
        try:
            return self._files.read(path)
        except FileNotFoundError:
            return None
        except CorruptRecord as error:
            self._quarantine(path, error)
            return None

    def _newest_user(self, user_id: str, body: bytes) -> bytes:
        """What its file says, which is as new as the journal or newer; what the journal says if it cannot be read."""
        try:
            return read_user(self._files.read(self._layout.user(user_id)), user_id).to_json()
        except CorruptRecord:
            return body

    # The index

    def _bring_up_index(self) -> None:
        if not self._index.open():
            self._rebuild()
            self._index.mark_complete()
        gone = [task_id for task_id, body in self._tasks.items() if isinstance(body, Removal)]
        self._pen.write(Batch(rows=self._rows, gone=gone))
        self._load_live()

    def _remove_index(self) -> None:
        self._index.close()
        self._pen.close()
        if os.path.exists(self._layout.index) and not is_regular(self._layout.index):
            quarantine(self._files, self._layout, self._layout.index, "it is no regular file")
        for suffix in ("", "-wal", "-shm"):
            self._files.remove(self._layout.index + suffix)

    def _rebuild(self) -> None:
        names = [name for name in self._files.names(self._layout.tasks) if name.endswith(".json")]
        for start in range(0, len(names), REBUILD_CHUNK):
            chunk = names[start : start + REBUILD_CHUNK]
            tasks = (self._load(name.removesuffix(".json")) for name in chunk)
            self._pen.write(Batch(rows=[to_json(task) for task in tasks if isinstance(task, Task)]))
            if len(names) > REBUILD_CHUNK:
                self._progress(f"rebuilding the index: {start + len(chunk)} of {len(names)} tasks")

    def _load_live(self) -> None:
        stale, gone = [], []
        self._found.live.clear()
        for task_id in self._index.live_ids():
            task = self._load(task_id)
            if task is None:
                gone.append(task_id)
            elif isinstance(task, Task) and task.is_terminal:
                stale.append(to_json(task))
            elif isinstance(task, Task):
                self._found.live.append(task)
        self._pen.write(Batch(rows=stale, gone=gone))

    def _load(self, task_id: str) -> Task | OSError | None:
        """The task in a file; None if it is gone, or was none and is now in corrupt/."""
        path = self._layout.task(task_id)
        try:
            task = from_json(self._files.read(path))
            if task.id == task_id:
                return task
            self._quarantine(path, CorruptRecord(f"it says that its id is {task.id!r}"))
        except FileNotFoundError:
            return None
        except CorruptRecord as error:
            self._quarantine(path, error)
        except OSError as error:
            # One bad sector must not keep all others from running; it stays where it is.
            self._found.notes.append(f"{error.filename} cannot be read and is left out: {error.strerror}")
            return error
        return None

    def _quarantine(self, path: str, reason: CorruptRecord) -> None:
        where = quarantine(self._files, self._layout, path, str(reason))
        self._found.notes.append(f"{where}: {reason}")


def id_of(body: bytes) -> str:
    """The id in the record of a task. Raises `CorruptRecord`, `ValueError`."""
    # `id` is the first field that the model writes: parsing the rest of a checksummed record would cost ten times this.
    if not body.startswith(TASK_FRONT):
        return from_json(body).id
    return body[len(TASK_FRONT) : body.index(b'"', len(TASK_FRONT))].decode()


def _read_record(body: bytes) -> Task:
    """The task in a record. Raises `ValueError`."""
    try:
        return from_json(body)
    except CorruptRecord as error:
        raise ValueError(str(error)) from error


def _is_damage(error: FormatError | Degraded | OSError) -> bool:
    """Whether it is the index's content that is wrong, and not the disk."""
    if isinstance(error, FormatError):
        return True
    return isinstance(error.__cause__, sqlite3.Error) and not is_failure_of_disk(error.__cause__)
