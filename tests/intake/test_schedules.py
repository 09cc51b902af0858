"""A schedule fires once for each of its instants, whatever happens in between."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runner.config import ScheduleConfig
from runner.dispatch.timetable import Timetable
from runner.errors import DiskFull, RunnerError, UnknownHandler
from runner.intake.admission import Origin, Submission
from runner.intake.schedules import Schedules
from runner.store import Files
from runner.task import Source, Status, Task

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOURLY = ScheduleConfig(cron="0 * * * *", type="tidy", payload={"deep": True})


class Bench:
    """Schedules with a clock that is turned by hand and a door that writes down what comes in."""

    def __init__(self, folder: Path, schedule: ScheduleConfig = HOURLY) -> None:
        self.now = NOON + timedelta(minutes=30)
        self.submissions: list[tuple[Submission, Origin]] = []
        self.refusal: RunnerError | None = None
        self._path = f"{folder}/schedules.json"
        self.open(schedule)

    def open(self, schedule: ScheduleConfig = HOURLY) -> None:
        """As after a restart."""
        self.schedules = Schedules({"tidy up": schedule}, Files(), self._path, self.submit, lambda: self.now)
        timetable = Timetable()
        self.schedules.open(timetable)

    def submit(self, submission: Submission, origin: Origin) -> Task:
        if self.refusal is not None:
            raise self.refusal
        self.submissions.append((submission, origin))
        return Task(
            id="x", type="tidy", user_id="local", status=Status.PENDING, created_at=self.now, updated_at=self.now
        )

    def keys(self) -> list[str | None]:
        return [submission.unique_key for submission, _ in self.submissions]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An hourly schedule, opened at half past twelve."""
    return Bench(tmp_path)


def test_a_new_schedule_begins_with_its_next_fire(bench: Bench) -> None:
    """Nothing is made up for the time before a schedule existed."""
    assert bench.submissions == []
    bench.now = NOON + timedelta(hours=1)
    assert bench.schedules.run_once().fired == ("tidy up",)


def test_a_fire_submits_what_the_schedule_says_once(bench: Bench) -> None:
    """However often somebody looks, one instant is one task, of source `schedule`."""
    bench.now = NOON + timedelta(hours=1, seconds=5)
    for _ in range(3):
        bench.schedules.run_once()
    ((submission, origin),) = bench.submissions
    assert (submission.type, submission.payload, origin.source) == ("tidy", {"deep": True}, Source.SCHEDULE)
    assert submission.unique_key == "schedule:tidy up:2026-11-22T13:00:00+00:00"


def test_a_fire_that_was_missed_while_stopped_is_made_up_for_once(bench: Bench) -> None:
    """Three fires were missed; `run_once` runs the last of them."""
    bench.now = NOON + timedelta(hours=3, minutes=10)
    bench.open()
    assert bench.keys() == ["schedule:tidy up:2026-11-22T15:00:00+00:00"]


def test_a_missed_fire_is_skipped_where_the_schedule_says_so(tmp_path: Path) -> None:
    """`misfire: skip` runs nothing late, and goes on with the next one."""
    schedule = HOURLY.model_copy(update={"misfire": "skip"})
    bench = Bench(tmp_path, schedule)
    bench.now = NOON + timedelta(hours=3, minutes=10)
    bench.open(schedule)
    assert bench.submissions == []
    bench.now = NOON + timedelta(hours=4, seconds=1)
    assert bench.schedules.run_once().fired == ("tidy up",)


def test_a_fire_waits_while_nothing_is_accepted(bench: Bench) -> None:
    """A full disk delays the fire; it does not lose it."""
    bench.now = NOON + timedelta(hours=1)
    bench.refusal = DiskFull("full")
    assert bench.schedules.run_once().fired == ()
    bench.refusal = None
    assert bench.schedules.run_once().fired == ("tidy up",)


def test_a_refused_fire_is_told_and_not_repeated(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A schedule of an unknown handler does not fill the log."""
    bench.now = NOON + timedelta(hours=1)
    bench.refusal = UnknownHandler("tidy", "no handler tidy")
    assert bench.schedules.run_once().refused == ("tidy up",)
    assert bench.schedules.run_once().refused == ()
    assert "schedule tidy up was refused: no handler tidy" in caplog.text


def test_a_clock_that_goes_back_fires_nothing_twice(bench: Bench) -> None:
    """An hour that comes twice has one fire."""
    bench.now = NOON + timedelta(hours=2)
    bench.schedules.run_once()
    bench.now = NOON + timedelta(hours=1, seconds=1)
    assert bench.schedules.run_once().fired == ()


def test_a_damaged_memory_is_told_and_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read is not guessed at."""
    (tmp_path / "schedules.json").write_text("{torn")
    bench = Bench(tmp_path)
    assert bench.submissions == []
    assert "schedules.json is damaged" in caplog.text


def test_it_says_when_it_fires_next(bench: Bench) -> None:
    """For whoever looks at the schedule."""
    assert bench.schedules.upcoming() == {"tidy up": NOON + timedelta(hours=1)}
