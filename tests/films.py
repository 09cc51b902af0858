"""Small films to test with, made by ffmpeg, and ways to look at what became of them."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner import ffmpeg

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Image = npt.NDArray[np.uint8]

MISSING = [name for name in ("cv2", "numpy", "imageio_ffmpeg") if find_spec(name) is None]

needs_video = [
    pytest.mark.video,
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `video`: no {', '.join(MISSING)}"),
]
"""For `pytestmark` of a module whose tests run ffmpeg."""

SOUND = ("-f", "lavfi", "-i", "sine=440:sample_rate=44100")
NEVER_ENDING = ("-re", "-f", "lavfi", "-i", "testsrc2=s=64x48", "-f", "null", "-")


def shoot(
    path: Path, picture: str = "testsrc2=s=160x120:r=25", *options: str, seconds: float = 1.0, sound: bool = True
) -> Path:
    """A film of a lavfi source, by default 160x120 at 25 a second with a tone; `options` are those of the output."""
    inputs = ["-f", "lavfi", "-i", picture, *(SOUND if sound else ())]
    encode(*inputs, "-t", str(seconds), *options, path)
    return path


def encode(*arguments: ffmpeg.Argument) -> str:
    """Run ffmpeg as a person would; what it wrote to stderr."""
    command = [ffmpeg.locate(), "-nostdin", "-hide_banner", "-y", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def frames_of(path: Path) -> "list[Image]":
    """Every frame as OpenCV sees it: blue, green, red."""
    import cv2
    import numpy as np

    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(np.asarray(read[1], np.uint8))
    capture.release()
    return frames


def times_of(path: Path) -> list[float]:
    """The time of every frame in seconds."""
    told = encode(
        "-i", path, "-map", "0:V:0", "-vf", "showinfo=checksum=0", "-fps_mode", "passthrough", "-f", "null", "-"
    )
    return [float(time) for time in re.findall(r"pts_time:([\d.]+)", told)]


def loudness_of(path: Path, start: float, seconds: float) -> float:
    """The loudest sample of a stretch in decibels: about -18 for the tone, below -80 for silence."""
    told = encode(
        "-ss", str(start), "-t", str(seconds), "-i", path, "-map", "0:a", "-af", "volumedetect", "-f", "null", "-"
    )
    found = re.search(r"max_volume: (-?[\d.]+) dB", told)
    assert found is not None
    return float(found[1])


def packets_of(path: Path) -> list[str]:
    """A hash of every packet of sound, as it is in the file."""
    command: list[ffmpeg.Argument] = [
        ffmpeg.locate(),
        "-v",
        "error",
        "-i",
        path,
        "-map",
        "0:a",
        "-c",
        "copy",
        "-f",
        "framemd5",
        "-",
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.rpartition(",")[2].strip() for line in told.splitlines() if not line.startswith("#")]


def children_of(pid: int) -> list[int]:
    """The ffmpegs that a process has started and not yet buried; skips the test where the kernel does not tell."""
    listed = list(Path(f"/proc/{pid}/task").glob("*/children"))
    if not listed:
        pytest.skip("needs /proc/<pid>/task/<tid>/children")
    children = [child for file in listed for child in _text_of(file).split()]
    return [int(child) for child in children if "ffmpeg" in _text_of(Path(f"/proc/{child}/comm"))]


def _text_of(file: Path) -> str:
    """Nothing if its thread or process has just ended."""
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
