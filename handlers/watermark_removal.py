"""Remove watermarks from a video: fill marked rectangles from what surrounds them.

One ffmpeg decodes only the window around the rectangles, OpenCV repaints it, and another ffmpeg lays it over the
original while it encodes. So the picture outside the rectangles never leaves its own colour space, and frame times and
sound stay as they are.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from runner import Context, Fail, ffmpeg, handler, stills

from ._naming import derive_name, name_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Image = npt.NDArray[np.uint8]
    Painter = Callable[[Image, Image, int], Image]

KEPT_AUDIO = {"aac", "mp3", "ac3", "eac3"}  # what players accept inside of mp4

Pixel = Annotated[int, Field(ge=-65_535, le=65_535)]
Length = Annotated[int, Field(ge=1, le=65_535)]


def allow_corners(schema: dict[str, Any]) -> None:
    """Make the JSON schema of a region say that it may be four numbers too."""
    box = schema.copy()
    schema.clear()
    schema["oneOf"] = [box, {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}]


class Region(BaseModel):
    """A rectangle by its left upper corner and its size; `[x1, y1, x2, y2]` stands for the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=allow_corners)

    x: Pixel
    y: Pixel
    width: Length
    height: Length

    @model_validator(mode="before")
    @classmethod
    def _read_corners(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        if len(value) != 4 or not all(type(number) is int for number in value):
            raise ValueError("must be [x1, y1, x2, y2], four whole numbers, or {x, y, width, height}")
        x1, y1, x2, y2 = value
        if x2 <= x1 or y2 <= y1:
            raise ValueError("[x1, y1, x2, y2] needs x2 > x1 and y2 > y1")
        return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}


class Rect(NamedTuple):
    """Pixels from `left`, `top` up to but without `right`, `bottom`."""

    left: int
    top: int
    right: int
    bottom: int


@handler(
    accepts=["video/*"],
    timeout="30m",
    retries=1,
    isolation="process",
    extra="video",
    requires=("cv2", "ffmpeg|imageio_ffmpeg"),
)
def watermark_removal(
    ctx: Context,
    regions: Annotated[
        list[Region], Field(min_length=1, max_length=100, description="The rectangles to repaint, in pixels.")
    ],
    method: Annotated[
        Literal["inpaint", "delogo"], Field(description="inpaint: by OpenCV; delogo: by ffmpeg, faster and coarser.")
    ] = "inpaint",
    radius: Annotated[int, Field(ge=1, le=50, description="How far around a pixel inpaint looks.")] = 3,
    selected_frame: Annotated[
        int | None, Field(ge=0, description="The number of a frame, from 0, of which a picture is wanted.")
    ] = None,
    make: Annotated[
        Literal["film", "preview"], Field(description="preview: only the selected frame is done, in a second.")
    ] = "film",
) -> dict[str, object]:
    """Remove watermarks from a video by repainting the regions that cover them."""
    if len(ctx.inputs) != 1:
        raise Fail(f"watermark_removal takes one video, not {len(ctx.inputs)}", code="wrong_inputs")
    try:
        plan = open_plan(ctx, regions)
        if make == "preview":
            return preview(plan, method, radius, selected_frame or 0)
        result = describe(plan, clean(plan, method, radius), method)
        if selected_frame is not None:
            result["preview"] = write_preview(plan, selected_frame, plan.target, selected_frame)
    except (ffmpeg.FfmpegMissing, ffmpeg.UnreadableMedia) as error:
        raise Fail(str(error), code=error.code) from error
    return result


class Plan(NamedTuple):
    """What one attempt works on."""

    ctx: Context
    executable: Path
    source: Path
    target: Path
    media: ffmpeg.Media
    rects: list[Rect]


def open_plan(ctx: Context, regions: Sequence[Region]) -> Plan:
    """Look at the video and place the regions in it. Raises `Fail` for a region that is not in it."""
    source = ctx.inputs[0]
    executable = ffmpeg.locate(ctx.config.get("ffmpeg"))
    media = ffmpeg.measure(source, ffmpeg.probe(source, executable), executable=executable, check_cancelled=ctx.check)
    ctx.progress(1, f"{media.width}x{media.height}, {media.fps} fps", stage="reading")
    if media.variable_frame_rate:
        ctx.log.info("the frame rate varies; each frame keeps its time")
    rects = [place(region, media) for region in regions]
    target = ctx.output(derive_name(Path(name_of(ctx)).stem, ".mp4"))
    return Plan(ctx, executable, source, target, media, rects)


