"""Attempts in threads."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import ShuttingDown
from runner.execute import Assignment, Ending, Stop
from runner.execute.thread import ThreadExecutor
from runner.task import Outcome
from tests.execute.stage import Recorder, Stage

WAITS_FOR_STOP = """
    @handler
    def work(ctx):
        ctx.log.info("begun")
        while not ctx.cancelled:
            pass
        ctx.check()
"""
DEAF = """
    import threading
    gate = threading.Event()
    @handler
    def deaf(ctx):
        ctx.log.info("begun")
        gate.wait(30)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A folder of handlers, and an executor that is closed afterwards."""
    executor = ThreadExecutor()
    yield Stage(tmp_path, executor)
    executor.close(grace_seconds=0)


def test_what_the_function_returns_is_the_result_as_json(stage: Stage) -> None:
    """A tuple is a list in the result, as it will be for whoever reads the task's file."""
    ending = stage.run(
        """
        @handler
        def add(ctx, a: int, b: int = 2):
            return {"sum": a + b, "of": (a, b)}
        """,
        payload={"a": "40"},
    )
    assert ending == Ending(Outcome.COMPLETED, {"sum": 42, "of": [40, 2]})


def test_a_handler_that_returns_nothing_completes_with_no_result(stage: Stage) -> None:
    """None is a result like any other."""
    assert stage.run("@handler\ndef nothing(ctx): pass") == Ending(Outcome.COMPLETED)


def test_a_handler_that_raises_fails_with_its_error_and_traceback(stage: Stage) -> None:
    """The traceback begins in the user's file, not in ours."""
    ending = stage.run("@handler\ndef broken(ctx): raise KeyError('x')")
    assert ending.outcome is Outcome.FAILED
    assert ending.error is not None
    assert (ending.error.code, ending.error.message, ending.error.retryable) == ("handler_error", "KeyError: 'x'", True)
    assert "stage.py" in ending.traceback
    assert "attempt.py" not in ending.traceback


def test_a_handler_that_exits_ends_its_attempt_only(stage: Stage) -> None:
    """sys.exit() in a handler neither stops the runner nor loses the thread."""
    ending = stage.run("@handler\ndef leave(ctx): raise SystemExit(3)")
    assert ending.error is not None
    assert ending.error.message == "SystemExit: 3"
    assert stage.run("@handler\ndef after(ctx): return 1").result == 1


def test_a_payload_that_no_longer_fits_fails_without_a_call(stage: Stage) -> None:
    """A handler may have changed since its task was admitted; trying again would not help."""
    ending = stage.run("@handler\ndef add(ctx, a: int): ...", payload={"b": 1})
    assert ending.error is not None
    assert ending.error.code == "invalid_payload"
    assert "/payload/a" in ending.error.message
    assert not ending.error.retryable


def test_a_stop_is_seen_by_the_handler_and_names_the_outcome(stage: Stage) -> None:
    """The reason for the stop decides how the attempt ended, whatever the handler raised."""
    assignment, recorder = stage.begin(WAITS_FOR_STOP)
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, Stop.TIMED_OUT)
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait().outcome is Outcome.TIMED_OUT


def test_a_handler_that_returns_although_stopped_has_completed(stage: Stage) -> None:
    """It may have been done already; the dispatcher decides what its result is worth."""
    assignment, recorder = stage.begin(WAITS_FOR_STOP.replace("ctx.check()", "return 'done'"))
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait() == Ending(Outcome.COMPLETED, "done")


def test_stopping_what_does_not_run_does_nothing(stage: Stage) -> None:
    """The attempt may have ended a moment ago."""
    stage.executor.stop("nobody", 1, Stop.CANCELLED)
    assert stage.run("@handler\ndef work(ctx): return 1").result == 1


def test_the_scratch_folder_is_gone_when_the_attempt_has_ended(stage: Stage) -> None:
    """It is made when it is first asked for, and nothing of it stays."""
    assignment, recorder = stage.begin(
        """
        @handler
        def work(ctx):
            (ctx.scratch / "x").write_text("x")
            return [path.name for path in ctx.scratch.iterdir()]
        """
    )
    assert recorder.wait().result == ["x"]
    assert not assignment.scratch_dir.exists()
    assert not assignment.output_dir.exists()


