"""Attempts in processes of their own."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.config import HandlerConfig
from runner.errors import ShuttingDown
from runner.execute import Ending, Stop
from runner.execute.process import ProcessExecutor
from runner.execute.transcript import MAX_BYTES
from runner.task import FileState, Outcome
from tests.execute.stage import DAEMONIZE, PATIENCE_SECONDS, Recorder, Stage, wait_for_death

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs what only Linux offers")


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessExecutor]:
    """One for all tests that do not break it; it obeys quickly."""
    executor = ProcessExecutor(patience_seconds=0.2, grace_seconds=0.3)
    executor.warm_up()
    yield executor
    executor.close(grace_seconds=0)


@pytest.fixture
def stage(tmp_path: Path, executor: ProcessExecutor) -> Stage:
    """A folder of handlers, on the executor of this module."""
    return Stage(tmp_path, executor)


@pytest.fixture
def lone_stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage whose executor the test may break."""
    executor = ProcessExecutor(patience_seconds=0.2, grace_seconds=0.3)
    yield Stage(tmp_path, executor)
    executor.close(grace_seconds=0)


def test_the_handler_runs_in_another_process_with_typed_arguments(stage: Stage) -> None:
    """What crosses over arrives as it would in a thread."""
    ending = stage.run(
        """
        import os
        from datetime import date
        @handler(isolation="process")
        def work(ctx, day: date, n: int = 2):
            return {"pid": os.getpid(), "year": day.year, "n": n, "id": ctx.task.id, "key": ctx.config["key"]}
        """,
        payload={"day": "2026-11-22"},
        config={"key": "value"},
    )
    assert ending.outcome is Outcome.COMPLETED
    assert ending.result["pid"] != os.getpid()
    assert {**ending.result, "pid": 0} == {"pid": 0, "year": 2026, "n": 2, "id": "task-1", "key": "value"}


def test_all_that_a_handler_says_arrives_in_order(stage: Stage) -> None:
    """Progress, log, items of work and the ending come to the monitor, the ending last."""
    _, recorder = stage.begin(
        """
        @handler(isolation="process")
        def work(ctx):
            ctx.progress(25, "a quarter", stage="begin")
            ctx.log.warning("careful with %s", "that")
            ctx.files([FileState(path="a.txt", status="done")])
            ctx.progress(50)
        """
    )
    assert recorder.wait() == Ending(Outcome.COMPLETED)
    assert [(at.percentage, at.message, at.stage) for at in recorder.progress] == [
        (25, "a quarter", "begin"),
        (50, "", ""),
    ]
    assert recorder.progress[0].updated_at is not None
    assert recorder.log == [("warning", "careful with that")]
    assert recorder.files == (FileState(path="a.txt", status="done"),)


def test_inputs_and_outputs_may_have_names_that_are_not_utf8(stage: Stage, tmp_path: Path) -> None:
    """A path crosses over as its bytes."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    odd.write_text("bytes")
    assignment, recorder = stage.begin(
        """
        @handler(isolation="process")
        def copy(ctx):
            ctx.output("copy.txt").write_text(ctx.inputs[0].read_text())
        """,
        inputs=(odd,),
    )
    assert recorder.wait().outcome is Outcome.COMPLETED
    assert (assignment.output_dir / "copy.txt").read_text() == "bytes"


def test_a_handler_submits_children_and_hears_refusals(stage: Stage) -> None:
    """The id comes back into the process, and so does the reason why there is none."""
    _, recorder = stage.begin(
        """
        @handler(isolation="process")
        def parent(ctx):
            child = ctx.submit("next", {"n": 1}, [ctx.output("x")])
            try:
                ctx.submit("nobody")
            except Exception as error:
                return [child, type(error).__name__, error.code, str(error)]
        """
    )
    assert recorder.wait().result == ["child-1", "Refused", "unknown_handler", "no handler 'nobody'"]
    ((type, payload, inputs),) = recorder.children
    assert (type, payload, [path.name for path in inputs]) == ("next", {"n": 1}, ["x"])


def test_what_is_printed_goes_to_the_log_line_by_line(stage: Stage) -> None:
    """stdout, stderr, and what the handler's own children print; the last line needs no end."""
    _, recorder = stage.begin(
        """
        import subprocess, sys
        @handler(isolation="process")
        def talk(ctx):
            print("one")
            print("two", file=sys.stderr)
            subprocess.run(["echo", "three"], check=True)
            print("four \\udcff", end="")
        """
    )
    assert recorder.wait().outcome is Outcome.COMPLETED
    assert recorder.log == [("info", "one"), ("info", "two"), ("info", "three"), ("info", "four \\udcff")]


