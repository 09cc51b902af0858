"""Uploads that can be resumed, by tus 1.0 (tus.io): creation, checksum, termination, expiration.

An upload belongs to a draft and becomes one of its input files, by rename, with its last byte. What has come so far
lies in `data/tmp`, and its size is the offset: neither a client that loses its connection nor a runner that is killed
loses more than the last megabyte.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from runner.errors import IllegalTransition, NotFound, RunnerError, Unavailable
from runner.intake.admission import Arrival
from runner.record import Record
from runner.service import Service
from runner.store.blobs import Handover
from runner.task import DRAFT, Task
from runner.web.crossing import in_thread
from runner.web.door import Caller, caller_of
from runner.web.incoming import WRITE_BYTES, UploadSpace, write_all
from runner.web.limits import OpenLimit
from runner.web.parameters import task_id_of
from runner.web.problems import HttpProblem

VERSION: Final = "1.0.0"
MEDIA_TYPE: Final = "application/offset+octet-stream"
ALGORITHMS: Final = ("sha256", "sha1", "md5")
CHECKSUM_MISMATCH: Final = 460
SWEEP_SECONDS: Final = 60.0

_UPLOAD_ID: Final = re.compile(r"[0-9a-f]{32}")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")


class Upload(Record):
    """What is known of an upload beside its bytes. `metadata` is the client's header as it came."""

    id: str
    task_id: str
    user_id: str
    name: str
    length: int
    metadata: str = ""
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """How far an upload is, and the instant (seconds since 1970) when it is forgotten."""

    upload: Upload
    offset: int
    expires_at: float

    @property
    def headers(self) -> dict[str, str]:
        """The same in the words of the protocol."""
        expiry = {} if self.upload.is_complete else {"Upload-Expires": formatdate(self.expires_at, usegmt=True)}
        return {"Upload-Offset": str(self.offset), **expiry}


