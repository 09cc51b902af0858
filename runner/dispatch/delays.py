"""Things that become due at an instant: tasks that wait for a time, tasks that expire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from heapq import heappop, heappush


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


Clock = Callable[[], datetime]


class Delays:
    """Ids with the instant at which each is due. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._due_at: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []

    def __len__(self) -> int:
        return len(self._due_at)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._due_at

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._due_at))

    def put(self, task_id: str, due_at: datetime) -> None:
        """The id is due at that instant, and at no other that was said before."""
        self._due_at[task_id] = due_at
        heappush(self._heap, (due_at, task_id))
        if len(self._heap) > 2 * len(self._due_at) + 1000:
            self._heap = sorted((due, known) for known, due in self._due_at.items())

    def discard(self, task_id: str) -> bool:
        """The id is not due any more; whether it was."""
        return self._due_at.pop(task_id, None) is not None

    def next_at(self) -> datetime | None:
        """When the next one is due."""
        while self._heap and self._due_at.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: datetime) -> list[str]:
        """Takes out the ids that are due."""
        due = []
        while (at := self.next_at()) is not None and at <= now:
            task_id = heappop(self._heap)[1]
            del self._due_at[task_id]
            due.append(task_id)
        return due
