"""MediaCraft's words: its answers, its records of tasks, what its clients say of regions and cuts. Nothing here asks
the disk or the network.

What MediaCraft knows of a task and we do not (the chosen frame, the cuts of each file) is kept with the task, as JSON
in `metadata.mediacraft`, so that a restart loses none of it and every other front end shows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.record import Record
from runner.task import DRAFT, Status, Task
from runner.web.problems import Fault, HttpProblem

WATERMARK: Final = "watermark_removal"
MERGE: Final = "video_merge"
TASK_TYPES: Final = (WATERMARK, MERGE)
NOTES: Final = "mediacraft"
MAX_REGIONS: Final = 100
OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "audio_handling": ("keep_all", "keep_first", "remove"),
    "quality_preset": ("low", "medium", "high"),
}
JSON: Final = "application/json"

USER_IS_BUSY: Final = "请等待当前任务完成"
SYSTEM_IS_BUSY: Final = "系统繁忙，请稍后重试"

STATUS_OF_FAULT: Final[Mapping[int, int]] = {401: 401, 409: 400, 412: 400, 415: 400, 422: 400}
"""Which status a fault has here, where it is not the API's."""

_SHOWN: Final = {
    Status.PENDING: "processing",
    Status.PROCESSING: "processing",
    Status.CANCELLED: "failed",
}
_STATUSES: Final[Mapping[str, tuple[Status, ...]]] = {
    "created": (Status.CREATED,),
    "uploaded": (Status.UPLOADED,),
    "frame_selected": (Status.UPLOADED,),
    "regions_selected": (Status.UPLOADED,),
    "queued": (Status.PENDING,),
    "processing": (Status.PENDING, Status.PROCESSING),
    "completed": (Status.COMPLETED,),
    "failed": (Status.FAILED, Status.CANCELLED),
    "cancelled": (Status.CANCELLED,),
}


class Clip(Record):
    """One file of a merge and the part of it that is wanted, in seconds; `end_time` None: to its end."""

    item_id: str
    filename: str
    path: str
    size: int
    duration: float = 0.0
    resolution: str = ""
    fps: float = 0.0
    has_audio: bool = False
    start_time: float = 0.0
    end_time: float | None = None

    @property
    def end(self) -> float:
        """Where the wanted part ends."""
        return self.duration if self.end_time is None else self.end_time

    def shown(self) -> dict[str, Any]:
        """The entry of `config.files`."""
        return {**self.model_dump(exclude={"item_id", "path"}), "path": shown_path(self.path), "end_time": self.end}


