"""A clock that jumps, ahead, back, or to 1970: nothing is deleted early, and everything goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apscheduler.job import Job

from runner.config import RetentionConfig, RetentionRule, ScheduleConfig
from runner.dispatch.cleanup import BELIEVED_AFTER_SECONDS, Cleanup
from runner.dispatch.timetable import Timetable
from runner.intake.schedules import Schedules
from runner.store import TaskQuery
from runner.task import Source, Status
from tests.rig import NOON, Rig, opened

DAY = 86_400.0
HOUR = 3600.0
JUMPS = [HOUR, -HOUR, DAY, -DAY, -(NOON - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()]
NAMES = ["an hour ahead", "an hour back", "a day ahead", "a day back", "1970"]
_ALL = TaskQuery(source=Source.SCHEDULE, size=1000)
WEEK = RetentionConfig(completed=7 * DAY, failed=7 * DAY, cancelled=7 * DAY, drafts=DAY)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A runner with a clock that is set by hand."""
    with opened(tmp_path) as rig:
        yield rig


class Beside:
    """The cleanup of a rig, and how long its machine is up: what passes really passes there, too."""

    def __init__(self, rig: Rig, retention: RetentionConfig = WEEK) -> None:
        self._rig = rig
        self._up = 1000.0
        self._cleanup = Cleanup(rig.it.store, retention, _no_rule, rig.clock, lambda: self._up)

    def pass_time(self, seconds: float) -> None:
        """So much time goes by."""
        self._up += seconds
        self._rig.advance(seconds)

    def removed(self) -> int:
        """How much goes by itself now."""
        self._rig.settle()
        return len(self._cleanup.run_by_itself().removed)


def _no_rule(type: str) -> RetentionRule | None:
    return None


@pytest.mark.parametrize("jump", JUMPS, ids=NAMES)
def test_nothing_is_removed_early_however_the_clock_jumps(rig: Rig, jump: float) -> None:
    """Neither what ended before, nor what ended by the wrong time; and when its week is over, it goes."""
    beside = Beside(rig)
    rig.until(rig.submit("echo"))
    rig.submit("echo", draft=True)
    beside.pass_time(DAY - 2 * HOUR)
    running = rig.submit("act", script=["wait"], gate=rig.gate())
    rig.until(running, Status.PROCESSING)
    rig.advance(jump)
    rig.until(rig.submit("echo"))
    rig.it.cancel(running.id)
    assert beside.removed() == 0
    rig.advance(-jump)
    assert beside.removed() == 0
    beside.pass_time(5 * DAY)
    # The draft, which had a day; and what was made and ended in 1970, which looks old once the new time is believed.
    assert beside.removed() == (1 if abs(jump) <= DAY else 2)
    beside.pass_time(4 * DAY)
    assert beside.removed() >= 2


def test_a_clock_that_stays_ahead_is_believed_after_a_day(rig: Rig) -> None:
    """It was wrong before, then."""
    beside = Beside(rig)
    rig.until(rig.submit("echo"))
    rig.advance(30 * DAY)
    assert beside.removed() == 0
    beside.pass_time(BELIEVED_AFTER_SECONDS / 2)
    assert beside.removed() == 0
    beside.pass_time(BELIEVED_AFTER_SECONDS / 2 + 1)
    assert beside.removed() == 1


def test_a_machine_that_slept_has_not_jumped(rig: Rig) -> None:
    """Its sleep counts as time that has passed."""
    beside = Beside(rig)
    rig.until(rig.submit("echo"))
    beside.pass_time(8 * DAY)
    assert beside.removed() == 1


@pytest.mark.parametrize("jump", JUMPS, ids=NAMES)
def test_a_retry_waits_as_long_as_it_was_to_wait(rig: Rig, jump: float) -> None:
    """Ten seconds, whatever year it is meanwhile; not earlier when the clock went back."""
    task = rig.submit("act", script=["raise", "done"])
    rig.when(task, lambda now: now.run_after is not None)
    rig.advance(jump)
    rig.it.dispatcher.run_once()
    if jump < 0:
        rig.settle()
        assert rig.it.get(task.id).status is Status.PENDING
    rig.advance(11)
    assert rig.until(task).result == "done"


@pytest.mark.parametrize("jump", JUMPS, ids=NAMES)
def test_a_retry_that_is_settled_after_the_clock_was_set_waits_as_long(rig: Rig, jump: float) -> None:
    """The attempt began by the old time and failed by the new one: ten seconds from then."""
    gate = rig.gate()
    task = rig.submit("act", script=["wait", "raise", "done"], gate=gate, delay=5)
    rig.advance(5)
    rig.until(task, Status.PROCESSING)
    rig.advance(jump)
    rig.close(grace_seconds=0)
    rig.open()
    waiting = rig.when(task, lambda now: now.attempt == 2 and now.run_after is not None)
    assert waiting.run_after == rig.clock.now + timedelta(seconds=10)
    rig.it.dispatcher.run_once()
    rig.settle()
    assert rig.it.get(task.id).status is Status.PENDING
    rig.advance(11)
    assert rig.until(task).result == "done"


@pytest.mark.parametrize("jump", JUMPS, ids=NAMES)
def test_schedules_go_on_by_the_new_time_and_fire_nothing_twice(rig: Rig, tmp_path: Path, jump: float) -> None:
    """By the new time, and by the old one when that is back; each instant has one task."""
    hourly = {"tick": ScheduleConfig(cron="0 * * * *", type="echo")}
    schedules = Schedules(hourly, rig.it.store.files, f"{tmp_path}/schedules.json", rig.it.submit, rig.clock)
    schedules.open(Timetable())
    for step in (HOUR, jump, 3 * HOUR, -jump, HOUR):
        rig.advance(step)
        schedules.run_once()
    assert schedules.run_once().fired == ()
    rig.advance(3 * HOUR)
    assert schedules.run_once().fired == ("tick",)
    fires = [task.metadata["fired_for"] for task in rig.it.all_tasks(_ALL)]
    assert len(fires) == len(set(fires)) >= 3


def test_what_is_called_every_so_often_is_called_on_when_the_clock_is_set_back() -> None:
    """Not only when the old time comes again."""
    timetable = Timetable()
    timetable.every(HOUR, "look", lambda: None)
    timetable.at("0 * * * *", "UTC", "tick", lambda: None)
    timetable.start()
    try:
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        jobs: list[Job] = timetable._scheduler.get_jobs()
        for job in jobs:
            job.modify(next_run_time=tomorrow)
        timetable.begin_anew()
        assert all(job.next_run_time <= tomorrow - timedelta(hours=22) for job in timetable._scheduler.get_jobs())
    finally:
        timetable.close()


def test_the_dispatcher_says_when_the_clock_was_set_back(rig: Rig) -> None:
    """Once for each time; not when it is corrected by a little."""
    told: list[datetime] = []
    rig.it.dispatcher.clock_went_back = lambda: told.append(rig.clock.now)
    for step in (HOUR, -1, -HOUR, 1):
        rig.clock.now += timedelta(seconds=step)
        rig.it.dispatcher.run_once()
    assert len(told) == 1
