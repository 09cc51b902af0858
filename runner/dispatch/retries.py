"""Which tasks wait for the time of a further attempt, for those who ask how a queue is doing."""

from __future__ import annotations

from collections.abc import Iterable

from runner.store import Transition
from runner.task import Status, Task


class Retries:
    """The queues of these tasks. `note` on one thread at a time, `count_of_queue` on any."""

    def __init__(self) -> None:
        self._queues: dict[str, str] = {}

    def start(self, live: Iterable[Task]) -> None:
        """What an earlier owner left."""
        for task in live:
            self._take_note(task)

    def note(self, transitions: Iterable[Transition]) -> None:
        """Tasks have changed."""
        for _, task, _ in transitions:
            if self._queues or task.status is Status.PENDING:
                self._take_note(task)

    def count_of_queue(self, queue: str) -> int:
        """How many of them are a queue's."""
        return tuple(self._queues.values()).count(queue)

    def _take_note(self, task: Task) -> None:
        if task.status is Status.PENDING and task.attempt and task.run_after is not None:
            self._queues[task.id] = task.queue
        elif self._queues:
            self._queues.pop(task.id, None)
