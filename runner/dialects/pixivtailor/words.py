"""PixivTailor's words: its envelope, its tasks, what its pages ask for. Nothing here asks the disk or the network.

Its ids have eight hexadecimal digits. Ours are UUIDs; of one it is shown the first eight, which lead back to the task
as long as no other begins so. What is made through it is given an id of which that is true. The whole id does, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.events import Event, Kind
from runner.task import Status, Task
from runner.web.problems import Fault, HttpProblem

TYPES: Final = ("generate", "crawl", "tag", "train", "classify")
"""Its types. Lists show every task; only these are ever cleaned up."""

ID_DIGITS: Final = 8
DEFAULT_PAGE: Final = 20
MAX_PAGE: Final = 100
JSON: Final = "application/json"
FLAT: Final = "application/vnd.task.flat+json"
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")

INCONSISTENT: Final = "任务状态不一致，已自动清理"
"""Of a task that its record says is running, although nothing runs it."""
_LOST: Final = frozenset({"interrupted", "crash_loop", "lost"})

_STATUS_OF_FAULT: Final[Mapping[int, int]] = {415: 400, 422: 400}
_UNSUITED: Final = frozenset({"already_finished", "illegal_transition", "task_running"})
"""Codes of what its program answers with 500: the task's status does not allow it."""

