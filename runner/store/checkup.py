"""What is wrong in a data directory, found by reading alone, and what a repair does about it.

The checks hold whether or not somebody owns the directory. What is changed while they look is in the journal, and
nothing that the journal speaks of is judged by its file. A repair is for the owner; it deletes nothing that could be
anybody's: what is damaged goes to corrupt/, what belongs to no task to trash/, each with its reason.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from urllib.parse import quote

from runner.errors import CorruptRecord, FormatError
from runner.store.aside import REASON, count_aside, quarantine, throw_away
from runner.store.files import Files, Layout, is_regular
from runner.store.findings import Finding, listed
from runner.store.journal import Entry, Kind, replay, segments
from runner.store.records import Removal
from runner.store.recovery import FORMAT, MIGRATIONS, NOT_REGULAR, id_of, in_the_way, read_format
from runner.store.rows import SCHEMA_VERSION
from runner.store.store import is_id
from runner.store.users import User, read_user
from runner.task import Status, Task, from_json

Exists = Callable[[str], bool]
LOOKS: Final = 3
YOUNG_SECONDS: Final = 3600.0


@dataclass(slots=True)
class _Journal:
    """What the segments say. `tasks` and `users` are ids."""

    records: int = 0
    damaged: list[str] = field(default_factory=list)
    tasks: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)


class Checkup:
    """Looks once, by `run`. `exists` says whether the owner knows a task; None: there is none, and nobody knows more
    than is on the disk."""

    def __init__(self, files: Files, layout: Layout, exists: Exists | None = None) -> None:
        self._files = files
        self._layout = layout
        self._exists = exists
        self._journal = _Journal()
        self._statuses: dict[str, Status] = {}
        self._named: set[str] = set()
        self._damaged: dict[str, str] = {}
        self._unreadable: list[str] = []
        self._without_files: list[str] = []

    def run(self) -> Iterator[Finding]:
        """Every check in turn. Raises `OSError` where a directory cannot be read."""
        if not os.path.lexists(self._layout.version) and not os.path.isdir(self._layout.tasks):
            yield Finding("format", True, "nothing has been kept here yet")
            return
        format = self._check_format()
        yield format
        if not format.is_well:
            return  # what is what, only the version that wrote it knows
        yield self._check_directories()
        if not all(os.path.isdir(directory) for directory in (self._layout.journal, self._layout.tasks)):
            return
        yield self._check_journal()
        yield self._check_tasks()
        yield self._check_readable()
        yield self._check_files_of_tasks()
        yield self._check_index()
        yield self._check_users()
        yield self._check_places()
        yield self._check_orphans()
        yield self._check_corrupt()
        yield Finding("trash", True, f"things in {self._layout.trash}: {count_aside(self._files, self._layout.trash)}")

    # The directory

    def _check_format(self) -> Finding:
        try:
            found = read_format(self._files, self._layout)
        except FormatError as error:
            return self._unknown_format(str(error))
        if found is None:
            return self._unknown_format(f"{self._layout.version} is not there")
        if found > FORMAT:
            return Finding(
                "format", False, f"{found}: a newer version wrote this; only that or a later one can read it"
            )
        if found < min(MIGRATIONS, default=FORMAT):
            return Finding("format", False, f"{found}: too old for this version")
        older = "" if found == FORMAT else f", which the next start brings up to {FORMAT}"
        return Finding("format", True, f"{found}{older}")

    def _unknown_format(self, text: str) -> Finding:
        """If every task can be read, it is today's."""
        reasons = [self._judge_task(name) for name in self._names(self._layout.tasks)]
        is_todays = bool(self._statuses) and not any(reasons)
        self._statuses.clear()
        if not is_todays:
            return Finding("format", False, text)
        remedy = f"write {FORMAT} into it: every task there is of that format"
        return Finding("format", False, text, (self._layout.version,), remedy, self._write_format)

    def _write_format(self) -> None:
        for directory in self._layout.directories:
            self._files.make_directory(directory)
        if os.path.lexists(self._layout.version):
            quarantine(self._files, self._layout, self._layout.version, "it says no format")
        self._files.replace_durably(self._layout.version, f"{FORMAT}\n".encode())

    def _check_directories(self) -> Finding:
        wrong = tuple(path for path in self._layout.directories if os.path.lexists(path) and not _is_usable(path))
        if not wrong:
            return Finding("directories", True, "all of them can be written to")
        text = listed("cannot be written to, or are no directories", wrong)
        remedy = "let their owner write to them; move to corrupt/ what is no directory"
        return Finding("directories", False, text, wrong, remedy, partial(self._make_usable, wrong))

    def _make_usable(self, paths: tuple[str, ...]) -> None:
        for path in paths:
            if not os.path.isdir(path):
                quarantine(self._files, self._layout, path, "it is no directory")
                self._files.make_directory(path)
            else:
                os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | stat.S_IRWXU)

    # Journal and tasks

    def _check_journal(self) -> Finding:
        self._read_journal()
        found = self._journal
        if found.damaged:
            text = listed("segments are damaged", found.damaged)
            return Finding(
                "journal", False, text, tuple(found.damaged), "use what can be read, with a copy in corrupt/", _nothing
            )
        if os.path.lexists(self._layout.rewrite):
            text = "a sync has failed: what it says is to be written again, and the index to be made anew"
            return Finding("journal", False, text, (self._layout.rewrite,), "write it again", _nothing)
        return Finding("journal", True, f"records since the last checkpoint: {found.records}")

    def _read_journal(self) -> None:
        for number, path in segments(self._files, self._layout.journal):
            try:
                segment, entries = replay(self._files, path, number)
            except FileNotFoundError:
                continue  # dropped meanwhile: its tasks are in their files
            except (CorruptRecord, FormatError) as error:
                self._journal.damaged.append(f"{os.path.basename(path)} ({error})")
                continue
            self._journal.records += len(entries)
            if segment.damaged:
                self._journal.damaged.append(os.path.basename(path))
            for entry in entries:
                self._note(entry, path)

    def _note(self, entry: Entry, path: str) -> None:
        try:
            if entry.kind is Kind.TASK:
                self._journal.tasks.add(id_of(entry.body))
            elif entry.kind is Kind.REMOVAL:
                self._journal.tasks.add(Removal.decode(entry.body).task_id)
            elif entry.kind is Kind.USER:
                self._journal.users.add(User.model_validate_json(entry.body).user_id)
            else:
                self._journal.users.add(entry.body.decode())
        except (CorruptRecord, ValueError):
            self._journal.damaged.append(f"{os.path.basename(path)} (record {entry.seq})")

    def _check_tasks(self) -> Finding:
        for name in self._names(self._layout.tasks):
            reason = self._judge_task(name)
            if reason:
                self._damaged[f"{self._layout.tasks}/{name}"] = reason
        text = f"files: {len(self._statuses)}"
        return self._finding_of_damage("tasks", text, "files are no tasks", self._damaged)

    def _judge_task(self, name: str) -> str | None:
        """Why a file among the tasks is none of theirs; None if it is, or nothing can be said of it."""
        task_id = name.removesuffix(".json")
        if task_id == name or not is_id(task_id):
            return "its name is not that of a task's file"
        self._named.add(task_id)
        try:
            task = from_json(self._files.read(self._layout.task(task_id)))
        except FileNotFoundError:
            return None
        except CorruptRecord as error:
            return None if task_id in self._journal.tasks else str(error)
        except OSError as error:
            self._unreadable.append(f"{name}: {error.strerror}")
            return None
        if task.id != task_id:
            return f"it says that its id is {task.id!r}"
        self._statuses[task_id] = task.status
        self._note_missing_files(task)
        return None

    def _check_readable(self) -> Finding:
        if self._unreadable:
            items = tuple(self._unreadable)
            return Finding("disk", False, listed("files the disk does not give", items), items)
        return Finding("disk", True, "every task file can be read")

    def _note_missing_files(self, task: Task) -> None:
        if task.id in self._journal.tasks:
            return
        needed = task.output_files if task.is_terminal else task.input_files
        missing = [path for path in needed if not os.path.exists(self._layout.absolute(path))]
        # Whoever removes a task removes its file first.
        if missing and os.path.lexists(self._layout.task(task.id)):
            self._without_files.append(f"{task.id} ({missing[0]})")

    def _check_files_of_tasks(self) -> Finding:
        if self._without_files:
            items = tuple(self._without_files)
            return Finding("files", False, listed("tasks lack a file of theirs", items), items)
        return Finding("files", True, "every task has its inputs or outputs")

    # The index

    def _check_index(self) -> Finding:
        if not os.path.lexists(self._layout.index):
            return Finding("index", True, "not there; the next start makes it from the files")
        try:
            wrong = self._compare_index()
        except sqlite3.Error as error:
            return self._bad_index(f"it cannot be read: {error}", ())
        if wrong:
            return self._bad_index(listed("tasks are not in it as in their files", wrong), wrong)
        return Finding("index", True, "as the files")

    def _compare_index(self) -> tuple[str, ...]:
        wrong = self._differing(_read_rows(self._layout.index))
        for _ in range(LOOKS):
            if wrong:
                # A file and its row are read at two moments, and there may be much between them.
                self._read_again(wrong)
                wrong = tuple(set(wrong).intersection(self._differing(_read_rows(self._layout.index))))
        return tuple(sorted(wrong))

    def _differing(self, rows: Mapping[str, str]) -> tuple[str, ...]:
        self._read_journal()  # what changed while the files were read is in flight, too
        spoken_of = self._journal.tasks | (self._named - self._statuses.keys())
        return tuple(
            task_id
            for task_id in sorted(rows.keys() | self._statuses.keys())
            if task_id not in spoken_of and rows.get(task_id) != self._statuses.get(task_id)
        )

    def _read_again(self, ids: Collection[str]) -> None:
        for task_id in ids:
            self._statuses.pop(task_id, None)
            if os.path.lexists(self._layout.task(task_id)):
                self._judge_task(f"{task_id}.json")
            else:
                self._named.discard(task_id)

    def _bad_index(self, text: str, items: tuple[str, ...]) -> Finding:
        return Finding("index", False, text, items, "make it anew from the files", self._remove_index)

    def _remove_index(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            path = self._layout.index + suffix
            if os.path.isfile(path):
                self._files.remove(path)

    # What lies around

    def _check_users(self) -> Finding:
        damaged: dict[str, str] = {}
        names = self._names(self._layout.users)
        for name in names:
            reason = self._judge_user(name)
            if reason:
                damaged[f"{self._layout.users}/{name}"] = reason
        return self._finding_of_damage("users", f"records: {len(names)}", "files are no user records", damaged)

    def _judge_user(self, name: str) -> str | None:
        user_id = name.removesuffix(".json")
        if user_id == name:
            return "its name is not that of a user's file"
        try:
            read_user(self._files.read(self._layout.user(user_id)), user_id)
        except CorruptRecord as error:
            return None if user_id in self._journal.users else str(error)
        except OSError:
            return None
        return None

    def _check_places(self) -> Finding:
        """What only a regular file may be."""
        logs = (f"{self._layout.logs}/{name}" for name in self._names(self._layout.logs))
        odd = dict.fromkeys((*in_the_way(self._layout), *(path for path in logs if not _is_file(path))), NOT_REGULAR)
        return self._finding_of_damage("places", "nothing odd in the place of a file", "places hold no file", odd)

    def _check_orphans(self) -> Finding:
        orphans = dict(self._orphans())
        if not orphans:
            return Finding("orphans", True, "every upload, result and log belongs to a task")
        items = tuple(self._layout.relative(path) for path in orphans)
        return Finding(
            "orphans", False, listed("belong to no task", items), items, "move them to trash/",
            partial(self._put_aside, throw_away, orphans),
        )  # fmt: skip

    def _orphans(self) -> Iterator[tuple[str, str]]:
        for path, task_id in self._belongings():
            if task_id in self._named or task_id in self._journal.tasks or self._is_owners(path, task_id):
                continue
            yield path, f"there is no task {task_id}"

    def _is_owners(self, path: str, task_id: str) -> bool:
        """Whether the owner has use for it, or may have in a moment: files are brought in before their task is made."""
        if self._exists is None:
            return False
        try:
            age = time.time() - os.lstat(path).st_mtime
        except FileNotFoundError:
            return True
        return age < YOUNG_SECONDS or self._exists(task_id)

    def _belongings(self) -> Iterator[tuple[str, str]]:
        """What is named for a task, and the task's id."""
        for top in (self._layout.uploads, self._layout.results):
            for user_id in self._names(top):
                for task_id in self._names(f"{top}/{user_id}"):
                    yield f"{top}/{user_id}/{task_id}", task_id
        for name in self._names(self._layout.logs):
            yield f"{self._layout.logs}/{name}", name.removesuffix(".jsonl")

    def _check_corrupt(self) -> Finding:
        count = count_aside(self._files, self._layout.corrupt)
        text = f"{count} files could not be read, see {self._layout.corrupt}" if count else "nothing"
        names = (name for name in self._names(self._layout.corrupt) if not name.endswith(REASON))
        return Finding("corrupt", not count, text, tuple(sorted(names)))

    # Steps

    def _finding_of_damage(self, check: str, text: str, what: str, damaged: Mapping[str, str]) -> Finding:
        if not damaged:
            return Finding(check, True, text)
        items = tuple(f"{self._layout.relative(path)} ({reason})" for path, reason in sorted(damaged.items()))
        repair = partial(self._put_aside, quarantine, damaged)
        return Finding(check, False, listed(what, items), items, "move them to corrupt/, with the reason", repair)

    def _put_aside(self, put: Callable[[Files, Layout, str, str], str], damaged: Mapping[str, str]) -> None:
        for path, reason in damaged.items():
            put(self._files, self._layout, path, reason)

    def _names(self, directory: str) -> list[str]:
        try:
            return sorted(self._files.names(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []


def _nothing() -> None:
    """Opening the store does it."""


def _is_usable(path: str) -> bool:
    return os.path.isdir(path) and os.access(path, os.R_OK | os.W_OK | os.X_OK)


def _is_file(path: str) -> bool:
    return is_regular(path) or not os.path.lexists(path)


def _read_rows(path: str) -> dict[str, str]:
    """The status of each task by its row. Raises `sqlite3.Error`."""
    # Beside a file that nobody has open SQLite would make two more, even to read it.
    manner = "mode=ro" if os.path.isfile(f"{path}-wal") else "immutable=1"
    with closing(sqlite3.connect(f"file:{quote(path)}?{manner}", uri=True, timeout=30)) as connection:
        if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            raise sqlite3.DatabaseError("it has another schema")
        if not connection.execute("PRAGMA application_id").fetchone()[0]:
            raise sqlite3.DatabaseError("it is not complete")
        return dict(connection.execute("SELECT id, status FROM tasks"))
