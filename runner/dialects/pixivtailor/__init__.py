"""PixivTailor: draws images, crawls galleries, tags folders, and lets its page follow all of it.

    __init__ ── make: the parts, put together
    words       its envelope, tasks, messages, what its pages ask for (pure)
    tasks       lists, status, start, stop, cleanup
    work        what tasks are made of          configs   named sets of parameters
    socket      the WebSocket                   webui     whether there is something to draw with

On its own port `/ws` and `/health` are PixivTailor's; on the main port those are the API's, and its WebSocket is at
`/api/ws`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from runner.dialects.dialect import Dialect
from runner.dialects.pixivtailor import words
from runner.dialects.pixivtailor.configs import ConfigEndpoints, Configs
from runner.dialects.pixivtailor.socket import SocketEndpoint
from runner.dialects.pixivtailor.tasks import Finder, TaskEndpoints
from runner.dialects.pixivtailor.webui import WebUi
from runner.dialects.pixivtailor.work import Maker, WorkEndpoints
from runner.service import Service
from runner.web.app import Site
from runner.web.crossing import in_thread
from runner.web.routing import route

PREFIXES: Final = ("/api/task/", "/api/crawl/", "/api/tag/", "/api/configs/", "/api/webui/", "/api/images/")


def make(site: Site) -> Dialect:
    """The dialect, over what all listeners share."""
    service, section = site.service, site.config.dialects.pixivtailor
    data = Path(service.store.layout.data)
    finder, webui = Finder(service), WebUi(site.config, must_answer=section.webui_must_answer)
    configs = Configs(service.store.files, f"{data}/configs")
    maker = Maker(service, (data / "pixivtailor" if section.folder is None else section.folder).resolve(), finder)
    socket = SocketEndpoint(service, finder, webui)
    return Dialect(
        name="pixivtailor",
        routes=(
            *TaskEndpoints(service, finder).routes,
            *WorkEndpoints(service, maker, configs, webui).routes,
            *ConfigEndpoints(configs).routes,
            WebSocketRoute("/api/ws", socket.connect),
        ),
        own_routes=(route("/health", GET=Health(service).show), WebSocketRoute("/ws", socket.connect)),
        prefixes=PREFIXES,
        envelope=words.tell,
        origins=frozenset(section.origins),
    )


class Health:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def show(self, request: Request) -> Response:
        """`GET /health`."""
        health = await in_thread(self._service.health)
        status = "healthy" if health.ready else "unhealthy"
        message = "; ".join(health.reasons) or "the runner is running"
        return words.answer({"status": status, "message": message, "time": words.instant(datetime.now(UTC))})
