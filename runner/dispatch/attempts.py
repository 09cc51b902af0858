"""The attempts that run: from the durable start of a task to the record of how it ended."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from runner import task as transitions
from runner.dispatch.delays import Clock
from runner.dispatch.limits import Lane
from runner.dispatch.verdict import conclude, timed_out
from runner.errors import Fenced, IllegalTransition, NotFound, Refused, RunnerError, ShuttingDown, Unavailable
from runner.events import Events
from runner.execute.assignment import Assignment, Ending, Executor, Haste, Stop
from runner.handlers import Handler, HandlerOptions
from runner.store import Create, Store, Update
from runner.task import FileState, Outcome, Progress, Task, TaskError

_log = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
"""What an attempt says is made durable, and so visible in the task's file, at most this often."""
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

    def follow(self, parent: Task, output_files: tuple[str, ...]) -> Create:
        """The next task, to be committed with the parent's completion; its files are there. Raises `Refused`."""

    def forget(self, child: Create) -> None:
        """What `follow` returned was not committed: its files go."""

    def submit_child(self, parent: Task, type: str, payload: dict[str, Any], inputs: tuple[Path, ...]) -> str:
        """A durable child task's id. Raises `Refused`."""


@dataclass(slots=True, eq=False)
class Running:
    """One attempt that holds a slot. `deadline` is on the monotonic clock, as is `reported`: when `progress` and
    `files` were last made durable; `has_news`: they have changed since. `told` is why it was told to stop, after which
    its task goes on without it; `is_over`: it ended by itself, and only its record is still on the way."""

    assignment: Assignment
    lane: Lane
    deadline: float
    progress: Progress | None = None
    files: tuple[FileState, ...] | None = None
    has_news: bool = False
    reported: float = 0.0
    told: Stop | None = None
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Record:
    """How an attempt ended, on its way to the disk. `follows`: the next task of its chain is to be committed with it,
    `child` once that is made. `frees` is the attempt whose slot is held until the record is there; `due` is when to try
    again what the disk refused, on the monotonic clock."""

    task: Task
    update: Update
    output_files: tuple[str, ...] = ()
    follows: bool = False
    child: Create | None = None
    frees: Running | None = None
    due: float = 0.0


