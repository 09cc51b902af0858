"""Cron means what cron means by it."""

from datetime import UTC, datetime
from threading import Event
from zoneinfo import ZoneInfo

import pytest

from runner.dispatch.timetable import CronTrigger, Timetable, last_fire, next_fire

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 * * 1", datetime(2026, 11, 23, tzinfo=UTC)),
        ("0 0 * * 7", datetime(2026, 11, 22, tzinfo=UTC)),
        ("0 0 13 * 5", datetime(2026, 11, 27, tzinfo=UTC)),
        ("30 2 * * *", datetime(2026, 11, 21, 2, 30, tzinfo=UTC)),
    ],
)
def test_weekdays_count_from_sunday_and_days_are_one_or_the_other(expression: str, expected: datetime) -> None:
    """Monday is 1, Sunday is 0 and 7, and day of month and day of week are alternatives."""
    after = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert CronTrigger(expression, "UTC").get_next_fire_time(None, after) == expected


def test_the_last_fire_includes_the_very_instant() -> None:
    """A look at the moment of a fire finds that fire, not the one before."""
    zone = ZoneInfo("UTC")
    assert last_fire("0 0 * * *", zone, MONDAY) == MONDAY
    assert last_fire("0 0 * * *", zone, MONDAY.replace(hour=23)) == MONDAY


def test_a_fire_is_at_the_local_hour_of_its_time_zone() -> None:
    """02:30 in Shanghai is 18:30 in UTC the day before."""
    fire = next_fire("30 2 * * *", ZoneInfo("Asia/Shanghai"), MONDAY)
    assert fire.astimezone(UTC) == datetime(2026, 11, 23, 18, 30, tzinfo=UTC)


def test_an_error_in_one_call_does_not_end_the_timetable(caplog: pytest.LogCaptureFixture) -> None:
    """What fails is logged, and called again when its time comes."""
    calls, twice = [], Event()

    def fail() -> None:
        calls.append(1)
        if len(calls) == 2:
            twice.set()
        raise ValueError("broken")

    timetable = Timetable()
    timetable.every(0.01, "broken job", fail)
    timetable.start()
    try:
        assert twice.wait(10)
    finally:
        timetable.close()
    assert "broken job failed: broken" in caplog.text
