import os
import sys
from pathlib import Path
from typing import Any

import pytest

from runner import ffmpeg
from runner.context import Cancelled, Fail
from runner.errors import InvalidSubmission
from tests.films import children_of, encode, frames_of, loudness_of, needs_video, shoot
from tests.handlers.attempts import Attempt, parts_of, starters

pytestmark = needs_video

TYPE = "video_merge"
LOUD, SILENT = -30, -60


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of red with a tone, 160x120 at 25."""
    return shoot(tmp_path_factory.mktemp("red") / "red.mp4", "color=red:s=160x120:r=25")


@pytest.fixture(scope="module")
def green(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of green with a tone, 160x120 at 25."""
    return shoot(tmp_path_factory.mktemp("green") / "green.mp4", "color=lime:s=160x120:r=25")


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of blue without sound, of another size and rate."""
    path = tmp_path_factory.mktemp("blue") / "blue.mkv"
    return shoot(path, "color=blue:s=90x160:r=30000/1001", sound=False)


def _colours(path: Path) -> str:
    """The colour in the middle of every fifth frame, by its letter, repetitions left out."""
    seen = ["bgr"[int(frame[60, 80].argmax())] for frame in frames_of(path)[2::5]]
    return "".join(letter for position, letter in enumerate(seen) if position == 0 or seen[position - 1] != letter)


def test_films_of_different_sizes_rates_and_sound_become_one(
    tmp_path: Path, red: Path, silent: Path, green: Path
) -> None:
    """As long as all together, in the size and the rate that most of them have."""
    attempt = Attempt(tmp_path, TYPE, (red, silent, green))

    result = attempt.run()

    made = ffmpeg.probe(attempt.made(result))
    assert result == {
        "inputs": 3,
        "duration_seconds": pytest.approx(3, abs=0.1),
        "width": 160,
        "height": 120,
        "fps": 25.0,
        "output": "red_merged.mp4",
    }
    assert (made.video_codec, made.audio_codecs) == ("h264", ("aac",))
    assert _colours(attempt.made(result)) == "rbg"


def test_sound_stays_with_its_picture(tmp_path: Path, red: Path, silent: Path, green: Path) -> None:
    """A film without sound is silent for its whole length, and what follows is not early."""
    attempt = Attempt(tmp_path, TYPE, (red, silent, green))

    made = attempt.made(attempt.run())

    assert loudness_of(made, 0.1, 0.8) > LOUD
    assert loudness_of(made, 1.15, 0.7) < SILENT
    assert loudness_of(made, 2.1, 0.7) > LOUD


@pytest.mark.parametrize("shift", [("-itsoffset", "0.6"), ("-t", "0.4")])
def test_sound_that_begins_late_or_ends_early_moves_nothing(tmp_path: Path, red: Path, shift: tuple[str, str]) -> None:
    """A track may be shorter than its picture at either end; both films keep their places."""
    source = tmp_path / "short.mkv"
    encode("-i", red, *shift, "-i", red, "-map", "0:v", "-map", "1:a", "-t", "1", source)
    attempt = Attempt(tmp_path, TYPE, (source, red))

    made = attempt.made(attempt.run())

    heard = [loudness_of(made, start, 0.25) > LOUD for start in (0.1, 0.7, 1.1, 1.7)]
    assert heard == [shift[0] == "-t", shift[0] != "-t", True, True]


def test_a_picture_that_begins_late_does_not_come_early(tmp_path: Path, red: Path, green: Path) -> None:
    """Its first frame stands until its time, so what is seen stays with what is heard."""
    turning = shoot(tmp_path / "turning.mp4", "color=red:s=160x120:r=25,drawbox=c=blue:t=fill:enable='gte(t,0.5)'")
    source = tmp_path / "late.mkv"
    encode("-itsoffset", "0.6", "-i", turning, "-i", red, "-map", "0:v", "-map", "1:a", source)
    attempt = Attempt(tmp_path, TYPE, (source, green))

    frames = frames_of(attempt.made(attempt.run()))

    assert ["bgr"[int(frames[number][60, 80].argmax())] for number in (24, 30, 38, 44)] == ["r", "b", "b", "g"]


def test_only_the_sound_of_the_first_can_be_kept(tmp_path: Path, red: Path, green: Path) -> None:
    """`keep_first`: the others play in silence."""
    attempt = Attempt(tmp_path, TYPE, (red, green))

    made = attempt.made(attempt.run(audio_handling="keep_first"))

    assert loudness_of(made, 0.1, 0.8) > LOUD
    assert loudness_of(made, 1.15, 0.7) < SILENT


@pytest.mark.parametrize("audio", ["remove", "keep_first", "keep_all"])
def test_where_no_sound_is_left_there_is_no_track(tmp_path: Path, silent: Path, red: Path, audio: str) -> None:
    """A track of nothing but silence would only take room."""
    second = red if audio != "keep_all" else silent
    attempt = Attempt(tmp_path, TYPE, (silent, second))

    assert not ffmpeg.probe(attempt.made(attempt.run(audio_handling=audio))).has_audio


def test_a_film_of_another_shape_gets_black_beside_it(tmp_path: Path, red: Path, green: Path, silent: Path) -> None:
    """An upright film in a wide one is not stretched."""
    attempt = Attempt(tmp_path, TYPE, (red, green, silent))

    last = frames_of(attempt.made(attempt.run()))[-3]

    assert last[:, :40].max() < 20
    assert last[:, -40:].max() < 20
    assert last[10:-10, 60:100, 0].min() > 200


def test_pixels_that_are_not_square_are_shown_as_they_should(tmp_path: Path, red: Path, green: Path) -> None:
    """A film of 60x120 whose pixels are twice as wide as high fills a square."""
    wide = shoot(tmp_path / "wide.mp4", "color=blue:s=60x120:r=25,setsar=2")
    attempt = Attempt(tmp_path, TYPE, (red, green, wide))

    last = frames_of(attempt.made(attempt.run()))[-3]

    assert last[:, :16].max() < 20
    assert last[20:-20, 24:136, 0].min() > 200


def test_an_odd_size_becomes_even_without_black(tmp_path: Path) -> None:
    """The shape of odd films is one pixel larger, and they fill it."""
    odd = shoot(tmp_path / "odd.webm", "color=red:s=64x48:r=10,format=yuv444p,crop=61:47:exact=1", "-c:v", "libvpx-vp9")
    attempt = Attempt(tmp_path, TYPE, (odd, odd))

    frame = frames_of(attempt.made(attempt.run()))[5]

    assert frame.shape == (48, 62, 3)
    assert frame[:, :, 2].min() > 200


def test_cuts_come_in_their_order(tmp_path: Path, red: Path, green: Path) -> None:
    """By name or by number, from when to when, the same film twice, each where `order` puts it."""
    attempt = Attempt(tmp_path, TYPE, (red, green), filename="holiday.mov")

    result = attempt.run(
        segments=[
            {"index": 1, "start_time": 0.2, "end_time": 0.6, "order": 2},
            {"filename": "red.mp4", "end_time": 0.4, "order": 1},
            {"filename": "red.mp4", "start_time": 0.4, "end_time": 99, "order": 3},
        ],
        output_name="best of",
        quality_preset="low",
    )

    assert result["output"] == "best of.mp4"
    assert result["inputs"] == 2
    assert result["duration_seconds"] == pytest.approx(1.4, abs=0.1)
    assert _colours(attempt.made(result)) == "rgr"


def test_pieces_of_one_film_can_be_joined(tmp_path: Path, red: Path) -> None:
    """A cut is enough: the film without its middle."""
    attempt = Attempt(tmp_path, TYPE, (red,))

    result = attempt.run(segments=[{"index": 0, "end_time": 0.2}, {"index": 0, "start_time": 0.6}])

    assert (result["inputs"], result["duration_seconds"]) == (1, pytest.approx(0.6, abs=0.1))


@pytest.mark.parametrize(("worse", "better"), [("low", "medium"), ("medium", "high")])
def test_a_better_preset_keeps_more_of_the_picture(tmp_path: Path, worse: str, better: str) -> None:
    """Closer to the original, and a larger file."""
    film = shoot(tmp_path / "film.mp4", "testsrc2=s=160x120:r=25,noise=alls=20", "-qp", "0", sound=False)

    def lose(quality: str) -> tuple[float, int]:
        attempt = Attempt(tmp_path / quality, TYPE, (film,))
        made = attempt.made(attempt.run(segments=[{"index": 0}], quality_preset=quality))
        frames = zip(frames_of(film), frames_of(made), strict=True)
        return sum(abs(one.astype(int) - other).mean() for one, other in frames), -made.stat().st_size

    assert lose(worse) > lose(better)


def test_a_segment_without_order_stays_where_it_was_given() -> None:
    """The position in the list counts."""
    parts = parts_of(TYPE)
    given = [parts["Segment"](index=index, order=order) for index, order in [(0, None), (1, 0), (2, None), (3, 1)]]

    assert [segment.index for segment in parts["arrange"](given)] == [0, 1, 3, 2]


def test_a_recording_without_a_length_is_measured(tmp_path: Path, red: Path) -> None:
    """What a browser records does not say how long it is."""
    live = shoot(tmp_path / "live.webm", "color=lime:s=160x120:r=25", "-c:v", "libvpx", "-live", "1", "-f", "webm")
    attempt = Attempt(tmp_path, TYPE, (live, red))

    result = attempt.run()

    assert result["duration_seconds"] == pytest.approx(2, abs=0.1)
    assert _colours(attempt.made(result)) == "gr"


def test_a_film_that_breaks_off_is_held_to_its_end_with_a_warning(tmp_path: Path, red: Path, green: Path) -> None:
    """What follows stays where it belongs, but the log says that something is missing."""
    encode("-i", green, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: len(content) * 2 // 3])
    attempt = Attempt(tmp_path, TYPE, (tmp_path / "half.mp4", red))

    result = attempt.run()

    assert result["duration_seconds"] == pytest.approx(2, abs=0.1)
    assert [level for level, _ in attempt.log] == ["warning"]


def test_progress_is_that_of_ffmpeg(tmp_path: Path) -> None:
    """Its seconds of film drive the percentage, up to the end."""
    film = shoot(tmp_path / "long.mp4", "testsrc2=s=320x240:r=25", "-preset", "ultrafast", seconds=5)
    attempt = Attempt(tmp_path, TYPE, (film, film))
    attempt.run(quality_preset="high")

    reports = [said for said in attempt.said if said.stage == "merging"]
    shares = [said.percentage for said in reports]
    assert shares == sorted(shares)
    assert len(set(shares)) > 2
    assert reports[-1].message.endswith(" of 10.0 s")


def test_a_cancelled_one_stops_in_the_middle_and_leaves_no_child(tmp_path: Path) -> None:
    """It does not run to the end, and no ffmpeg is left when it has stopped."""
    film = shoot(tmp_path / "long.mp4", "testsrc2=s=320x240:r=25", "-preset", "ultrafast", seconds=60)

    def stop(attempt: Attempt) -> None:
        if attempt.said[-1].stage == "merging":
            attempt.context.stop("cancelled")

    attempt = Attempt(tmp_path, TYPE, (film, film), on_progress=stop)
    with pytest.raises(Cancelled):
        attempt.run()

    assert attempt.said[-1].percentage < 90
    assert children_of(os.getpid()) == []


@pytest.mark.parametrize(
    ("segments", "code"),
    [
        ([{"index": 7}], "unknown_segment"),
        ([{"filename": "nobody.mp4"}], "unknown_segment"),
        ([{"index": 0}, {"index": 1, "start_time": 5}], "empty_segment"),
    ],
)
def test_a_cut_that_is_not_there_fails_for_good(
    tmp_path: Path, red: Path, green: Path, segments: list[dict[str, Any]], code: str
) -> None:
    """No such input, or nothing in it at that time: another attempt would not help."""
    with pytest.raises(Fail) as caught:
        Attempt(tmp_path, TYPE, (red, green)).run(segments=segments)

    assert caught.value.code == code


def test_one_film_is_not_enough(tmp_path: Path, red: Path) -> None:
    """There is nothing to join."""
    with pytest.raises(Fail, match="two or more videos, not 1"):
        Attempt(tmp_path, TYPE, (red,)).run()


def test_a_corrupt_file_fails_for_good_and_is_named(tmp_path: Path, red: Path) -> None:
    """Among several inputs, the person needs to know which."""
    (tmp_path / "broken.mp4").write_bytes(b"no film\n" * 999)

    with pytest.raises(Fail, match=r"broken\.mp4 is no video that ffmpeg can read") as caught:
        Attempt(tmp_path, TYPE, (red, tmp_path / "broken.mp4")).run()

    assert caught.value.code == "unreadable_media"


def test_a_missing_ffmpeg_fails_for_good_and_says_how_to_get_one(
    tmp_path: Path, red: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the extra."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)

    with pytest.raises(Fail, match=r"ffmpeg .*pip install 'file-runner\[video\]'") as caught:
        Attempt(tmp_path, TYPE, (red, red)).run()

    assert caught.value.code == "ffmpeg_missing"


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({"segments": []}, "/payload/segments"),
        ({"segments": [{}]}, "/payload/segments/0"),
        ({"segments": [{"index": 0, "filename": "red.mp4"}]}, "/payload/segments/0"),
        ({"segments": [{"index": 0, "start_time": 2, "end_time": 2}]}, "/payload/segments/0"),
        ({"segments": [{"index": 0, "start_time": -1}]}, "/payload/segments/0/start_time"),
        ({"segments": [{"index": 0, "speed": 2}]}, "/payload/segments/0/speed"),
        ({"audio_handling": "louder"}, "/payload/audio_handling"),
        ({"quality_preset": "best"}, "/payload/quality_preset"),
        ({"output_name": "../merged.mp4"}, "/payload/output_name"),
        ({"output_name": ".merged.mp4"}, "/payload/output_name"),
    ],
)
def test_a_wrong_payload_is_refused_with_a_pointer_to_the_fault(payload: dict[str, Any], pointer: str) -> None:
    """Nothing is stored for it."""
    handler = starters().find(TYPE)
    assert handler is not None

    with pytest.raises(InvalidSubmission) as caught:
        handler.validate(payload)

    assert [problem.pointer for problem in caught.value.problems] == [pointer]
