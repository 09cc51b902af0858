"""The entries of the outbox on the disk: how one is written, refreshed, recognised and removed.

    outbox/<handler>/<name>/             or outbox/@<user>/<handler>/<name>/
        task.json      the task; once its status is final, all the rest is there
        log.txt        what the handler said, if it said something
        …              the outputs, as hard links where the filesystem allows

An entry appears whole, by one rename. While a task runs for longer than a second it is there already; then what is in
it is replaced a file at a time, `task.json` last. Nothing is synced: the mark says from when on to look again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic_core import to_json

from runner.errors import CorruptRecord
from runner.events import Event, Kind, TaskLogs
from runner.intake.names import numbered
from runner.store import Files, Layout
from runner.store.aside import quarantine
from runner.task import Status, Task, from_json, to_pretty_json
from runner.units import read_instant

TASK_FILE: Final = "task.json"
LOG_FILE: Final = "log.txt"
DOUBT_AFTER_CRASH: Final = timedelta(seconds=60)
"""The entries of the last minute before a crash may be missing or torn, and are looked at again."""

_log = logging.getLogger(__name__)


class Entries:
    """Writes and removes entries. One thread; several may, each with another `name`."""

    def __init__(self, files: Files, layout: Layout, *, link: Callable[[str, str], None], name: str = "outbox") -> None:
        self._files = files
        self._layout = layout
        self._link = link
        self._logs = TaskLogs(Path(layout.logs))
        self._name = name
        self._temporary = f"{layout.tmp}/.{name}-file"

    def publish(self, task: Task, entry: str) -> None:
        """The entry says how the task stands. Done again it changes nothing. Raises `OSError`."""
        body, outputs = to_pretty_json(task), task.output_files if task.status is Status.COMPLETED else ()
        if self.add(task.id, entry, body, outputs):
            return
        path = self._find(task, self._layout.absolute(entry))
        found = read_task(path)
        if found is None:
            self._make(task.id, path, body, outputs)
        elif found.version < task.version or not task.is_terminal:
            self._fill(task.id, path, outputs)
            self._files.replace(f"{path}/{TASK_FILE}", body, self._temporary)

    def add(self, task_id: str, entry: str, body: bytes, outputs: Iterable[str]) -> bool:
        """Makes the entry, with `body` as its task file, unless something has its name. Raises `OSError`."""
        path = self._layout.absolute(entry)
        if os.path.lexists(path):
            return False
        self._make(task_id, path, body, outputs)
        return True

    def note(self, entry: str, name: str, text: str) -> None:
        """One more file for people in an entry that is there. Raises `OSError`."""
        self._files.replace(f"{self._layout.absolute(entry)}/{name}", text.encode(), self._temporary)

    def remove(self, task: Task, entry: str) -> None:
        """The task was deleted with all that belonged to it; so is its entry, and nobody else's."""
        path = self._layout.absolute(entry)
        if _is_of(path, task.id):
            self._files.remove_tree(path)

    def _find(self, task: Task, path: str) -> str:
        """Where the entry is or belongs: not at `path` only if somebody else put something there."""
        number = 1
        while os.path.lexists(candidate := number_entry(path, number)) and not _is_of(candidate, task.id):
            number += 1
        return candidate

    def _make(self, task_id: str, path: str, body: bytes, outputs: Iterable[str]) -> None:
        private = f"{self._layout.tmp}/{self._name}.{task_id}"
        self._make_private(private)
        self._fill(task_id, private, outputs)
        self._write(f"{private}/{TASK_FILE}", body)
        try:
            self._files.rename(private, path)
        except FileNotFoundError:
            self._files.make_directory(os.path.dirname(path))
            self._files.rename(private, path)

    def _make_private(self, private: str) -> None:
        try:
            self._files.mkdir(private)
        except FileExistsError:
            # Of a crash, or of a try that failed half way.
            self._files.remove_tree(private)
            self._files.mkdir(private)

    def _write(self, path: str, data: bytes) -> None:
        fd = self._files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            self._files.write_all(fd, data)
        finally:
            self._files.close(fd)

    def _fill(self, task_id: str, path: str, outputs: Iterable[str]) -> None:
        if os.path.exists(self._layout.log(task_id)):
            text = "".join(log_line(event) for event in self._logs.read(task_id))
            self._files.replace(f"{path}/{LOG_FILE}", text.encode(), self._temporary)
        for output in outputs:
            self._place(output, path)

    def _place(self, output: str, path: str) -> None:
        below = output.split("/", 3)[-1]
        target = f"{path}/{numbered(below, 2) if below in (TASK_FILE, LOG_FILE) else below}"
        self._files.make_directory(os.path.dirname(target))
        self._files.remove(target)
        try:
            self._link(self._layout.absolute(output), target)
        except FileNotFoundError:
            _log.warning("%s was removed before it could be put into the outbox", output)


class Mark:
    """How far the entries are complete: a small file whose instant may only be too early. One thread."""

    def __init__(self, files: Files, layout: Layout) -> None:
        self._files = files
        self._layout = layout
        self._path = f"{layout.outbox}/.published"
        self._temporary = f"{layout.tmp}/.outbox-mark"
        self._until: datetime | None = None
        self.is_due = False

    def note(self, completed_at: datetime | None) -> None:
        """The entry of a task that ended then is written."""
        if completed_at is not None and (self._until is None or completed_at > self._until):
            self._until = completed_at
            self.is_due = True

    def write(self, *, clean: bool, now: datetime) -> None:
        """Writes what was noted, `now` if nothing was. `clean`: no entry before it is missing. Raises `OSError`."""
        data = to_json({"until": self._until or now, "clean": clean})
        self._files.replace(self._path, data, self._temporary)
        self.is_due = False

    def read(self) -> datetime | None:
        """From when on entries may be missing; None where there never was an outbox."""
        try:
            said = json.loads(self._files.read(self._path))
            self._until = read_instant(said["until"])
            return self._until + timedelta.resolution if said["clean"] else self._until - DOUBT_AFTER_CRASH
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, CorruptRecord) as error:
            self._until = None
            with suppress(OSError):
                quarantine(self._files, self._layout, self._path, f"no mark of the outbox: {error}")
            _log.warning("%s is damaged, so all entries are looked at again: %s", self._path, error)
            return datetime.fromtimestamp(0, UTC)

    def remove(self) -> None:
        """There are to be no entries, so those of tasks that end from now on will not be missing."""
        self._files.remove(self._path)


def number_entry(entry: str, number: int) -> str:
    """The entry's name for the first, `<name>.2` for the second of that name."""
    return entry if number == 1 else f"{entry}.{number}"


def read_task(path: str) -> Task | None:
    """The task of an entry; None where there is none, or one that a power cut has torn."""
    try:
        return from_json(Files().read(f"{path}/{TASK_FILE}"))
    except (FileNotFoundError, NotADirectoryError, CorruptRecord):
        return None


def log_line(event: Event) -> str:
    """One event as a line of `log.txt`."""
    said = event.data
    if event.kind is Kind.PROGRESS:
        words = [f"{round(said.get('percentage', 0), 1):g} %", said.get("stage"), said.get("message")]
    else:
        words = [said.get("level"), said.get("message")]
    return f"{event.at:%Y-%m-%d %H:%M:%S} {' '.join(str(word) for word in words if word)}\n"


def _is_of(path: str, task_id: str) -> bool:
    found = read_task(path)
    return found is not None and found.id == task_id
