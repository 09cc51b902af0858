"""ffmpeg: where it is, what it says about a file, how to run it and how to stop it.

    FfmpegError
    ├── FfmpegMissing       there is none on this machine; the text says how to get one
    ├── UnreadableMedia     the file is no video that ffmpeg can open and decode
    └── FfmpegFailed        it ran and ended badly; `stderr` is the end of what it wrote

Version 5.1 or newer. `ffprobe` is not needed, as the wheel that carries ffmpeg has none: `probe` reads what `ffmpeg -i`
prints.

No command goes through a shell. Each child leads its own process group, is ended when its caller leaves by an
exception, and on Linux is killed by the kernel when the thread that started it is gone: `kill -9` of a handler leaves
nothing behind. Files are opened with `input_options`: only local files, only containers that hold their own content. A
playlist that was renamed to `clip.mp4` would otherwise make ffmpeg read other files of this machine, or call out to the
network.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path

from runner.errors import RunnerError

Argument = str | Path
Check = Callable[[], None]

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,mxf,dv,"
    "wav,mp3,aac,flac"
)
FRAMES_INPUT: tuple[Argument, ...] = ("-f", "matroska", "-i", "pipe:0")
"""The arguments that open what `edit_frames` sends."""

_POLL_SECONDS = 0.1
_PROBE_SECONDS = 60.0
_STDERR_BYTES = 4000
_PIPE_BYTES = 1 << 20
_REASON_CHARACTERS = 600
_BAD_DATA = (69, 183)  # exit status: most frames cannot be decoded; AVERROR_INVALIDDATA

# exec keeps the death signal; the parent that died before prctl is caught by the comparison.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent is gone')\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class FfmpegError(RunnerError):
    """Base of what this module raises."""

    code = "ffmpeg_failed"


class FfmpegMissing(FfmpegError):
    """No ffmpeg on this machine, or none at the configured path."""

    code = "ffmpeg_missing"


class UnreadableMedia(FfmpegError):
    """The file cannot be opened or decoded as a video; trying again will not help."""

    code = "unreadable_media"


class FfmpegFailed(FfmpegError):
    """ffmpeg ended badly. A negative `returncode` is the signal that killed it; `stderr` is the end of its log."""

    def __init__(self, message: str, returncode: int, stderr: str) -> None:
        super().__init__(f"{message}: {stderr}" if stderr else message)
        self.returncode = returncode
        self.stderr = stderr


MATRICES = {
    "bt709": "bt709",
    "bt470bg": "bt470",
    "smpte170m": "smpte170m",
    "smpte240m": "smpte240m",
    "fcc": "fcc",
    "bt2020nc": "bt2020",
}
"""Colour matrices as `ffmpeg -i` names them → as the filter `scale` does."""


@dataclass(frozen=True)
class Media:
    """What a file holds. `width` and `height` are as shown: after the rotation that the file asks for.

    `duration_seconds` and `frame_rate` are None where the file does not say (a recording of a browser has no duration).
    `matrix` is the colour matrix by ffmpeg's name, or "" where the file is silent. `audio_codecs` has one name for each
    track of sound: "none" for one that ffmpeg cannot decode, such as the spatial sound of a phone.
    """

    width: int
    height: int
    duration_seconds: float | None
    frame_rate: Fraction | None
    video_codec: str
    audio_codecs: tuple[str, ...] = ()
    rotation: int = 0
    variable_frame_rate: bool = False
    full_range: bool = False
    matrix: str = ""

    @property
    def audio_tracks(self) -> tuple[int, ...]:
        """The numbers of the tracks of sound that can be decoded, from 0."""
        return tuple(number for number, codec in enumerate(self.audio_codecs) if codec != "none")

    @property
    def has_audio(self) -> bool:
        """Whether there is a track of sound that can be decoded."""
        return bool(self.audio_tracks)

    @property
    def fps(self) -> float | None:
        """Frames per second, three decimals."""
        return None if self.frame_rate is None else round(float(self.frame_rate), 3)

    @property
    def frames(self) -> int | None:
        """About how many frames there are, where duration and rate are known."""
        if self.duration_seconds is None or self.frame_rate is None:
            return None
        return round(self.duration_seconds * self.frame_rate)


@dataclass(frozen=True)
class Progress:
    """How far a run is: frames and seconds of film that are written, and their share of the expected length."""

    frames: int = 0
    seconds: float = 0.0
    percentage: float = 0.0


@dataclass(frozen=True)
class Summary:
    """What a run made, and what ffmpeg complained of although it came to its end: "" where all was well.

    `seconds` is the length of the film; `edit_frames` does not know it.
    """

    frames: int
    complaints: str
    seconds: float = 0.0


def locate(configured: str | Path | None = None) -> Path:
    """The ffmpeg to use: the configured path, else the one on PATH, else the one in the `imageio-ffmpeg` wheel.

    A configured path that is not there raises `FfmpegMissing` rather than falling back to another version.
    """
    if configured:
        found = shutil.which(configured)
        if found is None:
            raise FfmpegMissing(f"the configured ffmpeg {str(configured)!r} is not an executable file")
        return Path(found)
    found = shutil.which("ffmpeg") or _find_in_wheel()
    if found is None:
        raise FfmpegMissing("ffmpeg was not found; install it, or take the one of pip install 'file-runner[video]'")
    return Path(found)


def _find_in_wheel() -> str | None:
    try:
        return str(import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def input_options(path: Path) -> tuple[Argument, ...]:
    """The arguments that open a file of a user: nothing but local files that are self-contained."""
    return ("-protocol_whitelist", "file", "-format_whitelist", _FORMATS, "-i", path.absolute())


def probe(path: Path, executable: Path | None = None) -> Media:
    """What the video in `path` holds. Raises `UnreadableMedia` with ffmpeg's reason, or `FfmpegMissing`."""
    command = [executable or locate(), "-hide_banner", "-nostdin", *input_options(path)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_SECONDS, check=False
        )
        return parse_media(done.stderr.decode(errors="replace"))
    except subprocess.TimeoutExpired as error:
        raise UnreadableMedia(f"{path.name}: ffmpeg could not open it within {_PROBE_SECONDS:.0f} s") from error
    except UnreadableMedia as error:
        raise UnreadableMedia(f"{path.name} is no video that ffmpeg can read: {error}") from error


