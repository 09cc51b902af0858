"""Cleanup: removes what its retention is over for, a few tasks at a time beside everything else.

How long a finished task stays is said by the narrowest rule that says it: for its user, for its type, in its handler's
settings, in general. None stays for ever. After that the oldest go until the store is within its quota.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from runner.config import RetentionConfig, RetentionRule
from runner.dispatch.delays import Clock
from runner.errors import IllegalTransition, NotFound, Unavailable
from runner.store import Remove, RemoveUser, Store, TaskQuery
from runner.store.index import FinishedRow
from runner.store.rows import microseconds
from runner.task import DRAFT

SLICE = 500
JUMP = timedelta(minutes=5)
"""A clock that is further ahead than time has passed has jumped."""
BELIEVED_AFTER_SECONDS = 86_400.0
_BEGINNING = (0, 0)
_log = logging.getLogger(__name__)

RuleOfType = Callable[[str], RetentionRule | None]


class GcMode(StrEnum):
    """Whether cleanup removes, or only says what it would remove."""

    DRY_RUN = "dry_run"
    APPLY = "apply"


@dataclass(frozen=True, slots=True)
class Removed:
    """One thing that goes. `kind` is task, draft or user; `bytes` counts its files; `reason` is for people."""

    kind: str
    id: str
    reason: str
    bytes: int = 0


@dataclass(slots=True)
class GcReport:
    """What went, or would go."""

    mode: GcMode
    removed: list[Removed] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """How many bytes of files went."""
        return sum(one.bytes for one in self.removed)


def uptime_seconds() -> float:
    """How long the machine is up, its sleep counted where the system says that."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """A clock that believes another one when that goes back, and when it has been ahead for a day.

    A clock that jumps ahead, perhaps to be set right in a moment, would make everything look old. Not thread-safe.
    """

    def __init__(self, clock: Clock, uptime: Callable[[], float]) -> None:
        self._clock = clock
        self._uptime = uptime
        self._last, self._last_up = clock(), uptime()
        self._ahead_since: float | None = None

    def __call__(self) -> datetime:
        """What time it is, as far as that can be known."""
        now, up = self._clock(), self._uptime()
        steady = self._last + timedelta(seconds=up - self._last_up)
        if now <= steady + JUMP:
            self._ahead_since = None
            self._last, self._last_up = now, up
            return now
        if self._ahead_since is None:
            _log.warning("the clock has jumped ahead by %s: for a day nothing is removed because of that", now - steady)
            self._ahead_since = up
        if up - self._ahead_since >= BELIEVED_AFTER_SECONDS:
            self._ahead_since = None
            self._last, self._last_up = now, up
            return now
        return steady


class Cleanup:
    """Removes by `run_once`. One thread at a time."""

    def __init__(
        self,
        store: Store,
        retention: RetentionConfig,
        rule_of_handler: RuleOfType,
        clock: Clock,
        uptime: Callable[[], float] = uptime_seconds,
    ) -> None:
        self._store = store
        self._retention = retention
        self._rule_of_handler = rule_of_handler
        self._clock = clock
        self._steadied = SteadyClock(clock, uptime)

    def run_by_itself(self) -> GcReport:
        """Everything that is due, by a clock that does not jump ahead: nobody is there who could say whether it may."""
        return self._run(GcMode.APPLY, self._steadied())

    def run_once(self, mode: GcMode = GcMode.APPLY) -> GcReport:
        """Everything that is due."""
        return self._run(mode, self._clock())

    def _run(self, mode: GcMode, now: datetime) -> GcReport:
        report = GcReport(mode)
        for find in (self._outdated, self._over_quota, self._drafts, self._idle_users):
            for one in find(now, report):
                if mode is GcMode.DRY_RUN or self._remove(one):
                    report.removed.append(one)
        return report

    def _outdated(self, now: datetime, _: GcReport) -> Iterator[Removed]:
        for row in self._finished(now):
            seconds = retention_seconds(self._retention, self._rule_of_handler(row.type), row)
            if seconds is not None and row.completed_us < microseconds(now - timedelta(seconds=seconds)):
                age = timedelta(microseconds=microseconds(now) - row.completed_us)
                yield self._removed_task(row, f"{row.status} {age.days} days ago")

    def _over_quota(self, now: datetime, report: GcReport) -> Iterator[Removed]:
        """The oldest finished tasks, beside those that go anyway, until what stays is within the quota."""
        max_tasks, max_bytes = self._retention.max_tasks, self._retention.max_bytes
        if max_tasks is None and max_bytes is None:
            return
        gone = {one.id for one in report.removed} if report.mode is GcMode.DRY_RUN else set()
        self._store.writer.flush_rows()
        tasks = self._store.index.usage()[0] - len(gone)
        size = 0 if max_bytes is None else self._bytes_of_all(now, gone)
        for row in self._finished(now):
            if (max_tasks is None or tasks <= max_tasks) and (max_bytes is None or size <= max_bytes):
                return
            if row.id in gone:
                continue
            one = self._removed_task(row, "the oldest, and the store is over its quota")
            tasks, size = tasks - 1, size - one.bytes
            yield one

    def _drafts(self, now: datetime, _: GcReport) -> Iterator[Removed]:
        if self._retention.drafts is None:
            return
        before = now - timedelta(seconds=self._retention.drafts)
        for task in list(self._store.live()):
            if task.status in DRAFT and task.updated_at < before:
                yield Removed(
                    "draft", task.id, f"untouched since {task.updated_at}", self._bytes_of(task.user_id, task.id)
                )

    def _idle_users(self, now: datetime, _: GcReport) -> Iterator[Removed]:
        if self._retention.idle_users is None:
            return
        before = now - timedelta(seconds=self._retention.idle_users)
        for user_id in self._store.user_ids():
            try:
                user = self._store.get_user(user_id)
            except (NotFound, Unavailable):
                continue  # damaged, and set aside now
            if user.last_accessed < before and not self._store.count(TaskQuery(user_id=user_id)):
                yield Removed("user", user_id, f"has no tasks and was last here at {user.last_accessed}")

    def _finished(self, now: datetime) -> Iterator[FinishedRow]:
        """Every finished task, oldest first."""
        place = _BEGINNING
        self._store.writer.flush_rows()
        while rows := self._store.index.completed_before(now, place, SLICE):
            yield from rows
            place = rows[-1].place

    def _removed_task(self, row: FinishedRow, reason: str) -> Removed:
        return Removed("task", row.id, reason, self._bytes_of(row.user_id, row.id))

    def _remove(self, one: Removed) -> bool:
        """Whether it went: it may have been removed, or revived, since it was looked at."""
        try:
            self._store.commit((RemoveUser(one.id),) if one.kind == "user" else (Remove(one.id),))
        except (NotFound, IllegalTransition):
            return False
        return True

    def _bytes_of(self, user_id: str, task_id: str) -> int:
        layout = self._store.layout
        folders = (layout.upload(user_id, task_id), layout.result(user_id, task_id), layout.kept(task_id))
        return sum(map(_size, folders))

    def _bytes_of_all(self, now: datetime, without: set[str]) -> int:
        rows = self._finished(now)
        return sum(self._bytes_of(row.user_id, row.id) for row in rows if row.id not in without)


def retention_seconds(general: RetentionConfig, of_handler: RetentionRule | None, row: FinishedRow) -> float | None:
    """How long a finished task stays; None: for ever."""
    rules = (general.per_user.get(row.user_id), general.per_type.get(row.type), of_handler)
    for rule in rules:
        given: Mapping[str, float | None] = {} if rule is None else rule.given()
        if row.status in given:
            return given[row.status]
    seconds: float | None = getattr(general, row.status)
    return seconds


def _size(directory: str) -> int:
    """The bytes of the files below a directory; 0 where there is none."""
    return sum(os.lstat(f"{parent}/{name}").st_size for parent, _, names in os.walk(directory) for name in names)
