import os
import select
import signal
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from runner import ffmpeg
from tests.films import NEVER_ENDING, children_of, encode, needs_video, shoot, times_of

pytestmark = needs_video

# Every fourth to eighth of 30 a second, and then all of them.
UNEVEN = ("-vf", "select='not(mod(n,7))+lt(n,20)*mod(n,4)+gt(n,40)'", "-fps_mode", "vfr")


class Stopped(Exception):
    """What these tests stop a run with."""


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds with sound."""
    return shoot(tmp_path_factory.mktemp("films") / "clip.mp4", seconds=2)


def _make_executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_configured_ffmpeg_goes_before_the_one_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names one gets that one."""
    mine, other = _make_executable(tmp_path / "mine" / "ffmpeg-9"), _make_executable(tmp_path / "bin" / "ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    assert ffmpeg.locate(mine) == mine
    assert ffmpeg.locate() == other


def test_without_one_on_path_the_wheel_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `video` is enough."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "imageio_ffmpeg" in str(ffmpeg.locate())


def test_a_configured_ffmpeg_that_is_not_there_is_not_replaced(tmp_path: Path) -> None:
    """Another version than the wanted one would be worse than none."""
    with pytest.raises(ffmpeg.FfmpegMissing, match="nowhere/ffmpeg"):
        ffmpeg.locate(tmp_path / "nowhere" / "ffmpeg")


def test_a_missing_ffmpeg_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)

    with pytest.raises(ffmpeg.FfmpegMissing, match=r"ffmpeg .* pip install 'file-runner\[video\]'"):
        ffmpeg.locate()


def test_probe_tells_what_a_film_holds(film: Path) -> None:
    """Length, size, rate, sound and codecs, without ffprobe."""
    media = ffmpeg.probe(film)

    assert (media.width, media.height, media.fps, media.duration_seconds) == (160, 120, 25.0, 2.0)
    assert (media.video_codec, media.audio_codecs, media.has_audio) == ("h264", ("aac",), True)
    assert (media.frames, media.variable_frame_rate) == (50, False)


def test_a_film_that_lies_on_its_side_has_the_size_that_is_shown(tmp_path: Path, film: Path) -> None:
    """A phone held upright writes a wide picture and a note to turn it."""
    encode("-display_rotation", "90", "-i", film, "-c", "copy", tmp_path / "upright.mp4")

    media = ffmpeg.probe(tmp_path / "upright.mp4")

    assert (media.width, media.height, media.rotation) == (120, 160, 90)


def test_a_varying_frame_rate_is_seen(tmp_path: Path) -> None:
    """The average rate differs from the rate of the times."""
    media = ffmpeg.probe(shoot(tmp_path / "uneven.mp4", "testsrc2=s=64x48:r=30", *UNEVEN, seconds=2))

    assert media.variable_frame_rate


HEAD = "Input #0, matroska,webm, from 'x':\n  Duration: N/A, start: 0.000000, bitrate: N/A\n"


def test_what_a_file_does_not_say_is_none() -> None:
    """A recording of a browser has no duration, and its rate may be missing."""
    media = ffmpeg.parse_media(
        HEAD + "  Stream #0:0: Video: vp8, yuv420p(tv, bt709/unknown/unknown), 640x480, 1k tbn\n"
    )

    assert (media.duration_seconds, media.fps, media.frames, media.matrix) == (None, None, None, "bt709")


@pytest.mark.parametrize(
    ("told", "rate"),
    [("23.98", Fraction(24000, 1001)), ("29.97", Fraction(30000, 1001)), ("24", Fraction(24)), ("1k", Fraction(1000))],
)
def test_a_rounded_frame_rate_is_taken_for_the_exact_one(told: str, rate: Fraction) -> None:
    """Two decimals are printed; a long film would drift by them."""
    line = f"  Stream #0:0(pt-BR): Video: h264 (High), yuv420p, 640x480, {told} fps, {told} tbr, 1k tbn (default)\n"

    assert ffmpeg.parse_media(HEAD + line).frame_rate == rate


def test_the_cover_of_a_song_is_no_film() -> None:
    """An attached picture is a video stream of one frame to ffmpeg."""
    cover = "  Stream #0:1: Video: mjpeg (Baseline), yuvj420p(pc, bt470bg), 500x500, 90k tbr, 90k tbn (attached pic)\n"

    with pytest.raises(ffmpeg.UnreadableMedia, match="no video track"):
        ffmpeg.parse_media(f"{HEAD}  Stream #0:0: Audio: mp3, 44100 Hz, stereo, fltp, 128 kb/s\n{cover}")


def test_a_tag_cannot_pose_as_a_stream(tmp_path: Path) -> None:
    """Tags are written by whoever made the file."""
    tag = "Stream #0:7: Video: h264, yuv420p, 9999x9999, 25 fps, 25 tbr=x"
    options = ("-movflags", "use_metadata_tags", "-metadata", tag)

    assert ffmpeg.probe(shoot(tmp_path / "tagged.mp4", "color=s=64x48:r=5", *options, sound=False)).width == 64


@pytest.mark.parametrize("content", [b"", b"no film at all\n" * 99, b"\0\0\0\x18ftypmp42" + b"\0" * 9000])
def test_what_is_no_film_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """The message names the file, not only what ffmpeg thinks of it."""
    (tmp_path / "broken.mp4").write_bytes(content)

    with pytest.raises(ffmpeg.UnreadableMedia, match=r"broken\.mp4 is no video that ffmpeg can read: .+"):
        ffmpeg.probe(tmp_path / "broken.mp4")


