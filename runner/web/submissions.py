"""What a request says of a task to be: as JSON, or as a form with files."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field

from runner.errors import KeyConflict
from runner.ids import Ids
from runner.intake.admission import Arrival, Origin, Submission
from runner.intake.names import path_of, text_of
from runner.record import Record
from runner.store.blobs import Handover
from runner.task import Task
from runner.web.bodies import parse_json
from runner.web.door import Caller
from runner.web.multipart import Form
from runner.web.problems import invalid, pointing_below

OTHER_NAMES: Final = {"process_at": "run_after"}
"""What clients of contract 001 call a field."""

_JSON_FIELDS: Final = frozenset({"payload", "metadata", "on_success", "priority", "max_retries", "draft"})
"""Fields of a form whose text is JSON; that of the others is the value itself."""

_COMPARED: Final = {
    "priority": "priority",
    "max_retries": "max_retries",
    "timeout": "timeout_seconds",
    "metadata": "metadata",
    "client_id": "client_id",
    "on_success": "on_success",
    "expires_at": "expires_at",
}
"""Fields of a submission that its task keeps as they are, and what the task calls them."""


class LocalFile(Record):
    """An input that lies on this machine already. `path` is absolute; one that is not UTF-8 is given as `raw`, too: its
    bytes, percent-encoded (RFC 3986). `handover` None: moved if it lies under an allowed root, else copied."""

    path: str
    raw: str | None = None
    name: str | None = None
    handover: Handover | None = None


class LocalFiles(BaseModel):
    """What a submission may have beside its other fields, where files of this machine may be named."""

    inputs: tuple[LocalFile, ...] = Field(default=(), max_length=1000)


@dataclass(frozen=True, slots=True)
class Roots:
    """The folders whose files anybody may hand in. The data directory is never one of them, nor in one."""

    folders: tuple[Path, ...]
    data: Path

    def holds(self, path: Path) -> bool:
        """Whether the file that `path` leads to, symbolic links followed, lies under a root."""
        return any(path.is_relative_to(root) for root in self.folders) and not path.is_relative_to(self.data)

    @classmethod
    def resolved(cls, folders: Sequence[Path], data: Path) -> Roots:
        """The roots as they really are: both sides of every comparison have their links followed."""
        return cls(tuple(folder.resolve() for folder in folders), data.resolve())


class SubmissionReader:
    """Makes submissions of what requests say. It asks the disk, so it is for worker threads where `names_files`."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._ids = Ids()

    def read(self, body: Any, caller: Caller, key: str | None = None) -> tuple[Submission, Origin]:
        """What a body says, and where it came from. `key`: the unique key that the request's head says.

        Raises pydantic's ValidationError or `InvalidSubmission`.
        """
        return self._read(body, caller, key=key)

    def read_many(self, body: Any, caller: Caller) -> list[tuple[Submission, Origin]]:
        """The same for a batch; what is wrong is pointed to as `/<number>/<field>`."""
        if not isinstance(body, list):
            raise invalid("", "must be an array of submissions")
        batch_id = str(uuid.uuid4())
        pairs = []
        for number, item in enumerate(body):
            with pointing_below(f"/{number}"):
                pairs.append(self._read(item, caller, batch_id=batch_id))
        return pairs

    def read_form(self, form: Form, caller: Caller, key: str | None = None) -> tuple[Submission, Origin]:
        """The same for a form: a part `task` with the whole as JSON, or a part for each field; its files are inputs."""
        arrivals = tuple(Arrival(file.path, file.name, file.size, Handover.MOVE) for file in form.files)
        return self._read(body_of(form), caller, key=key, arrivals=arrivals)

    def _read(
        self,
        body: Any,
        caller: Caller,
        *,
        key: str | None = None,
        batch_id: str | None = None,
        arrivals: tuple[Arrival, ...] = (),
    ) -> tuple[Submission, Origin]:
        if not isinstance(body, dict):
            raise invalid("", "must be an object")
        if "inputs" in body and (caller.may_name_files or self._roots.folders):
            arrivals += self._local_files(body, caller)
            body = {name: value for name, value in body.items() if name != "inputs"}
        if "process_at" in body and "run_after" not in body:
            body = {OTHER_NAMES.get(name, name): value for name, value in body.items()}
        if key is not None:
            if body.get("unique_key", key) != key:
                raise invalid("/unique_key", "is not what the header Idempotency-Key says; give one of them")
            body = {**body, "unique_key": key}
        origin = Origin(
            source=caller.source, user_id=caller.user_id, inputs=arrivals, batch_id=batch_id, task_id=self._ids.next()
        )
        return Submission.model_validate(body), origin

    def _local_files(self, body: dict[str, Any], caller: Caller) -> tuple[Arrival, ...]:
        files = LocalFiles.model_validate(body).inputs
        return tuple(map(self._arrival, files, itertools.count(), itertools.repeat(caller)))

    def _arrival(self, file: LocalFile, number: int, caller: Caller) -> Arrival:
        given = Path(path_of(file.path, file.raw))
        if "\0" in file.path or not given.is_absolute():
            raise invalid(f"/inputs/{number}/path", f"must be an absolute path, not {file.path!r}")
        path = given.resolve()
        under_root = self._roots.holds(path)
        # Before the file is looked for: nobody learns what else there is.
        if not under_root and not caller.may_name_files:
            raise invalid(f"/inputs/{number}/path", "must lie under one of http.allowed_roots")
        if not path.is_file():
            raise invalid(f"/inputs/{number}/path", f"must be the absolute path of a file, not {file.path!r}")
        handover = file.handover or (Handover.MOVE if under_root else Handover.COPY)
        name = file.name or text_of(given.name)
        return Arrival(path=path if under_root else given, name=name, size=path.stat().st_size, mode=handover)


def names_files(body: Any) -> bool:
    """Whether reading the submission asks the disk."""
    return isinstance(body, dict) and "inputs" in body


def body_of(form: Form) -> Any:
    """The submission of a form as if it had come as JSON. Raises `HttpProblem` 400."""
    if "task" in form.fields:
        others = sorted(form.fields.keys() - {"task"})
        if others:
            raise invalid(f"/{others[0]}", "belongs into the part `task`, since there is one")
        return parse_json(form.fields["task"])
    body: dict[str, Any] = {}
    for name, value in form.fields.items():
        try:
            body[name] = parse_json(value) if name in _JSON_FIELDS else value.decode()
        except UnicodeDecodeError as error:
            raise invalid(f"/{name}", "must be UTF-8") from error
    return body


def check_same(submission: Submission, task: Task) -> None:
    """An earlier task's key was sent again with the same submission. Raises `KeyConflict`.

    Admission has compared what the task works on; here is the rest, as far as it was said.
    """
    for name, kept in _COMPARED.items():
        if name in submission.model_fields_set and getattr(submission, name) != getattr(task, kept):
            raise KeyConflict(submission.unique_key or "", task.id)
