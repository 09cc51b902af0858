"""Schedules: tasks that are submitted again and again.

The truth is a look at every schedule: the last instant at which it should have fired, and the last one that was dealt
with. The clock's calls are hints to look. So a fire is never lost by a restart, and never doubled: its task's unique
key names the schedule and the instant.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Protocol
from zoneinfo import ZoneInfo

from runner.config import ScheduleConfig
from runner.dispatch.delays import Clock
from runner.dispatch.timetable import Timetable, last_fire, next_fire
from runner.errors import CorruptRecord, Refused, Unavailable
from runner.intake.admission import Origin, Submission
from runner.store.aside import quarantine
from runner.store.files import Files, Layout
from runner.task import Source, Task
from runner.units import read_instant

LOOK_SECONDS = 30.0
MAX_AHEAD = timedelta(hours=2)
"""A fire that is further ahead was dealt with by a clock that was wrong, or by one that was right and is wrong now. The
schedule goes on by the new time; what has fired already does not fire again, since its task has the fire's key."""

_log = logging.getLogger(__name__)


class Submit(Protocol):
    """Hands in a submission; durable when it returns."""

    def __call__(self, submission: Submission, origin: Origin, /) -> Task:
        """The task. Raises `RunnerError`."""


class Verdict(Enum):
    """What is to be done about a schedule at an instant."""

    NOTHING = auto()
    FIRE = auto()
    SKIP = auto()


@dataclass(frozen=True, slots=True)
class Summary:
    """What one look did: names of schedules."""

    fired: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Schedules:
    """Looks at the schedules of the configuration. `path` remembers the last fire of each across restarts."""

    def __init__(
        self, schedules: Mapping[str, ScheduleConfig], files: Files, path: str, submit: Submit, clock: Clock
    ) -> None:
        self._schedules = {name: schedule for name, schedule in schedules.items() if schedule.enabled}
        self._files = files
        self._path = path
        self._submit = submit
        self._clock = clock
        self._last: dict[str, datetime] = {}

    def open(self, timetable: Timetable) -> None:
        """Reads what was fired before, looks at once for what was missed, and has the clock call from here on."""
        self._last = self._read()
        self._remember_new()
        for name, schedule in self._schedules.items():
            timetable.at(schedule.cron, schedule.timezone, f"schedule {name}", self.run_once)
        if self._schedules:
            timetable.every(LOOK_SECONDS, "schedules", self.run_once)
            self.run_once()

    def run_once(self) -> Summary:
        """Fires what is due."""
        now = self._clock()
        done: dict[str, list[str]] = {"fired": [], "skipped": [], "refused": []}
        for name, schedule in self._schedules.items():
            outcome = self._look_at(name, schedule, now)
            if outcome is not None:
                done[outcome].append(name)
        if any(done.values()):
            self._write()
        return Summary(tuple(done["fired"]), tuple(done["skipped"]), tuple(done["refused"]))

    def upcoming(self) -> dict[str, datetime]:
        """When each schedule fires next."""
        now = self._clock()
        return {
            name: next_fire(schedule.cron, ZoneInfo(schedule.timezone), now)
            for name, schedule in self._schedules.items()
        }

    def _look_at(self, name: str, schedule: ScheduleConfig, now: datetime) -> str | None:
        due = last_fire(schedule.cron, ZoneInfo(schedule.timezone), now)
        if self._last[name] > now + MAX_AHEAD:
            self._last[name] = now
        verdict = decide(schedule, self._last[name], due, now)
        if verdict is Verdict.NOTHING:
            return None
        if verdict is Verdict.SKIP:
            self._last[name] = due
            _log.warning("schedule %s missed its fire at %s and skips it", name, due)
            return "skipped"
        return self._fire(name, schedule, due)

    def _fire(self, name: str, schedule: ScheduleConfig, due: datetime) -> str | None:
        submission = Submission(
            type=schedule.type,
            payload=dict(schedule.payload),
            queue=schedule.queue,
            priority=schedule.priority,
            unique_key=f"schedule:{name}:{due.isoformat()}",
            metadata={"schedule": name, "fired_for": due.isoformat()},
        )
        try:
            self._submit(submission, Origin(Source.SCHEDULE, schedule.user_id))
        except Unavailable as error:
            _log.warning("schedule %s waits: %s", name, error)
            return None
        except Refused as error:
            self._last[name] = due
            _log.error("schedule %s was refused: %s", name, error)
            return "refused"
        self._last[name] = due
        return "fired"

    def _remember_new(self) -> None:
        """A schedule that is new begins with its next fire, and that one is not missed even if we end before it."""
        new = self._schedules.keys() - self._last.keys()
        if new:
            self._last.update(dict.fromkeys(new, self._clock()))
            self._write()

    def _read(self) -> dict[str, datetime]:
        try:
            known = json.loads(self._files.read(self._path))
            return {name: read_instant(at) for name, at in known.items() if name in self._schedules}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError, RecursionError, CorruptRecord) as error:
            _log.error("%s is damaged (%s): schedules begin anew with their next fire", self._path, error)
            with suppress(OSError):
                quarantine(self._files, Layout(os.path.dirname(self._path)), self._path, f"no memory of fires: {error}")
            return {}

    def _write(self) -> None:
        known = {name: at.isoformat() for name, at in self._last.items()}
        try:
            self._files.replace(self._path, json.dumps(known, indent=2).encode() + b"\n", f"{self._path}.tmp")
        except OSError as error:
            # What has fired is not fired again all the same: its task has the fire's unique key.
            _log.warning("%s cannot be written: %s", self._path, error)


def decide(schedule: ScheduleConfig, last: datetime, due: datetime, now: datetime) -> Verdict:
    """What to do about the fire that was `due`, when the one at `last` was the last that was dealt with."""
    if due <= last:
        return Verdict.NOTHING
    is_late = (now - due).total_seconds() > schedule.misfire_grace_seconds
    return Verdict.SKIP if is_late and schedule.misfire == "skip" else Verdict.FIRE