def test_a_handler_that_prints_megabytes_is_cut_off_and_not_held_up(stage: Stage) -> None:
    """After the first MiB the log says once that the rest is not kept, and the handler goes on."""
    _, recorder = stage.begin(
        """
        @handler(isolation="process")
        def flood(ctx):
            for _ in range(8 * 1024):
                print("x" * 1023)
            return "done"
        """
    )
    assert recorder.wait().result == "done"
    assert sum(map(len, recorder.lines)) <= MAX_BYTES + 100
    assert [line for line in recorder.lines if "not kept" in line] == recorder.lines[-1:]


def test_progress_in_a_tight_loop_loses_all_but_the_last(stage: Stage) -> None:
    """A handler may report as often as it likes; what counts is where it is now."""
    _, recorder = stage.begin(
        """
        @handler(isolation="process")
        def count(ctx):
            for n in range(20001):
                ctx.progress(n / 200)
        """
    )
    recorder.wait()
    assert recorder.progress[-1].percentage == 100
    assert len(recorder.progress) < 20000


def test_a_big_payload_and_a_big_result_cross_over(stage: Stage) -> None:
    """Neither waits for a buffer to be emptied by the other side."""
    text = "ü" * 1_000_000
    ending = stage.run('@handler(isolation="process")\ndef echo(ctx, text: str): return text', payload={"text": text})
    assert ending.result == text


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("raise Retry(after=60, message='later')", (Outcome.FAILED, "retry", True, 60.0)),
        ("raise Snooze('5m')", (Outcome.SNOOZED, None, None, 300.0)),
        ("raise Fail('never', code='bad_file')", (Outcome.FAILED, "bad_file", False, None)),
        ("raise ValueError('x')", (Outcome.FAILED, "handler_error", True, None)),
        ("return object()", (Outcome.FAILED, "invalid_result", False, None)),
    ],
)
def test_every_way_to_end_crosses_over(stage: Stage, statement: str, expected: tuple[object, ...]) -> None:
    """The ending is the same as it would be from a thread."""
    ending = stage.run(f'@handler(isolation="process")\ndef work(ctx): {statement}')
    error = ending.error
    assert (ending.outcome, error and error.code, error and error.retryable, ending.after_seconds) == expected


def test_a_coroutine_runs_in_a_process_too(stage: Stage) -> None:
    """isolation="process" is for async def as well, and a stop cancels it."""
    assignment, recorder = stage.begin(
        """
        import asyncio
        @handler(isolation="process")
        async def sleep(ctx):
            ctx.log.info("begun")
            try:
                await asyncio.sleep(3600)
            finally:
                ctx.log.info("cleaned up")
        """
    )
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait().outcome is Outcome.CANCELLED
    assert "cleaned up" in recorder.lines


def test_a_changed_file_does_not_change_what_was_assigned(stage: Stage) -> None:
    """The process runs the version that its owner had loaded, and its tracebacks show the text of that version."""
    handler = stage.write('@handler(isolation="process")\ndef work(ctx): raise ValueError("old")')
    handler.path.write_text("this is no Python")
    recorder = Recorder()
    stage.executor.run(stage.assign(handler), recorder)
    assert 'raise ValueError("old")' in recorder.wait().traceback


def test_a_file_that_only_its_owner_could_load_fails_with_a_reason(stage: Stage) -> None:
    """Such as one that looks at the machine while it is loaded."""
    ending = stage.run(
        f"""
        import os
        if os.getpid() == {os.getpid()}:
            @handler(isolation="process")
            def work(ctx): ...
        """
    )
    assert ending.error is not None
    assert (ending.error.code, ending.error.message.endswith("no longer defines 'work'")) == ("broken_handler", True)


def test_the_configuration_may_put_a_handler_into_a_process(stage: Stage) -> None:
    """What the decorator says holds only where the configuration says nothing."""
    config = HandlerConfig(isolation="process", memory_mb=500)
    handler = stage.write("import os\n@handler\ndef work(ctx): return os.getpid()", config)
    recorder = Recorder()
    stage.executor.run(stage.assign(handler), recorder)
    assert recorder.wait().result != os.getpid()


