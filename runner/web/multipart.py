"""Forms with files (RFC 7578), written to the disk as they come: never more than a few pieces of them in memory.

A form counts only with its closing boundary: what a client or a proxy cut short is refused, and nothing of it stays.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from runner.web.bodies import media_type_of
from runner.web.door import caller_of
from runner.web.incoming import WRITE_BYTES, Incoming, UploadSpace
from runner.web.problems import HttpProblem

MEDIA_TYPE: Final = "multipart/form-data"
MAX_BOUNDARY_BYTES: Final = 256
MAX_PARTS: Final = 1000
MAX_PART_HEADER_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form: where it lies for now, what the client calls it, its size in bytes."""

    path: Path
    name: str
    size: int


@dataclass(slots=True)
class Form:
    """What came: the text of each field, and the files in their order."""

    fields: dict[str, bytes] = field(default_factory=dict)
    files: list[FormFile] = field(default_factory=list)


@dataclass(slots=True)
class _Part:
    """One part: its head, and of a field also its text. `filename` None: it is a field."""

    name: str
    filename: str | None
    data: bytearray = field(default_factory=bytearray)


def is_form(request: Request) -> bool:
    """Whether the body is a form with parts."""
    return media_type_of(request) == MEDIA_TYPE


@asynccontextmanager
async def received_form(request: Request, space: UploadSpace, max_field_bytes: int) -> AsyncIterator[Form]:
    """The form that the request carries, its files in `space`. What was not moved away is removed at the end.

    `max_field_bytes` is for all fields together. Raises `HttpProblem` 400 or 413.
    """
    reader = _Reader(_boundary_of(request), max_field_bytes)
    form, incoming = Form(), None
    async with space.batch(request, caller_of(request).user_id) as files:
        async for chunk in request.stream():
            for event in reader.feed(chunk):
                if isinstance(event, _Part):
                    incoming = await files.begin() if event.filename is not None else None
                elif isinstance(event, bytes):
                    assert incoming is not None
                    await incoming.write(event)
                else:
                    await _finish(form, event.part, incoming)
                    incoming = None
        if not reader.is_complete:
            raise HttpProblem(400, "truncated_upload", "the form ends before its closing boundary")
        yield form


async def _finish(form: Form, part: _Part, incoming: Incoming | None) -> None:
    if incoming is not None:
        received = await incoming.close()
        form.files.append(FormFile(received.path, part.filename or "file", received.size))
    elif part.name in form.fields:
        raise HttpProblem(400, "duplicate_key", f"the field {part.name!r} is there twice")
    else:
        form.fields[part.name] = bytes(part.data)


def _boundary_of(request: Request) -> bytes:
    boundary = parse_options_header(request.headers.get("content-type", ""))[1].get(b"boundary")
    if not boundary or len(boundary) > MAX_BOUNDARY_BYTES:
        raise HttpProblem(400, "invalid_form", "Content-Type names no boundary, or too long a one")
    return boundary


@dataclass(frozen=True, slots=True)
class _End:
    """A part is complete."""

    part: _Part


class _Reader:
    """Makes of bytes, as they come, what happens: a part begins, a piece of its file, a part ends."""

    def __init__(self, boundary: bytes, max_field_bytes: int) -> None:
        self.is_complete = False
        self._max_field_bytes = max_field_bytes
        self._field_bytes = 0
        self._parts = 0
        self._part: _Part | None = None
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._happened: list[_Part | bytes | _End] = []
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._add_header(self._header_name, data[start:end]),
                "on_header_value": lambda data, start, end: self._add_header(self._header_value, data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._head_read,
                "on_part_data": self._take,
                "on_part_end": self._end,
                "on_end": self._complete,
            },
        )

    def feed(self, chunk: bytes) -> Iterator[_Part | bytes | _End]:
        """What happens in the next bytes. Raises `HttpProblem`."""
        for start in range(0, len(chunk), WRITE_BYTES):
            try:
                self._parser.write(chunk[start : start + WRITE_BYTES])
            except FormParserError as error:
                raise HttpProblem(400, "invalid_form", f"this is no form that can be read: {error}") from error
            happened, self._happened = self._happened, []
            yield from happened

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise HttpProblem(400, "invalid_form", f"a form may have {MAX_PARTS} parts")
        self._headers = {}

    def _add_header(self, to: bytearray, data: bytes) -> None:
        to += data
        if len(to) > MAX_PART_HEADER_BYTES:
            raise HttpProblem(400, "invalid_form", "the head of a part is too large")

    def _end_header(self) -> None:
        if len(self._headers) >= 16:
            raise HttpProblem(400, "invalid_form", "the head of a part is too large")
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _head_read(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise HttpProblem(400, "invalid_form", "a part has no name")
        filename = options.get(b"filename")
        name = options[b"name"].decode("utf-8", "replace")
        self._part = _Part(name, None if filename is None else filename.decode("utf-8", "replace"))
        self._happened.append(self._part)

    def _take(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        if self._part.filename is not None:
            self._happened.append(data[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > self._max_field_bytes:
            raise HttpProblem(413, "content_too_large", f"the fields may be {self._max_field_bytes} bytes together")
        self._part.data += data[start:end]

    def _end(self) -> None:
        assert self._part is not None
        self._happened.append(_End(self._part))

    def _complete(self) -> None:
        self.is_complete = True
