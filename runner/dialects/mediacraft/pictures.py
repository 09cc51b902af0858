"""Pictures of films, as data URLs and as thumbnails. Only so many at a time: each takes a processor for a moment."""

from __future__ import annotations

import asyncio
import base64
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from runner import ffmpeg, stills
from runner.config import Config
from runner.dialects.mediacraft.words import WATERMARK
from runner.task import Task
from runner.web.crossing import in_thread
from runner.web.incoming import Received
from runner.web.multipart import FormFile

AT_ONCE: Final = 2
MAX_REMEMBERED: Final = 256
THUMBNAIL_WIDTH: Final = 200
FRAME_WIDTH: Final = 400


class Pictures:
    """Takes them. For the coroutines of one event loop. All methods raise `ffmpeg.FfmpegError`."""

    def __init__(self, config: Config, data: Path) -> None:
        self._config = config
        self._data = data
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._thumbnails: OrderedDict[str, bytes] = OrderedDict()

    async def survey(self, path: str, count: int) -> stills.Survey:
        """So many pictures from all over a film; `path` is below the data directory, as in all of these."""
        async with self._slots:
            return await in_thread(
                stills.survey, self._data / path, count, max_width=FRAME_WIDTH, executable=self._executable()
            )

    async def frame(self, path: str, number: int) -> str:
        """One frame in full size, as a data URL; past the end the last one."""
        async with self._slots:
            still = await in_thread(stills.take_still, self._data / path, number, executable=self._executable())
        return data_url(still.image)

    async def thumbnail(self, path: str) -> bytes:
        """A small JPEG that shows something."""
        known = self._thumbnails.get(path)
        if known is not None:
            return known
        async with self._slots:
            image = await in_thread(
                stills.take_thumbnail, self._data / path, THUMBNAIL_WIDTH, executable=self._executable()
            )
        self._thumbnails[path] = image
        if len(self._thumbnails) > MAX_REMEMBERED:
            self._thumbnails.popitem(last=False)
        return image

    async def look_at(self, file: FormFile | Received) -> ffmpeg.Media | None:
        """What a file that has come in holds; None for what is no film."""
        async with self._slots:
            try:
                return await in_thread(stills.look_at, file.path, self._executable())
            except ffmpeg.FfmpegError:
                return None

    def _executable(self) -> Path:
        handler = self._config.handlers.get(WATERMARK)
        return ffmpeg.locate(handler.config.get("ffmpeg") if handler is not None else None)


def frames_of(survey: stills.Survey) -> list[dict[str, Any]]:
    """The pictures of a survey as MediaCraft lists them."""
    return [
        {
            "index": index,
            "frame_number": still.number,
            "timestamp": still.seconds,
            "image_data": data_url(still.image),
        }
        for index, still in enumerate(survey.stills)
    ]


def first_input(task: Task) -> str | None:
    """The film that pictures are taken of."""
    return task.input_files[0] if task.input_files else None


def data_url(image: bytes) -> str:
    """A JPEG as a page can show it without another request."""
    return f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
