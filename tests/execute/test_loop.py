"""Attempts on the loop."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import ShuttingDown
from runner.execute import Ending, Stop
from runner.execute.loop import LoopExecutor
from runner.task import Outcome
from tests.execute.stage import Recorder, Stage

SLEEPS = """
    import asyncio
    @handler
    async def sleep(ctx):
        ctx.log.info("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            ctx.log.info("cleaned up")
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A folder of handlers, and an executor that is closed afterwards."""
    executor = LoopExecutor()
    yield Stage(tmp_path, executor)
    executor.close(grace_seconds=0)


def test_a_coroutine_returns_its_result(stage: Stage) -> None:
    """An async def is awaited."""
    ending = stage.run(
        """
        import asyncio
        @handler
        async def work(ctx, n: int):
            await asyncio.sleep(0)
            return [n]
        """,
        payload={"n": 1},
    )
    assert ending == Ending(Outcome.COMPLETED, [1])


def test_many_wait_at_once_on_one_loop(stage: Stage) -> None:
    """A coroutine that waits holds up no other one."""
    handler = stage.write(
        """
        import asyncio
        met = []
        @handler
        async def meeting(ctx):
            met.append(1)
            while len(met) < 50:
                await asyncio.sleep(0.001)
        """
    )
    recorders = [Recorder() for _ in range(50)]
    for recorder in recorders:
        stage.executor.run(stage.assign(handler), recorder)
    assert {recorder.wait().outcome for recorder in recorders} == {Outcome.COMPLETED}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (Stop.CANCELLED, Outcome.CANCELLED),
        (Stop.TIMED_OUT, Outcome.TIMED_OUT),
        (Stop.DRAINED, Outcome.INTERRUPTED),
    ],
)
def test_a_stop_cancels_the_coroutine_which_may_clean_up(stage: Stage, reason: Stop, outcome: Outcome) -> None:
    """The reason for the stop decides how the attempt ended."""
    assignment, recorder = stage.begin(SLEEPS)
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, reason)
    assert recorder.wait().outcome is outcome
    assert "cleaned up" in recorder.lines


def test_a_stop_before_the_first_step_is_told_as_an_ending(stage: Stage) -> None:
    """An attempt that never came to run has ended all the same, exactly once."""
    handler = stage.write(SLEEPS)
    recorders = [Recorder() for _ in range(20)]
    for recorder in recorders:
        assignment = stage.assign(handler)
        stage.executor.run(assignment, recorder)
        stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert {recorder.wait().outcome for recorder in recorders} == {Outcome.CANCELLED}


def test_a_coroutine_that_swallows_the_stop_and_returns_has_completed(stage: Stage) -> None:
    """It may have been about to finish; the dispatcher decides what its result is worth."""
    assignment, recorder = stage.begin(SLEEPS.replace("finally:", "except asyncio.CancelledError:"))
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait().outcome is Outcome.COMPLETED


def test_a_coroutine_that_cancels_itself_has_failed(stage: Stage) -> None:
    """Nobody asked for a stop, so it is an error like any other."""
    ending = stage.run("import asyncio\n@handler\nasync def odd(ctx): raise asyncio.CancelledError")
    assert ending.outcome is Outcome.FAILED
    assert ending.error is not None
    assert ending.error.message == "CancelledError"


def test_a_coroutine_that_exits_does_not_stop_the_loop(stage: Stage) -> None:
    """SystemExit would get through asyncio to the thread."""
    assert stage.run("@handler\nasync def leave(ctx): raise SystemExit").outcome is Outcome.FAILED
    assert stage.run("@handler\nasync def work(ctx): return 1").result == 1


def test_a_payload_that_no_longer_fits_fails_without_a_call(stage: Stage) -> None:
    """The same as in a thread."""
    ending = stage.run("@handler\nasync def add(ctx, a: int): ...", payload={"a": "x"})
    assert ending.error is not None
    assert ending.error.code == "invalid_payload"


def test_the_scratch_folder_is_gone_when_the_attempt_has_ended(stage: Stage) -> None:
    """It is removed off the loop, and before the end is told."""
    assignment, recorder = stage.begin("@handler\nasync def work(ctx): (ctx.scratch / 'x').write_text('x')")
    recorder.wait()
    assert not assignment.scratch_dir.exists()


def test_closing_waits_for_what_finishes_in_time(stage: Stage) -> None:
    """Within the grace period nothing is cancelled."""
    _, recorder = stage.begin(SLEEPS.replace("3600", "0.1"))
    recorder.line_after("begun")
    stage.executor.close(grace_seconds=20)
    assert recorder.endings == [Ending(Outcome.COMPLETED)]


def test_closing_interrupts_what_does_not(stage: Stage) -> None:
    """After the grace period the coroutines are cancelled, and nothing is taken any more."""
    _, recorder = stage.begin(SLEEPS)
    recorder.line_after("begun")
    stage.executor.close(grace_seconds=0)
    assert [ending.outcome for ending in recorder.endings] == [Outcome.INTERRUPTED]
    with pytest.raises(ShuttingDown):
        stage.begin(SLEEPS)


def test_closing_does_not_wait_for_a_coroutine_that_ignores_it(stage: Stage) -> None:
    """It is left behind with its loop; no end is told."""
    _, recorder = stage.begin(
        """
        import asyncio
        @handler
        async def deaf(ctx):
            ctx.log.info("begun")
            while True:
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    pass
        """
    )
    recorder.line_after("begun")
    stage.executor.close(grace_seconds=0)
    assert not recorder.endings
