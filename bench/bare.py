"""What our endpoints are measured beside: the least that Starlette can do for the same requests, served by uvicorn.

A process of its own: `python -m bench.bare FOLDER`. In the folder it finds `answer.json`, which it answers, and
`download`, which it sends; there it makes `upload` of what it gets, and `port`, when it serves.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

BACKLOG = 2048


class Bare:
    """The endpoints."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answer = json.loads((folder / "answer.json").read_text())
        self._listeners: set[asyncio.Queue[bytes]] = set()

    async def submit(self, request: Request) -> Response:
        """Reads JSON, answers JSON."""
        json.loads(await request.body())
        return JSONResponse(self._answer, 201)

    async def status(self, _request: Request) -> Response:
        """Answers JSON."""
        return JSONResponse(self._answer)

    async def upload(self, request: Request) -> Response:
        """To the disk, as it comes; the disk has it when this answers."""
        with (self._folder / "upload").open("wb", 0) as file:
            async for chunk in request.stream():
                file.write(chunk)
            await asyncio.to_thread(os.fsync, file.fileno())
        return JSONResponse(self._answer)

    async def download(self, _request: Request) -> Response:
        """A file."""
        return FileResponse(self._folder / "download")

    async def events(self, _request: Request) -> Response:
        """A stream of what is said."""
        return StreamingResponse(self._heard(), media_type="text/event-stream")

    async def say(self, request: Request) -> Response:
        """Says it to all streams."""
        said = await request.body()
        for listener in self._listeners:
            listener.put_nowait(b"data: " + said + b"\n\n")
        return JSONResponse({})

    async def _heard(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners.add(queue)
        yield b"data: {}\n\n"
        while True:
            yield await queue.get()

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/submit", self.submit, methods=["POST"]),
            Route("/status", self.status),
            Route("/upload", self.upload, methods=["PUT"]),
            Route("/download", self.download),
            Route("/events", self.events),
            Route("/say", self.say, methods=["POST"]),
        ]


def main(folder: Path) -> None:
    """Serves until it is killed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    # As ours does; without it each answer takes 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    (folder / "port.new").write_text(str(listener.getsockname()[1]))
    (folder / "port.new").rename(folder / "port")
    app = Starlette(routes=Bare(folder).routes())
    uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="error", http="h11")).run([listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
