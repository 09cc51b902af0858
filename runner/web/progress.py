"""Progress in the words of contract 001: a record for each thing that a task's handler said of how far it is, one for
each attempt that is followed by another one, and a last one that says how the task ended.

Only the first kind is kept as such, in the task's log; the others are made from the task itself, at their places in the
order. A record's id is an event's number, and so is a place to go on from.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from runner.errors import NotFound
from runner.events import Event, Kind, parse_stream_id, stream_id_of
from runner.task import Attempt, Task

MAX_RECORDS: Final = 1000
"""How many records a history holds, the latest ones."""


@dataclass(frozen=True, slots=True)
class ProgressRecord:
    """One record. `status` only in the last one: completed, failed or cancelled."""

    number: int
    task_id: str
    percentage: int
    stage: str
    message: str
    timestamp_ms: int
    status: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def stream_id(self) -> str:
        """The number as text."""
        return stream_id_of(self.number)

    @property
    def is_final(self) -> bool:
        """Whether the task has ended with this."""
        return bool(self.status)

    @property
    def progress(self) -> dict[str, Any]:
        """The contract's progress object."""
        progress = {
            "task_id": self.task_id,
            "percentage": self.percentage,
            "stage": self.stage,
            "message": self.message,
            "timestamp_ms": self.timestamp_ms,
        }
        return progress | {"metadata": self.metadata} if self.metadata else progress

    @property
    def entry(self) -> dict[str, Any]:
        """The record as a history lists it."""
        entry = {"stream_id": self.stream_id, "progress": self.progress, "is_final": self.is_final}
        return entry | {"status": self.status} if self.is_final else entry


def records_of(task: Task, said: Iterable[Event]) -> Iterator[ProgressRecord]:
    """All records of a task as it stands, oldest first. `said`: its whole log."""
    ended = deque(attempt for attempt in task.attempts if attempt.ended_at is not None)
    if task.is_terminal and ended and ended[-1].number == task.attempt:
        ended.pop()
    last = 0
    for event in said:
        while ended and ended[0].number < event.data.get("attempt", 0):
            record = retry_record(task.id, ended.popleft(), last)
            last = record.number
            yield record
        if event.kind is Kind.PROGRESS:
            last = event.number
            yield progress_record(event)
    for attempt in ended:
        record = retry_record(task.id, attempt, last)
        last = record.number
        yield record
    if task.is_terminal:
        yield final_record(task, last)


def progress_record(event: Event) -> ProgressRecord:
    """What a handler said."""
    data = event.data
    return ProgressRecord(
        event.number,
        event.task_id,
        int(data.get("percentage", 0)),
        data.get("stage", ""),
        data.get("message", ""),
        _milliseconds(event.at),
        metadata=data.get("metadata", {}),
    )


def retry_record(task_id: str, attempt: Attempt, last: int) -> ProgressRecord:
    """An attempt that another one follows. `last` is the number of the record before."""
    assert attempt.ended_at is not None
    assert attempt.outcome is not None
    reason = attempt.error.message if attempt.error else attempt.outcome
    at = _milliseconds(attempt.ended_at)
    stage = "retry" if attempt.error else str(attempt.outcome)
    return ProgressRecord(_number(at, last), task_id, 0, stage, f"attempt {attempt.number}: {reason}", at)


def final_record(task: Task, last: int) -> ProgressRecord:
    """The end of a task: 100 and `completed` whatever the status, as the contract has it."""
    message = task.error.message if task.error else ""
    at = _milliseconds(task.completed_at or task.updated_at)
    return ProgressRecord(_number(at, last), task.id, 100, "completed", message, at, str(task.status))


def find_latest(task: Task, said: Iterable[Event]) -> ProgressRecord:
    """The latest record. Raises `NotFound` where there is none."""
    latest = deque(records_of(task, said), maxlen=1)
    if not latest:
        raise NotFound("progress", task.id)
    return latest[0]


def history(task: Task, said: Iterable[Event], after: int) -> list[ProgressRecord]:
    """The records with numbers above `after`, oldest first; the latest thousand of them."""
    known = itertools.dropwhile(lambda record: record.number <= after, records_of(task, said))
    return list(deque(known, maxlen=MAX_RECORDS))


def _number(milliseconds: int, last: int) -> int:
    """The place of a record that is not in the log: by its instant, but never before what it follows."""
    return max(parse_stream_id(str(milliseconds)), last + 1)


def _milliseconds(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)
