"""How many tasks there are, by queue, type and status: counted once, then kept.

Counting a million rows takes half a second, and whoever measures asks every few seconds. So from the first question on
the numbers go along with what is committed. They are counted anew once an hour: a person may remove a task's file.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from runner.errors import Degraded
from runner.store import Store, Transition
from runner.task import Task

RECOUNT_SECONDS: Final = 3600.0

Kind = tuple[str, str, str]
"""A queue, a type and a status."""


class Totals:
    """The numbers. `hear` on the thread that commits, `read` on any other."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._counting = threading.Lock()
        self._lock = threading.Lock()
        self._counts: Counter[Kind] | None = None
        self._changed: dict[str, Kind | None] | None = None
        self._counted_at = 0.0

    def read(self) -> Mapping[Kind, int]:
        """How many tasks there are of each kind of which there are any. May take a while the first time; waits for the
        rows of what is committed already. Raises `Degraded` where they cannot be read."""
        with self._counting:
            if self._counts is None or self._clock() - self._counted_at > RECOUNT_SECONDS:
                self._count()
            with self._lock:
                assert self._counts is not None
                return {kind: number for kind, number in self._counts.items() if number > 0}

    def hear(self, transitions: Sequence[Transition]) -> None:
        """A batch was committed. Costs next to nothing until somebody has asked."""
        if self._counts is None and self._changed is None:
            return
        with self._lock:
            for before, task, removed in transitions:
                now = None if removed else _kind_of(task, task.status)
                if self._changed is not None:
                    self._changed[task.id] = now
                if self._counts is not None:
                    _move(self._counts, None if before is None else _kind_of(task, before), now)

    def _count(self) -> None:
        with self._lock:
            self._changed = {}
        try:
            self._store.writer.flush_rows()
            address = f"{Path(self._store.layout.index).as_uri()}?mode=ro"
            with closing(sqlite3.connect(address, uri=True, isolation_level=None, timeout=30)) as rows:
                self._count_in(rows)
        except sqlite3.Error as error:
            raise Degraded(f"the index cannot be read: {error}") from error
        finally:
            self._changed = None

    def _count_in(self, rows: sqlite3.Connection) -> None:
        """Counts in one snapshot. What has changed meanwhile may be in it or not: for each task that is looked up."""
        rows.execute("BEGIN")
        found = rows.execute("SELECT queue, type, status, COUNT(*) FROM tasks GROUP BY 1, 2, 3").fetchall()
        counts = Counter({(queue, type, status): number for queue, type, status, number in found})
        with self._lock:
            for task_id, now in (self._changed or {}).items():
                row = rows.execute("SELECT queue, type, status FROM tasks WHERE id = ?", (task_id,)).fetchone()
                _move(counts, row, now)
            self._counts, self._counted_at, self._changed = counts, self._clock(), None


def _kind_of(task: Task, status: str) -> Kind:
    return task.queue, task.type, str(status)


def _move(counts: Counter[Kind], before: Kind | None, now: Kind | None) -> None:
    if before is not None:
        counts[before] -= 1
    if now is not None:
        counts[now] += 1
