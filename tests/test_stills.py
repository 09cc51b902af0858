import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner import ffmpeg, stills
from runner.stills import Form
from tests.films import children_of, encode, frames_of, needs_video, shoot

if TYPE_CHECKING:
    from tests.films import Image

pytestmark = needs_video


class Stopped(Exception):
    """What a test stops the taking with."""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds with sound, 480x270, a keyframe every second."""
    return shoot(tmp_path_factory.mktemp("films") / "clip.mp4", "testsrc2=s=480x270:r=25", "-g", "25", seconds=3)


def _open(image: bytes) -> "Image":
    """The picture as OpenCV decodes it: blue, green, red."""
    import cv2
    import numpy as np

    picture = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture, np.uint8)


def _apart(one: "Image", other: "Image") -> float:
    return float(abs(one[::5, ::5].astype(int) - other[::5, ::5]).mean())


@pytest.mark.parametrize("form", Form)
def test_a_still_is_the_frame_of_its_number(film: Path, form: Form) -> None:
    """As OpenCV counts and decodes them, at keyframes and between them; its neighbours differ more."""
    frames = frames_of(film)
    numbers = [0, 1, 24, 25, 26, 60, 74]

    for number, still in zip(numbers, stills.take_stills(film, numbers, form=form), strict=True):
        distances = [_apart(_open(still.image), frame) for frame in frames]
        assert distances.index(min(distances)) == number
        assert min(distances) < 4
        assert still.seconds == pytest.approx(number / 25, abs=0.03)


def test_a_number_past_the_end_is_the_last_frame(film: Path) -> None:
    """Whoever counts by a rounded length asks for one too many."""
    still = stills.take_still(film, 999)

    assert still.number == 74
    assert _apart(_open(still.image), frames_of(film)[-1]) < 4


def test_a_film_whose_picture_ends_before_its_sound_has_a_last_frame(tmp_path: Path, film: Path) -> None:
    """Its length is that of the sound, and nothing is seen there."""
    source = tmp_path / "short.mkv"
    encode("-t", "1", "-i", film, "-i", film, "-map", "0:v", "-map", "1:a", "-c", "copy", source)

    assert _apart(_open(stills.take_still(source, 70).image), frames_of(source)[-1]) < 4


def test_a_survey_shows_all_of_a_film(film: Path) -> None:
    """As many as were asked for, from the first on, small, and each is the frame that its number says."""
    frames = frames_of(film)

    seen = stills.survey(film, 7, max_width=240)

    numbers = [still.number for still in seen.stills]
    assert (seen.frames, seen.fps, seen.width, seen.height) == (75, 25.0, 480, 270)
    assert len(numbers) == 7
    assert numbers[0] == 0
    assert max(late - early for early, late in zip(numbers, [*numbers[1:], 75], strict=True)) <= 25
    assert {_open(still.image).shape for still in seen.stills} == {(135, 240, 3)}
    for still in stills.survey(film, 7, max_width=None).stills:
        assert _apart(_open(still.image), frames[still.number]) < 4


def test_a_survey_of_a_few_frames_has_no_frame_twice(tmp_path: Path) -> None:
    """Twelve pictures of three frames are three."""
    source = shoot(tmp_path / "brief.mp4", "testsrc2=s=64x48:r=10", seconds=0.3)

    assert [still.number for still in stills.survey(source).stills] == [0, 1, 2]


def test_a_thumbnail_shows_something(tmp_path: Path) -> None:
    """A film that begins in the dark is not a black square, and the picture is no wider than it may be."""
    dark = "testsrc2=s=320x240:r=10,drawbox=c=black:t=fill:enable='lt(t,1)'"
    source = shoot(tmp_path / "dark.mp4", dark, seconds=3)

    picture = _open(stills.take_thumbnail(source, 160))

    assert picture.shape == (120, 160, 3)
    assert picture.mean() > 40


def test_a_film_on_its_side_is_shown_upright(tmp_path: Path, film: Path) -> None:
    """A region drawn on the picture lies where it is meant."""
    encode("-display_rotation", "90", "-i", film, "-c", "copy", tmp_path / "upright.mp4")

    assert _open(stills.take_still(tmp_path / "upright.mp4", 3).image).shape == (480, 270, 3)


@pytest.mark.parametrize("colour", [("bt709", "tv"), ("smpte170m", "tv"), ("bt709", "pc")])
@pytest.mark.parametrize("form", Form)
def test_colours_are_those_of_the_film(tmp_path: Path, colour: tuple[str, str], form: Form) -> None:
    """Whatever the matrix and the range of the film: a picture says nothing of either."""
    matrix, levels = colour
    tags = ("-vf", f"scale=out_color_matrix={matrix}:out_range={levels},format=yuv420p", "-colorspace", matrix)
    source = shoot(tmp_path / "plain.mp4", "color=c=0x40A0D0:s=64x48:r=5", *tags, "-color_range", levels)

    picture = _open(stills.take_still(source, 2, form=form).image)

    assert abs(picture[20, 30].astype(int) - [0xD0, 0xA0, 0x40]).max() <= 8


def test_a_recording_without_a_length_has_stills_too(tmp_path: Path) -> None:
    """What a browser records is measured first."""
    live = shoot(tmp_path / "live.webm", "testsrc2=s=64x48:r=25", "-c:v", "libvpx", "-live", "1", "-f", "webm")

    seen = stills.survey(live, 4)

    assert seen.frames == pytest.approx(25, abs=1)
    assert len(seen.stills) == 4


def test_what_is_no_film_has_no_stills(tmp_path: Path) -> None:
    """The reason names the file."""
    (tmp_path / "broken.mp4").write_bytes(b"no film\n" * 999)

    with pytest.raises(ffmpeg.UnreadableMedia, match=r"broken\.mp4"):
        stills.survey(tmp_path / "broken.mp4")


def test_the_taking_can_be_stopped(film: Path) -> None:
    """By an exception of the caller's; no ffmpeg is left."""

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        stills.survey(film, check_cancelled=stop)

    assert children_of(os.getpid()) == []


def test_who_can_stop_the_taking_is_given_all_the_time_he_wants(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler has its own limit; a request, which nobody can cancel, has ours."""
    monkeypatch.setattr(stills, "_TIMEOUT_SECONDS", 0.0)
    assert stills.take_still(film, 10, check_cancelled=lambda: None).number == 10
    with pytest.raises(ffmpeg.FfmpegFailed, match="took longer"):
        stills.take_still(film, 10)


def test_a_time_is_that_of_the_frame_which_is_shown_then() -> None:
    """The frame that began last, however the time was rounded."""
    media = ffmpeg.Media(64, 48, 10.0, Fraction(25), "h264")

    assert [stills.find_number(media, seconds) for seconds in (0, 0.039, 0.04, 0.05, 1.0, 7.9999)] == [
        0,
        0,
        1,
        1,
        25,
        199,
    ]
