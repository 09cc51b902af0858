"""The `error` folder beside dropped files: what was refused or failed, each with a text that says why.

* `inbox/thumbnail/error/clip.mp4`: the file; moved back up it is tried again, as a new task
* `clip.mp4.json`: its parameters, if it had any
* `clip.mp4.error.txt`: what was wrong, which field, and how to try again
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from runner.errors import InvalidSubmission, RunnerError
from runner.intake.folders import Folder
from runner.intake.names import REASON, numbered, shown, with_suffix
from runner.intake.sidecar import sidecar_of
from runner.store import Files
from runner.task import Task


@dataclass(frozen=True, slots=True)
class Reject:
    """One file that did not become a result. `name` is its path below the folder; `problems` are lines for people."""

    folder: Folder
    name: str
    code: str
    problems: tuple[str, ...]
    task_id: str | None = None


class Rejects:
    """Moves files to the error folders. Several threads may, each with a `temporary` path of its own."""

    def __init__(self, files: Files, temporary: str) -> None:
        self._files = files
        self._temporary = temporary

    def move(self, reject: Reject, now: datetime, sidecar: str | None = None) -> str:
        """The file, and its sidecar if named, leaves the folder. Returns the file's new path.

        Whatever kind of thing lies there is moved by its name, never opened. Raises `FileNotFoundError`, and other
        `OSError`s where the folder does not let it go.
        """
        source = reject.folder.absolute(reject.name)
        os.lstat(source)
        target = self._room_for(reject)
        self._write_reason(reject, target, now)
        self._files.rename(source, target)
        # The sidecar goes last: a file that a crash leaves without its parameters would be taken without them.
        if sidecar is not None:
            self._files.rename(reject.folder.absolute(sidecar), sidecar_of(target))
        return target

    def give_back(self, reject: Reject, source: str, payload: bytes | None, now: datetime) -> str:
        """A task failed: its input at `source`, which it keeps, lies in the error folder too, with its parameters."""
        target = self._room_for(reject)
        if payload is not None:
            self._files.replace(sidecar_of(target), payload, self._temporary)
        self._write_reason(reject, target, now)
        self._files.link_or_copy(source, target)
        return target

    def is_back(self, reject: Reject, source: str) -> bool:
        """Whether `give_back` has been done already, as far as a hard link shows it."""
        number = 1
        while os.path.lexists(target := self._target(reject, number)):
            if os.path.samefile(target, source):
                return True
            number += 1
        return False

    def explain(self, reject: Reject, now: datetime) -> None:
        """Writes the reason alone: the file itself cannot come back."""
        target = self._target(reject, 1)
        self._files.make_directory(os.path.dirname(target))
        self._write_reason(reject, target, now)

    def has_reason(self, folder: Folder, name: str) -> bool:
        """Whether a reason file is there for a file of that name, which then came back from the error folder."""
        return os.access(self._reason_path(f"{folder.error_path}/{name}"), os.F_OK)

    def forget(self, folder: Folder, names: Iterable[str]) -> None:
        """Files were taken again: the reasons why they once were not are out of date."""
        if not os.access(folder.error_path, os.F_OK):
            return
        for name in names:
            target = f"{folder.error_path}/{name}"
            path = self._reason_path(target)
            if os.access(path, os.F_OK) and not os.path.lexists(target):  # else it is the reason of another one
                self._files.remove(path)

    def _target(self, reject: Reject, number: int) -> str:
        directory, _, name = f"{reject.folder.error_path}/{reject.name}".rpartition("/")
        return f"{directory}/{numbered(name, number)}"

    def _room_for(self, reject: Reject) -> str:
        # Checking first is enough: only the runner gives names here, and a person's file would have to come in between.
        number = 1
        while os.path.lexists(target := self._target(reject, number)):
            number += 1
        self._files.make_directory(os.path.dirname(target))
        return target

    def _write_reason(self, reject: Reject, target: str, now: datetime) -> None:
        text = reason_text(reject, target.rpartition("/")[2], now)
        self._files.replace(self._reason_path(target), text.encode(), self._temporary)

    def _reason_path(self, target: str) -> str:
        directory, _, name = target.rpartition("/")
        return f"{directory}/{with_suffix(name, REASON)}"


def reason_text(reject: Reject, name: str, now: datetime) -> str:
    """What the reason file says."""
    what = "failed" if reject.task_id else "was not taken"
    lines = [
        f"{shown(reject.name)} {what} ({now:%Y-%m-%d %H:%M:%S} UTC).",
        "",
        *(f"  {shown(problem)}" for problem in reject.problems),
        "",
        f"Code: {reject.code}",
    ]
    if reject.task_id:
        lines.append(f"Task: {reject.task_id} (its log: runner logs {reject.task_id})")
    lines += ["", *_how_to_retry(reject, name), ""]
    return "\n".join(lines)


def _how_to_retry(reject: Reject, name: str) -> Iterable[str]:
    yield "To try again: mend what is wrong, then move the file from this folder to the one above it:"
    yield f"  {shown(reject.folder.path)}/"
    if not reject.folder.documents:
        yield f"Its parameters are those in {shown(sidecar_of(name))}, here or there: write or change that one first."


def problems_of(error: RunnerError) -> tuple[str, ...]:
    """What a refusal says, one line for each problem."""
    if isinstance(error, InvalidSubmission):
        return tuple(str(problem) for problem in error.problems)
    return (str(error),)


def problems_of_task(task: Task) -> tuple[str, ...]:
    """What a failed task says."""
    return (task.error.message,) if task.error else ("it failed without saying why",)
