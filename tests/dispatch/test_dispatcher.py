import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from runner import task as transitions
from runner.dispatch import dispatcher
from runner.dispatch.dispatcher import MAX_TICK_SECONDS
from runner.dispatch.limits import Lane, Limit, Scope
from runner.errors import Degraded, DiskFull, IllegalTransition, ShuttingDown, Unavailable
from runner.events import Watcher
from runner.execute.assignment import Assignment, Monitor
from runner.intake.admission import Origin, Submission
from runner.service import limit_rules
from runner.store import Create, Update
from runner.task import Outcome, Progress, Source, Status, Task
from tests.rig import LIMIT_SECONDS, NOON, Gate, Rig, gate_of, opened

RigMaker = Callable[..., Rig]


def running(rig: Rig, type: str = "stubborn", **fields: Any) -> tuple[Task, Gate]:
    """A task whose handler has come to its gate."""
    name = rig.gate()
    task = rig.submit(type, gate=name, **fields)
    gate_of(name).await_entered()
    return task, gate_of(name)


def change_limits(rig: Rig, **limits: Any) -> None:
    """Other limits, as a reload of the configuration would set them."""
    changed = rig.configure({f"limits.{name}": value for name, value in limits.items()})
    rig.it.change_limits(changed)


def outcomes(task: Task) -> list[Outcome | None]:
    """How the attempts of a task ended."""
    return [attempt.outcome for attempt in task.attempts]


# Starting


@pytest.mark.parametrize("type", ["echo", "coroutine"])
@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_task_runs_and_its_result_is_kept(make_rig: RigMaker, type: str, durability: str) -> None:
    """From submission to completion, whatever an acknowledgement promises."""
    rig = make_rig(durability=durability)
    task = rig.until(rig.submit(type, value=[1, {"a": None}]))
    assert (task.status, task.result, outcomes(task)) == (Status.COMPLETED, [1, {"a": None}], [Outcome.COMPLETED])


def test_no_more_run_than_the_limits_allow_and_the_rest_follows(make_rig: RigMaker) -> None:
    """One slot is one attempt; the next starts when it is free."""
    rig = make_rig(limits__global=2)
    gate = rig.gate()
    tasks = [rig.submit("stubborn", gate=gate) for _ in range(5)]
    gate_of(gate).await_entered(2)
    rig.settle()
    assert (gate_of(gate).entered, rig.it.dispatcher.pending()) == (2, 3)
    gate_of(gate).open()
    assert {rig.until(task).status for task in tasks} == {Status.COMPLETED}


def test_one_task_does_not_wait_for_all_those_of_another_user(make_rig: RigMaker) -> None:
    """Users take turns, in the order in which attempts really start."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig, user="ann")
    many = {rig.submit("echo", user="ann").id for _ in range(50)}
    one = rig.submit("echo", user="bob")
    with rig.it.events.subscribe(many | {one.id}) as watcher:
        gate.open()
        first_three = [_next_start(watcher) for _ in range(3)]
    assert one.id in first_three


def _next_start(watcher: Watcher) -> str:
    while (event := watcher.get(LIMIT_SECONDS)) is not None:
        if event.data.get("status") == Status.PROCESSING:
            return event.task_id
    raise AssertionError("nothing started")


def test_a_raised_limit_lets_more_start_at_once_and_a_lowered_one_stops_nothing(rig: Rig) -> None:
    """Limits are changed while attempts run, and count those."""
    change_limits(rig, **{"global": 1})
    gate = rig.gate()
    tasks = [rig.submit("stubborn", gate=gate) for _ in range(4)]
    gate_of(gate).await_entered(1)
    change_limits(rig, **{"global": 3})
    gate_of(gate).await_entered(3)
    change_limits(rig, **{"global": 1})
    assert len(rig.it.dispatcher.attempts) == 3
    gate_of(gate).open()
    assert {rig.until(task).status for task in tasks} == {Status.COMPLETED}


def test_a_limit_that_comes_while_attempts_run_counts_them(rig: Rig) -> None:
    """And lets the next start when one of them has ended."""
    _, gate = running(rig)
    change_limits(rig, per_type={"stubborn": 1})
    second = rig.gate()
    waiting = rig.submit("stubborn", gate=second)
    other = rig.until(rig.submit("echo"))
    assert other.status is Status.COMPLETED
    assert rig.it.dispatcher.standing(waiting.id).blocker == Limit(Scope.TYPE, "stubborn")
    gate.open()
    gate_of(second).await_entered()


def test_what_waits_is_counted_by_user_and_by_queue(make_rig: RigMaker) -> None:
    """For slots and for a time alike: nobody gets past a limit on waiting tasks by asking for tomorrow."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    rig.submit("echo", user="ann", queue="high")
    rig.submit("echo", user="ann", delay=60)
    counts = rig.it.dispatcher
    assert (counts.pending_of("ann"), counts.pending_of("bob"), counts.pending()) == (2, 0, 2)
    assert (counts.waiting_in_queue("high"), counts.waiting_in_queue("default")) == (1, 0)
    gate.open()


