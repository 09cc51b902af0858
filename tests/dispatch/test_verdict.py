import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import task as transitions
from runner.dispatch.verdict import MAX_LOST, MAX_WAIT_SECONDS, backoff_seconds, conclude, recover, timed_out
from runner.errors import Fenced
from runner.execute.assignment import Ending
from runner.handlers import Backoff, Delivery, HandlerOptions
from runner.task import Outcome, Status, Task, TaskError

NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)
STEADY = HandlerOptions(backoff=Backoff(base_seconds=10, factor=2, max_seconds=60, jitter=0))


def running(**fields: Any) -> Task:
    """A task whose first attempt runs."""
    fresh = Task(id="t", type="x", user_id="ann", status=Status.PENDING, created_at=NOON, updated_at=NOON, **fields)
    return transitions.start(fresh, NOON)


def end(task: Task, outcome: Outcome, options: HandlerOptions = STEADY, **fields: Any) -> Task:
    """The task after its current attempt has ended."""
    ending = Ending(outcome, **fields)
    return conclude(
        task, attempt=task.attempt, ending=ending, options=options, output_files=("a",), now=NOON, chance=0.5
    )


def wait(task: Task) -> float:
    """For how many seconds the task is to wait."""
    assert task.run_after is not None
    return (task.run_after - NOON).total_seconds()


def error(**fields: Any) -> TaskError:
    """An error of a handler."""
    return TaskError(code="broken", message="it broke", **fields)


def test_a_completed_attempt_completes_its_task() -> None:
    """With its result and its outputs."""
    task = end(running(), Outcome.COMPLETED, result=7)
    assert (task.status, task.result, task.output_files) == (Status.COMPLETED, 7, ("a",))


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.TIMED_OUT])
def test_a_failed_attempt_is_repeated_as_often_as_the_task_allows(outcome: Outcome) -> None:
    """Waiting longer each time, and then the task has failed for good, with the last error."""
    task, waits = running(max_retries=3), []
    while (task := end(task, outcome, error=error())).status is Status.PENDING:
        waits.append(wait(task))
        task = transitions.start(task, NOON)
    assert waits == [10, 20, 40]
    assert (task.status, task.attempt, task.error) == (Status.FAILED, 4, error())
    assert {attempt.outcome for attempt in task.attempts} == {outcome}


def test_an_error_that_will_not_go_away_is_not_tried_again() -> None:
    """What `Fail` raises."""
    task = end(running(max_retries=3), Outcome.FAILED, error=error(retryable=False))
    assert task.status is Status.FAILED


def test_a_handler_may_say_itself_when_to_try_again() -> None:
    """`Retry(after)` instead of the backoff; it uses up a retry all the same."""
    task = end(running(max_retries=1), Outcome.FAILED, error=error(), after_seconds=3)
    assert wait(task) == 3
    assert end(transitions.start(task, NOON), Outcome.FAILED, error=error(), after_seconds=3).status is Status.FAILED


def test_a_snooze_uses_up_nothing() -> None:
    """However often, even where no retry is allowed."""
    task = running(max_retries=0)
    for _ in range(50):
        task = transitions.start(end(task, Outcome.SNOOZED, after_seconds=5), NOON)
    assert (task.retries_used, task.attempt) == (0, 51)
    assert len(task.attempts) < 5
    assert wait(end(task, Outcome.SNOOZED, after_seconds=5)) == 5
    assert wait(end(task, Outcome.SNOOZED)) == 0


def test_an_attempt_that_was_told_to_stop_for_good_ends_its_task() -> None:
    """Nobody waits for a task that was cancelled; an ending without an error gets one."""
    task = end(running(max_retries=3), Outcome.CANCELLED)
    assert task.status is Status.FAILED
    assert task.error == TaskError(code="cancelled", message="the attempt was cancelled")


def test_an_interrupted_attempt_starts_again_or_never_by_the_handlers_delivery() -> None:
    """A drain that could not wait is not the task's fault; but some handlers must not start twice."""
    again = end(running(), Outcome.INTERRUPTED)
    assert (again.status, again.run_after, again.retries_used) == (Status.PENDING, None, 0)
    never = end(running(), Outcome.INTERRUPTED, HandlerOptions(delivery=Delivery.AT_MOST_ONCE))
    assert never.status is Status.FAILED
    assert never.error is not None
    assert never.error.code == "interrupted"


