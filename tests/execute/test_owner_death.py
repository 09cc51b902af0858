"""When the owner is killed, nothing that it started outlives it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.execute.stage import DAEMONIZE, kill, wait_for_death

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs what only Linux offers")

ROOT = Path(__file__).parents[2]

OWNER = """
import signal, sys
from pathlib import Path
from runner.execute import Executors
from tests.execute.stage import Recorder, Stage

class Speaker(Recorder):
    def logged(self, assignment, level, message, /):
        print(message, flush=True)

stage = Stage(Path(sys.argv[1]), Executors())
stage.executor.run(stage.assign(stage.write(sys.argv[2])), Speaker())
signal.pause()
"""

FAMILY = (
    DAEMONIZE
    + """
import subprocess

@handler(isolation="{isolation}")
def work(ctx):
    sleep = ["sh", "-c", "trap '' HUP TERM; exec sleep 3600"]
    pids = [os.getpid(), subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid, daemonize()]
    ctx.log.info("pids %s", " ".join(map(str, pids)))
    {then}
"""
)


@contextmanager
def owner(folder: Path, source: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process that runs the handler, and the processes that it speaks of."""
    command = [sys.executable, "-c", OWNER, str(folder), source]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().removeprefix("pids ").split()]
        try:
            yield process, pids
        finally:
            process.kill()
            for pid in pids:
                kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("then", ["signal.pause()", "os.kill(os.getpid(), signal.SIGSTOP)", "while True: pass"])
def test_a_killed_owner_takes_all_descendants_with_it_within_a_second(tmp_path: Path, then: str) -> None:
    """The handler's process, its child, its child in another session and its daemon: whether it sleeps, is stopped,
    or is busy."""
    with owner(tmp_path, FAMILY.format(isolation="process", then=then)) as (process, pids):
        assert len(pids) == 4
        os.kill(process.pid, signal.SIGKILL)
        assert [pid for pid in pids if not wait_for_death(pid, 1)] == []


def test_without_a_process_of_its_own_a_daemon_does_outlive_the_owner(tmp_path: Path) -> None:
    """The negative control: the test above would notice."""
    with owner(tmp_path, FAMILY.format(isolation="thread", then="signal.sigwait([signal.SIGUSR1])")) as (process, pids):
        os.kill(process.pid, signal.SIGKILL)
        assert wait_for_death(pids[0], 5)
        assert [wait_for_death(pid, 0) for pid in pids[1:]] == [False, False, False]


def test_a_frozen_zygote_does_not_save_the_children(tmp_path: Path) -> None:
    """Each process listens for its owner's death itself, too; only what has left its group needs the zygote."""
    source = FAMILY.format(isolation="process", then="signal.pause()").replace(
        "ctx.log.info(", "pids = pids[:2]; os.kill(os.getppid(), signal.SIGSTOP); ctx.log.info("
    )
    with owner(tmp_path, source) as (process, pids):
        zygote = int(Path(f"/proc/{pids[0]}/stat").read_text().rsplit(")")[1].split()[1])
        os.kill(process.pid, signal.SIGKILL)
        try:
            # A zombie until its parent runs again; it runs no more.
            assert wait_for_death(pids[0], 1)
        finally:
            os.kill(zygote, signal.SIGCONT)
        assert wait_for_death(pids[1], 1)
