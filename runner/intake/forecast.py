"""How long what waits will wait: an estimate from the latest tasks of the same type."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Final, NamedTuple

from runner.task import Outcome, Task
from runner.units import format_duration

LATEST: Final = 20
"""So many tasks that completed are asked how long they took."""


class Forecast(NamedTuple):
    """How long a task of one type takes, in seconds, said by so many `samples`; `slots`: how many may run at once."""

    seconds: float
    samples: int
    slots: int

    def wait(self, ahead: int) -> float:
        """Seconds until a task starts that so many go before, all slots being taken: as if all were of its type."""
        return (ahead // self.slots + 0.5) * self.seconds

    def facts(self, ahead: int) -> dict[str, object]:
        """The estimate as JSON."""
        return {
            "estimate_seconds": round(self.wait(ahead), 1),
            "usual_seconds": round(self.seconds, 3),
            "samples": self.samples,
        }

    def words(self, ahead: int) -> str:
        """The estimate for people."""
        about = format_duration(_rounded(self.wait(ahead)))
        return f"; as the last {self.samples} of its type took, it starts in about {about}"


def forecast_of(tasks: Iterable[Task], slots: int) -> Forecast | None:
    """What tasks of one type, the newest, tell of its forecast; None if none of them completed."""
    seconds = [
        (attempt.ended_at - attempt.started_at).total_seconds()
        for task in tasks
        for attempt in task.attempts[-1:]
        if attempt.outcome is Outcome.COMPLETED and attempt.ended_at is not None
    ]
    return Forecast(max(median(seconds), 0.0), len(seconds), max(slots, 1)) if seconds else None


def _rounded(seconds: float) -> float:
    """No more digits than an estimate deserves."""
    return round(seconds, 1) if seconds < 10 else float(round(seconds))
