"""Turns what the store says into attempts: queues what waits, starts what may start, stops what is not wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from runner import task as transitions
from runner.dispatch.attempts import Attempts, HandlerSource
from runner.dispatch.delays import Clock, Delays
from runner.dispatch.limits import Lane, Limit, LimitRules, Limits
from runner.dispatch.queue import TaskQueue
from runner.dispatch.verdict import recover
from runner.errors import RunnerError, Unavailable, UnknownHandler
from runner.events import Events
from runner.execute.assignment import Executor, Stop
from runner.handlers import Delivery
from runner.store import Store, Transition, Update
from runner.task import Status, Task, TaskError

CLOCK_SLACK = timedelta(minutes=30)
"""A clock that goes back by no more than this has been corrected, not set: what waits waits for so much longer."""
MAX_TICK_SECONDS = 1.0
"""A clock may jump, and a wake-up may be lost: everything that waits for a time is looked at this often."""


class Dispatcher:
    """Decides under one lock, acts outside of it. What begins with `on_` is called by the store's threads, the rest
    from any thread. `clock_went_back` is told when the clock was set back."""

    def __init__(
        self,
        store: Store,
        handlers: HandlerSource,
        executor: Executor,
        events: Events,
        configs: Callable[[str], Mapping[str, Any]],
        rules: LimitRules,
        weights: Mapping[str, int],
        clock: Clock,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._executor = executor
        self._clock = clock
        self._lock = threading.Lock()
        self._limits = Limits(rules)
        self._queue = TaskQueue(self._limits, weights)
        self._delays = Delays()
        self._expiries = Delays()
        self._held: set[str] = set()
        self._starting: dict[str, Lane] = {}
        self._unborn: set[str] = set()
        self._again: dict[str, Task] = {}
        self._is_draining = True
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._next_tick = float("inf")
        self._latest = clock()
        self.clock_went_back: Callable[[], None] = lambda: None
        self.attempts = Attempts(store, handlers, executor, events, configs, clock, self._freed)

    # Beginning and end

    def start(self, live: Iterable[Task]) -> None:
        """Queues what an earlier owner left unfinished, its lost attempts counted, and begins to start attempts."""
        for task in live:
            if task.status is Status.PROCESSING:
                self._store.blobs.discard_results(task.user_id, task.id)
                self._store.submit((Update(task.id, self._recovery(task)),))
            else:
                with self._lock:
                    self._take_note(task)
        with self._lock:
            self._is_draining = False
        self.run_once()

    def run(self) -> None:
        """Does what becomes due by the clock, until `stop`. Its own thread."""
        while not self._stopped.is_set():
            self._next_tick = float("inf")  # whatever becomes due while we look is looked at again
            self._next_tick = self.run_once()
            self._wake.wait(max(0.0, self._next_tick - time.monotonic()))
            self._wake.clear()

    def run_once(self) -> float:
        """Does what is due; returns when to look again, on the monotonic clock."""
        now = self._clock()
        if now < self._latest - CLOCK_SLACK:
            self._heed_clock()
        self._latest = now
        with self._lock:
            delayed = self._delays.take_due(now)
            expired = self._expiries.take_due(now)
        self._enqueue_all(delayed, self._enqueue_due)
        for task_id in expired:
            self._store.submit((Update(task_id, partial(_expire, now=now)),), partial(self._expiry_answered, task_id))
        deadline = self.attempts.run_due(time.monotonic())
        self.pump()
        return min(deadline, time.monotonic() + self._seconds_to_next(now))

    def drain(self, grace_seconds: float) -> None:
        """Starts nothing more, waits for what runs, and requeues what does not end in time."""
        with self._lock:
            was_draining, self._is_draining = self._is_draining, True
        if not was_draining:
            self._await_starts()
        self._executor.close(grace_seconds)
        self.attempts.interrupt_all()

    def stop(self) -> None:
        """Ends `run`."""
        self._stopped.set()
        self._wake.set()

    # What the store says

    def on_stage(self, news: list[Transition]) -> None:
        """Tasks are about to change: the new ones queue up, so that the start of one that finds a slot free is written
        and synced together with its creation."""
        new = [task for before, task, _ in news if before is None and _waits_for_a_slot(task)]
        if not new:
            return
        with self._lock:
            for task in new:
                if task.id not in self._held:
                    self._unborn.add(task.id)
                    self._enqueue(task)
        self._choose()

    def on_refuse(self, news: list[Transition]) -> None:
        """The disk would not have it: what was queued for it waits no longer, and what was launched is not wanted."""
        begun = [task for before, task, _ in news if before is Status.PENDING and task.status is Status.PROCESSING]
        with self._lock:
            for _, task, _ in news:
                if task.id in self._unborn:
                    self._unborn.discard(task.id)
                    self._queue.discard(task.id)
                    lane = self._starting.pop(task.id, None)
                    if lane is not None:
                        self._queue.release(lane)
        for task in begun:
            self.attempts.stop(task.id, task.attempt, Stop.CANCELLED)

    def on_append(self, news: list[Transition]) -> None:
        """Tasks have changed, and not even `kill -9` can undo it: attempts that may be repeated are launched."""
        self._launch(task for task in self._begun(news) if not self._must_not_repeat(task))

    def on_commit(self, news: list[Transition]) -> None:
        """Tasks have changed, durably."""
        stops: list[Task] = []
        with self._lock:
            for before, task, removed in news:
                if before is Status.PROCESSING:
                    self._note_end(task, stops)
                elif task.status is Status.PROCESSING:
                    self._expiries.discard(task.id)
                elif before is None and task.id in self._unborn:
                    self._unborn.discard(task.id)
                else:
                    self._take_note(task, removed)
        self._launch(self._begun(news))
        for task in stops:
            self.attempts.stop(task.id, task.attempt, Stop.CANCELLED)
        self.pump()

    def pump(self) -> None:
        """Starts whatever may start."""
        if self._choose():
            self._store.drive()

    def _choose(self) -> bool:
        """Queues the starts of what may start; whether there are any."""
        chosen: list[str] = []
        with self._lock:
            while not self._is_draining and (item := self._queue.pop()) is not None:
                self._starting[item[0]] = item[1]
                chosen.append(item[0])
        if not chosen:
            return False
        begin = partial(_begin, now=self._clock())
        for task_id in chosen:
            self._store.queue((Update(task_id, begin),), partial(self._start_answered, task_id))
        return True

    # What others ask for

    def hold(self, task_ids: Iterable[str]) -> None:
        """These tasks, about to be created, are not to start before `release`: their files are still on the way."""
        with self._lock:
            self._held.update(task_ids)

    def release(self, tasks: Iterable[Task]) -> None:
        """These tasks may start."""
        with self._lock:
            for task in tasks:
                self._held.discard(task.id)
                self._take_note(task)
        self.pump()

    def let_go(self, task_ids: Iterable[str]) -> None:
        """These tasks were not created after all."""
        with self._lock:
            self._held.difference_update(task_ids)

    def change_limits(self, rules: LimitRules, weights: Mapping[str, int]) -> None:
        """Other limits from now on; what runs goes on."""
        with self._lock:
            self._limits.change(rules)
            self._queue.change_weights(weights)
            self._queue.take_up_all()
        self.pump()

    def pending(self) -> int:
        """How many tasks wait for a slot, a time, their files, or an earlier attempt to end."""
        return len(self._queue) + len(self._delays) + len(self._held) + len(self._again)

    def pending_of(self, user_id: str) -> int:
        """How many tasks of a user wait for a slot or a time."""
        return self._queue.count_of_user(user_id) + self._delays.count_of_user(user_id)

    def at_work(self) -> int:
        """How many tasks run, or wait for nothing but a slot."""
        return len(self.attempts) + len(self._starting) + len(self._queue)

    def waiting_in_queue(self, queue: str) -> int:
        """How many tasks of a queue wait for a slot."""
        return self._queue.count_of_queue(queue)

    def standing(self, task_id: str) -> Standing:
        """Why a pending task does not run."""
        with self._lock:
            lane = self._queue.lane_of(task_id)
            return Standing(
                place=self._queue.place_of(task_id),
                blocker=None if lane is None else self._limits.blocker(lane),
                is_held=task_id in self._held,
                is_delayed=task_id in self._delays,
                follows_attempt=task_id in self._again,
            )

    # Steps

    def _await_starts(self) -> None:
        """Every start that was asked for has been launched or refused."""
        try:
            self._store.settle()
            while self._starting:
                self._store.settle()
        except RunnerError:
            return  # with this disk nothing is started any more

    def _begun(self, news: Iterable[Transition]) -> list[Task]:
        """The tasks of which an attempt has begun that is not launched, nor ended by the same news."""
        begun: dict[str, Task] = {}
        for before, task, _ in news:
            if task.id in self._starting:
                if task.status is not Status.PROCESSING:
                    begun.pop(task.id, None)
                elif before is Status.PENDING:
                    begun[task.id] = task
        return list(begun.values())

    def _launch(self, begun: Iterable[Task]) -> None:
        """Runs the attempts that have begun and were not launched before."""
        for task in begun:
            lane = self._starting.pop(task.id, None)
            if lane is not None:
                self._wake_before(self.attempts.launch(task, lane))

    def _must_not_repeat(self, task: Task) -> bool:
        try:
            return self._handlers.get(task.type).options.delivery is Delivery.AT_MOST_ONCE
        except UnknownHandler:
            return True

    def _recovery(self, task: Task) -> Callable[[Task], Task]:
        now = self._clock()
        # Without its handler nobody can say that it may start twice.
        delivery = Delivery.AT_MOST_ONCE if self._must_not_repeat(task) else Delivery.AT_LEAST_ONCE
        return lambda current: recover(current, delivery, now)

    def _note_end(self, task: Task, stops: list[Task]) -> None:
        """What was processing a task may not be that any more; the lock is held."""
        if task.status is Status.PROCESSING:
            return
        lane = self._starting.pop(task.id, None)
        if lane is not None:
            self._queue.release(lane)  # cancelled before it was launched
        elif task.id in self.attempts:
            stops.append(task)
        if task.status is Status.PENDING:
            self._enqueue(task)

    def _take_note(self, task: Task, removed: bool = False) -> None:
        """Puts a task that does not run where it belongs; the lock is held."""
        if removed or task.is_terminal:
            self._forget(task.id)
            return
        if task.expires_at is not None and not task.attempt:
            self._expiries.put(task.id, task.expires_at, task.user_id)
            self._wake_at(task.expires_at)
        if task.status is Status.PENDING and task.id not in self._held:
            self._enqueue(task)

    def _forget(self, task_id: str) -> None:
        self._queue.discard(task_id)
        self._delays.discard(task_id)
        self._expiries.discard(task_id)
        self._held.discard(task_id)
        self._again.pop(task_id, None)

    def _enqueue(self, task: Task) -> None:
        if task.id in self._starting:
            return
        if task.id in self.attempts:
            # An earlier attempt does not obey. Two attempts of a task never overlap: this one waits for it to end.
            self._again[task.id] = task
        elif (due := due_at(task, self._clock())) is not None:
            self._queue.discard(task.id)
            self._delays.put(task.id, due, task.user_id)
            self._wake_at(due)
        else:
            self._queue.push(task.id, lane_of(task))

    def _heed_clock(self) -> None:
        """It was set back: what waits for a length of time is due earlier by the new one."""
        self._enqueue_all(self._delays.ids(), self._enqueue)
        self.clock_went_back()

    def _enqueue_due(self, task: Task) -> None:
        """Its time has come, by whatever clock; the lock is held."""
        if task.id in self._delays or not is_ahead(task, self._clock()):
            self._enqueue(task)
        elif task.id not in self._starting and task.id not in self.attempts:
            self._queue.push(task.id, lane_of(task))

    def _enqueue_all(self, task_ids: Iterable[str], enqueue: Callable[[Task], None]) -> None:
        """Tasks that waited for a time, or for the disk, do so no longer."""
        tasks = [task for task in map(self._store.find, task_ids) if task is not None]
        with self._lock:
            for task in tasks:
                if task.status is Status.PENDING:
                    enqueue(task)

    def _start_answered(self, task_id: str, tasks: Sequence[Task | None], error: RunnerError | None) -> None:
        if tasks and tasks[0] is not None and tasks[0].status is Status.PROCESSING:
            return
        with self._lock:
            lane = self._starting.pop(task_id, None)
            if lane is None:
                return  # it was launched when its start was written; its ending will be told the same
            self._queue.release(lane)
        if isinstance(error, Unavailable):
            self._put_off(self._delays, task_id)  # not at once again, or this would be a busy loop
        else:
            self._enqueue_all((task_id,), self._enqueue)
            self.pump()

    def _expiry_answered(self, task_id: str, _: object, error: RunnerError | None) -> None:
        if isinstance(error, Unavailable):
            self._put_off(self._expiries, task_id)

    def _put_off(self, due: Delays, task_id: str) -> None:
        """The disk refused what was to be done about a waiting task."""
        task = self._store.recall(task_id)  # what waits is in memory, and this disk is not to be asked
        if task is not None and not task.is_terminal:
            with self._lock:
                due.put(task_id, self._clock() + timedelta(seconds=MAX_TICK_SECONDS), task.user_id)

    def _seconds_to_next(self, now: datetime) -> float:
        with self._lock:
            instants = [at for at in (self._delays.next_at(), self._expiries.next_at()) if at is not None]
        seconds = [(at - now).total_seconds() for at in instants]
        return max(0.0, min([*seconds, MAX_TICK_SECONDS]))

    def _freed(self, task_id: str, lane: Lane) -> None:
        with self._lock:
            self._queue.release(lane)
            task = self._again.pop(task_id, None)
            if task is not None:
                self._enqueue(task)
        self._choose()

    def _wake_at(self, instant: datetime) -> None:
        self._wake_before(time.monotonic() + (instant - self._clock()).total_seconds())

    def _wake_before(self, due: float) -> None:
        if due < self._next_tick:
            self._wake.set()


def due_at(task: Task, now: datetime) -> datetime | None:
    """When a pending task is due; None: now.

    A retry waits for a length of time, told as an instant. Where the clock has been set back since, that instant may be
    years away, so it is the length that counts.
    """
    if task.run_after is None or task.run_after <= now:
        return None
    if is_ahead(task, now):
        return now + max(task.run_after - _settled_at(task), timedelta(0))
    return task.run_after


def is_ahead(task: Task, now: datetime) -> bool:
    """Whether a task waits for a retry that was settled by a clock that has been set back since."""
    return task.attempt > 0 and now < _settled_at(task) - CLOCK_SLACK


def _settled_at(task: Task) -> datetime:
    """When it was settled how long a task waits. `updated_at` never goes back with the clock, and so may be later."""
    ended_at = task.attempts[-1].ended_at if task.attempts else None
    return task.updated_at if ended_at is None else ended_at


def _waits_for_a_slot(task: Task) -> bool:
    return task.status is Status.PENDING and task.run_after is None and task.expires_at is None


def lane_of(task: Task) -> Lane:
    """The lane in which a task waits."""
    return Lane(task.queue, task.priority, task.user_id, task.type)


class Standing(NamedTuple):
    """Where a pending task stands. `place` is how many go before it in its queue; `blocker` the limit that it waits
    for; it may instead be held for its files, delayed, or wait for an earlier attempt that does not end."""

    place: int | None
    blocker: Limit | None
    is_held: bool
    is_delayed: bool
    follows_attempt: bool


def _begin(task: Task, now: datetime) -> Task:
    if task.expires_at is not None and task.expires_at <= now and not task.attempt:
        return _expire(task, now)
    return transitions.start(task, now)


def _expire(task: Task, now: datetime) -> Task:
    message = f"it was not started before {task.expires_at}"
    return transitions.refuse(task, now, error=TaskError(code="expired", message=message, retryable=False))
