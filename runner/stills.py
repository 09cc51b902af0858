"""Single pictures of a film: some to choose from, the one that was chosen, a thumbnail.

Fast enough to answer a request with: ffmpeg jumps to the keyframe before a picture and decodes from there, so the
length of the film hardly matters. All functions wait for ffmpeg; an `async def` calls them with `asyncio.to_thread`.

Frames are numbered from 0 as they follow each other at the film's rate: number n is what is shown n / rate seconds from
the start. Where the rate varies, that is the average one. Pictures have the film's own pixels in its upright position:
a rectangle that is drawn on one lies in the film where it was drawn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Final, TypeVar

from runner import ffmpeg

T = TypeVar("T")

_USUAL_RATE: Final = Fraction(30)
_AT_ONCE: Final = 4
_NEAR_FRAMES: Final = 8  # nearer ones are taken exactly, lest two of them are the same
_TIMEOUT_SECONDS: Final = 60.0
_LAST_SECONDS: Final = Fraction(15)
# Times are rounded to milliseconds in some films; in others the picture begins a part of a frame after the sound.
_EARLY: Final = Fraction(15, 100)
_NAMED_BY_TIME: Final = (
    *("-frames:v", "1", "-fps_mode", "passthrough"),
    *("-enc_time_base", "1:1000", "-f", "image2", "-frame_pts", "1"),
)
_THUMBNAIL_PLACES: Final = (0.1, 0.3, 0.5, 0.2)


class Form(StrEnum):
    """How a picture is written; the value is the suffix of its file."""

    JPEG = "jpg"
    PNG = "png"

    @property
    def media_type(self) -> str:
        """Its media type."""
        return "image/jpeg" if self is Form.JPEG else "image/png"


@dataclass(frozen=True)
class Still:
    """One picture: its number and its time in the film, and the bytes of the image file."""

    number: int
    seconds: float
    image: bytes


@dataclass(frozen=True)
class Survey:
    """Pictures from all over a film; `frames` is about how many it has, `fps` None where the film does not say."""

    width: int
    height: int
    duration_seconds: float
    fps: float | None
    frames: int
    stills: tuple[Still, ...]


def survey(
    path: Path,
    count: int = 12,
    *,
    max_width: int | None = 400,
    executable: Path | None = None,
    check_cancelled: ffmpeg.Check | None = None,
) -> Survey:
    """`count` pictures (fewer of a film with fewer frames) from the first on, about evenly apart, as JPEG.

    Keyframes are preferred, which need not be decoded up to. Raises what `take_stills` raises.
    """
    media = look_at(path, executable, check_cancelled)
    camera = _Camera(path, media, Form.JPEG, max_width, executable or ffmpeg.locate(), check_cancelled)
    total = count_frames(media)
    step = max(1, total // count)
    numbers = range(0, total, step)[:count]
    stills = camera.take(numbers) if step < _NEAR_FRAMES else camera.take_near(numbers, reach=step - 1)
    return Survey(media.width, media.height, media.duration_seconds or 0.0, media.fps, total, tuple(stills))


def take_thumbnail(
    path: Path,
    max_width: int = 200,
    *,
    executable: Path | None = None,
    check_cancelled: ffmpeg.Check | None = None,
) -> bytes:
    """A small JPEG that shows something: of four frames the one with most in it. Raises what `take_stills` raises."""
    media = look_at(path, executable, check_cancelled)
    camera = _Camera(path, media, Form.JPEG, max_width, executable or ffmpeg.locate(), check_cancelled)
    total = count_frames(media)
    stills = camera.take_near([int(total * place) for place in _THUMBNAIL_PLACES], reach=total // 10)
    # A black, a plain and a blurred picture all make a small file.
    return max((still.image for still in stills), key=len)


def take_still(
    path: Path,
    number: int,
    *,
    form: Form = Form.JPEG,
    max_width: int | None = None,
    executable: Path | None = None,
    check_cancelled: ffmpeg.Check | None = None,
) -> Still:
    """One frame; a number past the end means the last one. Raises what `take_stills` raises."""
    (still,) = take_stills(
        path, [number], form=form, max_width=max_width, executable=executable, check_cancelled=check_cancelled
    )
    return still


def take_stills(
    path: Path,
    numbers: Sequence[int],
    *,
    form: Form = Form.JPEG,
    max_width: int | None = None,
    executable: Path | None = None,
    check_cancelled: ffmpeg.Check | None = None,
) -> list[Still]:
    """Frames by their numbers, in this order; a number past the end means the last one.

    `max_width` makes wider pictures smaller. Raises `UnreadableMedia`, `FfmpegMissing`, whatever `check_cancelled`
    raises, and, without that, `FfmpegFailed` where ffmpeg takes longer than a minute.
    """
    media = look_at(path, executable, check_cancelled)
    camera = _Camera(path, media, form, max_width, executable or ffmpeg.locate(), check_cancelled)
    last = count_frames(media) - 1
    wanted = [min(max(0, number), last) for number in numbers]
    distinct = sorted(set(wanted))
    taken = dict(zip(distinct, camera.take(distinct), strict=True))
    return [taken[number] for number in wanted]


def cut_frame(
    path: Path,
    number: int,
    target: Path,
    *,
    executable: Path | None = None,
    check_cancelled: ffmpeg.Check | None = None,
) -> None:
    """Write a film of one frame to `target` (.mkv), without loss and without sound. Raises what `take_stills` raises.

    A number past the end means the last frame.
    """
    media = look_at(path, executable, check_cancelled)
    camera = _Camera(path, media, Form.PNG, None, executable or ffmpeg.locate(), check_cancelled)
    camera.cut(min(number, count_frames(media) - 1), target)


def look_at(path: Path, executable: Path | None = None, check_cancelled: ffmpeg.Check | None = None) -> ffmpeg.Media:
    """What the film holds, with its length. Raises `UnreadableMedia` or `FfmpegMissing`."""
    media = ffmpeg.probe(path, executable)
    return ffmpeg.measure(path, media, executable=executable, check_cancelled=check_cancelled)


def count_frames(media: ffmpeg.Media) -> int:
    """About how many frames there are, at least one."""
    return max(1, round((media.duration_seconds or 0.0) * rate_of(media)))


def find_number(media: ffmpeg.Media, seconds: float) -> int:
    """The number of the frame that is shown at that time."""
    return max(0, int(seconds * float(rate_of(media)) + 1e-3))


def rate_of(media: ffmpeg.Media) -> Fraction:
    """Frames a second by which the frames are numbered."""
    return media.frame_rate or _USUAL_RATE


@dataclass(frozen=True)
class _Camera:
    """Takes pictures of one film."""

    path: Path
    media: ffmpeg.Media
    form: Form
    max_width: int | None
    executable: Path
    check_cancelled: ffmpeg.Check | None

    def take_near(self, numbers: Sequence[int], reach: int) -> list[Still]:
        """For each number a keyframe at most `reach` frames before it, or else one some frames after it; none twice."""
        stills = self._share_out(numbers, lambda number: self._shoot_near(number, reach))
        return list({still.number: still for still in stills if still}.values()) or [self._shoot_last(0)]

    def take(self, numbers: Sequence[int]) -> list[Still]:
        """The frames of these numbers."""
        return self._share_out(numbers, lambda number: self._shoot(self._open_at(number)) or self._shoot_last(number))

    def cut(self, number: int, target: Path) -> None:
        """Write one frame as a film."""
        encode: list[ffmpeg.Argument] = ["-map", "0:V:0", "-frames:v", "1", "-c:v", "ffv1", "-f", "matroska", target]
        self._run([*self._open_at(number), *encode])

    def _share_out(self, numbers: Sequence[int], shoot: Callable[[int], T]) -> list[T]:
        # One ffmpeg for all of them would wait for itself where one of its inputs has no picture.
        with ThreadPoolExecutor(_AT_ONCE, "stills") as threads:
            return list(threads.map(shoot, numbers))

    def _shoot_near(self, number: int, reach: int) -> Still | None:
        keyframe = self._shoot(self._open_before(number))
        if keyframe and 0 <= number - keyframe.number <= reach:
            return keyframe
        return self._shoot(self._open_near(number))

    def _shoot(self, source: Sequence[ffmpeg.Argument]) -> Still | None:
        """What is seen first where the film is opened so; None where that is nothing."""
        with tempfile.TemporaryDirectory(prefix="stills-") as folder:
            name = Path(folder, f"%d.{self.form}")
            try:
                self._run(["-copyts", "-start_at_zero", *source, *self._develop(), *_NAMED_BY_TIME, name])
            except ffmpeg.UnreadableMedia:
                return None  # not there; it may be elsewhere
            except ffmpeg.FfmpegFailed as error:
                if error.returncode < 0:  # it was killed, or took too long
                    raise
            return next(map(self._label, Path(folder).iterdir()), None)

    def _label(self, file: Path) -> Still:
        number = max(0, int(int(file.stem) * rate_of(self.media) / 1000 + _EARLY))
        return Still(number, int(file.stem) / 1000, file.read_bytes())

    def _shoot_last(self, number: int) -> Still:
        """The last frame up to this number: a film may end before it says so, or be one that cannot be jumped in."""
        end = (number + _EARLY) / rate_of(self.media)
        with tempfile.TemporaryDirectory(prefix="stills-") as folder:
            file = Path(folder, f"last.{self.form}")
            for length in (_LAST_SECONDS, end):
                source = [*_seek(end - length), "-t", f"{float(length):.6f}", *ffmpeg.input_options(self.path)]
                with suppress(ffmpeg.FfmpegFailed, ffmpeg.UnreadableMedia):
                    self._run([*source, *self._develop(), "-update", "1", file])
                if file.exists():  # each was written over the one before it
                    return Still(number, round(float(number / rate_of(self.media)), 3), file.read_bytes())
        raise ffmpeg.UnreadableMedia(f"{self.path.name} has no frame that can be decoded")

    def _open_at(self, number: int) -> list[ffmpeg.Argument]:
        start = (number - _EARLY) / rate_of(self.media)
        return [*_seek(start), "-threads", "1", *ffmpeg.input_options(self.path)]

    def _open_near(self, number: int) -> list[ffmpeg.Argument]:
        """Where the decoder need not decode the frames on which no other one depends: twice as fast."""
        return ["-skip_frame", "noref", *self._open_at(number)]

    def _open_before(self, number: int) -> list[ffmpeg.Argument]:
        """At the last keyframe up to this number."""
        start = (number + _EARLY) / rate_of(self.media)
        source = ffmpeg.input_options(self.path)
        return ["-noaccurate_seek", *_seek(start), "-skip_frame", "nokey", "-threads", "1", *source]

    def _develop(self) -> list[ffmpeg.Argument]:
        """Arguments that make pictures."""
        size = f"w='min({self.max_width},iw)':h=-1:" if self.max_width else ""
        colour = f"in_color_matrix={ffmpeg.MATRICES.get(self.media.matrix, 'bt601')}"
        if self.form is Form.PNG:
            return ["-map", "0:V:0", "-vf", f"settb=1/1000,scale={size}{colour},format=rgb24"]
        # Every JPEG is read as BT.601 in full range, whatever the film is.
        graph = f"settb=1/1000,scale={size}{colour}:out_color_matrix=bt601:out_range=pc"
        return ["-map", "0:V:0", "-vf", graph, "-q:v", "3"]

    def _run(self, command: Sequence[ffmpeg.Argument]) -> None:
        # Who can cancel has a limit of his own; in a film that cannot be jumped in one picture may take minutes.
        limit = _TIMEOUT_SECONDS if self.check_cancelled is None else None
        ffmpeg.run(command, executable=self.executable, check_cancelled=self.check_cancelled, timeout_seconds=limit)


def _seek(seconds: Fraction) -> list[ffmpeg.Argument]:
    return ["-ss", f"{float(seconds):.6f}"] if seconds > 0 else []
