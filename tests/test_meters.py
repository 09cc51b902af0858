"""What is measured while it happens."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runner import task as moves
from runner.meters import Histogram, LastError, MeteredFiles, Meters
from runner.store import Transition
from runner.task import Drop, Outcome, Source, Status, Task, TaskError, from_values

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def pending(**fields: object) -> Task:
    """A task that waits."""
    return from_values(
        {"id": "t", "type": "echo", "user_id": "ann", "queue": "default", "status": "pending", "source": "http",
         "payload": {}, "metadata": {}, "created_at": NOW, "updated_at": NOW, **fields}
    )  # fmt: skip


def test_a_value_is_counted_where_it_belongs() -> None:
    """A bound is part of what lies below it; beyond the last one there is one more place."""
    histogram = Histogram((1.0, 10.0))
    for value in (0.5, 1.0, 1.1, 10.0, 99.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 111.6)


def test_an_attempt_is_measured_when_it_ends() -> None:
    """By type and outcome; one that goes on is not, nor a task that never ran."""
    meters = Meters()
    running = moves.start(pending(), NOW)
    ended = moves.complete(running, 1, NOW + timedelta(seconds=2))
    meters.hear([Transition(None, pending()), Transition(Status.PENDING, running)])
    assert meters.attempt_seconds == {}
    meters.hear([Transition(Status.PROCESSING, running), Transition(Status.PROCESSING, ended)])
    ((kind, histogram),) = meters.attempt_seconds.items()
    assert (kind, histogram.total) == (("echo", "completed"), 2.0)
    lost = moves.requeue(running, 1, NOW, outcome=Outcome.LOST)
    meters.hear([Transition(Status.PROCESSING, lost)])
    assert ("echo", "lost") in meters.attempt_seconds
    assert meters.batch_tasks.total == 5


def test_the_last_error_of_a_type_is_known() -> None:
    """With the task to look at; a later success does not hide it."""
    meters = Meters()
    running = moves.start(pending(), NOW)
    failed = moves.fail(running, 1, NOW, error=TaskError(code="broken", message="it broke"))
    meters.hear([Transition(Status.PROCESSING, failed)])
    meters.hear([Transition(Status.PROCESSING, moves.complete(running, 1, NOW))])
    assert meters.last_error_of("echo") == LastError(NOW, "t", "broken", "it broke")
    assert meters.attempts_of("echo") == {"failed": 1, "completed": 1}
    assert (meters.last_error_of("other"), meters.attempts_of("other")) == (None, {})


def test_a_dropped_file_is_measured_from_its_last_change() -> None:
    """How long it lay there before it was a task."""
    meters = Meters()
    drop = Drop(path="inbox/echo/a", name="a", mtime_ns=int((NOW - timedelta(seconds=3)).timestamp() * 1e9))
    meters.hear([Transition(None, pending(drop=drop, source=Source.INBOX))])
    assert round(meters.inbox_lag_seconds.total, 3) == 3.0


def test_a_flush_is_measured(tmp_path: Path) -> None:
    """Whatever the disk takes for it."""
    seen: list[float] = []
    files = MeteredFiles(seen.append)
    fd = files.open(str(tmp_path / "a"), os.O_WRONLY | os.O_CREAT)
    files.datasync(fd)
    files.close(fd)
    assert len(seen) == 1
    assert seen[0] > 0
