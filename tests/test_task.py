"""Every transition that is legal happens as the table says, and every other one raises and changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from runner import task as transitions
from runner.errors import CorruptRecord, Fenced, IllegalTransition
from runner.task import (
    COUNTED,
    DRAFT,
    LIVE,
    TERMINAL,
    TRANSITIONS,
    Attempt,
    Drop,
    FileState,
    Outcome,
    Progress,
    Status,
    Task,
    TaskError,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
ERROR = TaskError(code="broken", message="it broke")

Move = Callable[[Task], Task]

MOVES: dict[str, tuple[Move, dict[Status, Status]]] = {
    "receive_input": (
        lambda task: transitions.receive_input(task, "uploads/u/t/a", "a", 5, LATER),
        dict.fromkeys(DRAFT, Status.UPLOADED),
    ),
    "submit": (lambda task: transitions.submit(task, {"width": 2}, LATER), dict.fromkeys(DRAFT, Status.PENDING)),
    "start": (lambda task: transitions.start(task, LATER), {Status.PENDING: Status.PROCESSING}),
    "complete": (lambda task: transitions.complete(task, 1, LATER), {Status.PROCESSING: Status.COMPLETED}),
    "fail": (lambda task: transitions.fail(task, 1, LATER, error=ERROR), {Status.PROCESSING: Status.FAILED}),
    "requeue": (
        lambda task: transitions.requeue(task, 1, LATER, outcome=Outcome.LOST),
        {Status.PROCESSING: Status.PENDING},
    ),
    "cancel": (lambda task: transitions.cancel(task, LATER), dict.fromkeys(LIVE, Status.CANCELLED)),
    "refuse": (
        lambda task: transitions.refuse(task, LATER, error=ERROR),
        dict.fromkeys(DRAFT | {Status.PENDING}, Status.FAILED),
    ),
    "retry": (
        lambda task: transitions.retry(task, LATER),
        dict.fromkeys((Status.FAILED, Status.CANCELLED), Status.PENDING),
    ),
    "report": (
        lambda task: transitions.report(task, 1, LATER, progress=Progress(percentage=50)),
        {Status.PROCESSING: Status.PROCESSING},
    ),
}
"""Each verb, and where it leads from each status from which it is legal."""


def make(status: Status = Status.PENDING, **changes: object) -> Task:
    """A task of which one attempt has begun, if its status says so."""
    begun = status in TERMINAL or status is Status.PROCESSING
    fields: dict[str, object] = {
        "id": "t",
        "type": "resize",
        "user_id": "u",
        "status": status,
        "created_at": NOW,
        "updated_at": NOW,
        "attempt": int(begun),
        "attempts": (Attempt(number=1, started_at=NOW),) if begun else (),
    }
    return transitions.from_values(fields | changes)


def ended(*outcomes: Outcome) -> tuple[Attempt, ...]:
    """Attempts that ended so."""
    return tuple(
        Attempt(number=number, started_at=NOW, ended_at=NOW, outcome=outcome)
        for number, outcome in enumerate(outcomes, start=1)
    )


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("verb", MOVES)
def test_each_verb_leads_where_the_table_says_and_nowhere_else(verb: str, status: Status) -> None:
    """A legal transition counts the version up; an illegal one raises, names the status, and changes nothing."""
    move, legal = MOVES[verb]
    task = make(status)
    before = copy.deepcopy(task)
    if status in legal:
        after = move(task)
        assert (after.status, after.version, after.updated_at) == (legal[status], task.version + 1, LATER)
    else:
        with pytest.raises(IllegalTransition) as refused:
            move(task)
        assert (refused.value.status, refused.value.task_id) == (status, "t")
    assert task == before


def test_the_table_allows_what_the_verbs_do_and_no_more() -> None:
    """Nothing is in the table that no verb does, and no verb goes round it."""
    done = {(before, after) for _, legal in MOVES.values() for before, after in legal.items()}
    assert done == {(before, after) for before, targets in TRANSITIONS.items() for after in targets} - {
        (Status.CREATED, Status.CREATED),
        (Status.PENDING, Status.PENDING),
    }


def test_a_move_that_the_table_lacks_raises_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is asked each time, so that a verb cannot be more generous than it."""
    monkeypatch.setitem(transitions.TRANSITIONS, Status.PENDING, frozenset())
    with pytest.raises(IllegalTransition, match="it cannot be cancelled"):
        transitions.cancel(make(), LATER)