def parse_media(text: str) -> Media:
    """Read what `ffmpeg -i` printed. Raises `UnreadableMedia` where there is no video in it."""
    if "\nInput #0," not in f"\n{text}":
        raise UnreadableMedia(_explain(text) or "ffmpeg gave no reason")
    streams = [_Stream(match, text) for match in _STREAM.finditer(text)]
    video = next((stream for stream in streams if stream.kind == "Video" and "(attached pic)" not in stream.line), None)
    if video is None:
        raise UnreadableMedia("it has no video track")
    audio = tuple(_decodable_codec(stream) for stream in streams if stream.kind == "Audio")
    return replace(_parse_video(video), duration_seconds=_parse_duration(text), audio_codecs=audio)


# Two spaces and no more: a tag of the file, which anyone can write, stands deeper.
_STREAM = re.compile(r"^  Stream #0:\d+(?:\[\w+\])?(?:\([^)]*\))?: (Video|Audio): (.*)$", re.MULTILINE)
_PICTURE = re.compile(r", (\w+)(?:\(([^)]*)\))?, (\d+)x(\d+)\b")
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d\.\d+)", re.MULTILINE)
_ROTATION = re.compile(r"^ +(?:displaymatrix|Display Matrix): rotation of (-?[\d.]+) degrees$", re.MULTILINE)
_ECHO = re.compile(
    "Error opening input file|Format .* detected only with low score|At least one output file|Task finished with|"
    "Terminating thread|Could not open encoder before EOF|Nothing was written into output|"
    "Error sending frames to consumers|Error while filtering|Last message repeated"
)
_SAMPLES = re.compile(r", (?:u8|s16|s32|s64|flt|dbl)p?\b")
_NTSC = {Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120, 240)}