def test_handlers_limit_themselves_and_the_lower_limit_holds(rig: Rig) -> None:
    """`concurrency` and `per_user` of a handler beside `per_type` of the configuration."""
    rig.handlers.joinpath("more.py").write_text(
        "from runner import handler\n"
        "@handler(concurrency=2, per_user=1)\ndef two(ctx) -> None: ...\n"
        "@handler(concurrency=5)\ndef five(ctx) -> None: ...\n"
    )
    rig.it.handlers.load()
    rules = limit_rules(rig.configure({"limits.per_type": {"five": 3, "two": 9}}), rig.it.handlers)
    assert (rules.per_type, rules.per_type_and_user) == ({"five": 3, "two": 2}, {"two": 1})


def test_a_start_is_launched_before_it_is_synced_unless_it_must_not_be_repeated(make_rig: RigMaker) -> None:
    """A power cut then undoes the start, and starting again is what at-least-once means."""
    rig = make_rig(limits__global=2)
    (_, first), (_, second) = running(rig), running(rig)
    careful, quick = rig.gate(), rig.gate()
    rig.submit("once", gate=careful)
    task = rig.submit("stubborn", gate=quick)
    with syncs_held(rig):
        first.open()
        second.open()
        gate_of(quick).await_entered()
        assert rig.it.get(task.id).status is Status.PENDING
        assert gate_of(careful).entered == 0
    gate_of(careful).await_entered()


def test_a_task_that_finds_a_slot_runs_before_its_creation_is_synced(rig: Rig) -> None:
    """A power cut then undoes both, and nobody has been told of either."""
    gate, answers = rig.gate(), SimpleQueue[Any]()
    with syncs_held(rig):
        submit_soon(rig, "stubborn", gate, answers)
        gate_of(gate).await_entered()
        assert answers.empty()
    (task,), error = answers.get(timeout=LIMIT_SECONDS)
    assert (task.status, error) == (Status.PENDING, None)
    gate_of(gate).open()
    assert rig.until(task).status is Status.COMPLETED


def test_a_task_that_runs_before_its_creation_is_synced_can_be_seen(rig: Rig) -> None:
    """By whoever knows its id: its handler, which may ask for it, and what keeps its log and how far it is."""
    gate, half = rig.gate(), Progress(percentage=50)
    origin = Origin(Source.CLI, task_id="early")
    with syncs_held(rig):
        rig.it.submit_soon(Submission(type="stubborn", payload={"gate": gate}), origin, lambda tasks, error: None)
        gate_of(gate).await_entered()
        rig.it.store.note_progress("early", 1, half)
        seen = rig.it.get("early")
        assert (seen.status, seen.progress) == (Status.PROCESSING, half)
        assert not rig.it.store.is_gone("early")
    assert rig.it.get("early").progress == half
    gate_of(gate).open()


