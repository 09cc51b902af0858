"""Taking a file that stays where it is: the task gets a copy, and the file is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.errors import KeyConflict, RunnerError
from runner.intake.admission import Origin, Submission
from runner.intake.folders import Remember
from runner.intake.holds import Why
from runner.intake.inspection import Held, Ready
from runner.intake.seen import Seen, digest_of, key_of, memory_of
from runner.store import Handover, Identity, Store
from runner.task import Task

Submit = Callable[[Submission, Origin], Task]
"""Hands in one submission, durable when it returns; the earlier task if its unique key is known."""


class Keeping:
    """Takes files of folders with `after: keep`. The inbox's thread."""

    def __init__(self, store: Store, submit: Submit) -> None:
        self._store = store
        self._files = store.files
        self._layout = store.layout
        self._submit = submit
        self.seen = Seen(store.files, f"{store.layout.data}/seen")

    def take(self, file: Ready, submission: Submission, origin: Origin) -> Task | RunnerError | Held:
        """The task, which after a crash may be an earlier one; or why there is none."""
        private = f"{self._layout.tmp}/kept.{origin.task_id}"
        try:
            self._copy(file, private)
            digest = digest_of(private) if file.folder.remember is Remember.CONTENT else ""
            task = self._hand_in(file, submission, origin, private, digest)
        except OSError as error:
            return Held(Why.UNREADABLE, f"it cannot be copied: {error.strerror or error}")
        except RunnerError as error:
            return error
        finally:
            self._files.remove(private)
        self.seen.note(file.folder, file.name, memory_of(file.folder, file.seen, digest, task_id=task.id))
        return task

    def refuse(self, file_seen: Ready, reason: str) -> None:
        """It is not taken as it is; once it changes it is looked at anew."""
        self.seen.note(file_seen.folder, file_seen.name, memory_of(file_seen.folder, file_seen.seen, "", reason=reason))

    def _copy(self, file: Ready, private: str) -> None:
        source = file.folder.absolute(file.name)
        self._files.copy(source, private)
        if Identity.of(source) != Identity(*file.seen.content):
            raise OSError(None, "it was changed or replaced meanwhile")

    def _hand_in(self, file: Ready, submission: Submission, origin: Origin, private: str, digest: str) -> Task:
        key = key_of(file.folder, file.name, file.seen, digest)
        arrivals = tuple(one._replace(path=Path(private), mode=Handover.MOVE) for one in origin.inputs)
        try:
            return self._submit(submission.model_copy(update={"unique_key": key}), origin._replace(inputs=arrivals))
        except KeyConflict as conflict:
            # It was taken before, and what is asked for with it has changed since: still it is the same file.
            return self._store.get_task(conflict.task_id)
