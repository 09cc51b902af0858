from pathlib import Path
from typing import Any

import pytest

from runner.context import Cancelled, Fail
from runner.errors import InvalidSubmission
from tests.films import frames_of, needs_video, shoot
from tests.handlers.attempts import Attempt, starters

pytestmark = needs_video

TYPE = "video_stills"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second, 160x120."""
    return shoot(tmp_path_factory.mktemp("films") / "clip.mp4")


def test_the_frames_that_are_asked_for_are_written(tmp_path: Path, film: Path) -> None:
    """Each under its number, in full size, and a thumbnail."""
    import cv2

    attempt = Attempt(tmp_path, TYPE, (film,), filename="holiday.mov")

    result = attempt.run(frames=[20, 3, 20], form="png")

    assert [(picture["frame"], picture["output"]) for picture in result["stills"]] == [
        (3, "holiday_frame3.png"),
        (20, "holiday_frame20.png"),
    ]
    assert result["output"] == result["thumbnail"] == "holiday_thumbnail.jpg"
    assert (result["frames"], result["fps"], result["duration_seconds"]) == (25, 25.0, 1.0)
    picture = cv2.imread(str(attempt.output_dir / "holiday_frame20.png"))
    assert picture is not None
    assert abs(picture.astype(int) - frames_of(film)[20]).mean() < 4


def test_without_numbers_they_are_from_all_over_the_film(tmp_path: Path, film: Path) -> None:
    """As many as wanted, as wide as wanted."""
    import cv2

    attempt = Attempt(tmp_path, TYPE, (film,))

    result = attempt.run(count=3, max_width=80)

    assert [picture["frame"] for picture in result["stills"]] == [0, 8, 16]
    picture = cv2.imread(str(attempt.output_dir / "clip_frame8.jpg"))
    assert picture is not None
    assert picture.shape == (60, 80, 3)


def test_a_cancelled_one_stops(tmp_path: Path, film: Path) -> None:
    """Before the next pictures."""

    def stop(attempt: Attempt) -> None:
        attempt.context.stop("cancelled")

    with pytest.raises(Cancelled):
        Attempt(tmp_path, TYPE, (film,), on_progress=stop).run(count=20)


def test_what_is_no_film_fails_for_good(tmp_path: Path, film: Path) -> None:
    """Nor are two films one."""
    (tmp_path / "broken.mp4").write_bytes(b"no film\n" * 999)
    for inputs, code in (((tmp_path / "broken.mp4",), "unreadable_media"), ((film, film), "wrong_inputs")):
        with pytest.raises(Fail) as caught:
            Attempt(tmp_path, TYPE, inputs).run()
        assert caught.value.code == code


@pytest.mark.parametrize("payload", [{"frames": []}, {"count": 0}, {"max_width": 1}, {"form": "gif"}])
def test_a_wrong_payload_is_refused_with_a_pointer_to_the_fault(payload: dict[str, Any]) -> None:
    """Nothing is stored for it."""
    with pytest.raises(InvalidSubmission) as caught:
        starters().get(TYPE).validate(payload)

    assert [problem.pointer for problem in caught.value.problems] == [f"/payload/{next(iter(payload))}"]
