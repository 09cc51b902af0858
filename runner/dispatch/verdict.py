"""What becomes of a task when an attempt of it ends: pure decisions."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

from runner import task as transitions
from runner.execute.assignment import Ending
from runner.handlers import Backoff, Delivery, HandlerOptions
from runner.task import FileState, Outcome, Task, TaskError

MAX_LOST = 3
"""An attempt that takes its owner with it is tried this often, even where the handler allows no retries: most owners
die for reasons of their own."""
MAX_WAIT_SECONDS = 10 * 365 * 86_400.0
"""No wait is longer: its end must still be a date."""


def backoff_seconds(backoff: Backoff, retries_used: int, chance: float) -> float:
    """The wait before the next attempt when `retries_used` have failed; `chance` is uniform in [0, 1)."""
    try:
        delay = min(backoff.base_seconds * backoff.factor ** max(retries_used - 1, 0), backoff.max_seconds)
    except OverflowError:
        delay = backoff.max_seconds
    return delay * (1 + backoff.jitter * (2 * chance - 1))


def conclude(
    task: Task,
    *,
    attempt: int,
    ending: Ending,
    options: HandlerOptions,
    output_files: tuple[str, ...],
    now: datetime,
    chance: float,
    files: tuple[FileState, ...] | None = None,
) -> Task:
    """The task after its attempt ended; `files` are its items of work as they are then, None: as they were. Raises
    `Fenced` if the attempt is no longer the current one."""
    if files is not None and task.attempt == attempt:
        task = transitions.with_files(task, files)
    if ending.outcome is Outcome.COMPLETED:
        return transitions.complete(task, attempt, now, result=ending.result, output_files=output_files)
    requeue = partial(transitions.requeue, task, attempt, now, outcome=ending.outcome)
    if ending.outcome is Outcome.SNOOZED:
        return requeue(run_after=_later(now, ending.after_seconds or 0), error=ending.error)
    if ending.outcome is Outcome.INTERRUPTED:
        return _interrupted(task, attempt, now, options.delivery)
    error = ending.error or TaskError(code=ending.outcome, message=f"the attempt was {ending.outcome}")
    if ending.outcome is Outcome.CANCELLED or not error.retryable or task.retries_used >= task.max_retries:
        return transitions.fail(task, attempt, now, error=error, outcome=ending.outcome)
    seconds = ending.after_seconds
    if seconds is None:
        seconds = backoff_seconds(options.backoff, task.retries_used + 1, chance)
    return requeue(run_after=_later(now, seconds), error=error)


def recover(task: Task, delivery: Delivery, now: datetime) -> Task:
    """A processing task whose owner died."""
    if delivery is Delivery.AT_MOST_ONCE:
        return _interrupted(task, task.attempt, now, delivery)
    lost = 1 + sum(attempt.outcome is Outcome.LOST for attempt in task.attempts)
    if lost >= MAX_LOST and lost > task.max_retries:
        message = f"{lost} attempts ended with the death of the runner; the handler may be what kills it"
        error = TaskError(code="crash_loop", message=message, retryable=False)
        return transitions.fail(task, task.attempt, now, error=error, outcome=Outcome.LOST)
    return transitions.requeue(task, task.attempt, now, outcome=Outcome.LOST)


def _interrupted(task: Task, attempt: int, now: datetime, delivery: Delivery) -> Task:
    if delivery is Delivery.AT_LEAST_ONCE:
        return transitions.requeue(task, attempt, now, outcome=Outcome.INTERRUPTED)
    message = "the runner stopped during the attempt, and this handler may start at most once"
    error = TaskError(code="interrupted", message=message, retryable=False)
    return transitions.fail(task, attempt, now, error=error, outcome=Outcome.INTERRUPTED)


def _later(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=min(seconds, MAX_WAIT_SECONDS))


def timed_out(task: Task) -> Ending:
    """The ending of an attempt that was longer than its task allows."""
    message = f"the attempt took longer than {task.timeout_seconds:g} s"
    return Ending(Outcome.TIMED_OUT, error=TaskError(code="timed_out", message=message))
