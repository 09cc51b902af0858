"""The whole runner in one object: each part is made and handed what it needs here, and front ends call the verbs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from runner import task as moves
from runner.config import Config, RetentionRule
from runner.dispatch.bulk import Bulk, BulkReport, Verb
from runner.dispatch.cleanup import Cleanup, GcMode, GcReport
from runner.dispatch.delays import Clock, utc_now
from runner.dispatch.dispatcher import Dispatcher
from runner.dispatch.limits import LimitRules
from runner.dispatch.retries import Retries
from runner.dispatch.timetable import Timetable
from runner.dispatch.vanished import LOOK_SECONDS, Vanished
from runner.errors import NotFound, OwnerExists, VersionMismatch
from runner.events import Events
from runner.execute import Executors
from runner.handlers import Handlers
from runner.intake import webhooks
from runner.intake.admission import NAME, Admission, Arrival, Origin, Submission
from runner.intake.door import Door
from runner.intake.explanation import Explanation
from runner.intake.folders import Folders, configured_folder, manner_of
from runner.intake.forecast import LATEST, Forecast, forecast_of
from runner.intake.inbox import Inbox
from runner.intake.mounts import check_local
from runner.intake.names import Ignored
from runner.intake.outbox import Outbox
from runner.intake.porter import Porter
from runner.intake.quota import Quota
from runner.intake.schedules import Schedules
from runner.intake.webhooks import Webhooks
from runner.meters import MeteredFiles, Meters
from runner.store import Durability, Files, Remove, Store, StoreOptions, TaskPage, TaskQuery, Transition, Update
from runner.store.access import check_access
from runner.store.checkpoint import CheckpointRule
from runner.store.committer import Done
from runner.store.files import share_one_arena
from runner.store.owner import Owner
from runner.store.recovery import Recovered
from runner.store.space import Floors
from runner.store.store import ScribePlace
from runner.store.writer import Pace
from runner.task import Status, Task
from runner.totals import Totals
from runner.traces import open_traces
from runner.why import explain_task, explain_unserved

__all__ = [
    "BulkReport",
    "GcMode",
    "GcReport",
    "Health",
    "LeftOver",
    "Role",
    "Service",
    "Verb",
    "Versions",
    "check_version",
    "limit_rules",
    "store_options",
]

Versions = frozenset[int]
"""The versions of a task that a change is meant for."""

_log = logging.getLogger(__name__)


class Role(StrEnum):
    """What the service is opened for. `SERVE`: to own the directory and do everything. `VISIT`: to look and to change
    things for the length of one command; tasks are not run unless `run_tasks` is called."""

    SERVE = "serve"
    VISIT = "visit"


@dataclass(frozen=True)
class Health:
    """Whether new tasks are accepted and started; `reasons` say why not, `details` are for people who look."""

    ready: bool
    reasons: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class LeftOver(NamedTuple):
    """How many tasks go on that were there before, and how many of these were cut off while they ran."""

    tasks: int
    interrupted: int


class Service:
    """Opened by `start`, or by `open` and `run_tasks`, and closed by `close`, all on the main thread.

    The verbs may be called from any thread; what they change is durable when they return. `user_id` None sees
    everybody's tasks; to a user, those of others are not there. `files`: a disk that is not quite the real one.
    """

    def __init__(
        self, config: Config, role: Role = Role.SERVE, clock: Clock = utc_now, files: Files | None = None
    ) -> None:
        self.config = config
        self._role = role
        self._clock = clock
        self.meters = Meters()
        self.traces = open_traces(config.traces)
        files = files or MeteredFiles(self.meters.sync_seconds.observe)
        self.store = Store(config.data_dir, store_options(config, role), self, files)
        self.totals = Totals(self.store)
        self.handlers = Handlers(config.handlers_dir, config.handlers)
        self._told_failures: set[str] = set()
        self.events = Events(Path(self.store.layout.logs), self.store.is_gone)
        self._owner = Owner(self.store.files, self.store.layout)
        self._executors = Executors()
        self.dispatcher = Dispatcher(
            store=self.store,
            handlers=self.handlers,
            executor=self._executors,
            events=self.events,
            configs=lambda type: config.handlers[type].config if type in config.handlers else {},
            rules=limit_rules(config, self.handlers),
            weights={name: queue.weight for name, queue in config.queues.items()},
            clock=clock,
        )
        self.quota = Quota(self.store.layout, config.limits)
        self._admission = Admission(
            self.handlers,
            config.limits,
            config.queues,
            self.store.layout,
            self.dispatcher,
            lambda metadata: webhooks.problems_of(metadata, config.webhooks, _outbound(config)),
            self.quota,
        )
        porter, outbox_porter = (Porter(self.store.layout, config.outbox.link) for _ in ("inbox", "outbox"))
        self.door = Door(self.store, self._admission, self.dispatcher, porter, clock)
        self.dispatcher.attempts.chain = self.door
        manner = manner_of(config.inbox)
        further = tuple(configured_folder(folder, manner) for folder in config.inbox.folders)
        folders = Folders(self.store.layout.inbox, Ignored(config.inbox.ignore), further, manner)
        self.outbox = Outbox(config.outbox, self.store, folders, outbox_porter, self.events.flush)
        self.inbox = Inbox(
            config.inbox, self.store, self.handlers, folders, self.outbox, self.door, porter, self._inbox_failed
        )
        self._webhooks = Webhooks(config.webhooks, self.store, self.door.submit_soon, self.events.log)
        self._retries = Retries()
        self._bulk = Bulk(self.store, clock)
        self._timetable = Timetable()
        self.dispatcher.clock_went_back = self._timetable.begin_anew
        self._schedules = Schedules(
            config.schedules, self.store.files, f"{self.store.layout.data}/schedules.json", self.door.submit, clock
        )
        self._vanished = Vanished(self.store, clock)
        self._cleanup = Cleanup(self.store, config.retention, self._retention_of, clock)
        self._threads: list[threading.Thread] = []
        self._recovered = Recovered()
        self._runs_tasks = False
        self._hears_intake = False
        self.closed_doors: dict[str, str] = {}
        """Front ends that were to be served and are not, and why; from any thread."""
        self._inbox_failure: BaseException | None = None
        self.is_closing = False

    # Life

    def start(self) -> None:
        """Becomes the owner at once and, in role `SERVE`, runs what waits. Raises `OwnerExists`, `FormatError`."""
        self.open()
        if self._role is Role.SERVE:
            self.run_tasks()

    def open(
        self,
        announce: Callable[[OwnerExists], None] | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Becomes the owner and recovers; nothing runs yet.

        With `announce` it waits for another owner to end, after telling it of that one; without, it raises
        `OwnerExists`. `progress` is told what takes long. Raises `FormatError`, `UnsafeAccess`.
        """
        if self._role is Role.SERVE:
            share_one_arena()  # this process is here to serve
        if not self.config.storage.allow_shared:
            check_access(self.store.layout)
        if not self.config.storage.allow_network:
            check_local(str(Path(self.store.layout.data).absolute()))
        if announce is None:
            self._owner.acquire()
        else:
            self._owner.wait(announce)
        try:
            self.handlers.load()
            self._recovered = self.store.open(progress)
        except BaseException:
            self._owner.release()
            raise
        for note in self._recovered.notes:
            _log.warning("%s", note)

    def left_over(self) -> LeftOver:
        """What earlier owners have left unfinished; before `run_tasks`."""
        live = self._recovered.live
        interrupted = sum(task.status is Status.PROCESSING for task in live)
        return LeftOver(interrupted + sum(task.status is Status.PENDING for task in live), interrupted)

    def run_tasks(self) -> None:
        """Begins to start tasks, the unfinished ones of earlier owners first."""
        self._runs_tasks = True
        self.door.take_again(self._recovered.live)
        self._apply_limits()
        if self._role is Role.SERVE:
            self._open_intake()
        self._retries.start(self._recovered.live)
        self.dispatcher.start(self._recovered.live)
        self._recovered.live = []
        self._start_thread("dispatcher", self.dispatcher.run)
        if self._role is Role.SERVE:
            self._begin_to_watch()

    def close(self) -> None:
        """Drains: takes nothing new, lets what runs end within the grace period, requeues the rest, and lets go."""
        self.is_closing = True
        self._timetable.close()
        self.handlers.close()
        self.inbox.close()
        self.dispatcher.drain(self.config.drain.grace_period)
        self.dispatcher.stop()
        for thread in self._threads:
            thread.join()
        self.store.settle()
        self._webhooks.close()
        self.outbox.close()
        self.store.close()
        self.events.close()
        self._owner.release()
        # Last: whoever stands by need not wait until what collects them has answered.
        if self.traces is not None:
            self.traces.close()

    # Submitting

    def submit(self, submission: Submission, origin: Origin) -> Task:
        """The submission's task; the earlier one if its unique key and content are known. Raises `RunnerError`."""
        return self.door.submit(submission, origin)

    def submit_soon(self, submission: Submission, origin: Origin, done: Done) -> None:
        """The same for a submission without files, not waiting; `done` is told on the thread that has synced."""
        self.door.submit_soon(submission, origin, done)

    def queue(self, submission: Submission, origin: Origin, done: Done) -> None:
        """The same for who has several at hand: they are committed at the latest after `commit_queued`."""
        self.door.queue(submission, origin, done)

    def commit_queued(self) -> None:
        """Has what was queued committed; does not wait."""
        self.door.commit_queued()

    def commit_here(self) -> None:
        """The same on this thread if the disk is quick. It may be the main one if no signal's handler raises in it."""
        self.door.commit_here()

    def has_room(self) -> bool:
        """Whether `submit` would go ahead, rather than wait for task files to catch up with the journal."""
        return self.store.writer.has_room

    def may_submit_soon(self, origin: Origin) -> bool:
        """Whether `submit` would neither bring files in, nor wait, nor look how much its user has."""
        return not origin.inputs and self.quota.is_known(origin.user_id) and self.has_room()

    def submit_many(self, pairs: Sequence[tuple[Submission, Origin]]) -> list[Task]:
        """All of them become tasks in one durable commit, or none."""
        return self.door.submit_many(pairs)

    def add_input(self, task_id: str, arrival: Arrival, user_id: str | None = None) -> Task:
        """A draft gets one more file."""
        return self.door.add_input(self.get(task_id, user_id), arrival)

    def replace_inputs(self, task_id: str, arrival: Arrival, user_id: str | None = None) -> Task:
        """A draft gets a file in the place of those that it has."""
        return self.door.replace_inputs(self.get(task_id, user_id), arrival)

    def drop_input(self, task_id: str, path: str, user_id: str | None = None) -> Task:
        """A draft loses one of its files: `path` as its `input_files` say it."""
        return self.door.drop_input(self.get(task_id, user_id), path)

    def revise(self, task_id: str, change: Callable[[Task], dict[str, str]], user_id: str | None = None) -> Task:
        """A draft gets the `metadata` that `change` makes of its latest version."""
        now = self._clock()
        return self._update(task_id, user_id, None, lambda task: moves.revise(task, change(task), now))

    def begin_again(self, task_id: str, payload: dict[str, Any], user_id: str | None = None) -> Task:
        """A failed or cancelled task joins the queue again, with another payload."""
        return self.door.begin_again(self.get(task_id, user_id), payload)

    def begin(self, task_id: str, payload: dict[str, Any] | None = None, user_id: str | None = None) -> Task:
        """A draft is complete and joins the queue; `payload` None: with the one that it has."""
        return self.door.begin(self.get(task_id, user_id), payload)

    # Looking

    def get(self, task_id: str, user_id: str | None = None) -> Task:
        """A task as it is now. Raises `NotFound`, for another user's task too."""
        task = self.store.get_task(task_id)
        if user_id is not None and task.user_id != user_id:
            raise NotFound("task", task_id)
        return task

    def recall(self, task_id: str, user_id: str | None = None) -> Task | None:
        """The same if no disk has to be asked for it, else None; for who must not wait. Raises `NotFound` likewise."""
        task = self.store.recall(task_id)
        if task is not None and user_id is not None and task.user_id != user_id:
            raise NotFound("task", task_id)
        return task

    def resolve(self, prefix: str, user_id: str | None = None) -> Task:
        """The one task whose id begins like this. Raises `NotFound` where there is none, or more than one."""
        found = self.store.ids_beginning(prefix) if NAME.fullmatch(prefix) else []
        if len(found) != 1:
            raise NotFound("task", prefix)
        return self.get(found[0], user_id)

    def list_tasks(self, query: TaskQuery) -> TaskPage:
        """Part of the list of tasks, newest first."""
        return self.store.list(query)

    def all_tasks(self, query: TaskQuery) -> Iterator[Task]:
        """Every task that matches, newest first, read a page of the query's size at a time."""
        return self.store.all(query)

    def unfinished(self, user_id: str | None = None) -> list[Task]:
        """Every task that has not ended, oldest first. From memory: what has ended does not make it slower."""
        return [task for task in self.store.live() if user_id is None or task.user_id == user_id]

    def drafts_of(self, user_id: str) -> int:
        """How many drafts a user has."""
        return self.count(TaskQuery(user_id=user_id, status=tuple(sorted(moves.DRAFT))))

    def count(self, query: TaskQuery) -> int:
        """How many tasks match."""
        return self.store.count(query)

    def wait(self, task_id: str, timeout_seconds: float, user_id: str | None = None) -> Task:
        """The task once it has ended, or as it stands when the time is over."""
        deadline = time.monotonic() + timeout_seconds
        with self.events.subscribe({task_id}) as watcher:
            while not (task := self.get(task_id, user_id)).is_terminal:
                if watcher.get(max(0.0, deadline - time.monotonic())) is None:
                    return task
        return task

    def output(self, task: Task, name: str) -> Path:
        """The file of one output. Raises `NotFound`."""
        return Path(self.store.blobs.output(task.output_files, name))

    def why(self, target: str) -> Explanation:
        """Why a file or a task is not running: `target` is a task's id, or a path, absolute or below the inbox."""
        if NAME.fullmatch(target) and (task := self.store.find(target)) is not None:
            if not self._runs_tasks and task.status in (Status.PENDING, Status.PROCESSING):
                return explain_unserved(task)
            reasons = "; ".join(self._reasons()) or None
            forecast = self.forecast(task.type, task.user_id) if task.status is Status.PENDING else None
            return explain_task(task, self.dispatcher.standing(target), reasons, self._clock(), forecast)
        said = self.inbox.explain(str(Path(self.store.layout.inbox, target)), self.forecast)
        if said.kind == "unseen" and self._role is not Role.SERVE:
            return Explanation("unserved", "no runner is running: it is taken when one is started (`runner serve`)")
        if said.kind == "absent" and NAME.fullmatch(target):
            return Explanation("absent", f"there is no task {target}, and no file of that name in the inbox")
        return said

    def forecast(self, type: str, user_id: str) -> Forecast | None:
        """How long tasks of a type take, and how many of a user may run at once; None if none has completed yet."""
        rules = limit_rules(self.config, self.handlers)
        per_user = None if user_id in rules.exempt_users else rules.per_user
        slots = min(filter(None, (rules.global_, rules.per_type.get(type), per_user)))
        return forecast_of(self.store.list(TaskQuery(type=type, status=(Status.COMPLETED,), size=LATEST)).tasks, slots)

    def queue_stats(self) -> list[dict[str, Any]]:
        """For each queue: what waits, is scheduled, runs, and has ended, by the states that queues are told in."""
        counts: dict[str, dict[str, int]] = {name: {} for name in self.config.queues}
        for (queue, _, status), number in self.totals.read().items():
            known = counts.setdefault(queue, {})
            known[status] = known.get(status, 0) + number
        return [self._queue_row(queue, by_status) for queue, by_status in counts.items()]

    def health(self) -> Health:
        """Whether new tasks are accepted and started."""
        reasons = tuple(self._reasons())
        broken = {str(path): str(failure) for path, failure in self.handlers.errors.items()}
        details = {
            "pending": self.dispatcher.pending(),
            "running": len(self.dispatcher.attempts),
            "files_behind": self.store.writer.backlog,
            "handlers": len(self.handlers),
            "broken_handlers": broken,
            "closed_doors": dict(self.closed_doors),
        }
        return Health(not reasons, reasons, details)

    # Changing

    # `versions`: only a task that has one of these; None: any. Raises `VersionMismatch`.

    def cancel(
        self, task_id: str, user_id: str | None = None, reason: str = "cancelled", versions: Versions | None = None
    ) -> Task:
        """Nobody wants the task any more: one that waits never starts, one that runs is told to stop."""
        now = self._clock()
        return self._update(task_id, user_id, versions, lambda task: moves.cancel(task, now, reason=reason))

    def retry(self, task_id: str, user_id: str | None = None, versions: Versions | None = None) -> Task:
        """A further attempt of a failed or cancelled task."""
        now = self._clock()
        return self._update(task_id, user_id, versions, lambda task: moves.retry(task, now))

    def rerun(self, task_id: str, user_id: str | None = None) -> Task:
        """A new task from an old one: the same type, payload and inputs."""
        old = self.get(task_id, user_id)
        submission = Submission(
            type=old.type,
            payload=old.payload,
            queue=old.queue,
            priority=old.priority,
            metadata=old.metadata,
            client_id=old.client_id,
            on_success=old.on_success,
        )
        inputs = (Path(self.store.layout.absolute(path)) for path in old.input_files)
        arrivals = tuple(Arrival(path, path.name) for path in inputs)
        return self.submit(submission, Origin(old.source, old.user_id, arrivals, parent_id=old.id))

    def delete(self, task_id: str, user_id: str | None = None, versions: Versions | None = None) -> None:
        """Forgets a task that neither waits nor runs, with its log, inputs and outputs."""
        self.get(task_id, user_id)
        self.store.commit((*_guard(task_id, versions), Remove(task_id)))

    def change_many(self, verb: Verb, query: TaskQuery, limit: int) -> BulkReport:
        """Changes the newest `limit` tasks that match, each on its own."""
        return self._bulk.run(verb, query, limit)

    def change_these(self, verb: Verb, task_ids: Sequence[str], user_id: str | None = None) -> BulkReport:
        """Changes these tasks, each on its own."""
        return self._bulk.run_on(verb, task_ids, user_id)

    def gc(self, mode: GcMode) -> GcReport:
        """Removes what its retention is over for, or says what that would be."""
        return self._cleanup.run_once(mode)

    def change_limits(self, config: Config) -> None:
        """Other limits, queues and weights from now on."""
        self.config = config
        self._admission.change(config.limits, config.queues)
        self.quota.change(config.limits)
        self._apply_limits()

    # What the store says

    def staged(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        self.dispatcher.on_stage(transitions)

    def appended(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        self.dispatcher.on_append(transitions)

    def refused(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        self.dispatcher.on_refuse(transitions)

    def committed(self, transitions: list[Transition]) -> None:
        """See `store.committer.Listener`."""
        # Watchers are told before attempts are launched, so that they see `processing` before what the handler says.
        self.events.publish_transitions(transitions)
        self.dispatcher.on_commit(transitions)
        self.meters.hear(transitions)
        self.totals.hear(transitions)
        if self.traces is not None:
            self.traces.hear(transitions)
        self._retries.note(transitions)
        if self._hears_intake:
            self.inbox.hear(transitions)
            self.outbox.hear(transitions)
            self._webhooks.hear(transitions)

    # Steps

    def _update(
        self, task_id: str, user_id: str | None, versions: Versions | None, function: Callable[[Task], Task]
    ) -> Task:
        self.get(task_id, user_id)
        *_, task = self.store.commit((*_guard(task_id, versions), Update(task_id, function)))
        assert task is not None
        return task

    def _begin_to_watch(self) -> None:
        self.inbox.start()
        self._start_webhooks()
        self._tell_of_broken_handlers()
        self.handlers.watch(self._handlers_changed)
        self._timetable.start()
        self._schedules.open(self._timetable)
        for name, schedule in self.config.schedules.items():
            if self.handlers.find(schedule.type) is None:
                _log.warning("schedule %s: there is no handler %s, yet; nothing will run", name, schedule.type)
        self._timetable.every(self.config.retention.interval, "cleanup", self._cleanup.run_by_itself)
        self._timetable.every(LOOK_SECONDS, "vanished", self._vanished.run_once)

    def _start_webhooks(self) -> None:
        sender = self.config.handlers.get(webhooks.HANDLER)
        if self.config.webhooks.enabled and not (sender and sender.config.get("secrets")):
            _log.warning("webhooks are on, but nothing signs them: set handlers.http_call.config.secrets")
        self._webhooks.start()

    def _retention_of(self, type: str) -> RetentionRule | None:
        handler = self.handlers.find(type)
        return None if handler is None else handler.options.retention

    def _open_intake(self) -> None:
        """Before anything runs: what ends from here on is heard, and what ended before a crash is caught up with."""
        self.inbox.prepare()
        self.outbox.recover()
        self.outbox.start()
        self._hears_intake = True

    def _handlers_changed(self, names: frozenset[str]) -> None:
        if names:
            _log.info("handlers that came, changed or went: %s", ", ".join(sorted(names)))
            self._apply_limits()
            self.inbox.refresh()
        self._tell_of_broken_handlers()

    def _tell_of_broken_handlers(self) -> None:
        """Once for each fault, however often the file is read again."""
        failures = {str(failure) for failure in self.handlers.errors.values()}
        for failure in sorted(failures - self._told_failures):
            _log.warning("%s; its last good version goes on, if there is one", failure)
        self._told_failures = failures

    def _inbox_failed(self, error: BaseException) -> None:
        self._inbox_failure = error
        _log.critical("the inbox has stopped: %s", error)

    def _apply_limits(self) -> None:
        weights = {name: queue.weight for name, queue in self.config.queues.items()}
        self.dispatcher.change_limits(limit_rules(self.config, self.handlers), weights)

    def _start_thread(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _reasons(self) -> Iterable[str]:
        if self.is_closing:
            yield "shutting down"
        if self.store.committer.failure is not None:
            yield f"the journal cannot be written: {self.store.committer.failure}"
        if self.store.writer.failure is not None:
            yield f"task files cannot be written: {self.store.writer.failure}"
        if self.store.space.shortage is not None:
            yield self.store.space.shortage
        if self._inbox_failure is not None:
            yield f"the inbox has stopped: {self._inbox_failure}"

    def _queue_row(self, queue: str, by_status: Mapping[str, int]) -> dict[str, Any]:
        waiting = self.dispatcher.waiting_in_queue(queue)
        retries = self._retries.count_of_queue(queue)
        ended_badly = by_status.get(Status.FAILED, 0) + by_status.get(Status.CANCELLED, 0)
        return {
            "queue": queue,
            "pending": waiting,
            "scheduled": max(0, by_status.get(Status.PENDING, 0) - waiting - retries),
            "retry": retries,
            "active": by_status.get(Status.PROCESSING, 0),
            "archived": ended_badly,
            "completed": by_status.get(Status.COMPLETED, 0),
            "failed": by_status.get(Status.FAILED, 0),
            "cancelled": by_status.get(Status.CANCELLED, 0),
            "drafts": by_status.get(Status.CREATED, 0) + by_status.get(Status.UPLOADED, 0),
        }


def _outbound(config: Config) -> Mapping[str, Any] | None:
    """Whom webhooks may be sent to."""
    sender = config.handlers.get(webhooks.HANDLER)
    return sender.config.get("outbound") if sender else None


def check_version(task: Task, versions: Versions) -> Task:
    """The task, if it has one of these versions. Raises `VersionMismatch`."""
    if task.version not in versions:
        raise VersionMismatch(task.id, task.version)
    return task


def _guard(task_id: str, versions: Versions | None) -> tuple[Update, ...]:
    """The change that keeps those after it in its group from happening to another version of the task."""
    return () if versions is None else (Update(task_id, lambda task: check_version(task, versions)),)


def limit_rules(config: Config, handlers: Handlers) -> LimitRules:
    """The limits of the configuration and of the handlers together; where both limit a type, the lower one holds."""
    limits = config.limits
    per_type = dict(limits.per_type)
    for handler in handlers:
        if handler.options.concurrency is not None:
            known = per_type.get(handler.name, handler.options.concurrency)
            per_type[handler.name] = min(known, handler.options.concurrency)
    return LimitRules(
        global_=limits.global_,
        per_user=limits.per_user,
        exempt_users=frozenset(limits.exempt_users),
        per_type=per_type,
        per_type_and_user={
            handler.name: handler.options.per_user for handler in handlers if handler.options.per_user is not None
        },
        per_queue={name: queue.concurrency for name, queue in config.queues.items() if queue.concurrency is not None},
    )


def store_options(config: Config, role: Role) -> StoreOptions:
    """How the store trades, as it is configured."""
    storage = config.storage
    return StoreOptions(
        durability=Durability(config.durability),
        pace=Pace(storage.write_behind_seconds, storage.overload_seconds),
        checkpoint=CheckpointRule(storage.checkpoint_bytes, storage.checkpoint_seconds),
        floors=Floors(storage.min_free_bytes, storage.min_free_inodes, storage.ballast_bytes),
        scribe=ScribePlace.PROCESS if role is Role.SERVE else ScribePlace.THREAD,
    )
