"""Running one handler without a server."""

import signal
from pathlib import Path

import pytest

from runner.errors import InvalidSubmission
from runner.execute.once import run_once
from runner.task import Outcome
from tests.execute.stage import write_handler


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_run_gives_the_result_the_outputs_and_what_was_said(tmp_path: Path, isolation: str) -> None:
    """As a server would run it, with its own isolation."""
    handler = write_handler(
        tmp_path / "handlers",
        f"""
        @handler(isolation="{isolation}")
        def count(ctx, factor: int = 1):
            ctx.progress(50, "half", stage="counting")
            ctx.log.info("sees %s", ctx.inputs[0].name)
            ctx.files([FileState(path="a.txt", status="done")])
            ctx.output("count.txt").write_text(str(ctx.inputs[0].stat().st_size * factor))
            return ctx.submit("next", {{"n": 1}}) != ""
        """,
    )
    (tmp_path / "a.txt").write_text("four")
    said: list[str] = []
    run = run_once(handler, [tmp_path / "a.txt"], {"factor": 10}, output_dir=tmp_path / "out", say=said.append)
    assert (run.ending.outcome, run.ending.result, run.submitted) == (Outcome.COMPLETED, True, (("next", {"n": 1}),))
    assert run.outputs == (tmp_path / "out/count.txt",)
    assert run.outputs[0].read_text() == "40"
    assert said == [" 50 % counting half", "info: sees a.txt", "a.txt: done", 'would submit next {"n": 1} with 0 files']


def test_a_run_that_fails_leaves_no_outputs(tmp_path: Path) -> None:
    """What it wrote before is not a result."""
    handler = write_handler(tmp_path / "handlers", "@handler\ndef half(ctx): ctx.output('x').touch(); raise ValueError")
    run = run_once(handler, output_dir=tmp_path / "out")
    assert (run.ending.outcome, run.outputs) == (Outcome.FAILED, ())
    assert not (tmp_path / "out").exists()


def test_a_payload_that_does_not_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """The same answer as from a server."""
    handler = write_handler(tmp_path / "handlers", "@handler\ndef work(ctx, n: int): ...")
    with pytest.raises(InvalidSubmission, match="/payload/n"):
        run_once(handler, payload={"n": "many"}, output_dir=tmp_path)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_run_is_stopped_at_the_timeout_of_its_handler(tmp_path: Path, isolation: str) -> None:
    """A handler that never ends does not hold up its developer."""
    source = f'@handler(timeout="200ms", isolation="{isolation}")\ndef spin(ctx):\n  while True: ctx.check()'
    run = run_once(write_handler(tmp_path / "handlers", source), output_dir=tmp_path)
    assert run.ending.outcome is Outcome.TIMED_OUT


def test_an_interrupt_from_the_keyboard_stops_the_handler(tmp_path: Path) -> None:
    """Ctrl-C is passed on, after the handler has been told."""
    handler = write_handler(
        tmp_path / "handlers",
        """
        import signal, threading
        seen = []
        @handler
        def spin(ctx):
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # the kernel may choose any thread
            while not ctx.cancelled: pass
            seen.append(ctx.stopped)
        """,
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        run_once(handler, output_dir=tmp_path)
    assert handler.function.__globals__["seen"] == ["cancelled"]
