"""`GET /`: what there is here, for whoever has only the address."""

from __future__ import annotations

from typing import Final

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

PLACES: Final = {
    "docs": "/docs",
    "openapi": "/openapi.json",
    "tasks": "/api/v1/tasks",
    "handlers": "/api/v1/handlers",
    "events": "/api/v1/events",
    "me": "/api/v1/users/me",
    "health": "/health",
    "ready": "/ready",
    "metrics": "/metrics",
}


async def show_index(request: Request) -> Response:
    """JSON for whoever asks for it, links for browsers, else lines of text."""
    accepted = request.headers.get("accept", "")
    headers = {"Vary": "Accept"}
    if "application/json" in accepted:
        return Response(to_json({"name": "file-runner", "links": PLACES}), 200, headers, "application/json")
    if "text/html" in accepted:
        items = "".join(f'<li><a href="{path}">{path}</a> {name}' for name, path in PLACES.items())
        head = "<!doctype html><html lang=en><meta charset=utf-8><title>file-runner</title><h1>file-runner</h1>"
        return Response(f"{head}<ul>{items}</ul>", 200, headers, "text/html")
    lines = "".join(f"{path:22}{name}\n" for name, path in PLACES.items())
    return Response(f"file-runner\n\n{lines}", 200, headers, "text/plain")