# What a handler's process is like


def test_a_process_starts_clean(stage: Stage, tmp_path: Path) -> None:
    """A session of its own, private files, no descriptors of its owner's, its scratch folder around it, no input."""
    with (tmp_path / "lock").open("w") as lock:
        assignment, recorder = stage.begin(
            """
            import os, resource, signal, sys, tempfile
            @handler(isolation="process")
            def look(ctx):
                (ctx.scratch / "mine").touch()
                return {
                    "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
                    "mode": oct((ctx.scratch / "mine").stat().st_mode & 0o777),
                    "open": [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")],
                    "here": os.getcwd() == tempfile.gettempdir() == str(ctx.scratch),
                    "input": sys.stdin.read(),
                    "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
                    "signals": str({signal.getsignal(getattr(signal, n)) for n in ("SIGHUP", "SIGUSR2", "SIGCHLD")}),
                }
            """
        )
        found = recorder.wait().result
        assert lock.name not in found.pop("open")
    default = "{<Handlers.SIG_DFL: 0>}"
    assert found == {"leads": True, "mode": "0o600", "here": True, "input": "", "core": 0, "signals": default}
    assert not assignment.scratch_dir.exists()


def test_two_processes_draw_different_random_numbers(stage: Stage) -> None:
    """They are forked from the same process, whose generators were seeded once."""
    source = '@handler(isolation="process")\ndef draw(ctx):\n    import random\n    return random.random()'
    assert stage.run(source).result != stage.run(source).result


def test_nothing_that_a_handler_leaves_running_outlives_its_attempt(stage: Stage) -> None:
    """It is killed before the end is told, in whatever session it hides, so that a retry is alone."""
    ending = stage.run(
        DAEMONIZE
        + """
import subprocess
@handler(isolation="process")
def litter(ctx):
    sleep = ["sleep", "3600"]
    return [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid, daemonize()]
"""
    )
    assert [wait_for_death(pid, 0) for pid in ending.result] == [True, True, True]


def test_another_attempt_is_not_harmed_when_leftovers_are_killed(stage: Stage) -> None:
    """What descends from a handler that still runs is not a leftover."""
    source = (
        DAEMONIZE
        + """
@handler(isolation="process")
def work(ctx, wait: bool):
    print("pid", daemonize())
    while wait and not ctx.cancelled:
        pass
"""
    )
    assignment, recorder = stage.begin(source, payload={"wait": True})
    pid = int(recorder.line_after("pid "))
    assert stage.run(source, payload={"wait": False}).outcome is Outcome.COMPLETED
    assert not wait_for_death(pid, 0)
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    recorder.wait()
    assert wait_for_death(pid, 0)


# Crashes


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("os._exit(3)", "exited with status 3 before the handler returned"),
        ("os._exit(0)", "exited with status 0 before the handler returned"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9, SIGKILL (out of memory?)"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "killed by signal 15, SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", "killed by signal 35"),
    ],
)
def test_a_process_that_dies_has_crashed(stage: Stage, statement: str, message: str) -> None:
    """The attempt fails with what is known of the death, and may be retried."""
    ending = stage.run(f'import os, signal\n@handler(isolation="process")\ndef die(ctx): {statement}')
    assert ending.outcome is Outcome.FAILED
    assert ending.error is not None
    assert (ending.error.code, ending.error.retryable) == ("crashed", True)
    assert message in ending.error.message


def test_a_segmentation_fault_leaves_its_traceback_in_the_log(stage: Stage) -> None:
    """Python is gone by then, so the log has what its fault handler wrote."""
    _, recorder = stage.begin(
        """
        import ctypes
        @handler(isolation="process")
        def crash(ctx):
            ctypes.string_at(0)
        """
    )
    error = recorder.wait().error
    assert error is not None
    assert "signal 11, SIGSEGV" in error.message
    assert any("stage.py" in line for line in recorder.lines)


