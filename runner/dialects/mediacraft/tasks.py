"""`/api/tasks/`: create, upload, configure, follow, download; and what MediaCraft's pages send beside that."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runner.dialects.mediacraft import words
from runner.dialects.mediacraft.pictures import Pictures, first_input, frames_of
from runner.dialects.mediacraft.studio import Studio, note_clips, read_notes
from runner.dialects.mediacraft.words import MERGE, WATERMARK, answer, refuse
from runner.errors import NotFound, RunnerError
from runner.ffmpeg import FfmpegError, Media
from runner.service import Service
from runner.store import TaskQuery
from runner.store.query import MAX_PAGE
from runner.task import DRAFT, Status, Task
from runner.web.bodies import parse_json, read_json, read_optional_json
from runner.web.crossing import in_thread
from runner.web.door import caller_of
from runner.web.downloads import downloaded
from runner.web.incoming import UploadSpace
from runner.web.multipart import Form, FormFile, is_form, received_form
from runner.web.problems import HttpProblem
from runner.web.routing import route

T = TypeVar("T")

MAX_BODY_BYTES: Final = 1024 * 1024
PICTURE_HEADERS: Final = {"Cache-Control": "private, max-age=3600"}


class TaskEndpoints:
    """The endpoints."""

    def __init__(self, service: Service, studio: Studio, pictures: Pictures, space: UploadSpace) -> None:
        self._service = service
        self._studio = studio
        self._pictures = pictures
        self._space = space

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        one = "/api/tasks/{id}"
        return (
            route("/api/tasks/create", POST=self.create),
            route("/api/tasks/submit", POST=self.submit),
            route("/api/tasks/list", GET=self.list_tasks),
            route(one, PUT=self.change, DELETE=self.cancel),
            route(f"{one}/upload", POST=self.upload),
            route(f"{one}/config", POST=self.configure),
            route(f"{one}/status", GET=self.status),
            route(f"{one}/download", GET=self.download),
            route(f"{one}/frames", GET=self.frames),
            route(f"{one}/segments/{{index}}", PUT=self.cut),
            route(f"{one}/thumbnail", GET=self.thumbnail),
            route(f"{one}/files/{{index}}/thumbnail", GET=self.thumbnail_of_file),
        )

    async def create(self, request: Request) -> Response:
        """`POST /api/tasks/create`."""
        body = await read_object(request)
        task_type = words.read_task_type(body.get("task_type"))
        task = await in_thread(self._studio.create, task_type, caller_of(request), read_notes(body))
        return answer(request, {"task_id": task.id, "status": task.status, "task_type": task.type})

    async def upload(self, request: Request) -> Response:
        """`POST /api/tasks/{id}/upload`."""
        task = await self._find(request)
        if task.status not in DRAFT:
            raise refuse(400, f"Task is {words.status_of(task)}: it takes no more files")
        async with self._received(request) as form:
            file = one_file(form)
            media = await self._pictures.look_at(file) if task.type == MERGE else None
            task = await in_thread(self._studio.receive, task, file, media)
        data = {
            "task_id": task.id,
            "status": task.status,
            "original_filename": file.name,
            "file_size": file.size,
        }
        return answer(request, data)

    async def configure(self, request: Request) -> Response:
        """`POST /api/tasks/{id}/config`."""
        body = await read_object(request)
        task = await self._find(request)
        if task.status is not Status.UPLOADED:
            raise refuse(400, f"Task cannot be configured: it is {words.status_of(task)}")
        config = body.get("config", body)
        if not isinstance(config, dict):
            raise refuse(400, "config must be an object")
        task = await in_thread(self._configure, task, config)
        data = {"task_id": task.id, "status": words.status_of(task), "config": words.config_of(task)}
        return answer(request, data)

    async def status(self, request: Request) -> Response:
        """`GET /api/tasks/{id}/status`."""
        return answer(request, words.record_of(await self._find(request)))

    async def download(self, request: Request) -> Response:
        """`GET /api/tasks/{id}/download`."""
        task = await self._find(request)
        if task.status is not Status.COMPLETED:
            return words.tell_unfinished(request, task)
        return await in_thread(send_result, request, self._service, task, words.download_name(task))

    async def submit(self, request: Request) -> Response:
        """`POST /api/tasks/submit`: everything at once."""
        async with self._received(request) as form:
            fields = {name: value.decode("utf-8", "replace") for name, value in form.fields.items()}
            task_type = words.read_task_type(fields.get("task_type"))
            regions, config = _field(form, "regions"), _field(form, "task_config") or {}
            if not isinstance(config, dict):
                raise refuse(400, "task_config must be an object")
            files = _files_for(task_type, form)
            media = [await self._pictures.look_at(file) for file in files] if task_type == MERGE else []
            caller, notes = caller_of(request), read_notes(fields)
            task = await in_thread(self._studio.create_with, task_type, caller, notes, files)
            task = await in_thread(self._go_on, task, regions, config, files, media)
        status = "uploaded" if task.status is Status.UPLOADED else "queued"
        flat = {"task_id": task.id, "status": status}
        return answer(request, flat, message="Task submitted successfully", flat=flat)

    async def change(self, request: Request) -> Response:
        """`PUT /api/tasks/{id}`: a frame was chosen, or regions were drawn."""
        body = await read_object(request)
        task = await self._find(request)
        if "regions" in body:
            return await self._choose_regions(request, task, body)
        if "selected_frame" in body:
            return await self._choose_frame(request, task, words.read_frame(body["selected_frame"]))
        raise refuse(400, "say selected_frame or regions")

    async def cut(self, request: Request) -> Response:
        """`PUT /api/tasks/{id}/segments/{index}`."""
        body = await read_object(request)
        task = await self._find(request)
        clip = await in_thread(self._cut, task, _index(request), body)
        return answer(request, clip.shown(), message="Segment updated")

    async def cancel(self, request: Request) -> Response:
        """`DELETE /api/tasks/{id}`: of what does not run yet."""
        task = await self._find(request)
        if task.status not in (*DRAFT, Status.PENDING):
            raise refuse(400, f"Task cannot be cancelled: it is {words.status_of(task)}")
        await in_thread(self._service.cancel, task.id)
        flat = {"task_id": task.id, "status": "cancelled"}
        return answer(request, flat, message="Task cancelled", flat=flat)

    async def list_tasks(self, request: Request) -> Response:
        """`GET /api/tasks/list`."""
        asked = request.query_params
        page, limit = number_in(asked, "page", 1, 1, MAX_PAGE), number_in(asked, "limit", 20, 1, 100)
        query = TaskQuery(
            user_id=caller_of(request).sees,
            status=words.statuses_of(asked["status"]) if asked.get("status") else (),
            type=asked.get("type") or asked.get("task_type") or None,
            page=page - 1,
            size=limit,
        )
        found = await in_thread(self._service.list_tasks, query)
        total = found.total or 0
        pages = {"page": page, "limit": limit, "total": total, "pages": -(-total // limit)}
        flat = {"tasks": [words.record_of(task) for task in found.tasks], "pagination": pages}
        return answer(request, flat, flat=flat)

    async def frames(self, request: Request) -> Response:
        """`GET /api/tasks/{id}/frames`."""
        task = await self._find(request)
        count = words.read_count(request.query_params.get("count"), 1, 50)
        survey = await self._seen(self._pictures.survey(_film_of(task), count))
        info = {"total_frames": survey.frames, "fps": survey.fps, "duration": survey.duration_seconds}
        size = {"width": survey.width, "height": survey.height}
        flat = {"frames": frames_of(survey), "total_frames": survey.frames, "video_info": {**info, **size}}
        return answer(request, flat, flat=flat)

    async def thumbnail(self, request: Request) -> Response:
        """`GET /api/tasks/{id}/thumbnail`."""
        return await self._thumbnail(_film_of(await self._find(request)))

    async def thumbnail_of_file(self, request: Request) -> Response:
        """`GET /api/tasks/{id}/files/{index}/thumbnail`."""
        return await self._thumbnail(_clip_at(await self._find(request), _index(request)).path)

    # Steps

    async def _find(self, request: Request) -> Task:
        return await in_thread(self._studio.find, request.path_params["id"], caller_of(request))

    def _received(self, request: Request) -> AbstractAsyncContextManager[Form]:
        if not is_form(request):
            raise refuse(400, "No file: send multipart/form-data")
        return received_form(request, self._space, MAX_BODY_BYTES)

    def _configure(self, task: Task, config: Mapping[str, Any]) -> Task:
        if task.type == MERGE:
            return self._merge(task, config)
        regions = words.read_regions(config.get("regions") or list(words.notes_of(task).regions))
        if config.get("selected_frame") is not None:
            task = self._studio.change_notes(task, selected_frame=words.read_frame(config["selected_frame"]))
        return self._studio.start_repainting(task, regions)

    def _merge(self, task: Task, config: Mapping[str, Any]) -> Task:
        clips = words.clips_of(task)
        chosen = words.choose_clips(clips, config.get("segments") or config.get("files"))
        cuts = {clip.item_id: clip for clip in chosen}
        said = {"clips": tuple(cuts.get(clip.item_id, clip) for clip in clips), **words.read_options(config)}
        return self._studio.start_merging(self._studio.change_notes(task, **said), chosen)

    def _go_on(
        self,
        task: Task,
        regions: Any,
        config: Mapping[str, Any],
        files: list[FormFile],
        media: list[Media | None],
    ) -> Task:
        """What was submitted is started; a film without regions waits for them."""
        try:
            if task.type == MERGE:
                clips = note_clips(task, files, media)
                return self._merge(self._studio.change_notes(task, clips=clips), config)
            regions = regions or config.get("regions")
            return self._studio.start_repainting(task, regions) if regions else task
        except (RunnerError, HttpProblem):
            # Nobody was told of the draft: it must not stay.
            self._service.delete(task.id)
            raise

    def _cut(self, task: Task, index: int, said: Mapping[str, Any]) -> words.Clip:
        clips = list(words.clips_of(task))
        clip = clips[index] = words.cut(_clip_at(task, index), said)
        self._studio.change_notes(task, clips=tuple(clips))
        return clip

    async def _choose_frame(self, request: Request, task: Task, number: int) -> Response:
        image = await self._seen(self._pictures.frame(_film_of(task), number))
        if task.status in DRAFT:
            task = await in_thread(self._studio.change_notes, task, selected_frame=number)
        flat = {
            "task_id": task.id,
            "selected_frame": number,
            "regions": words.config_of(task).get("regions", []),
            "status": "frame_selected",
            "frame_data": image,
        }
        return answer(request, flat, message="Frame selected", flat=flat)

    async def _choose_regions(self, request: Request, task: Task, body: Mapping[str, Any]) -> Response:
        regions = words.read_regions(body["regions"])
        if body.get("action") == "start_processing":
            task, status = await in_thread(self._studio.start_repainting, task, regions), "queued"
        else:
            task, status = await in_thread(self._studio.change_notes, task, regions=tuple(regions)), "regions_selected"
        config = words.config_of(task)
        flat = {
            "task_id": task.id,
            "selected_frame": config.get("selected_frame"),
            "regions": regions,
            "status": status,
        }
        return answer(request, flat, message="Task updated", flat=flat)

    async def _thumbnail(self, path: str) -> Response:
        image = await self._seen(self._pictures.thumbnail(path))
        return Response(image, media_type="image/jpeg", headers=PICTURE_HEADERS)

    async def _seen(self, looking: Awaitable[T]) -> T:
        try:
            return await looking
        except FfmpegError as error:
            raise refuse(400, f"The video cannot be read: {error}") from error


async def read_object(request: Request) -> dict[str, Any]:
    """A body that is an object. Raises `HttpProblem` 400."""
    body = await read_json(request, MAX_BODY_BYTES)
    if not isinstance(body, dict):
        raise refuse(400, "the body must be a JSON object")
    return body


async def read_any_object(request: Request) -> dict[str, Any]:
    """The same, or an empty one where there is no body."""
    body = await read_optional_json(request, MAX_BODY_BYTES)
    if not isinstance(body, dict):
        raise refuse(400, "the body must be a JSON object")
    return body


def one_file(form: Form) -> FormFile:
    """The form's file. Raises `HttpProblem` 400."""
    if not form.files:
        raise refuse(400, "No file in the request")
    if not form.files[0].size:
        raise refuse(400, "No file selected")
    return form.files[0]


