"""Files that belong to tasks: inputs are handed over by rename, outputs are published by rename."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import StrEnum

from runner.errors import NotFound
from runner.store.committer import Durability
from runner.store.files import Files, Layout, is_regular


class Handover(StrEnum):
    """How an input file becomes the task's. `MOVE`: it leaves its place. `LINK`: a hard link where possible, else a
    copy; the caller keeps theirs and must not change it in place. `COPY`: always a copy."""

    MOVE = "move"
    LINK = "link"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file, and which content of it, something was decided about."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Identity:
        """The file at `path` as it is now, links not followed. Raises `FileNotFoundError`."""
        status = os.lstat(path)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Blobs:
    """Moves inputs in and outputs out. Methods may be called from any thread."""

    def __init__(self, files: Files, layout: Layout, durability: Durability) -> None:
        self._files = files
        self._layout = layout
        self._durability = durability

    def take(self, source: str, target: str, wanted: Identity) -> None:
        """A dropped file becomes the task's input. The task that names it is in the journal already, so a rename that
        a power cut undoes is done again by recovery, and none is synced. Idempotent; raises `OSError` when the file
        is in neither place."""
        found = _find_identity(source)
        if found != wanted:
            self._check_taken(source, target, found)
            return
        self._make_home(os.path.dirname(target))
        try:
            self._files.move(source, target)
        except FileNotFoundError:
            self._check_taken(source, target, None)

    def _check_taken(self, source: str, target: str, found: Identity | None) -> None:
        """What is at `source` is not the file that was to be taken: it has been taken before, or it is lost."""
        if os.path.exists(target):
            return
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        raise OSError(None, "it was changed or replaced just when it was taken; drop it again")

    def _make_home(self, directory: str) -> None:
        """A directory of which only the last part will be missing."""
        try:
            self._files.mkdir(directory)
        except FileExistsError:
            return
        except FileNotFoundError:
            self._files.make_directory(directory)

    def hand_over(self, source: str, target: str, how: Handover) -> None:
        """`target` has the content of `source` before any record names it: durable in durability `full`."""
        self._files.make_directory(os.path.dirname(target))
        if how is Handover.MOVE:
            self._files.move(source, target)
        elif how is Handover.LINK:
            # A link to a symbolic link would be one too, and lead elsewhere from its new place.
            self._link(os.path.realpath(source), target)
        else:
            self._files.copy(source, target)
        if self._durability is Durability.FULL:
            self._files.sync_path(target)
            self._files.sync_path(os.path.dirname(target))

    def _link(self, source: str, target: str) -> None:
        try:
            self._files.link_or_copy(source, target)
        except FileExistsError:
            # Left by one who died before there was a record of it.
            self._files.remove(target)
            self._files.link_or_copy(source, target)

    def publish(self, task_id: str, number: int, user_id: str) -> tuple[str, ...]:
        """The outputs of an attempt become the task's, all at once; returns their paths relative to the data
        directory. Empty if the attempt wrote none. Only regular files are outputs. Raises `OSError`."""
        private = self._layout.attempt(task_id, number)
        if not os.path.isdir(private):
            return ()
        _check_names(private)
        target = self._layout.result(user_id, task_id)
        if self._durability is Durability.FULL:
            self._files.sync_tree(private)
        self._files.make_directory(os.path.dirname(target))
        self._files.remove_tree(target)
        self._files.rename(private, target)
        if self._durability is Durability.FULL:
            self._files.sync_path(os.path.dirname(target))
        return tuple(self._layout.relative(path) for path in sorted(_walk(target)))

    def discard(self, task_id: str, number: int) -> None:
        """Nobody will see what this attempt wrote."""
        private = self._layout.attempt(task_id, number)
        if os.path.isdir(private):
            self._files.remove_tree(private)

    def discard_kept(self, task_id: str) -> None:
        """What attempts kept for each other is of no use any more."""
        kept = self._layout.kept(task_id)
        if os.path.isdir(kept):
            self._files.remove_tree(kept)

    def discard_results(self, user_id: str, task_id: str) -> None:
        """What a lost attempt had published without living to record it."""
        self._files.remove_tree(self._layout.result(user_id, task_id))

    def output(self, output_files: tuple[str, ...], name: str) -> str:
        """The absolute path of one of a task's outputs. Raises `NotFound`; the name never becomes a path."""
        for path in output_files:
            if path.split("/", 3)[-1] == name:
                return self._layout.absolute(path)
        raise NotFound("output file", name)


def _find_identity(path: str) -> Identity | None:
    try:
        return Identity.of(path)
    except FileNotFoundError:
        return None


def _walk(directory: str) -> list[str]:
    paths = [os.path.join(parent, name) for parent, _, names in os.walk(directory) for name in names]
    return [path for path in paths if is_regular(path)]


def _check_names(directory: str) -> None:
    """A task's JSON must be able to name its outputs."""
    for path in _walk(directory):
        if path != path.encode("utf-8", "replace").decode():
            raise OSError(errno.EILSEQ, "the name of an output is not UTF-8", path)