@linux_only
@pytest.mark.parametrize(
    "statement", ["bytearray(300 * 1024**2)", "[bytes(1000) for _ in range(1_000_000)]", "[[] for _ in range(10**8)]"]
)
def test_a_handler_that_takes_too_much_memory_fails_with_the_limit(stage: Stage, statement: str) -> None:
    """At once or bit by bit, with a message that says what to change."""
    ending = stage.run(f'@handler(isolation="process", memory_mb=64)\ndef eat(ctx): {statement}')
    assert ending.error is not None
    assert ending.error.code == "out_of_memory"
    assert ending.error.message == "needs more memory than the handler's memory_mb: 64"


@linux_only
def test_a_handler_within_its_memory_completes(stage: Stage) -> None:
    """The limit is for what the attempt takes itself, beyond the loaded code."""
    source = '@handler(isolation="process", memory_mb=64)\ndef eat(ctx): return len(bytearray(40 * 1024**2))'
    assert stage.run(source).outcome is Outcome.COMPLETED


def test_nonsense_on_the_channel_is_not_taken_for_news(stage: Stage) -> None:
    """A handler that writes to a descriptor that is not its own harms only itself."""
    ending = stage.run(
        """
        import os, stat
        @handler(isolation="process")
        def scribble(ctx):
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                try:
                    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                        os.write(descriptor, b"P]\\nE{}\\nQ\\nL[1]\\n")
                except OSError:
                    pass
            return "done"
        """
    )
    assert ending.result == "done"


def test_an_attempt_fails_when_the_zygote_dies_and_the_next_one_runs(lone_stage: Stage) -> None:
    """The kernel kills the children of a dead zygote; another one is started."""
    _, recorder = lone_stage.begin(
        """
        import os, signal, subprocess
        @handler(isolation="process")
        def wait(ctx):
            print("pids", os.getppid(), os.getpid(), subprocess.Popen(["sleep", "3600"]).pid)
            signal.pause()
        """
    )
    zygote, *others = map(int, recorder.line_after("pids ").split())
    os.kill(zygote, signal.SIGKILL)
    assert recorder.wait().outcome is Outcome.FAILED
    assert all(wait_for_death(pid, 1) for pid in others)
    assert lone_stage.run('@handler(isolation="process")\ndef again(ctx): return 1').result == 1


def test_signals_that_people_send_to_everybody_do_not_stop_the_zygote(lone_stage: Stage) -> None:
    """A reload, a terminal's interrupt, a service manager's stop: the owner decides when attempts end."""
    assignment, recorder = lone_stage.begin(
        """
        import os
        @handler(isolation="process")
        def wait(ctx):
            print("zygote", os.getppid())
            while not ctx.cancelled:
                pass
            return "undisturbed"
        """
    )
    zygote = int(recorder.line_after("zygote "))
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(zygote, number)
    lone_stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait().result == "undisturbed"


# Stopping


def test_a_handler_that_looks_stops_by_itself(stage: Stage) -> None:
    """The stop is asked for before any signal is sent."""
    assignment, recorder = stage.begin(
        """
        import signal
        @handler(isolation="process")
        def polite(ctx):
            signal.signal(signal.SIGTERM, lambda *_: ctx.log.error("signalled"))
            ctx.log.info("begun")
            while not ctx.cancelled:
                pass
            ctx.check()
        """
    )
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, Stop.TIMED_OUT)
    assert recorder.wait().outcome is Outcome.TIMED_OUT
    assert recorder.lines == ["begun"]


def test_a_handler_that_sleeps_is_interrupted_and_cleans_up(stage: Stage) -> None:
    """TERM raises Cancelled wherever the handler is."""
    assignment, recorder = stage.begin(
        """
        import time
        @handler(isolation="process")
        def sleep(ctx):
            ctx.log.info("begun")
            try:
                time.sleep(3600)
            except Cancelled as error:
                ctx.log.info("caught")
                raise
        """
    )
    recorder.line_after("begun")
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait().outcome is Outcome.CANCELLED
    assert recorder.lines == ["begun", "caught"]


