"""The commit point: it turns changes into durable news, a batch at a time.

Groups of changes come in from any thread into one queue. One thread at a time takes all that wait as one batch, applies
them in order to what is staged and appends the records to the journal; so changes need no lock of their own and always
see the latest version. It is whichever thread has just queued something and calls `drive`, if no other one is at it:
to wake a thread and to be woken by it costs as much as all the rest (flat combining, Hendler et al. 2010). Who cannot
afford that calls `submit`, and the committer's own thread does it.

The syncer then makes one `fdatasync` for all that has been appended meanwhile, publishes it to memory, tells the
listener once a batch and acknowledges each group. Where nothing else is on its way to the disk, whoever leads may do
that itself (`drive_here`), and no thread has to be woken. Nobody sees a change, and nobody is told of it, before the
sync has returned.

The listener alone hears of a batch before it is written (`Listener.staged`), so that what follows from it at once, the
start of a task that has just been created, is written and synced with it.

One exception, which costs no promise and saves every task the wait for a sync: the start of an attempt is told when its
record is *written* (`Listener.appended`). `kill -9` cannot undo that; a power cut can, and then the attempt has never
been, which is what at-least-once means. At-most-once handlers wait for the sync. A task that runs before its creation
is durable can be looked at by its id (`find_unpublished`), which only its handler knows.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum, StrEnum, auto
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, Protocol

from runner.errors import Degraded, DiskFull, RunnerError, ShuttingDown
from runner.store.changes import Change, Stage, State, Transition, Unpublished, apply
from runner.store.journal import Journal, Kind
from runner.store.quickness import Quickness
from runner.store.space import Space, is_full
from runner.task import Task

MAX_BATCH = 1024
MAX_TURNS = 4
"""So many batches a thread appends for others, and then leaves the rest to the committer's."""

SOON_SECONDS: Final = 0.001
"""How long an end may wait for others, to be appended together with them."""
_MAIN_THREAD: Final = threading.main_thread().ident


class Reach(Enum):
    """How far a leader brings a batch: it is appended to the `JOURNAL` and left to the syncer, or all the way, to the
    `DISK` and to those who wait for it."""

    JOURNAL = auto()
    DISK = auto()


class Durability(StrEnum):
    """What an acknowledgement survives. `FULL`: a power cut. `PROCESS`: `kill -9`, but not a power cut."""

    FULL = "full"
    PROCESS = "process"


Done = Callable[[Sequence[Task | None], RunnerError | None], None]
"""Told once how a group ended: what each change made of its task, or why none of them happened."""


class Group(NamedTuple):
    """Changes that happen together or not at all. `done` is called on whatever thread has synced, and must be quick."""

    changes: Sequence[Change]
    done: Done | None = None


class Ticket:
    """A `done` that a thread can wait for."""

    __slots__ = ("_error", "_ready", "_tasks")

    def __init__(self) -> None:
        self._ready = threading.Lock()
        self._ready.acquire()
        self._tasks: Sequence[Task | None] = ()
        self._error: RunnerError | None = None

    def __call__(self, tasks: Sequence[Task | None], error: RunnerError | None) -> None:
        """How the group ended."""
        self._tasks, self._error = tasks, error
        self._ready.release()

    def wait(self) -> Sequence[Task | None]:
        """Blocks until the group is durable, then returns its tasks; raises why it was refused. Once only."""
        self._ready.acquire()
        if self._error is not None:
            raise self._error
        return self._tasks


class Listener(Protocol):
    """Who is told of transitions; every method must be quick."""

    def staged(self, transitions: list[Transition]) -> None:
        """They are about to be written, unless the disk refuses. What is queued here is written and synced with them,
        but for what many others queue at the same time. On the thread that writes."""

    def appended(self, transitions: list[Transition]) -> None:
        """They are written, and survive the death of the process, but not yet a power cut. On the thread that wrote."""

    def refused(self, transitions: list[Transition]) -> None:
        """They have not happened after all. On the thread that found out."""

    def committed(self, transitions: list[Transition]) -> None:
        """They are durable and visible. On the thread that has synced; with durability `process`, that wrote."""