@pytest.mark.parametrize("verb", ["complete", "fail", "requeue", "report"])
@pytest.mark.parametrize("attempt", [0, 1, 3])
def test_a_late_result_of_a_lost_attempt_changes_nothing(verb: str, attempt: int) -> None:
    """Only the current attempt is heard; the others are fenced."""
    task = make(Status.PROCESSING, attempt=2, attempts=(*ended(Outcome.LOST), Attempt(number=2, started_at=NOW)))
    say: dict[str, Move] = {
        "complete": lambda task: transitions.complete(task, attempt, LATER),
        "fail": lambda task: transitions.fail(task, attempt, LATER, error=ERROR),
        "requeue": lambda task: transitions.requeue(task, attempt, LATER, outcome=Outcome.LOST),
        "report": lambda task: transitions.report(task, attempt, LATER, progress=None),
    }
    with pytest.raises(Fenced, match=f"attempt {attempt}"):
        say[verb](task)


def test_an_attempt_is_numbered_and_clears_what_the_last_one_left() -> None:
    """Attempts are append-only; progress, error and delay belong to the attempt before."""
    waiting = make(attempt=1, attempts=ended(Outcome.FAILED), error=ERROR, run_after=NOW, started_at=NOW)
    task = transitions.start(waiting, LATER)
    assert [(attempt.number, attempt.outcome) for attempt in task.attempts] == [(1, Outcome.FAILED), (2, None)]
    assert (task.attempt, task.started_at, task.error, task.run_after) == (2, NOW, None, None)


def test_a_completed_task_has_its_result_and_is_at_100_per_cent() -> None:
    """What the handler returned, what it wrote, and when."""
    running = transitions.report(make(Status.PROCESSING), 1, LATER, progress=Progress(percentage=40, stage="half"))
    task = transitions.complete(running, 1, LATER, result={"n": 1}, output_files=("results/u/t/a",))
    assert (task.result, task.output_files, task.completed_at) == ({"n": 1}, ("results/u/t/a",), LATER)
    assert task.progress is not None
    assert (task.progress.percentage, task.progress.stage) == (100, "half")
    assert task.attempts[-1].outcome is Outcome.COMPLETED
    assert task.is_terminal


def test_a_failed_attempt_says_why_in_the_task_and_in_the_attempt() -> None:
    """The dead letter shows its error without a look into the attempts, and the attempts keep it."""
    task = transitions.fail(make(Status.PROCESSING), 1, LATER, error=ERROR, outcome=Outcome.TIMED_OUT)
    assert task.error == ERROR
    assert (task.attempts[-1].outcome, task.attempts[-1].error) == (Outcome.TIMED_OUT, ERROR)


def test_a_requeued_task_waits_for_its_time() -> None:
    """The wait is `run_after`, and the reason is kept."""
    task = transitions.requeue(make(Status.PROCESSING), 1, NOW, outcome=Outcome.FAILED, run_after=LATER, error=ERROR)
    assert (task.run_after, task.error, task.attempts[-1].ended_at) == (LATER, ERROR, NOW)


@pytest.mark.parametrize("outcome", Outcome)
def test_only_failed_timed_out_and_lost_attempts_use_up_retries(outcome: Outcome) -> None:
    """A snooze, a drain or a cancellation is not the task's fault."""
    assert make(attempts=ended(outcome)).retries_used == (outcome in COUNTED)


def test_a_poller_that_snoozes_for_ever_does_not_grow() -> None:
    """Of a run of snoozes the latest is kept, and the attempt number goes on."""
    task = transitions.requeue(
        transitions.start(make(attempts=ended(Outcome.FAILED), attempt=1), NOW), 2, NOW, outcome=Outcome.SNOOZED
    )
    for number in range(3, 10):
        task = transitions.requeue(transitions.start(task, NOW), number, NOW, outcome=Outcome.SNOOZED)
    assert [(attempt.number, attempt.outcome) for attempt in task.attempts] == [
        (1, Outcome.FAILED),
        (9, Outcome.SNOOZED),
    ]


