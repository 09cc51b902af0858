"""What PixivTailor makes tasks of: configurations to draw by, crawls, folders to tag."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from runner.dialects.pixivtailor import words
from runner.dialects.pixivtailor.configs import Configs
from runner.dialects.pixivtailor.tasks import Finder, read_object, send_image, shown_in_pages
from runner.dialects.pixivtailor.webui import WebUi
from runner.dialects.pixivtailor.words import SUFFIXES, answer, refuse
from runner.intake.admission import Arrival, Origin, Submission
from runner.service import Service
from runner.store.blobs import Handover
from runner.task import Task
from runner.web.crossing import in_thread
from runner.web.door import Caller, caller_of
from runner.web.downloads import downloaded
from runner.web.problems import HttpProblem
from runner.web.routing import route

DEFAULT_LIMIT: Final = 100
MAX_FILES: Final = 1000
MAX_NAME_BYTES: Final = 255
FOLDERS: Final = ("images", "tags", "cache")
"""Where its relative folders begin; one that begins elsewhere lies in the first."""


class Maker:
    """Makes tasks. From any thread; waits for the disk."""

    def __init__(self, service: Service, root: Path, finder: Finder) -> None:
        self._service = service
        self._root = root
        self._finder = finder

    def submit(self, type: str, payload: Mapping[str, Any], caller: Caller, files: tuple[Path, ...] = ()) -> Task:
        """A new task, of whose payload only what its handler knows is kept. Raises `Refused`."""
        known = self._service.handlers.get(type).schema.get("properties", {})
        submission = Submission(type=type, payload={name: payload[name] for name in payload if name in known})
        arrivals = tuple(Arrival(path, path.name, path.stat().st_size, Handover.LINK) for path in files)
        return self._service.submit(submission, Origin(caller.source, caller.user_id, arrivals, task_id=self._new_id()))

    def tag(self, body: Mapping[str, Any], caller: Caller) -> Task:
        """The images of some folders are to be tagged. Raises `HttpProblem` 400 where there are none."""
        folders, payload = words.read_folders(body), words.tag_payload(body)
        limit = payload.get("limit", DEFAULT_LIMIT)
        found = itertools.chain.from_iterable(self.images_in(folder, caller) for folder in folders)
        images = tuple(itertools.islice(dict.fromkeys(found), min(int(limit), MAX_FILES)))
        if not images:
            raise refuse(400, f"there are no images in {', '.join(folders)}")
        return self.submit("tag", payload, caller, images)

    def images_in(self, folder: str, caller: Caller) -> Iterator[Path]:
        """The images in a folder: of the task that it is named after, or below its root. None where there is none."""
        task = self.task_of(folder, caller)
        if task is not None:
            yield from (self._service.output(task, path.split("/", 3)[-1]) for path in words.images_of(task))
            return
        place = self.place(folder)
        if place is not None and place.is_dir():
            yield from (path for path in sorted(place.rglob("*")) if self.is_image(path))

    def place(self, path: str) -> Path | None:
        """Where one of its paths is; None for one that leads out of its folders, or nowhere at all."""
        if "\0" in path or any(len(part.encode("utf-8", "replace")) > MAX_NAME_BYTES for part in path.split("/")):
            return None
        parts = Path(path.replace("\\", "/")).parts
        first = parts if parts[:1] and parts[0] in FOLDERS else (FOLDERS[0], *parts)
        place = self._root.joinpath(*first).resolve()
        return place if place.is_relative_to(self._root) and place != self._root else None

    def is_image(self, path: Path) -> bool:
        """Whether it is one, and lies where it seems to: links lead nowhere else."""
        is_image = path.suffix.lower() in SUFFIXES and path.is_file()
        return is_image and path.resolve().is_relative_to(self._root)

    def task_of(self, folder: str, caller: Caller) -> Task | None:
        """The task whose images a folder would hold: `2026-01-02_10-30_crawl_1a2b3c4d`, or only its id."""
        task_id = folder.rstrip("/").rpartition("/")[2].rpartition("_")[2].lower()
        try:
            return self._finder.find(task_id, caller) if len(task_id) >= words.ID_DIGITS else None
        except HttpProblem:
            return None

    def _new_id(self) -> str:
        """One by whose beginning the task can be told from all others."""
        while True:
            task_id = str(uuid.uuid4())
            if not self._service.store.ids_beginning(words.short_id(task_id), 1):
                return task_id


class WorkEndpoints:
    """The endpoints."""

    def __init__(self, service: Service, maker: Maker, configs: Configs, webui: WebUi) -> None:
        self._service = service
        self._maker = maker
        self._configs = configs
        self._webui = webui

    @property
    def routes(self) -> tuple[BaseRoute, ...]:
        """Their paths."""
        return (
            route("/api/generate", POST=self.generate),
            route("/api/generate-with-config", POST=self.generate_with_config),
            route("/api/crawl/create", POST=self.crawl),
            route("/api/tag/create", POST=self.tag),
            route("/api/images/{path:path}", GET=self.image),
            route("/api/webui/status", GET=self.webui_status),
            route("/api/tag/analyzers", GET=self.analyzers, POST=self.analyzers),
        )

    async def generate(self, request: Request) -> Response:
        """`POST /api/generate`: never was."""
        raise refuse(501, "not implemented; use /api/generate-with-config")

    async def generate_with_config(self, request: Request) -> Response:
        """`POST /api/generate-with-config`."""
        body = await read_object(request)
        config_id, override = body.get("config_id"), body.get("override") or {}
        if not isinstance(config_id, str) or not config_id:
            raise refuse(400, "config_id is missing")
        if not isinstance(override, dict):
            raise refuse(400, "override must be an object")
        config = await in_thread(self._configs.get, config_id)
        await self._webui.check()
        payload = words.generate_payload(config.parameters, override)
        task = await in_thread(self._maker.submit, "generate", payload, caller_of(request))
        return answer({"task_id": words.short_id(task.id), "message": "task created", "status": words.status_of(task)})

    async def crawl(self, request: Request) -> Response:
        """`POST /api/crawl/create`."""
        payload = words.crawl_payload(await read_object(request))
        return answer(words.task_of(await in_thread(self._maker.submit, "crawl", payload, caller_of(request))))

    async def tag(self, request: Request) -> Response:
        """`POST /api/tag/create`."""
        body = await read_object(request)
        return answer(words.task_of(await in_thread(self._maker.tag, body, caller_of(request))))

    async def image(self, request: Request) -> Response:
        """`GET /api/images/{path}`: an image of a task's folder, or of its own."""
        return await in_thread(self._send, request, request.path_params["path"])

    async def analyzers(self, request: Request) -> Response:
        """`/api/tag/analyzers`: the values that the tagger knows."""
        schema = self._service.handlers.get("tag").schema["properties"].get("analyzer", {})
        return answer({"analyzers": schema.get("enum", [])})

    async def webui_status(self, request: Request) -> Response:
        """`GET /api/webui/status`."""
        return answer(await self._webui.look())

    def _send(self, request: Request, path: str) -> Response:
        folder, _, name = path.rpartition("/")
        task = self._maker.task_of(folder, caller_of(request)) if folder else None
        if task is not None:
            found = next((one for one in words.images_of(task) if one.rpartition("/")[2] == name), "")
            return send_image(request, self._service, task, found)
        place = self._maker.place(path)
        if place is None or not self._maker.is_image(place):
            raise refuse(404, "Image not found")
        return shown_in_pages(downloaded(request, place, name))
