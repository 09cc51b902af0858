"""`/api/video/`: the first API, on the same tasks. Its clients need no cookie; one that has some is held to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runner.dialects.mediacraft import legacy, words
from runner.dialects.mediacraft.legacy import LegacyFault, say
from runner.dialects.mediacraft.pictures import Pictures, frames_of
from runner.dialects.mediacraft.studio import ENDED_BADLY, Studio
from runner.dialects.mediacraft.tasks import MAX_BODY_BYTES, send_result
from runner.dialects.mediacraft.visitors import NOBODY
from runner.dialects.mediacraft.words import MERGE, WATERMARK, Clip, Notes, clips_of
from runner.errors import InvalidSubmission, LimitReached, RunnerError, Unavailable
from runner.ffmpeg import FfmpegError, Media
from runner.service import Service
from runner.task import DRAFT, Status, Task
from runner.web.bodies import read_optional_json
from runner.web.crossing import in_thread
from runner.web.door import Caller, caller_of
from runner.web.incoming import UploadSpace
from runner.web.multipart import Form, FormFile, is_form, received_form
from runner.web.problems import HttpProblem
from runner.web.routing import route

MAX_FILE_BYTES: Final = 500 * 1024 * 1024
MAX_ITEMS: Final = 10
FORM_OVERHEAD_BYTES: Final = 64 * 1024


class _Endpoints:
    """What both halves share."""

    task_type = WATERMARK
    no_task = legacy.NO_TASK

    def __init__(self, service: Service, studio: Studio, pictures: Pictures, space: UploadSpace) -> None:
        self._service = service
        self._studio = studio
        self._pictures = pictures
        self._space = space

    async def _find(self, request: Request, task_id: str | None = None) -> Task:
        """The task of this half that is asked for. Somebody else's is not there; nobody's is anybody's."""
        task_id = task_id or request.path_params["uuid"]
        task = await in_thread(self._service.store.find, task_id)
        caller = caller_of(request)
        if task is None or task.type != self.task_type or not _may_see(caller, task):
            raise LegacyFault(self.no_task, "no such task", 404)
        return task

    @asynccontextmanager
    async def _received(self, request: Request, no_file: int, no_name: int, too_large: int) -> AsyncIterator[Form]:
        """The form with its one file."""
        if not is_form(request):
            raise LegacyFault(no_file, "send the file as multipart/form-data")
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > MAX_FILE_BYTES + FORM_OVERHEAD_BYTES:
            raise LegacyFault(too_large, "a file may be 500 MB")
        async with received_form(request, self._space, MAX_BODY_BYTES) as form:
            if not form.files:
                raise LegacyFault(no_file, "there is no file")
            if not form.files[0].size:
                # So comes the field of a page in which nobody has chosen a file.
                raise LegacyFault(no_name, "no file was chosen")
            if form.files[0].size > MAX_FILE_BYTES:
                raise LegacyFault(too_large, "a file may be 500 MB")
            yield form

    async def _look_at(self, file: FormFile, bad_format: int) -> Media:
        media = await self._pictures.look_at(file)
        if media is None:
            raise LegacyFault(bad_format, "this is no video that can be read")
        return media

    async def _send(self, request: Request, name: str, task: Task, not_finished: int, no_result: int) -> Response:
        legacy.check_finished(task, not_finished)
        try:
            return await in_thread(send_result, request, self._service, task, name)
        except HttpProblem as problem:
            raise LegacyFault(no_result, "the result is gone", 404) from problem