class _Stream:
    """One line `Stream #0:…` and the indented details that follow it."""

    def __init__(self, match: re.Match[str], text: str) -> None:
        self.kind, self.line = match.groups()
        self.codec = re.split(r"[ ,]", self.line, maxsplit=1)[0]
        following = _STREAM.search(text, match.end())
        self.details = text[match.end() : following.start() if following else len(text)]


def _parse_video(stream: _Stream) -> Media:
    picture = _PICTURE.search(stream.line)
    if picture is None:
        raise UnreadableMedia("the size of its picture is unknown")
    pixel_format, colour, width, height = picture[1], picture[2] or "", int(picture[3]), int(picture[4])
    colours = [part.split("/")[0] for part in colour.split(", ")]
    rotated = _ROTATION.search(stream.details)
    rotation = round(float(rotated[1])) if rotated else 0
    turned = rotation % 180 == 90
    fps, tbr = _parse_rate(stream.line, "fps"), _parse_rate(stream.line, "tbr")
    return Media(
        width=height if turned else width,
        height=width if turned else height,
        duration_seconds=None,
        frame_rate=fps or tbr,
        video_codec=stream.codec,
        rotation=rotation,
        variable_frame_rate=fps is None or tbr not in (fps, 2 * fps),  # twice: fields of an interlaced video
        full_range="pc" in colours or pixel_format.startswith("yuvj"),
        matrix=next((name for name in colours if name in MATRICES), ""),
    )


def _decodable_codec(stream: _Stream) -> str:
    """Its name; "none" without a format of samples, which only a decoder can tell."""
    return stream.codec if _SAMPLES.search(stream.line) else "none"


def _parse_rate(line: str, unit: str) -> Fraction | None:
    match = re.search(rf", ([\d.]+)(k?) {unit}\b", line)
    if match is None:
        return None
    rate = Fraction(match[1]) * (1000 if match[2] else 1)
    exact = next((ntsc for ntsc in _NTSC if abs(ntsc - rate) < Fraction(1, 100)), rate)
    return exact or None


def _parse_duration(text: str) -> float | None:
    match = _DURATION.search(text)
    if match is None:
        return None
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _explain(log: str) -> str:
    """What ffmpeg wrote, on one line, without addresses, repetitions and what only follows from the cause."""
    log = re.sub(r"Format not on whitelist '[^']*'", "its format is not one of those accepted", log)
    lines = [re.sub(r"^(\[[^\]]*\] *)+", "", line).strip() for line in log.splitlines()]
    text = "; ".join(dict.fromkeys(line for line in lines if line and not _ECHO.match(line)))
    return text if len(text) <= _REASON_CHARACTERS else f"… {text[-_REASON_CHARACTERS:]}"