@pytest.mark.parametrize(
    ("name", "playlist"),
    [
        ("clip.mp4", "ffconcat version 1.0\nfile secret.ts\n"),
        ("clip.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_playlist_cannot_make_ffmpeg_read_another_file(tmp_path: Path, name: str, playlist: str) -> None:
    """A text with a film's name would otherwise bring out any film of this machine, or call the network."""
    shoot(tmp_path / "secret.ts", "testsrc2=s=64x48:r=10", sound=False)
    (tmp_path / name).write_text(playlist)

    with pytest.raises(ffmpeg.UnreadableMedia, match="not one of those accepted"):
        ffmpeg.probe(tmp_path / name)


def test_a_run_tells_how_far_it_is_and_what_it_made(tmp_path: Path, film: Path) -> None:
    """Shares of the expected length rise to a hundred; the summary counts frames."""
    told: list[ffmpeg.Progress] = []

    made = ffmpeg.run([*ffmpeg.input_options(film), tmp_path / "copy.mp4"], duration_seconds=2, on_progress=told.append)

    assert told[-1].percentage == 100
    assert all(earlier.percentage <= later.percentage for earlier, later in pairwise(told))
    assert (made.frames, made.complaints) == (50, "")
    assert made.seconds == pytest.approx(2, abs=0.1)


def test_a_run_that_fails_says_why(tmp_path: Path, film: Path) -> None:
    """The end of ffmpeg's own words is in the message."""
    with pytest.raises(ffmpeg.FfmpegFailed, match="No such file or directory") as caught:
        ffmpeg.run([*ffmpeg.input_options(film), tmp_path / "no folder" / "copy.mp4"])

    assert caught.value.returncode > 0


def test_a_run_that_is_told_to_stop_leaves_no_child() -> None:
    """The exception of the check passes, and the process is gone by then."""

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        ffmpeg.run(NEVER_ENDING, check_cancelled=stop)

    assert children_of(os.getpid()) == []


def test_a_run_that_takes_too_long_is_ended() -> None:
    """The limit holds whatever ffmpeg is at."""
    with pytest.raises(ffmpeg.FfmpegFailed, match="longer than 0.2 s"):
        ffmpeg.run(NEVER_ENDING, timeout_seconds=0.2)

    assert children_of(os.getpid()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills children with their parent")
def test_no_ffmpeg_outlives_a_killed_caller(tmp_path: Path) -> None:
    """`kill -9` of a handler must not leave an encoder behind that nobody waits for."""
    script = f"from runner import ffmpeg; ffmpeg.run({NEVER_ENDING!r}, on_progress=lambda _: print('runs', flush=True))"
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    with caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"runs\n"
        (child,) = map(os.pidfd_open, children_of(caller.pid))
        caller.send_signal(signal.SIGKILL)

    ended, _, _ = select.select([child], [], [], 10)
    os.close(child)
    assert ended == [child]


def test_the_length_that_a_file_does_not_say_is_measured(tmp_path: Path) -> None:
    """A recording that never got its end written is as long as its packets."""
    options = ("-c:v", "libvpx", "-live", "1", "-f", "webm")
    path = shoot(tmp_path / "live.webm", "testsrc2=s=64x48:r=10", *options, sound=False)
    media = ffmpeg.probe(path)

    measured = ffmpeg.measure(path, media)

    assert media.frames is None
    assert measured.duration_seconds == pytest.approx(1, abs=0.11)
    assert measured.frames == pytest.approx(10, abs=1)


def _decode(path: Path) -> list[ffmpeg.Argument]:
    return [*ffmpeg.input_options(path), "-map", "0:V:0", "-vf", "format=bgra"]


def _encode(path: Path) -> list[ffmpeg.Argument]:
    return [*ffmpeg.FRAMES_INPUT, "-c:v", "ffv1", "-fps_mode", "passthrough", path]


def test_each_edited_frame_keeps_its_time(tmp_path: Path) -> None:
    """Frames pass once, in order, whole, and where the rate varies at the times that they had."""
    film = shoot(tmp_path / "uneven.mp4", "testsrc2=s=64x48:r=30", *UNEVEN, seconds=2)
    sizes = []

    made = ffmpeg.edit_frames(_decode(film), _encode(tmp_path / "out.mkv"), lambda frame: sizes.append(len(frame)))

    times = times_of(tmp_path / "out.mkv")
    assert made.frames == len(sizes) == len(times)
    assert set(sizes) == {64 * 48 * 4}
    assert times == pytest.approx(times_of(film), abs=0.001)


def test_an_edit_that_raises_ends_both_sides(tmp_path: Path, film: Path) -> None:
    """Neither the decoder nor the encoder is left."""

    def edit(frame: memoryview) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        ffmpeg.edit_frames(_decode(film), _encode(tmp_path / "out.mkv"), edit)

    assert children_of(os.getpid()) == []


def test_an_encoder_that_fails_is_the_one_that_is_blamed(tmp_path: Path, film: Path) -> None:
    """The pipe that breaks is only the consequence."""
    with pytest.raises(ffmpeg.FfmpegFailed, match="No such file or directory"):
        ffmpeg.edit_frames(_decode(film), _encode(tmp_path / "no folder" / "out.mkv"), lambda frame: None)


def test_a_film_of_rubbish_is_unreadable_rather_than_failed(tmp_path: Path) -> None:
    """A whole index over destroyed frames opens well, but no second attempt will decode it."""
    path = shoot(tmp_path / "clip.mp4", "testsrc2=s=64x48:r=25", "-movflags", "+faststart", sound=False)
    head, mark, body = path.read_bytes().partition(b"mdat")
    path.write_bytes(head + mark + bytes(len(body)))

    with pytest.raises(ffmpeg.UnreadableMedia, match="cannot decode"):
        ffmpeg.edit_frames(_decode(path), _encode(tmp_path / "out.mkv"), lambda frame: None)