def place(region: Region, media: ffmpeg.Media) -> Rect:
    """The pixels of a region inside the picture. Both its ends belong to it: it is one pixel larger than its size."""
    x1, y1, x2, y2 = region.x, region.y, region.x + region.width, region.y + region.height
    rect = Rect(max(0, x1), max(0, y1), min(media.width, x2 + 1), min(media.height, y2 + 1))
    if rect.left >= rect.right or rect.top >= rect.bottom:
        raise Fail(
            f"the region [{x1}, {y1}, {x2}, {y2}] is outside of the picture, which is {media.width}x{media.height}",
            code="region_outside",
        )
    return rect


def describe(plan: Plan, frames: int, method: str) -> dict[str, object]:
    """The result of the task: what the output is now, and the regions as they lie in it, `[x1, y1, x2, y2]`."""
    made = ffmpeg.probe(plan.target, plan.executable)
    return {
        "frames": frames,
        "width": made.width,
        "height": made.height,
        "fps": plan.media.fps or made.fps,
        "duration_seconds": made.duration_seconds,
        "regions": [[rect.left, rect.top, rect.right - 1, rect.bottom - 1] for rect in plan.rects],
        "method": method,
        "output": plan.target.name,
    }


def clean(plan: Plan, method: str, radius: int) -> int:
    """Write the target; how many frames it has."""
    made = inpaint(plan, radius) if method == "inpaint" else delogo(plan)
    if not made.frames:
        raise Fail(f"{plan.source.name} has no frame that can be decoded", code="unreadable_media")
    if made.complaints:
        plan.ctx.log.warning("ffmpeg made %d frames, but says: %s", made.frames, made.complaints)
    return made.frames


def preview(plan: Plan, method: str, radius: int, number: int) -> dict[str, object]:
    """Do the same with a film of that frame alone, and keep only a picture of it."""
    scratch = plan.ctx.scratch
    stills.cut_frame(
        plan.source, number, scratch / "frame.mkv", executable=plan.executable, check_cancelled=plan.ctx.check
    )
    media = ffmpeg.probe(scratch / "frame.mkv", plan.executable)
    alone = plan._replace(source=scratch / "frame.mkv", target=scratch / "cleaned.mp4", media=media)
    result = describe(alone, clean(alone, method, radius), method)
    name = write_preview(plan, number, alone.target, 0)
    return {**result, "preview": name, "output": name}


def write_preview(plan: Plan, number: int, film: Path, place: int) -> str:
    """Write a picture of frame `number`, which is at `place` in `film`; the name of the output."""
    still = stills.take_still(film, place, executable=plan.executable, check_cancelled=plan.ctx.check)
    name = derive_name(plan.target.stem, f"_frame{number}.jpg")
    plan.ctx.output(name).write_bytes(still.image)
    return name


class Meter:
    """Tells after each frame how many are done, how fast it goes and how many are left."""

    def __init__(self, plan: Plan) -> None:
        self._ctx = plan.ctx
        self._total = plan.media.frames or 0
        self._done = 0
        self._started = time.monotonic()

    def count(self) -> None:
        """One more frame is done."""
        self.show(self._done + 1)

    def show(self, done: int) -> None:
        """So many frames are done."""
        self._done = done
        total = max(self._total, done)
        speed = done / max(time.monotonic() - self._started, 0.001)
        text = f"frame {done} of {total}, {speed:.1f} frames/s, {total - done} left"
        self._ctx.progress(1 + 98 * done / max(total, 1), text, stage="repainting")


def inpaint(plan: Plan, radius: int) -> ffmpeg.Summary:
    """Repaint every frame with OpenCV."""
    margin = radius + 2  # no pixel farther away takes part
    window = find_window(plan.rects, margin, plan.media)
    retouch = Retouch(plan.rects, window, margin, radius)
    if retouch.is_blank:
        raise Fail("the regions cover the whole picture: nothing is left to repaint from", code="regions_cover_picture")
    meter = Meter(plan)

    def edit(frame: memoryview) -> None:
        plan.ctx.check()
        retouch(frame)
        meter.count()

    return ffmpeg.edit_frames(
        decode_window(plan, window),
        encode_patched(plan, window),
        edit,
        executable=plan.executable,
        check_cancelled=plan.ctx.check,
    )