def test_cancelling_closes_the_running_attempt_and_fences_it() -> None:
    """The result that comes afterwards is refused."""
    task = transitions.cancel(make(Status.PROCESSING), LATER, reason="not wanted")
    assert (task.attempts[-1].outcome, task.attempts[-1].ended_at) == (Outcome.CANCELLED, LATER)
    assert task.error == TaskError(code="cancelled", message="not wanted", retryable=False)
    with pytest.raises(Fenced):
        transitions.complete(task, 1, LATER)


def test_an_expired_task_that_a_person_retries_does_not_expire_again_at_once() -> None:
    """`expires_at` in the past said no to the first start, not to the person."""
    expired = transitions.refuse(make(expires_at=NOW), NOW, error=ERROR)
    assert transitions.retry(expired, LATER).expires_at is None


def test_a_retried_task_keeps_an_expiry_that_has_not_come() -> None:
    """Who failed early may still be too late."""
    tomorrow = NOW + timedelta(days=1)
    cancelled = transitions.cancel(make(expires_at=tomorrow), NOW)
    task = transitions.retry(cancelled, LATER)
    assert (task.expires_at, task.error, task.completed_at) == (tomorrow, None, None)


def test_inputs_of_a_draft_add_up() -> None:
    """Each file once, their sizes together, the first one's name for people."""
    draft = make(Status.CREATED)
    for name in ("a", "b"):
        draft = transitions.receive_input(draft, f"uploads/u/t/{name}", f"{name}.txt", 5, NOW)
    assert (draft.input_files, draft.original_filename, draft.file_size) == (
        ("uploads/u/t/a", "uploads/u/t/b"),
        "a.txt",
        10,
    )


def test_a_draft_may_lose_its_inputs_or_have_them_replaced() -> None:
    """Names and sizes are those of what is left; nothing else is changed."""
    draft = make(Status.CREATED)
    for name in ("a", "b"):
        draft = transitions.receive_input(draft, f"uploads/u/t/{name}", f"{name}.txt", 5, NOW)
    less = transitions.drop_input(draft, "uploads/u/t/a", 5, LATER)
    assert (less.input_files, less.original_filename, less.file_size) == (("uploads/u/t/b",), "b", 5)
    other = transitions.replace_inputs(draft, "uploads/u/t/c", "c.txt", 7, LATER)
    assert (other.input_files, other.original_filename, other.file_size) == (("uploads/u/t/c",), "c.txt", 7)
    with pytest.raises(IllegalTransition):
        transitions.drop_input(less, "uploads/u/t/a", 5, LATER)


def test_notes_are_changed_in_drafts_only() -> None:
    """What is queued is what was asked for."""
    draft = make(Status.UPLOADED)
    noted = transitions.revise(draft, {"a": "b"}, LATER)
    assert (noted.metadata, noted.version) == ({"a": "b"}, draft.version + 1)
    assert transitions.revise(noted, {"a": "b"}, LATER) is noted
    with pytest.raises(IllegalTransition):
        transitions.revise(make(Status.PENDING), {}, LATER)


def test_files_reported_without_progress_leave_the_estimate_alone() -> None:
    """A handler may say which files it works on and how far it is in two steps."""
    running = transitions.report(make(Status.PROCESSING), 1, LATER, progress=Progress(percentage=50))
    task = transitions.report(running, 1, LATER, progress=None, files=(FileState(path="a"),))
    assert (task.files, task.progress) == ((FileState(path="a"),), running.progress)
    assert task.estimated_completion_at == running.estimated_completion_at == LATER + timedelta(minutes=1)
    assert transitions.report(task, 1, LATER, progress=Progress(percentage=60)).files == task.files


@pytest.mark.parametrize(
    ("percentage", "now"),
    [(0, LATER), (100, LATER), (1e-300, LATER), (1e-9, LATER), (50, NOW - timedelta(days=1))],
)
def test_what_cannot_be_estimated_is_not(percentage: float, now: datetime) -> None:
    """Neither the first sign of progress nor a clock set back makes a date that does not exist."""
    assert transitions.estimate(make(Status.PROCESSING), Progress(percentage=percentage), now) is None


