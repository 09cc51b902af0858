"""Join videos, or cuts of them, into one.

ffmpeg does it in one run: every cut is brought to the same size, frame rate and sound format, then the filter `concat`
sets them end to end. A cut without sound, or whose sound is not wanted, gets silence of its length, so that what
follows stays in sync.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from runner import Context, Fail, ffmpeg, handler

from ._naming import PlainName, derive_name, name_of

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Audio = Literal["keep_all", "keep_first", "remove"]
Quality = Literal["low", "medium", "high"]
T = TypeVar("T")

ENCODERS: dict[Quality, tuple[str, str]] = {
    "low": ("veryfast", "28"),
    "medium": ("medium", "23"),
    "high": ("slow", "18"),
}
"""The preset and the constant rate factor of libx264."""

SOUND = "aformat=sample_fmts=fltp:sample_rates=44100:channel_layouts=stereo"
MIN_SECONDS = 0.01
USUAL_RATE = Fraction(30)
HIGHEST_RATE = Fraction(240)  # recordings of browsers claim 1000 a second


class Segment(BaseModel):
    """A cut of one input: which, by name or by position from 0, from when to when, and its place in the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filename: Annotated[str, Field(min_length=1, description="The input by its name.")] | None = None
    index: Annotated[int, Field(ge=0, description="The input by its position, from 0.")] | None = None
    start_time: Annotated[Seconds, Field(description="Where the cut begins, in seconds.")] = 0.0
    end_time: Annotated[Seconds | None, Field(description="Where it ends; none: at the end of the input.")] = None
    order: Annotated[int | None, Field(description="Its place in the result; none: as in this list.")] = None

    @model_validator(mode="after")
    def _require_sense(self) -> Self:
        if (self.filename is None) == (self.index is None):
            raise ValueError("a segment needs either filename or index")
        if self.end_time is not None and self.end_time <= self.start_time:
            raise ValueError("end_time must be greater than start_time")
        return self


class Cut(NamedTuple):
    """A stretch of a file, in seconds, and what the file holds."""

    path: Path
    media: ffmpeg.Media
    start: float
    end: float

    @property
    def length(self) -> float:
        """Its length in seconds."""
        return self.end - self.start


class Shape(NamedTuple):
    """What all cuts are brought to."""

    width: int
    height: int
    rate: Fraction


@handler(
    accepts=["video/*"], timeout="1h", retries=1, isolation="process", extra="video", requires="ffmpeg|imageio_ffmpeg"
)
def video_merge(
    ctx: Context,
    segments: Annotated[
        Annotated[list[Segment], Field(min_length=1, max_length=100)] | None,
        Field(description="The cuts to join; without them all inputs, whole. With them one input is enough."),
    ] = None,
    audio_handling: Annotated[
        Audio, Field(description="keep_first: only the first cut is heard; remove: no sound.")
    ] = "keep_all",
    quality_preset: Annotated[Quality, Field(description="low is small and fast, high is large and slow.")] = "medium",
    output_name: Annotated[PlainName | None, Field(description="The name of the output; it may lack .mp4.")] = None,
) -> dict[str, object]:
    """Join videos, or cuts of them, into one; sizes, frame rates and sound may differ."""
    if len(ctx.inputs) < (1 if segments else 2):
        raise Fail(f"video_merge takes two or more videos, not {len(ctx.inputs)}", code="wrong_inputs")
    try:
        executable = ffmpeg.locate(ctx.config.get("ffmpeg"))
        cuts = open_cuts(ctx, segments, executable)
        target = ctx.output(name_output(ctx, output_name))
        merge(ctx, executable, compose(cuts, audio_handling, quality_preset, target), sum(cut.length for cut in cuts))
        return describe(executable, target, len({cut.path for cut in cuts}))
    except (ffmpeg.FfmpegMissing, ffmpeg.UnreadableMedia) as error:
        raise Fail(str(error), code=error.code) from error


