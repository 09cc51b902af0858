"""Attempts of `async def` handlers, all on one asyncio loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Final, TypeAlias, cast

from runner.context import Context
from runner.errors import ShuttingDown
from runner.execute.assignment import Assignment, Haste, Monitor, Stop
from runner.execute.attempt import perform_async

Work: TypeAlias = tuple[Assignment, Monitor, Context]
Key: TypeAlias = tuple[str, int]

_LAST_CALL_SECONDS: Final = 0.5
_JOIN_SECONDS: Final = 2.0


class LoopExecutor:
    """Runs `async def` handlers. To stop one cancels its coroutine, which may take its time to clean up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._running: dict[Key, Context] = {}
        self._todo: deque[Work] = deque()
        # These are only touched on the loop, which itself keeps weak references to its tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancellable: dict[Key, asyncio.Task[None]] = {}
        self._unsettled: set[Monitor] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, assignment: Assignment, monitor: Monitor) -> None:
        """See Executor."""
        context = Context(assignment, monitor)
        with self._lock:
            if self._closed:
                raise ShuttingDown("the executor is closed")
            loop = self._loop or self._start()
            self._running[_key(assignment)] = context
            self._todo.append((assignment, monitor, context))
            if len(self._todo) == 1:  # waking the loop costs more than all the rest: once for many
                loop.call_soon_threadsafe(self._begin)

    def stop(self, task_id: str, attempt: int, reason: Stop) -> None:
        """See Executor."""
        with self._lock:
            context = self._running.get((task_id, attempt))
            if context and self._loop:
                context.stop(reason)
                self._loop.call_soon_threadsafe(self._cancel, (task_id, attempt))

    def close(self, grace_seconds: float) -> None:
        """See Executor. A coroutine that does not end when it is cancelled is left behind."""
        with self._lock:
            self._closed = True
            obeyed = self._ended.wait_for(lambda: not self._running, grace_seconds)
            left = list(self._running)
        if not obeyed:
            for task_id, attempt in left:
                self.stop(task_id, attempt, Stop.DRAINED)
            with self._lock:
                self._ended.wait_for(lambda: not self._running, _LAST_CALL_SECONDS)
        with self._lock:
            loop, self._loop = self._loop, None
        if loop and self._thread:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(_JOIN_SECONDS)

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._serve, args=(loop,), name="handler-loop", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            loop.close()
            raise
        self._loop, self._thread = loop, thread
        return loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    def _begin(self) -> None:
        with self._lock:
            todo = list(self._todo)
            self._todo.clear()
        for work in todo:
            task = asyncio.ensure_future(self._attempt(*work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _attempt(self, assignment: Assignment, monitor: Monitor, context: Context) -> None:
        # Only while the handler runs: a task that is cancelled before its first step, or after, would never tell.
        self._cancellable[_key(assignment)] = cast("asyncio.Task[None]", asyncio.current_task())
        ending = await perform_async(assignment, context)
        del self._cancellable[_key(assignment)]
        if context.has_scratch:
            await asyncio.to_thread(context.close)
        with self._lock:
            del self._running[_key(assignment)]
        monitor.ended(assignment, ending)
        self._settle_soon(monitor)
        with self._lock:
            self._ended.notify_all()

    def _settle_soon(self, monitor: Monitor) -> None:
        """What ends in one round of the loop goes to the disk together."""
        if not self._unsettled:
            asyncio.get_running_loop().call_soon(self._settle)
        self._unsettled.add(monitor)

    def _settle(self) -> None:
        while self._unsettled:
            self._unsettled.pop().settle(Haste.NOW)

    def _cancel(self, key: Key) -> None:
        task = self._cancellable.get(key)
        if task:
            task.cancel()


def _key(assignment: Assignment) -> Key:
    return (assignment.task.id, assignment.task.attempt)