def test_a_task_that_runs_and_cannot_be_kept_is_told_to_stop(rig: Rig) -> None:
    """The disk fails while it is synced: its slot becomes free, and whoever handed it in hears that it is not there."""
    gate, answers = rig.gate(), SimpleQueue[Any]()
    with syncs_held(rig, OSError(errno.EIO, "Input/output error")) as over:
        submit_soon(rig, "obedient", gate, answers)
        gate_of(gate).await_entered()
        over.set()
        tasks, error = answers.get(timeout=LIMIT_SECONDS)
    assert (tasks, type(error)) == ((), Degraded)
    began = time.monotonic()
    rig.it.dispatcher.drain(LIMIT_SECONDS)
    assert len(rig.it.dispatcher.attempts) == 0
    assert time.monotonic() < began + LIMIT_SECONDS, "it ended because of the drain"


def submit_soon(rig: Rig, type: str, gate: str, answers: SimpleQueue[Any]) -> None:
    """Hands in a task, whose answer comes later."""
    submission = Submission(type=type, payload={"gate": gate})
    rig.it.submit_soon(submission, Origin(Source.CLI), lambda tasks, error: answers.put((tasks, error)))


@contextmanager
def syncs_held(rig: Rig, failure: OSError | None = None) -> Iterator[threading.Event]:
    """Inside, nothing becomes durable until the event; then it does, or the disk fails."""
    over, sync = threading.Event(), rig.it.store.files.datasync

    def wait_and_sync(fd: int) -> None:
        over.wait(LIMIT_SECONDS)
        if failure is not None:
            raise failure
        sync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.it.store.files, "datasync", wait_and_sync)
        try:
            yield over
        finally:
            over.set()


# Time


def test_a_delayed_task_starts_when_its_time_has_come_and_not_before(rig: Rig) -> None:
    """`run_after` and `delay` are about the same instant."""
    tasks = [rig.submit("echo", delay=60), rig.submit("echo", run_after=NOON + timedelta(seconds=60))]
    rig.advance(59.9)
    rig.settle()
    assert rig.it.dispatcher.standing(tasks[0].id).is_delayed
    assert {rig.it.get(task.id).status for task in tasks} == {Status.PENDING}
    rig.advance(0.1)
    assert {rig.until(task).started_at for task in tasks} == {NOON + timedelta(seconds=60)}


@pytest.mark.parametrize("jump", [-3600, 3600, -86_400, 86_400, -56 * 365.25 * 86_400])
def test_a_clock_that_jumps_neither_loses_nor_rushes_anything(rig: Rig, jump: float) -> None:
    """What is due by the new time starts, all else waits until its time comes."""
    task = rig.submit("echo", delay=7200)
    rig.advance(jump)
    assert rig.until(rig.submit("echo")).status is Status.COMPLETED
    if jump < 7200:
        assert rig.it.get(task.id).status is Status.PENDING
    rig.advance(7200 - jump)
    assert rig.until(task).status is Status.COMPLETED


def test_the_next_look_is_when_something_is_due_and_within_a_second_at_most(rig: Rig) -> None:
    """Neither a busy loop nor a missed wake-up."""
    look = rig.it.dispatcher.run_once
    assert look() == pytest.approx(time.monotonic() + MAX_TICK_SECONDS, abs=0.2)
    rig.submit("echo", delay=0.5)
    assert look() == pytest.approx(time.monotonic() + 0.5, abs=0.2)
    rig.submit("echo", delay=7200, expires_at=NOON + timedelta(seconds=7300))
    assert look() == pytest.approx(time.monotonic() + 0.5, abs=0.2)
    rig.advance(-5)
    assert look() == pytest.approx(time.monotonic() + MAX_TICK_SECONDS, abs=0.2)


