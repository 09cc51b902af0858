"""JSON bodies, read strictly (`runner/strictjson.py`)."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from runner import strictjson
from runner.web.crossing import in_thread
from runner.web.problems import HttpProblem

LARGE_BYTES: Final = 64 * 1024
DISCARD_BYTES: Final = 16 << 20


def media_type_of(request: Request) -> str:
    """What the body is said to be, without parameters; empty where nothing is said."""
    said: str = request.headers.get("content-type", "")
    return said.partition(";")[0].strip().lower()


async def read_json(request: Request, max_bytes: int) -> Any:
    """The JSON value that a request must carry. Raises `HttpProblem` 400, 413 or 415."""
    if media_type_of(request) != "application/json":
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
    chunk, more = await _receive(request)
    if not more and len(chunk) <= max_bytes:
        return chunk  # nearly always: it came with the head
    body, size = bytearray(chunk), len(chunk)
    while more and size <= max_bytes + DISCARD_BYTES:
        chunk, more = await _receive(request)
        size += len(chunk)
        if size <= max_bytes:
            body += chunk
    if size > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


async def _receive(request: Request) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there are more."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def parse_json(data: bytes) -> Any:
    """The value in `data`. Raises `HttpProblem` 400 with code `invalid_json` or `duplicate_key`."""
    try:
        return strictjson.read(data)
    except strictjson.InvalidJson as error:
        raise HttpProblem(400, error.code, f"the body {error}") from error


def _declared_size(request: Request) -> int:
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isdecimal() else 0


def _too_large(max_bytes: int) -> HttpProblem:
    # The rest of the body is not wanted, so the connection cannot be used again.
    detail = f"the body is larger than {max_bytes} bytes"
    return HttpProblem(413, "content_too_large", detail, {"Connection": "close"})
