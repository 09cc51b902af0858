"""The door: admits submissions, brings their files in, and makes them durable tasks."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from runner import task as transitions
from runner.errors import (
    DiskFull,
    InvalidSubmission,
    KeyConflict,
    Problem,
    Refused,
    RunnerError,
    Unavailable,
    UnknownHandler,
)
from runner.intake.admission import Admission, Admitted, Arrival, Origin, Submission, same_content
from runner.intake.porter import Load, Porter
from runner.store import Create, Handover, Identity, KeyTaken, Store, Update
from runner.store.committer import Done, Ticket
from runner.store.space import is_full
from runner.task import DRAFT, Drop, Source, Status, Task, TaskError

_log = logging.getLogger(__name__)

ROOM_SECONDS = 10.0
"""How long a submission waits for the files to catch up with the journal before it is refused."""


class Gate(Protocol):
    """Whoever starts tasks, and can be asked to wait with some."""

    def hold(self, task_ids: Iterable[str]) -> None:
        """These tasks are not to start before `release`."""

    def release(self, tasks: Iterable[Task]) -> None:
        """These tasks may start."""

    def let_go(self, task_ids: Iterable[str]) -> None:
        """These tasks were not created after all."""


class Haul(NamedTuple):
    """Dropped files that were handed in. `answers` says of each its task, or why there is none; if they are `moving`
    still it waits for that. It is to be called once, and before the next are given to the porter."""

    moving: bool
    answers: Callable[[], list[Task | RunnerError]]


def _nothing() -> None:
    pass


class Door:
    """Every source comes in here. Methods may be called from any thread and are durable when they return."""

    def __init__(
        self, store: Store, admission: Admission, gate: Gate, porter: Porter, clock: Callable[[], Any]
    ) -> None:
        self._store = store
        self._admission = admission
        self._gate = gate
        self._porter = porter
        self._clock = clock

    def submit(self, submission: Submission, origin: Origin) -> Task:
        """One submission's task; the earlier one if its unique key and content are known. Raises `RunnerError`."""
        self._check_room()
        admitted = self._admit(submission, origin)
        self._bring_in(admitted)
        try:
            task = _one(self._store.commit((Create(admitted.task),)))
        except KeyTaken as taken:
            self._discard(admitted)
            task = _settled(admitted.task, taken.task)
        except RunnerError:
            self._discard(admitted)
            raise
        self._remove_moved(admitted.arrivals)
        return task

    def submit_soon(self, submission: Submission, origin: Origin, done: Done) -> None:
        """The same for a submission without files, not waiting: `done` is told on the thread that has synced.
        Raises `Refused` at once."""
        self._hand_in(submission, origin, done, self._store.submit)

    def queue(self, submission: Submission, origin: Origin, done: Done) -> None:
        """The same for who has several at hand: they are committed at the latest after `commit_queued`."""
        self._hand_in(submission, origin, done, self._store.queue)

    def commit_queued(self) -> None:
        """Has the committer's thread commit what was queued: it is woken once for all of it."""
        self._store.submit(())

    def commit_here(self) -> None:
        """The same on this thread if the disk is quick. It may be the main one if no signal's handler raises in it."""
        self._store.drive_here()

    def _hand_in(
        self, submission: Submission, origin: Origin, done: Done, hand_in: Callable[[Sequence[Create], Done], None]
    ) -> None:
        assert not origin.inputs, "bringing files in takes time"
        self._check_room()
        admitted = self._admit(submission, origin)

        def settle(tasks: Sequence[Task | None], error: RunnerError | None) -> None:
            if isinstance(error, KeyTaken):
                try:
                    tasks, error = (_settled(admitted.task, error.task),), None
                except KeyConflict as conflict:
                    error = conflict
            done(tasks, error)

        hand_in((Create(admitted.task),), settle)

    def submit_many(self, pairs: Sequence[tuple[Submission, Origin]]) -> list[Task]:
        """One durable commit: all of them become tasks, or none. Faults are told with their place: `/3/payload/x`."""
        self._check_room()
        admitted = self._admit_numbered(pairs)
        known = self._find_known(admitted)
        try:
            for number, one in enumerate(admitted):
                if one.arrivals and one.task.id not in known:
                    self._bring_in_numbered(number, one)
            known, made = self._commit_all(admitted, known)
        except RunnerError:
            self._discard_all(admitted)
            raise
        self._discard_all(one for one in admitted if one.task.id in known)
        for one in admitted:
            self._remove_moved(one.arrivals)
        holders = (known.get(one.task.id, one.task) for one in admitted)
        return [made.get(holder.id, holder) for holder in holders]

    def take(self, pairs: Sequence[tuple[Submission, Origin]]) -> list[Task | RunnerError]:
        """Dropped files, each on its own, in one durable commit: recorded first, renamed second, started last."""
        return self.take_ahead(pairs).answers()

    def take_ahead(self, pairs: Sequence[tuple[Submission, Origin]], meanwhile: Callable[[], None] = _nothing) -> Haul:
        """The same, but that the porter may still rename some when this returns; they start when it is asked for the
        answers. `meanwhile` is called once, while they are on their way to the disk, or before they wait for room."""
        if not self._store.writer.has_room:
            # What was taken before is recorded, and may start: its end may even be what makes room.
            meanwhile()
            meanwhile = _nothing
        try:
            self._check_room()
        except DiskFull as error:
            meanwhile()
            refused: list[Task | RunnerError] = [error] * len(pairs)
            return Haul(False, lambda: refused)
        found = [self._bring_in_document(one) for one in self._admit_each(pairs)]
        admitted = {one.task.id: one for one in found if isinstance(one, Admitted)}
        self._gate.hold(admitted)
        answers = self._record_all(list(admitted.values()), meanwhile)
        recorded = [one.task for task_id, one in admitted.items() if answers[task_id] is one.task]
        carrying = self._carry_ahead(recorded)
        under_way = {task.id for task in carrying}
        self._rename_all([task for task in recorded if task.id not in under_way], answers)
        return Haul(bool(carrying), partial(self._finish, found, carrying, answers))

    def _carry_ahead(self, tasks: Iterable[Task]) -> Sequence[Task]:
        """Those whose files the porter is giving to them, because so many are to be taken at once."""
        plain = [task for task in tasks if task.drop is not None and task.drop.sidecar is None]
        return plain if self._porter.carry_ahead([self._load_of(task) for task in plain]) else ()

    def _finish(
        self, found: Sequence[Admitted | RunnerError], carrying: Sequence[Task], answers: dict[str, Task | RunnerError]
    ) -> list[Task | RunnerError]:
        carried = self._porter.carried() if carrying else ()
        done = {task.id for task, is_done in zip(carrying, carried, strict=False) if is_done}
        self._release([task for task in carrying if task.id in done])
        self._rename_all([task for task in carrying if task.id not in done], answers)
        return [answers[one.task.id] if isinstance(one, Admitted) else one for one in found]

    def _rename_all(self, tasks: Sequence[Task], answers: dict[str, Task | RunnerError]) -> None:
        for task in tasks:
            answers[task.id] = self._rename(task)
        self._release([task for task in tasks if answers[task.id] is task])

    def _release(self, tasks: Sequence[Task]) -> None:
        if tasks:
            self._gate.release(tasks)

    def take_again(self, live: Iterable[Task]) -> None:
        """Does the renames that a crash prevented. Before anything starts."""
        for task in live:
            if task.drop is None or task.status is not Status.PENDING or task.attempt:
                continue
            if not _is_dropped_file(task.drop) or self._is_taken(task):
                self._remove_leftover(task, task.drop)
            else:
                self._rename(task)

    def add_input(self, task: Task, arrival: Arrival) -> Task:
        """A draft gets one more file."""
        return self._receive(task, arrival, transitions.receive_input)

    def replace_inputs(self, task: Task, arrival: Arrival) -> Task:
        """A draft gets a file in the place of those that it has."""
        replaced = self._receive(task, arrival, transitions.replace_inputs)
        for path in task.input_files:
            self._store.files.try_remove(self._store.layout.absolute(path))
        return replaced

    def drop_input(self, task: Task, path: str) -> Task:
        """A draft loses one of its files."""
        place = self._store.layout.absolute(path)
        size, now = os.stat(place).st_size if os.path.exists(place) else 0, self._clock()
        change = Update(task.id, lambda current: transitions.drop_input(current, path, size, now))
        changed = _one(self._store.commit((change,)))
        self._store.files.try_remove(place)
        return changed

    def _receive(self, task: Task, arrival: Arrival, move: Callable[[Task, str, str, int, datetime], Task]) -> Task:
        if task.status not in DRAFT:
            # Decided before the file moves; the commit below decides for good.
            return move(task, "", "", 0, self._clock())
        self._check_room()
        place = self._admission.place(task, arrival)
        target = self._store.layout.absolute(place)
        try:
            self._store.blobs.hand_over(_source_of(arrival), target, _kept(arrival.mode))
            size, now = os.stat(target).st_size, self._clock()
        except OSError as error:
            raise _unreadable(error) from error
        change = Update(task.id, lambda current: move(current, place, arrival.name, size, now))
        try:
            changed = _one(self._store.commit((change,)))
        except RunnerError:
            self._store.files.try_remove(target)
            raise
        self._remove_moved((arrival,))
        return changed

    def begin(self, task: Task, payload: dict[str, Any] | None) -> Task:
        """A draft is complete and joins the queue."""
        final, now = task.payload if payload is None else payload, self._clock()
        if task.status in DRAFT:
            self._admission.check_start(task, final)
        return _one(self._store.commit((Update(task.id, lambda current: transitions.submit(current, final, now)),)))

    def begin_again(self, task: Task, payload: dict[str, Any]) -> Task:
        """A failed or cancelled task joins the queue again, with another payload."""
        self._admission.check_start(task, payload)
        now = self._clock()
        return _one(
            self._store.commit((Update(task.id, lambda current: transitions.retry(current, now, payload=payload)),))
        )

    # Chain

    def follow(self, parent: Task, output_files: tuple[str, ...]) -> Create:
        """The change that makes a completed task's `on_success` a task, with the parent's outputs as its inputs."""
        assert parent.on_success is not None
        wanted = parent.on_success
        submission = Submission(type=wanted.type, payload=wanted.payload, on_success=wanted.on_success)
        arrivals = tuple(
            Arrival(Path(self._store.layout.absolute(path)), path.rpartition("/")[2]) for path in output_files
        )
        admitted = self._admission.admit_next(submission, _child_of(parent, arrivals), self._clock())
        self._bring_in(admitted)
        return Create(admitted.task)

    def forget(self, child: Create) -> None:
        """What `follow` returned was not committed: its files go."""
        self._store.files.remove_tree(self._store.layout.upload(child.task.user_id, child.task.id))

    def submit_child(self, parent: Task, type: str, payload: dict[str, Any], inputs: tuple[Path, ...]) -> str:
        """A handler hands in another task."""
        arrivals = tuple(Arrival(path, path.name) for path in inputs)
        return self.submit(Submission(type=type, payload=payload), _child_of(parent, arrivals)).id

    # Steps

    def _check_room(self) -> None:
        if self._store.space.shortage is not None:
            raise DiskFull(f"nothing is accepted while {self._store.space.shortage}")
        if not self._store.writer.wait_for_room(ROOM_SECONDS):
            raise DiskFull("the task files cannot be written; see the log")

    def _admit(self, submission: Submission, origin: Origin) -> Admitted:
        return self._admission.admit(submission, origin, self._clock())

    def _admit_numbered(self, pairs: Sequence[tuple[Submission, Origin]]) -> list[Admitted]:
        admitted: list[Admitted] = []
        with _pointing_at(admitted):
            for submission, origin in pairs:
                admitted.append(self._admission.admit(submission, origin, self._clock(), ahead=len(admitted)))
        return admitted

    def _find_known(self, admitted: Iterable[Admitted]) -> dict[str, Task]:
        """For each task of a batch that is there already, by its unique key, that one. Raises `KeyConflict`."""
        known: dict[str, Task] = {}
        first: dict[tuple[str, str], Task] = {}
        for task in (one.task for one in admitted if one.task.unique_key is not None):
            key = (task.user_id, str(task.unique_key))
            holder = first.get(key) or self._store.find_key(*key)
            if holder is None or _has_let_go(holder, task):
                first[key] = task
            else:
                known[task.id] = _settled(task, holder)
        return known

    def _commit_all(
        self, admitted: Sequence[Admitted], known: dict[str, Task]
    ) -> tuple[dict[str, Task], Mapping[str, Task]]:
        """Those that are there already now, and those that have been made, by the ids that were given to them."""
        while True:
            wanted = [one.task for one in admitted if one.task.id not in known]
            try:
                made = self._store.commit([Create(task) for task in wanted])
            except KeyTaken:
                known = self._find_known(admitted)  # somebody else has just been quicker with one of the keys
            else:
                return known, {task.id: task for task in made if task is not None}

    def _bring_in(self, admitted: Admitted) -> None:
        """The files are the task's before any record says so; a crash in between leaves files that nobody names. Those
        that are to be moved stay where they are, too, until there is a record: it may be refused."""
        try:
            for arrival, place in zip(admitted.arrivals, admitted.places, strict=True):
                target = self._store.layout.absolute(place)
                self._store.blobs.hand_over(_source_of(arrival), target, _kept(arrival.mode))
        except OSError as error:
            self._discard(admitted)
            raise _unreadable(error) from error

    def _remove_moved(self, arrivals: Iterable[Arrival]) -> None:
        """There is a task now that has these files."""
        for path in (arrival.path for arrival in arrivals if arrival.mode is Handover.MOVE):
            if not self._store.files.try_remove(str(path)):
                _log.warning("%s was taken and cannot be removed", path)

    def _bring_in_numbered(self, number: int, admitted: Admitted) -> None:
        with _pointing_at(range(number)):
            self._bring_in(admitted)

    def _admit_each(self, pairs: Sequence[tuple[Submission, Origin]]) -> Iterator[Admitted | RunnerError]:
        """Each on its own; neighbours with the same submission are checked together, and all are counted together."""
        ahead: Counter[str] = Counter()
        for _, alike in groupby(pairs, lambda pair: (id(pair[0]), pair[1].user_id)):
            (submission, origin), *others = alike
            origins = [origin, *(origin for _, origin in others)]
            yield from self._admission.admit_alike(submission, origins, self._clock(), ahead)

    def _bring_in_document(self, admitted: Admitted | RunnerError) -> Admitted | RunnerError:
        """The files that a dropped document names are linked; the document itself is what is taken."""
        if isinstance(admitted, Admitted) and admitted.task.drop and not _is_dropped_file(admitted.task.drop):
            try:
                self._bring_in(admitted)
            except RunnerError as error:
                return error
        return admitted

    def _record_all(self, admitted: Sequence[Admitted], meanwhile: Callable[[], None]) -> dict[str, Task | RunnerError]:
        """By the id that each was given: the task once it is recorded, or what there is instead."""
        plain = [one for one in admitted if one.task.unique_key is None]
        groups = [[one] for one in admitted if one.task.unique_key is not None]
        return self._record_groups([plain, *groups] if plain else groups, meanwhile)

    def _record_groups(
        self, groups: Iterable[Sequence[Admitted]], meanwhile: Callable[[], None] = _nothing
    ) -> dict[str, Task | RunnerError]:
        recording = [(group, self._record(group)) for group in groups]
        self._store.drive()
        meanwhile()
        answers: dict[str, Task | RunnerError] = {}
        for group, ticket in recording:
            answers |= self._await_record(group, ticket)
        return answers

    def _record(self, admitted: Sequence[Admitted]) -> Ticket:
        ticket = Ticket()
        try:
            self._store.queue([Create(one.task) for one in admitted], ticket)
        except RunnerError as error:
            ticket((), error)
        return ticket

    def _await_record(self, admitted: Sequence[Admitted], ticket: Ticket) -> dict[str, Task | RunnerError]:
        try:
            ticket.wait()
        except RunnerError as error:
            if len(admitted) > 1 and not isinstance(error, Unavailable):
                # One of them cannot be kept, which is no fault of the others.
                return self._record_groups([one] for one in admitted)
            return {one.task.id: self._forgo(one, error) for one in admitted}
        return {one.task.id: one.task for one in admitted}

    def _forgo(self, admitted: Admitted, error: RunnerError) -> Task | RunnerError:
        """It is not recorded; there may be another one instead."""
        self._let_go(admitted)
        return self._take_known(admitted, error.task) if isinstance(error, KeyTaken) else error

    def _load_of(self, task: Task) -> Load:
        drop = task.drop
        assert drop is not None
        target = self._store.layout.absolute(task.input_files[0])
        return Load(self._path_of(drop), target, drop.device, drop.inode, drop.size, drop.mtime_ns)

    def _let_go(self, admitted: Admitted) -> None:
        """It was not recorded: neither it nor what was brought in for it is there."""
        self._gate.let_go((admitted.task.id,))
        self._discard(admitted)

    def _take_known(self, admitted: Admitted, holder: Task) -> Task | RunnerError:
        """A document that was dropped before: the task that it made."""
        try:
            task = _settled(admitted.task, holder)
        except KeyConflict as error:
            return error
        assert admitted.task.drop is not None
        try:
            self._remove_taken(admitted.task.drop)
        except OSError as error:
            return Refused(f"{admitted.task.drop.path} is task {task.id}, and cannot be removed: {error.strerror}")
        return task

    def _rename(self, task: Task) -> Task | RunnerError:
        """The dropped file goes to its task; what goes wrong with that is the task's failure, with a reason."""
        assert task.drop is not None
        try:
            if _is_dropped_file(task.drop):
                self._take_file(task, task.drop)
            self._remove_taken(task.drop)
        except OSError as error:
            return self._refuse(task, f"{task.drop.path} could not be taken: {error.strerror or error}")
        return task

    def _take_file(self, task: Task, drop: Drop) -> None:
        target = self._store.layout.absolute(task.input_files[0])
        wanted = Identity(drop.device, drop.inode, drop.size, drop.mtime_ns)
        self._store.blobs.take(self._path_of(drop), target, wanted)

    def _is_taken(self, task: Task) -> bool:
        return os.path.exists(self._store.layout.absolute(task.input_files[0]))

    def _remove_leftover(self, task: Task, drop: Drop) -> None:
        """The document or sidecar that was about to be removed; never one that was dropped since."""
        if drop.sidecar is None:
            return
        path = self._store.layout.absolute(drop.sidecar)
        try:
            came_at = os.lstat(path).st_ctime
        except FileNotFoundError:
            return
        if came_at <= task.created_at.timestamp() and not self._store.files.try_remove(path):
            _log.warning("%s was taken before a crash, and cannot be removed", path)

    def _remove_taken(self, drop: Drop) -> None:
        if drop.sidecar is not None:
            self._store.files.remove(self._store.layout.absolute(drop.sidecar))

    def _path_of(self, drop: Drop) -> str:
        path = drop.path if drop.raw is None else os.fsdecode(unquote_to_bytes(drop.raw))
        return self._store.layout.absolute(path)

    def _refuse(self, task: Task, message: str) -> Task | RunnerError:
        """The task fails; if not even that can be recorded, why. It does not start then, and recovery looks again."""
        now, reason = self._clock(), TaskError(code="input_missing", message=message, retryable=False)
        refusal = Update(task.id, lambda current: transitions.refuse(current, now, error=reason))
        try:
            return _one(self._store.commit((refusal,)))
        except RunnerError as error:
            return error

    def _discard_all(self, admitted: Iterable[Admitted]) -> None:
        for one in admitted:
            self._discard(one)

    def _discard(self, admitted: Admitted) -> None:
        if admitted.arrivals:
            self._store.files.remove_tree(self._store.layout.upload(admitted.task.user_id, admitted.task.id))


