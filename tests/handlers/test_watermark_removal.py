import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner import ffmpeg
from runner.context import Cancelled, Fail
from runner.errors import InvalidSubmission
from tests.films import children_of, encode, frames_of, needs_video, packets_of, shoot, times_of
from tests.handlers.attempts import Attempt, parts_of, starters

if TYPE_CHECKING:
    import numpy as np

    from tests.films import Image

pytestmark = needs_video

TYPE = "watermark_removal"
CORNERS = [20, 20, 61, 51]
BOX = {"x": 100, "y": 60, "width": 30, "height": 25}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds with sound, 160x120."""
    return shoot(tmp_path_factory.mktemp("films") / "clip.mp4", seconds=2)


def _mask(shape: tuple[int, ...], *rectangles: tuple[int, int, int, int]) -> "Image":
    """White where a region is; OpenCV fills both ends, as the contract wants."""
    import cv2
    import numpy as np

    mask = np.zeros(shape[:2], np.uint8)
    for x1, y1, x2, y2 in rectangles:
        cv2.rectangle(mask, (x1, y1), (x2, y2), 255, -1)
    return mask


def _brightness(frame: "Image") -> "np.ndarray[Any, Any]":
    import cv2

    return cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY).astype(int)


def _read(path: Path) -> "Image":
    import cv2
    import numpy as np

    picture = cv2.imread(str(path))
    assert picture is not None
    return np.asarray(picture, np.uint8)


def _difference(one: "Image", other: "Image", where: "Image") -> float:
    """How far two frames are apart on average, 0 to 255; in brightness, for the codec keeps a quarter of the colour."""
    return float(abs(_brightness(one) - _brightness(other))[where > 0].mean())


def test_the_regions_are_repainted_as_opencv_does_and_the_rest_stays(tmp_path: Path, film: Path) -> None:
    """Every frame is what inpainting the whole frame gives, up to what the codec loses; all else is as it was."""
    import cv2

    attempt = Attempt(tmp_path, TYPE, (film,))
    cleaned = frames_of(attempt.made(attempt.run(regions=[CORNERS, BOX])))

    original = frames_of(film)
    mask = _mask(original[0].shape, (20, 20, 61, 51), (100, 60, 130, 85))
    assert len(cleaned) == len(original) == 50
    for before, after in zip(original, cleaned, strict=True):
        assert _difference(after, cv2.inpaint(before, mask, 3, cv2.INPAINT_NS).astype("uint8"), mask) < 4
        assert _difference(after, before, 255 - mask) < 2
        assert _difference(after, before, mask) > 10


def test_the_result_says_what_was_made(tmp_path: Path, film: Path) -> None:
    """Numbers of the output, the regions as they lie in the picture, and the output's name."""
    result = Attempt(tmp_path, TYPE, (film,), filename="holiday.mov").run(regions=[CORNERS, BOX])

    assert result == {
        "frames": 50,
        "width": 160,
        "height": 120,
        "fps": 25.0,
        "duration_seconds": 2.0,
        "regions": [[20, 20, 61, 51], [100, 60, 130, 85]],
        "method": "inpaint",
        "output": "holiday.mp4",
    }


@pytest.mark.parametrize("method", ["inpaint", "delogo"])
def test_the_sound_is_kept_as_it_is(tmp_path: Path, film: Path, method: str) -> None:
    """What players take inside of mp4 is copied packet by packet."""
    attempt = Attempt(tmp_path, TYPE, (film,))

    made = attempt.made(attempt.run(regions=[CORNERS], method=method))

    assert packets_of(made) == packets_of(film)


def test_each_track_of_sound_is_kept(tmp_path: Path, film: Path) -> None:
    """A track that mp4 players do not take becomes AAC, its neighbour is still copied."""
    source = tmp_path / "two.mkv"
    encode("-i", film, "-i", film, "-map", "0", "-map", "1:a", "-c", "copy", "-c:a:1", "flac", source)
    attempt = Attempt(tmp_path, TYPE, (source,))

    media = ffmpeg.probe(attempt.made(attempt.run(regions=[CORNERS], method="delogo")))

    assert media.audio_codecs == ("aac", "aac")