class VideoEndpoints(_Endpoints):
    """Removing watermarks."""

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        one = "/api/video/task/{uuid}"
        return (
            route("/api/video/upload", POST=self.upload),
            route(f"{one}/frames", GET=self.frames),
            route(f"{one}/select-frame", POST=self.select_frame),
            route(f"{one}/select-regions", POST=self.select_regions),
            route(f"{one}/status", GET=self.status),
            route(f"{one}/download", GET=self.download),
        )

    async def upload(self, request: Request) -> Response:
        """`POST /api/video/upload`."""
        async with self._received(request, legacy.NO_FILE, legacy.NO_NAME, legacy.TOO_LARGE) as form:
            file = form.files[0]
            media = await self._look_at(file, legacy.BAD_FORMAT)
            with _told_as(legacy.BAD_FORMAT, legacy.NOT_UPLOADED):
                task = await in_thread(self._studio.create_with, WATERMARK, caller_of(request), Notes(), [file])
        data = {
            "task_uuid": task.id,
            "filename": file.name,
            "file_size": file.size,
            "duration": media.duration_seconds,
            "resolution": f"{media.width}x{media.height}",
            "fps": media.fps,
        }
        return say(data)

    async def frames(self, request: Request) -> Response:
        """`GET /api/video/task/{uuid}/frames`."""
        task = await self._find(request)
        count = words.read_count(request.query_params.get("count"), 5, 20)
        try:
            survey = await self._pictures.survey(_source_of(task), count)
        except FfmpegError as error:
            raise LegacyFault(legacy.NO_FRAMES, str(error), 500) from error
        return say({"task_uuid": task.id, "frames": frames_of(survey)})

    async def select_frame(self, request: Request) -> Response:
        """`POST /api/video/task/{uuid}/select-frame`."""
        number = (await _read_object(request, legacy.NO_NUMBER)).get("frame_number")
        if number is None:
            raise LegacyFault(legacy.NO_NUMBER, "frame_number is missing")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
            raise LegacyFault(legacy.NO_NUMBER, "frame_number must be the number of a frame")
        task = await self._find(request)
        try:
            image = await self._pictures.frame(_source_of(task), number)
        except FfmpegError as error:
            raise LegacyFault(legacy.NO_FRAME, str(error), 500) from error
        if task.status in DRAFT:
            await in_thread(self._studio.change_notes, task, selected_frame=number)
        return say({"task_uuid": task.id, "frame_number": number, "frame_image": image})

    async def select_regions(self, request: Request) -> Response:
        """`POST /api/video/task/{uuid}/select-regions`: and the work begins."""
        body = await _read_object(request, legacy.NO_REGIONS_KEY)
        if "regions" not in body:
            raise LegacyFault(legacy.NO_REGIONS_KEY, "regions is missing")
        if not body["regions"]:
            raise LegacyFault(legacy.NO_REGIONS, "regions is empty")
        task = await self._find(request)
        if task.status is Status.COMPLETED:
            raise LegacyFault(legacy.NOT_STARTED, f"the task is {words.status_of(task)} already", 500)
        with _told_as(legacy.NO_REGIONS, legacy.NOT_STARTED):
            await in_thread(self._studio.start_repainting, task, body["regions"])
        count = len(body["regions"])
        return say({"task_uuid": task.id, "regions_count": count, "message": "processing has begun"})

    async def status(self, request: Request) -> Response:
        """`GET /api/video/task/{uuid}/status`."""
        task = await self._find(request)
        return say({"task_uuid": task.id, "status": legacy.status_of_watermark(task), **legacy.progress_of(task)})

    async def download(self, request: Request) -> Response:
        """`GET /api/video/task/{uuid}/download`."""
        task = await self._find(request)
        name = words.download_name(task, "", "_no_watermark")
        return await self._send(request, name, task, legacy.NOT_FINISHED, legacy.NO_RESULT)


