import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runner.dispatch import attempts
from runner.errors import Fenced, Unavailable
from runner.execute.assignment import Ending, Stop
from runner.store import TaskQuery
from runner.task import FileState, Outcome, Progress, Source, Status, Task
from tests.dispatch.test_dispatcher import outcomes, running, syncs_held
from tests.rig import LIMIT_SECONDS, Gate, Rig, gate_of

RigMaker = Callable[..., Rig]


def released(rig: Rig, task: Task) -> bool:
    """Whether no attempt of the task holds a slot."""
    rig.settle()
    return task.id not in rig.it.dispatcher.attempts


# Endings


def test_a_handler_that_raises_is_tried_again_later_each_time_and_then_fails(rig: Rig) -> None:
    """With its error, its traceback in the log, and every attempt on record."""
    task = rig.submit("act", script=["raise"])
    for number, wait in ((1, 10), (2, 20)):
        waiting = rig.when(task, lambda now: now.run_after is not None and len(now.attempts) == number)  # noqa: B023
        assert waiting.run_after is not None
        assert (waiting.run_after - rig.clock.now).total_seconds() == wait
        rig.advance(wait)
    ended = rig.until(task)
    assert ended.error is not None
    assert (ended.status, ended.error.message, len(ended.attempts)) == (Status.FAILED, "ValueError: it broke", 3)
    assert sum("Traceback" in line for line in rig.log_of(task)) == 3


def test_a_handler_says_that_it_is_hopeless(rig: Rig) -> None:
    """No further attempt, and its own code."""
    ended = rig.until(rig.submit("act", script=["fail"]))
    assert ended.error is not None
    assert (ended.status, ended.error.code, ended.attempt) == (Status.FAILED, "hopeless", 1)


@pytest.mark.parametrize(("verb", "used"), [("retry", 1), ("snooze", 0)])
def test_a_handler_says_when_it_wants_to_be_called_again(rig: Rig, verb: str, used: int) -> None:
    """`Retry` uses up a retry, `Snooze` does not."""
    task = rig.submit("act", script=[f"{verb} 5", "done"])
    rig.when(task, lambda now: now.run_after is not None)
    rig.advance(5)
    ended = rig.until(task)
    assert (ended.result, ended.attempt, ended.retries_used) == ("done", 2, used)


def test_a_person_gives_a_failed_task_one_more_attempt(rig: Rig) -> None:
    """The record of the earlier ones stays."""
    task = rig.until(rig.submit("act", script=["fail", "done"]))
    rig.it.retry(task.id)
    ended = rig.until(task)
    assert (ended.result, outcomes(ended)) == ("done", [Outcome.FAILED, Outcome.COMPLETED])


def test_outputs_become_the_tasks_and_only_those_of_an_attempt_that_completed(rig: Rig) -> None:
    """Visible at the end, gone without a trace otherwise."""
    task, gate = running(rig, outputs=["b", "a"])
    lost, other = running(rig, outputs=["c"])
    rig.it.cancel(lost.id)
    gate.open()
    other.open()
    assert rig.until(task).output_files == tuple(f"results/local/{task.id}/{name}" for name in "ab")
    free_slots(rig)
    assert not rig.data.joinpath("results", "local", lost.id).exists()
    assert not [name for name in rig.data.joinpath("tmp").iterdir() if name.name.startswith(lost.id)]


def free_slots(rig: Rig) -> None:
    """Nothing runs any more."""
    rig.it.dispatcher.drain(LIMIT_SECONDS)
    rig.restart()


def test_outputs_that_cannot_be_kept_fail_the_attempt(rig: Rig) -> None:
    """The disk's doing: it is tried again."""
    task, gate = running(rig, outputs=["a"])

    def refuse(*_: object) -> tuple[str, ...]:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.it.store.blobs, "publish", refuse)
        gate.open()
        waiting = rig.when(task, lambda now: now.run_after is not None)
    assert waiting.error is not None
    assert waiting.error.code == "outputs_not_kept"
    assert not list(rig.data.joinpath("tmp").glob(f"{task.id}*"))
    rig.advance(10)
    assert rig.until(task).result == 2


def test_a_result_that_cannot_be_kept_fails_the_task(rig: Rig) -> None:
    """The store refuses it, and that is not tried for ever."""
    task, gate = running(rig)
    running_now = next(iter(rig.it.dispatcher.attempts))
    ending = Ending(Outcome.COMPLETED, result=object())
    running_now.told = Stop.DRAINED
    record = rig.it.dispatcher.attempts._record_of(running_now, ending, ())
    rig.it.dispatcher.attempts._write(record)
    ended = rig.until(task)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (Status.FAILED, "not_recorded")
    gate.open()


