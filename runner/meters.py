"""What is counted while it happens, because nobody can tell it afterwards: sizes and times, in buckets.

Each meter is written by one thread and read by any; a reading may miss what is being added. What can be looked up is
looked up when it is asked for, by `web.metrics`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from runner.store import Files, Transition
from runner.task import Status, Task

SYNC_SECONDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
BATCH_TASKS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
ATTEMPT_SECONDS: Final = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)
LAG_SECONDS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)


class Histogram:
    """How many values were at most as large as each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class LastError(NamedTuple):
    """How the latest attempt of a type that did not complete ended."""

    at: datetime
    task_id: str
    code: str
    message: str


class Meters:
    """All of them."""

    def __init__(self) -> None:
        self.batch_tasks = Histogram(BATCH_TASKS)
        self.sync_seconds = Histogram(SYNC_SECONDS)
        self.inbox_lag_seconds = Histogram(LAG_SECONDS)
        self.attempt_seconds: dict[tuple[str, str], Histogram] = {}
        self._last_errors: dict[str, LastError] = {}

    def attempts_of(self, type: str) -> dict[str, int]:
        """How many attempts of a type have ended since the start, by outcome."""
        return {outcome: sum(it.counts) for (name, outcome), it in tuple(self.attempt_seconds.items()) if name == type}

    def last_error_of(self, type: str) -> LastError | None:
        """The latest fault of a type since the start."""
        return self._last_errors.get(type)

    def hear(self, transitions: Sequence[Transition]) -> None:
        """A batch was committed. On the thread that commits."""
        self.batch_tasks.observe(len(transitions))
        for before, task, removed in transitions:
            if before is Status.PROCESSING and task.status is not Status.PROCESSING and not removed:
                self._note_attempt(task)
            elif before is None and task.drop is not None and task.drop.mtime_ns:
                self.inbox_lag_seconds.observe(max(0.0, task.created_at.timestamp() - task.drop.mtime_ns / 1e9))

    def _note_attempt(self, task: Task) -> None:
        attempt = task.attempts[-1]
        if attempt.ended_at is None or attempt.outcome is None:
            return
        if attempt.error is not None:
            error = attempt.error
            self._last_errors[task.type] = LastError(attempt.ended_at, task.id, error.code, error.message)
        kind = (task.type, str(attempt.outcome))
        histogram = self.attempt_seconds.get(kind)
        if histogram is None:
            histogram = self.attempt_seconds.setdefault(kind, Histogram(ATTEMPT_SECONDS))
        histogram.observe((attempt.ended_at - attempt.started_at).total_seconds())


class MeteredFiles(Files):
    """The disk, with a clock beside each flush."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe

    def datasync(self, fd: int) -> None:
        """See `Files`."""
        began = time.perf_counter()
        super().datasync(fd)
        self._observe(time.perf_counter() - began)
