"""The words of MediaCraft's first API, `/api/video/`: its envelope, its codes, its statuses. Nothing asks the disk.

    {"code": 10000, "message": "ok", "data": {…}}
    {"code": 20007, "message": "…", "data": null}     with an HTTP status that is an error's

Codes from 20001 on are of removing watermarks, from 30001 on of merging.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.dialects.mediacraft import words
from runner.dialects.mediacraft.words import Clip, clips_of, instant, notes_of
from runner.intake.admission import safe_name
from runner.task import DRAFT, Status, Task
from runner.web.problems import Fault, HttpProblem

OK: Final = 10000
MERGE_PATHS: Final = "/api/video/merge/"

NO_FILE, NO_NAME, BAD_FORMAT, TOO_LARGE, NOT_UPLOADED = 20001, 20002, 20003, 20004, 20006
NO_TASK, NO_SOURCE, NO_FRAMES, NO_NUMBER, NO_FRAME = 20007, 20008, 20009, 20011, 20012
NO_REGIONS_KEY, NO_REGIONS, NOT_STARTED = 20014, 20015, 20016
NOT_FINISHED, NO_RESULT, NOT_SENT = 20019, 20020, 20021

MERGE_NO_BODY, MERGE_NO_TASK, MERGE_NO_UUID, MERGE_NO_FILE, MERGE_NO_NAME = 30001, 30004, 30008, 30009, 30010
MERGE_BAD_FORMAT, MERGE_TOO_LARGE, MERGE_TOO_MANY, MERGE_NOT_UPLOADED = 30011, 30012, 30013, 30014
MERGE_NO_ITEM, MERGE_NO_CUT, MERGE_BAD_CUT = 30016, 30017, 30018
MERGE_NO_ORDER, MERGE_BAD_ORDER, MERGE_NOTHING, MERGE_TOO_LATE, MERGE_NOT_STARTED = 30023, 30024, 30027, 30028, 30029
MERGE_NOT_FINISHED, MERGE_NO_RESULT, MERGE_FAILED = 30031, 30032, 30033

_OTHER_CODES: Final = {400: NO_FILE, 404: NO_TASK, 413: TOO_LARGE}
_DEFECTS: Final = {
    "upload": NOT_UPLOADED,
    "frames": 20010,
    "select-frame": 20013,
    "select-regions": 20017,
    "status": 20018,
}
"""Of what nobody expected, by what was asked for."""

_OTHER_MERGE_CODES: Final = {400: MERGE_NO_BODY, 404: MERGE_NO_TASK, 413: MERGE_TOO_LARGE}


class LegacyFault(HttpProblem):
    """A fault with a code of the first API."""

    def __init__(self, number: int, message: str, status: int = 400) -> None:
        super().__init__(status, str(number), message)


def say(data: Any, message: str = "ok") -> Response:
    """The envelope."""
    return Response(to_json({"code": OK, "message": message, "data": data}), media_type=words.JSON)


def tell_legacy(request: Request, fault: Fault) -> Response:
    """A fault in that envelope. One without a code of this API has the nearest that there is."""
    status = words.STATUS_OF_FAULT.get(fault.status, fault.status)
    body = {"code": _number_of(request, fault, status), "message": fault.detail, "data": None}
    return Response(to_json(body), status, fault.headers, words.JSON)


def _number_of(request: Request, fault: Fault, status: int) -> int:
    if fault.code.isdecimal():
        return int(fault.code)
    if request.url.path.startswith(MERGE_PATHS):
        return _OTHER_MERGE_CODES.get(status, MERGE_FAILED)
    defect = _DEFECTS.get(request.url.path.rpartition("/")[2], NOT_SENT)
    return _OTHER_CODES.get(status, defect if status >= 500 else NOT_SENT)


def status_of_watermark(task: Task) -> str:
    """How far a film is."""
    if task.status in DRAFT:
        return "uploaded" if notes_of(task).selected_frame is None else "region_selecting"
    return words.status_of(task)


def status_of_merge(task: Task) -> str:
    """How far a merge is."""
    if task.status in DRAFT:
        return "uploading" if task.input_files else "created"
    return words.status_of(task)


def progress_of(task: Task) -> dict[str, Any]:
    """What both statuses say."""
    return {
        "progress_percentage": 0 if task.progress is None else math.floor(task.progress.percentage),
        "error_message": None if task.error is None else task.error.message,
        "created_at": instant(task.created_at),
        "completed_at": instant(task.completed_at),
    }


def items_of(task: Task) -> list[dict[str, Any]]:
    """A merge's files as they are listed."""
    return [shown_item(clip, place) for place, clip in enumerate(clips_of(task))]


def shown_item(clip: Clip, place: int) -> dict[str, Any]:
    """One file of a merge."""
    return {
        "item_id": clip.item_id,
        "original_filename": clip.filename,
        "file_size": clip.size,
        "video_duration": clip.duration,
        "video_resolution": clip.resolution,
        "fps": clip.fps,
        "item_order": place,
        "start_time": clip.start_time,
        "end_time": clip.end,
        "segment_duration": round(max(0.0, clip.end - clip.start_time), 3),
    }


def merge_of(task: Task) -> dict[str, Any]:
    """A merge as its status tells it."""
    clips = clips_of(task)
    return {
        "task_uuid": task.id,
        "task_name": notes_of(task).task_name,
        "status": status_of_merge(task),
        **progress_of(task),
        "total_videos": len(clips),
        "total_duration": round(sum(max(0.0, clip.end - clip.start_time) for clip in clips), 3),
        "started_at": instant(task.started_at),
    }


def place_of(clips: Sequence[Clip], item_id: str) -> int:
    """Where an item stands. Raises `LegacyFault`."""
    for place, clip in enumerate(clips):
        if clip.item_id == item_id:
            return place
    raise LegacyFault(MERGE_NO_ITEM, "no such item", 404)


def ordered(clips: Sequence[Clip], wanted: Any) -> tuple[Clip, ...]:
    """The clips in the order of their ids; those that are not named follow. Raises `LegacyFault`."""
    if wanted is None:
        raise LegacyFault(MERGE_NO_ORDER, "item_order is missing")
    if not isinstance(wanted, list):
        raise LegacyFault(MERGE_BAD_ORDER, "item_order must be a list")
    named = [clips[place_of(clips, item_id)] for item_id in dict.fromkeys(map(str, wanted))]
    return (*named, *(clip for clip in clips if clip not in named))


def cut_item(clip: Clip, said: Mapping[str, Any]) -> Clip:
    """The clip with another part wanted. Raises `LegacyFault`."""
    if not {"start_time", "end_time"} & said.keys():
        raise LegacyFault(MERGE_NO_CUT, "say start_time or end_time")
    end = said.get("end_time")
    if clip.duration and isinstance(end, int | float) and end > clip.duration + 0.5:
        raise LegacyFault(MERGE_BAD_CUT, "end_time is behind the end of the video")
    try:
        return words.cut(clip, said)
    except HttpProblem as problem:
        raise LegacyFault(MERGE_BAD_CUT, problem.detail) from problem


def merged_name(task: Task) -> str:
    """What the result is called: after the task, as one word."""
    name = safe_name((notes_of(task).task_name or "video").replace("/", "_"))
    return f"{name.replace(' ', '_')}_merged.mp4"


def check_finished(task: Task, not_finished: int) -> None:
    """Raises `LegacyFault` unless there is a result."""
    if task.status is not Status.COMPLETED:
        raise LegacyFault(not_finished, f"the task is {words.status_of(task)}")