class _Batch(NamedTuple):
    """What has been appended together, and how each of its groups ended if the sync goes well."""

    stage: Stage
    answers: list[tuple[Done | None, Sequence[Task | None], RunnerError | None]]

    def apply(self, groups: Iterable[Group]) -> None:
        """Stages what they change, each group on its own."""
        stage, answers = self.stage, self.answers
        for changes, done in groups:
            tasks, refusal = apply(stage, changes)
            answers.append((done, tasks, refusal))


class Committer:
    """Owns the journal. `run` and `run_syncer` are its two threads; the rest may be called from any."""

    def __init__(
        self, journal: Journal, state: State, space: Space, durability: Durability, listener: Listener
    ) -> None:
        self._journal = journal
        self._state = state
        self._space = space
        self._durability = durability
        self._listener = listener
        self._queue: SimpleQueue[Group] = SimpleQueue()
        self._calls: SimpleQueue[float] = SimpleQueue()
        self._will_look = False
        self._appended: SimpleQueue[_Batch | threading.Event | None] = SimpleQueue()
        self._published: SimpleQueue[Stage] = SimpleQueue()
        self._unpublished = Unpublished(state)
        self._leading = threading.Lock()
        self.quickness = Quickness()
        self._handed_over = 0
        self._settled = 0
        self._journal_lock = threading.Lock()
        self._fault: BaseException | None = None
        self.failure: OSError | None = None
        self.closed = False
        self._ended = False

    def submit(self, group: Group) -> None:
        """Has the committer's thread commit a group; returns at once. Groups of one thread are applied in the order of
        their submission. Raises `ShuttingDown` after `stop`."""
        self.queue(group)
        self._calls.put(0)

    def queue(self, group: Group) -> None:
        """The same, when somebody calls `drive` afterwards."""
        if self.closed:
            raise ShuttingDown("the store is closed")
        self._queue.put(group)
        if self._ended:
            self._refuse_rest()

    def drive(self, reach: Reach = Reach.JOURNAL) -> None:
        """Appends what is queued, unless another thread is doing that. `Reach.DISK` is for who waits for the disk then:
        it is synced here too, if nothing else is on its way there and the disk was quick lately. The listener is told
        on this thread, so no lock may be held that it takes. The main thread leaves it to the committer's: a signal
        could interrupt it halfway. So does a handler that has called itself many times: the interpreter's limit
        could."""
        if threading.get_ident() == _MAIN_THREAD or _is_deep():
            self._calls.put(0)
            return
        for _ in range(MAX_TURNS):
            # Looked at again after every turn: who came meanwhile has found the lock taken, and relies on us.
            if self._queue.empty() or not self._leading.acquire(blocking=False):
                return
            self._lead(reach)
            reach = Reach.JOURNAL
        self._calls.put(0)

    def drive_here(self) -> None:
        """`drive` to the disk for a thread that has more to do, and so waits for nothing but a disk that was quick
        lately. It may be the main one if no handler of a signal raises there."""
        if self.quickness and self._leading.acquire(blocking=False):
            self._lead(Reach.DISK)
            if self._queue.empty():
                return
        self._calls.put(0)

    def drive_soon(self) -> None:
        """What is queued is appended by somebody's `drive`, or in a millisecond by the committer's thread."""
        if not self._will_look:
            self._will_look = True
            self._calls.put(SOON_SECONDS)

    def find_unpublished(self, task_id: str) -> Task | None:
        """The version of a task that is written and not durable yet; its attempt may run already."""
        return self._unpublished.own(task_id)

    def rotate(self) -> int:
        """Seals the segment, if there is anything in it, once all that it says is published; returns the number of the
        newest sealed one. Blocks. Raises `OSError`, and the segment goes on; `ShuttingDown` after `stop`."""
        try:
            with self._leading:
                if self._ended:
                    raise ShuttingDown("the store is closed")
                self._wait_for_syncer()
                return self._journal.seal()
        finally:
            self._calls.put(0)

    def stop(self) -> None:
        """Commits what was submitted and ends `run` and `run_syncer`."""
        self.closed = True
        self._calls.put(0)

    def degrade(self, error: OSError) -> None:
        """The disk cannot be trusted any more: nothing is changed from here on. From any thread."""
        with self._journal_lock:
            self.failure = self.failure or error

    def run(self) -> None:
        """Appends what `drive` leaves to it until `stop`."""
        while self.run_once():
            pass
        with self._leading:
            self._ended = True
        self._refuse_rest()
        self._appended.put(None)

    def run_once(self) -> bool:
        """Waits for a call and appends what is queued then. False when asked to stop."""
        patience = self._calls.get()
        if patience:
            with suppress(Empty):
                self._calls.get(timeout=patience)
        self._will_look = False
        closed = self.closed
        while self._fault is None and not self._queue.empty():
            self._leading.acquire()
            self._lead()
        if self._fault is not None:
            raise self._fault
        return not closed

    def run_syncer(self) -> None:
        """Syncs and publishes what has been appended, until `stop`."""
        while self._sync_once():
            pass

    # On the thread that leads; it holds `_leading`

    def _lead(self, reach: Reach = Reach.JOURNAL) -> None:
        """Appends one batch and lets go of the lead."""
        try:
            if self._ended:
                self._refuse_rest()
            elif self._fault is None and (groups := self._next_batch()):
                self._append(groups, reach)
        except BaseException as error:  # noqa: BLE001 - whoever leads may be anybody; it must end the process all the same
            self._fault = error
            self._calls.put(0)
        finally:
            self._leading.release()

    def _next_batch(self) -> list[Group]:
        groups: list[Group] = []
        with suppress(Empty):
            while len(groups) < MAX_BATCH:
                groups.append(self._queue.get_nowait())
        return groups

    def _append(self, groups: Sequence[Group], reach: Reach) -> None:
        self._forget_published()
        stage = Stage(self._unpublished)
        batch = _Batch(stage, [])
        batch.apply(groups)
        self._listener.staged(stage.transitions)
        batch.apply(self._next_batch())
        if self._handed_over != self._settled or not self.quickness:
            # What was appended before is published first; and nobody else can append while we sync.
            reach = Reach.JOURNAL
        failure = self._write(batch, reach)
        if failure is not None:
            self._refuse(batch, failure)
            return
        if stage.records:
            self._unpublished.add(stage)
            self._listener.appended(stage.transitions)
        if self._durability is Durability.PROCESS:
            self._publish([batch])
        elif reach is Reach.DISK:
            self._settle([batch])

    def _refuse(self, batch: _Batch, failure: RunnerError) -> None:
        """Answers each group with the failure, even one that was refused for a reason of its own: that reason may be
        another group's change, which has not happened."""
        self._listener.refused(batch.stage.transitions)
        for done, _, _ in batch.answers:
            if done is not None:
                done((), failure)

    def _forget_published(self) -> None:
        while not self._published.empty():
            self._unpublished.forget(self._published.get())

    def _write(self, batch: _Batch, reach: Reach) -> RunnerError | None:
        """Appends the records, and hands the batch on unless it is synced here. Or says why not: none of it is in the
        journal."""
        records = batch.stage.records
        with self._journal_lock:
            failure = self._append_records(records) if records else None
            if failure is None and self._durability is Durability.FULL and reach is Reach.JOURNAL:
                # Under the lock: what is in the segment must be in this queue too when the syncer has to repeat it.
                self._handed_over += 1
                self._appended.put(batch)
        return failure

    def _append_records(self, records: Sequence[tuple[Kind, bytes]]) -> RunnerError | None:
        if self.failure is not None:
            return _degraded(self.failure)
        try:
            began = self.quickness.began()
            self._journal.append(records)
            if self._durability is Durability.PROCESS:
                self.quickness.note(began)
        except OSError as error:
            return self._append_again(records, error)
        return None

    def _append_again(self, records: Sequence[tuple[Kind, bytes]], error: OSError) -> RunnerError | None:
        """On a full disk the ballast is given up, so that what runs can still be recorded."""
        if self._journal.try_undo() and is_full(error):
            self._space.release_ballast()
            try:
                self._journal.append(records)
            except OSError as second:
                error = second
                if self._journal.try_undo() and is_full(error):
                    return DiskFull(f"the disk is full: {error.strerror}")
            else:
                return None
        self.failure = error
        return _degraded(error)

    def _refuse_rest(self) -> None:
        """Answers what came in while the committer ended. On its thread, or on that of a latecomer."""
        refusal = ShuttingDown("the store is closed")
        with suppress(Empty):
            while True:
                done = self._queue.get_nowait().done
                if done is not None:
                    done((), refusal)

    def _wait_for_syncer(self) -> None:
        if self._durability is Durability.FULL:
            idle = threading.Event()
            self._appended.put(idle)
            idle.wait()

    # On the syncer's thread, or on the one that leads: in durability `process`, and where it reaches to the disk

    def _sync_once(self) -> bool:
        batches, control = self._next_appended()
        if batches:
            self._settle(batches)
            self._settled += len(batches)
        if isinstance(control, threading.Event):
            control.set()
            return True
        return bool(batches) or control is not None

    def _settle(self, batches: list[_Batch]) -> None:
        """Syncs, and tells everybody how it went."""
        failure = self._sync(batches)
        if failure is None:
            self._publish(batches)
            return
        for batch in batches:
            self._refuse(batch, failure)

    def _next_appended(self) -> tuple[list[_Batch], threading.Event | None]:
        batches: list[_Batch] = []
        item = self._appended.get()
        try:
            while isinstance(item, _Batch):
                batches.append(item)
                item = self._appended.get_nowait()
        except Empty:
            return batches, None
        if item is None and batches:
            self._appended.put(None)
        return batches, item

    def _sync(self, batches: list[_Batch]) -> RunnerError | None:
        """Makes all that was appended durable, or says why not."""
        if self.failure is None and any(batch.stage.records for batch in batches):
            began = self.quickness.began()
            try:
                self._journal.sync()
                self.quickness.note(began)
            except OSError as error:
                with self._journal_lock:
                    self._sync_again(batches, error)
        return None if self.failure is None else _degraded(self.failure)

    def _sync_again(self, batches: list[_Batch], error: OSError) -> None:
        """After an error the kernel has marked the pages clean, so the descriptor must never be trusted again: one more
        try, with everything that was not synced in a new segment, what the committer has appended since included."""
        while not self._appended.empty():
            item = self._appended.get()
            if not isinstance(item, _Batch):
                # The committer puts nothing behind a question or its end: the order is kept.
                self._appended.put(item)
                break
            batches.append(item)
        if is_full(error):
            self._space.release_ballast()
        try:
            self._journal.repeat()
            for batch in batches:
                self._journal.append(batch.stage.records)
            self._journal.sync()
        except OSError as second:
            self.failure = second

    def _publish(self, batches: Sequence[_Batch]) -> None:
        stages = [batch.stage for batch in batches if batch.stage.records]
        if stages:
            first, *rest = stages
            documents, users, keys, news = first.documents, first.users, first.keys, first.transitions
            for stage in rest:
                documents, users, keys = documents | stage.documents, users | stage.users, keys | stage.keys
                news = news + stage.transitions
            self._state.publish(documents, users, keys)
            for stage in stages:
                self._published.put(stage)
            self._listener.committed(news)
        for batch in batches:
            for done, tasks, error in batch.answers:
                if done is not None:
                    done(tasks, error)


def _is_deep() -> bool:
    """Whether half of the calls that the interpreter allows are under way on this thread."""
    try:
        sys._getframe(sys.getrecursionlimit() // 2)
    except ValueError:
        return False
    return True


def _degraded(error: OSError) -> Degraded:
    return Degraded(f"the disk failed, and nothing is changed until the runner is started again: {error}")