def test_as_many_run_at_once_as_are_asked_for(stage: Stage) -> None:
    """No attempt waits for another one to end."""
    handler = stage.write("import threading\nmeet = threading.Barrier(20)\n@handler\ndef meeting(ctx): meet.wait(10)")
    recorders = [Recorder() for _ in range(20)]
    for recorder in recorders:
        stage.executor.run(stage.assign(handler), recorder)
    assert {recorder.wait().outcome for recorder in recorders} == {Outcome.COMPLETED}


class Chain(Recorder):
    """Starts the next attempt from inside the news of the last one's end, as the dispatcher does."""

    def __init__(self, stage: Stage, todo: list[Assignment]) -> None:
        super().__init__()
        self.stage = stage
        self.todo = todo
        self.threads: set[int] = set()

    def ended(self, assignment: Assignment, ending: Ending, /) -> None:
        self.threads.add(threading.get_ident())
        if self.todo:
            self.stage.executor.run(self.todo.pop(), self)
        else:
            super().ended(assignment, ending)


def test_a_chain_of_attempts_stays_in_one_thread(stage: Stage) -> None:
    """The next attempt costs no switch of threads, and no further thread."""
    handler = stage.write("@handler\ndef work(ctx): pass")
    chain = Chain(stage, [stage.assign(handler) for _ in range(100)])
    stage.executor.run(chain.todo.pop(), chain)
    chain.wait()
    assert len(chain.threads) == 1


def test_closing_waits_for_what_finishes_in_time(stage: Stage) -> None:
    """Within the grace period nobody is told to stop."""
    _, recorder = stage.begin(
        """
        import threading
        @handler
        def work(ctx):
            ctx.log.info("begun")
            threading.Event().wait(0.1)
            return ctx.cancelled
        """
    )
    recorder.line_after("begun")
    stage.executor.close(grace_seconds=20)
    assert recorder.endings == [Ending(Outcome.COMPLETED, False)]


def test_closing_interrupts_what_does_not(stage: Stage) -> None:
    """After the grace period a handler is asked to stop, and its attempt was interrupted."""
    _, recorder = stage.begin(WAITS_FOR_STOP)
    recorder.line_after("begun")
    stage.executor.close(grace_seconds=0)
    assert [ending.outcome for ending in recorder.endings] == [Outcome.INTERRUPTED]


def test_closing_does_not_wait_for_a_thread_that_ignores_it(stage: Stage) -> None:
    """It is left behind, and if it ever ends, that is still told."""
    assignment, recorder = stage.begin(DEAF)
    recorder.line_after("begun")
    stage.executor.close(grace_seconds=0)
    assert not recorder.endings
    assignment.handler.function.__globals__["gate"].set()
    assert recorder.wait().outcome is Outcome.COMPLETED


def test_closing_waits_until_an_ending_is_told_though_another_thread_ignores_it(stage: Stage) -> None:
    """What a thread tells goes to the store, which is closed next."""
    assignment, deaf = stage.begin(DEAF)
    deaf.line_after("begun")
    slow = Slow()
    stage.executor.run(stage.assign(stage.write("@handler\ndef work(ctx): pass")), slow)
    assert slow.begun.wait(20)
    closing = threading.Thread(target=stage.executor.close, args=(0,))
    closing.start()
    closing.join(1)
    assert (closing.is_alive(), slow.endings) == (True, [])
    slow.gate.set()
    closing.join(20)
    assignment.handler.function.__globals__["gate"].set()
    assert deaf.wait().outcome is Outcome.COMPLETED
    assert slow.wait().outcome is Outcome.COMPLETED


class Slow(Recorder):
    """A monitor that takes its time to hear of an ending."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.gate = threading.Event(), threading.Event()

    def ended(self, assignment: Assignment, ending: Ending, /) -> None:
        self.begun.set()
        self.gate.wait(20)
        super().ended(assignment, ending)


def test_nothing_is_taken_after_closing(stage: Stage) -> None:
    """Whoever asks is told, and no ending follows."""
    stage.executor.close(grace_seconds=0)
    with pytest.raises(ShuttingDown):
        stage.begin("@handler\ndef work(ctx): pass")