def test_a_handler_that_ignores_everything_is_killed_with_all_that_it_started(stage: Stage) -> None:
    """KILL goes to the whole group, and what has left the group is found."""
    assignment, recorder = stage.begin(
        """
        import os, signal, subprocess
        @handler(isolation="process")
        def deaf(ctx):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            near = subprocess.Popen(["sleep", "3600"])
            far = subprocess.Popen(["sleep", "3600"], start_new_session=True)
            (ctx.scratch / "left behind").touch()
            print("pids", os.getpid(), near.pid, far.pid)
            while True:
                pass
        """
    )
    pids = list(map(int, recorder.line_after("pids ").split()))
    stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert recorder.wait().outcome is Outcome.CANCELLED
    assert all(wait_for_death(pid, 0) for pid in pids)
    assert not assignment.scratch_dir.exists()


def test_a_stopped_process_is_killed_by_a_stop(stage: Stage) -> None:
    """SIGSTOP keeps a process from hearing anything but KILL."""
    assignment, recorder = stage.begin(
        """
        import os, signal
        @handler(isolation="process")
        def freeze(ctx):
            print("pid", os.getpid())
            os.kill(os.getpid(), signal.SIGSTOP)
        """
    )
    pid = int(recorder.line_after("pid "))
    stage.executor.stop(assignment.task.id, 1, Stop.TIMED_OUT)
    assert recorder.wait().outcome is Outcome.TIMED_OUT
    assert wait_for_death(pid, 0)


def test_a_stop_right_after_the_start_is_not_lost(stage: Stage) -> None:
    """Whatever the process is doing when the stop arrives, there is one ending."""
    handler = stage.write('import time\n@handler(isolation="process")\ndef sleep(ctx): time.sleep(3600)')
    recorders = [Recorder() for _ in range(5)]
    for recorder in recorders:
        assignment = stage.assign(handler)
        stage.executor.run(assignment, recorder)
        stage.executor.stop(assignment.task.id, 1, Stop.CANCELLED)
    assert {recorder.wait().outcome for recorder in recorders} == {Outcome.CANCELLED}


def test_stopping_what_does_not_run_does_nothing(stage: Stage) -> None:
    """The attempt may have ended a moment ago."""
    stage.executor.stop("nobody", 1, Stop.CANCELLED)
    assert stage.run('@handler(isolation="process")\ndef work(ctx): return 1').result == 1


# Closing


def test_closing_kills_what_does_not_end_and_leaves_no_process(lone_stage: Stage) -> None:
    """After the grace period the attempt was interrupted; then the zygote ends as well."""
    _, recorder = lone_stage.begin(
        """
        import os, signal
        @handler(isolation="process")
        def deaf(ctx):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("pids", os.getppid(), os.getpid())
            while True:
                signal.pause()
        """
    )
    pids = list(map(int, recorder.line_after("pids ").split()))
    lone_stage.executor.close(grace_seconds=0)
    assert [ending.outcome for ending in recorder.endings] == [Outcome.INTERRUPTED]
    assert all(wait_for_death(pid, 0) for pid in pids)


def test_closing_waits_for_what_finishes_in_time(lone_stage: Stage) -> None:
    """Within the grace period nobody is told to stop, and nothing new is taken."""
    handler = lone_stage.write(
        """
        import time
        @handler(isolation="process")
        def work(ctx):
            time.sleep(0.2)
            return ctx.cancelled
        """
    )
    recorder = Recorder()
    lone_stage.executor.run(lone_stage.assign(handler), recorder)
    lone_stage.executor.close(grace_seconds=PATIENCE_SECONDS)
    assert recorder.endings == [Ending(Outcome.COMPLETED, False)]
    with pytest.raises(ShuttingDown):
        lone_stage.executor.run(lone_stage.assign(handler), recorder)


def test_an_attempt_for_which_there_are_no_descriptors_fails_and_may_be_retried(lone_stage: Stage) -> None:
    """Too many open files is a reason to try again later."""
    import resource

    assert lone_stage.run('@handler(isolation="process")\ndef work(ctx): return 1').result == 1
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    handler, recorder = lone_stage.write('@handler(isolation="process")\ndef work(ctx): return 1'), Recorder()
    highest = max(map(int, os.listdir("/proc/self/fd")))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest - 1, limits[1]))
        fill = _open_all()
        lone_stage.executor.run(lone_stage.assign(handler), recorder)
        error = recorder.wait().error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in fill:
            os.close(descriptor)
    assert error is not None
    assert (error.code, error.retryable) == ("cannot_start", True)


def _open_all() -> list[int]:
    """Every descriptor that can still be had."""
    opened = []
    while True:
        try:
            opened.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return opened