# Time


def test_an_attempt_that_takes_too_long_is_given_up_and_the_next_waits_until_it_has_ended(make_rig: RigMaker) -> None:
    """The thread does not hear, so it keeps its slot; what it returns at last is nobody's any more."""
    rig = make_rig(limits__global=1)
    task, gate = running(rig, timeout=0.2, outputs=["out"])
    waiting = rig.when(task, lambda now: now.run_after is not None)
    assert waiting.error is not None
    assert (waiting.error.code, outcomes(waiting)) == ("timed_out", [Outcome.TIMED_OUT])
    rig.advance(10)
    other = rig.submit("echo")
    rig.settle()
    assert (rig.it.dispatcher.standing(task.id).follows_attempt, gate.entered) == (True, 1)
    assert rig.it.get(other.id).status is Status.PENDING
    gate.open()
    ended = rig.until(task)
    assert (ended.result, outcomes(ended)) == (2, [Outcome.TIMED_OUT, Outcome.COMPLETED])


def test_the_last_attempt_that_takes_too_long_fails_its_task_and_frees_its_slot_when_it_obeys(rig: Rig) -> None:
    """A handler that listens is out of the way at once."""
    task, _ = running(rig, "obedient", timeout=0.05, max_retries=0)
    ended = rig.until(task)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == (Status.FAILED, "timed_out")
    free_slots(rig)


def test_an_attempt_without_a_timeout_runs_as_long_as_it_likes(rig: Rig) -> None:
    """None is no limit, and the dispatcher has nothing to look for."""
    rig.handlers.joinpath("more.py").write_text(
        "from runner import handler\nfrom tests.rig import gate_of\n"
        "@handler(timeout=None)\ndef endless(ctx, gate: str) -> None:\n    gate_of(gate).wait()\n"
    )
    rig.it.handlers.refresh_changed()
    task, gate = running(rig, "endless")
    assert next(iter(rig.it.dispatcher.attempts)).deadline == float("inf")
    gate.open()
    assert rig.until(task).status is Status.COMPLETED


def test_a_stop_is_for_the_attempt_that_it_was_meant_for(rig: Rig) -> None:
    """News of the first attempt's end may come after the second has begun."""
    task, gate = running(rig, "obedient")
    rig.it.dispatcher.attempts.stop(task.id, 2, Stop.CANCELLED)
    rig.it.dispatcher.attempts.stop("unknown", 1, Stop.CANCELLED)
    gate.open()
    assert rig.until(task).status is Status.COMPLETED


# Between the end and its record


@contextmanager
def publishing_held(rig: Rig) -> Iterator[Gate]:
    """Inside, attempts wait before they publish their outputs."""
    gate, publish = Gate(), rig.it.store.blobs.publish

    def wait_and_publish(*arguments: Any) -> tuple[str, ...]:
        gate.wait()
        return publish(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.it.store.blobs, "publish", wait_and_publish)
        try:
            yield gate
        finally:
            gate.open()


def test_an_attempt_that_is_cancelled_while_it_publishes_leaves_nothing_to_the_next(rig: Rig) -> None:
    """The next attempt waits until the outputs of the first are published, fenced and removed."""
    task, gate = running(rig, outputs=["out"])
    with publishing_held(rig) as publishing:
        gate.open()
        publishing.await_entered()
        rig.it.cancel(task.id)
        rig.it.retry(task.id)
        rig.settle()
        assert rig.it.dispatcher.standing(task.id).follows_attempt
    ended = rig.until(task)
    assert rig.data.joinpath(ended.output_files[0]).read_text() == "attempt 2"
    assert any("attempt 1 came too late" in line for line in rig.log_of(task))