def _one(tasks: Sequence[Task | None]) -> Task:
    return _there(tasks[0])


def _there(task: Task | None) -> Task:
    assert task is not None
    return task


def _settled(wanted: Task, holder: Task) -> Task:
    """The task that holds the key, if it is the one that was wanted. Raises `KeyConflict`."""
    assert wanted.unique_key is not None
    if same_content(wanted, holder):
        return holder
    raise KeyConflict(wanted.unique_key, holder.id)


def _has_let_go(holder: Task, wanted: Task) -> bool:
    return holder.unique_until is not None and holder.unique_until <= wanted.created_at


@contextmanager
def _pointing_at(done: Sized) -> Iterator[None]:
    """What is found wrong inside is told as a fault of the submission of a batch that comes after those `done`."""
    try:
        yield
    except InvalidSubmission as error:
        number = len(done)
        problems = tuple(Problem(f"/{number}{problem.pointer}", problem.message) for problem in error.problems)
        raise InvalidSubmission(problems) from error
    except UnknownHandler as error:
        raise UnknownHandler(error.type, f"/{len(done)}/type: {error}") from error


def _source_of(arrival: Arrival) -> str:
    """A link is the file that it leads to: a second name for the link itself would lead nowhere, or elsewhere."""
    return str(arrival.path) if arrival.mode is Handover.COPY else os.path.realpath(arrival.path)


def _is_dropped_file(drop: Drop) -> bool:
    """Whether the drop is an input, and not a document that names some."""
    return drop.sidecar != drop.path


def _kept(mode: Handover) -> Handover:
    return Handover.LINK if mode is Handover.MOVE else mode


def _child_of(parent: Task, arrivals: tuple[Arrival, ...]) -> Origin:
    return Origin(Source.CHAIN, parent.user_id, arrivals, parent_id=parent.id, batch_id=parent.batch_id)


def _unreadable(error: OSError) -> RunnerError:
    if is_full(error):
        return DiskFull(f"there is no room for the file: {error.strerror}")
    return InvalidSubmission((Problem("/inputs", f"{error.filename}: {error.strerror}"),))
