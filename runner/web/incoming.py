"""Files that come in with requests: written as they come, in constant memory, into `data/tmp`; from there they become a
task's by rename. What does not is removed, and so is one that came only in part."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from starlette.requests import Request

from runner.errors import DiskFull
from runner.intake.quota import Claim, Quota
from runner.web.crossing import end_of, in_thread
from runner.web.problems import HttpProblem

WRITE_BYTES: Final = 1 << 20
PREFIX: Final = "upload-"


@dataclass(frozen=True, slots=True)
class Received:
    """A file as it came in: where it lies for now, and its size in bytes."""

    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class UploadSpace:
    """Where files lie while they come in: a folder on the data directory's filesystem. `max_bytes` is for all files of
    one request; `shortage` says why there is no room now, if there is none; `quota` knows how much a user may have."""

    directory: Path
    max_bytes: int
    shortage: Callable[[], str | None]
    quota: Quota

    def clean_up(self) -> None:
        """Removes what an earlier owner had to leave in the middle. Before anything comes in."""
        for path in self.directory.glob(f"{PREFIX}*"):
            path.unlink(missing_ok=True)

    @asynccontextmanager
    async def batch(self, request: Request, user_id: str) -> AsyncIterator[Batch]:
        """The files that one request brings for a user, of which none is left behind at the end."""
        declared = request.headers.get("content-length", "0")
        if self.quota.limit_of(user_id) is not None:
            await in_thread(self.quota.check, user_id, int(declared) if declared.isdecimal() else 0)
        with self.quota.claiming(user_id) as claim:
            batch = Batch(self, claim)
            try:
                yield batch
            finally:
                await batch.discard()

    @asynccontextmanager
    async def received(self, request: Request, user_id: str) -> AsyncIterator[Received]:
        """The request's body as one file for a user."""
        declared = request.headers.get("content-length", "0")
        self.check(int(declared) if declared.isdecimal() else 0)
        async with self.batch(request, user_id) as batch:
            incoming = await batch.begin()
            async for chunk in request.stream():
                await incoming.write(chunk)
            yield await incoming.close()

    def check(self, size: int) -> None:
        """So many bytes may come in. Raises `HttpProblem` 413, or `DiskFull`."""
        if size > self.max_bytes:
            # The rest of the body is not wanted, so the connection cannot be used again.
            detail = f"files may be {self.max_bytes} bytes; see http.max_upload_bytes"
            raise HttpProblem(413, "content_too_large", detail, {"Connection": "close"})
        if (shortage := self.shortage()) is not None:
            raise DiskFull(f"nothing is accepted while {shortage}")


class Batch:
    """The files of one request."""

    def __init__(self, space: UploadSpace, claim: Claim) -> None:
        self.size = 0
        self.claim = claim
        self._space = space
        self._files: list[Incoming] = []

    async def begin(self) -> Incoming:
        """One more file."""
        self._space.check(self.size)
        incoming = Incoming(self, *await in_thread(_new_file, self._space.directory))
        self._files.append(incoming)
        return incoming

    def count(self, size: int) -> None:
        """So many bytes more have come. Raises as `UploadSpace.check`."""
        self.size += size
        self._space.check(self.size)

    async def discard(self) -> None:
        """Removes what was not moved away."""
        for incoming in self._files:
            await incoming.discard()


class Incoming:
    """A file that comes in, a megabyte at a time, off the event loop: a slow disk must not hold up everybody. While one
    megabyte is written the next one comes, and no more than that: so memory does not grow with the file."""

    def __init__(self, batch: Batch, path: Path, target: BinaryIO) -> None:
        self._batch = batch
        self._path = path
        self._target = target
        self._size = 0
        self._waiting = bytearray()
        self._writing: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """The next bytes of it. Raises what the bytes before them did."""
        self._waiting += data
        if len(self._waiting) >= WRITE_BYTES:
            await self._flush()

    async def close(self) -> Received:
        """It is complete."""
        await self._flush()
        await self._written()
        await in_thread(self._target.close)
        return Received(self._path, self._size)

    async def discard(self) -> None:
        """Removes it, unless it was moved away."""
        if self._writing is not None:
            await end_of(self._writing)
        self._target.close()
        self._path.unlink(missing_ok=True)

    async def _flush(self) -> None:
        self._batch.count(len(self._waiting))
        await self._written()
        data, self._waiting = self._waiting, bytearray()
        self._size += len(data)
        self._writing = asyncio.create_task(in_thread(self._write, data))

    async def _written(self) -> None:
        """What was handed to a thread is in the file, or the reason why not is raised."""
        if self._writing is not None:
            await self._writing

    def _write(self, data: bytearray) -> None:
        self._batch.claim.add(len(data))
        write_all(self._target, data)


def write_all(target: BinaryIO, data: bytes | bytearray) -> None:
    """Writes to an unbuffered file. Raises `DiskFull` where there is no room for it."""
    view = memoryview(data)
    try:
        while view:
            view = view[target.write(view) :]
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"the upload does not fit: {error.strerror}") from error
        raise


def _new_file(directory: Path) -> tuple[Path, BinaryIO]:
    fd, path = tempfile.mkstemp(prefix=PREFIX, dir=directory)
    return Path(path), os.fdopen(fd, "wb", buffering=0)