def test_a_task_that_was_not_started_in_time_fails_as_expired(make_rig: RigMaker) -> None:
    """While it waits for a slot, for a time, or for its files."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    end = NOON + timedelta(seconds=60)
    tasks = [rig.submit("echo", expires_at=end, **more) for more in ({}, {"delay": 59}, {"draft": True})]
    rig.advance(60)
    for task in map(rig.until, tasks):
        assert task.error is not None
        assert (task.status, task.error.code, task.attempt) == (Status.FAILED, "expired", 0)
    gate.open()


def test_a_task_that_was_started_in_time_does_not_expire(rig: Rig) -> None:
    """Nor does one that waits for a retry."""
    task = rig.submit("act", script=["raise", "done"], expires_at=NOON + timedelta(seconds=5))
    rig.when(task, lambda now: now.run_after is not None)
    rig.advance(60)
    assert rig.until(task).result == "done"


def test_a_task_that_expired_while_nobody_owned_it_is_not_started(make_rig: RigMaker) -> None:
    """The first look of the next owner comes too late for it."""
    rig = make_rig(limits__global=1)
    running(rig)
    gate = rig.gate()
    task = rig.submit("stubborn", gate=gate, expires_at=NOON + timedelta(seconds=60))
    rig.close(grace_seconds=0)
    rig.clock.now += timedelta(seconds=61)
    rig.open()
    assert rig.until(task).status is Status.FAILED
    assert gate_of(gate).entered == 0


def test_a_start_that_comes_after_the_expiry_is_none(make_rig: RigMaker) -> None:
    """The clock decides when the start is recorded, not when the timer rings."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    task = rig.submit("stubborn", gate=rig.gate(), expires_at=NOON + timedelta(seconds=60))
    rig.clock.now += timedelta(seconds=61)
    change_limits(rig, **{"global": 2})
    assert rig.until(task).status is Status.FAILED
    assert rig.until(rig.submit("echo")).status is Status.COMPLETED
    gate.open()


# Cancelling


@pytest.mark.parametrize("fields", [{"draft": True}, {"draft": True, "file": True}, {"delay": 60}, {}])
def test_what_waits_is_cancelled_at_once_and_never_starts(make_rig: RigMaker, fields: dict[str, Any]) -> None:
    """A draft without and with a file, one for later, one in the queue."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    inputs = (rig.input("a.txt"),) if fields.pop("file", False) else ()
    task = rig.submit("echo", inputs=inputs, **fields)
    assert rig.it.cancel(task.id, reason="not wanted").status is Status.CANCELLED
    gate.open()
    rig.advance(60)
    rig.until(rig.submit("echo"))
    after = rig.it.get(task.id)
    assert after.error is not None
    assert (after.status, after.attempt, after.error.message) == (Status.CANCELLED, 0, "not wanted")
    assert rig.it.dispatcher.pending() == 0


def test_what_runs_is_told_to_stop_when_it_is_cancelled(rig: Rig) -> None:
    """A handler that listens ends soon; its slot is free then."""
    task, gate = running(rig, "obedient")
    assert outcomes(rig.it.cancel(task.id)) == [Outcome.CANCELLED]
    free(rig, task)
    assert not gate.is_open(0)
    assert rig.it.get(task.id).status is Status.CANCELLED


@pytest.mark.parametrize("script", [["done"], ["fail"]])
def test_what_has_ended_cannot_be_cancelled(rig: Rig, script: list[str]) -> None:
    """Terminal states never revert."""
    task = rig.until(rig.submit("act", script=script))
    with pytest.raises(IllegalTransition):
        rig.it.cancel(task.id)
    assert rig.it.get(task.id) == task


def test_a_handler_that_does_not_hear_keeps_its_slot_and_its_late_result_is_fenced(make_rig: RigMaker) -> None:
    """Cancelled and retried: the next attempt waits until the first has really ended, and nothing of that is seen."""
    rig = make_rig(limits__global=1)
    task, gate = running(rig, outputs=["out"])
    rig.it.cancel(task.id)
    rig.it.retry(task.id)
    other = rig.submit("echo")
    rig.settle()
    assert rig.it.dispatcher.standing(task.id).follows_attempt
    assert (gate.entered, rig.it.get(other.id).status, rig.it.dispatcher.pending()) == (1, Status.PENDING, 2)
    gate.open()
    ended = rig.until(task)
    assert (ended.result, outcomes(ended)) == (2, [Outcome.CANCELLED, Outcome.COMPLETED])
    assert rig.data.joinpath(ended.output_files[0]).read_text() == "attempt 2"
    assert any("attempt 1 came too late" in line for line in rig.log_of(task))
    assert rig.until(other).status is Status.COMPLETED


def test_a_task_that_is_cancelled_while_its_attempt_does_not_end_waits_no_longer(rig: Rig) -> None:
    """Cancelled, retried, cancelled again: there is no second attempt."""
    task, gate = running(rig)
    rig.it.cancel(task.id)
    rig.it.retry(task.id)
    rig.it.cancel(task.id)
    assert rig.it.dispatcher.pending() == 0
    gate.open()
    free(rig, task)
    assert (gate.entered, rig.it.get(task.id).status) == (1, Status.CANCELLED)


def free(rig: Rig, task: Task) -> None:
    """The last attempt of the task has given its slot back."""
    change_limits(rig, **{"global": 1})
    rig.until(rig.submit("echo"))
    assert task.id not in rig.it.dispatcher.attempts
    change_limits(rig, **{"global": 5})


def test_a_cancelled_start_is_no_start(make_rig: RigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are on their way to the disk, the cancel first: the slot goes to the next, and at once."""
    monkeypatch.setattr(dispatcher, "MAX_TICK_SECONDS", 2 * LIMIT_SECONDS)
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    task, other = rig.submit("stubborn", gate=rig.gate()), rig.submit("echo")
    with rig.held_committer():
        cancel_soon(rig, task)
        change_limits(rig, **{"global": 2})
    assert rig.until(other).status is Status.COMPLETED
    assert rig.it.get(task.id).attempt == 0
    gate.open()


