"""The attempts that run: from the durable start of a task to the record of how it ended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from runner import task as transitions
from runner.dispatch.delays import Clock
from runner.dispatch.limits import Lane
from runner.dispatch.verdict import conclude, timed_out
from runner.errors import Fenced, NotFound, RunnerError, UnknownHandler
from runner.events import Events
from runner.execute.assignment import Assignment, Ending, Executor, Stop
from runner.handlers import Handler, HandlerOptions
from runner.store import Change, Store, Update
from runner.task import FileState, Outcome, Progress, Task, TaskError

REPORT_SECONDS = 2.0
"""Progress is made durable, and so visible in the task's file, at most this often."""
RECORD_AGAIN_SECONDS = 1.0
"""How long until an ending that the disk refused is recorded again."""
UNAVAILABLE_SECONDS = 10.0
"""How long a started task whose handler has gone waits for it to come back."""


class HandlerSource(Protocol):
    """Where handlers are found, by the type of a task."""

    def get(self, type: str) -> Handler:
        """The handler. Raises `UnknownHandler`."""


class Chain(Protocol):
    """How a completed task's `on_success`, and a handler's `ctx.submit`, become tasks."""

    def follow(self, parent: Task, output_files: tuple[str, ...]) -> Change | None:
        """The change that makes the next task, to be committed with the parent's completion; None if there is none."""

    def submit_child(self, parent: Task, type: str, payload: dict[str, Any], inputs: tuple[Path, ...]) -> str:
        """A durable child task's id. Raises `Refused`."""


@dataclass(slots=True)
class Running:
    """One attempt that holds a slot. `deadline` is on the monotonic clock; `told` is why it was told to stop, after
    which its task goes on without it."""

    assignment: Assignment
    lane: Lane
    deadline: float
    reported: float = 0.0
    files: tuple[FileState, ...] | None = None
    told: Stop | None = None


@dataclass(slots=True)
class _Unrecorded:
    """An ending that the disk refused, to be recorded again at `due` on the monotonic clock."""

    running: Running
    ending: Ending
    output_files: tuple[str, ...]
    due: float = field(default_factory=lambda: time.monotonic() + RECORD_AGAIN_SECONDS)


