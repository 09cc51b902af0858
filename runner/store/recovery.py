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

The cost is that of the journal and of the unfinished tasks, never of all tasks, except for a rebuild of the index.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from runner.errors import CorruptRecord, FormatError
from runner.store.files import Files, Layout
from runner.store.index import Index
from runner.store.journal import Entry, Kind, replay, segments
from runner.store.records import Removal, RemovedUser
from runner.store.scribe import Batch, DirectPen, pretty
from runner.store.users import User
from runner.task import Task, from_json, to_json

FORMAT = 1
REBUILD_CHUNK = 10_000


@dataclass
class Recovered:
    """What recovery found. `live` are the unfinished tasks, oldest first; `notes` are lines for people."""

    live: list[Task] = field(default_factory=list)
    last_segment: int = 0
    last_seq: int = 0
    records: int = 0
    rewritten: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class _Truth:
    """What the journal says, by id: the latest body of each task and user."""

    tasks: dict[str, bytes | Removal] = field(default_factory=dict)
    users: dict[str, bytes | RemovedUser] = field(default_factory=dict)


def check_format(files: Files, layout: Layout) -> None:
    """Claims an empty directory for this format. Raises `FormatError` for a newer one."""
    try:
        text = files.read(layout.version).decode("ascii", "replace").strip()
    except FileNotFoundError:
        files.replace(layout.version, f"{FORMAT}\n".encode(), f"{layout.version}.tmp")
        files.sync_path(layout.version)
        return
    if not text.isdigit() or int(text) > FORMAT:
        raise FormatError(f"{layout.version} says format {text!r}; this version reads {FORMAT} and older: upgrade it")


def recover(files: Files, layout: Layout, index: Index, progress: Callable[[str], None]) -> Recovered:
    """Makes files and index agree with the journal and returns what is unfinished. `index` is opened by this."""
    found = Recovered()
    truth = _read_journal(files, layout, found)
    pen = DirectPen(files, layout)
    pen.write(_missing(files, layout, truth, found))
    if not _open_index(files, layout, index, found):
        _rebuild(files, layout, pen, found, progress)
        index.mark_complete()
    pen.write(_rows(files, layout, truth))
    found.live = _load_live(files, layout, index, pen, found)
    pen.close()
    return found


def quarantine(files: Files, layout: Layout, path: str, reason: str) -> str:
    """Moves a file that is not what it should be to corrupt/, with the reason beside it; returns where it is now."""
    target = f"{layout.corrupt}/{os.path.basename(path)}"
    files.rename(path, target)
    files.replace(f"{target}.reason.txt", f"{reason}\n".encode("utf-8", "backslashreplace"), f"{target}.tmp")
    return target


def _read_journal(files: Files, layout: Layout, found: Recovered) -> _Truth:
    truth = _Truth()
    numbered = segments(files, layout.journal)
    for number, path in numbered:
        segment, entries = replay(files, path, number)
        for entry in entries:
            _remember(truth, entry)
        found.records += len(entries)
        found.last_segment = number
        found.last_seq = max(found.last_seq, segment.last_seq)
        if segment.torn and number != numbered[-1][0]:
            _keep_copy(files, layout, path, found)
    return truth


def _remember(truth: _Truth, entry: Entry) -> None:
    if entry.kind is Kind.TASK:
        truth.tasks[_id_of(entry.body)] = entry.body
    elif entry.kind is Kind.REMOVAL:
        removal = Removal.decode(entry.body)
        truth.tasks[removal.task_id] = removal
    elif entry.kind is Kind.USER:
        truth.users[User.model_validate_json(entry.body).user_id] = entry.body
    else:
        user_id = entry.body.decode()
        truth.users[user_id] = RemovedUser(user_id)


def _id_of(body: bytes) -> str:
    # `id` is the first field that the model writes: parsing the rest of a checksummed record would cost ten times this.
    return body[7 : body.index(b'"', 7)].decode()