@pytest.mark.parametrize("type", ["stubborn", "once"])
def test_a_start_that_is_cancelled_with_the_same_stroke_is_never_launched(make_rig: RigMaker, type: str) -> None:
    """The start first: it is recorded, but no handler sees it, and the slot goes to the next."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    name = rig.gate()
    task, other = rig.submit(type, gate=name), rig.submit("echo")
    with rig.held_committer():
        change_limits(rig, **{"global": 2})
        cancel_soon(rig, task)
    assert rig.until(other).status is Status.COMPLETED
    assert (rig.it.get(task.id).status, gate_of(name).entered) == (Status.CANCELLED, 0)
    gate.open()


@pytest.mark.parametrize("start_is_last", [True, False])
def test_a_task_cancelled_and_revived_around_its_start_runs_once(make_rig: RigMaker, start_is_last: bool) -> None:
    """A start that was asked for before goes through; one that was refused is asked for again."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    task = rig.submit("echo", value=1)
    with rig.held_committer():
        cancel_soon(rig, task)
        if start_is_last:
            revive_soon(rig, task)
        change_limits(rig, **{"global": 2})
        if not start_is_last:
            revive_soon(rig, task)
    assert outcomes(rig.until(task)) == [Outcome.COMPLETED]
    gate.open()


def cancel_soon(rig: Rig, task: Task) -> None:
    """Cancels without waiting."""
    rig.it.store.submit((Update(task.id, lambda now: transitions.cancel(now, NOON)),))


def revive_soon(rig: Rig, task: Task) -> None:
    """Retries without waiting."""
    rig.it.store.submit((Update(task.id, lambda now: transitions.retry(now, NOON)),))


# Handlers that come and go


