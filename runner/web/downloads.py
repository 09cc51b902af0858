"""Outputs as they are sent: under the right name, as a type that no browser runs, whole or in ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import FileResponse

from runner.errors import NotFound
from runner.web.ranges import fit_range

SHOWN_TYPES: Final = {
    ".csv": "text/csv", ".gif": "image/gif", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".json": "application/json",
    ".mov": "video/quicktime", ".mp3": "audio/mpeg", ".mp4": "video/mp4", ".pdf": "application/pdf",
    ".png": "image/png", ".txt": "text/plain", ".wav": "audio/wav", ".webm": "video/webm", ".webp": "image/webp",
    ".zip": "application/zip",
}  # fmt: skip
"""By ending, the types that outputs are sent as. Anything else is bytes: a browser must never run it."""

OUTPUT_HEADERS: Final = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}


def downloaded(request: Request, path: Path, name: str) -> FileResponse:
    """The answer with an output's file, which a person may have removed from the disk. It asks the disk.

    Raises `NotFound`, or `HttpProblem` 416.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise NotFound("output file", name) from error
    fit_range(request.scope, request.headers, status.st_size)
    media_type = SHOWN_TYPES.get(path.suffix.lower(), "application/octet-stream")
    return FileResponse(
        path, headers=OUTPUT_HEADERS, media_type=media_type, filename=Path(name).name, stat_result=status
    )