def find_window(rects: Sequence[Rect], margin: int, media: ffmpeg.Media) -> Rect:
    """The part of the picture that is needed to repaint `rects`, on even pixels as subsampled colour wants it."""
    hull = surround(rects)
    return Rect(
        max(0, hull.left - margin) & ~1,
        max(0, hull.top - margin) & ~1,
        min(media.width, (hull.right + margin + 1) & ~1),
        min(media.height, (hull.bottom + margin + 1) & ~1),
    )


def surround(rects: Iterable[Rect]) -> Rect:
    """The smallest rectangle that holds them all."""
    lefts, tops, rights, bottoms = zip(*rects, strict=True)
    return Rect(min(lefts), min(tops), max(rights), max(bottoms))


def group(rects: Sequence[Rect], margin: int) -> list[Rect]:
    """Rectangles grown by `margin`, those that touch joined, until none touch: each can be repainted on its own."""
    groups: list[Rect] = []
    for left, top, right, bottom in rects:
        grown = Rect(left - margin, top - margin, right + margin, bottom + margin)
        while near := [other for other in groups if overlap(grown, other)]:
            groups = [other for other in groups if other not in near]
            grown = surround([grown, *near])
        groups.append(grown)
    return groups


def overlap(one: Rect, other: Rect) -> bool:
    """Whether two rectangles share a pixel."""
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom


class Retouch:
    """Repaints frames of the window in place: bytes of blue, green, red, and alpha where the result is to be seen."""

    def __init__(self, rects: Sequence[Rect], window: Rect, margin: int, radius: int) -> None:
        import numpy as np

        self._radius = radius
        self._shape = (window.bottom - window.top, window.right - window.left, 4)
        self._mask = np.zeros(self._shape[:2], np.uint8)
        self._alpha = np.zeros(self._shape[:2], np.uint8)
        for rect in rects:
            left, top, right, bottom = shift(rect, window)
            self._mask[top:bottom, left:right] = 255
            # Colour is stored for two by two pixels: a block half repainted would keep half of the watermark's colour.
            self._alpha[top & ~1 : (bottom + 1) & ~1, left & ~1 : (right + 1) & ~1] = 255
        self._parts = [slice_of(shift(part, window)) for part in group(rects, margin)]

    @property
    def is_blank(self) -> bool:
        """Whether the mask leaves no pixel of the window."""
        return bool(self._mask.all())

    def __call__(self, frame: memoryview) -> None:
        """Repaint one frame."""
        import numpy as np

        image = np.frombuffer(frame, np.uint8).reshape(self._shape)
        for part in self._parts:
            picture = np.ascontiguousarray(image[part][:, :, :3])
            image[part][:, :, :3] = repaint(picture, self._mask[part], self._radius)
        image[:, :, 3] = self._alpha


def shift(rect: Rect, window: Rect) -> Rect:
    """The same pixels counted from the corner of the window, without what lies before it."""
    left, top = window.left, window.top
    return Rect(max(0, rect.left - left), max(0, rect.top - top), max(0, rect.right - left), max(0, rect.bottom - top))


def slice_of(rect: Rect) -> tuple[slice, slice]:
    """Rows and columns of a rectangle, to index an array with."""
    return slice(rect.top, rect.bottom), slice(rect.left, rect.right)


def paint_navier_stokes(picture: "Image", mask: "Image", radius: int) -> "Image":
    """Inpainting by fluid dynamics: continues lines into the region."""
    import cv2

    return cv2.inpaint(picture, mask, radius, cv2.INPAINT_NS).astype("uint8", copy=False)


def paint_telea(picture: "Image", mask: "Image", radius: int) -> "Image":
    """Inpainting by fast marching."""
    import cv2

    return cv2.inpaint(picture, mask, radius, cv2.INPAINT_TELEA).astype("uint8", copy=False)


def paint_blur(picture: "Image", mask: "Image", radius: int) -> "Image":
    """A Gaussian blur of the region alone; `radius` plays no part."""
    import cv2
    import numpy as np

    return np.where(mask[:, :, None] > 0, cv2.GaussianBlur(picture, (15, 15), 0), picture).astype("uint8", copy=False)


PAINTERS = (paint_navier_stokes, paint_telea, paint_blur)


def repaint(picture: "Image", mask: "Image", radius: int, painters: "Sequence[Painter]" = PAINTERS) -> "Image":
    """The picture with the masked pixels made new by the first painter that can; raises what the last one raises."""
    import cv2

    *preferred, last = painters
    for paint in preferred:
        with suppress(cv2.error):
            return paint(picture, mask, radius)
    return last(picture, mask, radius)


