"""Attempts in threads: as many as are running, kept for the next ones, none killable."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

from runner.context import Context
from runner.errors import ShuttingDown
from runner.execute.assignment import Assignment, Monitor, Stop
from runner.execute.attempt import perform

Work: TypeAlias = tuple[Assignment, Monitor, Context]

_IDLE_SECONDS: Final = 60.0
_LAST_CALL_SECONDS: Final = 0.5


class ThreadExecutor:
    """Runs `def` handlers. How many at once is not decided here: each `run` finds an idle thread or starts one."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], Context] = {}
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._closed = False

    def run(self, assignment: Assignment, monitor: Monitor) -> None:
        """See Executor."""
        context = Context(assignment, monitor)
        task = assignment.task
        with self._lock:
            if self._closed:
                raise ShuttingDown("the executor is closed")
            self._running[(task.id, task.attempt)] = context
            # The last one to become idle: its stack is warm, and during `ended` it is the calling thread itself.
            worker = self._idle.pop() if self._idle else None
        (worker or self._start_worker()).todo.put((assignment, monitor, context))

    def stop(self, task_id: str, attempt: int, reason: Stop) -> None:
        """See Executor. Only sets the flag that `ctx.cancelled` and `ctx.check()` read."""
        context = self._running.get((task_id, attempt))
        if context:
            context.stop(reason)

    def close(self, grace_seconds: float) -> None:
        """See Executor."""
        with self._lock:
            self._closed = True
            if not self._ended.wait_for(lambda: not self._running, grace_seconds):
                for context in self._running.values():
                    context.stop(Stop.DRAINED)
                self._ended.wait_for(lambda: not self._running, _LAST_CALL_SECONDS)
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.dismiss()

    def _start_worker(self) -> _Worker:
        worker = _Worker(self._rest, self._retire)
        worker.start()
        return worker

    def _rest(self, worker: _Worker, assignment: Assignment) -> None:
        """The worker has done that, and is free once it has told so."""
        with self._lock:
            del self._running[(assignment.task.id, assignment.task.attempt)]
            self._idle.append(worker)
            if self._closed:
                self._ended.notify_all()

    def _retire(self, worker: _Worker) -> bool:
        """Whether the worker may go: nobody has just chosen it."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True


class _Worker:
    """One thread, with a queue of its own: who puts work into it has taken it from the idle ones before."""

    def __init__(self, rest: Callable[[_Worker, Assignment], None], retire: Callable[[_Worker], bool]) -> None:
        self.todo: SimpleQueue[Work | None] = SimpleQueue()
        self._rest = rest
        self._retire = retire
        self._thread = threading.Thread(target=self._run, name="handler", daemon=True)

    def start(self) -> None:
        """Begin to wait for work."""
        self._thread.start()

    def dismiss(self) -> None:
        """End the thread once it is idle, and wait for that."""
        self.todo.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                work = self.todo.get(timeout=_IDLE_SECONDS)
            except Empty:
                if self._retire(self):
                    return
                continue
            if work is None:
                return
            self._perform(*work)
            del work  # an idle thread holds on to nobody's payload

    def _perform(self, assignment: Assignment, monitor: Monitor, context: Context) -> None:
        ending = perform(assignment, context)
        context.close()
        # Free first, told second: the next `run` comes from inside `ended`, and then finds this thread.
        self._rest(self, assignment)
        monitor.ended(assignment, ending)