def test_a_task_waits_for_its_handler_to_come_back(make_rig: RigMaker) -> None:
    """Removed between admission and start: not the task's fault, and no attempt is used up."""
    rig = make_rig(limits__global=1)
    file = rig.handlers / "gone.py"
    file.write_text("from runner import handler\n@handler(retries=0)\ndef gone(ctx) -> int:\n    return 1\n")
    rig.it.handlers.refresh_changed()
    _, gate = running(rig)
    task = rig.submit("gone")
    source = file.read_text()
    file.unlink()
    rig.it.handlers.refresh_changed()
    gate.open()
    waiting = rig.when(task, lambda now: now.run_after is not None)
    assert waiting.error is not None
    assert (waiting.status, waiting.error.code, waiting.retries_used) == (Status.PENDING, "unknown_handler", 0)
    file.write_text(source)
    rig.it.handlers.refresh_changed()
    rig.advance(10)
    assert rig.until(task).result == 1


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(Unavailable("no processes"), 10), (ShuttingDown("closed"), 0), (RuntimeError("can't start new thread"), 10)],
)
def test_a_start_that_no_executor_takes_is_put_back(
    make_rig: RigMaker, monkeypatch: pytest.MonkeyPatch, error: Exception, seconds: float
) -> None:
    """The task is tried again later, or by the next owner, and has used up nothing."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    task = rig.submit("echo")
    run, refused = rig.it._executors.run, []

    def refuse_once(*arguments: Any) -> None:
        refused.append(arguments)
        if len(refused) == 1:
            raise error
        run(*arguments)

    monkeypatch.setattr(rig.it._executors, "run", refuse_once)
    gate.open()
    rig.when(task, lambda now: now.attempt > 0)
    rig.advance(seconds)
    ended = rig.until(task)
    assert (ended.status, outcomes(ended)) == (Status.COMPLETED, [Outcome.SNOOZED, Outcome.COMPLETED])


def test_what_waited_behind_a_start_that_is_put_back_comes_next(
    make_rig: RigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, though nothing else happens: an attempt that may not be repeated is launched by the syncer."""
    rig = make_rig(limits__global=1)
    _, gate = running(rig)
    rig.submit("once", gate=rig.gate())
    waiting = rig.submit("echo")
    run = rig.it._executors.run

    def refuse(assignment: Assignment, monitor: Monitor) -> None:
        if assignment.task.type == "once":
            raise Unavailable("no processes")
        run(assignment, monitor)

    monkeypatch.setattr(rig.it._executors, "run", refuse)
    gate.open()
    assert rig.until(waiting).status is Status.COMPLETED


# Waiting for files


def test_a_held_task_starts_when_it_is_released(rig: Rig) -> None:
    """Recorded first, its file moved second, started last."""
    task = created(rig, held=True)
    assert rig.it.dispatcher.standing(task.id).is_held
    assert (rig.it.get(task.id).status, rig.it.dispatcher.pending()) == (Status.PENDING, 1)
    rig.it.dispatcher.release([task])
    assert rig.until(task).status is Status.COMPLETED


def test_a_held_task_that_was_cancelled_does_not_start_when_it_is_released(rig: Rig) -> None:
    """Whoever releases it has an old version in hand."""
    task = created(rig, held=True)
    rig.it.cancel(task.id)
    rig.it.dispatcher.release([task])
    rig.until(rig.submit("echo"))
    assert rig.it.get(task.id).attempt == 0


def test_a_task_that_was_not_created_after_all_is_not_waited_for(rig: Rig) -> None:
    """Nothing is left of the hold."""
    rig.it.dispatcher.hold(["a", "b"])
    rig.it.dispatcher.let_go(["a", "b"])
    assert rig.it.dispatcher.pending() == 0


def created(rig: Rig, held: bool) -> Task:
    """A task without a door."""
    task = Task(id="t", type="echo", user_id="ann", status=Status.PENDING, created_at=NOON, updated_at=NOON)
    if held:
        rig.it.dispatcher.hold([task.id])
    rig.it.store.commit((Create(task),))
    return task


# What the disk refuses


def test_a_start_that_the_disk_refuses_is_tried_again_and_not_at_once(make_rig: RigMaker) -> None:
    """A full disk: neither lost nor a busy loop; a running task's end is recorded when there is room."""
    rig = make_rig(limits__global=1)
    task, gate = running(rig)
    waiting = [rig.submit("echo") for _ in range(3)]
    with full_disk(rig) as refused:
        gate.open()
        refused.wait(LIMIT_SECONDS)
        free_slot(rig)
    rig.advance(MAX_TICK_SECONDS)
    assert rig.until(task).status is Status.COMPLETED
    assert {rig.until(one).status for one in waiting} == {Status.COMPLETED}


def test_an_expiry_that_the_disk_refuses_is_tried_again(rig: Rig) -> None:
    """The task expires when there is room to say so."""
    task = rig.submit("echo", draft=True, expires_at=NOON + timedelta(seconds=60))
    with full_disk(rig) as refused:
        rig.advance(60)
        refused.wait(LIMIT_SECONDS)
        rig.settle()
    rig.advance(MAX_TICK_SECONDS)
    assert rig.until(task).status is Status.FAILED


