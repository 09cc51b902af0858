"""When things are done by the clock: APScheduler, with cron expressions that mean what cron means by them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger
from cronsim import CronSim

_log = logging.getLogger(__name__)


class CronTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Fires as cron does. APScheduler's own trigger counts weekdays from Monday, knows no `7`, and wants both the day
    of the month and of the week to match."""

    def __init__(self, expression: str, timezone: str) -> None:
        self._expression = expression
        self._zone = ZoneInfo(timezone)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        """The first fire after the later of the two."""
        return next_fire(self._expression, self._zone, max(previous, now) if previous else now)


def next_fire(expression: str, zone: ZoneInfo, after: datetime) -> datetime:
    """The first instant after `after` that a cron expression names in a time zone."""
    return next(CronSim(expression, after.astimezone(zone)))


def last_fire(expression: str, zone: ZoneInfo, until: datetime) -> datetime:
    """The last instant not after `until` that a cron expression names in a time zone."""
    beyond = until.astimezone(zone) + timedelta(seconds=1)
    return next(CronSim(expression, beyond, reverse=True))


class Timetable:
    """Calls functions by the clock, each in a thread of a small pool and never twice at once."""

    def __init__(self) -> None:
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(2)},
            # Whoever is called looks for itself how late it is.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        self._intervals: dict[str, float] = {}
        self._scheduler.add_listener(_report, EVENT_JOB_ERROR)

    def every(self, seconds: float, name: str, function: Callable[[], object]) -> None:
        """`function` is called every so many seconds, for the first time after as many."""
        self._intervals[name] = seconds
        self._scheduler.add_job(function, IntervalTrigger(seconds=seconds, timezone=UTC), id=name)

    def at(self, expression: str, timezone: str, name: str, function: Callable[[], object]) -> None:
        """`function` is called whenever a cron expression says so."""
        self._scheduler.add_job(function, CronTrigger(expression, timezone), id=name)

    def begin_anew(self) -> None:
        """The clock was set back: everything is called as if it had just been put in, not only when the old time comes
        again."""
        if not self._scheduler.running:
            return
        for job in self._scheduler.get_jobs():
            seconds = self._intervals.get(job.id)
            trigger = job.trigger if seconds is None else IntervalTrigger(seconds=seconds, timezone=UTC)
            self._scheduler.reschedule_job(job.id, trigger=trigger)

    def start(self) -> None:
        """Begins to call."""
        self._scheduler.start()

    def close(self) -> None:
        """Calls nothing more and waits for what runs; idempotent."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)


def _report(event: JobExecutionEvent) -> None:
    _log.error("%s failed: %s", event.job_id, event.exception)