def send_result(request: Request, service: Service, task: Task, name: str) -> Response:
    """A completed task's result. Raises `HttpProblem` 404 where it is gone."""
    try:
        path = service.output(task, (words.result_file(task) or "").split("/", 3)[-1])
        response = downloaded(request, path, name)
    except NotFound as error:
        raise refuse(404, "The result is gone") from error
    # MediaCraft's pages come from another port of the same machine, and play what they have made.
    response.headers["Cross-Origin-Resource-Policy"] = "same-site"
    return response


def number_in(asked: Mapping[str, str], name: str, otherwise: int, lowest: int, highest: int) -> int:
    """A number in a query, brought within its bounds; what is no number counts as not said."""
    text = asked.get(name, "")
    wanted = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else otherwise
    return min(max(wanted, lowest), highest)


def _field(form: Form, name: str) -> Any:
    text = form.fields.get(name, b"").strip()
    return parse_json(text) if text else None


def _files_for(task_type: str, form: Form) -> list[FormFile]:
    if task_type == WATERMARK:
        return [one_file(form)]
    if len(form.files) < 2:
        raise refuse(400, "At least 2 video files are required")
    return form.files


def _film_of(task: Task) -> str:
    path = first_input(task)
    if path is None:
        raise refuse(400, "No file has been uploaded yet")
    return path


def _index(request: Request) -> int:
    text = request.path_params["index"]
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1


def _clip_at(task: Task, index: int) -> words.Clip:
    clips = words.clips_of(task)
    if not 0 <= index < len(clips):
        raise refuse(400, f"There is no file {index}")
    return clips[index]