def test_what_the_disk_refused_about_a_task_that_is_gone_is_forgotten(rig: Rig) -> None:
    """Deleted in the meantime."""
    rig.it.dispatcher._expiry_answered("unknown", (), DiskFull("no room"))
    assert rig.it.dispatcher._expiries.next_at() is None


@contextmanager
def full_disk(rig: Rig) -> Iterator[threading.Event]:
    """Inside, the journal has no room; the event says that it was tried."""
    refused = threading.Event()

    def refuse(fd: int, data: bytes | memoryview) -> int:
        refused.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.it.store.files, "write", refuse)
        yield refused


def free_slot(rig: Rig) -> None:
    """No attempt holds one."""
    rig.settle()
    assert len(rig.it.dispatcher.attempts) == 0


def test_a_task_that_finds_a_slot_is_created_and_started_by_one_write(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is waited for once, not twice."""
    news: list[list[Status]] = []
    appended = rig.it.dispatcher.on_append

    def hear(transitions: Any) -> None:
        news.append([change.task.status for change in transitions])
        appended(transitions)

    monkeypatch.setattr(rig.it.dispatcher, "on_append", hear)
    rig.until(rig.submit("echo"))
    assert news == [[Status.PENDING, Status.PROCESSING], [Status.COMPLETED]]


@pytest.mark.parametrize("slots", [1, 0])
def test_a_task_that_the_disk_refuses_is_queued_nowhere(make_rig: RigMaker, slots: int) -> None:
    """Whether or not it had found a slot, which the next one gets."""
    rig = make_rig(limits__global=1)
    gates = [] if slots else [running(rig)[1]]
    with full_disk(rig), pytest.raises(DiskFull):
        rig.submit("echo")
    rig.settle()
    assert (rig.it.dispatcher.pending(), rig.it.dispatcher.at_work()) == (0, len(gates))
    for gate in gates:
        gate.open()
    rig.it.store.space.check()
    assert rig.until(rig.submit("echo")).status is Status.COMPLETED
    assert not rig.it.dispatcher._unborn


# Stopping


def test_a_drain_lets_what_runs_end_and_starts_nothing_more(make_rig: RigMaker) -> None:
    """What waits is left for the next owner."""
    rig = make_rig(limits__global=1)
    task, gate = running(rig)
    waiting = rig.submit("echo")
    thread = threading.Thread(target=rig.it.dispatcher.drain, args=(LIMIT_SECONDS,))
    thread.start()
    gate.open()
    thread.join()
    rig.settle()
    assert rig.it.get(task.id).status is Status.COMPLETED
    rig.restart()
    assert rig.it.get(task.id).attempt == 1
    assert rig.until(waiting).status is Status.COMPLETED


@pytest.mark.parametrize(
    ("type", "status", "outcome"),
    [
        ("stubborn", Status.COMPLETED, Outcome.INTERRUPTED),
        ("obedient", Status.COMPLETED, Outcome.INTERRUPTED),
        ("once", Status.FAILED, Outcome.INTERRUPTED),
    ],
)
def test_a_drain_that_could_not_wait_requeues(rig: Rig, type: str, status: Status, outcome: Outcome) -> None:
    """With no attempt used up, unless the handler must not start twice; what comes later is discarded."""
    task, gate = running(rig, type)
    rig.close(grace_seconds=0)
    rig.open()
    gate.open()
    ended = rig.until(task)
    assert (ended.status, outcomes(ended)[0], ended.retries_used) == (status, outcome, 0)


def test_a_drain_waits_for_a_start_that_is_on_its_way(make_rig: RigMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is launched before the executors close, not refused by them."""
    rig = make_rig(limits__global=1)
    (_, first), second = running(rig), rig.gate()
    task = rig.submit("stubborn", gate=second)
    settling, settle = threading.Event(), rig.it.store.settle

    def tell_and_settle() -> None:
        settling.set()
        settle()

    with rig.held_committer():
        change_limits(rig, **{"global": 2})
        monkeypatch.setattr(rig.it.store, "settle", tell_and_settle)
        thread = threading.Thread(target=rig.it.dispatcher.drain, args=(LIMIT_SECONDS,))
        thread.start()
        assert settling.wait(LIMIT_SECONDS)
    first.open()
    gate_of(second).open()
    thread.join()
    rig.settle()
    assert rig.it.get(task.id).status is Status.COMPLETED


def test_a_drain_waits_for_a_start_that_is_about_to_be_asked_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen under the lock, and not handed to the store yet."""
    starting, settles = rig.it.dispatcher._starting, []

    def settle() -> None:
        settles.append(len(starting))
        if len(settles) == 3:
            starting.clear()

    starting["t"] = Lane("default", 0, "ann", "echo")
    with monkeypatch.context() as patch:
        patch.setattr(rig.it.store, "settle", settle)
        rig.it.dispatcher.drain(0)
    assert settles == [1, 1, 1]


def test_a_drain_does_not_wait_for_a_disk_that_is_gone(rig: Rig) -> None:
    """The runner can always be stopped."""
    committer = rig.it.store.committer
    committer.degrade(OSError(errno.EIO, "Input/output error"))
    rig.it.dispatcher.drain(0)
    committer.failure = None


# The next owner


def test_a_new_owner_goes_on_where_the_last_one_died(rig: Rig, tmp_path: Path) -> None:
    """What ran is an orphan and starts again, the lost attempt counted; what waited waits; drafts stay drafts."""
    task, gate = running(rig)
    later, draft = rig.submit("echo", delay=60), rig.submit("echo", draft=True)
    with opened_after_a_crash(rig, tmp_path / "next") as heir:
        gate.await_entered(2)
        gate.open()
        ended = heir.until(task)
        assert (ended.result, outcomes(ended), ended.retries_used) == (2, [Outcome.LOST, Outcome.COMPLETED], 1)
        assert heir.it.get(draft.id).status is Status.CREATED
        heir.advance(60)
        assert heir.until(later).status is Status.COMPLETED


def test_outputs_that_a_lost_attempt_had_published_are_not_kept(rig: Rig, tmp_path: Path) -> None:
    """It died between the rename and the record."""
    task, gate = running(rig, outputs=["good"])
    published = rig.data / "results" / "local" / task.id
    published.mkdir(parents=True)
    published.joinpath("lost").write_text("half")
    with opened_after_a_crash(rig, tmp_path / "next") as heir:
        gate.open()
        ended = heir.until(task)
        assert [path.rpartition("/")[2] for path in ended.output_files] == ["good"]
        assert not heir.data.joinpath("results", "local", task.id, "lost").exists()


@pytest.mark.parametrize(("type", "code"), [("once", "interrupted"), ("stubborn", "crash_loop")])
def test_what_must_not_start_again_fails_for_the_next_owner(rig: Rig, tmp_path: Path, type: str, code: str) -> None:
    """A handler that may start once; and one that may be what kills its owners."""
    task, gate = running(rig, type)
    owners = 0
    with ExitStack() as heirs:
        heir = rig
        while heir.it.get(task.id).status is not Status.FAILED:
            owners += 1
            gate.await_entered(owners)
            heir = heirs.enter_context(opened_after_a_crash(heir, tmp_path / f"owner-{owners}"))
            heir.settle()
        ended = heir.it.get(task.id)
        assert ended.error is not None
        assert (ended.error.code, owners) == (code, 1 if type == "once" else 3)


def test_without_its_handler_nobody_can_say_that_a_task_may_start_twice(rig: Rig, tmp_path: Path) -> None:
    """So it does not."""
    task, _ = running(rig)
    with opened_after_a_crash(rig, tmp_path / "next", handlers="") as heir:
        ended = heir.until(task)
        assert ended.error is not None
        assert ended.error.code == "interrupted"


@contextmanager
def opened_after_a_crash(rig: Rig, root: Path, handlers: str | None = None) -> Iterator[Rig]:
    """The next owner of the directory, as the rig would have left it if it had died just now."""
    rig.it.store.writer.flush()
    root.mkdir()
    shutil.copytree(rig.data, root / "data")
    with opened(root, handlers=handlers) as heir:
        yield heir
