"""The door: admits submissions, brings their files in, and makes them durable tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from runner import task as transitions
from runner.errors import DiskFull, InvalidSubmission, KeyConflict, Problem, Refused, RunnerError
from runner.intake.admission import Admission, Admitted, Arrival, Origin, Submission, same_content
from runner.store import Change, Create, Handover, Identity, KeyTaken, Store, Update
from runner.store.committer import Done, Ticket
from runner.task import DRAFT, Drop, Source, Status, Task, TaskError

ROOM_SECONDS = 10.0
"""How long a submission waits for the files to catch up with the journal before it is refused."""

_log = logging.getLogger(__name__)


class Gate(Protocol):
    """Whoever starts tasks, and can be asked to wait with some."""

    def hold(self, task_ids: Iterable[str]) -> None:
        """These tasks are not to start before `release`."""

    def release(self, tasks: Iterable[Task]) -> None:
        """These tasks may start."""

    def let_go(self, task_ids: Iterable[str]) -> None:
        """These tasks were not created after all."""


class Door:
    """Every source comes in here. Methods may be called from any thread and are durable when they return."""

    def __init__(self, store: Store, admission: Admission, gate: Gate, clock: Callable[[], Any]) -> None:
        self._store = store
        self._admission = admission
        self._gate = gate
        self._clock = clock

    def submit(self, submission: Submission, origin: Origin) -> Task:
        """One submission's task; the earlier one if its unique key and content are known. Raises `RunnerError`."""
        self._check_room()
        admitted = self._admit(submission, origin)
        self._bring_in(admitted)
        try:
            return _one(self._store.commit((Create(admitted.task),)))
        except KeyTaken as taken:
            self._discard(admitted)
            return _settled(admitted.task, taken.task)
        except RunnerError:
            self._discard(admitted)
            raise

    def submit_soon(self, submission: Submission, origin: Origin, done: Done) -> None:
        """The same for a submission without files, not waiting: `done` is told on the committer's thread.
        Raises `Refused` at once."""
        self._check_room()
        admitted = self._admit(submission, origin)

        def settle(tasks: Sequence[Task | None], error: RunnerError | None) -> None:
            if isinstance(error, KeyTaken):
                try:
                    tasks, error = (_settled(admitted.task, error.task),), None
                except KeyConflict as conflict:
                    error = conflict
            done(tasks, error)

        self._store.submit((Create(admitted.task),), settle)

    def submit_many(self, pairs: Sequence[tuple[Submission, Origin]]) -> list[Task]:
        """One durable commit: all of them become tasks, or none. Faults are told with their place: `/3/payload/x`."""
        self._check_room()
        admitted = [self._admit_numbered(number, *pair) for number, pair in enumerate(pairs)]
        known: dict[int, Task] = {}
        for one in admitted:
            self._bring_in(one)
        while True:
            wanted = [number for number in range(len(admitted)) if number not in known]
            try:
                tasks = self._store.commit([Create(admitted[number].task) for number in wanted])
            except KeyTaken as taken:
                number = _find_key(admitted, taken.task)
                self._discard(admitted[number])
                known[number] = self._settle_or_discard(admitted, number, taken.task)
            except RunnerError:
                self._discard_all(admitted)
                raise
            else:
                made = dict(zip(wanted, tasks, strict=True))
                return [known.get(number) or _there(made[number]) for number in range(len(admitted))]

    def take(self, pairs: Sequence[tuple[Submission, Origin]]) -> list[Task | RunnerError]:
        """Dropped files, each on its own, in one durable commit: recorded first, renamed second, started last."""
        answers: list[Task | RunnerError] = []
        recording: dict[int, tuple[Admitted, Ticket]] = {}
        for number, (submission, origin) in enumerate(pairs):
            try:
                self._check_room()
                admitted = self._admit(submission, origin)
                self._bring_in_document(admitted)
            except RunnerError as error:
                answers.append(error)
            else:
                recording[number] = (admitted, self._record_held(admitted.task))
                answers.append(admitted.task)
        for number, (admitted, ticket) in recording.items():
            answers[number] = self._take_recorded(admitted, ticket)
        self._gate.release(
            [admitted.task for number, (admitted, _) in recording.items() if answers[number] is admitted.task]
        )
        return answers

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
        if task.status not in DRAFT:
            # Decided before the file moves; the commit below decides for good.
            return transitions.receive_input(task, "", "", 0, self._clock())
        place = self._admission.place(task, arrival)
        target = self._store.layout.absolute(place)
        self._store.blobs.hand_over(str(arrival.path), target, arrival.mode)
        size, now = os.stat(target).st_size, self._clock()
        change = Update(task.id, lambda current: transitions.receive_input(current, place, arrival.name, size, now))
        try:
            return _one(self._store.commit((change,)))
        except RunnerError:
            self._store.files.remove(target)
            raise

    def begin(self, task: Task, payload: dict[str, Any] | None) -> Task:
        """A draft is complete and joins the queue."""
        final, now = task.payload if payload is None else payload, self._clock()
        if task.status in DRAFT:
            self._admission.check_payload(task, final)
        return _one(self._store.commit((Update(task.id, lambda current: transitions.submit(current, final, now)),)))

    # Chain

    def follow(self, parent: Task, output_files: tuple[str, ...]) -> Change | None:
        """The change that makes a completed task's `on_success` a task, with the parent's outputs as its inputs."""
        assert parent.on_success is not None
        wanted = parent.on_success
        submission = Submission(type=wanted.type, payload=wanted.payload, on_success=wanted.on_success)
        arrivals = tuple(
            Arrival(Path(self._store.layout.absolute(path)), path.rpartition("/")[2]) for path in output_files
        )
        try:
            admitted = self._admit(submission, _child_of(parent, arrivals))
            self._bring_in(admitted)
        except (RunnerError, OSError) as error:
            _log.warning("task %s completed, but its on_success was refused: %s", parent.id, error)
            return None
        return Create(admitted.task)

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

    def _admit_numbered(self, number: int, submission: Submission, origin: Origin) -> Admitted:
        try:
            return self._admit(submission, origin)
        except InvalidSubmission as error:
            problems = tuple(Problem(f"/{number}{problem.pointer}", problem.message) for problem in error.problems)
            raise InvalidSubmission(problems) from error

    def _bring_in(self, admitted: Admitted) -> None:
        """The files are the task's before any record says so; a crash in between leaves files that nobody names."""
        try:
            for arrival, place in zip(admitted.arrivals, admitted.places, strict=True):
                self._store.blobs.hand_over(str(arrival.path), self._store.layout.absolute(place), arrival.mode)
        except OSError as error:
            self._discard(admitted)
            raise _unreadable(error) from error

    def _bring_in_document(self, admitted: Admitted) -> None:
        """The files that a dropped document names are linked; the document itself is what is taken."""
        if admitted.task.drop is None or _is_dropped_file(admitted.task.drop):
            return
        linked = tuple(Arrival(one.path, one.name, one.size, _kept(one.mode)) for one in admitted.arrivals)
        self._bring_in(Admitted(admitted.task, linked))

    def _record_held(self, task: Task) -> Ticket:
        ticket = Ticket()
        self._gate.hold((task.id,))
        self._store.submit((Create(task),), ticket)
        return ticket

    def _take_recorded(self, admitted: Admitted, ticket: Ticket) -> Task | RunnerError:
        """The task that was recorded, its file taken; it is `admitted.task` itself if it may start now."""
        try:
            ticket.wait()
        except KeyTaken as taken:
            self._gate.let_go((admitted.task.id,))
            return self._take_known(admitted, taken.task)
        except RunnerError as error:
            self._gate.let_go((admitted.task.id,))
            self._discard(admitted)
            return error
        return self._rename(admitted.task)

    def _take_known(self, admitted: Admitted, holder: Task) -> Task | RunnerError:
        """A document that was dropped before: the task that it made."""
        self._discard(admitted)
        try:
            task = _settled(admitted.task, holder)
        except KeyConflict as error:
            return error
        assert admitted.task.drop is not None
        self._remove_taken(admitted.task.drop)
        return task

    def _rename(self, task: Task) -> Task:
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
        source = self._path_of(drop)
        target = self._store.layout.absolute(task.input_files[0])
        found = Identity.of(source)
        if found != Identity(drop.device, drop.inode, drop.size, drop.mtime_ns):
            raise OSError(None, "it was changed or replaced just when it was taken; drop it again")
        self._store.blobs.take(source, target)

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
        if came_at <= task.created_at.timestamp():
            self._store.files.remove(path)

    def _remove_taken(self, drop: Drop) -> None:
        if drop.sidecar is not None:
            self._store.files.remove(self._store.layout.absolute(drop.sidecar))

    def _path_of(self, drop: Drop) -> str:
        path = drop.path if drop.raw is None else os.fsdecode(unquote_to_bytes(drop.raw))
        return self._store.layout.absolute(path)

    def _refuse(self, task: Task, message: str) -> Task:
        now, error = self._clock(), TaskError(code="input_missing", message=message, retryable=False)
        return _one(
            self._store.commit((Update(task.id, lambda current: transitions.refuse(current, now, error=error)),))
        )

    def _settle_or_discard(self, admitted: Sequence[Admitted], number: int, holder: Task) -> Task:
        try:
            return _settled(admitted[number].task, holder)
        except KeyConflict:
            self._discard_all(admitted)
            raise

    def _discard_all(self, admitted: Sequence[Admitted]) -> None:
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


def _find_key(admitted: Sequence[Admitted], holder: Task) -> int:
    return next(
        number
        for number, one in enumerate(admitted)
        if (one.task.user_id, one.task.unique_key) == (holder.user_id, holder.unique_key) and one.task.id != holder.id
    )


def _is_dropped_file(drop: Drop) -> bool:
    """Whether the drop is an input, and not a document that names some."""
    return drop.sidecar != drop.path


def _kept(mode: Handover) -> Handover:
    return Handover.LINK if mode is Handover.MOVE else mode


def _child_of(parent: Task, arrivals: tuple[Arrival, ...]) -> Origin:
    return Origin(Source.CHAIN, parent.user_id, arrivals, parent_id=parent.id, batch_id=parent.batch_id)


def _unreadable(error: OSError) -> Refused:
    return InvalidSubmission((Problem("/inputs", f"{error.filename}: {error.strerror}"),))
