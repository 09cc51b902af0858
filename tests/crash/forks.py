"""Running a piece of work in a child that may be killed, may hang, and can say what it found.

Whoever forks must never have had threads: a lock that one of them holds would stay locked in the child. So everything
that opens a runner, victims and judges alike, does it in a child.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FAULT = 70
"""The exit status of a child whose work raised."""


def looks(seconds: float, pause: float = 0.001) -> Iterator[None]:
    """As many looks as fit into that time, with a pause behind each. They are counted, and not the time: the machine
    may be busy with something else, and this process stopped."""
    for _ in range(round(seconds / pause)):
        yield
        time.sleep(pause)


class Child:
    """A forked child that does `work` and ends, with 0 or `FAULT`. What it says on stderr goes into a file."""

    def __init__(self, work: Callable[[], object], stderr: Path | str = os.devnull) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _work(work, stderr)

    def kill(self) -> None:
        """Ends it at once, whatever it does."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Its exit status, or minus the signal that killed it; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self) -> int:
        """The same, once it has ended."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def wait_for(self, seconds: float) -> int | None:
        """The same, or None if it does not end in time; then it says on stderr where it hangs, and is killed."""
        for _ in looks(seconds):
            if self.poll() is not None:
                break
        if (status := self.poll()) is not None:
            return status
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.5)
        self.kill()
        self.wait()
        return None


def ask_child(work: Callable[[], Any], seconds: float = 200) -> Any:
    """What `work` returns in a child, as JSON can say it. Raises `AssertionError` if it fails or hangs."""
    read, write = os.pipe()

    def answer() -> None:
        os.close(read)
        with open(write, "w") as pipe:
            json.dump(work(), pipe)

    child = Child(answer, "/dev/stderr")
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    status = child.wait_for(seconds)
    assert status == 0, f"the child ended with {status}"
    return json.loads(said)


def _work(work: Callable[[], object], stderr: Path | str) -> None:
    status = FAULT
    try:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        faulthandler.register(signal.SIGUSR1, file=2)
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - a forked child must never return into its parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