def decode_window(plan: Plan, window: Rect) -> list[ffmpeg.Argument]:
    """Arguments that decode the window of each frame."""
    crop = f"crop={window.right - window.left}:{window.bottom - window.top}:{window.left}:{window.top}:exact=1"
    colour = f"scale=in_color_matrix={find_matrix(plan.media)}:flags=bicubic+accurate_rnd+full_chroma_int"
    return [*ffmpeg.input_options(plan.source), "-map", "0:V:0", "-vf", f"format=yuv420p,{crop},{colour},format=bgra"]


def encode_patched(plan: Plan, window: Rect) -> list[ffmpeg.Argument]:
    """Arguments that lay the frames of the window over the original and write the output."""
    colour_range = "pc" if plan.media.full_range else "tv"
    colour = f"scale=out_color_matrix={find_matrix(plan.media)}:out_range={colour_range}:flags=bicubic+accurate_rnd"
    # The times went through milliseconds: a patch that is a little early is always the nearest one that is not late.
    patch = f"[1:v]settb=1/1000000,setpts=PTS-600,{colour},format=yuva420p[patch]"
    overlay = f"[base][patch]overlay={window.left}:{window.top}:format=yuv420"
    graph = f"[0:V:0]format=yuv420p[base];{patch};{overlay}{make_even(plan.media)}[out]"
    inputs = [*ffmpeg.input_options(plan.source), *ffmpeg.FRAMES_INPUT]
    return [*inputs, "-filter_complex", graph, *write_output(plan)]


def delogo(plan: Plan) -> ffmpeg.Summary:
    """Fill the regions with ffmpeg's own filter, in one run."""
    meter = Meter(plan)
    filters = ",".join(fill_region(rect, plan.media) for rect in plan.rects)
    graph = f"[0:V:0]format=yuv420p,{filters}{make_even(plan.media)}[out]"
    return ffmpeg.run(
        [*ffmpeg.input_options(plan.source), "-filter_complex", graph, *write_output(plan)],
        executable=plan.executable,
        duration_seconds=plan.media.duration_seconds,
        on_progress=lambda progress: meter.show(progress.frames),
        check_cancelled=plan.ctx.check,
    )


def fill_region(rect: Rect, media: ffmpeg.Media) -> str:
    """The filter for one region; around it there must be a pixel of the picture on each side."""
    left, top = max(1, rect.left), max(1, rect.top)
    right, bottom = min(media.width - 1, rect.right), min(media.height - 1, rect.bottom)
    if left >= right or top >= bottom:
        raise Fail(
            "delogo cannot fill a region that is only the edge of the picture; inpaint can", code="region_outside"
        )
    return f"delogo=x={left}:y={top}:w={right - left}:h={bottom - top}"


def write_output(plan: Plan) -> list[ffmpeg.Argument]:
    """Arguments that encode `[out]` and keep the sound."""
    audio: list[ffmpeg.Argument] = []
    for number, track in enumerate(plan.media.audio_tracks):
        codec = plan.media.audio_codecs[track]
        audio += ["-map", f"0:a:{track}", f"-c:a:{number}", "copy" if codec in KEPT_AUDIO else "aac"]
    video = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-fps_mode", "passthrough"]
    times = ["-enc_time_base", find_time_base(plan.media.frame_rate)]
    file: list[ffmpeg.Argument] = ["-movflags", "+faststart", "-f", "mp4", plan.target]
    return ["-map", "[out]", *video, *times, *audio, *file]


def find_matrix(media: ffmpeg.Media) -> str:
    """The colour matrix for the way to RGB and back: the same both ways, whatever the default of the day is."""
    return ffmpeg.MATRICES.get(media.matrix, "bt601")


def make_even(media: ffmpeg.Media) -> str:
    """The filters that give an odd picture one more row or column, a copy of its neighbour: H.264 wants even sizes."""
    right, bottom = media.width % 2, media.height % 2
    if not right and not bottom:
        return ""
    grow = f"pad={media.width + right}:{media.height + bottom},fillborders=right={right}:bottom={bottom}:mode=smear"
    return f",format=yuv444p,{grow},format=yuv420p"  # pad would cut subsampled colour down to an even size first


def find_time_base(rate: Fraction | None) -> str:
    """A unit of time in which frames at `rate` begin on whole numbers, and others within some microseconds."""
    if rate is None or rate.numerator > 90_000:
        return "1:90000"
    return f"1:{rate.numerator * (90_000 // rate.numerator)}"