_SHOWN: Final[Mapping[Status, str]] = {
    Status.CREATED: "pending",
    Status.UPLOADED: "pending",
    Status.PENDING: "pending",
    Status.PROCESSING: "running",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


# Answers


def answer(data: Any, message: str = "success", *, flat: Mapping[str, Any] | None = None) -> Response:
    """The envelope; `flat` is said beside it, too."""
    body = {**(flat or {}), "status": {"code": 0, "message": message}, "data": data}
    return Response(to_json(body), media_type=JSON)


def tell(request: Request, fault: Fault) -> Response:
    """A fault in the envelope; its clients look for the text in `message`."""
    status = 500 if fault.code in _UNSUITED else _STATUS_OF_FAULT.get(fault.status, fault.status)
    inner = {"code": 1, "message": fault.detail, "details": fault.code}
    body = {"status": inner, "message": fault.detail, "data": None}
    return Response(to_json(body), status, fault.headers, JSON)


def refuse(status: int, message: str) -> HttpProblem:
    """A fault of the request's."""
    return HttpProblem(status, HTTPStatus(status).name.lower(), message)


def unknown() -> HttpProblem:
    """There is no such task."""
    return refuse(404, "Task not found")


def wants_flat(request: Request) -> bool:
    """Whether the status is wanted without its envelope."""
    return FLAT in request.headers.get("accept", "") or request.query_params.get("flat") == "1"


# Tasks


def short_id(task_id: str) -> str:
    """The id as its clients know it."""
    return task_id[:ID_DIGITS]


def status_of(task: Task) -> str:
    """Its word for where a task stands."""
    return _SHOWN[task.status]


def statuses_of(name: str) -> tuple[Status, ...] | None:
    """What a filter by one of its words means; None: nothing is ever so."""
    return tuple(status for status, shown in _SHOWN.items() if shown == name) or None


def error_of(task: Task) -> str | None:
    """Why it failed. What a dead process left behind it calls inconsistent."""
    if task.error is None:
        return None
    return INCONSISTENT if task.status is Status.FAILED and task.error.code in _LOST else task.error.message


def percentage_of(task: Task) -> int:
    """How far it is."""
    return 0 if task.progress is None else math.floor(task.progress.percentage)


def config_of(task: Task) -> str:
    """What it was asked for, as a text of JSON."""
    return json.dumps(task.payload, ensure_ascii=False)


def images_of(task: Task) -> list[str]:
    """The images among a task's outputs, in their order."""
    return [path for path in task.output_files if PurePosixPath(path).suffix.lower() in SUFFIXES]


def result_of(task: Task) -> dict[str, Any]:
    """The result; its images are named by where they can be fetched."""
    result = (
        dict(task.result) if isinstance(task.result, dict) else {} if task.result is None else {"value": task.result}
    )
    images = images_of(task)
    if images:
        result["images"] = [f"/api/tasks/{short_id(task.id)}/images/{n}" for n in range(1, len(images) + 1)]
    return result


def counts_of(task: Task) -> tuple[int, int]:
    """How many images were found and how many are there, as the result says, or, before it does, the files."""
    done = sum(file.status == "completed" for file in task.files)
    result = task.result if isinstance(task.result, dict) else {}
    found = _number(result, ("images_found", "expected_images", "count"), len(task.files))
    return found, _number(result, ("images_downloaded", "count"), done)


def _number(result: Mapping[str, Any], names: tuple[str, ...], otherwise: int) -> int:
    return next((result[name] for name in names if isinstance(result.get(name), int)), otherwise)


def instant(moment: datetime | None) -> str | None:
    """RFC 3339."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def task_of(task: Task) -> dict[str, Any]:
    """The task as lists show it; `uuid` is its whole id."""
    found, downloaded = counts_of(task)
    result = result_of(task)
    return {
        "id": short_id(task.id),
        "uuid": task.id,
        "type": task.type,
        "status": status_of(task),
        "config": config_of(task),
        "progress": percentage_of(task),
        "error_message": error_of(task) or "",
        "result": json.dumps(result, ensure_ascii=False) if result else "",
        "images_found": found,
        "images_downloaded": downloaded,
        "created_at": instant(task.created_at),
        "updated_at": instant(task.updated_at),
    }


def flat_status_of(task: Task) -> dict[str, Any]:
    """The status as its document has it, without an envelope."""
    return {
        "task_id": short_id(task.id),
        "status": status_of(task),
        "progress": percentage_of(task),
        "message": config_of(task),
        "error_message": error_of(task),
        "created_at": instant(task.created_at),
        "completed_at": instant(task.completed_at),
    }


def full_status_of(task: Task) -> dict[str, Any]:
    """The status as its program answers it, inside the envelope."""
    result = result_of(task)
    return {
        **flat_status_of(task),
        "id": short_id(task.id),
        "type": task.type,
        "result": json.dumps(result, ensure_ascii=False) if result else None,
    }


# Messages


def updates_of(task: Task, at: datetime) -> list[dict[str, Any]]:
    """A task's state, in both families of messages."""
    found, downloaded = counts_of(task)
    task_id, status, progress = short_id(task.id), status_of(task), percentage_of(task)
    data = {
        "task_id": task_id,
        "status": status,
        "progress": progress,
        "images_found": found,
        "images_downloaded": downloaded,
        "images_generated": downloaded,
        "images_success": downloaded,
        "result": result_of(task),
        "time": clock_time(at),
    }
    return [
        {"type": "task_update", "task_id": task_id, "data": data},
        {"type": "task_status", "task_id": task_id, "status": status, "progress": progress},
    ]


def logs_of(event: Event) -> list[dict[str, Any]]:
    """What a handler has said, in both families."""
    task_id, level = short_id(event.task_id), level_of(event.data["level"])
    message = event.data["message"]
    data = {"task_id": task_id, "level": level, "message": message, "time": clock_time(event.at)}
    return [
        {"type": "log_message", "task_id": task_id, "data": data},
        {"type": "task_log", "task_id": task_id, "level": level, "message": message},
    ]


def news_of(event: Event, task: Task | None) -> dict[str, Any]:
    """A line for everybody: a task has changed its status, or is gone."""
    task_id = short_id(event.task_id)
    if task is None or event.kind is Kind.REMOVED:
        return global_log("info", f"task {task_id} was deleted", event.at)
    status, error = status_of(task), error_of(task)
    level = "error" if status == "failed" else "info"
    text = f"{task.type} task {task_id} is {status}" + (f": {error}" if error else "")
    return global_log(level, text, event.at)


def global_log(level: str, message: str, at: datetime) -> dict[str, Any]:
    """A line for everybody."""
    return {"type": "global_log", "data": {"level": level, "message": message, "time": clock_time(at)}}


def level_of(level: str) -> str:
    """It knows three."""
    return level if level in ("info", "warning", "error") else "info"


def clock_time(at: datetime) -> str:
    """The time as clocks show it here."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


# What clients ask for


def read_page(body: Mapping[str, Any]) -> tuple[int, int]:
    """Which page, from 1, and how many on it."""
    pagination = body.get("pagination")
    said = pagination if isinstance(pagination, dict) else {}
    page, size = said.get("page"), said.get("page_size")
    size = size if isinstance(size, int) and size > 0 else DEFAULT_PAGE
    return min(page, 10**6) if isinstance(page, int) and page > 0 else 1, min(size, MAX_PAGE)


def read_task_id(body: Mapping[str, Any]) -> str:
    """Whose status is wanted. Raises `HttpProblem` 400."""
    task_id = body.get("task_id")
    if not isinstance(task_id, str) or not task_id:
        raise refuse(400, "task_id is missing")
    return task_id.lower()


def crawl_payload(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the crawler is asked for; the document calls the type `crawl_type`, its pages `type`. Raises 400."""
    kind = body.get("type") or body.get("crawl_type")
    if not kind:
        raise refuse(400, "type is missing: tag, user or illust")
    wanted = {"tag": "query", "user": "user_id", "illust": "illust_id"}.get(str(kind))
    if wanted is not None and not body.get(wanted):
        raise refuse(400, f"a crawl of type {kind} needs {wanted}")
    payload = {name: value for name, value in body.items() if name != "crawl_type" and value not in (None, "")}
    for name in ("user_id", "illust_id"):
        if isinstance(payload.get(name), int):
            payload[name] = str(payload[name])
    for name in ("limit", "delay"):
        if not _is_positive(payload.get(name)):
            payload.pop(name, None)
    return {**payload, "type": kind}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def tag_payload(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the tagger is asked for; what is empty is not said, and no limit is the usual one."""
    payload = {name: value for name, value in body.items() if value not in (None, "")}
    if not _is_positive(payload.get("limit")):
        payload.pop("limit", None)
    return payload


def read_folders(body: Mapping[str, Any]) -> list[str]:
    """The folders that are to be tagged. Raises `HttpProblem` 400."""
    given = body.get("input_dir")
    folders = [given] if isinstance(given, str) else given
    if not isinstance(folders, list) or not folders or not all(isinstance(one, str) and one for one in folders):
        raise refuse(400, "input_dir is missing: a folder, or a list of folders")
    return folders


OTHER_NAMES: Final[Mapping[str, str]] = {
    "sampler_name": "sampler",
    "sampler_index": "sampler",
    "checkpoint": "model",
    "sd_model_checkpoint": "model",
    "model_name": "model",
    "sd_vae": "vae",
    "lora": "loras",
    "n_iter": "batch_count",
    "cfg": "cfg_scale",
}
"""What a configuration may call a parameter that has another name here."""


def generate_payload(config: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what is said for this once; empty texts say nothing."""
    said = {name: value for name, value in override.items() if value not in ("", None)}
    merged = {OTHER_NAMES.get(name, name): value for name, value in {**config, **said}.items() if value is not None}
    if "loras" in merged:
        merged["loras"] = read_loras(merged["loras"])
    return merged


def read_loras(value: Any) -> list[dict[str, Any]]:
    """LoRAs as names with weights, however they were written down."""
    if isinstance(value, dict):
        return [{"name": name, "weight": weight} for name, weight in value.items()]
    found = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) and one:
            name, _, weight = one.strip("<>").removeprefix("lora:").partition(":")
            found.append({"name": name, "weight": _weight(weight)})
        elif isinstance(one, dict) and one.get("name"):
            found.append({"name": one["name"], "weight": one.get("weight", 1.0)})
    return found


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 1.0
    return weight if math.isfinite(weight) else 1.0