def open_cuts(ctx: Context, segments: Sequence[Segment] | None, executable: Path) -> list[Cut]:
    """The cuts in their order; without segments the whole of each input. Raises `Fail` for what is not there."""
    ctx.progress(0, "looking at the inputs", stage="reading")
    if segments is None:
        segments = [Segment(index=position) for position in range(len(ctx.inputs))]
    chosen = [(find_input(ctx, segment), segment) for segment in arrange(segments)]
    held = {path: open_media(ctx, path, executable) for path in dict.fromkeys(path for path, _ in chosen)}
    return [cut_out(path, held[path], segment) for path, segment in chosen]


def arrange(segments: Sequence[Segment]) -> list[Segment]:
    """Segments by `order`; one without stays at the position where it was given."""
    places = [(position if segment.order is None else segment.order) for position, segment in enumerate(segments)]
    return [segment for _, segment in sorted(zip(places, segments, strict=True), key=lambda pair: pair[0])]


def find_input(ctx: Context, segment: Segment) -> Path:
    """The input that a segment means."""
    names = [path.name for path in ctx.inputs]
    if segment.index is not None and segment.index < len(names):
        return ctx.inputs[segment.index]
    if segment.filename in names:
        return ctx.inputs[names.index(segment.filename)]
    wanted = segment.filename if segment.index is None else f"number {segment.index}"
    raise Fail(f"no input {wanted}; there are {', '.join(names)}", code="unknown_segment")


def open_media(ctx: Context, path: Path, executable: Path) -> ffmpeg.Media:
    """What a file holds, with its length."""
    ctx.check()
    return ffmpeg.measure(path, ffmpeg.probe(path, executable), executable=executable, check_cancelled=ctx.check)


def cut_out(path: Path, media: ffmpeg.Media, segment: Segment) -> Cut:
    """The stretch that a segment means, as far as the file goes."""
    length = media.duration_seconds or 0.0
    end = length if segment.end_time is None else min(segment.end_time, length)
    if end - segment.start_time < MIN_SECONDS:
        text = f"{path.name} is {length:.2f} s long: there is nothing from {segment.start_time} s on"
        raise Fail(text, code="empty_segment")
    return Cut(path, media, segment.start_time, end)


def choose_shape(held: Sequence[ffmpeg.Media]) -> Shape:
    """The size and the frame rate that most have; among equals the first. Even sizes, as yuv420p wants them."""
    width, height = most_common((media.width, media.height) for media in held)
    rates = [media.frame_rate for media in held if media.frame_rate and media.frame_rate <= HIGHEST_RATE]
    return Shape(width + width % 2, height + height % 2, most_common(rates) if rates else USUAL_RATE)


def most_common(values: Iterable[T]) -> T:
    """The value that occurs most often; among equals the first."""
    return Counter(values).most_common(1)[0][0]


def choose_sound(cuts: Sequence[Cut], audio: Audio) -> list[bool]:
    """For each cut whether its sound is heard."""
    wanted = [audio == "keep_all" or (audio == "keep_first" and position == 0) for position in range(len(cuts))]
    return [heard and cut.media.has_audio for heard, cut in zip(wanted, cuts, strict=True)]


def compose(cuts: Sequence[Cut], audio: Audio, quality: Quality, target: Path) -> list[ffmpeg.Argument]:
    """The arguments of the one run of ffmpeg."""
    sounding = choose_sound(cuts, audio)
    graph = compose_graph(cuts, choose_shape([cut.media for cut in cuts]), sounding)
    return [*open_all(cuts), "-filter_complex", graph, *encode(quality, with_sound=any(sounding)), target]


def open_all(cuts: Sequence[Cut]) -> list[ffmpeg.Argument]:
    """Arguments that open each cut as an input of its own, already at its start."""
    arguments: list[ffmpeg.Argument] = []
    for cut in cuts:
        arguments += ["-ss", f"{cut.start:.6f}", "-t", f"{cut.length:.6f}", *ffmpeg.input_options(cut.path)]
    return arguments