class UploadFiles:
    """The uploads of a directory: `tus-<id>` has the bytes, `tus-<id>.json` the rest. Methods block."""

    def __init__(self, directory: Path, expires_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._expires_seconds = expires_seconds
        self._clock = clock
        self._sweep_at = 0.0

    def create(self, upload: Upload) -> None:
        """An upload of which nothing has come yet. Those that nobody goes on with are removed meanwhile, but not each
        time: whoever makes very many would have all of them looked at for each."""
        if (now := self._clock()) >= self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self.remove_expired()
        self.path(upload.id).touch(mode=0o600, exist_ok=False)
        self._save(upload)

    def find(self, upload_id: str) -> Place:
        """How far it is. Raises `NotFound`, also where it has expired."""
        try:
            upload = Upload.model_validate_json(self._record(upload_id).read_bytes())
            if upload.is_complete:
                return Place(upload, upload.length, self._expiry(self._record(upload_id)))
            place = Place(upload, self.path(upload_id).stat().st_size, self._expiry(self.path(upload_id)))
        except (FileNotFoundError, ValueError) as error:
            raise NotFound("upload", upload_id) from error
        if place.expires_at <= self._clock():
            raise NotFound("upload", upload_id)
        return place

    def promised_to(self, user_id: str) -> int:
        """How many bytes the uploads of a user will be that are not complete yet."""
        return sum(upload.length for upload in self._all() if upload.user_id == user_id and not upload.is_complete)

    def open_of(self, user_id: str) -> int:
        """How many uploads of a user are not complete and not forgotten."""
        own = (upload for upload in self._all() if upload.user_id == user_id and not upload.is_complete)
        return sum(self._is_open(upload) for upload in own)

    def complete(self, upload: Upload) -> None:
        """Its bytes are the task's; that is remembered for whoever did not get the answer."""
        self._save(upload.model_copy(update={"is_complete": True}))

    def remove(self, upload_id: str) -> None:
        """It is forgotten."""
        self._record(upload_id).unlink(missing_ok=True)
        self.path(upload_id).unlink(missing_ok=True)

    def remove_expired(self) -> None:
        """Forgets those that nobody has gone on with for long enough."""
        for path in self._directory.glob("tus-*"):
            try:
                if self._expiry(path) <= self._clock():
                    self._remove_if_expired(path.name.removeprefix("tus-").partition(".")[0])
            except FileNotFoundError:
                continue

    def path(self, upload_id: str) -> Path:
        """Where its bytes lie."""
        return self._directory / f"tus-{upload_id}"

    def _remove_if_expired(self, upload_id: str) -> None:
        newest = max((path.stat().st_mtime for path in self._directory.glob(f"tus-{upload_id}*")), default=0.0)
        if newest + self._expires_seconds <= self._clock():
            self.remove(upload_id)

    def _is_open(self, upload: Upload) -> bool:
        try:
            return self._expiry(self.path(upload.id)) > self._clock()
        except FileNotFoundError:
            return False

    def _all(self) -> Iterator[Upload]:
        for record in self._directory.glob("tus-*.json"):
            try:
                yield Upload.model_validate_json(record.read_bytes())
            except (FileNotFoundError, ValueError):
                continue

    def _expiry(self, path: Path) -> float:
        return path.stat().st_mtime + self._expires_seconds

    def _record(self, upload_id: str) -> Path:
        return self._directory / f"tus-{upload_id}.json"

    def _save(self, upload: Upload) -> None:
        made = self._directory / f"tus-{upload.id}.json.new"
        made.write_text(upload.model_dump_json(), encoding="utf-8")
        made.replace(self._record(upload.id))


class UploadEndpoints:
    """The endpoints. One request at a time goes on with an upload."""

    def __init__(self, service: Service, space: UploadSpace, files: UploadFiles, limit: OpenLimit) -> None:
        self._limit = limit
        self._creating = threading.Lock()
        self._service = service
        self._space = space
        self._files = files
        self._busy: set[str] = set()

    async def options(self, request: Request) -> Response:
        """`OPTIONS /tasks/{id}/uploads`."""
        await in_thread(self._service.get, task_id_of(request), caller_of(request).sees)
        about = {
            "Tus-Version": VERSION,
            "Tus-Extension": "creation,checksum,termination,expiration",
            "Tus-Max-Size": str(self._space.max_bytes),
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        }
        return _answer(204, about)

    async def create(self, request: Request) -> Response:
        """`POST /tasks/{id}/uploads`."""
        _check_version(request)
        caller = caller_of(request)
        draft = await in_thread(self._service.get, task_id_of(request), caller.sees)
        _check_draft(draft)
        upload = read_upload(request, draft)
        self._space.check(upload.length)
        await in_thread(self._create, upload, caller)
        place = await in_thread(self._files.find, upload.id)
        if upload.length == 0:
            place = await self._finish(place, caller)
        return _answer(201, {**place.headers, "Location": f"/api/v1/uploads/{upload.id}"})

    async def look(self, request: Request) -> Response:
        """`HEAD /uploads/{id}`."""
        place = await self._find(request)
        about = {"Upload-Length": str(place.upload.length)}
        if place.upload.metadata:
            about["Upload-Metadata"] = place.upload.metadata
        return _answer(200, {**place.headers, **about, "Cache-Control": "no-store"})

    async def append(self, request: Request) -> Response:
        """`PATCH /uploads/{id}`."""
        _check_version(request)
        if request.headers.get("content-type", "") != MEDIA_TYPE:
            raise HttpProblem(415, "unsupported_media_type", f"send bytes, with Content-Type: {MEDIA_TYPE}")
        checksum = read_checksum(request)
        place = await self._find(request)
        with self._alone(place.upload.id):
            # Again, now that nobody else appends.
            place = await in_thread(self._files.find, place.upload.id)
            if request.headers.get("upload-offset") != str(place.offset):
                raise HttpProblem(409, "wrong_offset", f"the upload goes on at {place.offset}")
            if not place.upload.is_complete:
                place = await self._append(request, place, checksum)
        return _answer(204, place.headers)

    async def remove(self, request: Request) -> Response:
        """`DELETE /uploads/{id}`."""
        _check_version(request)
        place = await self._find(request)
        with self._alone(place.upload.id):
            await in_thread(self._files.remove, place.upload.id)
        return _answer(204, {})

    async def overridden(self, request: Request) -> Response:
        """`POST /uploads/{id}`, for clients that can only GET and POST (`X-HTTP-Method-Override`)."""
        method = request.headers.get("x-http-method-override", "")
        if method == "PATCH":
            return await self.append(request)
        if method == "DELETE":
            return await self.remove(request)
        raise HttpProblem(405, "method_not_allowed", "PATCH or DELETE an upload", {"Allow": "DELETE, HEAD, PATCH"})

    def _create(self, upload: Upload, caller: Caller) -> None:
        # One at a time: else many at once would all find room for one more.
        with self._creating, self._space.quota.claiming(upload.user_id) as claim:
            if self._limit.holds(caller, upload.user_id):
                self._limit.check(caller, upload.user_id, self._files.open_of(upload.user_id))
            claim.add(upload.length)
            self._files.create(upload)

    async def _append(self, request: Request, place: Place, checksum: Checksum | None) -> Place:
        await self._receive(request, place, checksum)
        place = await in_thread(self._files.find, place.upload.id)
        return await self._finish(place, caller_of(request)) if place.offset == place.upload.length else place

    async def _receive(self, request: Request, place: Place, checksum: Checksum | None) -> None:
        """Appends the body. Of one that breaks off, what has come is kept; unless only the whole could be checked."""
        target = await in_thread(self._files.path(place.upload.id).open, "ab", 0)
        piece = _Piece(target, place, self._space, checksum)
        try:
            async for chunk in request.stream():
                await piece.write(chunk)
            await piece.close()
        except ClientDisconnect:
            piece.keep()
            raise
        except BaseException:
            piece.discard()
            raise
        finally:
            target.close()

    async def _finish(self, place: Place, caller: Caller) -> Place:
        upload = place.upload
        arrival = Arrival(self._files.path(upload.id), upload.name, upload.length, Handover.MOVE)
        try:
            await in_thread(self._service.add_input, upload.task_id, arrival, caller.sees)
        except Unavailable:
            raise  # what has come stays; one more PATCH, with nothing in it, asks again
        except RunnerError:
            # The draft has been started or deleted, or does not take such a file: nobody will ever want it.
            await in_thread(self._files.remove, upload.id)
            raise
        await in_thread(self._files.complete, upload)
        return await in_thread(self._files.find, upload.id)

    async def _find(self, request: Request) -> Place:
        upload_id: str = request.path_params["id"]
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise NotFound("upload", upload_id)
        place = await in_thread(self._files.find, upload_id)
        if caller_of(request).sees not in (None, place.upload.user_id):
            raise NotFound("upload", upload_id)
        return place

    @contextmanager
    def _alone(self, upload_id: str) -> Iterator[None]:
        if upload_id in self._busy:
            raise HttpProblem(423, "upload_busy", "another request goes on with this upload; try again")
        self._busy.add(upload_id)
        try:
            yield
        finally:
            self._busy.discard(upload_id)


class Checksum:
    """What the bytes of one request must hash to."""

    def __init__(self, algorithm: str, wanted: bytes) -> None:
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._wanted = wanted

    def take(self, data: bytes) -> None:
        """The next bytes."""
        self._hash.update(data)

    def check(self) -> None:
        """Raises `HttpProblem` 460, which tus has for this."""
        if not hmac.compare_digest(self._hash.digest(), self._wanted):
            raise HttpProblem(CHECKSUM_MISMATCH, "checksum_mismatch", "the bytes are not those of the checksum")


class _Piece:
    """What one request appends to an upload, a megabyte at a time."""

    def __init__(self, target: BinaryIO, place: Place, space: UploadSpace, checksum: Checksum | None) -> None:
        self._target = target
        self._offset = place.offset
        self._room = place.upload.length - place.offset
        self._space = space
        self._checksum = checksum
        self._waiting = bytearray()

    async def write(self, data: bytes) -> None:
        """The next bytes. Raises `HttpProblem` 413."""
        self._room -= len(data)
        if self._room < 0:
            raise HttpProblem(413, "content_too_large", "these are more bytes than Upload-Length has said")
        if self._checksum is not None:
            self._checksum.take(data)
        self._waiting += data
        if len(self._waiting) >= WRITE_BYTES:
            await self._flush()

    async def close(self) -> None:
        """All of them have come. Raises `HttpProblem` 460."""
        await self._flush()
        if self._checksum is not None:
            self._checksum.check()

    def keep(self) -> None:
        """No more will come."""
        if self._checksum is not None:
            self.discard()
        else:
            write_all(self._target, bytes(self._waiting))

    def discard(self) -> None:
        """As if none had come."""
        os.ftruncate(self._target.fileno(), self._offset)

    async def _flush(self) -> None:
        self._space.check(0)
        await in_thread(write_all, self._target, bytes(self._waiting))
        self._waiting.clear()


def read_upload(request: Request, draft: Task) -> Upload:
    """What the head of a creation says. Raises `HttpProblem` 400."""
    length = request.headers.get("upload-length", "")
    if not _LENGTH.fullmatch(length):
        raise HttpProblem(400, "invalid_upload", "Upload-Length must say how many bytes will come")
    metadata = request.headers.get("upload-metadata", "")
    names = read_metadata(metadata)
    name = names.get("filename") or names.get("name") or "file"
    return Upload(
        id=secrets.token_hex(16),
        task_id=draft.id,
        user_id=draft.user_id,
        name=name,
        length=int(length),
        metadata=metadata,
    )


def read_metadata(text: str) -> Mapping[str, str]:
    """The pairs of an `Upload-Metadata` header: keys, each with a value in Base64. Raises `HttpProblem` 400."""
    pairs = (item.strip().partition(" ")[::2] for item in text.split(",") if item.strip())
    try:
        return {key: base64.b64decode(value, validate=True).decode() for key, value in pairs}
    except ValueError as error:
        raise HttpProblem(400, "invalid_upload", "Upload-Metadata must be keys with values in Base64") from error


def read_checksum(request: Request) -> Checksum | None:
    """What `Upload-Checksum` asks for. Raises `HttpProblem` 400."""
    text = request.headers.get("upload-checksum")
    if text is None:
        return None
    algorithm, _, value = text.partition(" ")
    try:
        if algorithm in ALGORITHMS:
            return Checksum(algorithm, base64.b64decode(value, validate=True))
    except binascii.Error:
        pass
    raise HttpProblem(400, "invalid_checksum", f"Upload-Checksum must be one of {', '.join(ALGORITHMS)}, and Base64")


def _check_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != VERSION:
        text = f"this speaks tus {VERSION}; say so in Tus-Resumable"
        raise HttpProblem(412, "unsupported_version", text, {"Tus-Version": VERSION})


def _check_draft(task: Task) -> None:
    if task.status not in DRAFT:
        raise IllegalTransition(task.id, task.status, "take another input file")


def _answer(status: int, headers: Mapping[str, str]) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": VERSION, **headers})