def test_a_track_that_cannot_be_decoded_is_left_out(tmp_path: Path, film: Path) -> None:
    """A phone adds a track of spatial sound beside the one that everybody plays."""
    source = tmp_path / "spatial.mp4"
    encode("-i", film, "-i", film, "-map", "0", "-map", "1:a", "-c", "copy", source)
    for known, unknown in ((b"mp4a", b"apac"), (b"esds", b"dapa")):
        before, _, after = source.read_bytes().rpartition(known)
        source.write_bytes(before + unknown + after)
    attempt = Attempt(tmp_path, TYPE, (source,))

    made = attempt.made(attempt.run(regions=[CORNERS]))

    assert ffmpeg.probe(source).audio_codecs == ("aac", "none")
    assert ffmpeg.probe(made).audio_codecs == ("aac",)
    assert packets_of(made) == packets_of(film)


@pytest.mark.parametrize("method", ["inpaint", "delogo"])
def test_an_odd_size_gains_a_row_and_a_column_of_the_same(tmp_path: Path, method: str) -> None:
    """H.264 has even sizes only; nothing of the picture is lost, and nothing black is added."""
    odd = "testsrc2=s=160x120:r=10,format=yuv444p,crop=151:101:exact=1"
    source = shoot(tmp_path / "odd.webm", odd, "-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p")
    attempt = Attempt(tmp_path, TYPE, (source,))

    result = attempt.run(regions=[[120, 80, 150, 100]], method=method)

    before, after = frames_of(source)[0], frames_of(attempt.made(result))[0]
    bright = _brightness(after)
    assert (result["width"], result["height"]) == (152, 102)
    assert _difference(after[:101, :151], before, 255 - _mask(before.shape, (118, 78, 150, 100))) < 3
    assert abs(bright[:, 151] - bright[:, 150]).mean() < 3
    assert abs(bright[101] - bright[100]).mean() < 3
    assert abs(bright[:78, 150] - _brightness(before)[:78, 150]).mean() < 6


def test_a_film_on_its_side_is_marked_as_it_is_shown(tmp_path: Path, film: Path) -> None:
    """Whoever marks a region sees the picture turned; the output needs no turning any more."""
    encode("-display_rotation", "90", "-i", film, "-c", "copy", tmp_path / "upright.mp4")
    attempt = Attempt(tmp_path, TYPE, (tmp_path / "upright.mp4",))

    result = attempt.run(regions=[[10, 100, 60, 150]])

    before, after = frames_of(tmp_path / "upright.mp4")[20], frames_of(attempt.made(result))[20]
    mask = _mask(before.shape, (10, 100, 60, 150))
    assert before.shape == after.shape == (160, 120, 3)
    assert _difference(after, before, 255 - mask) < 3
    assert _difference(after, before, mask) > 10


@pytest.mark.parametrize("method", ["inpaint", "delogo"])
def test_frames_keep_their_times_where_the_rate_varies(tmp_path: Path, method: str) -> None:
    """A phone drops frames in the dark; evening them out would part the picture from the sound."""
    uneven = ("-vf", "select='not(mod(n,7))+gt(n,40)'", "-fps_mode", "vfr")
    source = shoot(tmp_path / "uneven.mp4", "testsrc2=s=64x48:r=30", *uneven, seconds=2)
    attempt = Attempt(tmp_path, TYPE, (source,))

    made = attempt.made(attempt.run(regions=[[10, 10, 20, 20]], method=method))

    assert times_of(made) == pytest.approx(times_of(source), abs=0.001)
    assert ("info", "the frame rate varies; each frame keeps its time") in attempt.log