def test_a_task_that_never_began_has_no_estimate() -> None:
    """There is nothing to reckon from."""
    assert transitions.estimate(make(), Progress(percentage=50), NOW) is None
    assert transitions.estimate(make(Status.PROCESSING), None, NOW) is None


def test_a_running_task_without_attempts_can_still_be_ended() -> None:
    """Somebody edited its file; that must not be a task that nobody can get rid of."""
    task = make(Status.PROCESSING, attempts=())
    assert transitions.requeue(task, 1, NOW, outcome=Outcome.LOST).attempts == ()


def test_a_task_reads_back_as_it_was_written() -> None:
    """Both forms hold every field, and the pretty one ends in a newline."""
    task = transitions.complete(make(Status.PROCESSING, payload={"名": [1, None]}), 1, LATER, result=[1.5])
    assert transitions.from_json(transitions.to_json(task)) == task
    assert transitions.from_json(transitions.to_pretty_json(task)) == task
    assert transitions.to_pretty_json(task).endswith(b"}\n")
    assert json.loads(transitions.to_json(task)).keys() == set(transitions.FIELDS)


def test_a_task_made_without_checks_is_written_like_one_made_with_them() -> None:
    """Field by field in the same order: `id` comes first in every record and in every file."""
    given = {
        "id": "t",
        "type": "resize",
        "user_id": "u",
        "status": Status.PENDING,
        "created_at": NOW,
        "updated_at": NOW,
    }
    quick = transitions.make({**given, "payload": {}, "metadata": {}})
    assert transitions.to_json(quick) == transitions.to_json(make())
    assert quick == make()
    assert transitions.to_json(transitions.start(quick, NOW)).startswith(b'{"id":"t","type":')


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"[]", b'{"id": 1', b"\xff\xfe", b'{"id":"t","surprise":1}'])
def test_what_is_no_task_is_never_read_as_an_empty_one(data: bytes) -> None:
    """A damaged file is an error with a reason, in one line."""
    with pytest.raises(CorruptRecord, match=r"\Anot a task: .+\Z"):
        transitions.from_json(data)


@given(st.integers(min_value=0, max_value=2000))
def test_no_prefix_of_a_task_is_a_task(length: int) -> None:
    """A torn file is seen as torn, wherever it is cut."""
    whole = transitions.to_json(make())
    if length < len(whole):
        with pytest.raises(CorruptRecord):
            transitions.from_json(whole[:length])


def test_a_changed_task_is_a_whole_task() -> None:
    """Transitions copy without checking anything again; what comes out is still equal and frozen as before."""
    task = transitions.start(make(), LATER)
    assert task == transitions.from_values(asdict(task))
    assert replace(task, version=9).version == 9
    with pytest.raises(FrozenInstanceError):
        task.version = 3  # type: ignore[misc]


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(payload=st.dictionaries(st.text(max_size=5), ODD, max_size=4), result=ODD)
def test_whatever_json_a_task_holds_is_written_and_read_back(payload: dict[str, Any], result: Any) -> None:
    """Integers of any size, every character, and what is nested: also what the quick writer of JSON refuses."""
    done = transitions.complete(make(Status.PROCESSING, payload=payload), 1, NOW, result=result)
    assert transitions.from_json(transitions.to_json(done)) == done


def test_what_only_pydantic_can_write_is_written() -> None:
    """A program's own submission may hold more than plain JSON."""
    task = make(payload={"many": 2**70, "path": Path("a/b"), "set": {1}})
    assert transitions.from_json(transitions.to_json(task)).payload == {"many": 2**70, "path": "a/b", "set": [1]}


def test_a_task_is_written_as_its_model_says() -> None:
    """The quick way and pydantic's own give the same bytes: all fields, in the order of the model."""
    error = TaskError(code="x", message="é😀")
    task = transitions.fail(make(Status.PROCESSING, drop=Drop(path="inbox/a", name="a")), 1, NOW, error=error)
    assert transitions.to_json(task) == TypeAdapter(Task).dump_json(task)
    assert list(json.loads(transitions.to_json(task))) == list(transitions.FIELDS)