class Notes(Record):
    """What MediaCraft's clients have said of a task so far."""

    task_name: str | None = None
    selected_frame: int | None = None
    regions: tuple[Any, ...] = ()
    clips: tuple[Clip, ...] = ()
    merge_mode: str = "concat"
    audio_handling: str = "keep_all"
    quality_preset: str = "medium"

    def put_into(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """A task's metadata with these notes in it."""
        return {**metadata, NOTES: self.model_dump_json(exclude_defaults=True)}


def notes_of(task: Task) -> Notes:
    """The notes of a task; empty ones for a task that was made elsewhere, or whose notes somebody has written."""
    try:
        return Notes.model_validate_json(task.metadata.get(NOTES, "{}"))
    except ValidationError:
        return Notes()


def clips_of(task: Task) -> tuple[Clip, ...]:
    """A merge's files in their order, those that nobody has said anything of at the end."""
    known = [clip for clip in notes_of(task).clips if clip.path in task.input_files]
    noted = {clip.path for clip in known}
    return (*known, *(_bare_clip(path) for path in task.input_files if path not in noted))


def _bare_clip(path: str) -> Clip:
    name = path.rpartition("/")[2]
    return Clip(item_id=name, filename=name, path=path, size=0)


# Answers


def answer(
    request: Request, data: Any, *, message: str = "Success", status: int = 200, flat: Mapping[str, Any] | None = None
) -> Response:
    """The envelope. `flat` is said beside it, too, for clients that look there."""
    body = {**(flat or {}), "success": True, "code": status, "message": message, "data": data, "meta": _meta(request)}
    return Response(to_json(body), status, media_type=JSON)


def tell(request: Request, fault: Fault) -> Response:
    """A fault in the envelope; `error` is where some clients look for the text."""
    status = STATUS_OF_FAULT.get(fault.status, fault.status)
    body = {
        "success": False,
        "code": status,
        "message": fault.detail,
        "error": fault.detail,
        "data": None,
        "meta": _meta(request),
        **{name: value for name, value in fault.more.items() if name == "status"},
    }
    return Response(to_json(body), status, fault.headers, JSON)


def tell_unfinished(request: Request, task: Task) -> Response:
    """There is no result yet, or there never will be: 400, with the status."""
    shown = status_of(task)
    return tell(request, Fault(400, "not_completed", f"Task is not completed: {shown}", None, "", {"status": shown}))


def refuse(status: int, message: str) -> HttpProblem:
    """A fault of the request's."""
    headers = {"Retry-After": "5"} if status == 429 else None
    return HttpProblem(status, "refused", message, headers)


def instant(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC, as MediaCraft writes it."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _meta(request: Request) -> dict[str, Any]:
    request_id = request.scope.get("request_id", "")
    return {"timestamp": instant(datetime.now(UTC)), "version": "v1", "request_id": request_id}


# Tasks


def status_of(task: Task) -> str:
    """A task's status in MediaCraft's words: what waits for a slot is on its way already."""
    return _SHOWN.get(task.status, task.status)


def statuses_of(name: str) -> tuple[Status, ...]:
    """What a filter by one of its words means. Raises `HttpProblem` 400."""
    if name not in _STATUSES:
        raise refuse(400, f"Invalid status: {name}")
    return _STATUSES[name]


def shown_path(path: str | None) -> str | None:
    """A path below the data directory as clients are shown it."""
    return None if path is None else f"/data/{path}"


def config_of(task: Task) -> dict[str, Any]:
    """What was configured: the frame and the regions, or the files."""
    notes = notes_of(task)
    if task.type == MERGE:
        return {
            "files": [clip.shown() for clip in clips_of(task)],
            "segments": task.payload.get("segments", []),
            "merge_mode": notes.merge_mode,
            "audio_handling": task.payload.get("audio_handling", notes.audio_handling),
            "quality_preset": task.payload.get("quality_preset", notes.quality_preset),
        }
    return {"selected_frame": notes.selected_frame, "regions": task.payload.get("regions", notes.regions)}


def record_of(task: Task) -> dict[str, Any]:
    """The task as MediaCraft's document has it, and beside it the names that its program and its pages use."""
    progress, config = task.progress, config_of(task)
    percentage = 0 if progress is None else math.floor(progress.percentage)
    output = result_file(task)
    return {
        "task_id": task.id,
        "user_id": task.user_id,
        "sid": task.user_id,
        "task_type": task.type,
        "task_name": notes_of(task).task_name,
        "status": status_of(task),
        "progress": percentage,
        "progress_percentage": percentage,
        "progress_message": "" if progress is None else progress.message or progress.stage,
        "created_at": instant(task.created_at),
        "started_at": instant(task.started_at),
        "completed_at": instant(task.completed_at),
        "last_heartbeat": instant(progress.updated_at if progress is not None else task.updated_at),
        "original_filename": task.original_filename,
        "file_size": task.file_size,
        "input_file_path": shown_path(task.input_files[0] if task.input_files else None),
        "output_file_path": shown_path(output),
        "processed_file_path": shown_path(output),
        "error_message": None if task.error is None else task.error.message,
        "config": config,
        "task_config": config,
        "metadata": {name: value for name, value in task.metadata.items() if name != NOTES},
    }


def result_file(task: Task) -> str | None:
    """The film among a task's outputs: the one that its result names, or the first."""
    made = task.result.get("output") if isinstance(task.result, dict) else None
    films = [path for path in task.output_files if path.rpartition("/")[2] == made] or list(task.output_files)
    return films[0] if films else None


def count_by_status(tasks: Mapping[Status, int]) -> dict[str, int]:
    """How many tasks there are by MediaCraft's statuses, those without any left out."""
    counts: dict[str, int] = {}
    for status, number in tasks.items():
        name = _SHOWN.get(status, status)
        counts[name] = counts.get(name, 0) + number
    return {name: number for name, number in counts.items() if number}


def download_name(task: Task, prefix: str = "processed_", ending: str = "") -> str:
    """What a result is called: after the file that came, with the suffix of what was made."""
    made = Path(result_file(task) or "video.mp4").suffix
    return f"{prefix}{Path(task.original_filename or 'video').stem}{ending}{made}"


def is_draft(task: Task) -> bool:
    """Whether it still waits for files or for its configuration."""
    return task.status in DRAFT


# What clients say


def read_task_type(value: Any) -> str:
    """One of the two types. Raises `HttpProblem` 400."""
    if value not in TASK_TYPES:
        raise refuse(400, "task_type is missing" if value is None else f"Invalid task type: {value}")
    return str(value)


def read_regions(value: Any) -> list[Any]:
    """Regions as corners or boxes, on whole pixels. Raises `HttpProblem` 400 where there are none."""
    if not isinstance(value, list) or not value:
        raise refuse(400, "No watermark regions: send regions, [x1, y1, x2, y2] or {x, y, width, height}")
    if len(value) > MAX_REGIONS:
        raise refuse(400, f"there may be {MAX_REGIONS} regions")
    return [_on_pixels(region) for region in value]


def _on_pixels(region: Any) -> Any:
    """Pages compute regions from the place of the mouse, so they may have fractions."""
    if isinstance(region, list):
        return [_rounded(number) for number in region]
    if isinstance(region, dict):
        return {name: _rounded(region[name]) for name in ("x", "y", "width", "height") if name in region}
    return region


def _rounded(number: Any) -> Any:
    return round(number) if isinstance(number, float) and math.isfinite(number) else number


def read_frame(value: Any) -> int:
    """The number of a frame. Raises `HttpProblem` 400."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise refuse(400, "selected_frame must be the number of a frame")
    return value


def read_count(text: str | None, lowest: int, highest: int) -> int:
    """How many pictures are wanted: 12 unless it is said, and never more than are reasonable."""
    wanted = int(text) if text is not None and text.isascii() and text.isdecimal() and len(text) < 10 else 12
    return min(max(wanted, lowest), highest)


def read_seconds(value: Any, what: str) -> float:
    """A place in a film. Raises `HttpProblem` 400."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise refuse(400, f"{what} must be a number of seconds")
    return float(value)


def cut(clip: Clip, said: Mapping[str, Any]) -> Clip:
    """The clip with another start or end; both of MediaCraft's spellings are understood. Raises `HttpProblem` 400."""
    start = _said(said, "start_time", "startTime", clip.start_time)
    end = _said(said, "end_time", "endTime", clip.end_time)
    start = read_seconds(start, "start_time")
    end = None if end is None else read_seconds(end, "end_time")
    # Pages know durations to the hundredth.
    if end is not None and clip.duration and end > clip.duration - 0.02:
        end = None
    if start >= (clip.end if end is None else end) and (end is not None or clip.duration):
        raise refuse(400, "end_time must be greater than start_time")
    return clip.model_copy(update={"start_time": start, "end_time": end})


def _said(said: Mapping[str, Any], name: str, other: str, otherwise: Any) -> Any:
    return said.get(name, said.get(other, otherwise))


def read_options(said: Mapping[str, Any]) -> dict[str, str]:
    """How a merge is to sound and to look, as far as it is said. Raises `HttpProblem` 400."""
    for name, allowed in OPTIONS.items():
        if name in said and said[name] not in allowed:
            raise refuse(400, f"{name} must be one of {', '.join(allowed)}")
    return {name: str(said[name]) for name in OPTIONS if name in said}


def choose_clips(clips: Sequence[Clip], segments: Any) -> list[Clip]:
    """The clips that segments name, cut and in their order; a name that occurs twice means the next file of that name.
    No segments: all of them as they are. Raises `HttpProblem` 400."""
    if segments in (None, []):
        return list(clips)
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise refuse(400, "segments must be a list of {filename, start_time, end_time, order}")
    left = list(clips)
    chosen = []
    for place, segment in enumerate(segments):
        clip = _find_clip(clips, left, segment)
        order = segment.get("order", place)
        chosen.append((order if isinstance(order, int | float) else place, cut(clip, segment)))
    return [clip for _, clip in sorted(chosen, key=lambda pair: pair[0])]


def _find_clip(clips: Sequence[Clip], left: list[Clip], segment: Mapping[str, Any]) -> Clip:
    name = segment.get("filename")
    found = next((clip for clip in left if clip.filename == name), None)
    if found is not None:
        left.remove(found)
        return found
    found = next((clip for clip in clips if clip.filename == name), None)
    if found is None:
        raise refuse(400, f"no file {name!r} was uploaded")
    return found


def merge_payload(input_files: Sequence[str], clips: Sequence[Clip], notes: Notes) -> dict[str, Any]:
    """What the handler is asked for: the clips in this order."""
    segments = [_segment(list(input_files).index(clip.path), clip) for clip in clips if clip.path in input_files]
    return {
        "segments": segments,
        "audio_handling": notes.audio_handling,
        "quality_preset": notes.quality_preset,
    }


def _segment(index: int, clip: Clip) -> dict[str, Any]:
    end = {} if clip.end_time is None else {"end_time": clip.end_time}
    return {"index": index, "start_time": clip.start_time, **end}