@pytest.mark.parametrize("colour", [("bt709", "tv"), ("smpte170m", "tv"), ("bt709", "pc")])
def test_colours_do_not_shift(tmp_path: Path, colour: tuple[str, str]) -> None:
    """The way to RGB and back uses the film's own matrix and range: what is plain stays plain where it is repainted."""
    matrix, levels = colour
    tags = ("-vf", f"scale=out_color_matrix={matrix}:out_range={levels},format=yuv420p", "-colorspace", matrix)
    source = shoot(tmp_path / "plain.mp4", "color=c=0x40A0D0:s=64x48:r=5", *tags, "-color_range", levels)
    attempt = Attempt(tmp_path, TYPE, (source,))

    made = attempt.made(attempt.run(regions=[[20, 20, 41, 31]]))

    assert abs(frames_of(made)[2].astype(int) - frames_of(source)[2]).max() <= 4


def test_delogo_fills_the_regions_and_nothing_else(tmp_path: Path, film: Path) -> None:
    """The fast method; a region at the edge of the picture is filled up to its outermost pixel."""
    attempt = Attempt(tmp_path, TYPE, (film,))

    result = attempt.run(regions=[[-5, -5, 50, 50], BOX], method="delogo")

    before, after = frames_of(film)[20], frames_of(attempt.made(result))[20]
    mask = _mask(before.shape, (0, 0, 50, 50), (100, 60, 130, 85))
    assert result["regions"] == [[0, 0, 50, 50], [100, 60, 130, 85]]
    assert result["frames"] == 50
    assert _difference(after, before, 255 - mask) < 2
    assert _difference(after, before, mask) > 15


@pytest.mark.parametrize("method", ["inpaint", "delogo"])
def test_a_preview_is_the_selected_frame_as_it_will_be(tmp_path: Path, film: Path, method: str) -> None:
    """Whoever draws regions sees what comes of them without waiting for the film; no film is made."""
    preview, whole = Attempt(tmp_path / "1", TYPE, (film,)), Attempt(tmp_path / "2", TYPE, (film,))

    result = preview.run(regions=[CORNERS], method=method, selected_frame=33, make="preview")
    made = whole.made(whole.run(regions=[CORNERS], method=method))

    assert (result["output"], result["preview"], result["frames"]) == ("clip_frame33.jpg", "clip_frame33.jpg", 1)
    assert [path.name for path in preview.output_dir.iterdir()] == ["clip_frame33.jpg"]
    picture, mask = _read(preview.made(result)), _mask((120, 160), (20, 20, 61, 51))
    assert _difference(picture, frames_of(made)[33], mask) < 4
    assert _difference(picture, frames_of(film)[33], 255 - mask) < 4
    assert _difference(picture, frames_of(film)[33], mask) > 10


def test_a_picture_of_the_selected_frame_lies_beside_the_film(tmp_path: Path, film: Path) -> None:
    """It is taken from what was made."""
    attempt = Attempt(tmp_path, TYPE, (film,))

    result = attempt.run(regions=[CORNERS], selected_frame=12)

    picture = _read(attempt.output_dir / result["preview"])
    assert result["frames"] == 50
    assert _difference(picture, frames_of(attempt.made(result))[12], _mask((120, 160), (0, 0, 159, 119))) < 4


def test_both_forms_of_a_region_mean_the_same(tmp_path: Path, film: Path) -> None:
    """`[x1, y1, x2, y2]` and `{x, y, width, height}` give the same pixels, but for what two encodes differ in."""
    corners, box = Attempt(tmp_path / "1", TYPE, (film,)), Attempt(tmp_path / "2", TYPE, (film,))

    first, second = corners.run(regions=[[100, 60, 130, 85]]), box.run(regions=[BOX])

    assert first["regions"] == second["regions"] == [[100, 60, 130, 85]]
    for one, other in zip(frames_of(corners.made(first)), frames_of(box.made(second)), strict=True):
        assert abs(one.astype(int) - other).max() < 10


def test_a_region_is_cut_to_the_picture(tmp_path: Path, film: Path) -> None:
    """What was drawn over the edge means the part that is inside."""
    result = Attempt(tmp_path, TYPE, (film,)).run(regions=[{"x": -10, "y": 100, "width": 5000, "height": 5000}])

    assert result["regions"] == [[0, 100, 159, 119]]