@pytest.mark.parametrize("decide", [end, lambda task, outcome: recover(task, Delivery.AT_LEAST_ONCE, NOON)])
def test_a_result_for_a_task_that_does_not_run_is_fenced(decide: Callable[[Task, Outcome], Task]) -> None:
    """Whatever came out of it."""
    with pytest.raises(Fenced):
        decide(transitions.cancel(running(), NOON), Outcome.COMPLETED)


def test_an_old_attempt_does_not_end_a_new_one() -> None:
    """Its number is not the current one."""
    task = transitions.start(end(running(max_retries=1), Outcome.FAILED), NOON)
    with pytest.raises(Fenced):
        conclude(
            task, attempt=1, ending=Ending(Outcome.COMPLETED), options=STEADY, output_files=(), now=NOON, chance=0.5
        )


@pytest.mark.parametrize("max_retries", [0, 2, 3, 5])
def test_an_attempt_that_takes_its_owner_with_it_is_not_tried_for_ever(max_retries: int) -> None:
    """Three times at least, since most owners die for reasons of their own; more often if more retries are allowed."""
    task, lost = running(max_retries=max_retries), 1
    while (task := recover(task, Delivery.AT_LEAST_ONCE, NOON)).status is Status.PENDING:
        assert task.run_after is None
        task, lost = transitions.start(task, NOON), lost + 1
    assert lost == max(MAX_LOST, max_retries + 1)
    assert task.error is not None
    assert (task.error.code, task.attempts[-1].outcome) == ("crash_loop", Outcome.LOST)


def test_a_handler_that_may_start_once_is_not_started_again_by_a_new_owner() -> None:
    """The task says that it was interrupted, and a person may retry it."""
    task = recover(running(max_retries=3), Delivery.AT_MOST_ONCE, NOON)
    assert task.error is not None
    assert (task.status, task.error.code) == (Status.FAILED, "interrupted")
    assert transitions.retry(task, NOON).status is Status.PENDING


def test_running_out_of_time_says_how_much_there_was() -> None:
    """In the shortest form of the number."""
    assert timed_out(running(timeout_seconds=1.50)).error == TaskError(
        code="timed_out", message="the attempt took longer than 1.5 s"
    )


BACKOFFS = st.builds(
    Backoff,
    base_seconds=st.floats(0, 1e9),
    factor=st.floats(1, 1e300),
    max_seconds=st.floats(0, 1e300),
    jitter=st.floats(0, 1),
)


@given(BACKOFFS, st.integers(0, 2000), st.floats(0, 1, exclude_max=True))
def test_every_backoff_ends_on_a_date(backoff: Backoff, used: int, chance: float) -> None:
    """Whatever somebody configured: never negative, never beyond the calendar, never an error."""
    seconds = backoff_seconds(backoff, used, chance)
    assert 0 <= seconds <= backoff.max_seconds * (1 + backoff.jitter)
    task = running(max_retries=9)
    ended = end(task, Outcome.FAILED, HandlerOptions(backoff=backoff))
    assert 0 <= wait(ended) <= MAX_WAIT_SECONDS


def test_jitter_moves_the_wait_by_its_share_either_way() -> None:
    """So that what failed together is not tried again together."""
    backoff = Backoff(base_seconds=100, factor=1, max_seconds=1000, jitter=0.1)
    chance = random.Random(3)
    waits = [backoff_seconds(backoff, 1, chance.random()) for _ in range(200)]
    assert 90 <= min(waits) < 92
    assert 108 < max(waits) <= 110


def test_the_clock_of_a_decision_is_the_callers() -> None:
    """No hidden look at the time."""
    later = NOON + timedelta(days=1)
    task = conclude(
        running(max_retries=1),
        attempt=1,
        ending=Ending(Outcome.FAILED),
        options=STEADY,
        output_files=(),
        now=later,
        chance=0.5,
    )
    assert task.run_after == later + timedelta(seconds=10)