def _keep_copy(files: Files, layout: Layout, path: str, found: Recovered) -> None:
    """A sealed segment ends in bytes that are no record: either a write that failed and was repeated in the next
    segment, or damage. A person should be able to look at it."""
    name = os.path.basename(path)
    try:
        files.link(path, f"{layout.corrupt}/{name}")
    except FileExistsError:
        return
    found.notes.append(f"journal segment {name} ends in bytes that are no record; a copy is in corrupt/")


def _missing(files: Files, layout: Layout, truth: _Truth, found: Recovered) -> Batch:
    """What the journal says and the files do not."""
    tasks = [(task_id, body) for task_id, body in _bodies(truth) if _is_behind(files, layout, task_id, body)]
    found.rewritten = len(tasks)
    return Batch(
        tasks=tasks,
        users=[(user_id, user) for user_id, user in truth.users.items() if isinstance(user, bytes)],
        removals=[body for body in truth.tasks.values() if isinstance(body, Removal)],
        removed_users=[user_id for user_id, user in truth.users.items() if isinstance(user, RemovedUser)],
    )


def _rows(files: Files, layout: Layout, truth: _Truth) -> Batch:
    """The index rows of everything that the journal mentions, as the files now say it."""
    rows = [
        to_json(task) for task_id, _ in _bodies(truth) if isinstance(task := _read_task(files, layout, task_id), Task)
    ]
    return Batch(rows=rows, gone=[task_id for task_id, body in truth.tasks.items() if isinstance(body, Removal)])


def _bodies(truth: _Truth) -> Iterator[tuple[str, bytes]]:
    return ((task_id, body) for task_id, body in truth.tasks.items() if isinstance(body, bytes))


def _is_behind(files: Files, layout: Layout, task_id: str, body: bytes) -> bool:
    try:
        if files.read(layout.task(task_id)) == pretty(body):
            return False
    except FileNotFoundError:
        return True
    on_disk = _read_task(files, layout, task_id)
    return not isinstance(on_disk, Task) or on_disk.version < from_json(body).version


def _read_task(files: Files, layout: Layout, task_id: str) -> Task | CorruptRecord | None:
    try:
        task = from_json(files.read(layout.task(task_id)))
    except FileNotFoundError:
        return None
    except CorruptRecord as error:
        return error
    return task if task.id == task_id else CorruptRecord(f"it says that its id is {task.id!r}")


def _open_index(files: Files, layout: Layout, index: Index, found: Recovered) -> bool:
    try:
        return index.open()
    except FormatError as error:
        found.notes.append(f"{error}; it is rebuilt")
        index.close()
        for suffix in ("", "-wal", "-shm"):
            files.remove(layout.index + suffix)
        return index.open()


def _rebuild(files: Files, layout: Layout, pen: DirectPen, found: Recovered, progress: Callable[[str], None]) -> None:
    names = [name for name in files.names(layout.tasks) if name.endswith(".json")]
    for start in range(0, len(names), REBUILD_CHUNK):
        chunk = names[start : start + REBUILD_CHUNK]
        tasks = (_load(files, layout, name.removesuffix(".json"), found) for name in chunk)
        pen.write(Batch(rows=[to_json(task) for task in tasks if task is not None]))
        if len(names) > REBUILD_CHUNK:
            progress(f"rebuilding the index: {start + len(chunk)} of {len(names)} tasks")


def _load_live(files: Files, layout: Layout, index: Index, pen: DirectPen, found: Recovered) -> list[Task]:
    live, stale, gone = [], [], []
    for task_id in index.live_ids():
        task = _load(files, layout, task_id, found)
        if task is None:
            gone.append(task_id)
        elif task.is_terminal:
            stale.append(to_json(task))
        else:
            live.append(task)
    pen.write(Batch(rows=stale, gone=gone))
    return live


def _load(files: Files, layout: Layout, task_id: str, found: Recovered) -> Task | None:
    task = _read_task(files, layout, task_id)
    if isinstance(task, CorruptRecord):
        where = quarantine(files, layout, layout.task(task_id), str(task))
        found.notes.append(f"{where}: {task}")
        return None
    return task
