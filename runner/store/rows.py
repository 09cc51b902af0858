"""The index file's schema, and the writing of its rows. Imports nothing heavy: the scribe process lives on it.

A row is upserted by task id; instants are integers of microseconds since 1970 in UTC.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

SCHEMA_VERSION: Final = 2

COLUMNS: Final = (
    "id", "type", "user_id", "client_id", "queue", "status", "source", "created_us", "completed_us", "updated_us",
    "unique_key", "parent_id", "batch_id", "bytes", "error", "filename",
)  # fmt: skip
_SCHEMA: Final = f"""
CREATE TABLE tasks (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, type TEXT NOT NULL, user_id TEXT NOT NULL, client_id TEXT,
    queue TEXT NOT NULL, status TEXT NOT NULL, source TEXT NOT NULL, created_us INTEGER NOT NULL,
    completed_us INTEGER, updated_us INTEGER NOT NULL, unique_key TEXT, parent_id TEXT, batch_id TEXT,
    bytes INTEGER NOT NULL, error TEXT, filename TEXT
);
CREATE INDEX by_status ON tasks (status, created_us);
CREATE INDEX by_user ON tasks (user_id, status, created_us);
CREATE INDEX by_type ON tasks (type, status, created_us);
CREATE INDEX by_queue ON tasks (queue, status, created_us);
CREATE INDEX by_source ON tasks (source, status, created_us);
CREATE INDEX by_completed ON tasks (completed_us) WHERE completed_us IS NOT NULL;
CREATE INDEX by_key ON tasks (user_id, unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX by_client ON tasks (client_id, created_us) WHERE client_id IS NOT NULL;
CREATE INDEX by_parent ON tasks (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX by_batch ON tasks (batch_id) WHERE batch_id IS NOT NULL;
PRAGMA user_version = {SCHEMA_VERSION};
"""
_UPSERT: Final = (
    f"INSERT INTO tasks ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) "
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[1:])} "
    # A row that says it already stays: written again, it would dirty a page of each of the indexes after a kill.
    f"WHERE ({', '.join(COLUMNS[1:])}) IS NOT ({', '.join(f'excluded.{name}' for name in COLUMNS[1:])})"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(instant: datetime) -> int:
    """An aware instant as microseconds since 1970 in UTC, exactly."""
    passed = instant - _EPOCH
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def connect(path: str) -> sqlite3.Connection:
    """A connection to the index, for any thread, one at a time. `NORMAL`: a power cut loses the last rows, which
    recovery writes again, but never damages the file. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA cache_size = -8000")
        # Ids are random: with a million rows each new one changes a page of its own, all over the file. Bringing them
        # home syncs the file beside the journal, so it is done for many at once.
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def is_failure_of_disk(error: sqlite3.Error) -> bool:
    """Whether the disk failed or is full; else it is the file's content that is wrong."""
    # The lower byte of a result code is its kind (sqlite.org/rescode.html); errors of the Python module have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def create_schema(connection: sqlite3.Connection) -> None:
    """Makes the tables of an empty file."""
    connection.executescript(_SCHEMA)


def write_rows(connection: sqlite3.Connection, tasks: Iterable[dict[str, Any]], gone: Iterable[str]) -> None:
    """Upserts the rows of `tasks` (each a task's parsed JSON) and deletes those of the ids in `gone`: all or none."""
    connection.execute("BEGIN")
    try:
        connection.executemany(_UPSERT, map(_row, tasks))
        connection.executemany("DELETE FROM tasks WHERE id = ?", ((task_id,) for task_id in gone))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk makes SQLite end it by itself
            connection.execute("ROLLBACK")
        raise


def _row(task: dict[str, Any]) -> tuple[Any, ...]:
    error = task["error"]
    return (
        task["id"], task["type"], task["user_id"], task["client_id"], task["queue"], task["status"], task["source"],
        _instant(task["created_at"]), _instant(task["completed_at"]), _instant(task["updated_at"]),
        task["unique_key"], task["parent_id"], task["batch_id"], task["file_size"] or 0,
        error and error["message"][:500], task["original_filename"],
    )  # fmt: skip


def _instant(text: str | None) -> int | None:
    return None if text is None else microseconds(datetime.fromisoformat(text))
