"""What MediaCraft does with tasks, in our verbs: whose they are, when one more may run, how a draft becomes a task.

Every method waits for the disk; coroutines call them with `in_thread`.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any, Final

from runner.config import Config
from runner.dialects.mediacraft.visitors import NOBODY
from runner.dialects.mediacraft.words import (
    MERGE,
    SYSTEM_IS_BUSY,
    USER_IS_BUSY,
    Clip,
    Notes,
    clips_of,
    merge_payload,
    notes_of,
    read_regions,
    refuse,
)
from runner.ffmpeg import Media
from runner.intake.admission import Arrival, Origin, Submission
from runner.service import Service
from runner.store import TaskQuery
from runner.store.blobs import Handover
from runner.task import DRAFT, Status, Task
from runner.web.door import Caller
from runner.web.multipart import FormFile

AT_WORK: Final = (Status.PENDING, Status.PROCESSING)
ENDED_BADLY: Final = frozenset({Status.FAILED, Status.CANCELLED})


class Studio:
    """The verbs. From any thread. `rejects`: a task that could not start at once is refused, not queued."""

    def __init__(self, service: Service, config: Config, *, rejects: bool) -> None:
        self._service = service
        self._config = config
        self._rejects = rejects
        self._starting = threading.Lock()

    def find(self, task_id: str, caller: Caller) -> Task:
        """A task. Raises `HttpProblem` 404, and 403 for somebody else's."""
        task = self._service.store.find(task_id)
        if task is None:
            raise refuse(404, "Task not found")
        if caller.sees not in (None, task.user_id):
            raise refuse(403, "Access denied")
        return task

    def check_room(self, user_id: str) -> None:
        """One more task of this user could start now. Only what runs, or is about to, counts. Raises 429."""
        if not self._rejects or user_id == NOBODY:
            return
        limits = self._service.config.limits
        if limits.per_user is not None and user_id not in limits.exempt_users:
            at_work = self._service.count(TaskQuery(user_id=user_id, status=AT_WORK))
            if at_work >= limits.per_user:
                raise refuse(429, USER_IS_BUSY)
        if self._service.dispatcher.at_work() >= limits.global_:
            raise refuse(429, SYSTEM_IS_BUSY)

    def create(self, type: str, caller: Caller, notes: Notes) -> Task:
        """A draft without files."""
        self.check_room(caller.user_id)
        return self._submit(type, caller, notes, ())

    def create_with(self, type: str, caller: Caller, notes: Notes, files: Sequence[FormFile]) -> Task:
        """A draft with its files."""
        self.check_room(caller.user_id)
        return self._submit(type, caller, notes, tuple(map(_arrival, files)))

    def receive(self, task: Task, file: FormFile, media: Media | None) -> Task:
        """A draft gets a file: a merge one more, a film to repaint in the place of the one that it had."""
        if task.status not in DRAFT:
            raise refuse(400, f"Task is {task.status}: it takes no more files")
        if task.type != MERGE:
            return self._service.replace_inputs(task.id, _arrival(file))
        received = self._service.add_input(task.id, _arrival(file))
        added = next(path for path in reversed(received.input_files) if path not in task.input_files)
        clip = make_clip(file.name, added, file.size, media)
        return self.change_notes(received, clips=(*notes_of(received).clips, clip))

    def change_notes(self, task: Task, **changes: Any) -> Task:
        """A draft's notes with something else in them."""
        return self._service.revise(
            task.id, lambda now: notes_of(now).model_copy(update=changes).put_into(now.metadata)
        )

    def start_repainting(self, task: Task, regions: Any) -> Task:
        """A film is to be repainted in these regions."""
        return self.start(task, {"regions": read_regions(regions)})

    def start_merging(self, task: Task, clips: Sequence[Clip]) -> Task:
        """A merge is to be made of these clips, in this order."""
        if len(task.input_files) < 2:
            raise refuse(400, "At least 2 video files are required")
        return self.start(task, merge_payload(task.input_files, clips, notes_of(task)))

    def start(self, task: Task, payload: dict[str, Any]) -> Task:
        """A draft, or a task that has failed, joins the queue, if it could start now. One at a time, so that two
        requests of one user at once do not both find room."""
        with self._starting:
            self.check_room(task.user_id)
            if task.status in ENDED_BADLY:
                return self._service.begin_again(task.id, payload)
            if task.status is not Status.UPLOADED:
                raise refuse(400, f"Task cannot be started: it is {task.status}")
            return self._service.begin(task.id, payload)

    def drop_clip(self, task: Task, path: str) -> Task:
        """A merge loses a file."""
        changed = self._service.drop_input(task.id, path)
        return self.change_notes(changed, clips=clips_of(changed))

    def _submit(self, type: str, caller: Caller, notes: Notes, arrivals: tuple[Arrival, ...]) -> Task:
        submission = Submission(type=type, draft=True, metadata=notes.put_into({}))
        return self._service.submit(submission, Origin(caller.source, caller.user_id, arrivals))


def make_clip(name: str, path: str, size: int, media: Media | None) -> Clip:
    """What is noted of one file of a merge."""
    return Clip(
        item_id=str(uuid.uuid4()),
        filename=name,
        path=path,
        size=size,
        duration=0.0 if media is None else round(media.duration_seconds or 0.0, 3),
        resolution="" if media is None else f"{media.width}x{media.height}",
        fps=0.0 if media is None else media.fps or 0.0,
        has_audio=media is not None and media.has_audio,
    )


def note_clips(task: Task, files: Sequence[FormFile], media: Sequence[Media | None]) -> tuple[Clip, ...]:
    """The clips of a merge whose files came all at once."""
    return tuple(
        make_clip(file.name, path, file.size, found)
        for path, file, found in zip(task.input_files, files, media, strict=True)
    )


def read_notes(form: dict[str, Any]) -> Notes:
    """Notes from what a client says at the creation. Raises `HttpProblem` 400."""
    name = form.get("task_name")
    if name is not None and not isinstance(name, str):
        raise refuse(400, "task_name must be a text")
    return Notes(task_name=name and name[:200])


def _arrival(file: FormFile) -> Arrival:
    return Arrival(file.path, file.name, file.size, Handover.MOVE)
