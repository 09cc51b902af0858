"""Whether a dropped file is whole: what can be seen of it, and a pure decision by the strongest signal.

1. It came to its name by a rename from a name that is never taken (`clip.mp4.part`): whole.
2. No process has it open for writing: whole. The kernel says so by granting a read lease (fcntl(2), F_SETLEASE) for
   the microsecond that the question takes. It grants one on a local filesystem to the file's owner or to root.
3. Elsewhere: size, modification time and inode unchanged for a while.

A file without a byte waits: most programs create first and write afterwards.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

if sys.platform == "linux":
    import fcntl

_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
# Whoever opens the file for writing during the lease makes the kernel signal its holder. SIGIO, the default, kills a
# process that did not expect it; SIGURG is ignored by every process that does not ask for it.
_LEASE_SIGNAL = int(signal.SIGURG)


class Writer(StrEnum):
    """Whether somebody has a file open for writing. `UNKNOWN`: this filesystem, or this owner, cannot be asked."""

    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"


class Trust(StrEnum):
    """What a filesystem's answers are worth. `REMOTE`: another machine may be writing, and no lease tells."""

    LOCAL = "local"
    REMOTE = "remote"


class Sighting(NamedTuple):
    """What was seen of one file. `mode`, `owner`, `links`: as in stat(2)."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    mode: int
    owner: int
    links: int
    writer: Writer

    @property
    def content(self) -> tuple[int, int, int, int]:
        """Changes whenever the file does, as far as stat(2) tells."""
        return self.device, self.inode, self.size, self.mtime_ns


class State(StrEnum):
    """What was decided about a file. Every one but `READY` and `REFUSED` is asked again later."""

    READY = "ready"
    EMPTY = "empty"
    WRITING = "writing"
    SETTLING = "settling"
    REFUSED = "refused"


class Decision(NamedTuple):
    """A state and, for people, why."""

    state: State
    reason: str = ""


@dataclass(slots=True)
class Watched:
    """What is remembered of a file between two looks; instants are seconds of a monotonic clock."""

    since: float
    first: Sighting
    last: Sighting
    unchanged_since: float

    @classmethod
    def begin(cls, seen: Sighting, now: float) -> Watched:
        """The first look at a file."""
        return cls(now, seen, seen, now)

    def look(self, seen: Sighting, now: float) -> None:
        """A further look."""
        if seen.inode != self.last.inode:
            self.since, self.first = now, seen
        if seen.content != self.last.content:
            self.unchanged_since = now
        self.last = seen

    def bytes_per_second(self, now: float) -> float:
        """How fast it has grown since the first look."""
        return max(self.last.size - self.first.size, 0) / max(now - self.since, 0.001)


class Patience(NamedTuple):
    """How long a file must not have changed, in seconds. `always` holds for every file of the folder, None: not
    asked; `fallback` where nothing better is known."""

    fallback: float
    always: float | None = None


_READY = Decision(State.READY)
_EMPTY = Decision(State.EMPTY, "it has no content yet")
_WRITING = Decision(State.WRITING, "a program has it open for writing")


def decide(
    seen: Sighting, watched: Watched | None, now: float, *, patience: Patience, trust: Trust, renamed: bool, uid: int
) -> Decision:
    """Whether the file may be taken now. `watched` already includes this look; `uid` is our own."""
    if not stat.S_ISREG(seen.mode):
        return Decision(State.REFUSED, _describe(seen.mode))
    if seen.links > 1 and seen.owner != uid:
        return Decision(State.REFUSED, f"it is a hard link to a file of somebody else (uid {seen.owner})")
    if seen.writer is Writer.SOME:
        return _WRITING
    if seen.size == 0:
        return _EMPTY
    if patience.always is None and (renamed or (seen.writer is Writer.NONE and trust is Trust.LOCAL)):
        return _READY
    return _decide_by_rest(watched, now, patience)


def _decide_by_rest(watched: Watched | None, now: float, patience: Patience) -> Decision:
    needed = patience.fallback if patience.always is None else patience.always
    rested = now - watched.unchanged_since if watched else 0.0
    if rested >= needed:
        return _READY
    return Decision(State.SETTLING, f"it must not have changed for {needed:g} s")


def _describe(mode: int) -> str:
    for is_kind, name in (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISDIR, "a folder"),
    ):
        if is_kind(mode):
            return f"it is {name}, not a file"
    return "it is a device, not a file"


def open_folder(root: str, below: str) -> int:
    """A descriptor of the directory `below` (relative, may be empty) `root`, no link followed on the way down.

    Raises `OSError`; `ELOOP` or `ENOTDIR` where a component is a link or a file. Close it.
    """
    fd = os.open(root, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
    for part in below.split("/") if below else ():
        try:
            inner = os.open(part, _DIRECTORY_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def look(directory_fd: int, name: str) -> Sighting:
    """Sees the file `name` in an open directory, without following a link, blocking or changing anything.

    Raises `FileNotFoundError`, and `PermissionError` where it cannot be read.
    """
    try:
        fd = os.open(name, _OPEN_FLAGS, dir_fd=directory_fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EOPNOTSUPP):
            raise
        # A link, a socket or a device: its own entry says which.
        return _sighting(os.stat(name, dir_fd=directory_fd, follow_symlinks=False), Writer.UNKNOWN)
    try:
        status = os.fstat(fd)
        return _sighting(status, find_writer(fd) if stat.S_ISREG(status.st_mode) else Writer.UNKNOWN)
    finally:
        os.close(fd)


def find_writer(fd: int) -> Writer:
    """Whether any process has the file of a read-only descriptor open for writing or mapped writable."""
    if sys.platform != "linux":
        return Writer.UNKNOWN
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, _LEASE_SIGNAL)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return Writer.SOME if error.errno == errno.EAGAIN else Writer.UNKNOWN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return Writer.NONE


def _sighting(status: os.stat_result, writer: Writer) -> Sighting:
    return Sighting(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
        status.st_mode, status.st_uid, status.st_nlink, writer,
    )  # fmt: skip
