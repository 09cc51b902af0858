"""The index: a SQLite cache of what lists are filtered and sorted by. Task files are the truth; it can be rebuilt.

This is the reading side. Whoever asks has seen to it that the rows are written (the store flushes them first).

A list is read in its order from one of SQLite's indexes, so that it costs what it returns and not what there is. Those
of them that lead to a column's value have the status behind it: what is asked for is read for each status on its own,
all of them if none is said, and merged. Where filters leave a choice of indexes the one with the fewest rows is taken,
found by counting a few of each: SQLite has no statistics here and would guess.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from runner.errors import Degraded, FormatError
from runner.store.query import TaskQuery, decode_cursor, encode_cursor
from runner.store.rows import SCHEMA_VERSION, connect, create_schema, is_failure_of_disk, microseconds
from runner.task import LIVE, Status

FEW: Final = 1000
"""So many rows of an index are counted; one with more is long."""

_LED_BY: Final = {
    "batch_id": "by_batch", "parent_id": "by_parent", "client_id": "by_client", "user_id": "by_user",
    "type": "by_type", "queue": "by_queue", "source": "by_source",
}  # fmt: skip
"""The index for each column that can be asked for, the likely shorter ones first."""
_WITH_STATUS: Final = frozenset({"by_user", "by_type", "by_queue", "by_source", "by_status"})
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


class _Filter(NamedTuple):
    """A part of a query: SQL, its values, and the index that it leads to, if any."""

    sql: str
    values: tuple[Any, ...]
    leads_to: str | None = None


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
        filters = _filters(query)
        if query.cursor is not None:
            filters.append(_Filter("(created_us, row) < (?, ?)", decode_cursor(query.cursor)))
        offset = (query.page or 0) * query.size
        rows = self._newest(self._choose(filters, query.status) or "by_status", filters, query, offset)
        more = len(rows) > query.size
        rows = rows[: query.size]
        return [row[0] for row in rows], encode_cursor(rows[-1][1], rows[-1][2]) if more else None

    def count(self, query: TaskQuery) -> int:
        """How many tasks a query matches, whatever its page."""
        filters = _filters(query)
        has_window = query.created_after is not None or query.created_before is not None
        statuses = query.status or (tuple(Status) if has_window else ())
        index = self._choose(filters, statuses)
        where, values = _all([*filters, *_in_status(statuses)])
        return int(self._select(f"SELECT COUNT(*) FROM tasks {_by(index)} {where}", values)[0][0])

    def totals(self) -> list[tuple[str, str, str, int]]:
        """How many tasks there are by queue, type and status."""
        return self._select("SELECT queue, type, status, COUNT(*) FROM tasks GROUP BY 1, 2, 3")

    def oldest_pending(self) -> list[tuple[str, int]]:
        """For each queue with pending tasks, when the oldest of them was created, in microseconds since 1970."""
        # From one queue's first row to the next one's, rather than over all of their rows.
        return self._select(
            "WITH RECURSIVE queues (name) AS (SELECT MIN(queue) FROM tasks UNION ALL "
            "SELECT (SELECT MIN(queue) FROM tasks WHERE queue > name) FROM queues WHERE name IS NOT NULL) "
            "SELECT name, oldest FROM (SELECT name, "
            "(SELECT MIN(created_us) FROM tasks WHERE queue = name AND status = 'pending') AS oldest FROM queues) "
            "WHERE oldest IS NOT NULL"
        )

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

    def _newest(self, index: str, filters: list[_Filter], query: TaskQuery, offset: int) -> list[Any]:
        """Rows of id, instant and number, from `offset` on, one more than were asked for."""
        if index in _WITH_STATUS:
            branches = [
                [*filters, _Filter("status = ?", (status,))] for status in dict.fromkeys(query.status or Status)
            ]
        else:
            branches = [[*filters, *_in_status(query.status)]]
        clauses = [_all(branch) for branch in branches]
        # SQLite merges them, each in its index's order, and reads on in each only as far as the answer goes.
        rows = " UNION ALL ".join(f"SELECT id, created_us, row FROM tasks {_by(index)} {where}" for where, _ in clauses)
        order = f"ORDER BY created_us DESC, row DESC LIMIT {query.size + 1} OFFSET {offset}"
        return self._select(f"{rows} {order}", [value for _, values in clauses for value in values])

    def _choose(self, filters: list[_Filter], statuses: Sequence[Status]) -> str | None:
        """The index that leads to the fewest rows, as far as that is worth counting; None if no filter leads to one."""
        leading = [one for one in filters if one.leads_to is not None]
        if len(leading) < 2 and not any(one.leads_to == "by_completed" for one in leading):
            return leading[0].leads_to if leading else ("by_status" if statuses else None)
        lengths = {one.leads_to: self._length(one, statuses) for one in leading}
        shortest = min(lengths, key=lambda index: lengths[index])
        # Read from the end it would have to be sorted: for few rows only.
        if shortest == "by_completed" and lengths[shortest] >= FEW:
            return next((one.leads_to for one in leading if one.leads_to != shortest), "by_status")
        return shortest

    def _length(self, leading: _Filter, statuses: Sequence[Status]) -> int:
        with_status = _in_status(statuses) if leading.leads_to in _WITH_STATUS else []
        where, values = _all([leading, *with_status])
        some = f"SELECT 1 FROM tasks {_by(leading.leads_to)} {where} LIMIT {FEW}"
        return int(self._select(f"SELECT COUNT(*) FROM ({some})", values)[0][0])

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


def _filters(query: TaskQuery) -> list[_Filter]:
    """What a query asks for, but for the status and the cursor."""
    found = []
    for column, index in _LED_BY.items():
        value = getattr(query, column)
        if value is not None:
            found.append(_Filter(f"{column} = ?", (value,), index))
    found += _in_window("created_us", query.created_after, query.created_before, None)
    found += _in_window("completed_us", query.completed_after, query.completed_before, "by_completed")
    if query.text:
        pattern = "%" + query.text.replace("!", "!!").replace("%", "!%").replace("_", "!_") + "%"
        found.append(_Filter("(error LIKE ? ESCAPE '!' OR filename LIKE ? ESCAPE '!')", (pattern, pattern)))
    return found


def _in_window(column: str, after: datetime | None, before: datetime | None, index: str | None) -> Iterator[_Filter]:
    bounds = [(comparison, instant) for comparison, instant in ((">=", after), ("<", before)) if instant is not None]
    if bounds:
        sql = " AND ".join(f"{column} {comparison} ?" for comparison, _ in bounds)
        yield _Filter(sql, tuple(microseconds(instant) for _, instant in bounds), index)


def _in_status(statuses: Sequence[Status]) -> list[_Filter]:
    return [_Filter(f"status IN ({', '.join('?' * len(statuses))})", tuple(statuses))] if statuses else []


def _all(filters: Sequence[_Filter]) -> tuple[str, list[Any]]:
    """The clause for what fulfils all of them, and its values."""
    clause = f"WHERE {' AND '.join(one.sql for one in filters)}" if filters else ""
    return clause, [value for one in filters for value in one.values]


def _by(index: str | None) -> str:
    return f"INDEXED BY {index}" if index is not None else ""
