"""How what a function returns or raises becomes an ending."""

import math
from pathlib import Path
from typing import Any

import pytest

from runner.context import Cancelled, Fail, Retry, Snooze
from runner.execute.assignment import Ending, Stop
from runner.execute.attempt import MAX_RESULT_BYTES, complete, explain, stopped
from runner.task import Outcome


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (0, 0),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({1: {"x"}}, {"1": ["x"]}),
        (Path("a/b"), "a/b"),
        (b"text", "text"),
        ("ü", "ü"),
        (2**70, 2**70),
    ],
)
def test_a_result_is_what_a_reader_of_its_json_will_see(result: Any, expected: Any) -> None:
    """The same here as after a restart, when it has been through the task's file."""
    assert complete(result) == Ending(Outcome.COMPLETED, expected)


def test_a_result_does_not_change_when_the_handler_changes_its_own_dict_later() -> None:
    """A handler may return the same module-level dict each time; an earlier task's result stays what it was."""
    state = {"n": 1}
    ending = complete(state)
    state["n"] = 99
    assert ending.result == {"n": 1}


def _nested(levels: int) -> list[Any]:
    result: list[Any] = []
    for _ in range(levels):
        result = [result]
    return result


def _endless() -> list[Any]:
    result: list[Any] = []
    result.append(result)
    return result


@pytest.mark.parametrize(
    "result", [object(), math.nan, {"x": [math.inf]}, "\udcff", b"\xff", _nested(195), _nested(10_000), _endless()]
)
def test_a_result_that_no_reader_of_json_would_accept_fails(result: Any) -> None:
    """It would make the task's file unreadable, or something else when it is read; trying again would not help."""
    ending = complete(result)
    assert (ending.outcome, ending.result) == (Outcome.FAILED, None)
    assert ending.error is not None
    assert (ending.error.code, ending.error.retryable) == ("invalid_result", False)


def test_a_result_that_is_too_big_says_where_it_belongs() -> None:
    """Results live in memory and in lists; files do not."""
    assert complete("x" * (MAX_RESULT_BYTES - 100)).outcome is Outcome.COMPLETED
    error = complete("x" * MAX_RESULT_BYTES).error
    assert error is not None
    assert "ctx.output" in error.message


@pytest.mark.parametrize("error", [Retry(5), Snooze(5), Fail("no"), Cancelled(), ValueError("x"), SystemExit(0)])
@pytest.mark.parametrize(
    ("reason", "outcome", "retryable"),
    [
        (Stop.CANCELLED, Outcome.CANCELLED, False),
        (Stop.TIMED_OUT, Outcome.TIMED_OUT, True),
        (Stop.DRAINED, Outcome.INTERRUPTED, True),
    ],
)
def test_after_a_stop_its_reason_says_how_the_attempt_ended(
    error: BaseException, reason: Stop, outcome: Outcome, retryable: bool
) -> None:
    """Whatever came out of the function then."""
    ending = explain(error, reason)
    assert ending == stopped(reason)
    assert (ending.outcome, ending.error and ending.error.retryable) == (outcome, retryable)


def test_a_wait_of_a_thousand_years_is_cut_to_what_a_clock_can_add() -> None:
    """The instant of the next attempt must be one."""
    for error in (Retry(1e300), Snooze(1e300)):
        assert explain(error, "").after_seconds == 10 * 365 * 86_400


def test_cancelled_without_a_stop_is_a_failure_for_good() -> None:
    """The handler gave up by itself."""
    error = explain(Cancelled(), "").error
    assert error is not None
    assert (error.code, error.message, error.retryable) == ("cancelled", "the handler cancelled itself", False)


class Mute(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError


class Wordless(Fail):
    """A subclass that forgot what its base sets up."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("error", [Mute(), Wordless(), Fail("\udcff"), KeyError("\udcff"), ValueError("x" * 100_000)])
def test_no_error_is_too_odd_to_be_told(error: BaseException) -> None:
    """What a handler raises never keeps its attempt from ending, nor its task from being written."""
    ending = explain(error, "")
    assert ending.outcome is Outcome.FAILED
    assert ending.error is not None
    assert len(ending.error.message.encode()) < 5_000
    assert len(ending.traceback.encode()) < 20_000
