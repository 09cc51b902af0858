"""All executors as one."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.execute import Executors, Stop
from runner.task import Outcome
from tests.execute.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A folder of handlers, on all executors."""
    executors = Executors(preload=["fractions", "there_is_no_such_module"])
    yield Stage(tmp_path, executors)
    executors.close(grace_seconds=0)


def test_each_handler_runs_where_it_wants_to(stage: Stage) -> None:
    """A def in a thread, an async def on the loop, and either in a process if it says so."""
    where = "return [os.getpid(), threading.current_thread().name]"
    head = "import os, threading\n"
    assert stage.run(f"{head}@handler\ndef work(ctx): {where}").result == [os.getpid(), "handler"]
    assert stage.run(f"{head}@handler\nasync def work(ctx): {where}").result == [os.getpid(), "handler-loop"]
    pid, thread = stage.run(f'{head}@handler(isolation="process")\ndef work(ctx): {where}').result
    assert (pid != os.getpid(), thread) == (True, "MainThread")


def test_processes_find_imported_what_was_to_be_preloaded(stage: Stage) -> None:
    """And what could not be imported does no harm."""
    assert isinstance(stage.executor, Executors)
    stage.executor.warm_up()
    source = 'import sys\n@handler(isolation="process")\ndef look(ctx): return "fractions" in sys.modules'
    assert stage.run(source).result is True


@pytest.mark.parametrize(
    "source",
    [
        "@handler\ndef wait(ctx):",
        '@handler(isolation="process")\ndef wait(ctx):',
    ],
)
def test_a_stop_finds_the_attempt_wherever_it_runs(stage: Stage, source: str) -> None:
    """Whoever stops it does not know where that is."""
    assignment, recorder = stage.begin(f"{source}\n  ctx.log.info('begun')\n  while True: ctx.check()")
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait().outcome is Outcome.CANCELLED


@pytest.mark.parametrize("kind", ["@handler\n", "@handler\nasync ", '@handler(isolation="process")\n'])
def test_an_executor_that_got_no_thread_gets_one_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nothing is left of the attempt that could not begin: the next one runs, and nobody waits for the first one."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            stage.begin(f"{kind}def work(ctx): pass")
    assert stage.run(f"{kind}def work(ctx): pass").outcome is Outcome.COMPLETED
    began = time.monotonic()
    stage.executor.close(grace_seconds=20)
    assert time.monotonic() - began < 20
    assert set(threading.enumerate()) <= before


def test_executors_that_were_not_used_have_nothing_to_close(tmp_path: Path) -> None:
    """No thread and no process is started before the first attempt."""
    before = set(threading.enumerate())
    executors = Executors()
    executors.stop("nobody", 1, Stop.CANCELLED)
    assert set(threading.enumerate()) <= before
    executors.close(grace_seconds=0)
    executors.close(grace_seconds=0)
