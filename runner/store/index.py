"""The index: a SQLite cache of what lists are filtered and sorted by. Task files are the truth; it can be rebuilt.

This is the reading side. Whoever asks has seen to it that the rows are written (the store flushes them first).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from runner.errors import Degraded, FormatError
from runner.store.query import TaskQuery, decode_cursor, encode_cursor
from runner.store.rows import SCHEMA_VERSION, connect, create_schema, is_failure_of_disk, microseconds
from runner.task import LIVE

_LIVE_LIST: Final = ", ".join(f"'{status}'" for status in sorted(LIVE))


class FinishedRow(NamedTuple):
    """What cleanup decides by: one finished task's row. `bytes` counts its inputs."""

    id: str
    type: str
    user_id: str
    status: str
    completed_us: int
    bytes: int
    row: int

    @property
    def place(self) -> tuple[int, int]:
        """Where this row stands in the order of `completed_before`."""
        return self.completed_us, self.row


class Index:
    """Two reading connections: one for what people ask, one for the committer, which must not wait for them. Every
    method but `open` and `close` may be called from any thread, and raises `Degraded` when the file cannot be read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._keys_lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._keys_connection: sqlite3.Connection | None = None

    def open(self) -> bool:
        """Opens the file, or makes an empty one. False if it must be rebuilt. Raises `FormatError` when it is damaged,
        `OSError` when the disk is."""
        try:
            return self._try_open()
        except sqlite3.Error as error:
            if is_failure_of_disk(error):
                raise OSError(None, str(error), self._path) from error
            raise FormatError(f"the index is damaged: {error}") from error

    def close(self) -> None:
        """Closes the file; idempotent."""
        for connection in (self._connection, self._keys_connection):
            if connection is not None:
                connection.close()
        self._connection = self._keys_connection = None

    def mark_complete(self) -> None:
        """Every task file has a row now; from here on the index is kept, not rebuilt."""
        self._select("PRAGMA application_id = 1")

    def page(self, query: TaskQuery) -> tuple[list[str], str | None]:
        """The ids that a query asks for, newest first, and the cursor of what follows."""
        where, values = _where(query)
        if query.cursor is not None:
            where.append("(created_us, row) < (?, ?)")
            values.extend(decode_cursor(query.cursor))
        offset = (query.page or 0) * query.size
        rows = self._select(
            f"SELECT id, created_us, row FROM tasks {_and(where)} "
            f"ORDER BY created_us DESC, row DESC LIMIT {query.size + 1} OFFSET {offset}",
            values,
        )
        more = len(rows) > query.size
        rows = rows[: query.size]
        return [row[0] for row in rows], encode_cursor(rows[-1][1], rows[-1][2]) if more else None

    def count(self, query: TaskQuery) -> int:
        """How many tasks a query matches, whatever its page."""
        where, values = _where(query)
        return int(self._select(f"SELECT COUNT(*) FROM tasks {_and(where)}", values)[0][0])

    def totals(self) -> list[tuple[str, str, str, int]]:
        """How many tasks there are by queue, type and status."""
        return self._select("SELECT queue, type, status, COUNT(*) FROM tasks GROUP BY 1, 2, 3")

    def oldest_pending(self) -> list[tuple[str, int]]:
        """For each queue with pending tasks, when the oldest of them was created, in microseconds since 1970."""
        return self._select("SELECT queue, MIN(created_us) FROM tasks WHERE status = 'pending' GROUP BY 1")

    def find_key(self, user_id: str, key: str) -> str | None:
        """The id of the newest task that holds a unique key."""
        sql = "SELECT id FROM tasks WHERE user_id = ? AND unique_key = ? ORDER BY created_us DESC, row DESC LIMIT 1"
        with self._keys_lock:
            rows = _fetch(self._keys_connection, sql, (user_id, key))
        return rows[0][0] if rows else None

    def ids_beginning(self, prefix: str, limit: int) -> list[str]:
        """Up to `limit` ids that begin with `prefix`."""
        # "~" is behind everything that an id is made of.
        rows = self._select("SELECT id FROM tasks WHERE id >= ? AND id < ? LIMIT ?", [prefix, prefix + "~", limit])
        return [row[0] for row in rows]

    def live_ids(self) -> list[str]:
        """The ids of all unfinished tasks, oldest first."""
        rows = self._select(f"SELECT id FROM tasks WHERE status IN ({_LIVE_LIST}) ORDER BY created_us, row")
        return [row[0] for row in rows]

    def completed_before(self, instant: datetime, after: tuple[int, int], size: int) -> list[FinishedRow]:
        """Up to `size` finished tasks that ended before `instant`, oldest first, behind the place `after`."""
        rows = self._select(
            "SELECT id, type, user_id, status, completed_us, bytes, row FROM tasks "
            "WHERE completed_us < ? AND (completed_us, row) > (?, ?) ORDER BY completed_us, row LIMIT ?",
            [microseconds(instant), *after, size],
        )
        return [FinishedRow(*row) for row in rows]

    def usage(self) -> tuple[int, int]:
        """How many finished tasks there are, and how many bytes of inputs they say they have."""
        rows = self._select("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM tasks WHERE completed_us IS NOT NULL")
        return int(rows[0][0]), int(rows[0][1])

    def all_ids(self) -> Iterator[str]:
        """Every id that has a row, a slice at a time."""
        last = 0
        while rows := self._select("SELECT row, id FROM tasks WHERE row > ? ORDER BY row LIMIT 10000", [last]):
            yield from (row[1] for row in rows)
            last = rows[-1][0]

    def _try_open(self) -> bool:
        self._connection = connect(self._path)
        version = self._pragma(self._connection, "user_version")
        if version not in (0, SCHEMA_VERSION):
            raise FormatError(f"the index has format {version}, not {SCHEMA_VERSION}")
        if version == 0:
            create_schema(self._connection)
        self._keys_connection = connect(self._path)
        return bool(self._pragma(self._connection, "application_id"))

    def _pragma(self, connection: sqlite3.Connection, name: str) -> int:
        return int(connection.execute(f"PRAGMA {name}").fetchone()[0])

    def _select(self, sql: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._lock:
            return _fetch(self._connection, sql, values)


def _fetch(connection: sqlite3.Connection | None, sql: str, values: Iterable[Any]) -> list[Any]:
    assert connection is not None, "the index is not open"
    try:
        return connection.execute(sql, tuple(values)).fetchall()
    except sqlite3.Error as error:
        raise Degraded(f"the index cannot be read: {error}") from error


def _where(query: TaskQuery) -> tuple[list[str], list[Any]]:
    clauses: list[str] = []
    values: list[Any] = []
    for column in ("type", "user_id", "queue", "client_id", "source", "parent_id", "batch_id"):
        value = getattr(query, column)
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(value)
    for column, comparison, instant in (
        ("created_us", ">=", query.created_after),
        ("created_us", "<", query.created_before),
        ("completed_us", ">=", query.completed_after),
        ("completed_us", "<", query.completed_before),
    ):
        if instant is not None:
            clauses.append(f"{column} {comparison} ?")
            values.append(microseconds(instant))
    if query.status:
        clauses.append(f"status IN ({', '.join('?' * len(query.status))})")
        values.extend(query.status)
    if query.text:
        clauses.append("(error LIKE ? ESCAPE '!' OR filename LIKE ? ESCAPE '!')")
        pattern = "%" + query.text.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%"
        values.extend((pattern, pattern))
    return clauses, values


def _and(clauses: list[str]) -> str:
    return f"WHERE {' AND '.join(clauses)}" if clauses else ""