class Attempts:
    """Launches attempts and listens to them. Methods may be called from any thread; it is the executors' monitor.

    `chain` is set by whoever puts the parts together, since it submits what this starts. `freed` is told when an
    attempt has really ended and its slot is free, on whatever thread that happens; what it queues is driven afterwards.
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
        self._unrecorded: deque[_Record] = deque()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Running]:
        return iter(tuple(self._running.values()))

    def __contains__(self, task_id: str) -> bool:
        """Whether an attempt of the task holds a slot, even if it has been fenced."""
        return task_id in self._running

    def launch(self, task: Task, lane: Lane) -> float:
        """The start of `task` is durable: runs it. Returns its deadline on the monotonic clock."""
        try:
            handler = self._handlers.get(task.type)
            running = self._running[task.id] = Running(self._assign(task, handler), lane, _deadline(task))
            self._executor.run(running.assignment, self)
        except (RunnerError, OSError, RuntimeError) as error:
            # The last two: no thread or descriptor is left. We are on the thread of the store, which must go on.
            self._put_back(task, lane, error if isinstance(error, RunnerError) else Unavailable(str(error)))
            return float("inf")
        return running.deadline

    def stop(self, task_id: str, attempt: int, reason: Stop) -> None:
        """Tells an attempt, if it still runs, that nobody wants it any more."""
        running = self._running.get(task_id)
        if running is None or running.is_over or running.assignment.task.attempt != attempt:
            return
        running.told = running.told or reason
        self._executor.stop(task_id, attempt, reason)

    def run_due(self, now: float) -> float:
        """Stops attempts that are out of time, makes durable what others said, records again what could not be
        recorded. `now` and the result, when there is something to do again, are on the monotonic clock."""
        due = [self._look_at(running, now) for running in self if running.told is None and not running.is_over]
        return min([*due, self._record_again(now)])

    def interrupt_all(self) -> None:
        """Requeues what still runs and will not be waited for; late results are fenced."""
        for running in self:
            if running.told is None and not running.is_over:
                running.told = Stop.DRAINED
                self._write(self._record_of(running, Ending(Outcome.INTERRUPTED), ()))

    # Monitor

    def progressed(self, assignment: Assignment, progress: Progress, /) -> None:
        """The attempt is that far."""
        running = self._current(assignment)
        if running is not None:
            running.progress = progress
            self._store.note_progress(assignment.task.id, assignment.task.attempt, progress)
            self._events.progress(assignment.task, progress)
            self._take_note(running)

    def logged(self, assignment: Assignment, level: str, message: str, /) -> None:
        """The attempt says something."""
        self._events.log(assignment.task, level, message)

    def filed(self, assignment: Assignment, files: tuple[FileState, ...], /) -> None:
        """These are the items of work inside the task now."""
        running = self._current(assignment)
        if running is not None:
            running.files = files
            self._take_note(running)

    def submitted(self, assignment: Assignment, type: str, payload: dict[str, Any], inputs: tuple[Path, ...], /) -> str:
        """The attempt hands in a child task. Raises `Fenced` if nobody wants the attempt any more."""
        assert self.chain is not None
        task = assignment.task
        if self._current(assignment) is None:
            raise Fenced(task.id, "going on without this attempt", "hand in another task")
        return self.chain.submit_child(task, type, payload, inputs)

    def ended(self, assignment: Assignment, ending: Ending, /) -> None:
        """The attempt is over and nothing of it runs any more: records that, and frees its slot."""
        running = self._running[assignment.task.id]
        running.is_over = True
        if ending.traceback:
            self._tell_of_fault(assignment.task, ending)
        if running.told is None:
            self._conclude(running, ending)
            return
        if ending.outcome is Outcome.COMPLETED:
            self._events.log(assignment.task, "warning", _late(assignment.task, running.told))
        self._discard(assignment.task, ending)
        self._free(running)

    def settle(self, haste: Haste, /) -> None:
        """The ends of some attempts, and the starts of those that come next, go to the disk together."""
        if haste is Haste.NOW:
            self._store.drive()
        else:
            self._store.drive_soon()

    # Steps

    def _conclude(self, running: Running, ending: Ending) -> None:
        task = running.assignment.task
        output_files: tuple[str, ...] = ()
        if ending.outcome is Outcome.COMPLETED and ending.has_outputs:
            try:
                output_files = self._store.blobs.publish(task.id, task.attempt, task.user_id)
            except OSError as error:
                ending = _unpublished(error)
        if ending.outcome is not Outcome.COMPLETED:
            self._discard(task, ending)
        record = self._record_of(running, ending, output_files)
        if output_files:
            # If it turns out to be fenced they are removed, and no other attempt may have published its own by then.
            record.frees = running
        self._queue(record)
        if not output_files:
            self._free(running)

    def _record_of(self, running: Running, ending: Ending, output_files: tuple[str, ...]) -> _Record:
        task = running.assignment.task
        decide = partial(
            conclude,
            attempt=task.attempt,
            ending=ending,
            options=running.assignment.handler.options,
            output_files=output_files,
            now=self._clock(),
            chance=random.random(),
            files=running.files,
        )
        follows = task.on_success is not None and ending.outcome is Outcome.COMPLETED
        return _Record(task, Update(task.id, decide), output_files, follows)

    def _write(self, record: _Record) -> None:
        self._queue(record)
        self._store.drive()

    def _queue(self, record: _Record) -> None:
        try:
            if record.follows and record.child is None:
                record.child = self._follow(record)
        except Unavailable as error:
            self._written(record, (), error)
            return
        changes = (record.update,) if record.child is None else (record.update, record.child)
        self._store.queue(changes, partial(self._written, record))

    def _follow(self, record: _Record) -> Create | None:
        assert self.chain is not None
        try:
            return self.chain.follow(record.task, record.output_files)
        except Refused as error:
            self._events.log(record.task, "error", f"the next task of the chain was refused: {error}")
            record.follows = False
            return None

    def _written(self, record: _Record, _: Sequence[Task | None], error: RunnerError | None) -> None:
        if isinstance(error, Unavailable):
            record.due = time.monotonic() + RECORD_AGAIN_SECONDS
            self._unrecorded.append(record)
            return
        if error is not None:
            self._give_up(record, error)
        elif record.output_files:
            self._store.blobs.discard_kept(record.task.id)
        if record.frees is not None:
            self._free(record.frees)
            self._store.drive()

    def _record_again(self, now: float) -> float:
        while self._unrecorded and self._unrecorded[0].due <= now:
            self._write(self._unrecorded.popleft())
        return self._unrecorded[0].due if self._unrecorded else float("inf")

    def _give_up(self, record: _Record, error: RunnerError) -> None:
        """The task went on without this attempt, or what the attempt returned cannot be kept."""
        task = record.task
        if record.output_files:
            self._store.blobs.discard_results(task.user_id, task.id)
        if record.child is not None and self.chain is not None:
            self.chain.forget(record.child)
        if isinstance(error, IllegalTransition | NotFound):
            self._events.log(task, "warning", _late(task, error))
            return
        told = TaskError(code="not_recorded", message=f"its end could not be recorded: {error}"[:2000], retryable=False)
        fail = partial(transitions.fail, attempt=task.attempt, now=self._clock(), error=told)
        self._write(_Record(task, Update(task.id, fail)))

    def _free(self, running: Running) -> None:
        task_id = running.assignment.task.id
        del self._running[task_id]
        self._freed(task_id, running.lane)

    def _look_at(self, running: Running, now: float) -> float:
        """Does what is due about a running attempt; when there will be more to do."""
        if running.deadline <= now:
            self._time_out(running)
            return float("inf")
        if running.has_news and running.reported + REPORT_SECONDS <= now:
            self._report(running)
        return min(running.deadline, running.reported + REPORT_SECONDS) if running.has_news else running.deadline

    def _time_out(self, running: Running) -> None:
        """The task goes on at once, the slot is freed when the attempt obeys."""
        task = running.assignment.task
        self.stop(task.id, task.attempt, Stop.TIMED_OUT)
        self._write(self._record_of(running, timed_out(task), ()))

    def _put_back(self, task: Task, lane: Lane, error: RunnerError) -> None:
        """The attempt could not even begin, because its handler went away or the runner is about to end. That is not
        the task's fault: it waits, and has used up nothing."""
        seconds = 0.0 if isinstance(error, ShuttingDown) else UNAVAILABLE_SECONDS
        wait = Ending(Outcome.SNOOZED, None, TaskError(code=error.code, message=str(error)), seconds)
        decide = partial(
            conclude,
            attempt=task.attempt,
            ending=wait,
            options=HandlerOptions(),
            output_files=(),
            now=self._clock(),
            chance=0.5,
        )
        self._running.pop(task.id, None)
        self._queue(_Record(task, Update(task.id, decide)))
        self._freed(task.id, lane)
        self._store.drive()  # what `freed` has queued too: whoever launches is not always about to append

    def _tell_of_fault(self, task: Task, ending: Ending) -> None:
        self._events.log(task, "error", ending.traceback)
        message = ending.error.message if ending.error else ending.outcome
        _log.warning("%s failed: %s (task %s, attempt %d; more in its log)", task.type, message, task.id, task.attempt)

    def _discard(self, task: Task, ending: Ending) -> None:
        if ending.has_outputs:
            self._store.blobs.discard(task.id, task.attempt)

    def _current(self, assignment: Assignment) -> Running | None:
        running = self._running.get(assignment.task.id)
        return running if running is not None and running.assignment is assignment and running.told is None else None

    def _take_note(self, running: Running) -> None:
        running.has_news = True
        if time.monotonic() - running.reported >= REPORT_SECONDS:
            self._report(running)

    def _report(self, running: Running) -> None:
        running.reported, running.has_news = time.monotonic(), False
        task = running.assignment.task
        report = partial(
            transitions.report,
            attempt=task.attempt,
            now=self._clock(),
            progress=running.progress,
            files=running.files,
        )
        self._store.submit((Update(task.id, report),))

    def _assign(self, task: Task, handler: Handler) -> Assignment:
        layout = self._store.layout
        return Assignment(
            task=task,
            handler=handler,
            input_paths=tuple([layout.absolute(path) for path in task.input_files]),
            private=layout.attempt(task.id, task.attempt),
            config=self._configs(task.type),
        )


def _deadline(task: Task) -> float:
    return float("inf") if task.timeout_seconds is None else time.monotonic() + task.timeout_seconds


def _late(task: Task, reason: object) -> str:
    return f"the result of attempt {task.attempt} came too late: {reason}"


def _unpublished(error: OSError) -> Ending:
    message = f"the outputs could not be kept: {error}"
    return Ending(Outcome.FAILED, error=TaskError(code="outputs_not_kept", message=message))