class Attempts:
    """Launches attempts and listens to them. Methods may be called from any thread; it is the executors' monitor.

    `chain` is set by whoever puts the parts together, since it submits what this starts. `freed` is told when an
    attempt has really ended and its slot is free, on whatever thread that happens.
    """

    def __init__(
        self,
        store: Store,
        handlers: HandlerSource,
        executor: Executor,
        events: Events,
        configs: Callable[[str], Mapping[str, Any]],
        clock: Clock,
        freed: Callable[[str, Lane], None],
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._executor = executor
        self._events = events
        self.chain: Chain | None = None
        self._configs = configs
        self._clock = clock
        self._freed = freed
        self._running: dict[str, Running] = {}
        self._unrecorded: list[_Unrecorded] = []

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Running]:
        return iter(tuple(self._running.values()))

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._running

    def find(self, task_id: str) -> Running | None:
        """The attempt of a task that holds a slot, even if it has been fenced."""
        return self._running.get(task_id)

    def launch(self, task: Task, lane: Lane) -> float:
        """The start of `task` is durable: runs it. Returns its deadline on the monotonic clock."""
        try:
            handler = self._handlers.get(task.type)
        except UnknownHandler as error:
            self._hold_back(task, lane, error)
            return float("inf")
        running = Running(self._assign(task, handler), lane, self._deadline(task))
        self._running[task.id] = running
        self._executor.run(running.assignment, self)
        return running.deadline

    def stop(self, task_id: str, reason: Stop) -> None:
        """Tells the running attempt of a task, if there is one, that nobody wants it any more."""
        running = self._running.get(task_id)
        if running is not None:
            running.told = running.told or reason
            self._executor.stop(task_id, running.assignment.task.attempt, reason)

    def run_due(self, now: float) -> float:
        """Stops attempts that are out of time, records what could not be recorded. `now` and the result, when there is
        something to do again, are on the monotonic clock."""
        next_due = float("inf")
        for running in self:
            if running.deadline <= now and running.told is None:
                self._time_out(running)
            elif running.told is None:
                next_due = min(next_due, running.deadline)
        due = [entry for entry in self._unrecorded if entry.due <= now]
        for entry in due:
            self._unrecorded.remove(entry)
            self._record(entry.running, entry.ending, entry.output_files)
        return min([next_due, *(entry.due for entry in self._unrecorded)])

    def interrupt_all(self) -> None:
        """Requeues what still runs and will not be waited for; late results are fenced."""
        for running in self:
            if running.told in (None, Stop.DRAINED):
                self._record(running, Ending(Outcome.INTERRUPTED), ())

    # Monitor

    def progressed(self, assignment: Assignment, progress: Progress, /) -> None:
        """The attempt is that far."""
        running = self._current(assignment)
        if running is None:
            return
        self._store.note_progress(assignment.task.id, assignment.task.attempt, progress)
        self._events.progress(assignment.task, progress)
        self._report(running, progress)

    def logged(self, assignment: Assignment, level: str, message: str, /) -> None:
        """The attempt says something."""
        self._events.log(assignment.task, level, message)

    def filed(self, assignment: Assignment, files: tuple[FileState, ...], /) -> None:
        """These are the items of work inside the task now."""
        running = self._current(assignment)
        if running is not None:
            running.files = files
            self._report(running, None)

    def submitted(self, assignment: Assignment, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        """The attempt hands in a child task."""
        assert self.chain is not None
        return self.chain.submit_child(assignment.task, type, payload, inputs)

    def ended(self, assignment: Assignment, ending: Ending, /) -> None:
        """The attempt is over and nothing of it runs any more: records that, then frees its slot."""
        running = self._running.pop(assignment.task.id)
        if ending.traceback:
            self._events.log(assignment.task, "error", ending.traceback)
        if running.told in (None, Stop.DRAINED):
            self._conclude(running, ending)
        else:
            self._discard(running)
        self._freed(assignment.task.id, running.lane)

    def _conclude(self, running: Running, ending: Ending) -> None:
        task = running.assignment.task
        output_files: tuple[str, ...] = ()
        if ending.outcome is Outcome.COMPLETED and ending.has_outputs:
            try:
                output_files = self._store.blobs.publish(task.id, task.attempt, task.user_id)
            except OSError as error:
                ending = _unpublished(error)
        if ending.has_outputs and not output_files:
            self._discard(running)
        self._record(running, ending, output_files)

    def _record(self, running: Running, ending: Ending, output_files: tuple[str, ...]) -> None:
        task, options = running.assignment.task, running.assignment.handler.options
        now, chance, files = self._clock(), random.random(), running.files

        def decide(current: Task) -> Task:
            if files is not None and current.attempt == task.attempt:
                current = current.model_copy(update={"files": files})
            return conclude(
                current,
                attempt=task.attempt,
                ending=ending,
                options=options,
                output_files=output_files,
                now=now,
                chance=chance,
            )

        def done(_: object, error: RunnerError | None) -> None:
            self._recorded(running, ending, output_files, error)

        changes: list[Change] = [Update(task.id, decide)]
        if self.chain is not None and task.on_success is not None and ending.outcome is Outcome.COMPLETED:
            child = self.chain.follow(task, output_files)
            changes += [child] if child is not None else []
        self._store.submit(changes, done)

    def _recorded(
        self, running: Running, ending: Ending, output_files: tuple[str, ...], error: RunnerError | None
    ) -> None:
        if error is None:
            return
        task = running.assignment.task
        if isinstance(error, Fenced | NotFound):
            self._events.log(task, "warning", f"the result of attempt {task.attempt} came too late: {error}")
            if output_files:
                self._store.blobs.discard_results(task.user_id, task.id)
        else:
            self._unrecorded.append(_Unrecorded(running, ending, output_files))

    def _time_out(self, running: Running) -> None:
        """The task goes on at once, the slot is freed when the attempt obeys."""
        self.stop(running.assignment.task.id, Stop.TIMED_OUT)
        self._record(running, timed_out(running.assignment.task), ())

    def _hold_back(self, task: Task, lane: Lane, error: UnknownHandler) -> None:
        """The handler went away between admission and start: not the task's fault, so it waits."""
        options = HandlerOptions()
        wait = Ending(Outcome.SNOOZED, after_seconds=UNAVAILABLE_SECONDS)
        now = self._clock()

        def decide(current: Task) -> Task:
            waiting = conclude(
                current, attempt=task.attempt, ending=wait, options=options, output_files=(), now=now, chance=0.5
            )
            return waiting.model_copy(update={"error": TaskError(code=error.code, message=str(error))})

        self._store.submit((Update(task.id, decide),))
        self._freed(task.id, lane)

    def _discard(self, running: Running) -> None:
        self._store.blobs.discard(running.assignment.task.id, running.assignment.task.attempt)

    def _current(self, assignment: Assignment) -> Running | None:
        running = self._running.get(assignment.task.id)
        return running if running is not None and running.assignment is assignment and running.told is None else None

    def _report(self, running: Running, progress: Progress | None) -> None:
        now = time.monotonic()
        if now - running.reported < REPORT_SECONDS:
            return
        running.reported = now
        task, files, instant = running.assignment.task, running.files, self._clock()
        self._store.submit(
            (
                Update(
                    task.id,
                    lambda current: transitions.report(current, task.attempt, instant, progress=progress, files=files),
                ),
            )
        )

    def _assign(self, task: Task, handler: Handler) -> Assignment:
        layout = self._store.layout
        return Assignment(
            task=task,
            handler=handler,
            inputs=tuple(Path(layout.absolute(path)) for path in task.input_files),
            private=layout.attempt(task.id, task.attempt),
            config=self._configs(task.type),
        )

    def _deadline(self, task: Task) -> float:
        return float("inf") if task.timeout_seconds is None else time.monotonic() + task.timeout_seconds


def _unpublished(error: OSError) -> Ending:
    message = f"the outputs could not be kept: {error}"
    return Ending(Outcome.FAILED, error=TaskError(code="outputs_not_kept", message=message))
