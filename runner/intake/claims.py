"""What a ready file is handed in as: the submission, and where it came from.

The service records the task first and renames the file second, so an `Origin` carries all that recovery needs to do
the rename that a crash prevented, and to tell the file from a newer one of the same name.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from runner.errors import InvalidSubmission, Problem
from runner.ids import Ids
from runner.intake.admission import Arrival, Origin, Submission
from runner.intake.folders import Folder
from runner.intake.inspection import Ready
from runner.intake.names import raw_of, shown, text_of
from runner.store import Handover
from runner.task import Drop, Source, make_drop

MAX_DOCUMENT_INPUTS = 1000
_NO_PAYLOAD: dict[str, Any] = {}
_tuple: Final = tuple.__new__


class Claims:
    """Makes submissions. `data` is the data directory; `roots` are where a document's inputs may lie besides its
    own folder. One thread."""

    def __init__(self, data: str, roots: tuple[str, ...] = ()) -> None:
        self._data = f"{data}/"
        self._roots = roots
        self._plain: dict[str, Submission] = {}
        self._ids = Ids()

    def make(self, ready: Ready, outbox: str | None) -> tuple[Submission, Origin]:
        """What to hand in for a ready file. `outbox`: where its result goes. Raises `InvalidSubmission`."""
        if ready.folder.documents:
            return self._make_of_document(ready, outbox)
        folder, name = ready.folder, ready.name
        path = folder.absolute(name)
        # As `Arrival(…)` and `Origin(…)` make them, at a third of the cost.
        arrival = _tuple(Arrival, (path, shown(name.rpartition("/")[2]), ready.seen.size, Handover.MOVE))
        drop = self._drop(ready, path, outbox)
        origin = _tuple(Origin, (Source.INBOX, folder.user_id, (arrival,), drop, None, None, self._ids.next()))
        return self._submission(folder, ready.payload), origin

    def _submission(self, folder: Folder, payload: dict[str, Any] | None) -> Submission:
        if payload is not None:
            return Submission(type=folder.handler, payload={**folder.payload, **payload})
        plain = self._plain.get(folder.path)
        if plain is None:
            plain = self._plain[folder.path] = Submission(type=folder.handler, payload=dict(folder.payload))
        return plain

    def _drop(self, ready: Ready, path: str, outbox: str | None) -> Drop:
        path, seen = self._relative(path), ready.seen
        is_plain = path.isascii()
        # What stays must not be named: whoever takes the file, or does so again after a crash, removes what is.
        sidecar = None if ready.folder.is_kept else ready.sidecar
        return make_drop(
            path=path if is_plain else text_of(path),
            raw=None if is_plain else raw_of(path),
            name=ready.name if is_plain else text_of(ready.name),
            device=seen.device,
            inode=seen.inode,
            size=seen.size,
            mtime_ns=seen.mtime_ns,
            sidecar=text_of(self._relative(ready.folder.absolute(sidecar))) if sidecar else None,
            outbox=outbox,
        )

    def _make_of_document(self, ready: Ready, outbox: str | None) -> tuple[Submission, Origin]:
        fields = dict(ready.payload or _NO_PAYLOAD)
        inputs = self._inputs(ready.folder, fields.pop("inputs", []))
        try:
            submission = Submission.model_validate(fields)
        except ValidationError as error:
            raise InvalidSubmission(_problems(error)) from error
        drop = self._drop(ready, ready.folder.absolute(ready.name), outbox)
        origin = Origin(
            source=Source.INBOX,
            user_id=ready.folder.user_id,
            inputs=inputs,
            drop=replace(drop, sidecar=drop.path),
        )
        return submission, origin

    def _inputs(self, folder: Folder, names: Any) -> tuple[Arrival, ...]:
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise InvalidSubmission((Problem("/inputs", "must be an array of file names"),))
        if len(names) > MAX_DOCUMENT_INPUTS:
            raise InvalidSubmission((Problem("/inputs", f"must hold at most {MAX_DOCUMENT_INPUTS} files"),))
        return tuple(self._input(folder, name, f"/inputs/{place}") for place, name in enumerate(names))

    def _input(self, folder: Folder, name: str, pointer: str) -> Arrival:
        path = os.path.realpath(f"{folder.path}/{name}" if not name.startswith("/") else name)
        own = path.startswith(f"{os.path.realpath(folder.path)}/")
        if not own and not any(path.startswith(f"{root}/") for root in self._roots):
            raise InvalidSubmission((Problem(pointer, "lies outside the folders that a document may name"),))
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise InvalidSubmission((Problem(pointer, f"cannot be read: {error.strerror}"),)) from error
        if not os.path.isfile(path):
            raise InvalidSubmission((Problem(pointer, "is not a file"),))
        mode = Handover.MOVE if own else Handover.COPY
        return Arrival(path=Path(path), name=shown(path.rpartition("/")[2]), size=size, mode=mode)

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._data)


def _problems(error: ValidationError) -> tuple[Problem, ...]:
    return tuple(
        Problem("".join(f"/{part}" for part in fault["loc"]), fault["msg"]) for fault in error.errors(include_url=False)
    )
