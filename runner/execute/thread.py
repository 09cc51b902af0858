"""Attempts in threads: as many as are running, kept for the next ones, none killable."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

from runner.context import Context
from runner.errors import ShuttingDown
from runner.execute.assignment import Assignment, Haste, Monitor, Stop
from runner.execute.attempt import perform

Work: TypeAlias = tuple[Assignment, Monitor, Context]

_IDLE_SECONDS: Final = 60.0
_LAST_CALL_SECONDS: Final = 0.5


class ThreadExecutor:
    """Runs `def` handlers. How many at once is not decided here: each `run` finds an idle thread or starts one."""

    def __init__(self) -> None:
        self._todo: SimpleQueue[Work | None] = SimpleQueue()
        self._running: set[Context] = set()
        self._telling: set[Context] = set()
        self._workers: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._closed = False

    def run(self, assignment: Assignment, monitor: Monitor) -> None:
        """See Executor."""
        context = Context(assignment, monitor)
        with self._lock:
            if self._closed:
                raise ShuttingDown("the executor is closed")
            if len(self._running) >= len(self._workers):
                self._start_worker()
            self._running.add(context)
        # One queue for all: a worker that is awake takes what comes next, and no sleeping one has to be woken for it.
        self._todo.put((assignment, monitor, context))

    def stop(self, task_id: str, attempt: int, reason: Stop) -> None:
        """See Executor. Only sets the flag that `ctx.cancelled` and `ctx.check()` read."""
        for context in self._running.copy():  # in one step, as attempts end beside it
            if context.task.id == task_id and context.task.attempt == attempt:
                context.stop(reason)

    def close(self, grace_seconds: float) -> None:
        """See Executor."""
        with self._lock:
            self._closed = True
            if not self._ended.wait_for(lambda: not self._running, grace_seconds):
                for context in self._running.copy():
                    context.stop(Stop.DRAINED)
                self._ended.wait_for(lambda: not self._running, _LAST_CALL_SECONDS)
            # What has ended is told before whoever closes us closes what it is told to.
            self._ended.wait_for(lambda: not self._telling)
            workers = tuple(self._workers)
            idle = len(workers) - len(self._running)
        for _ in range(idle):
            self._todo.put(None)
        if idle == len(workers):
            for worker in workers:
                worker.join()

    def _start_worker(self) -> None:
        worker = threading.Thread(target=self._work, name="handler", daemon=True)
        worker.start()
        self._workers.add(worker)

    def _work(self) -> None:
        """A worker's life: one assignment after the other, until there has been none for a while."""
        while True:
            try:
                work = self._todo.get(timeout=_IDLE_SECONDS)
            except Empty:
                if self._retire():
                    return
                continue
            if work is None:
                return
            self._perform(*work)
            del work  # an idle thread holds on to nobody's payload

    def _perform(self, assignment: Assignment, monitor: Monitor, context: Context) -> None:
        ending = perform(assignment, context)
        context.close()
        # Free first, told second: the next `run` comes from inside `ended`, and this thread then takes it.
        self._rest(context)
        try:
            monitor.ended(assignment, ending)
            monitor.settle(Haste.NOW if self._todo.empty() else Haste.SOON)
        finally:
            self._telling.discard(context)
            if self._closed:
                with self._lock:
                    self._ended.notify_all()

    def _rest(self, context: Context) -> None:
        # In this order, and without the lock until we are being closed: whoever closes us finds it in one of them.
        self._telling.add(context)
        self._running.remove(context)
        if self._closed:
            with self._lock:
                self._ended.notify_all()

    def _retire(self) -> bool:
        """Whether the worker may go: there are more of them than there is work."""
        with self._lock:
            if len(self._workers) <= len(self._running):
                return False
            self._workers.discard(threading.current_thread())
            return True