class MergeEndpoints(_Endpoints):
    """Merging."""

    task_type = MERGE
    no_task = legacy.MERGE_NO_TASK

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        one = "/api/video/merge/task/{uuid}"
        return (
            route("/api/video/merge/create", POST=self.create),
            route("/api/video/merge/upload", POST=self.upload),
            route(one, GET=self.show, DELETE=self.delete),
            route(f"{one}/items/{{item}}", PUT=self.cut, DELETE=self.drop),
            route(f"{one}/reorder", POST=self.reorder),
            route(f"{one}/start", POST=self.start),
            route(f"{one}/status", GET=self.status),
            route(f"{one}/download", GET=self.download),
        )

    async def create(self, request: Request) -> Response:
        """`POST /api/video/merge/create`."""
        notes = _read_options(await _read_object(request, legacy.MERGE_NO_BODY))
        task = await in_thread(self._studio.create, MERGE, caller_of(request), notes)
        return say({"task_uuid": task.id, "task_name": notes.task_name, "created_at": words.instant(task.created_at)})

    async def upload(self, request: Request) -> Response:
        """`POST /api/video/merge/upload`."""
        codes = (legacy.MERGE_NO_FILE, legacy.MERGE_NO_NAME, legacy.MERGE_TOO_LARGE)
        async with self._received(request, *codes) as form:
            task_id = form.fields.get("task_uuid", b"").decode("utf-8", "replace").strip()
            if not task_id:
                raise LegacyFault(legacy.MERGE_NO_UUID, "task_uuid is missing")
            task = await self._find(request, task_id)
            _check_open(task)
            if len(task.input_files) >= MAX_ITEMS:
                raise LegacyFault(legacy.MERGE_TOO_MANY, f"a merge has at most {MAX_ITEMS} videos")
            media = await self._look_at(form.files[0], legacy.MERGE_BAD_FORMAT)
            with _told_as(legacy.MERGE_BAD_FORMAT, legacy.MERGE_NOT_UPLOADED):
                task = await in_thread(self._studio.receive, task, form.files[0], media)
        return say({"task_uuid": task.id, **legacy.items_of(task)[-1]})

    async def show(self, request: Request) -> Response:
        """`GET /api/video/merge/task/{uuid}`."""
        task = await self._find(request)
        return say({**legacy.merge_of(task), "items": legacy.items_of(task)})

    async def delete(self, request: Request) -> Response:
        """`DELETE /api/video/merge/task/{uuid}`: one that runs is stopped."""
        task = await self._find(request)
        await in_thread(_remove, self._service, task)
        return say({"task_uuid": task.id, "message": "the task was deleted"})

    async def cut(self, request: Request) -> Response:
        """`PUT /api/video/merge/task/{uuid}/items/{item}`."""
        body = await _read_object(request, legacy.MERGE_NO_CUT)
        task = await self._find(request)
        _check_open(task)
        clips = list(clips_of(task))
        place = legacy.place_of(clips, request.path_params["item"])
        clips[place] = legacy.cut_item(clips[place], body)
        await in_thread(self._studio.change_notes, task, clips=tuple(clips))
        return say({"task_uuid": task.id, **legacy.shown_item(clips[place], place)})

    async def drop(self, request: Request) -> Response:
        """`DELETE /api/video/merge/task/{uuid}/items/{item}`."""
        task = await self._find(request)
        _check_open(task)
        clips = clips_of(task)
        clip = clips[legacy.place_of(clips, request.path_params["item"])]
        await in_thread(self._studio.drop_clip, task, clip.path)
        return say({"task_uuid": task.id, "item_id": clip.item_id, "message": "the video was removed"})

    async def reorder(self, request: Request) -> Response:
        """`POST /api/video/merge/task/{uuid}/reorder`."""
        body = await _read_object(request, legacy.MERGE_NO_ORDER)
        task = await self._find(request)
        _check_open(task)
        clips: tuple[Clip, ...] = legacy.ordered(clips_of(task), body.get("item_order"))
        task = await in_thread(self._studio.change_notes, task, clips=clips)
        return say({"task_uuid": task.id, "items": legacy.items_of(task)})

    async def start(self, request: Request) -> Response:
        """`POST /api/video/merge/task/{uuid}/start`."""
        task = await self._find(request)
        if task.status not in DRAFT | ENDED_BADLY:
            raise LegacyFault(legacy.MERGE_TOO_LATE, f"the task is {words.status_of(task)} already")
        clips = clips_of(task)
        if len(clips) < 2:
            raise LegacyFault(legacy.MERGE_NOTHING, "there is nothing to merge: upload at least two videos")
        with _told_as(legacy.MERGE_NOTHING, legacy.MERGE_NOT_STARTED):
            await in_thread(self._studio.start_merging, task, clips)
        return say({"task_uuid": task.id, "videos_count": len(clips), "message": "merging has begun"})

    async def status(self, request: Request) -> Response:
        """`GET /api/video/merge/task/{uuid}/status`."""
        return say(legacy.merge_of(await self._find(request)))

    async def download(self, request: Request) -> Response:
        """`GET /api/video/merge/task/{uuid}/download`."""
        task = await self._find(request)
        name = legacy.merged_name(task)
        return await self._send(request, name, task, legacy.MERGE_NOT_FINISHED, legacy.MERGE_NO_RESULT)


@contextmanager
def _told_as(mine: int, theirs: int) -> Iterator[None]:
    """What is refused inside has the code `mine` if the request is at fault, and `theirs` if the runner or the task's
    status is. What only cannot be done now is told as everywhere."""
    try:
        yield
    except (Unavailable, LimitReached):
        raise
    except InvalidSubmission as error:
        raise LegacyFault(mine, str(error)) from error
    except RunnerError as error:
        raise LegacyFault(theirs, str(error), 500) from error
    except HttpProblem as problem:
        if isinstance(problem, LegacyFault) or problem.status_code == 429:
            raise
        raise LegacyFault(mine, problem.detail, problem.status_code) from problem


async def _read_object(request: Request, no_body: int) -> dict[str, Any]:
    body = await read_optional_json(request, MAX_BODY_BYTES)
    if not isinstance(body, dict) or not (body or "content-type" in request.headers):
        raise LegacyFault(no_body, "the body must be a JSON object")
    return body


def _read_options(body: dict[str, Any]) -> Notes:
    name = body.get("task_name") or "merged video"
    if not isinstance(name, str):
        raise LegacyFault(legacy.MERGE_NO_BODY, "task_name must be a text")
    try:
        return Notes(task_name=name[:200], **words.read_options(body))
    except HttpProblem as problem:
        raise LegacyFault(legacy.MERGE_NO_BODY, problem.detail) from problem


def _source_of(task: Task) -> str:
    if not task.input_files:
        raise LegacyFault(legacy.NO_SOURCE, "the video is gone", 404)
    return task.input_files[0]


def _check_open(task: Task) -> None:
    if task.status not in DRAFT:
        raise LegacyFault(legacy.MERGE_TOO_LATE, f"the task is {words.status_of(task)} already")


def _may_see(caller: Caller, task: Task) -> bool:
    """What has no owner is anybody's who knows its id."""
    return caller.sees in (None, task.user_id) or task.user_id == NOBODY


def _remove(service: Service, task: Task) -> None:
    if not task.is_terminal and task.status not in DRAFT:
        service.cancel(task.id)
    service.delete(task.id)
