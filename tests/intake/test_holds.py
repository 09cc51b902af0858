"""Files that are held, and when they are looked at again."""

from datetime import UTC, datetime

import pytest

from runner.intake.folders import Folder
from runner.intake.holds import LATEST_SECONDS, RARELY_SECONDS, Hold, Holds, Why, next_look
from runner.intake.readiness import Sighting, Watched, Writer

FOLDER = Folder("/inbox/a", "a")
SEEN = Sighting(1, 2, 3, 4, 0o100644, 0, 1, Writer.SOME)


def _hold(name: str = "clip.mp4", why: Why = Why.WRITING, watched: Watched | None = None) -> Hold:
    return Hold(FOLDER, name, why, "because", datetime(2026, 1, 1, tzinfo=UTC), 0.0, watched)


def test_a_hold_is_due_once_at_its_latest_time() -> None:
    """Being kept again replaces the time from before."""
    holds, hold = Holds(), _hold()
    holds.keep(hold, 1.0)
    holds.keep(hold, 2.0)
    assert holds.due(1.5) == []
    assert holds.due(2.0) == [hold]
    assert holds.due(9.0) == []


def test_a_released_hold_is_never_due() -> None:
    """The file was taken or is gone."""
    holds = Holds()
    holds.keep(_hold(), 1.0)
    holds.release("/inbox/a/clip.mp4")
    assert holds.due(9.0) == []
    assert "/inbox/a/clip.mp4" not in holds


@pytest.mark.parametrize(("quiet", "wait"), [(0.0, 0.01), (0.05, 0.01), (1.0, 0.1), (60.0, LATEST_SECONDS)])
def test_a_steady_writer_is_asked_after_often_and_a_sleepy_one_rarely(quiet: float, wait: float) -> None:
    """So that the end of a steady one is seen within some 10 ms."""
    watched = Watched(0.0, SEEN, SEEN, 100.0 - quiet)
    assert next_look(Holds(), _hold(watched=watched), 100.0, 2.0) == pytest.approx(100.0 + wait)


def test_many_held_files_are_asked_after_less_often_each() -> None:
    """5,000 files being written must not cost a core."""
    holds = Holds()
    for number in range(5000):
        holds.keep(_hold(f"{number}"), 1e9)
    watched = Watched(0.0, SEEN, SEEN, 100.0)
    assert next_look(holds, _hold(watched=watched), 100.0, 2.0) >= 101.0


def test_a_settling_file_is_looked_at_when_it_may_have_settled() -> None:
    """Not before: no look in between can change anything."""
    hold = _hold(why=Why.SETTLING, watched=Watched(0.0, SEEN, SEEN, 100.0))
    assert next_look(Holds(), hold, 100.5, 2.0) == 102.0


def test_what_no_look_can_end_is_looked_at_ever_more_rarely() -> None:
    """A sidecar without its file waits for an event; a look every ten seconds is enough."""
    hold = _hold(why=Why.FILE)
    waits = []
    for looks in range(8):
        hold.looks = looks
        waits.append(next_look(Holds(), hold, 0.0, 2.0))
    assert waits == sorted(waits)
    assert waits[-1] == RARELY_SECONDS