@pytest.mark.parametrize(
    ("region", "method", "code"),
    [
        ([200, 10, 220, 20], "inpaint", "region_outside"),
        ([-9, -9, -2, -2], "delogo", "region_outside"),
        ([10, -9, 60, 0], "delogo", "region_outside"),
        ([0, 0, 159, 119], "inpaint", "regions_cover_picture"),
    ],
)
def test_a_region_that_cannot_be_filled_fails_for_good(
    tmp_path: Path, film: Path, region: list[int], method: str, code: str
) -> None:
    """Outside of the picture, only its edge, or all of it: another attempt would not help."""
    with pytest.raises(Fail) as caught:
        Attempt(tmp_path, TYPE, (film,)).run(regions=[region], method=method)

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({}, "/payload/regions"),
        ({"regions": []}, "/payload/regions"),
        ({"regions": [CORNERS, [1, 2, 3]]}, "/payload/regions/1"),
        ({"regions": [[10, 10, 10, 50]]}, "/payload/regions/0"),
        ({"regions": [[10, 10, 50.5, 50]]}, "/payload/regions/0"),
        ({"regions": [{**BOX, "width": 0}]}, "/payload/regions/0/width"),
        ({"regions": [{**BOX, "depth": 1}]}, "/payload/regions/0/depth"),
        ({"regions": ["10,10,50,50"]}, "/payload/regions/0"),
        ({"regions": [CORNERS], "method": "magic"}, "/payload/method"),
        ({"regions": [CORNERS], "radius": 0}, "/payload/radius"),
        ({"regions": [CORNERS], "selected_frame": -1}, "/payload/selected_frame"),
    ],
)
def test_a_wrong_payload_is_refused_with_a_pointer_to_the_fault(payload: dict[str, Any], pointer: str) -> None:
    """Nothing is stored for it, and the person sees which region was meant."""
    handler = starters().find(TYPE)
    assert handler is not None

    with pytest.raises(InvalidSubmission) as caught:
        handler.validate(payload)

    assert [problem.pointer for problem in caught.value.problems] == [pointer]


def test_the_schema_shows_both_forms_of_a_region() -> None:
    """The web form, the CLI and OpenAPI are made from it."""
    handler = starters().find(TYPE)
    assert handler is not None

    forms = handler.schema["$defs"]["Region"]["oneOf"]

    assert [form["type"] for form in forms] == ["object", "array"]


def test_each_frame_is_reported(tmp_path: Path, film: Path) -> None:
    """Percentage, speed and what is left, for every one of fifty frames."""
    attempt = Attempt(tmp_path, TYPE, (film,))
    attempt.run(regions=[CORNERS])

    reports = [said for said in attempt.said if said.stage == "repainting"]
    shares = [said.percentage for said in reports]
    assert len(reports) == 50
    assert shares == sorted(shares)
    assert reports[9].message.startswith("frame 10 of 50, ")
    assert reports[9].message.endswith(" frames/s, 40 left")


@pytest.mark.parametrize("method", ["inpaint", "delogo"])
def test_a_cancelled_one_stops_in_the_middle_and_leaves_no_child(tmp_path: Path, method: str) -> None:
    """It does not run to the end of the film, and no ffmpeg is left when it has stopped."""
    film = shoot(tmp_path / "long.mp4", "testsrc2=s=320x240:r=25", "-preset", "ultrafast", seconds=60)

    def stop(attempt: Attempt) -> None:
        if attempt.said[-1].stage == "repainting":
            attempt.context.stop("cancelled")

    attempt = Attempt(tmp_path, TYPE, (film,), on_progress=stop)
    with pytest.raises(Cancelled):
        attempt.run(regions=[CORNERS], method=method)

    assert attempt.said[-1].percentage < 90
    assert children_of(os.getpid()) == []


@pytest.mark.parametrize("content", [b"", b"no film\n" * 999])
def test_a_corrupt_file_fails_for_good_and_is_named(tmp_path: Path, content: bytes) -> None:
    """The reason is ffmpeg's, the name is the file's."""
    (tmp_path / "broken.mp4").write_bytes(content)

    with pytest.raises(Fail, match=r"broken\.mp4 is no video that ffmpeg can read") as caught:
        Attempt(tmp_path, TYPE, (tmp_path / "broken.mp4",)).run(regions=[CORNERS])

    assert caught.value.code == "unreadable_media"


