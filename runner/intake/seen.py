"""What was taken from folders whose files stay, so that each is taken once, across restarts too.

    data/seen/<hash of the folder's path>.jsonl     one JSON array a line, the latest line of a name holds

Lines are appended after the task is durable, and not synced. What a crash loses here the task itself still knows: its
unique key is made of the same facts, so the file gives that task again, not a second one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from typing import NamedTuple

from runner.errors import CorruptRecord
from runner.intake.folders import Folder, Remember
from runner.intake.names import path_of, raw_of, text_of
from runner.intake.readiness import Sighting
from runner.store import Files, Layout
from runner.store.aside import quarantine

_log = logging.getLogger(__name__)


class Memory(NamedTuple):
    """What is remembered of one file. `digest`: SHA-256 of its bytes, empty if they were not asked for. `task_id`: what
    it became; empty if it was refused, and then `reason` says why."""

    size: int
    mtime_ns: int
    inode: int
    digest: str = ""
    task_id: str = ""
    reason: str = ""


class Seen:
    """Remembers. The inbox's thread; `find` may be called from any."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._by_folder: dict[str, dict[str, Memory]] = {}

    def find(self, folder: Folder, name: str) -> Memory | None:
        """What is remembered of a file, or None."""
        return self._memories(folder).get(name)

    def is_unchanged(self, folder: Folder, name: str) -> bool:
        """Whether the file was taken, and lies there as it did then. One system call."""
        memory = self.find(folder, name)
        if memory is None:
            return False
        try:
            status = os.stat(folder.absolute(name), follow_symlinks=False)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns, status.st_ino) == memory[:3]

    def knows(self, folder: Folder, name: str, seen: Sighting) -> bool:
        """Whether the file, as it was just seen, was taken already. Reads it if the folder goes by content and only
        its time or inode differ. Raises `OSError`."""
        memory = self.find(folder, name)
        if memory is None:
            return False
        if (seen.size, seen.mtime_ns, seen.inode) == memory[:3]:
            return True
        if not memory.digest or memory.size != seen.size or digest_of(folder.absolute(name)) != memory.digest:
            return False
        self.note(folder, name, memory._replace(mtime_ns=seen.mtime_ns, inode=seen.inode))
        return True

    def note(self, folder: Folder, name: str, memory: Memory) -> None:
        """The file was taken, or refused."""
        self._memories(folder)[name] = memory
        try:
            self._append(self._path(folder), _line(name, memory))
        except OSError as error:
            _log.warning("what was taken from %s cannot be noted: %s", folder.path, error)

    def _memories(self, folder: Folder) -> dict[str, Memory]:
        memories = self._by_folder.get(folder.path)
        if memories is None:
            memories = self._by_folder[folder.path] = self._load(folder)
        return memories

    def _load(self, folder: Folder) -> dict[str, Memory]:
        path = self._path(folder)
        try:
            lines = self._files.read(path).splitlines(keepends=True)
        except FileNotFoundError:
            return {}
        except (CorruptRecord, OSError) as error:
            # The tasks know it too: their unique keys are made of the same facts.
            _log.warning("what was taken from %s is not remembered, %s: %s", folder.path, path, error)
            self._set_aside(path, error)
            return {}
        memories = dict(filter(None, map(_parsed, lines)))
        wanted = _present(folder, memories)
        if lines and (len(lines) > 2 * len(wanted) or not lines[-1].endswith(b"\n")):
            with suppress(OSError):
                self._files.replace(path, b"".join(_line(*item) for item in wanted.items()), f"{path}.tmp")
        return wanted

    def _set_aside(self, path: str, error: CorruptRecord | OSError) -> None:
        if isinstance(error, CorruptRecord):
            with suppress(OSError):
                quarantine(self._files, Layout(os.path.dirname(self._directory)), path, str(error))

    def _append(self, path: str, line: bytes) -> None:
        self._files.make_directory(self._directory)
        fd = self._files.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._files.write_all(fd, line)
        finally:
            self._files.close(fd)

    def _path(self, folder: Folder) -> str:
        return f"{self._directory}/{hashlib.sha256(os.fsencode(folder.path)).hexdigest()[:16]}.jsonl"


def memory_of(folder: Folder, seen: Sighting, digest: str, *, task_id: str = "", reason: str = "") -> Memory:
    """What to remember of a file that was just seen."""
    assert digest or not task_id or folder.remember is not Remember.CONTENT
    return Memory(seen.size, seen.mtime_ns, seen.inode, digest, task_id, reason)


def key_of(folder: Folder, name: str, seen: Sighting, digest: str) -> str:
    """The unique key of the task that a kept file becomes: the same for the same file, and another if it changes."""
    facts = [folder.absolute(name), digest or f"{seen.size}/{seen.mtime_ns}/{seen.inode}"]
    return f"kept:{hashlib.sha256(os.fsencode('//'.join(facts))).hexdigest()}"


def digest_of(path: str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; no link is followed. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _present(folder: Folder, memories: dict[str, Memory]) -> dict[str, Memory]:
    """Without the files that are gone. While none is there the folder may be a share that is away, and all is kept."""
    present = {name: memory for name, memory in memories.items() if os.path.lexists(folder.absolute(name))}
    return present or memories


def _line(name: str, memory: Memory) -> bytes:
    return json.dumps([text_of(name), raw_of(name), *memory], ensure_ascii=False).encode() + b"\n"


def _parsed(line: bytes) -> tuple[str, Memory] | None:
    """One line; None if a crash has torn it."""
    try:
        text, raw, *facts = json.loads(line)
        return path_of(text, raw), Memory(*facts)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
