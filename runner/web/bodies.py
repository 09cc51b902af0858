"""What comes in a request: JSON, strictly, and files, streamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from starlette.requests import Request

from runner import strictjson
from runner.web.crossing import in_thread
from runner.web.problems import HttpProblem

LARGE_BYTES: Final = 64 * 1024
WRITE_BYTES: Final = 1 << 20
DISCARD_BYTES: Final = 16 << 20


async def read_json(request: Request, max_bytes: int) -> Any:
    """The JSON value that a request must carry. Raises `HttpProblem` 400, 413 or 415."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise HttpProblem(415, "unsupported_media_type", "send JSON, with Content-Type: application/json")
    body = await read_body(request, max_bytes)
    # A large one takes some hundredths of a second, in which the loop could answer many others.
    return await in_thread(parse_json, body) if len(body) > LARGE_BYTES else parse_json(body)


async def read_optional_json(request: Request, max_bytes: int) -> Any:
    """The same, or an empty object for a request without a body."""
    has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    return await read_json(request, max_bytes) if has_body else {}


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises `HttpProblem` 413 where it is larger than `max_bytes`.

    Too large a body is read on for a while: to close on a client that still sends is to reset the connection before it
    has seen the answer. One that asks beforehand (`Expect: 100-continue`) is told at once.
    """
    if _declared_size(request) > max_bytes and "expect" in request.headers:
        raise _too_large(max_bytes)
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            body += chunk
        elif size > max_bytes + DISCARD_BYTES:
            break
    if size > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


def parse_json(data: bytes) -> Any:
    """The value in `data`. Raises `HttpProblem` 400 with code `invalid_json` or `duplicate_key`."""
    try:
        return strictjson.read(data)
    except strictjson.InvalidJson as error:
        raise HttpProblem(400, error.code, f"the body {error}") from error


@dataclass(frozen=True, slots=True)
class Received:
    """A file as it came in: where it lies for now, and its size in bytes."""

    path: Path
    size: int


@asynccontextmanager
async def received_file(request: Request, directory: Path) -> AsyncIterator[Received]:
    """The request's body as a file in `directory`, written as it comes, in constant memory.

    Unless it was moved away it is removed at the end, and so is one that came only in part.
    """
    path, target = await in_thread(_new_file, directory)
    try:
        size = await _write(request, target)
        await in_thread(target.close)
        yield Received(path, size)
    finally:
        target.close()
        path.unlink(missing_ok=True)


async def _write(request: Request, target: BinaryIO) -> int:
    """Writes a megabyte at a time, off the event loop: a slow disk must not hold up everybody."""
    size, waiting = 0, bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= WRITE_BYTES:
            size += await in_thread(target.write, bytes(waiting))
            waiting.clear()
    return size + await in_thread(target.write, bytes(waiting))


def _new_file(directory: Path) -> tuple[Path, BinaryIO]:
    fd, path = tempfile.mkstemp(prefix="upload-", dir=directory)
    return Path(path), os.fdopen(fd, "wb")


def _declared_size(request: Request) -> int:
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isdecimal() else 0


def _too_large(max_bytes: int) -> HttpProblem:
    # The rest of the body is not wanted, so the connection cannot be used again.
    detail = f"the body is larger than {max_bytes} bytes"
    return HttpProblem(413, "content_too_large", detail, {"Connection": "close"})