def test_a_film_that_breaks_off_is_done_as_far_as_it_goes_with_a_warning(tmp_path: Path, film: Path) -> None:
    """Half a film is better than none, but the log says so."""
    encode("-i", film, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    content = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    attempt = Attempt(tmp_path, TYPE, (tmp_path / "half.mp4",))

    result = attempt.run(regions=[CORNERS])

    assert 0 < result["frames"] < 50
    assert [level for level, _ in attempt.log] == ["warning"]


def test_a_missing_ffmpeg_fails_for_good_and_says_so(tmp_path: Path, film: Path) -> None:
    """`ctx.config` may name one; that it is not there is told before anything else."""
    attempt = Attempt(tmp_path, TYPE, (film,), config={"ffmpeg": "/nowhere/ffmpeg"})

    with pytest.raises(Fail, match="ffmpeg") as caught:
        attempt.run(regions=[CORNERS])

    assert caught.value.code == "ffmpeg_missing"


def test_it_takes_one_film(tmp_path: Path, film: Path) -> None:
    """A second one is not silently left out."""
    with pytest.raises(Fail, match="one video, not 2"):
        Attempt(tmp_path, TYPE, (film, film)).run(regions=[CORNERS])


def test_a_window_gives_the_same_pixels_as_the_whole_picture() -> None:
    """Only the surroundings of the regions are decoded and repainted; not one pixel differs from repainting it all."""
    import cv2
    import numpy as np

    parts, chance = parts_of(TYPE), random.Random(7)
    for _ in range(60):
        width, height, radius = chance.randint(40, 200), chance.randint(40, 150), chance.choice([1, 3, 5, 9])
        picture = np.random.default_rng(chance.randint(0, 9**9)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = cv2.GaussianBlur(picture, (5, 5), 0).astype(np.uint8)
        rects = [_somewhere(chance, width, height, parts["Rect"]) for _ in range(chance.randint(1, 4))]
        mask = _mask(picture.shape, *((r.left, r.top, r.right - 1, r.bottom - 1) for r in rects))
        media = ffmpeg.Media(width, height, 1.0, None, "h264")
        window = parts["find_window"](rects, radius + 2, media)
        inside = parts["slice_of"](window)
        frame = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)[inside].copy()

        parts["Retouch"](rects, window, radius + 2, radius)(memoryview(frame.reshape(-1)))

        whole = cv2.inpaint(picture, mask, radius, cv2.INPAINT_NS)
        assert np.array_equal(frame[:, :, :3], whole[inside])
        assert (frame[:, :, 3][mask[inside] > 0] == 255).all()


def _somewhere(chance: random.Random, width: int, height: int, make: Callable[..., Any]) -> Any:
    left, top = chance.randint(0, width - 10), chance.randint(0, height - 10)
    return make(left, top, min(width, left + chance.randint(2, 40)), min(height, top + chance.randint(2, 30)))


def test_a_painter_that_fails_is_followed_by_the_next() -> None:
    """Navier-Stokes, then Telea, then a blur of the region alone."""
    import cv2
    import numpy as np

    parts = parts_of(TYPE)
    picture = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = _mask(picture.shape, (10, 10, 20, 20))

    def give_up(picture: "Image", mask: "Image", radius: int) -> "Image":
        raise cv2.error("out of paint")

    blurred = parts["repaint"](picture, mask, 3, (give_up, give_up, parts["paint_blur"]))
    telea = parts["repaint"](picture, mask, 3, (give_up, parts["paint_telea"], give_up))

    assert np.array_equal(blurred[mask == 0], picture[mask == 0])
    assert np.array_equal(blurred[mask > 0], cv2.GaussianBlur(picture, (15, 15), 0)[mask > 0])
    assert np.array_equal(telea, cv2.inpaint(picture, mask, 3, cv2.INPAINT_TELEA))
    assert [painter.__name__ for painter in parts["PAINTERS"]] == ["paint_navier_stokes", "paint_telea", "paint_blur"]