def test_a_slot_is_held_until_the_outputs_are_recorded_or_removed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next attempt could publish its own first, and have those removed."""
    task, gate = running(rig, outputs=["out"])
    ended, over = rig.it.dispatcher.attempts.ended, threading.Event()

    def end_and_tell(*arguments: Any) -> None:
        ended(*arguments)
        over.set()

    monkeypatch.setattr(rig.it.dispatcher.attempts, "ended", end_and_tell)
    with syncs_held(rig):
        gate.open()
        assert over.wait(LIMIT_SECONDS)
        assert task.id in rig.it.dispatcher.attempts
    rig.until(task)
    rig.settle()
    assert task.id not in rig.it.dispatcher.attempts


def test_an_attempt_that_has_ended_is_neither_timed_out_nor_interrupted(rig: Rig) -> None:
    """However long its outputs take."""
    task, gate = running(rig, outputs=["out"])
    with publishing_held(rig) as publishing:
        gate.open()
        publishing.await_entered()
        (one,) = rig.it.dispatcher.attempts
        one.deadline = 0.0
        rig.it.dispatcher.attempts.run_due(1e12)
        rig.it.dispatcher.attempts.interrupt_all()
        rig.it.dispatcher.attempts.stop(task.id, 1, Stop.CANCELLED)
        assert one.told is None
    assert outcomes(rig.until(task)) == [Outcome.COMPLETED]


def test_the_end_of_a_deleted_task_is_nobodys(rig: Rig) -> None:
    """It was cancelled and deleted while its handler did not listen."""
    task, gate = running(rig, outputs=["out"])
    with publishing_held(rig) as publishing:
        gate.open()
        publishing.await_entered()
        rig.it.cancel(task.id)
        rig.it.delete(task.id)
        rig.it.store.writer.flush()
    free_slots(rig)
    assert not rig.data.joinpath("results", "local", task.id).exists()


# What an attempt says


@pytest.fixture
def speaking(rig: Rig) -> Iterator[tuple[Rig, Task, attempts.Running]]:
    """A task whose attempt runs, for tests to say things in its name."""
    task, gate = running(rig, "obedient")
    (one,) = rig.it.dispatcher.attempts
    yield rig, task, one
    gate.open()


def test_progress_is_seen_at_once_and_kept_in_the_file_from_time_to_time(
    speaking: tuple[Rig, Task, attempts.Running],
) -> None:
    """The first word and then one every two seconds; the last is not lost, even if nothing follows it."""
    rig, task, one = speaking
    monitor = rig.it.dispatcher.attempts
    monitor.progressed(one.assignment, Progress(percentage=1))
    rig.settle()
    monitor.progressed(one.assignment, Progress(percentage=2))
    monitor.filed(one.assignment, (FileState(path="a", status="done"),))
    seen = rig.it.get(task.id)
    assert seen.progress is not None
    assert (seen.version, seen.progress.percentage, seen.files) == (3, 2, ())
    due = monitor.run_due(one.reported)
    assert due == one.reported + attempts.REPORT_SECONDS
    monitor.run_due(due)
    rig.settle()
    kept = rig.it.get(task.id)
    assert kept.progress is not None
    assert (kept.version, kept.progress.percentage, [file.path for file in kept.files]) == (4, 2, ["a"])
    assert monitor.run_due(due) == one.deadline


def test_the_last_word_on_files_is_in_the_record_of_the_end(speaking: tuple[Rig, Task, attempts.Running]) -> None:
    """Even if it came just before."""
    rig, task, one = speaking
    monitor = rig.it.dispatcher.attempts
    for status in ("doing", "done"):
        monitor.filed(one.assignment, (FileState(path="a", status=status),))
    gate_of(task.payload["gate"]).open()
    assert [file.status for file in rig.until(task).files] == ["done"]


def test_an_attempt_that_nobody_wants_any_more_is_not_listened_to(
    speaking: tuple[Rig, Task, attempts.Running],
) -> None:
    """Neither its progress nor its files; it can still explain itself in the log."""
    rig, task, one = speaking
    monitor = rig.it.dispatcher.attempts
    one.told = Stop.CANCELLED
    monitor.progressed(one.assignment, Progress(percentage=50))
    monitor.filed(one.assignment, (FileState(path="a"),))
    monitor.logged(one.assignment, "info", "tidying up")
    with pytest.raises(Fenced):
        monitor.submitted(one.assignment, "echo", {}, ())
    rig.settle()
    assert (rig.it.get(task.id).version, rig.it.get(task.id).progress) == (2, None)
    assert rig.log_of(task) == ["tidying up"]
    one.told = None


# Chains and children


def chained(rig: Rig, type: str = "write", **fields: Any) -> Task:
    """A parent with outputs, whose child reads them."""
    return rig.submit(type, on_success={"type": "read"}, metadata={}, **fields)


def child_of(rig: Rig, task: Task) -> Task | None:
    """The only task that names this one as its parent."""
    children = rig.it.list_tasks(TaskQuery(parent_id=task.id)).tasks
    assert len(children) <= 1
    return children[0] if children else None


def test_the_next_task_of_a_chain_gets_the_outputs_as_its_inputs(rig: Rig) -> None:
    """And belongs to the same user and batch; chains may be longer than two."""
    first = rig.submit("write", outputs=["a.txt", "b.txt"], on_success={"type": "read", "on_success": {"type": "echo"}})
    first = rig.until(first)
    second = child_of(rig, first)
    assert second is not None
    assert (second.source, second.user_id) == (Source.CHAIN, "local")
    assert rig.until(second).result == {"a.txt": "a.txt", "b.txt": "b.txt"}
    third = child_of(rig, second)
    assert third is not None
    assert rig.until(third).status is Status.COMPLETED


def test_a_task_and_the_next_of_its_chain_are_committed_together(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No moment, and no crash, finds the one without the other."""
    news: list[list[tuple[str, str]]] = []
    appended = rig.it.dispatcher.on_append

    def hear(transitions: Any) -> None:
        news.append([(change.task.type, change.task.status.value) for change in transitions])
        appended(transitions)

    monkeypatch.setattr(rig.it.dispatcher, "on_append", hear)
    task = rig.until(chained(rig, outputs=["a"]))
    assert child_of(rig, task) is not None
    assert [batch[:2] for batch in news if ("write", "completed") in batch] == [
        [("write", "completed"), ("read", "pending")]
    ]


