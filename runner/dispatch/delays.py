"""Things that become due at an instant: tasks that wait for a time, tasks that expire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush

MANY_VOID = 1000
"""With more void entries than this in the heap, and more than valid ones, they are thrown out."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


Clock = Callable[[], datetime]

_Entry = tuple[datetime, str, str]


class Delays:
    """Tasks with the instant at which each is due. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._heap: list[_Entry] = []
        self._per_user: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._entries

    def ids(self) -> list[str]:
        """Every task that is to become due."""
        return list(self._entries)

    def count_of_user(self, user_id: str) -> int:
        """How many tasks of a user are to become due."""
        return self._per_user.get(user_id, 0)

    def put(self, task_id: str, due_at: datetime, user_id: str) -> None:
        """The task is due at that instant, and at no other that was said before."""
        self.discard(task_id)
        entry = self._entries[task_id] = (due_at, task_id, user_id)
        self._per_user[user_id] = self._per_user.get(user_id, 0) + 1
        heappush(self._heap, entry)
        if len(self._heap) > 2 * len(self._entries) + MANY_VOID:
            self._heap = list(self._entries.values())
            heapify(self._heap)

    def discard(self, task_id: str) -> None:
        """The task is not due any more, whether or not it was."""
        entry = self._entries.pop(task_id, None)
        if entry is not None:
            self._uncount(entry[2])

    def next_at(self) -> datetime | None:
        """When the next one is due."""
        while self._heap and self._entries.get(self._heap[0][1]) is not self._heap[0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: datetime) -> list[str]:
        """Takes out the tasks that are due, earliest first."""
        due = []
        while (at := self.next_at()) is not None and at <= now:
            task_id = heappop(self._heap)[1]
            self.discard(task_id)
            due.append(task_id)
        return due

    def _uncount(self, user_id: str) -> None:
        left = self._per_user[user_id] - 1
        if left:
            self._per_user[user_id] = left
        else:
            del self._per_user[user_id]
