"""All the places where an attempt can run, as one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from runner.execute.assignment import Assignment, Executor, Monitor, Stop
from runner.execute.loop import LoopExecutor
from runner.execute.process import ProcessExecutor
from runner.execute.thread import ThreadExecutor
from runner.handlers import Isolation


class Executors:
    """Runs each attempt where its handler wants to be run. Starts no thread and no process before the first.

    `preload` names modules that handler processes find imported already; see `ProcessExecutor`.
    """

    def __init__(self, *, preload: Iterable[str] = ()) -> None:
        self._processes = ProcessExecutor(preload=preload)
        self._by_isolation: Mapping[Isolation, Executor] = {
            Isolation.THREAD: ThreadExecutor(),
            Isolation.LOOP: LoopExecutor(),
            Isolation.PROCESS: self._processes,
        }

    def warm_up(self) -> None:
        """Start what makes the first process slow, and return at once."""
        self._processes.warm_up()

    def run(self, assignment: Assignment, monitor: Monitor) -> None:
        """See Executor."""
        self._by_isolation[assignment.handler.options.isolation].run(assignment, monitor)

    def stop(self, task_id: str, attempt: int, reason: Stop) -> None:
        """See Executor."""
        for executor in self._by_isolation.values():
            executor.stop(task_id, attempt, reason)

    def close(self, grace_seconds: float) -> None:
        """See Executor. The grace is one for all of them together."""
        deadline = time.monotonic() + grace_seconds
        for executor in self._by_isolation.values():
            executor.close(max(0.0, deadline - time.monotonic()))
