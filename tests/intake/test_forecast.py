"""How long what waits will wait."""

from dataclasses import replace
from datetime import timedelta

from runner.intake.forecast import Forecast, forecast_of
from runner.task import Outcome
from tests.intake.conftest import Site


def test_an_estimate_is_the_usual_time_for_each_round_of_slots() -> None:
    """Half of one for what runs already; rough, and said so."""
    forecast = Forecast(10.0, 3, 4)
    assert [forecast.wait(ahead) for ahead in (0, 3, 4, 40)] == [5.0, 5.0, 15.0, 105.0]
    assert forecast.facts(4) == {"estimate_seconds": 15.0, "usual_seconds": 10.0, "samples": 3}


def test_only_tasks_that_completed_tell_of_the_pace(site: Site) -> None:
    """One that failed at once, or an odd one among them, does not spoil it."""
    site.drop("keep/a.txt")
    site.scan()
    done = site.run(site.only_task())
    (attempt,) = done.attempts
    took = [
        replace(attempt, ended_at=attempt.started_at + timedelta(seconds=seconds), outcome=outcome)
        for seconds, outcome in (
            (4, Outcome.COMPLETED), (5, Outcome.COMPLETED), (500, Outcome.COMPLETED), (0, Outcome.FAILED)
        )
    ]  # fmt: skip
    tasks = [replace(done, attempts=(one,)) for one in took]
    assert forecast_of(tasks, slots=2) == Forecast(5.0, 3, 2)
    assert forecast_of([], slots=2) is None