def run(
    arguments: Sequence[Argument],
    *,
    executable: Path | None = None,
    duration_seconds: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    check_cancelled: Check | None = None,
    timeout_seconds: float | None = None,
) -> Summary:
    """Run ffmpeg to its end.

    `check_cancelled` is called ten times a second and stops the child by raising; `on_progress` about four times a
    second, in this thread. `duration_seconds` is the length that is expected of the output, for the percentage.
    Raises `FfmpegFailed` where ffmpeg ends badly or takes longer than `timeout_seconds`, `UnreadableMedia` where an
    input is at fault.
    """
    command = _compose(executable, ["-progress", "pipe:1", "-stats_period", "0.25", *arguments])
    check = _combine_checks(check_cancelled, timeout_seconds)
    progress = Progress()
    with _start(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as child:
        for block in _read_blocks(child.output(check)):
            told = _parse_progress(block, duration_seconds)
            # ffmpeg's time goes back when a stream that was ahead has ended; nobody's progress does.
            progress = replace(told, percentage=max(progress.percentage, told.percentage))
            if on_progress is not None:
                on_progress(progress)
        complaints = child.finish(check)
    return Summary(progress.frames, complaints, progress.seconds)


def measure(path: Path, media: Media, *, executable: Path | None = None, check_cancelled: Check | None = None) -> Media:
    """`media` with its duration; where the file does not say it, all of it is read, but not decoded."""
    if media.duration_seconds is not None:
        return media
    arguments = [*input_options(path), "-map", "0:V:0", "-c", "copy", "-f", "null", "-"]
    read = run(arguments, executable=executable, check_cancelled=check_cancelled)
    return replace(media, duration_seconds=read.seconds)


def edit_frames(
    decode: Sequence[Argument],
    encode: Sequence[Argument],
    edit: Callable[[memoryview], None],
    *,
    executable: Path | None = None,
    check_cancelled: Check | None = None,
) -> Summary:
    """Send each frame that one ffmpeg decodes through `edit` to another that encodes.

    `decode` ends in a filter that makes `bgra`; `edit` changes the bytes of one frame in place (rows from the top, four
    bytes a pixel). `encode` reads the frames by `FRAMES_INPUT`, each with its time in the source, to the millisecond.
    """
    check = _combine_checks(check_cancelled, None)
    raw = ["-fps_mode", "passthrough", "-c:v", "rawvideo", "-allow_raw_vfw", "1", "-f", "matroska", "pipe:1"]
    with (
        _start(_compose(executable, encode), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as encoder,
        _start(_compose(executable, [*decode, *raw]), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as decoder,
    ):
        frames = 0
        try:
            for _ in _edit_blocks(decoder.output(check), encoder.input(check), edit):
                frames += 1
            decoder.finish(check)
        except BrokenPipeError:
            pass  # the encoder reads no more: `finish` tells whether it has all that it wants or has failed
        return Summary(frames, encoder.finish(check))


def _compose(executable: Path | None, arguments: Sequence[Argument]) -> list[Argument]:
    return [executable or locate(), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-y", *arguments]


def _combine_checks(check_cancelled: Check | None, timeout_seconds: float | None) -> Check:
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds

    def check() -> None:
        if check_cancelled is not None:
            check_cancelled()
        if deadline is not None and time.monotonic() > deadline:
            raise FfmpegFailed(f"ffmpeg took longer than {timeout_seconds} s", -signal.SIGTERM, "")

    return check


def _read_blocks(source: _Source) -> Iterator[dict[str, str]]:
    block: dict[str, str] = {}
    for line in source.lines():
        key, _, value = line.partition("=")
        if value.strip() != "N/A":  # before the first packet and after the last: what was known stands
            block[key] = value.strip()
        if key == "progress":
            yield block


def _parse_progress(block: dict[str, str], duration_seconds: float | None) -> Progress:
    seconds = max(0, int(block.get("out_time_us", 0))) / 1_000_000
    percentage = min(100.0, 100 * seconds / duration_seconds) if duration_seconds else 0.0
    return Progress(int(block.get("frame", 0)), seconds, 100.0 if block["progress"] == "end" else percentage)


@contextmanager
def _start(command: list[Argument], *, stdin: int, stdout: int) -> Iterator[_Child]:
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [*_die_with_parent(), *command],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            bufsize=0,
            pipesize=_PIPE_BYTES,
            process_group=0,
        )
        child = _Child(process, stderr.fileno())
        try:
            yield child
        finally:
            child.end()


def _die_with_parent() -> list[Argument]:
    if not sys.platform.startswith("linux") or not sys.executable:
        return []
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]


class _Child:
    """One running ffmpeg, its pipes and the file that takes its stderr."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: int) -> None:
        self._process = process
        self._stderr = stderr

    def output(self, check: Check) -> _Source:
        assert self._process.stdout is not None
        return _Source(self._process.stdout.fileno(), check)

    def input(self, check: Check) -> _Sink:
        assert self._process.stdin is not None
        return _Sink(self._process.stdin.fileno(), check)

    def finish(self, check: Check) -> str:
        """Let it come to its end; what it complained of. Raises `FfmpegFailed`, or `UnreadableMedia` for its input."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        while (returncode := self._wait(_POLL_SECONDS)) is None:
            check()
        stderr = self._read_stderr()
        if returncode in _BAD_DATA:
            raise UnreadableMedia(f"ffmpeg cannot decode it: {stderr}")
        if returncode:
            how = f"was killed by signal {-returncode}" if returncode < 0 else "failed"
            raise FfmpegFailed(f"ffmpeg {how}", returncode, stderr)
        return stderr

    def end(self) -> None:
        """See to it that nothing of it runs any more, and close the pipes. What it wrote so far is of no use."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):  # it has just ended; macOS says the latter
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _read_stderr(self) -> str:
        size = os.fstat(self._stderr).st_size
        tail = os.pread(self._stderr, _STDERR_BYTES, max(0, size - _STDERR_BYTES))
        return _explain(tail.decode(errors="replace"))


class _Source:
    """The reading end of a pipe that asks `check` while it waits."""

    def __init__(self, fd: int, check: Check) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._check = check

    def read(self, size: int) -> bytearray:
        """`size` bytes, fewer where the stream ends."""
        block = bytearray(size)
        view = memoryview(block)
        filled = 0
        while filled < size:
            try:
                count = os.readv(self._fd, [view[filled:]])
            except BlockingIOError:
                _wait_for(self._fd, selectors.EVENT_READ, self._check)
                continue
            if count == 0:
                return block[:filled]
            filled += count
        return block

    def lines(self) -> Iterator[str]:
        """The lines of a text, each as soon as it is complete."""
        rest = b""
        while True:
            try:
                block = os.read(self._fd, _PIPE_BYTES)
            except BlockingIOError:
                _wait_for(self._fd, selectors.EVENT_READ, self._check)
                continue
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


class _Sink:
    """The writing end of a pipe that asks `check` while it waits."""

    def __init__(self, fd: int, check: Check) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._check = check

    def write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                _wait_for(self._fd, selectors.EVENT_WRITE, self._check)


def _wait_for(fd: int, event: int, check: Check) -> None:
    check()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, event)
        while not selector.select(_POLL_SECONDS):
            check()


# Between the two ffmpegs runs a Matroska stream (RFC 9559): raw frames alone would lose the times of a variable frame
# rate. An edited frame has the size of the old one, so all that is not a frame is handed on as it came.
_MASTERS = {b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\xa0"}  # Segment, Cluster, BlockGroup
_BLOCKS = {b"\xa3", b"\xa1"}  # SimpleBlock, Block
_BLOCK_HEADER_BYTES = 4  # track, time, flags


def _edit_blocks(source: _Source, sink: _Sink, edit: Callable[[memoryview], None]) -> Iterator[None]:
    while (identity := _read_vint(source)) and (length := _read_vint(source)):
        sink.write(identity + length)
        if bytes(identity) in _MASTERS:
            continue
        size = _decode_length(length)
        payload = source.read(size)
        if len(payload) < size:
            return  # the decoder died; its exit status tells
        if bytes(identity) in _BLOCKS:
            edit(memoryview(payload)[_BLOCK_HEADER_BYTES:])
            yield
        sink.write(payload)


def _read_vint(source: _Source) -> bytearray:
    first = source.read(1)
    return first + source.read(8 - first[0].bit_length()) if first else first


def _decode_length(vint: bytearray) -> int:
    return int.from_bytes(vint) & ((1 << 7 * len(vint)) - 1)
