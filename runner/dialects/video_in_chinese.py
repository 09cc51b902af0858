"""Video-In-Chinese: the gateway, which its pages speak to, is here; its gRPC is in `video_grpc`, and what both
do in `video_tasks`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from runner.dialects.dialect import Dialect
from runner.dialects.mirror import Mirror
from runner.dialects.video_grpc import TaskServer, is_installed
from runner.dialects.video_settings import Changes, VideoSettings
from runner.dialects.video_tasks import ORIGINAL_NAME, Cause, NotCreated, VideoTasks
from runner.errors import VersionMismatch
from runner.handlers.media import HEAD_BYTES, media_type
from runner.intake.admission import Arrival
from runner.service import Service
from runner.store import Handover
from runner.task import Source
from runner.web.app import Site
from runner.web.bodies import read_json
from runner.web.crossing import in_thread
from runner.web.door import caller_of, require_admin
from runner.web.downloads import downloaded
from runner.web.multipart import Form, received_form
from runner.web.parameters import task_id_of
from runner.web.problems import Fault, HttpProblem
from runner.web.routing import route

ACCEPTED: Final = frozenset({"video/mp4", "video/quicktime", "video/x-matroska", "video/x-msvideo"})
ROOM_FACTOR: Final = 3
ROOM_BYTES: Final = 500 * 1024**2
"""A film is taken while there is room for three of it, and so much more: for what its processor makes of it."""
FORM_BYTES: Final = 64 * 1024
"""What a form may have beside its file."""

STATUS_OF: Final[Mapping[Cause, tuple[int, str]]] = {
    Cause.INVALID: (400, "validation_error"),
    Cause.UNPREPARED: (503, "unknown_handler"),
    Cause.BUSY: (503, "queue_full"),
    Cause.FULL: (507, "disk_full"),
    Cause.UNAVAILABLE: (503, "unavailable"),
    Cause.INTERNAL: (500, "internal_error"),
}


def make(site: Site) -> Dialect:
    """See `runner.dialects`."""
    films = VideoTasks(site.service, site.config)
    gateway = Gateway(site, films)
    return Dialect(
        name="video_in_chinese",
        routes=(
            route("/v1/tasks/upload", POST=gateway.upload),
            route("/v1/tasks/{id}/status", GET=gateway.status),
            route("/v1/tasks/download/{id}/{name}", GET=gateway.download),
            route("/v1/settings", GET=gateway.settings, POST=gateway.change_settings),
        ),
        own_routes=(route("/health", GET=gateway.health),),
        prefixes=("/v1/",),
        envelope=tell,
        origins=frozenset(site.config.dialects.video_in_chinese.origins),
        companions=(*task_servers(site, films), Mirror(site.service, films)),
    )


def task_servers(site: Site, films: VideoTasks) -> Iterator[TaskServer]:
    """The server of gRPC, where it can be one."""
    if is_installed():
        yield TaskServer(site, films)
    else:
        site.service.closed_doors["grpc"] = "not served: it needs the extra `grpc`, pip install 'file-runner[grpc]'"


class Gateway:
    """The endpoints."""

    def __init__(self, site: Site, films: VideoTasks) -> None:
        config = site.config
        max_bytes = min(config.http.max_upload_bytes, config.dialects.video_in_chinese.max_upload_bytes)
        self._service: Service = site.service
        self._tasks = films
        self._space = replace(site.space, max_bytes=max_bytes)
        self._max_body_bytes = config.http.max_body_bytes
        layout = site.service.store.layout
        self._settings = VideoSettings(site.service.store.files, f"{layout.data}/video_in_chinese.json")

    async def upload(self, request: Request) -> Response:
        """`POST /v1/tasks/upload`: the film is the part `file` of a form."""
        declared = request.headers.get("content-length", "0")
        size = int(declared) if declared.isdecimal() else 0
        self._space.check(max(0, size - FORM_BYTES))
        await in_thread(check_room, self._space.directory, size)
        async with received_form(request, self._space, FORM_BYTES) as form:
            arrival = await in_thread(film_of, form)
            with told_as_problem():
                task_id = await in_thread(self._tasks.take, arrival, caller_of(request), Source.HTTP)
        return _json({"task_id": task_id})

    async def status(self, request: Request) -> Response:
        """`GET /v1/tasks/{id}/status`."""
        standing = await in_thread(self._tasks.look, task_id_of(request), caller_of(request).sees)
        shown = {"task_id": standing.task_id, "status": standing.status}
        if standing.result_path:
            shown["result_url"] = f"/v1/tasks/download/{standing.task_id}/{Path(standing.result_path).name}"
        if standing.error:
            shown["error_message"] = standing.error
        return _json(shown)

    async def download(self, request: Request) -> Response:
        """`GET /v1/tasks/download/{id}/{name}`: a file that a task made, or the film that it was made of."""
        name = request.path_params["name"]
        task = await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)
        inputs = [path for path in task.input_files if path.endswith(f"/{ORIGINAL_NAME}")]
        if name == ORIGINAL_NAME and inputs:
            path = Path(self._service.store.layout.absolute(inputs[0]))
        else:
            path = await in_thread(self._service.output, task, name)
        return await in_thread(downloaded, request, path, name)

    async def settings(self, request: Request) -> Response:
        """`GET /v1/settings`."""
        return _json(await in_thread(self._settings.shown))

    async def change_settings(self, request: Request) -> Response:
        """`POST /v1/settings`: they are everybody's, so where there are several users the admin sets them."""
        require_admin(request)
        changes = Changes.model_validate(await read_json(request, self._max_body_bytes))
        try:
            version = await in_thread(self._settings.change, changes)
        except VersionMismatch as error:
            raise HttpProblem(409, "version_mismatch", "the settings have changed since; load them again") from error
        return _json({"version": version, "message": "settings updated"})

    async def health(self, _request: Request) -> Response:
        """`GET /health`, on its own port."""
        health = await in_thread(self._service.health)
        status = "healthy" if health.ready else "unhealthy"
        return _json({"status": status}, 200 if health.ready else 503)


def film_of(form: Form) -> Arrival:
    """The film in a form, if it is one. Raises `HttpProblem` 400 or 415."""
    if not form.files:
        raise HttpProblem(400, "invalid_form", "the form has no file in its part `file`")
    file = form.files[0]
    with file.path.open("rb") as opened:
        kind = media_type("", opened.read(HEAD_BYTES))  # whatever its name is
    if kind not in ACCEPTED:
        raise HttpProblem(415, "type_mismatch", f"{kind} is none of {', '.join(sorted(ACCEPTED))}")
    return Arrival(file.path, ORIGINAL_NAME, file.size, Handover.MOVE)


def check_room(directory: Path, size: int) -> None:
    """So large a film can be worked on. Raises `HttpProblem` 507."""
    free, wanted = shutil.disk_usage(directory).free, ROOM_FACTOR * size + ROOM_BYTES
    if free < wanted:
        raise HttpProblem(507, "disk_full", f"{wanted} bytes must be free, and {free} are")


@contextmanager
def told_as_problem() -> Iterator[None]:
    """Why a film was not taken, as a status."""
    try:
        yield
    except NotCreated as error:
        status, code = STATUS_OF[error.cause]
        raise HttpProblem(status, code, str(error)) from error


def tell(_request: Request, fault: Fault) -> Response:
    """A fault in its envelope. It has no 422."""
    status = 400 if fault.status == 422 else fault.status
    text = "task not found" if fault.error_code == "TASK_NOT_FOUND" else fault.detail
    return Response(to_json({"code": status, "message": text}), status, fault.headers, "application/json")


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