def test_a_parent_that_was_cancelled_has_no_child(rig: Rig) -> None:
    """The child's files, which were brought in already, go again."""
    task, gate = running(rig, outputs=["out"], on_success={"type": "read"})
    with publishing_held(rig) as publishing:
        gate.open()
        publishing.await_entered()
        rig.it.cancel(task.id)
    free_slots(rig)
    assert child_of(rig, task) is None
    assert not list(rig.data.joinpath("uploads").rglob("out"))


def test_what_a_lost_attempt_still_says_makes_no_log_for_a_task_that_is_deleted(rig: Rig) -> None:
    """Its handler goes on for as long as it likes; the task and all that was its own stay gone."""
    task, gate = running(rig, outputs=["out"])
    rig.it.cancel(task.id)
    rig.it.delete(task.id)
    rig.it.store.writer.flush()
    gate.open()
    free_slots(rig)
    assert [str(path) for path in rig.data.rglob("*") if task.id in path.name] == []


@pytest.mark.parametrize("outputs", [["a.png"], []])
def test_a_chain_that_is_refused_says_so_in_the_parents_log(rig: Rig, outputs: list[str]) -> None:
    """The parent's work is done all the same."""
    task = rig.until(rig.submit("write", outputs=outputs, on_success={"type": "text"}))
    assert task.status is Status.COMPLETED
    assert child_of(rig, task) is None
    assert any("the next task of the chain was refused: /inputs" in line for line in rig.log_of(task))


def test_the_next_task_of_a_chain_comes_in_however_many_wait(make_rig: RigMaker) -> None:
    """It takes the place of its parent."""
    rig = make_rig(limits__global=1, limits__max_pending=2)
    task, gate = running(rig, on_success={"type": "echo"})
    others = [rig.submit("echo") for _ in range(2)]
    gate.open()
    rig.until(task)
    child = child_of(rig, task)
    assert child is not None
    assert {rig.until(one).status for one in (child, *others)} == {Status.COMPLETED}


def test_a_chain_goes_on_when_the_disk_has_room_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent completes with its child, not without it."""
    monkeypatch.setattr(attempts, "RECORD_AGAIN_SECONDS", 0.01)
    follow, tries = rig.it.door.follow, []

    def refuse_once(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) == 1:
            raise Unavailable("no room")
        return follow(*arguments)

    monkeypatch.setattr(rig.it.door, "follow", refuse_once)
    task = rig.until(chained(rig, outputs=["a"]))
    child = child_of(rig, task)
    assert child is not None
    assert (rig.until(child).result, len(tries)) == ({"a": "a"}, 2)


def test_a_handler_hands_in_a_child_with_its_files(rig: Rig) -> None:
    """Durable when the handler gets its id."""
    task = rig.until(rig.submit("parent", inputs=(rig.input("a.txt", "hello"),), child="read"))
    child = child_of(rig, task)
    assert child is not None
    assert (child.id, rig.until(child).result) == (task.result, {"a.txt": "hello"})


def test_a_handler_that_nobody_wants_any_more_hands_in_nothing(rig: Rig) -> None:
    """It did not hear that it was cancelled; it hears it now."""
    task, gate = running(rig, "parent", child="echo")
    rig.it.cancel(task.id)
    gate.open()
    free_slots(rig)
    assert child_of(rig, task) is None