def compose_graph(cuts: Sequence[Cut], shape: Shape, sounding: Sequence[bool]) -> str:
    """The filters that make the cuts alike and set them end to end as `[v]` and, if any sounds, `[a]`."""
    chains, pads = [], ""
    for number, (cut, heard) in enumerate(zip(cuts, sounding, strict=True)):
        chains.append(f"{shape_picture(number, cut, shape)}[v{number}]")
        pads += f"[v{number}]"
        if any(sounding):
            chains.append(f"{shape_sound(number, cut) if heard else make_silence(cut)}[a{number}]")
            pads += f"[a{number}]"
    outputs = "a=1[v][a]" if any(sounding) else "a=0[v]"
    return ";".join([*chains, f"{pads}concat=n={len(cuts)}:v=1:{outputs}"])


def shape_picture(number: int, cut: Cut, shape: Shape) -> str:
    """The picture of one cut: square pixels, fitted into the shape on black, the last frame held to the end."""
    width, height = shape.width, shape.height
    square = "scale=iw*max(sar\\,1):ih/min(sar\\,1),setsar=1"
    fit = f"{square},scale={width}:{height}:force_original_aspect_ratio=decrease"
    pad = f"pad={width}:{height}:(ow-iw)/2:(oh-ih)/2,setsar=1,format=yuv420p"
    hold = f"fps={shape.rate}:start_time=0,tpad=stop=-1:stop_mode=clone,trim=duration={cut.length:.6f}"
    return f"[{number}:V:0]{fit},{pad},{hold},setpts=PTS-STARTPTS"


def shape_sound(number: int, cut: Cut) -> str:
    """The sound of one cut, no longer than its picture; `concat` fills up what is shorter."""
    fill = f"aresample=44100:async=1:first_pts=0,{SOUND},atrim=duration={cut.length:.6f},asetpts=PTS-STARTPTS"
    return f"[{number}:a:{cut.media.audio_tracks[0]}]{fill}"


def make_silence(cut: Cut) -> str:
    """Silence as long as a cut."""
    return f"anullsrc=r=44100:cl=stereo,{SOUND},atrim=duration={cut.length:.6f}"


def encode(quality: Quality, *, with_sound: bool) -> list[ffmpeg.Argument]:
    """Arguments that encode what the filters made."""
    preset, crf = ENCODERS[quality]
    video: list[ffmpeg.Argument] = ["-map", "[v]", "-c:v", "libx264", "-preset", preset, "-crf", crf]
    audio: list[ffmpeg.Argument] = ["-map", "[a]", "-c:a", "aac", "-b:a", "128k"] if with_sound else []
    return [*video, *audio, "-map_metadata", "-1", "-map_chapters", "-1", "-movflags", "+faststart", "-f", "mp4"]


def merge(ctx: Context, executable: Path, command: Sequence[ffmpeg.Argument], seconds: float) -> None:
    """Run ffmpeg and hand on how far it is."""

    def tell(progress: ffmpeg.Progress) -> None:
        text = f"{progress.seconds:.1f} of {seconds:.1f} s"
        ctx.progress(1 + 98 * progress.percentage / 100, text, stage="merging")

    made = ffmpeg.run(
        command, executable=executable, duration_seconds=seconds, on_progress=tell, check_cancelled=ctx.check
    )
    if made.complaints:
        ctx.log.warning("ffmpeg made %.1f s of film, but says: %s", made.seconds, made.complaints)


def name_output(ctx: Context, wanted: str | None) -> str:
    """The name that was asked for, or one made from the first input's; with the ending of what is written."""
    if wanted is None:
        return derive_name(Path(name_of(ctx)).stem, "_merged.mp4")
    return wanted if wanted.lower().endswith(".mp4") else derive_name(wanted, ".mp4")


def describe(executable: Path, target: Path, inputs: int) -> dict[str, object]:
    """The result of the task: what the output is now."""
    made = ffmpeg.probe(target, executable)
    return {
        "inputs": inputs,
        "duration_seconds": made.duration_seconds,
        "width": made.width,
        "height": made.height,
        "fps": made.fps,
        "output": target.name,
    }
