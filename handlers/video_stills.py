"""Take pictures of a video: some from all over it or those that are asked for, and a thumbnail."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from runner import Context, Fail, ffmpeg, handler, stills

from ._naming import derive_name, name_of

AT_ONCE = 8
Number = Annotated[int, Field(ge=0)]


@handler(
    accepts=["video/*"], timeout="30m", retries=1, isolation="process", extra="video", requires="ffmpeg|imageio_ffmpeg"
)
def video_stills(
    ctx: Context,
    frames: Annotated[
        Annotated[list[Number], Field(min_length=1, max_length=1000)] | None,
        Field(description="The numbers of the frames, from 0; none: some from all over the video."),
    ] = None,
    count: Annotated[int, Field(ge=1, le=100, description="How many, where no frames are named.")] = 12,
    max_width: Annotated[
        int | None, Field(ge=16, le=16_384, description="Wider pictures are made smaller; none: full size.")
    ] = None,
    form: Annotated[Literal["jpg", "png"], Field(description="The format of the pictures.")] = "jpg",
) -> dict[str, object]:
    """Take pictures of a video, and a thumbnail."""
    if len(ctx.inputs) != 1:
        raise Fail(f"video_stills takes one video, not {len(ctx.inputs)}", code="wrong_inputs")
    path, stem = ctx.inputs[0], Path(name_of(ctx)).stem
    try:
        executable = ffmpeg.locate(ctx.config.get("ffmpeg"))
        media = stills.look_at(path, executable, ctx.check)
        thumbnail = ctx.output(derive_name(stem, "_thumbnail.jpg"))
        thumbnail.write_bytes(stills.take_thumbnail(path, executable=executable, check_cancelled=ctx.check))
        numbers = sorted(set(frames or spread(stills.count_frames(media), count)))
        pictures: list[dict[str, object]] = []
        for start in range(0, len(numbers), AT_ONCE):
            ctx.progress(10 + 90 * start / len(numbers), f"{start} of {len(numbers)} pictures", stage="taking")
            some = numbers[start : start + AT_ONCE]
            pictures += take(ctx, executable, stem, some, stills.Form(form), max_width)
    except (ffmpeg.FfmpegMissing, ffmpeg.UnreadableMedia) as error:
        raise Fail(str(error), code=error.code) from error
    seen = {"frames": stills.count_frames(media), "fps": media.fps, "duration_seconds": media.duration_seconds}
    return seen | {"stills": pictures, "thumbnail": thumbnail.name, "output": thumbnail.name}


def spread(total: int, count: int) -> Sequence[int]:
    """Numbers evenly apart, from the first frame on."""
    return range(0, total, max(1, total // count))[:count]


def take(
    ctx: Context, executable: Path, stem: str, numbers: Sequence[int], form: stills.Form, max_width: int | None
) -> list[dict[str, object]]:
    """Write these frames; what the result says of them."""
    taken = stills.take_stills(
        ctx.inputs[0], numbers, form=form, max_width=max_width, executable=executable, check_cancelled=ctx.check
    )
    pictures = []
    for number, still in zip(numbers, taken, strict=True):
        output = ctx.output(derive_name(stem, f"_frame{number}.{form}"))
        output.write_bytes(still.image)
        pictures.append({"frame": still.number, "seconds": still.seconds, "output": output.name})
    return pictures
