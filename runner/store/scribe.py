"""The scribe writes task files and index rows in a process of its own.

Creating a file is four short system calls, and each gives up the interpreter lock; beside busy threads every one of
them then waits for up to a switch interval. In its own process the scribe costs the runner one pipe write a batch and
uses the second core. It does as it is told, one batch at a time, and keeps nothing in memory.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from pydantic_core import from_json, to_json

from runner.store.files import Files, Layout
from runner.store.records import Removal, RemovedUser
from runner.store.rows import connect, write_rows
from runner.store.servant import Servant, serve


@dataclass(frozen=True, slots=True)
class Batch:
    """What one pass writes: task files (id, JSON), user files (id, JSON), what is removed, and the rows of the
    index: the JSON of tasks whose row changes, and the ids of those whose row goes."""

    tasks: Sequence[tuple[str, bytes]] = ()
    users: Sequence[tuple[str, bytes]] = ()
    removals: Sequence[Removal] = ()
    removed_users: Sequence[str] = ()
    rows: Sequence[bytes] = ()
    gone: Sequence[str] = ()


class Pen(Protocol):
    """Whoever writes a batch: this process, or the scribe's."""

    def write(self, batch: Batch) -> None:
        """Done when it returns, and may be done again. Raises `OSError`; some of it may have been done then."""

    def close(self) -> None:
        """Lets go of the index."""


class DirectPen:
    """Writes in the calling thread."""

    def __init__(self, files: Files, layout: Layout) -> None:
        self._files = files
        self._layout = layout
        self._temporary = f"{layout.tmp}/.write"
        self._index: sqlite3.Connection | None = None

    def write(self, batch: Batch) -> None:
        """Writes files first, then rows."""
        parsed = {body: from_json(body) for _, body in batch.tasks}
        self._write_files(batch, parsed)
        if batch.rows or batch.gone:
            self._write_rows([parsed.get(body) or from_json(body) for body in batch.rows], batch.gone)

    def close(self) -> None:
        """Closes the index."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def _write_files(self, batch: Batch, parsed: Mapping[bytes, Any]) -> None:
        files, layout, temporary = self._files, self._layout, self._temporary
        for task_id, body in batch.tasks:
            files.replace(layout.task(task_id), _indented(parsed[body]), temporary)
        for user_id, body in batch.users:
            files.replace(layout.user(user_id), pretty(body), temporary)
        for task_id, owner in batch.removals:  # plain tuples when they came through the pipe
            Removal(task_id, owner).apply(files, layout)
        for user_id in batch.removed_users:
            RemovedUser(user_id).apply(files, layout)

    def _write_rows(self, tasks: Iterable[dict[str, Any]], gone: Iterable[str]) -> None:
        try:
            if self._index is None:
                self._index = connect(self._layout.index)
            write_rows(self._index, tasks, gone)
        except sqlite3.Error as error:
            # "database or disk is full", "disk I/O error", "database disk image is malformed": the disk's doing, and
            # told like any other of its errors.
            self.close()
            raise OSError(None, str(error), self._layout.index) from error


class ScribePen:
    """Has the scribe process write; starts it anew if it dies.

    Must be made on a thread that lives as long as the process: Linux kills the scribe when that thread ends.
    """

    def __init__(self, layout: Layout) -> None:
        self._tasks = layout.tasks
        self._scribe = Servant(__name__, layout)
        self._scribe.start()

    def write(self, batch: Batch) -> None:
        """Sends the batch and waits for the answer."""
        request = _plain(batch)
        try:
            answer = self._scribe.ask(request)
        except (EOFError, BrokenPipeError):
            answer = self._ask_once_more(request)
        if answer is not None:
            raise OSError(*answer)

    def close(self) -> None:
        """Ends the process; idempotent."""
        self._scribe.close()

    def _ask_once_more(self, request: Any) -> Any:
        try:
            return self._scribe.ask(request)
        except (EOFError, BrokenPipeError) as error:
            raise OSError(None, "the scribe process dies whenever it is to write", self._tasks) from error


def pretty(body: bytes) -> bytes:
    """A record's JSON as its file has it: indented, for people."""
    return _indented(from_json(body))


def _indented(document: Any) -> bytes:
    try:
        return orjson.dumps(document, None, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # an integer of more than 64 bits; read by `orjson` it would not even be one any more
        return to_json(document, indent=2) + b"\n"


def main(data: str, owner: int) -> None:
    """The scribe process."""
    layout = Layout(data)
    pen = DirectPen(Files(), layout)
    serve(layout, owner, lambda request: _attempt(pen, Batch(*request)))
    pen.close()


def _plain(batch: Batch) -> tuple[Any, ...]:
    removals = [tuple(removal) for removal in batch.removals]
    return batch.tasks, batch.users, removals, batch.removed_users, batch.rows, batch.gone


def _attempt(pen: Pen, batch: Batch) -> tuple[Any, ...] | None:
    try:
        pen.write(batch)
    except OSError as error:
        return error.errno, error.strerror, error.filename
    return None


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
