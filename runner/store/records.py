"""Tombstones: what is left to do for a task or user that was removed."""

from __future__ import annotations

from typing import NamedTuple

from runner.store.files import Files, Layout


class Removal(NamedTuple):
    """A removed task, and enough to find all that belonged to it."""

    task_id: str
    user_id: str

    def encode(self) -> bytes:
        """The journal record's body."""
        return f"{self.user_id}/{self.task_id}".encode()

    @classmethod
    def decode(cls, body: bytes) -> Removal:
        """The opposite."""
        user_id, _, task_id = body.decode().rpartition("/")
        return cls(task_id, user_id)

    def apply(self, files: Files, layout: Layout) -> None:
        """Deletes the task's file, log, inputs, outputs and what it kept; what is gone already is fine."""
        files.remove(layout.task(self.task_id))
        files.remove(layout.log(self.task_id))
        files.remove_tree(layout.upload(self.user_id, self.task_id))
        files.remove_tree(layout.result(self.user_id, self.task_id))
        files.remove_tree(layout.kept(self.task_id))


class RemovedUser(NamedTuple):
    """A removed user."""

    user_id: str

    def apply(self, files: Files, layout: Layout) -> None:
        """Deletes the user's record; tasks and files of theirs are cleanup's business."""
        files.remove(layout.user(self.user_id))
